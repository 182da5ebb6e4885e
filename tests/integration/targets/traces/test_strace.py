# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A trace says of a run what `strace -f -ttt` says of the same one, call by call in each thread.

What they differ in is listed here and in docs/calls.md.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support import host, images
from support.every_kernel import report
from support.fetching import fetch_here

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis import calls
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.capture_summary import add_tables, read_manifest
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import read_traces
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.syscall_names import RESTARTS, name_errno

SUPPORT = Path(images.__file__).parent
FREESTANDING = ("-m32", "-nostdlib", "-ffreestanding", "-fno-pic", "-no-pie", "-fno-stack-protector", "-mno-sse")
_LINE = re.compile(
    r"(?P<seconds>\d+)\.(?P<microseconds>\d{6}) "
    r"(?:(?P<name>\w+)\(.*\)|<\.\.\. (?P<resumed>\w+) resumed>.*\))\s+= (?P<result>\S+)(?: (?P<error>E\w+))?"
)
_NO_CALL = re.compile(r"\d+\.\d{6} (?:---|\+\+\+|\[ Process|execve\(.* <pid changed to \d+ \.\.\.>$)")
_NEAR_NS = 10**6


@dataclass(frozen=True)
class Call:
    """A call as strace shows it: RESULT is None for a question mark, START_NS, in real time, for a call whose beginning is not known."""

    name: str
    result: int | None
    error: str = ""
    start_ns: int | None = field(default=None, compare=False)

    @property
    def answer(self) -> tuple[int | None, str]:
        """Return what the program was told."""
        return self.result, self.error


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images.install_packages("gcc", "libc6-dev", "strace")
    folder = tmp_path_factory.mktemp("programs")
    for source, options in (("calls", ("-pthread",)), ("calls32", FREESTANDING)):
        command = ["gcc", "-static", "-Wall", "-Werror", *options, "-o", str(folder / source), f"{SUPPORT}/{source}.c"]
        subprocess.run(command, check=True)
    os.mkfifo(folder / "go")
    return folder


def read_strace(path: Path) -> list[Call]:
    """The calls in the file that strace wrote of a thread."""
    calls = []
    for line in path.read_text(errors="replace").splitlines():
        if _NO_CALL.match(line):
            continue
        found = _LINE.match(line)
        assert found, line
        result = None if found["result"] == "?" else int(found["result"], 0)
        start_ns = int(found["seconds"] + found["microseconds"]) * 1000 if found["name"] else None
        calls.append(Call(found["name"] or found["resumed"], result, found["error"] or "", start_ns))
    return calls


def list_calls(found: list[calls.Call], tid: int, offset_ns: int) -> list[Call]:
    """The calls of thread TID among those FOUND in a trace, whose clock is OFFSET_NS behind real time, in strace's words."""
    listed = []
    for call in found:
        if call.tid == tid:
            failed = call.error and not call.restarted
            result = None if call.restarted else -1 if failed else call.result
            start_ns = None if call.continued else call.start_ns + offset_ns
            listed.append(Call(call.call, result, call.error or "", start_ns))
    return listed


def read_as_strace(result: int) -> tuple[int, str]:
    """RESULT if every number that could be an error, in as many bits as programs have, is one, as strace takes it."""
    signed = result - (1 << 32) if (1 << 32) - 4096 < result < 1 << 32 else result
    return (-1, name_errno(-signed)) if -4096 < signed < 0 else (result, "")


def is_known_difference(theirs: Call, ours: Call) -> bool:
    """Return True if strace's call THEIRS may be OURS, though they differ: docs/calls.md says why."""
    if theirs.name == ours.name:
        if theirs.result is None and not theirs.error:
            # A fatal signal, or another thread's exec, ended it: at its entry, where strace holds it, before the kernel had begun with it.
            # A sleep may also have ended just before, and strace, which a busy machine keeps waiting, has not been told.
            return ours.error in (*RESTARTS.values(), "ENOSYS") or (ours.name, ours.result) == ("clock_nanosleep", 0)
        # The registers of what a signal interrupted; the owner of a descriptor if that is a group of processes.
        is_no_error = ours.name in ("rt_sigreturn", "sigreturn", "fcntl", "fcntl64") and ours.result is not None
        return is_no_error and theirs.answer == read_as_strace(ours.result)
    # Calls of other ways into the kernel: x32's, one in several of 32-bit programs, and int $0x80 of a 64-bit program (20 is getpid there).
    names = {(theirs.name, f"{theirs.name} (x32)"), ("socketpair", "socketcall"), ("getpid", "writev")}
    return (theirs.name, ours.name) in names and theirs.answer == ours.answer


def drop_unseen(theirs: list[Call], ours: list[Call]) -> list[Call]:
    """THEIRS without what a trace cannot have: the call that seccomp killed a thread for, which has no event."""
    if theirs and theirs[-1] == Call("sync", None) and len(ours) < len(theirs):
        return theirs[:-1]
    return theirs


def drop_beginning(calls: list[Call]) -> list[Call]:
    """CALLS from the mark on, where there is one: what was before it was not traced by both."""
    marks = [number for number, call in enumerate(calls) if call.name == "getpgid"]
    return calls[marks[0] :] if marks else calls


@pytest.fixture
def start_scene(container: Callable[..., str], programs: Path) -> Callable[..., tuple[str, int]]:
    def start(program: str, scene: str, *options: str) -> tuple[str, int]:
        """A container in which PROGRAM waits to play SCENE, and that process."""
        (programs / "done").unlink(missing_ok=True)
        script = f"./{program} {scene}; : >done; sleep 1000"
        volume = ("--network", "none", "-v", f"{programs}:/programs", "-w", "/programs", *options)
        name = container("busybox", "sh", "-c", script, options=volume)
        first = host.find_pid(name)
        children = Path(f"/proc/{first}/task/{first}/children")
        return name, int(host.wait_until(children.read_text).split()[0])

    return start


def play(programs: Path) -> None:
    """Have the process that waits play its scene to the end."""
    (programs / "go").write_bytes(b"x")
    host.wait_until((programs / "done").exists, 60)


def fetch(name: str, folder: Path) -> Path:
    """The capture of container NAME, whose trace is stopped first."""
    host.call_module("ftrace_instance", containers=[name], state="stopped")
    (capture,) = fetch_here(folder, containers=[name])
    assert capture["manifest"]["complete"], capture["manifest"]
    return Path(capture["path"])


SCENES = ["single", "threaded", "forking", "signals", "denied"]


@pytest.mark.parametrize(("program", "scene"), [*(("calls", scene) for scene in SCENES), ("calls32", "all")])
def test_each_thread_makes_the_same_calls(start_scene, programs, tmp_path, program, scene):
    name, pid = start_scene(program, scene)
    output = tmp_path / "strace"
    with host.start(
        "strace", "-qq", "-ff", "-ttt", "-o", str(output), "-p", str(pid), stderr=subprocess.DEVNULL
    ) as tracer:
        host.wait_until(lambda: f"TracerPid:\t{tracer.pid}" in Path(f"/proc/{pid}/status").read_text())
        host.call_module("ftrace_instance", containers=[name], buffer_size="8MiB")
        play(programs)
        tracer.wait(30)
    capture = fetch(name, tmp_path / "traces")
    with open(capture, "rb") as file:
        (trace,) = read_traces(file)
        manifest = add_tables(read_manifest(str(capture.with_suffix(".json"))), trace)
        found = list(calls.gen_calls(trace, manifest))
    threads = {int(path.suffix[1:]): read_strace(path) for path in tmp_path.glob("strace.*")}
    assert len(threads) >= {"single": 1, "threaded": 3, "forking": 6, "signals": 4, "denied": 4, "all": 4}[scene]
    delays: list[int] = []
    for tid, theirs in threads.items():
        ours = drop_beginning(list_calls(found, tid, manifest["clock_offset_ns"]))
        expected = drop_unseen(drop_beginning(theirs), ours)
        if len(ours) == len(expected) + 1 and ours[-1].error == "ENOSYS":
            ours.pop()  # the thread was killed at an entry that a busy machine had not let strace see
        differences = [pair for pair in zip(expected, ours) if pair[0] != pair[1] and not is_known_difference(*pair)]
        assert (differences, len(expected)) == ([], len(ours)), tid
        starts = [(one.start_ns, other.start_ns) for one, other in zip(expected, ours)]
        delays += [
            ours_ns - theirs_ns for theirs_ns, ours_ns in starts if theirs_ns is not None and ours_ns is not None
        ]
    # The kernel holds a thread for strace, and then records the entry. A busy machine may keep strace waiting in between.
    assert len(delays) >= 10
    assert min(delays) > -_NEAR_NS
    assert sorted(delays)[len(delays) * 9 // 10] < _NEAR_NS


@pytest.fixture
def report_scene(start_scene, programs, tmp_path):
    def run(scene: str, *docker_options: str, **options: object) -> tuple[dict, dict]:
        """The report of a trace of SCENE with OPTIONS, and of it the rows of the program by system call."""
        name, _pid = start_scene("calls", scene, *docker_options)
        host.call_module("ftrace_instance", containers=[name], buffer_size="8MiB", **options)
        play(programs)
        fetch(name, tmp_path / "traces")
        (summary,) = report(tmp_path / "traces", tmp_path / "report")
        return summary, {row["syscall"]: row for row in summary["programs"] if row["name"] == "calls"}

    return run


def test_what_seccomp_denies_is_booked_as_denied(report_scene, tmp_path):
    summary, rows = report_scene("denied")
    # Docker's own filter denies clone3, so that programs make do with clone.
    denied = {call: row["denied"] for call, row in rows.items() if row["denied"] and call != "clone3"}
    assert denied == {
        "getppid": {"EPERM": 1},
        "getuid": {"no error": 1},
        "geteuid": {"ENOSYS": 1},
        "getgid": {"SIGSYS": 1},
        "getegid": {"SIGSYS": 1},
        "read": {"SIGSYS": 1},
        "openat": {"EACCES": 1},
    }
    assert (rows["getppid"]["errors"], rows["getgid"]["errors"]) == ({"EPERM": 1}, {})
    # What the program waited in when the trace began is no denial.
    assert sum(row["continued"] for row in summary["programs"] if row["name"] == "calls") <= 1
    # Nor is what the shell's next program does first, which is left out of a trace.
    assert not any(row["denied"] for row in summary["programs"] if row["name"] != "calls")
    assert "EPERM 1, denied EPERM 1" in (tmp_path / "report/summary.txt").read_text()


def test_what_a_signal_interrupts_is_no_error(report_scene):
    _summary, rows = report_scene("signals")
    # Three times the kernel made the call again, once the program was told.
    assert (rows["read"]["errors"], rows["read"]["interrupted"]) == ({}, {"ERESTARTSYS": 4})
    # The one who was killed in it was interrupted, too.
    assert rows["pause"]["interrupted"] == {"ERESTARTNOHAND": 2}
    assert rows["rt_sigreturn"]["errors"] == {}


def test_returns_from_handlers_that_are_all_that_was_asked_for_have_ends(report_scene):
    _summary, rows = report_scene("signals", syscalls=["rt_sigreturn"])
    assert list(rows) == ["rt_sigreturn"]
    row = rows["rt_sigreturn"]
    assert (row["calls"], row["measured"], row["unfinished"]) == (7, 7, 0)


def test_a_thread_that_execs_leaves_the_calls_of_the_others_their_names(report_scene):
    summary, rows = report_scene("threaded")
    assert rows["mprotect"]["calls"] >= 2  # the threads' stacks
    # The shell's next program is called "exe" in its exec, and so left out: of the shell's execve, the end is missing.
    execs = [row for row in summary["processes"] if row["syscall"] == "execve" and row["name"] not in ("exe", "sh")]
    assert [(row["name"], row["calls"], row["measured"], row["unfinished"]) for row in execs] == [("calls", 1, 1, 0)]
    names = {row["name"] for row in summary["processes"] if row["pids"] == execs[0]["pids"]}
    assert names == {"calls", "runner"}


@pytest.mark.parametrize("events", [["syscalls:sys_enter_close", "syscalls:sys_exit_close"], ["syscalls:sys_*_close"]])
def test_events_of_single_calls_are_calls(report_scene, events):
    _summary, rows = report_scene("single", events=events)
    assert list(rows) == ["close"]
    row = rows["close"]
    assert (row["calls"], row["measured"], row["errors"]) == (2, 2, {"EBADF": 1})


def test_of_an_event_and_a_call_that_are_the_same_there_is_one_row(report_scene):
    _summary, rows = report_scene(
        "single", syscalls=["close"], events=["syscalls:sys_*_close", "syscalls:sys_exit_getpid"]
    )
    assert {call: (row["calls"], row["measured"], row["continued"]) for call, row in rows.items()} == {
        "close": (2, 2, 0),
        "getpid": (2, 0, 0),
    }


def test_classes_of_calls_are_those_of_strace(report_scene):
    _summary, rows = report_scene("single", syscalls=["%file", "clock", "%desc", "%process"])
    assert {"openat", "pipe2", "close", "fcntl", "exit_group"} <= set(rows)
    assert not {"getpid", "setpgid", "times"} & set(rows)


@pytest.mark.parametrize("profile", ["files", None])
def test_requests_by_io_uring_are_named(report_scene, tmp_path, profile):
    wish = {"profile": profile} if profile else {"syscalls": ["openat"]}
    summary, rows = report_scene("rings", "--security-opt", "seccomp=unconfined", **wish)
    text = (tmp_path / "report/summary.txt").read_text()
    assert not any("ENOENT" in row["errors"] for row in rows.values())
    if profile:
        assert summary["io_uring"] == {"recorded": True, "requests": {"NOP": 2, "OPENAT": 1}, "polled": False}
        assert "io_uring, no system calls: NOP 2, OPENAT 1" in text
    else:
        assert summary["io_uring"] == {"recorded": False, "requests": {}, "polled": False}
        assert "io_uring: requests were not recorded and could not be seen" in text
