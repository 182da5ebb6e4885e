# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page of a report: all of its text where that is short, and the first rows of each capture where there are many captures."""

from __future__ import annotations

from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis import report_text

_WHOLE_LINES = 60  # as long a text is shown as it is
_BRIEF_LINES = 28  # what many captures share, if that is a row for each
_MAX_ROWS = 5  # of a capture among several
_MAX_CAPTURES = 500


class Page:
    """Collects captures one by one, and keeps of each what the page can show at most."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._briefs: list[report_text.Brief] = []
        self._count = 0

    def add(self, one: dict[str, Any], text: str) -> None:
        """Take ONE entry of summary.json's captures, of which the report says TEXT."""
        self._count += 1
        if len(self._text) <= _WHOLE_LINES:
            self._text += ([""] if self._text else []) + text.splitlines()
        if self._count <= _MAX_CAPTURES:
            self._briefs.append(report_text.describe_briefly(one, _MAX_ROWS))

    def finish(self, skipped: str, path: str | None) -> list[str]:
        """The lines of the page, and what was SKIPPED; the report's text is at PATH, if anywhere."""
        last = skipped.splitlines()
        if len(self._text) <= _WHOLE_LINES:
            return self._text + ([""] if self._text and last else []) + last
        if self._count == 1:
            lines = self._text[:_WHOLE_LINES]
        else:
            rows = max(1, (_BRIEF_LINES - self._count) // self._count)
            lines = report_text.format_briefs(self._briefs, rows)
            if self._count > _MAX_CAPTURES:
                lines.append(f"and {self._count - _MAX_CAPTURES} more captures")
        where = f"all of it is in {path}" if path is not None else "formats=text writes all of it to a file"
        return [*lines, *last, f"This is the beginning; {where}"]
