# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the files of a report capture by capture, and make the report's page for a module's result."""

from __future__ import annotations

import json
import os
import textwrap
from contextlib import suppress
from typing import Any, BinaryIO

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.document import (
    format_document,
    make_document,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import Finding
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.page import format_findings
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.search import Search
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.report_page import Page
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.report_tables import (
    format_capture,
    format_skipped,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_missing, open_private
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import mask


class ReportWriter:
    """The files of a report in folder DEST. Use as a context manager: `add` each capture, then `finish`.

    With a search, the format json is findings.json and summary.json.

    Only one capture's rows are in memory at a time. FILES has the files' paths by format; LINES has the page for people and
    FINDINGS the findings, the worst first, after `finish`.
    With CHECK_MODE, the files are compared and not written. Without `finish`, or with nothing to report, the files stay as they were.
    """

    def __init__(self, dest: str, formats: list[str], *, check_mode: bool) -> None:
        names = {"json": "summary.json", "text": "summary.txt"}
        self.files = {name: os.path.join(dest, names[name]) for name in formats}
        self._drafts = {name: _Draft(path, check_mode=check_mode) for name, path in self.files.items()}
        self._dest, self._check_mode = dest, check_mode
        self._count = 0
        self._page = Page()
        self.lines: list[str] = []
        self.findings: list[Finding] = []

    def __enter__(self) -> ReportWriter:
        return self

    def __exit__(self, *_error: object) -> None:
        for draft in self._drafts.values():
            draft.close()

    def add(self, entry: dict[str, Any]) -> None:
        """Write ENTRY, an entry of summary.json's captures, to the files."""
        if "json" in self._drafts:
            beginning = ",\n" if self._count else '{\n "captures": [\n'
            self._drafts["json"].write(beginning + textwrap.indent(json.dumps(entry, indent=1), "  "))
        text = format_capture(entry)
        self._add_text(("\n" if self._count else "") + text)
        self._page.add(entry, text)
        self._count += 1

    def finish(self, skipped: list[dict[str, str]], search: Search | None = None) -> bool:
        """Write the list SKIPPED of files that could not be read, and the findings of SEARCH, which has looked at the captures.

        Then move the files to their places, and return True if one has changed.
        """
        if not self._count and not skipped:
            self.files = {}
            self.lines = ["No capture: there is nothing to report on."]
            return False
        if "json" in self._drafts:
            captures_end = "\n ]" if self._count else '{\n "captures": []'
            last = textwrap.indent(json.dumps(skipped, indent=1), " ").lstrip()
            self._drafts["json"].write(f'{captures_end},\n "skipped": {last}\n}}\n')
        text = format_skipped(skipped)
        self._add_text("\n" + text if text and self._count else text)
        self.lines = self._page.finish(text, self.files.get("text"))
        if search is not None:
            self._finish_findings(search)
        changes = [draft.finish() for draft in self._drafts.values()]
        return any(changes)

    def _finish_findings(self, search: Search) -> None:
        """Write the findings of SEARCH, and put the lines about them before the page, which then ends with the names of the files."""
        self.findings = search.finish()
        if "json" in self._drafts:
            path = os.path.join(self._dest, "findings.json")
            self.files = {"findings": path, **self.files}
            self._drafts["findings"] = _Draft(path, check_mode=self._check_mode)
            document = make_document(self.findings, search.captures, search.dropped, search.problems)
            self._drafts["findings"].write(format_document(document))
        first = []
        if search.captures:
            is_written = "findings" in self._drafts
            first = format_findings(self.findings, search.dropped, search.captures, is_written=is_written)
        names = ", ".join(os.path.basename(path) for path in self.files.values())
        last = ["", f"In {mask(self._dest)}: {names}"] if names else []
        self.lines = [*first, *([""] if first else []), *self.lines, *last]

    def _add_text(self, text: str) -> None:
        if "text" in self._drafts:
            self._drafts["text"].write(text)


class _Draft:
    """The new content of the file at PATH, written to a file beside it, and compared with the old content piece by piece."""

    def __init__(self, path: str, *, check_mode: bool) -> None:
        self._path = path
        self._temporary = f"{path}.{os.getpid()}.part"  # two reports may be written at once
        self._check_mode = check_mode
        self._old: BinaryIO | None = None
        self._new: BinaryIO | None = None
        self._is_begun = False

    def write(self, text: str) -> None:
        if not self._is_begun:
            self._begin()
        data = text.encode("utf-8")
        if self._new is not None:
            self._new.write(data)
        if self._old is not None and self._old.read(len(data)) != data:
            self._drop_old()

    def finish(self) -> bool:
        """Move the new content to its place, and return True if it differs from the old one."""
        is_same = self._old is not None and not self._old.read(1)
        if self._new is not None and not is_same:
            self._new.close()
            os.rename(self._temporary, self._path)
            self._new = None
        return not is_same

    def close(self) -> None:
        self._drop_old()
        if self._new is not None:
            self._new.close()
            os.unlink(self._temporary)
            self._new = None

    def _begin(self) -> None:
        self._is_begun = True
        with suppress(FileNotFoundError):
            self._old = open(self._path, "rb")
        if not self._check_mode:
            make_missing(os.path.dirname(self._path))
            self._new = open(self._temporary, "wb", opener=open_private)

    def _drop_old(self) -> None:
        if self._old is not None:
            self._old.close()
            self._old = None
