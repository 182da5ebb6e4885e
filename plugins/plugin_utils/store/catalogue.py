# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The catalogue of a store: which captures are in its folder, since when, of which run, and which were removed and why.

The files are what counts. Each sync compares the catalogue with them in one transaction, so a process may be killed at any moment.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.capture_files import (
    CaptureError,
    explain_error,
    find_manifest,
    list_captures,
    read_manifest,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape, escape_surrogates
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store.database import (
    open_copy,
    open_database,
    pack_path,
    unpack_path,
)
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store.records import DAY_NS, Record, make_record

GONE = "gone"  # why a capture is removed whose file somebody else has removed
_COLUMNS = tuple(one.name for one in fields(Record))
_THERE = "removed_ns IS NULL AND removed_why IS NULL"
_INSERT = f"INSERT OR REPLACE INTO captures ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # forgets a removal
_UPDATES = 10  # that are kept: the rule about clocks that jump takes two
_RUNS = 1000  # that are kept although no capture is of them
MAX_REMOVED = 100_000  # captures that were removed and are remembered
_SHORT_ID = 12  # characters of a container's id, as engines show it
_MAX_TEXT = 1000


@dataclass
class Found:
    """Findings of a sync: ADDED and GONE, paths of captures; PROBLEMS, path → a sentence, of files that are no captures or cannot be read.

    UNFINISHED: path → why, of captures whose removal a killed process has begun: the trace is gone, and its other files may be left.
    NOW_NS: when, by the controller's clock.
    """

    now_ns: int
    added: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    unfinished: dict[str, str] = field(default_factory=dict)


class Catalogue:
    """The catalogue of the captures in folder STORE behind CONNECTION. CLOCK gives nanoseconds since the epoch."""

    def __init__(self, store: str, connection: sqlite3.Connection, clock: Callable[[], int] = time.time_ns) -> None:
        self.store, self._connection, self._clock = store, connection, clock

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make one transaction of what is done inside; inside another one this is a part of that. Other processes wait, or are waited for."""
        if self._connection.in_transaction:
            yield
            return
        self._connection.execute("BEGIN IMMEDIATE")
        with self._connection:  # commits, or rolls back
            yield

    def sync(self, run: str | None = None, own: Collection[str] | None = None) -> Found:
        """Bring the catalogue up to date with the files, and return what has changed.

        New captures are noted with RUN; where OWN is given, only those whose paths are in it. A capture that is known by its path and size
        is not read again. What cannot be read is named, and stays as it was.
        """
        with self.transaction():
            found = Found(self._clock())  # read once no other process can note a later time
            rows = self._connection.execute("SELECT path, bytes, removed_why FROM captures WHERE removed_ns IS NULL")
            known = {unpack_path(path): (size, why) for path, size, why in rows}
            paths, unread = list_captures(self.store)
            found.problems.update({self._shorten(error.path): _tell(error) for error in unread})
            seen, begun = set(), []
            for path in paths:
                short = self._shorten(path)
                try:
                    size = measure(path)
                    if size is None:
                        continue
                    seen.add(short)
                    old_size, why = known.get(short, (None, None))
                    if why is not None:
                        begun.append(short)
                    if size != old_size:
                        self._read(short, size, found, run if own is None or short in own else None)
                except CaptureError as error:
                    seen.add(short)
                    found.problems[short] = _tell(error)
            self._set("removed_why = NULL", begun)
            absent = {path: why for path, (_size, why) in known.items() if path not in seen}
            self._note_absent(absent, [self._shorten(error.path) for error in unread], found)
            self._note_run(run, own, found.now_ns)
        return found

    def _read(self, short: str, size: int, found: Found, run: str | None) -> None:
        """Note the capture at SHORT, which has SIZE bytes and is new, or was changed. Raises CaptureError when it cannot be read."""
        path = os.path.join(self.store, short)
        manifest = read_manifest(find_manifest(path))
        record = make_record(short, manifest, size, found.now_ns)
        if record is None:
            what = "its manifest names no host or no container" if manifest else "it has no manifest"
            raise CaptureError(path, what, "it is not in the catalogue, and never removed by it")
        row = self._connection.execute(
            f"SELECT run, added_ns FROM captures WHERE path = ? AND {_THERE}", [pack_path(short)]
        )
        old = row.fetchone()
        if old is None:
            found.added.append(short)
        self._connection.execute(_INSERT, _as_row(record.came(*(old or (run, found.now_ns)))))

    def _note_absent(self, absent: Mapping[str, str | None], unread: Sequence[str], found: Found) -> None:
        """Note that the captures ABSENT, path → why their removal was begun, have no file, unless they are below a folder of UNREAD."""
        for path, why in absent.items():
            if any(path.startswith(folder + os.sep) or folder == os.curdir for folder in unread):
                continue
            if why is None:
                found.gone.append(path)
            else:
                found.unfinished[path] = why
        self.note_removed(dict.fromkeys(found.gone, GONE), found.now_ns)

    def _note_run(self, run: str | None, own: Collection[str] | None, now_ns: int) -> None:
        if run is None:
            return
        self.begin_run(run, now_ns)
        self._connection.execute("UPDATE runs SET ended_ns = ? WHERE id = ?", [now_ns, run])
        # Somebody's report may have noted captures of this run before its end.
        self._connection.executemany(
            "UPDATE captures SET run = ? WHERE path = ? AND run IS NULL", ([run, pack_path(path)] for path in own or ())
        )

    def begin_run(self, run: str, now_ns: int | None = None) -> None:
        """Note that RUN begins, at NOW_NS or now, unless it has begun."""
        with self.transaction():
            began_ns = self._clock() if now_ns is None else now_ns
            self._connection.execute("INSERT OR IGNORE INTO runs (id, began_ns) VALUES (?, ?)", [run, began_ns])

    def list_times(self, session: str | None = None) -> list[int]:
        """Return the times of the last updates before SESSION has made its first one, in the order in which they were noted.

        The updates of one session, which takes its hosts in turns, are one, at the time of the last of them.
        """
        times = self._connection.execute(
            "SELECT at_ns FROM updates WHERE number < coalesce((SELECT number FROM updates WHERE session = ?), number + 1) ORDER BY number",
            [session],
        )
        return [at for (at,) in times]

    def find_latest(self) -> int:
        """Return when the last capture came, 0 where none has."""
        (latest,) = self._connection.execute("SELECT max(added_ns) FROM captures").fetchone()
        return int(latest or 0)

    def note_update(self, now_ns: int, session: str | None = None, *, is_doubtful: bool = False) -> None:
        """Note an update of SESSION at NOW_NS. Where that is doubtful, what came within the day before the update before counts as new.

        So does what came a day or more later than now, for the clock was ahead then. After a shorter step back it stays as it is, and is
        right once the clock is.
        """
        with self.transaction():
            before = self.list_times(session)[-1:]
            self._connection.execute("UPDATE captures SET added_ns = ? WHERE added_ns > ?", [now_ns, now_ns + DAY_NS])
            if before and is_doubtful:
                self._connection.execute(
                    "UPDATE captures SET added_ns = ? WHERE added_ns BETWEEN ? AND ?",
                    [now_ns, before[0] - DAY_NS, now_ns],
                )
            self._connection.execute(
                "INSERT INTO updates (at_ns, session) VALUES (?, ?) ON CONFLICT (session) DO UPDATE SET at_ns = excluded.at_ns",
                [now_ns, session],
            )
            self._connection.execute(
                "DELETE FROM updates WHERE number <= (SELECT max(number) FROM updates) - ?", [_UPDATES]
            )

    def forget(self) -> None:
        """Forget the captures that were removed first, with their findings, where there are more than MAX_REMOVED, and runs without captures.

        So the catalogue does not grow for ever. The last runs stay.
        """
        with self.transaction():
            removed = "SELECT path FROM captures WHERE removed_ns IS NOT NULL ORDER BY removed_ns DESC, path"
            done = self._connection.execute(
                f"DELETE FROM captures WHERE path IN ({removed} LIMIT -1 OFFSET ?)", [MAX_REMOVED]
            )
            if done.rowcount:
                self._connection.execute("DELETE FROM findings WHERE capture NOT IN (SELECT path FROM captures)")
            last = "SELECT id FROM runs ORDER BY rowid DESC LIMIT ?"
            self._connection.execute(
                f"DELETE FROM runs WHERE id NOT IN ({last}) AND id NOT IN (SELECT run FROM captures WHERE run IS NOT NULL)",
                [_RUNS],
            )

    def plan_removal(self, reasons: Mapping[str, str]) -> None:
        """Note that the captures of REASONS, path → why, will be removed, before any file is."""
        with self.transaction():
            for path, why in reasons.items():
                self._connection.execute("UPDATE captures SET removed_why = ? WHERE path = ?", [why, pack_path(path)])

    def cancel_removal(self, paths: Iterable[str]) -> None:
        """Note that the captures at PATHS are still there."""
        with self.transaction():
            self._set("removed_why = NULL", paths)

    def note_removed(self, reasons: Mapping[str, str], now_ns: int) -> None:
        """Note that the captures of REASONS, path → why, were removed at NOW_NS."""
        with self.transaction():
            self._connection.executemany(
                "UPDATE captures SET removed_ns = ?, removed_why = ? WHERE path = ?",
                ([now_ns, why, pack_path(path)] for path, why in reasons.items()),
            )

    def _set(self, assignment: str, paths: Iterable[str]) -> None:
        self._connection.executemany(
            f"UPDATE captures SET {assignment} WHERE path = ?", ([pack_path(path)] for path in paths)
        )

    def note_findings(self, document: Any) -> int:
        """Note the findings of DOCUMENT, a findings.json about captures of this store, with the captures of their evidence.

        Returns how many were not known. What has another form is passed over.
        """
        with self.transaction():
            rows = self._connection.execute(f"SELECT path FROM captures WHERE {_THERE}")
            paths = {escape_surrogates(unpack_path(path)): path for (path,) in rows}
            count = 0
            for capture, *finding in gen_findings(document):
                if capture in paths:
                    done = self._connection.execute(
                        "INSERT OR IGNORE INTO findings (capture, rule, severity, statement) VALUES (?, ?, ?, ?)",
                        [paths[capture], *finding],
                    )
                    count += done.rowcount
        return count

    def list_there(self) -> list[Record]:
        """Return the captures that are there."""
        return self._list("")

    def select(
        self,
        since_ns: int | None = None,
        until_ns: int | None = None,
        hosts: Sequence[str] = (),
        containers: Sequence[str] = (),
        runs: Sequence[str] = (),
    ) -> list[Record]:
        """Return the captures that are there and overlap the time from SINCE_NS to UNTIL_NS, in the order of time.

        HOSTS and CONTAINERS are globs, RUNS are ids of runs; without any of a kind all match. A container's id matches, too.
        """
        where, values = "", []
        for condition, value in (("end_ns >= ?", since_ns), ("begin_ns <= ?", until_ns)):
            if value is not None:
                where += f" AND {condition}"
                values.append(max(-(1 << 63), min(value, (1 << 63) - 1)))
        return [
            record
            for record in self._list(where, values)
            if (not runs or record.run in runs)
            and (not hosts or any(fnmatchcase(record.host, glob) for glob in hosts))
            and (not containers or any(_is_container(record, glob) for glob in containers))
        ]

    def _list(self, where: str, values: Sequence[Any] = ()) -> list[Record]:
        rows = self._connection.execute(
            f"SELECT {', '.join(_COLUMNS)} FROM captures WHERE {_THERE}{where} ORDER BY begin_ns, path", values
        )
        return [_as_record(row) for row in rows]

    def _shorten(self, path: str) -> str:
        start = self.store.rstrip(os.sep) + os.sep
        return path[len(start) :] if path.startswith(start) else os.path.relpath(path, self.store)


@contextmanager
def open_catalogue(
    store: str, warnings: list[str], *, in_memory: bool = False, clock: Callable[[], int] = time.time_ns
) -> Iterator[Catalogue]:
    """Yield the catalogue of the folder STORE, made where it is missing; IN_MEMORY yields a copy, and nothing is written.

    CLOCK gives nanoseconds since the epoch. A damaged catalogue is set aside, and WARNINGS names it. Raises FleetError for one that is newer
    than this collection, or that can be neither read nor written.
    """
    with (open_copy if in_memory else open_database)(store, warnings) as connection:
        yield Catalogue(store, connection, clock)


def list_files(capture: str) -> list[str]:
    """Return the paths that the files of CAPTURE have where they are there: the trace first, its manifest, its text."""
    base = os.path.splitext(capture)[0]
    return [capture, find_manifest(capture), base + ".txt"]


def measure(capture: str) -> int | None:
    """Return the bytes of all files of the trace at CAPTURE, or None if it is not there; raise CaptureError if it is no regular file."""
    size = None
    for path in list_files(capture):
        try:
            about = os.lstat(path)
        except FileNotFoundError:
            if size is None:
                return None
            continue
        except OSError as error:
            raise explain_error(path, error) from error
        if not stat.S_ISREG(about.st_mode):
            if size is None:
                raise CaptureError(path, "it is no regular file", "it is not in the catalogue, and never removed by it")
            continue
        size = (size or 0) + about.st_size
    return size


def gen_findings(document: Any) -> Iterator[tuple[str, str, int, str]]:
    """Yield a capture, as the report has named it, a rule, a severity and a statement for each evidence in DOCUMENT, a findings.json."""
    findings = document.get("findings") if isinstance(document, dict) else None
    for finding in findings if isinstance(findings, list) else ():
        if not isinstance(finding, dict):
            continue
        evidence = finding.get("evidence")
        rule, severity, statement = finding.get("rule"), finding.get("severity"), finding.get("statement")
        if not isinstance(rule, str) or not isinstance(statement, str) or not isinstance(evidence, list):
            continue
        if not isinstance(severity, int) or not 0 <= severity <= 100:
            continue
        files = (one.get("file") for one in evidence if isinstance(one, dict))
        for file in dict.fromkeys(file for file in files if isinstance(file, str)):
            yield file, _shorten_text(rule), int(severity), _shorten_text(statement)


def _shorten_text(text: str) -> str:
    return escape_surrogates(text[:_MAX_TEXT])


def _tell(error: CaptureError) -> str:
    return escape(str(error))


def _is_container(record: Record, glob: str) -> bool:
    is_id = len(glob) >= _SHORT_ID and (record.container_id or "").startswith(glob)
    return is_id or fnmatchcase(record.container, glob)


def _as_row(record: Record) -> list[Any]:
    values = {name: getattr(record, name) for name in _COLUMNS}
    return [*{**values, "path": pack_path(record.path)}.values()]


def _as_record(row: Sequence[Any]) -> Record:
    record = Record(*row)
    complete = None if record.complete is None else bool(record.complete)
    return replace(record, path=unpack_path(row[0]), complete=complete)
