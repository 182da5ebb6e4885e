# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a short table of captures for people: a row for each container, what is wrong first, then where the files are. Pure."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.columns import align
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape

MAX_ROWS = 20
_HEADINGS = ("HOST", "CONTAINER", "EVENTS", "LOST", "SECONDS")
_NUMBERS = (2, 3, 4)  # columns
_MAX_NOTE = 100


@dataclass
class _Row:
    """The captures of one container of one host.

    EVENTS, LOST: sums over them. NOTES: what a reader has to know of them; empty where they are complete.
    BEGIN_NS, END_NS: when the first one begins and the last one ends, in nanoseconds of real time; 0 where that is not known.
    """

    host: str
    container: str
    events: int = 0
    lost: int = 0
    notes: list[str] = field(default_factory=list)
    begin_ns: int = 0
    end_ns: int = 0

    def add(self, path: str | None, manifest: Mapping[str, Any]) -> None:
        """Add the capture at PATH (None for one without events) with MANIFEST."""
        self.events += _number(manifest.get("entries"))
        self.lost += _number(manifest.get("lost"))
        if path is None:
            self.notes.append("nothing was recorded")
        if not manifest.get("complete"):
            reasons = manifest.get("reasons")
            self.notes.append("; ".join(map(str, reasons)) if isinstance(reasons, list) else "it may not be complete")
        if manifest.get("stopped"):
            self.notes.append(f"stopped: {manifest['stopped']}")
        begin, end = (_read_time(manifest, name) for name in ("start", "end"))
        self.begin_ns = min(filter(None, (self.begin_ns, begin)), default=0)
        self.end_ns = max(self.end_ns, end)

    def as_cells(self) -> tuple[str, ...]:
        """Return the row's cells, the notes last."""
        seconds = f"{(self.end_ns - self.begin_ns) / 1e9:.1f}" if 0 < self.begin_ns <= self.end_ns else "-"
        note = "; ".join(dict.fromkeys(self.notes)) or "complete"
        note = note if len(note) <= _MAX_NOTE else note[: _MAX_NOTE - 1] + "…"
        return self.host, self.container, str(self.events), str(self.lost), seconds, note


def make_lines(captures: Sequence[Mapping[str, Any]], report: str | None = None) -> list[str]:
    """Return the lines about CAPTURES, as ftrace_fetch and ftrace_capture of all hosts return them; REPORT is the report's folder.

    The table has MAX_ROWS rows at most, those with notes first. The last lines say where the files are.
    """
    if not captures:
        return ["Nothing came from any host: no trace there had anything to fetch."]
    rows: dict[tuple[str, str], _Row] = {}
    for capture in captures:
        manifest = capture["manifest"]
        container = manifest.get("container")
        name = str(container.get("name")) if isinstance(container, Mapping) else "?"
        key = str(manifest.get("inventory_hostname", "?")), name
        rows.setdefault(key, _Row(*key)).add(capture["path"], manifest)
    ordered = sorted(rows.values(), key=lambda row: (not row.notes, row.host, row.container))
    shown, others = ordered[:MAX_ROWS], ordered[MAX_ROWS:]
    table = [(*_HEADINGS, ""), *(row.as_cells() for row in shown)]
    lines = align([tuple(map(escape, row)) for row in table], _NUMBERS)
    if others:
        bad = sum(bool(row.notes) for row in others)
        count = f"{len(others)} more container{'s' if len(others) > 1 else ''}"
        lines.append(f"  and {count}, {'all complete' if not bad else f'{bad} of them not complete or stopped'}")
    return [*lines, *_tell_files([capture["path"] for capture in captures if capture["path"]], report)]


def _tell_files(paths: Sequence[str], report: str | None) -> list[str]:
    """Return the lines that say where the captures PATHS and the folder REPORT are."""
    lines = []
    if len(paths) == 1:
        lines.append(f"capture: {paths[0]}")
    elif paths:
        folders = dict.fromkeys(os.path.dirname(os.path.dirname(os.path.dirname(path))) or "." for path in paths)
        lines.append(f"captures: {len(paths)} in {', '.join(folders)}, as HOST/CONTAINER/TIME.dat")
    if report and paths:
        lines.append(f"report: {report}")
    return list(map(escape, lines))


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _read_time(manifest: Mapping[str, Any], name: str) -> int:
    time = manifest.get("time")
    found = time.get(name) if isinstance(time, Mapping) else None
    return _number(found.get("real_time_ns")) if isinstance(found, Mapping) else 0
