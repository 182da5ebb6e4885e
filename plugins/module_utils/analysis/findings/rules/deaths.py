# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Deaths: processes that a signal or the OOM killer ended, programs that fail again and again, and a container's first process that failed.

A signal counts if it took its default effect and that effect is to end the process with a core dump, as faults and limits do. The kernel
delivers all other deadly signals as SIGKILL (complete_signal in kernel/signal.c): SIGTERM, by which containers are stopped, looks like SIGKILL.
So do the other threads of a process that exits or runs another program. That is why SIGKILL is never told; of the victims of the OOM killer
the kernel says so itself. SIGQUIT is left out, for it stops some containers.

A program fails again and again if most of its runs in the trace ended with the same exit code, not 0, at a steady pace. Programs whose exit
code is an answer, such as grep, are left out.
"""

from __future__ import annotations

import signal
from collections import defaultdict
from typing import Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture import Capture, Moment
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.commands import run_in, trace_again
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import Finding, Number, Thing
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.lives import (
    OOM_KILLER,
    Life,
    Signal,
    gen_signals,
    list_lives,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rule import Rule

_FAULTS = frozenset({"SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSYS", "SIGTRAP", "SIGXCPU", "SIGXFSZ"})
_MEANINGS = {
    "SIGSEGV": " (it touched memory that it does not have)",
    "SIGABRT": " (it gave up itself: abort)",
    "SIGBUS": " (memory behind a file or device was not there)",
    "SIGSYS": " (a system call that seccomp does not permit)",
    "SIGXCPU": " (its limit of processor time)",
    "SIGXFSZ": " (its limit of file size)",
}
# Programs whose exit code is an answer, and shells, whose exit code is often that of such a program.
_ANSWERING = frozenset(
    (
        *(
            "grep",
            "egrep",
            "fgrep",
            "zgrep",
            "rgrep",
            "test",
            "[",
            "expr",
            "diff",
            "cmp",
            "false",
            "which",
            "command",
            "pgrep",
            "pidof",
        ),
        *(
            "getent",
            "id",
            "dpkg-query",
            "dpkg-divert",
            "ischroot",
            "systemctl",
            "pkill",
            "killall",
            "git",
            "findmnt",
            "mountpoint",
        ),
        *("fuser", "lsof", "timeout", "conftest", "sh", "dash", "bash", "ash", "busybox"),
    )
)
_STOPPED = (128 + 2, 128 + 13, 128 + 15)  # exit codes of a program that ends by SIGINT, SIGPIPE or SIGTERM
_MIN_RUNS, _MIN_SPAN_NS = 3, 2_000_000_000
_MAX_UNEVENNESS = 3  # the longest pause between runs may be so many times the usual one
_INIT = 1
_SEVERITY_OOM, _SEVERITY_FAULT, _SEVERITY_LOOP, _SEVERITY_MAIN = 95, 92, 80, 90


def find(capture: Capture) -> Iterator[Finding]:
    """Yield a finding for each program and signal that ended it, and each program and exit code with which it fails."""
    processes = list_lives(capture)
    deaths: dict[tuple[str, str], list[Moment]] = defaultdict(list)
    for process, name, time_ns in _gen_deaths(processes, list(gen_signals(capture))):
        deaths[process.who.program, name].append(Moment(process.who, time_ns, time_ns))
    for (program, name), lives in deaths.items():
        yield _make_death(capture, program, name, lives)
    yield from _gen_loops(capture, [process for process in processes if process and process.end_ns is not None])
    for main in processes:
        if main is not None and _is_failed_main(main):
            yield capture.make_finding(
                [Moment(main.who, main.moment.last_ns, main.moment.last_ns)],
                rule="deaths",
                template="{program}, the first process of the container, ended with exit code {code}",
                severity=_SEVERITY_MAIN,
                program=main.who.program,
                words={"code": str(main.status)},
                next=trace_again(capture.place, profile="startup"),
            )


def _gen_deaths(processes: Sequence[Life | None], signals: Sequence[Signal]) -> Iterator[tuple[Life, str, int]]:
    """Yield each process that a signal ended, with the signal's name, "" for the OOM killer, and the time."""
    by_process: dict[int, list[Signal]] = defaultdict(list)
    for event in signals:
        by_process[event.process].append(event)
    for index, events in by_process.items():
        process = processes[index]
        victims = [event for event in events if event.number == OOM_KILLER]
        faults = [event for event in events if _name(event.number) in _FAULTS]
        if process is not None and victims:
            yield process, "", victims[0].time_ns
        elif process is not None and faults and process.status is None:
            yield process, _name(faults[0].number), faults[0].time_ns


def _make_death(capture: Capture, program: str, name: str, lives: list[Moment]) -> Finding:
    if name:
        template, command = "{program} died of {signal}{meaning}{times}", trace_again(capture.place)
    else:
        template = "{program} was killed by the OOM killer{times}: there was not enough memory"
        command = run_in(capture.place, "cat", "/sys/fs/cgroup/memory.events")
    return capture.make_finding(
        lives,
        rule="deaths",
        template=template.replace("{times}", ", {often}" if len(lives) > 1 else ""),
        severity=_SEVERITY_FAULT if name else _SEVERITY_OOM,
        program=program,
        words={"signal": name, "meaning": _MEANINGS.get(name, "")} if name else {},
        next=command,
    )


def _gen_loops(capture: Capture, ended: Sequence[Life]) -> Iterator[Finding]:
    """Yield a finding for each program that ended again and again with one exit code other than 0."""
    runs: dict[str, list[Life]] = defaultdict(list)
    for process in ended:
        if process.has_run_program and process.status is not None:
            runs[process.who.program].append(process)
    for program, processes in runs.items():
        codes: dict[int, list[Life]] = defaultdict(list)
        for process in processes:
            codes[process.status or 0].append(process)
        code, failed = max(codes.items(), key=lambda pair: (len(pair[1]), pair[0]))
        pace_ns = _find_pace(failed)
        # A shell's own code is that of its last command; 126 and 127 say that it could not run it.
        is_answer = program in _ANSWERING and code not in (126, 127)
        if code == 0 or code in _STOPPED or is_answer or pace_ns is None or 2 * len(failed) <= len(processes):
            continue
        yield capture.make_finding(
            [process.moment for process in failed],
            rule="deaths",
            template="{program} ended with exit code {code}, {often}, every {pace}",
            severity=_SEVERITY_LOOP,
            program=program,
            words={"code": str(code)},
            numbers={"pace": Number(pace_ns, "min", "ns")},
            of=len(processes),
            object=Thing("program", program),
            next=trace_again(capture.place, profile="startup"),
        )


def _find_pace(runs: Sequence[Life]) -> int | None:
    """Return the usual time from one of RUNS to the next; None where they are few, or come at no steady pace."""
    times = sorted(process.begin_ns for process in runs if process.begin_ns is not None)
    if len(times) < _MIN_RUNS or times[-1] - times[0] < _MIN_SPAN_NS:
        return None
    pauses = sorted(after - before for before, after in zip(times, times[1:]))
    usual = pauses[len(pauses) // 2]
    return usual if pauses[-1] <= _MAX_UNEVENNESS * usual and pauses[0] * _MAX_UNEVENNESS >= usual else None


def _is_failed_main(process: Life) -> bool:
    code = process.status
    return process.who.container_pid == _INIT and code is not None and code != 0 and code not in _STOPPED


def _name(number: int) -> str:
    """Return the name of signal NUMBER."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


RULE = Rule(name="deaths", title="deaths by signal or OOM, and programs that fail again and again", find=find)
