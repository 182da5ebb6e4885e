# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the playbooks of a schedule within its time, and note what came of each host.

ansible-playbook ends with the first of several playbooks in which a host fails, and with the first turn of hosts (`serial`) that fails as a
whole. A host that is down must hold nobody back. So each playbook has a process of its own, and further ones for hosts that were not tried.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import processes
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.syscalls import (
    set_child_subreaper,
    set_parent_death_signal,
)
from ansible_collections.crashcart.fleet.plugins.plugin_utils.schedule.outcome import Host, Run, merge
from ansible_collections.crashcart.fleet.plugins.plugin_utils.schedule.plan import Plan
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store.update import SESSION

CALLBACK = "crashcart.fleet.run_record"
ENDING_S = 30.0
"""ansible-playbook ends its workers and removes its files within this time."""
_WORK = "run"
_LATE = "the time is over"
_NOT_TRIED = "it was not tried"
_NOT_DONE = "the run ended before it was done with this host"
_SHARE = 0.2  # of the time limit, that is kept for each playbook that comes later


@dataclass(frozen=True)
class _Result:
    """The callback's notes of one process of ansible-playbook.

    HOSTS: what came of each host. UNTRIED: hosts that were meant and whose turn did not come. PROBLEM: what went wrong for all, '' for nothing.
    IS_WHOLE: False if the process has ended before it was done.
    """

    hosts: dict[str, Host] = field(default_factory=dict)
    untried: tuple[str, ...] = ()
    problem: str = ""
    is_whole: bool = True


class Player:
    """Runs the playbooks of PLAN until DEADLINE, by time.monotonic(), for FOUND, whose hosts it notes.

    The processes have the LOCKS, too: should this process be killed, no other run begins before they have ended.
    """

    def __init__(self, plan: Plan, found: Run, deadline: float, locks: tuple[int, ...]) -> None:
        self._plan, self._found, self._deadline, self._locks = plan, found, deadline, locks

    def play(self) -> str:
        """Run all playbooks, and return what went wrong for all hosts, '' for nothing."""
        set_child_subreaper()  # so that _end() finds all
        problems: list[str] = []
        with _make_work_folder(self._plan) as folder, open(self._found.log, "wb") as log:
            words = self._make_words(folder)
            for place, playbook in enumerate(self._plan.playbooks, 1):
                kept_s = _SHARE * self._plan.time_limit_s * (len(self._plan.playbooks) - place)
                deadline = self._deadline - kept_s
                problem = self._play_all([self._plan.command, playbook, *words], folder, log, deadline)
                if problem == _LATE:
                    problem = self._tell_late(playbook, kept_s)
                if problem and problem not in problems:
                    problems.append(problem)
        return "; ".join(problems)

    def _tell_late(self, playbook: str, kept_s: float) -> str:
        limit_s = self._plan.time_limit_s
        part = f" leaves {limit_s - kept_s:g} s to {playbook}, and they were over" if kept_s else " was over"
        return f"its time limit of {limit_s:g} s{part}; what had not come yet comes with the next run"

    def _play_all(self, words: list[str], folder: str, log: Any, deadline: float) -> str:
        """Run ansible-playbook as WORDS say, with its files in FOLDER and its output in LOG, until each host was tried once, or until DEADLINE.

        Returns what went wrong for all hosts, '' for nothing, and _LATE where the time was over.
        """
        limit, before = self._plan.limit, math.inf
        only_part: list[str] = []
        while time.monotonic() < deadline:
            result = self._play_one([*words, *only_part, *(["--limit", limit] if limit else [])], folder, log, deadline)
            merge(self._found.hosts, result.hosts)
            if result.problem or not 0 < len(result.untried) < before:
                merge(self._found.hosts, dict.fromkeys(result.untried, Host("failed", _NOT_TRIED)))
                return result.problem
            limit, before = "@" + _write(folder, "untried", "\n".join(result.untried)), len(result.untried)
            # Other hosts may have what these have not.
            only_part = ["--extra-vars", '{"crashcart_allow_empty": true}']
        return _LATE

    def _make_words(self, folder: str) -> list[str]:
        """Return the options of ansible-playbook, with files in FOLDER that they name."""
        plan = self._plan
        own = {"crashcart_dest": plan.store, "crashcart_run": self._found.run}
        variables = _write(folder, "variables.json", json.dumps({**plan.variables, **own}))
        # Variables of the group `all` in the first source of inventory give way to those of any later source.
        defaults = _write(folder, "defaults.yml", json.dumps({"all": {"vars": plan.all_defaults}}))
        words = ["--forks", str(plan.forks), "--extra-vars", f"@{variables}"]
        return words + [word for source in (defaults, *plan.inventory) for word in ("--inventory", source)]

    def _play_one(self, words: list[str], folder: str, log: Any, deadline: float) -> _Result:
        """Run ansible-playbook as WORDS say, with its files in FOLDER and its output in LOG, until DEADLINE."""
        plan = self._plan
        record = Path(folder, "notes")
        record.unlink(missing_ok=True)
        enabled = plan.environment.get("ANSIBLE_CALLBACKS_ENABLED") or os.environ.get("ANSIBLE_CALLBACKS_ENABLED")
        environment = {
            **os.environ,
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_LOCAL_TEMP": folder,
            **plan.environment,
            "ANSIBLE_CALLBACKS_ENABLED": ",".join(filter(None, (enabled, CALLBACK))),
            "CRASHCART_RUN_RECORD": str(record),
            SESSION: self._found.run,
        }
        status, was_late = self._run(words, environment, log, deadline)
        result = _read_notes(record)
        if was_late:
            return replace(result, problem=_LATE)
        if not result.is_whole:
            problem = f"ansible-playbook ended with status {status} before it was done: see its output"
            return replace(result, problem=problem)
        if status and not result.problem and all(host.state == "ok" for host in result.hosts.values()):
            return replace(result, problem=f"ansible-playbook ended with status {status}: see its output")
        return result

    def _run(self, words: list[str], environment: Mapping[str, str], log: Any, deadline: float) -> tuple[int, bool]:
        """Run WORDS until they end, or until DEADLINE; return the exit status, and True if the time was over. The process ends with this one."""
        with subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
            pass_fds=self._locks,
            preexec_fn=lambda: set_parent_death_signal(signal.SIGTERM),  # noqa: PLW1509 - there are no threads
        ) as process:
            try:
                return process.wait(max(0.0, deadline - time.monotonic())), False
            except subprocess.TimeoutExpired:
                return _end(process), True
            finally:
                # What one that has ended by itself leaves, such as ssh's shared connections, ends by itself, too.
                if process.poll() is None:
                    _end(process)


def _read_notes(path: Path) -> _Result:
    """Return what the callback has noted in the file PATH. Of a process that was ended, each host has the task that it was at."""
    meant: list[str] = []
    hosts: dict[str, Host] = {}
    tasks: dict[str, str | None] = {}  # host → the task that it is at, None between two
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            note = json.loads(line)
            if "hosts" in note:
                found = {name: Host(**about) for name, about in note["hosts"].items()}
                return _Result(found, tuple(map(str, note["untried"])), str(note["problem"]))
            if "meant" in note:
                meant = note["meant"]
            elif "task" in note:
                tasks[note["host"]] = note["task"]
            else:
                hosts[note["host"]] = Host(note["state"], note["message"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass  # the last line may be half a line
    for name, task in tasks.items():
        message = f"it was not done with the task {task!r} when the run was ended" if task else _NOT_DONE
        hosts.setdefault(name, Host("failed", message))
    return _Result(hosts, tuple(name for name in meant if name not in hosts), is_whole=False)


def _write(folder: str, name: str, text: str) -> str:
    """Write TEXT to the file NAME of FOLDER, and return its path."""
    path = Path(folder, name)
    path.write_text(text, encoding="utf-8")
    return str(path)


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


def _end(process: subprocess.Popen[bytes]) -> int:
    """End PROCESS, by force after half a minute, and then by force all that it has started; return its exit status."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(ENDING_S)
        if process.poll() is None:
            process.kill()
    status = process.wait()
    # Workers of Ansible make sessions of their own, so they are not of its group. Those without a parent are this process's children now.
    processes.end_children(ENDING_S)
    return status
