# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a schedule once: alone, within its time, with a record of what came of each host."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError, explain
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.syscalls import set_parent_death_signal
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape, escape_lines
from ansible_collections.crashcart.fleet.plugins.plugin_utils.schedule import outcome
from ansible_collections.crashcart.fleet.plugins.plugin_utils.schedule.due import list_due
from ansible_collections.crashcart.fleet.plugins.plugin_utils.schedule.outcome import Host, Run
from ansible_collections.crashcart.fleet.plugins.plugin_utils.schedule.plan import Plan, read_plan

CALLBACK = "crashcart.fleet.run_record"
LOCK = ".crashcart-run"  # in the store and in the schedule's own folder; the store's catalogue locks the folder itself
_ENDING_S = 30.0  # for ansible-playbook to end its workers and to remove its files
_LATE_S = 120.0  # a run that begins later than this after its time, and its offset, was missed and is caught up
_LOG = "last-run.log"
_WORK = "run"


class BusyError(FleetError):
    """Another run goes on, so none begins."""


class EndedError(FleetError):
    """Somebody has ended the run by a signal."""


def main(arguments: list[str]) -> int:
    """Run the schedule whose plan's path is the last of ARGUMENTS, and return the exit status.

    --timer waits the schedule's offset first. --catch-up does nothing unless a run was missed. --check only looks at the plan.
    """
    options = set(arguments[:-1])
    if not arguments or arguments[-1].startswith("--") or options - {"--timer", "--catch-up", "--check"}:
        print("usage: run.py [--timer | --catch-up | --check] PLAN", file=sys.stderr)
        return outcome.STATUSES[outcome.FAILURE]
    signal.signal(signal.SIGTERM, _end)
    try:
        plan = read_plan(arguments[-1])
        if "--check" in options:
            return check(plan)
        if "--timer" in options:
            time.sleep(find_offset(plan))
        return run(plan, only_missed="--catch-up" in options)
    except FleetError as error:
        print(escape(str(error)), file=sys.stderr)
        name = outcome.SKIPPED if isinstance(error, BusyError) else outcome.FAILURE
        return outcome.STATUSES[name]
    except OSError as error:
        print(escape(explain(error)), file=sys.stderr)
        return outcome.STATUSES[outcome.FAILURE]


def _end(number: int, _frame: Any) -> NoReturn:
    raise EndedError(f"the run was ended by {signal.Signals(number).name}")


def check(plan: Plan) -> int:
    """Return the exit status for a PLAN that can be run. Raises FleetError where it cannot."""
    now = time.time()
    if not plan.time_limit_s > plan.offset_s >= 0:
        raise FleetError("crashcart_offset is longer than crashcart_time_limit: give a shorter one")
    list_due(plan, now - 1, now)
    if not os.access(plan.command, os.X_OK):
        raise FleetError(f"{plan.command} cannot be run: install ansible-core beside this Python ({sys.executable})")
    return outcome.STATUSES[outcome.SUCCESS]


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

    Raises BusyError if another run of this schedule, or for all its time one of the same store, goes on.
    """
    os.makedirs(plan.store, exist_ok=True)
    with _hold(plan.state, f"another run of the schedule {plan.name} goes on", 0) as own:
        last = outcome.read_record(plan.state)
        began = time.time()
        missed = _list_missed(plan, last, began)
        if only_missed and not missed:
            return outcome.STATUSES[outcome.SUCCESS]
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(began))
        found = Run(plan.name, f"{plan.name}-{stamp}", began, log=str(Path(plan.state, _LOG)))
        found.missed, found.missed_count = missed, len(missed)
        found.missed_total = _read_count(last, "missed_total") + len(missed)
        found.last_success = _read_count(last, "last_success")
        try:
            busy = f"another run on {plan.store} has gone on for {plan.time_limit_s:g} s"
            with _hold(plan.store, busy, plan.time_limit_s) as store:
                hosts, problem = _play(plan, found, (own, store))
            found.hosts = hosts
            found.end(*outcome.judge(hosts, problem), time.time())
        except BusyError as error:
            found.end(outcome.SKIPPED, str(error), time.time())
        except (FleetError, OSError) as error:
            found.end(outcome.FAILURE, explain(error) if isinstance(error, OSError) else str(error), time.time())
        finally:
            _publish(plan, found)
    return found.status


def _publish(plan: Plan, found: Run) -> None:
    """Print what came of the run, and write its record and its metrics."""
    with suppress(OSError):
        sys.stdout.write(escape_lines(Path(found.log).read_text(encoding="utf-8", errors="replace")))
    times = ", ".join(time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(due)) for due in found.missed[-10:])
    if found.missed:
        print(f"{found.missed_count} runs were missed since the last one, the latest at {times}")
    for line in found.list_missing():
        print(escape(line))
    print(
        escape(f"schedule {plan.name}: {found.outcome} after {found.ended - found.began:.0f} s: {found.message}"),
        flush=True,
    )
    outcome.write_record(found, plan.state)
    if plan.textfile:
        try:
            outcome.write_metrics(found, plan.textfile)
        except OSError as error:
            print(escape(f"the metrics cannot be written: {explain(error)}"), file=sys.stderr)


def _read_count(last: dict[str, Any], name: str) -> Any:
    value = last.get(name)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else 0


def _list_missed(plan: Plan, last: dict[str, Any], now: float) -> list[float]:
    """Return the times since the LAST run at which PLAN was due and did not run; NOW is the time of a run that may be on time."""
    since = _read_count(last, "began")
    if not since or since >= now:
        return []
    try:
        times = list_due(plan, since, now)
    except FleetError as error:
        print(escape(f"missed runs are not known: {error}"), file=sys.stderr)
        return []
    if times and now - times[-1] <= plan.offset_s + _LATE_S:
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
        yield file
    finally:
        os.close(file)


def _play(plan: Plan, found: Run, locks: tuple[int, ...]) -> tuple[dict[str, Host], str]:
    """Run the playbooks of PLAN, and return what came of each host, and what went wrong for all of them, '' for nothing.

    The process has the LOCKS, too: should this one be killed, no other run begins before the playbooks have ended.
    """
    with _make_work_folder(plan) as folder:
        record, variables = Path(folder, "record.json"), Path(folder, "variables.json")
        variables.write_text(json.dumps({**plan.variables, "crashcart_dest": plan.store, "crashcart_run": found.run}))
        enabled = plan.environment.get("ANSIBLE_CALLBACKS_ENABLED") or os.environ.get("ANSIBLE_CALLBACKS_ENABLED")
        environment = {
            **os.environ,
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_LOCAL_TEMP": folder,
            **plan.environment,
            "ANSIBLE_CALLBACKS_ENABLED": ",".join(filter(None, (enabled, CALLBACK))),
            "CRASHCART_RUN_RECORD": str(record),
        }
        words = [plan.command, *plan.playbooks, "--forks", str(plan.forks), "--extra-vars", f"@{variables}"]
        words += [word for source in plan.inventory for word in ("--inventory", source)]
        words += ["--limit", plan.limit] if plan.limit else []
        with open(found.log, "wb") as log:
            status, was_late = _run_for(words, plan.time_limit_s, environment, log, locks)
        return _read_play(record, status, was_late=was_late, plan=plan)


@contextmanager
def _make_work_folder(plan: Plan) -> Iterator[str]:
    """Yield the path of a new folder for the files of one run of PLAN, and remove it at the end. One that a killed run has left goes first."""
    folder = os.path.join(plan.state, _WORK)
    shutil.rmtree(folder, ignore_errors=True)
    os.mkdir(folder, 0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_for(
    words: list[str], limit_s: float, environment: dict[str, str], log: Any, locks: tuple[int, ...]
) -> tuple[int, bool]:
    """Run WORDS for at most LIMIT_S seconds, and return the exit status, and True if the time was over. The process ends with this one."""
    with ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
                pass_fds=locks,
                preexec_fn=lambda: set_parent_death_signal(signal.SIGTERM),  # noqa: PLW1509 - there are no threads
            )
        )
        stack.callback(_end_group, process)
        try:
            return process.wait(limit_s), False
        except subprocess.TimeoutExpired:
            return _end_group(process), True


def _end_group(process: subprocess.Popen[bytes]) -> int:
    """End PROCESS and all that it has started, by force after half a minute, and return its exit status."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_ENDING_S)
    return process.wait()


def _read_play(record: Path, status: int, *, was_late: bool, plan: Plan) -> tuple[dict[str, Host], str]:
    """Return what came of each host, and what went wrong for all, from the callback's RECORD and the exit STATUS of ansible-playbook."""
    try:
        document = json.loads(record.read_text(encoding="utf-8"))
        hosts = {name: Host(**about) for name, about in document["hosts"].items()}
        problem = str(document["problem"])
    except (OSError, ValueError, TypeError, KeyError):
        hosts, problem = {}, f"ansible-playbook ended with status {status} before it was done: see its output"
    if was_late:
        problem = f"its time limit of {plan.time_limit_s:g} s was over; what had not come yet comes with the next run"
    elif status and not problem and all(host.state == "ok" for host in hosts.values()):
        problem = f"ansible-playbook ended with status {status}: see its output"
    return hosts, problem
