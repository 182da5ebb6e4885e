# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Open the SQLite file of a store's catalogue: make it, refuse a newer one, set a damaged one aside."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_missing, open_private

NAME = "catalogue.sqlite"
VERSION = 1
_DAMAGED = ".damaged"  # behind the name of a file that is set aside
_BUSY_SECONDS = 300.0  # the first look at 100,000 captures takes some tens of seconds
_OPEN_SECONDS, _POLL_SECONDS = 20.0, 0.02
# A name that is no UTF-8 is a blob, which is why the columns of paths have no type: SQLite's texts cannot hold such names.
_TABLES = """
CREATE TABLE runs (id TEXT PRIMARY KEY, began_ns INTEGER, ended_ns INTEGER);
CREATE TABLE captures (
    path PRIMARY KEY, host TEXT NOT NULL, container TEXT NOT NULL, container_id TEXT, runtime TEXT, image TEXT,
    begin_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL, complete INTEGER, lost INTEGER, entries INTEGER,
    bytes INTEGER NOT NULL, sha256 TEXT, run TEXT, added_ns INTEGER NOT NULL, removed_ns INTEGER, removed_why TEXT
);
CREATE INDEX captures_by_time ON captures (begin_ns);
CREATE TABLE findings (
    capture NOT NULL REFERENCES captures (path), rule TEXT NOT NULL, severity INTEGER NOT NULL, statement TEXT NOT NULL,
    PRIMARY KEY (capture, rule, statement)
);
CREATE TABLE updates (number INTEGER PRIMARY KEY, at_ns INTEGER NOT NULL, session TEXT UNIQUE);
"""
_COLUMNS = {
    "runs": "id, began_ns, ended_ns",
    "captures": "path, host, container, container_id, runtime, image, begin_ns, end_ns, complete, lost, entries, bytes, sha256, run,"
    " added_ns, removed_ns, removed_why",
    "findings": "capture, rule, severity, statement",
    "updates": "number, at_ns, session",
}
# Of damage: of the file's head, of its pages, and of what should be in it.
_DAMAGE = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR)


class NewerError(FleetError):
    """The error for a catalogue that a newer version of the collection has made."""


class FullError(FleetError):
    """The error for a catalogue that cannot be written because the disk is full."""


def pack_path(path: str) -> str | bytes:
    """Return PATH as the catalogue holds it: a text, or bytes where it is no UTF-8."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return os.fsencode(path)
    return path


def unpack_path(value: str | bytes) -> str:
    """Return the path that the catalogue holds as VALUE."""
    return value if isinstance(value, str) else os.fsdecode(value)


@contextmanager
def open_database(store: str, warnings: list[str]) -> Iterator[sqlite3.Connection]:
    """Yield a connection to the catalogue in the folder STORE, which is made where it is missing; add to WARNINGS what was set aside.

    Raises NewerError for a catalogue of a newer version, FullError where the disk is full, and FleetError where it can be neither read nor
    written.
    """
    path = os.path.join(store, NAME)
    with explain_errors(path):
        make_missing(store)
        with _alone(store):
            connection = _open_sound(path, warnings)
        with closing(connection):
            yield connection


@contextmanager
def open_copy(store: str, warnings: list[str]) -> Iterator[sqlite3.Connection]:
    """Yield a connection to a copy in memory of the catalogue in the folder STORE, whose files stay as they are.

    The copy is empty where there is no catalogue, or a damaged one, which WARNINGS then names. Raises NewerError as open_database.
    """
    path = os.path.join(store, NAME)
    with explain_errors(path), ExitStack() as stack:
        memory = stack.enter_context(closing(_connect(":memory:")))
        if os.path.lexists(path):
            try:
                with closing(_connect(f"file:{_quote(path)}?mode=ro")) as source:
                    if _has_tables(source, path):
                        source.backup(memory)
            except sqlite3.Error as error:
                warnings.append(f"{path} cannot be read ({error}): the captures are read anew")
                memory = stack.enter_context(closing(_connect(":memory:")))
        if not _has_tables(memory, path):
            _make_tables(memory)
        yield memory


def list_removed(store: str, folder: str) -> list[str]:
    """Return the paths, relative to STORE, of the captures below its FOLDER that were removed, as far as its catalogue can be read."""
    path = os.path.join(store, NAME)
    if not os.path.lexists(path):
        return []
    query = "SELECT path FROM captures WHERE path > ? AND path < ? AND removed_ns IS NOT NULL"
    # After a killed process only who may write the file can read it: SQLite first takes back what that process had begun.
    for mode in ("rw", "ro"):
        with suppress(sqlite3.Error), closing(_connect(f"file:{_quote(path)}?mode={mode}")) as connection:
            # The character after the slash ends the range of paths that begin with it.
            return [unpack_path(found) for (found,) in connection.execute(query, [f"{folder}/", f"{folder}0"])]
    return []


@contextmanager
def explain_errors(path: str) -> Iterator[None]:
    """Turn errors of SQLite about the catalogue at PATH into FleetError with the next step."""
    try:
        yield
    except sqlite3.Error as error:
        step = (
            "wait for the other process that works on this store, or end it"
            if _code(error) == sqlite3.SQLITE_BUSY
            else "see that this user can write there and that there is room, or remove the file: it is made again of the captures"
        )
        kind = FullError if _code(error) == sqlite3.SQLITE_FULL else FleetError
        raise kind(f"{path}: {error}; {step}") from error


def _open_sound(path: str, warnings: list[str]) -> sqlite3.Connection:
    """Return a connection to the catalogue at PATH. A damaged file is set aside first, named in WARNINGS, and made anew."""
    for attempt in range(2):
        os.close(open_private(path, os.O_RDWR | os.O_CREAT))  # with our mode, and not behind a link
        with ExitStack() as stack:
            connection = stack.enter_context(closing(_connect(f"file:{_quote(path)}?mode=rw")))
            try:
                if not _has_tables(connection, path):
                    _make_tables(connection)
                stack.pop_all()
                return connection
            except sqlite3.DatabaseError as error:
                if attempt or _code(error) not in _DAMAGE:
                    raise
                reason = str(error)
        for ending in ("-journal", "-wal", "-shm", ""):  # a journal must not meet the new file
            with suppress(FileNotFoundError):
                os.replace(path + ending, path + _DAMAGED + ending)
        warnings.append(
            f"{path} was damaged ({reason}): it is {path + _DAMAGED} now, and was made anew of the captures; what it knew of runs,"
            " findings and earlier removals is lost, and for a day nothing is removed"
        )
    raise AssertionError  # the second attempt returns or raises


def _connect(name: str) -> sqlite3.Connection:
    return sqlite3.connect(name, timeout=_BUSY_SECONDS, isolation_level=None, uri=name != ":memory:")


def _has_tables(connection: sqlite3.Connection, path: str) -> bool:
    """Return True if CONNECTION, to the file at PATH, has our tables, False if it has none; raise where they are newer, or damaged."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise NewerError(
            f"{path} is a catalogue of version {version}, and this collection knows {VERSION}: update the collection here, or move the"
            " file away, and it is made again of the captures"
        )
    (objects,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if version == 0 and not objects:
        return False
    if version != VERSION:
        raise _damage("it is no catalogue")
    for table, columns in _COLUMNS.items():
        connection.execute(f"SELECT {columns} FROM {table} LIMIT 0")
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise _damage(str(found))
    return True


def _damage(text: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(text)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _code(error: sqlite3.Error) -> int:
    """Return the primary result code of ERROR."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _make_tables(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        if connection.execute("PRAGMA user_version").fetchone() == (0,):  # another process may have made them by now
            for statement in filter(str.strip, _TABLES.split(";")):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {VERSION}")


def _quote(path: str) -> str:
    """Return PATH as a part of SQLite's URI, in which these characters have a meaning."""
    absolute = os.path.abspath(path)
    for character in "%?#":
        absolute = absolute.replace(character, f"%{ord(character):02x}")
    return absolute


@contextmanager
def _alone(store: str) -> Iterator[None]:
    """Let one process at a time open the catalogue of STORE, so that none sets aside what another has just made.

    A lock that stays is somebody else's, who works on the folder: do without it then.
    """
    folder = os.open(store, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _OPEN_SECONDS
        while time.monotonic() < deadline:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_POLL_SECONDS)
            except OSError:  # some network file systems lock no folders
                break
        yield
    finally:
        os.close(folder)
