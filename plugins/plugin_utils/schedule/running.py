# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a schedule once: alone, within its time, with a record of what came of each host."""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.asking import find_account
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape, escape_lines
from ansible_collections.crashcart.fleet.plugins.plugin_utils.controller_needs import find_obstacle
from ansible_collections.crashcart.fleet.plugins.plugin_utils.schedule import outcome
from ansible_collections.crashcart.fleet.plugins.plugin_utils.schedule.due import list_due
from ansible_collections.crashcart.fleet.plugins.plugin_utils.schedule.outcome import Run
from ansible_collections.crashcart.fleet.plugins.plugin_utils.schedule.plan import FILE, Plan, read_plan
from ansible_collections.crashcart.fleet.plugins.plugin_utils.schedule.playing import ENDING_S, Player
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store import update
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store.database import NAME as CATALOGUE
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store.retention import Limits, parse_limits

LOCK = ".crashcart-run"  # in the store and in the schedule's own folder; the store's catalogue locks the folder itself
_LATE_S = 120.0  # a run that begins later than this after its time, and its offset, was missed and is caught up
_MOST_MISSED = 1000  # times in a record
_MOST_BACK_S = 31 * 86400.0  # missed runs are looked for so far back: a clock that was wrong costs no more than that
_LOG = "last-run.log"
_AGAIN_S = 30.0  # between two attempts to catch up when no host can be reached, as after a boot
_CATCH_UP_S = 600.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class BusyError(FleetError):
    """Another run goes on, so none begins."""


class Ended(BaseException):
    """Somebody has ended the run by a signal. It is no error that a part of a run might do without."""


def main(arguments: list[str]) -> int:
    """Run the schedule whose plan's path is the last of ARGUMENTS, and return the exit status.

    --timer waits the schedule's offset first. --catch-up does nothing unless a run was missed. --check only looks at the plan. --end ends a
    run that goes on.
    """
    options = set(arguments[:-1])
    if not arguments or arguments[-1].startswith("--") or options - {"--timer", "--catch-up", "--check", "--end"}:
        print("usage: run.py [--timer | --catch-up | --check | --end] PLAN", file=sys.stderr)
        return outcome.STATUSES[outcome.FAILURE]
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _end)
    try:
        plan = read_plan(arguments[-1])
        if "--check" in options:
            return check(plan)
        if "--end" in options:
            return end(plan)
        if "--timer" in options:
            time.sleep(find_offset(plan))
        return run(plan, only_missed="--catch-up" in options)
    except FleetError as error:
        print(escape(str(error)), file=sys.stderr)
        name = outcome.SKIPPED if isinstance(error, BusyError) else outcome.FAILURE
        return outcome.STATUSES[name]
    except (OSError, Ended) as error:
        print(_tell(error), file=sys.stderr)
        return outcome.STATUSES[outcome.FAILURE]


def _end(number: int, _frame: Any) -> NoReturn:
    raise Ended(f"the run was ended by {signal.Signals(number).name}")


def _tell(error: BaseException) -> str:
    """Return the message of ERROR; that of a system call names the file of this machine."""
    if isinstance(error, OSError) and error.strerror:
        return escape(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    return escape(str(error))


def check(plan: Plan) -> int:
    """Return the exit status for a PLAN that this user can run. Raises FleetError, with the next step, where a run would fail."""
    now = time.time()
    if not plan.time_limit_s > plan.offset_s >= 0:
        raise FleetError("crashcart_offset is longer than crashcart_time_limit: give a shorter one")
    if plan.forks < 1:
        raise FleetError("crashcart_forks: give a number of hosts, 1 or more")
    list_due(plan, now - 1, now)
    if not os.access(plan.command, os.X_OK):
        raise FleetError(f"{plan.command} cannot be run: install ansible-core beside this Python ({sys.executable})")
    _read_limits(plan)
    for name in ("crashcart_seconds", "crashcart_host_timeout"):
        try:
            taken = float(plan.given.get(name) or 0)
        except (TypeError, ValueError):
            continue  # the playbook has told it
        if taken >= plan.time_limit_s:
            raise FleetError(
                f"{name}: a run ends after {plan.time_limit} (crashcart_time_limit), before that: give less, or a longer limit"
            )
    # A list of hosts has a comma.
    sources = [source for source in plan.inventory if "," not in source]
    for name, path in [("inventory", one) for one in sources] + [("dest", plan.store), ("textfile", plan.textfile)]:
        if path and not os.path.isabs(path):
            raise FleetError(
                f"crashcart_{name}: {path} is no path from /: give one, because runs begin in no folder of yours"
            )
    configuration = plan.environment.get("ANSIBLE_CONFIG")
    for what, source in [*(("crashcart_inventory", one) for one in sources), ("ANSIBLE_CONFIG", configuration)]:
        if source and not os.access(source, os.R_OK):
            raise FleetError(f"{what}: the user of the runs cannot read {source}: give a source that is there")
    _check_folders(plan)
    return outcome.STATUSES[outcome.SUCCESS]


def _read_limits(plan: Plan) -> Limits:
    """Return how much of the store PLAN keeps, as far as its own variables say it. Raises FleetError for a limit that is none."""
    return parse_limits({name[len("crashcart_") :]: value for name, value in plan.given.items()})


def _check_folders(plan: Plan) -> None:
    """Raise FleetError where the user of the runs cannot write in the folders that PLAN names, or to our own files in the store."""
    for name, folder in [*([("textfile", plan.textfile)] if plan.textfile else []), ("dest", plan.store)]:
        try:
            os.stat(folder)
        except FileNotFoundError:
            if name == "dest":
                continue  # the role makes it
        except OSError as error:
            raise FleetError(f"crashcart_{name}: the user of the runs cannot reach {_tell(error)}") from error
        obstacle = find_obstacle(folder)
        if obstacle:
            raise FleetError(f"crashcart_{name}: {obstacle}: give a folder in which the user of the runs can write")
    for path in (os.path.join(plan.store, name) for name in (LOCK, CATALOGUE)):
        if os.path.lexists(path) and not os.access(path, os.R_OK | os.W_OK):
            raise FleetError(
                f"crashcart_dest: the user of the runs cannot write {path}, which another user's run has made: chown it, or give another folder"
            )


def end(plan: Plan) -> int:
    """End a run of PLAN that goes on, and return the exit status when it has ended, or when there is none.

    Raises BusyError where what holds the schedule's lock is no run, or does not end.
    """
    busy = f"another process holds {os.path.join(plan.state, LOCK)}, and does not end: end it"
    try:
        with _hold(plan.state, busy, 0):
            return outcome.STATUSES[outcome.SUCCESS]
    except BusyError:
        pid = _find_run(plan)
        if pid is None:
            raise
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    with _hold(plan.state, busy, 2 * ENDING_S):
        return outcome.STATUSES[outcome.SUCCESS]


def _find_run(plan: Plan) -> int | None:
    """Return the pid of the run of PLAN that has told it in the schedule's lock; None if there is none."""
    try:
        pid = int(Path(plan.state, LOCK).read_text(encoding="ascii"))
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    # The number may be another process's by now.
    return pid if os.fsencode(os.path.join(plan.state, FILE)) in words else None


def find_offset(plan: Plan) -> float:
    """Return the seconds that PLAN begins after its time on this machine: always the same here, and others on other machines."""
    try:
        machine = Path("/etc/machine-id").read_bytes()
    except OSError:
        machine = os.uname().nodename.encode()
    digest = hashlib.sha256(machine + plan.name.encode()).digest()
    return plan.offset_s * int.from_bytes(digest[:8], "big") / (1 << 64)


def run(plan: Plan, *, only_missed: bool = False) -> int:
    """Run PLAN and return the exit status; ONLY_MISSED does nothing where no run was missed.

    Raises BusyError if another run of this schedule, or for all its time one of the same store, goes on, and FleetError if the schedule is
    another user's.
    """
    _check_owner(plan)
    with _hold(plan.state, f"another run of the schedule {plan.name} goes on", 0) as own:
        last = outcome.read_record(plan.state)
        began = time.time()
        since = _read_number(last, "began" if last.get("due_since") is None else "due_since")
        missed = _list_missed(plan, since, began, only_missed=only_missed)
        if only_missed and not missed:
            return outcome.STATUSES[outcome.SUCCESS]
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(began))
        found = Run(plan.name, f"{plan.name}-{stamp}", began, log=str(Path(plan.state, _LOG)))
        found.missed, found.missed_count = missed[-_MOST_MISSED:], len(missed)
        found.missed_total = int(_read_number(last, "missed_total")) + len(missed)
        found.last_success = _read_number(last, "last_success")
        deadline = time.monotonic() + plan.time_limit_s
        try:
            Path(found.log).unlink(missing_ok=True)  # that of another run, where this one does not come to play
            os.makedirs(plan.store, exist_ok=True)
            busy = f"another run on {plan.store} has gone on for {plan.time_limit_s:g} s"
            with _hold(plan.store, busy, plan.time_limit_s) as store:
                _make_room(plan, found)
                player = Player(plan, found, deadline, (own, store))
                problem = player.play()
                until = time.monotonic() + _CATCH_UP_S
                while only_missed and _may_reach_them_soon(found, until):
                    before, found.hosts = found.hosts, {}
                    problem = player.play()
                    found.hosts = found.hosts or before  # the time was over before it knew one
            found.end(*outcome.judge(found.hosts, problem), time.time())
        except BusyError as error:
            found.end(outcome.SKIPPED, str(error), time.time())
        except (FleetError, OSError, Ended) as error:
            found.end(outcome.FAILURE, _tell(error), time.time())
            if isinstance(error, Ended):  # the next boot makes up for it
                found.due_since = since
        finally:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            if not found.ended:
                found.end(outcome.FAILURE, "an error that nobody has foreseen has ended the run", time.time())
            _publish(plan, found)
    return found.status


def _make_room(plan: Plan, found: Run) -> None:
    """Apply retention where the store of PLAN has too little room: a run, too, writes files, and on that disk there may be none for these."""
    with suppress(FleetError):  # the playbook says it, too
        made = update.check(update.Request(plan.store, limits=_read_limits(plan), session=found.run))
        _print(sys.stdout, [*made.get("warnings", []), *(made["lines"] if made["removed"] else [])])


def _check_owner(plan: Plan) -> None:
    """Raise FleetError if PLAN is another user's: what this user would leave in its folders would lock that user out."""
    path = os.path.join(plan.state, FILE)
    with suppress(FileNotFoundError):
        owner = os.stat(path).st_uid
        if owner != os.geteuid():
            user = find_account(owner).name or owner
            raise FleetError(
                f"the schedule {plan.name} is run by {user}: runuser -u {user} -- {sys.executable} -P {sys.argv[0]} {path}"
            )


def _may_reach_them_soon(found: Run, until: float) -> bool:
    """Wait, and return True, if no host of FOUND was reached, as before a machine has its network; not after UNTIL."""
    if not found.hosts or any(host.state != "unreachable" for host in found.hosts.values()):
        return False
    if time.monotonic() + _AGAIN_S > until:
        return False
    time.sleep(_AGAIN_S)
    return True


def _publish(plan: Plan, found: Run) -> None:
    """Write the record and the metrics of a run, and print what came of it; what of these cannot be done is told, and costs no other."""
    troubles = []
    try:
        outcome.write_record(found, plan.state)
    except OSError as error:
        troubles.append(f"the record cannot be written: {_tell(error)}")
    try:
        if plan.textfile:
            outcome.write_metrics(found, plan.textfile)
    except OSError as error:
        troubles.append(f"the metrics cannot be written: {_tell(error)}")
    _print(sys.stderr, troubles)
    with suppress(OSError):
        _print(sys.stdout, [escape_lines(Path(found.log).read_text(encoding="utf-8", errors="replace")).rstrip("\n")])
    times = ", ".join(time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(due)) for due in found.missed[-10:])
    lines = [f"{found.missed_count} runs were missed since the last one, the latest at {times}"] if found.missed else []
    lines += map(escape, found.list_missing())
    ending = f"schedule {plan.name}: {found.outcome} after {found.ended - found.began:.0f} s: {found.message}"
    _print(sys.stdout, [*lines, escape(ending)])


def _print(stream: Any, lines: Sequence[str]) -> None:
    """Print LINES to STREAM, as far as anybody reads them."""
    try:
        for line in lines:
            print(line, file=stream)
        stream.flush()
    except OSError:
        # Python would end with an error of its own when it cannot write the rest.
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), stream.fileno())


def _read_number(last: dict[str, Any], name: str) -> float:
    value = last.get(name)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return 0.0


def _list_missed(plan: Plan, since: float, now: float, *, only_missed: bool) -> list[float]:
    """Return the times after SINCE at which PLAN was due and did not run.

    NOW is the time of this run, which may be on time itself, unless it is there for those that were missed (ONLY_MISSED).
    """
    if since >= now:
        return []
    # Before it was written, the schedule may have had other times.
    since = max(since, os.stat(os.path.join(plan.state, FILE)).st_mtime, now - _MOST_BACK_S)
    try:
        times = list_due(plan, since, now)
    except FleetError as error:
        print(escape(f"missed runs are not known: {error}"), file=sys.stderr)
        return []
    if times and now - times[-1] <= plan.offset_s + _LATE_S and not only_missed:
        times.pop()
    return times


@contextmanager
def _hold(folder: str, busy: str, wait_s: float) -> Iterator[int]:
    """Hold the lock of FOLDER, and give its descriptor. Raises BusyError with the text BUSY when it is not free after WAIT_S seconds.

    Where the file system has no locks, nothing is locked.
    """
    file = os.open(os.path.join(folder, LOCK), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise BusyError(busy) from None
                time.sleep(0.2)
            except OSError as error:
                print(
                    escape(f"{folder} cannot be locked ({error.strerror}): let no other run work on it"),
                    file=sys.stderr,
                )
                break
        with suppress(OSError):  # a full disk
            os.ftruncate(file, 0)
            os.pwrite(file, str(os.getpid()).encode(), 0)
        yield file
    finally:
        os.close(file)
