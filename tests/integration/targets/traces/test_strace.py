# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A trace says of a run what `strace -f` says of the same one, call by call in each thread.

What they differ in is listed here and in docs/calls.md.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from support import host, images
from support.fetching import fetch_here

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.calls import RESTARTS, name_call, name_errno
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.reading import Reading, read_trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.report import read_manifest

SUPPORT = Path(images.__file__).parent
FREESTANDING = ("-m32", "-nostdlib", "-ffreestanding", "-fno-pic", "-no-pie", "-fno-stack-protector", "-mno-sse")
_LINE = re.compile(
    r"(?:(?P<name>\w+)\(.*\)|<\.\.\. (?P<resumed>\w+) resumed>.*\))\s+= (?P<result>\S+)(?: (?P<error>E\w+))?"
)
_NO_CALL = re.compile(r"---|\+\+\+|\[ Process|execve\(.* <pid changed to \d+ \.\.\.>$")


class Call(NamedTuple):
    """A call as strace shows it: RESULT is None for a question mark."""

    name: str
    result: int | None
    error: str = ""


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
        calls.append(Call(found["name"] or found["resumed"], result, found["error"] or ""))
    return calls


def list_calls(reading: Reading, tid: int) -> list[Call]:
    """The calls of thread TID in a trace, in strace's words."""
    calls = reading.calls.select(reading.calls.tids == tid)
    listed = []
    for number, result, error, has_ended in zip(
        *(column.tolist() for column in (calls.numbers, calls.results, calls.errors, calls.has_ended))
    ):
        name = name_call(number, reading.syscalls)
        if error in RESTARTS:
            listed.append(Call(name, None, name_errno(error)))
        elif error:
            listed.append(Call(name, -1, name_errno(error)))
        else:
            listed.append(Call(name, result if has_ended else None))
    return listed


def read_as_strace(result: int) -> tuple[int, str]:
    """RESULT if every number that could be an error, in as many bits as programs have, is one, as strace takes it."""
    signed = result - (1 << 32) if (1 << 32) - 4096 < result < 1 << 32 else result
    return (-1, name_errno(-signed)) if -4096 < signed < 0 else (result, "")


def is_known_difference(theirs: Call, ours: Call) -> bool:
    """Whether strace's call THEIRS may be OURS, though they are not the same: docs/calls.md says why."""
    if theirs.name == ours.name:
        if theirs.result is None and not theirs.error:
            return ours.error in RESTARTS.values()  # a fatal signal, or another thread's exec, ended it
        # The registers of what a signal interrupted; the owner of a descriptor if that is a group of processes.
        is_no_error = ours.name in ("rt_sigreturn", "sigreturn", "fcntl", "fcntl64") and ours.result is not None
        return is_no_error and (theirs.result, theirs.error) == read_as_strace(ours.result)
    # Calls of other ways into the kernel: x32's, one in several of 32-bit programs, and int $0x80 of a 64-bit program (20 is getpid there).
    names = {(theirs.name, f"{theirs.name} (x32)"), ("socketpair", "socketcall"), ("getpid", "writev")}
    return (theirs.name, ours.name) in names and theirs[1:] == ours[1:]


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
def run_scene(
    container: Callable[..., str], programs: Path, tmp_path: Path
) -> Callable[..., tuple[Reading, dict[int, list[Call]], str]]:
    def run(program: str, scene: str, **options: object) -> tuple[Reading, dict[int, list[Call]], str]:
        """What a trace and strace have of the same run, and the container's name."""
        done = programs / "done"
        done.unlink(missing_ok=True)
        script = f"./{program} {scene}; : >done; sleep 1000"
        volume = ("--network", "none", "-v", f"{programs}:/programs", "-w", "/programs")
        name = container("busybox", "sh", "-c", script, options=volume)
        first = host.find_pid(name)
        children = Path(f"/proc/{first}/task/{first}/children")
        pid = int(host.wait_until(children.read_text).split()[0])
        output = tmp_path / f"strace-{scene}"
        with host.start("strace", "-qq", "-ff", "-o", str(output), "-p", str(pid), stderr=subprocess.DEVNULL) as tracer:
            host.wait_until(lambda: f"TracerPid:\t{tracer.pid}" in Path(f"/proc/{pid}/status").read_text())
            host.call_module("ftrace_instance", containers=[name], buffer_size="8MiB", **options)
            (programs / "go").write_bytes(b"x")
            host.wait_until(done.exists, 60)
            tracer.wait(30)
        host.call_module("ftrace_instance", containers=[name], state="stopped")
        (capture,) = fetch_here(tmp_path / scene, containers=[name])
        assert capture["manifest"]["complete"], capture["manifest"]
        with open(capture["path"], "rb") as file:
            reading = read_trace(Trace(file), read_manifest(capture["path"]))
        threads = {int(path.suffix[1:]): read_strace(path) for path in tmp_path.glob(f"{output.name}.*")}
        return reading, threads, name

    return run


SCENES = ["single", "threaded", "forking", "signals", "denied"]


@pytest.mark.parametrize(("program", "scene"), [*(("calls", scene) for scene in SCENES), ("calls32", "all")])
def test_each_thread_makes_the_same_calls(run_scene, program, scene):
    reading, threads, _name = run_scene(program, scene)
    assert len(threads) >= {"single": 1, "threaded": 3, "forking": 6, "signals": 4, "denied": 4, "all": 4}[scene]
    for tid, theirs in threads.items():
        ours = drop_beginning(list_calls(reading, tid))
        expected = drop_unseen(drop_beginning(theirs), ours)
        differences = [pair for pair in zip(expected, ours) if pair[0] != pair[1] and not is_known_difference(*pair)]
        assert (differences, len(expected)) == ([], len(ours)), tid
