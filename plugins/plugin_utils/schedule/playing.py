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

CALLBACK = "crashcart.fleet.run_record"
ENDING_S = 30.0
"""ansible-playbook ends its workers and removes its files within this time."""
_WORK = "run"
_NOT_TRIED = "it was not tried"


@dataclass(frozen=True)
class _Result:
    """The callback's notes of one process of ansible-playbook.

    HOSTS: what came of each host. UNTRIED: hosts that were meant and whose turn did not come. PROBLEM: what went wrong for all, '' for nothing.
    """

    hosts: dict[str, Host] = field(default_factory=dict)
    untried: tuple[str, ...] = ()
    problem: str = ""


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
            for playbook in self._plan.playbooks:
                is_over = time.monotonic() >= self._deadline
                problem = (
                    self._tell_over()
                    if is_over
                    else self._play_all([self._plan.command, playbook, *words], folder, log)
                )
                if problem and problem not in problems:
                    problems.append(problem)
        return "; ".join(problems)

    def _tell_over(self) -> str:
        return (
            f"its time limit of {self._plan.time_limit_s:g} s was over; what had not come yet comes with the next run"
        )

    def _play_all(self, words: list[str], folder: str, log: Any) -> str:
        """Run ansible-playbook as WORDS say, with its files in FOLDER and its output in LOG, until each host was tried once.

        Returns what went wrong for all hosts, '' for nothing.
        """
        limit, before = self._plan.limit, math.inf
        while True:
            result = self._play_one([*words, *(["--limit", limit] if limit else [])], folder, log)
            merge(self._found.hosts, result.hosts)
            if result.problem or not 0 < len(result.untried) < before:
                merge(self._found.hosts, dict.fromkeys(result.untried, Host("failed", _NOT_TRIED)))
                return result.problem
            limit, before = "@" + _write(folder, "untried", "\n".join(result.untried)), len(result.untried)

    def _make_words(self, folder: str) -> list[str]:
        """Return the options of ansible-playbook, with files in FOLDER that they name."""
        plan = self._plan
        own = {"crashcart_dest": plan.store, "crashcart_run": self._found.run}
        variables = _write(folder, "variables.json", json.dumps({**plan.variables, **own}))
        # Variables of the group `all` in the first source of inventory give way to those of any later source.
        defaults = _write(folder, "defaults.yml", json.dumps({"all": {"vars": plan.defaults}}))
        words = ["--forks", str(plan.forks), "--extra-vars", f"@{variables}"]
        return words + [word for source in (defaults, *plan.inventory) for word in ("--inventory", source)]

    def _play_one(self, words: list[str], folder: str, log: Any) -> _Result:
        """Run ansible-playbook as WORDS say, with its files in FOLDER and its output in LOG."""
        plan = self._plan
        record = Path(folder, "record.json")
        record.unlink(missing_ok=True)
        enabled = plan.environment.get("ANSIBLE_CALLBACKS_ENABLED") or os.environ.get("ANSIBLE_CALLBACKS_ENABLED")
        environment = {
            **os.environ,
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_LOCAL_TEMP": folder,
            **plan.environment,
            "ANSIBLE_CALLBACKS_ENABLED": ",".join(filter(None, (enabled, CALLBACK))),
            "CRASHCART_RUN_RECORD": str(record),
        }
        status, was_late = self._run(words, environment, log)
        try:
            document = json.loads(record.read_text(encoding="utf-8"))
            hosts = {name: Host(**about) for name, about in document["hosts"].items()}
            result = _Result(hosts, tuple(map(str, document["untried"])), str(document["problem"]))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            result = _Result(problem=f"ansible-playbook ended with status {status} before it was done: see its output")
        if was_late:
            return replace(result, problem=self._tell_over())
        if status and not result.problem and all(host.state == "ok" for host in result.hosts.values()):
            return replace(result, problem=f"ansible-playbook ended with status {status}: see its output")
        return result

    def _run(self, words: list[str], environment: Mapping[str, str], log: Any) -> tuple[int, bool]:
        """Run WORDS until they or the time end; return the exit status, and True if the time was over. The process ends with this one."""
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
                return process.wait(max(0.0, self._deadline - time.monotonic())), False
            except subprocess.TimeoutExpired:
                return _end(process), True
            finally:
                # What one that has ended by itself leaves, such as ssh's shared connections, ends by itself, too.
                if process.poll() is None:
                    _end(process)


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
