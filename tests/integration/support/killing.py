# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kill a function with SIGKILL before each of its system calls, to test every state that a kill can leave.

The function runs in a process of its own under ptrace(2), which stops the process, and all processes that it starts, before each
of their system calls. Calls that change nothing outside the process are not counted: a kill before such a call leaves the
same state as a kill before the next call that changes something.
"""

from __future__ import annotations

import ctypes
import os
import random
import select
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.syscall_names import find_number
from support import host, parts

_PTRACE_SYSCALL = 24
_PTRACE_DETACH = 17
_PTRACE_SEIZE = 0x4206
_PTRACE_INTERRUPT = 0x4207
_PTRACE_GETEVENTMSG = 0x4201
_PTRACE_GET_SYSCALL_INFO = 0x420E
_STARTS = (1, 2, 3)  # PTRACE_EVENT_FORK, _VFORK, _CLONE
# PTRACE_O_TRACESYSGOOD marks stops at system calls, the others trace children. Should this process end, the traced ones go on.
_OPTIONS = 0x1 | 0x2 | 0x4 | 0x8
_WALL = 0x40000000
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_END_S = 0.1
_ENTRY = 1  # ptrace_syscall_info.op
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long
_CHANGING_NOTHING = (
    *("read", "pread64", "newfstatat", "fstat", "lstat", "stat", "statx", "fstatfs", "statfs", "access", "faccessat2"),
    *("lseek", "mmap", "mprotect", "munmap", "mremap", "madvise", "brk", "getdents64", "readlink", "readlinkat"),
    *(
        "rt_sigaction",
        "rt_sigprocmask",
        "sigaltstack",
        "rt_sigreturn",
        "getpid",
        "gettid",
        "getppid",
        "getuid",
        "geteuid",
    ),
    *("getgid", "getegid", "getcwd", "getrandom", "futex", "poll", "select", "pselect6", "epoll_create1", "epoll_ctl"),
    *(
        "epoll_wait",
        "clock_nanosleep",
        "clock_gettime",
        "prlimit64",
        "arch_prctl",
        "set_tid_address",
        "set_robust_list",
    ),
    *("rseq", "sched_getaffinity", "sysinfo", "uname", "gettimeofday", "wait4", "fcntl", "dup", "dup2", "dup3"),
)


def _list_numbers() -> Iterator[int]:
    for name in _CHANGING_NOTHING:
        try:
            yield find_number(name)
        except FleetError:
            continue  # this architecture has no system call of that name


_IGNORED = frozenset(_list_numbers())


def kill_everywhere(
    function: Callable[[], object],
    check: Callable[[int], None],
    *,
    own_calls: bool = False,
    step: int = 1,
    full_step: int = 1,
) -> int:
    """Run FUNCTION() again and again, kill it before another of its system calls each time, and return the number of kills.

    CHECK(number of kills so far) is called after each kill. With a STEP only every STEPth call has its turn, beginning with a random one, so
    that several runs reach all of them. In `make test-all` every FULL_STEPth has, which is each one but where a check takes seconds. System
    calls of processes that FUNCTION starts count, too,
    unless OWN_CALLS is set.
    """
    step = full_step if parts.IS_ALL else step
    moment = random.randint(1, step)
    count = 0
    while _run_and_kill(function, moment, own_calls):
        count += 1
        try:
            check(count)
        except BaseException:
            print(f"killed before system call {moment}", file=sys.stderr)
            raise
        moment += step
    return count


@contextmanager
def kill_at(pid: int, moment: int) -> Iterator[Callable[[], bool]]:
    """Kill the running process PID before the MOMENTth of its system calls, while the context lasts.

    Yields a function that returns True if it was killed.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _ptrace(_PTRACE_SEIZE, pid, 0, _OPTIONS)
            _ptrace(_PTRACE_INTERRUPT, pid)
            os.waitpid(pid, _WALL)
            _ptrace(_PTRACE_SYSCALL, pid)
            os.write(writer, b"+")
            _follow(pid, moment, own_calls=True)
            os.write(writer, b"!")
        finally:
            os._exit(0)
    os.close(writer)
    os.set_blocking(reader, True)
    try:
        assert os.read(reader, 1) == b"+"
        yield lambda: bool(select.select([reader], [], [], 0)[0]) and os.read(reader, 1) == b"!"
    finally:
        # A tracer that ends lets go of its process.
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)


def _run_and_kill(function: Callable[[], object], moment: int, own_calls: bool) -> bool:
    """Run FUNCTION() and kill its process before the MOMENTth system call. Return False if the process has ended before that."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(writer)
            os.read(reader, 1)
            function()
            status = 0
        except BaseException:
            traceback.print_exc(file=sys.stderr)
        finally:
            os._exit(status)
    os.close(reader)
    _ptrace(_PTRACE_SEIZE, pid, 0, _OPTIONS)
    _ptrace(_PTRACE_INTERRUPT, pid)
    os.waitpid(pid, _WALL)
    _ptrace(_PTRACE_SYSCALL, pid)
    os.write(writer, b"+")
    os.close(writer)
    return _follow(pid, moment, own_calls)


def _follow(pid: int, moment: int, own_calls: bool) -> bool:
    others: set[int] = set()
    count = 0
    while True:
        who, status = os.waitpid(-1, _WALL)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            others.discard(who)
            if who == pid:
                assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0, f"the function failed: status {status}"
                _let_go(others)
                return False
            continue
        if who != pid:
            others.add(who)
        stop = os.WSTOPSIG(status)
        if stop == _SYSCALL_STOP and (who == pid or not own_calls) and _counts(who):
            count += 1
            if count == moment:
                os.kill(pid, signal.SIGKILL)
                # The other processes go on, as they would without a tracer. WHO is one of them and stopped, or is PID and dead.
                if who != pid:
                    _ptrace(_PTRACE_DETACH, who)
                _let_go(others - {who}, pid)
                _wait_for(others)
                return True
        event = status >> 16
        if event in _STARTS:
            others.add(_read_event(who))
        delivered = 0 if event or stop in (_SYSCALL_STOP, signal.SIGTRAP) else stop
        _ptrace(_PTRACE_SYSCALL, who, 0, delivered)


def _counts(pid: int) -> bool:
    """Return True if PID is about to enter a system call that may change something outside it."""
    info = ctypes.create_string_buffer(88)
    if _libc.ptrace(_PTRACE_GET_SYSCALL_INFO, pid, len(info), ctypes.addressof(info)) < 0:
        return False  # the process was killed meanwhile
    operation = info.raw[0]
    (number,) = struct.unpack_from("Q", info.raw, 24)
    return operation == _ENTRY and number not in _IGNORED


def _read_event(pid: int) -> int:
    """Return the pid of the process that PID has just started."""
    child = ctypes.c_ulong()
    _ptrace(_PTRACE_GETEVENTMSG, pid, 0, ctypes.addressof(child))
    return child.value


def _let_go(others: set[int], killed: int = 0) -> None:
    """Stop tracing OTHERS, and wait for the end of the process KILLED, if any."""
    for other in others:
        _ptrace(_PTRACE_INTERRUPT, other)
    waiting = others | ({killed} if killed else set())
    while waiting:
        who, status = os.waitpid(-1, _WALL)
        waiting.discard(who)
        if os.WIFSTOPPED(status):
            if status >> 16 in _STARTS:
                waiting.add(_read_event(who))
            _ptrace(_PTRACE_DETACH, who)


def _wait_for(others: set[int]) -> None:
    """Wait a moment for the end of those OTHERS that end with the killed process. Before another module runs, much more time passes."""
    deadline = time.monotonic() + _END_S
    while time.monotonic() < deadline and not all(map(_has_ended, others)):
        time.sleep(0.001)


def _has_ended(pid: int) -> bool:
    """Return True if PID is gone or a zombie."""
    try:
        return host.read_state(pid) in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> None:
    """Call ptrace(2), and ignore the error ESRCH, since a process that has just been killed needs no request."""
    if _libc.ptrace(request, pid, address, data) < 0 and ctypes.get_errno() != 3:  # ESRCH
        raise OSError(ctypes.get_errno(), f"ptrace {request} of {pid}")
