# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the page of a report: its whole text if that is short, else the first rows of each capture."""

from __future__ import annotations

from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis import report_tables

_WHOLE_LINES = 60  # a text of up to so many lines is shown whole
_BRIEF_LINES = 28  # several captures share so many lines, but each has at least one row
_MAX_ROWS = 5  # of a capture among several
_MAX_CAPTURES = 500


class Page:
    """The page of a report, made capture by capture; it keeps only the parts of each capture that the page can show."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._briefs: list[report_tables.Brief] = []
        self._count = 0

    def add(self, entry: dict[str, Any], text: str) -> None:
        """Add ENTRY, an entry of summary.json's captures, whose text in the report is TEXT."""
        self._count += 1
        if len(self._text) <= _WHOLE_LINES:
            self._text += ([""] if self._text else []) + text.splitlines()
        if self._count <= _MAX_CAPTURES:
            self._briefs.append(report_tables.describe_briefly(entry, _MAX_ROWS))

    def finish(self, skipped: str, path: str | None) -> list[str]:
        """Return the lines of the page, which end with the text SKIPPED; PATH is the file of the report's text, None without one."""
        last = skipped.splitlines()
        if len(self._text) <= _WHOLE_LINES:
            return self._text + ([""] if self._text and last else []) + last
        if self._count == 1:
            lines = self._text[:_WHOLE_LINES]
        else:
            rows = max(1, (_BRIEF_LINES - self._count) // self._count)
            lines = report_tables.format_briefs(self._briefs, rows)
            if self._count > _MAX_CAPTURES:
                lines.append(f"and {self._count - _MAX_CAPTURES} more captures")
        where = f"all of it is in {path}" if path is not None else "formats=text writes all of it to a file"
        return [*lines, *last, f"This is the beginning; {where}"]
