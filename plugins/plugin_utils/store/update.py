# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check a store before a collection, and bring its catalogue up to date and apply retention after one, for ftrace_store."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_missing
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import read_start_ticks
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape, escape_surrogates
from ansible_collections.crashcart.fleet.plugins.module_utils.units import format_bytes
from ansible_collections.crashcart.fleet.plugins.plugin_utils.controller_needs import find_obstacle, find_place
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store.catalogue import Catalogue, Found, open_catalogue
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store.database import FullError
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store.records import Record
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store.removal import remove_captures
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store.retention import (
    Limits,
    choose,
    find_clock_problem,
    parse_limits,
)

_MAX_SHOWN = 20  # problems among the lines
_MAX_FINDINGS = 64 << 20  # bytes of a findings.json
_MAX_RUN = 200  # characters
SESSION = "CRASHCART_SESSION"
"""The variable of the environment by which a schedule tells all processes of one run that their updates are one."""


@dataclass(frozen=True)
class Request:
    """A request to ftrace_store.

    STORE: the folder. RUN: the id of the run. CAPTURES: paths of those that the run has fetched, None where that is not known.
    FINDINGS: path of a findings.json. LIMITS: what is kept. CHECK_MODE: True if nothing may be written. SESSION: what all updates of one run
    have in common, also where an id of a run is used again.
    """

    store: str
    run: str | None = None
    captures: Sequence[str] | None = None
    findings: str | None = None
    limits: Limits = field(default_factory=Limits)
    check_mode: bool = False
    session: str | None = None


def make_request(arguments: Mapping[str, Any], base: str, *, check_mode: bool) -> Request:
    """Return the request in ARGUMENTS, the options of ftrace_store, whose relative paths are below BASE; raise FleetError for a wrong one."""
    run = arguments.get("run") or None
    if run is not None and (len(run) > _MAX_RUN or not run.isprintable()):
        raise FleetError(f"run: {run[:_MAX_RUN]!r} is no id of a run: give at most {_MAX_RUN} printable characters")
    captures, findings = arguments.get("captures"), arguments.get("findings")
    return Request(
        os.path.realpath(os.path.join(base, arguments["path"])),
        run,
        None if captures is None else [os.path.join(base, path) for path in captures],
        os.path.join(base, findings) if findings else None,
        parse_limits(arguments),
        check_mode,
        os.environ.get(SESSION) or _name_parent(),
    )


def _name_parent() -> str:
    """Return an id of the process of Ansible that this one is a worker of, such as no later process has."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return f"{file.read().strip()}/{os.getppid()}/{read_start_ticks(os.getppid())}"


def check(request: Request) -> dict[str, Any]:
    """Return the result of the phase check; raise FleetError where the store cannot be written, or has too little room."""
    store = request.store
    place = find_place(store)
    changed = place != store
    obstacle = find_obstacle(place)
    if obstacle:
        raise FleetError(
            f"the captures cannot go to {store}: {obstacle}; let this user write there, or choose another folder"
        )
    is_full = not request.check_mode and not _try_to_write(store, may_be_full=request.limits.are_set)
    free = find_free(place)
    asked = request.limits.free
    made = _make_empty(free)
    if (is_full or (asked is not None and free < asked)) and request.limits.are_set and os.path.isdir(store):
        # What retention may remove makes room. Without that, a store that is full once would never be served again.
        made = update(replace(request, run=None, captures=None, findings=None))
        changed, free = made["changed"], made["free"] + (made["freed"] if request.check_mode else 0)
        made = {**made, "kept": None, "bytes": None, "free": free}
    if is_full:
        _try_to_write(store, may_be_full=False)
    if asked is not None and free < asked:
        raise FleetError(
            f"{store}: {format_bytes(free)} are free, and {request.limits.explain('keep_free')} asks for {format_bytes(asked)}"
            f"{_tell_removed(made)}: remove captures, for example by: ansible localhost -m crashcart.fleet.ftrace_store -a"
            f" 'path={store} keep_age=7d', or choose a folder with more room",
            **{**made, "free": free},
        )
    if request.run is not None and not request.check_mode:
        warnings: list[str] = made.get("warnings", [])
        with open_catalogue(store, warnings) as catalogue:
            catalogue.begin_run(request.run)
        made = {**made, "warnings": warnings}
    return {**made, "changed": changed}


def _try_to_write(store: str, *, may_be_full: bool) -> bool:
    """Make the folder STORE where it is missing, write a file there and remove it. Return False if there is no room.

    Raises FleetError where nothing can be written, also for want of room unless it MAY_BE_FULL.
    """
    try:
        make_missing(store)
        with tempfile.NamedTemporaryFile(prefix=".crashcart-", dir=store) as file:
            file.write(b"\0")
            file.flush()
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if may_be_full and is_full:
            return False
        step = "make room there" if is_full else "let this user write there"
        raise FleetError(
            f"the captures cannot go to {store}: {error.strerror or error}; {step}, or choose another folder"
        ) from error
    return True


def _tell_removed(made: Mapping[str, Any]) -> str:
    """Return what the result MADE says was removed to make room; '' where nothing was."""
    count = len(made["removed"])
    return f", although {_say(count, 'capture was', 'captures were')} removed" if count else ""


def _make_empty(free: int) -> dict[str, Any]:
    lines = [f"{format_bytes(free)} are free"]
    lists: dict[str, Any] = {name: [] for name in ("added", "gone", "removed", "problems")}
    return {**lists, "kept": None, "bytes": None, "free": free, "freed": 0, "lines": lines}


def find_free(folder: str) -> int:
    """Return the bytes that this user can still write on the file system of FOLDER."""
    about = os.statvfs(folder)
    return about.f_bavail * about.f_frsize


def update(request: Request) -> dict[str, Any]:
    """Bring the catalogue up to date, note findings, apply retention, and return the result of the phase update."""
    if request.check_mode and not os.path.isdir(request.store):
        return {
            **_make_empty(0),
            "changed": False,
            "kept": 0,
            "bytes": 0,
            "free": None,
            "freed": 0,
            "lines": [f"{request.store} is not there yet"],
        }
    try:
        return _update(request, {})
    except FullError:
        before = {} if request.check_mode or not request.limits.are_set else _make_room(request)
        if not before:
            raise
        return _update(request, before)


def _make_room(request: Request) -> dict[str, str]:
    """Apply retention on a disk so full that the catalogue cannot be written, and return path → why of what was removed."""
    warnings: list[str] = []
    with open_catalogue(request.store, warnings, in_memory=True) as copy:
        found, _there, _clock, chosen = _sync(copy, request)
        removed, _unremoved = remove_captures(copy, chosen, found.now_ns)
    with open_catalogue(request.store, warnings) as catalogue:
        catalogue.note_removed(removed, found.now_ns)
    return removed


def _sync(catalogue: Catalogue, request: Request) -> tuple[Found, list[Record], str | None, dict[str, str]]:
    """Bring CATALOGUE up to date for REQUEST.

    Returns what was found, the captures that are there, why the clock is not to be trusted, and path → why of the captures to be removed.
    """
    times, latest = catalogue.list_times(request.session), catalogue.find_latest()
    found = catalogue.sync(request.run, _find_own(request))
    there = catalogue.list_there()
    clock = find_clock_problem(found.now_ns, times, latest)
    return found, there, clock, {} if clock else _choose(there, request.limits, found)


def _update(request: Request, before: Mapping[str, str]) -> dict[str, Any]:
    """Do the phase update, and return its result, with those that were removed BEFORE, path → why, to make room for the catalogue."""
    warnings: list[str] = []
    with open_catalogue(request.store, warnings, in_memory=request.check_mode) as catalogue:
        with catalogue.transaction():
            found, there, clock, chosen = _sync(catalogue, request)
            findings = _note_findings(catalogue, request.findings, found)
            catalogue.plan_removal(chosen)
            catalogue.note_update(found.now_ns, request.session, is_doubtful=clock is not None)
            catalogue.forget()
        removed = {**found.unfinished, **chosen}
        unremoved: dict[str, str] = {}
        if not request.check_mode:
            removed, unremoved = remove_captures(catalogue, removed, found.now_ns)
    found.problems.update(unremoved)
    kept = [record for record in there if record.path not in removed]
    removed = {**before, **removed}
    result = {
        "changed": bool(found.added or found.gone or removed or findings),
        "added": [escape_surrogates(path) for path in found.added],
        "gone": [escape_surrogates(path) for path in found.gone],
        "removed": [{"path": escape_surrogates(path), "why": why} for path, why in removed.items()],
        "kept": len(kept),
        "bytes": sum(record.bytes for record in kept),
        "free": find_free(request.store),
        "freed": sum(record.bytes for record in there) - sum(record.bytes for record in kept),
        "problems": list(found.problems.values()),
    }
    return {
        **result,
        "lines": make_lines(result, request.limits, clock if request.limits.are_set else None),
        "warnings": warnings,
    }


def _find_own(request: Request) -> set[str] | None:
    """Return the paths, relative to the store, of the captures that the run has fetched, or None where that is not known."""
    if request.captures is None:
        return None
    folders = {folder: os.path.realpath(folder) for folder in set(map(os.path.dirname, request.captures))}
    paths = (os.path.join(folders[os.path.dirname(path)], os.path.basename(path)) for path in request.captures)
    return {os.path.relpath(path, request.store) for path in paths}


def _choose(there: Sequence[Record], limits: Limits, found: Found) -> dict[str, str]:
    """Return what LIMITS remove of the captures THERE. One whose files cannot be read now is none of them."""
    return choose([record for record in there if record.path not in found.problems], limits, found.now_ns)


def _note_findings(catalogue: Catalogue, path: str | None, found: Found) -> int:
    """Note the findings in the file PATH, if it is given, and return how many are new; add a file that cannot be read to the problems FOUND."""
    if path is None:
        return 0
    try:
        with open(path, "rb") as file:
            return catalogue.note_findings(json.loads(file.read(_MAX_FINDINGS)))
    except (OSError, ValueError, RecursionError) as error:
        found.problems[path] = escape(f"{path}: its findings are not noted: {str(error)[:200]}; make the report again")
        return 0


def make_lines(result: Mapping[str, Any], limits: Limits, clock: str | None) -> list[str]:
    """Return what an operator reads of RESULT; CLOCK says why nothing was removed, if the controller's clock is not to be trusted."""
    removed = result["removed"]
    whys = ", ".join(dict.fromkeys(one["why"] for one in removed))
    parts = [_say(len(result["added"]), "capture came", "captures came")]
    parts.append(_say(len(removed), "was removed", "were removed") + (f" ({whys})" if whys else ""))
    if result["gone"]:
        parts.append(_say(len(result["gone"]), "is gone", "are gone") + " without us")
    kept = f"{_say(result['kept'], 'is kept', 'are kept')} ({format_bytes(result['bytes'])})"
    lines = [f"{', '.join([*parts, kept])}; {format_bytes(result['free'])} are free"]
    if clock:
        lines.append(clock)
    elif limits.total is not None and result["bytes"] > limits.total:
        lines.append(
            f"that is more than {limits.explain('keep_total')}: what is left is the newest of a container, came less than a day ago, or"
            " could not be removed"
        )
    if limits.free is not None and result["free"] < limits.free:
        lines.append(
            f"that is less than {limits.explain('keep_free')}: the next collection fails unless there is more room"
        )
    problems = result["problems"]
    lines += problems[:_MAX_SHOWN]
    if len(problems) > _MAX_SHOWN:
        lines.append(f"and {len(problems) - _MAX_SHOWN} more files that are no captures of ours, or cannot be read")
    return [escape(line) for line in lines]


def _say(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"
