# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the seccomp filters of a process by ptrace, and install them in another process.

Reading stops the process for some ten microseconds. If the reader is killed meanwhile, the kernel lets the process go on.
Sources: ptrace(2), seccomp(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from typing import Any, Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import syscalls

_PTRACE_DETACH = 17
_PTRACE_SEIZE = 0x4206
_PTRACE_INTERRUPT = 0x4207
_PTRACE_SECCOMP_GET_FILTER = 0x420C
_PTRACE_EVENT_STOP = 128
_WALL = 0x40000000
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_INSTRUCTION_BYTES = 8
_STOP_S = 5.0  # a process that hangs in the kernel does not stop


# By machine: its number in seccomp's data (linux/audit.h), and the numbers of the calls by which one process inspects another.
_TRACING = {
    "x86_64": (0xC000003E, {"ptrace": 101, "process_vm_readv": 310}),
    "aarch64": (0xC00000B7, {"ptrace": 117, "process_vm_readv": 270}),
    "riscv64": (0xC00000F3, {"ptrace": 117, "process_vm_readv": 270}),
    "loongarch64": (0xC0000102, {"ptrace": 117, "process_vm_readv": 270}),
    "ppc64le": (0xC0000015, {"ptrace": 26, "process_vm_readv": 351}),
    "s390x": (0x80000016, {"ptrace": 26, "process_vm_readv": 340}),
}
# Instructions of classic BPF (linux/bpf_common.h).
_LOAD, _LOAD_NUMBER, _JUMP, _JUMP_IF_EQUAL, _RETURN, _RETURN_ACCUMULATOR = 0x20, 0x00, 0x05, 0x15, 0x06, 0x16
_CALL, _MACHINE = 0, 4  # offsets in struct seccomp_data
_ALLOW = 0x7FFF0000
_FEIGN = 0x00050000  # SECCOMP_RET_ERRNO with error 0: the kernel skips the call and reports success to the caller
_MAX_INSTRUCTIONS = 4096


class _Program(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def read_filters(pid: int) -> list[bytes]:
    """Return the seccomp filters of thread PID as BPF programs, in the order of their installation.

    The call uses SIGALRM. Raises OSError: EPERM when another process traces the thread, EINVAL when the kernel lacks
    CONFIG_CHECKPOINT_RESTORE, ETIMEDOUT when the thread did not stop, ESRCH when it has just ended.
    After an error the calling process has to end: only its end is sure to detach it from the thread.
    """
    syscalls.ptrace(_PTRACE_SEIZE, pid)
    syscalls.ptrace(_PTRACE_INTERRUPT, pid)
    pending = _wait_for_stop(pid)
    try:
        return list(_gen_filters(pid))
    finally:
        syscalls.ptrace(_PTRACE_DETACH, pid, 0, pending)


def _wait_for_stop(pid: int) -> int:
    """Wait until PID has stopped, and return the signal that stopped it, which the detach must deliver; 0 for our own stop."""

    def give_up(*_: Any) -> None:
        raise OSError(errno.ETIMEDOUT, f"it did not stop in {_STOP_S:g} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, _STOP_S)
    try:
        _pid, status = os.waitpid(pid, _WALL)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if not os.WIFSTOPPED(status):
        raise OSError(errno.ESRCH, "it has just ended")
    return 0 if status >> 16 == _PTRACE_EVENT_STOP else os.WSTOPSIG(status)


def _gen_filters(pid: int) -> Iterator[bytes]:
    index = 0
    while True:
        try:
            count = syscalls.ptrace(_PTRACE_SECCOMP_GET_FILTER, pid, index)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return
            raise
        buffer = ctypes.create_string_buffer(count * _INSTRUCTION_BYTES)
        syscalls.ptrace(_PTRACE_SECCOMP_GET_FILTER, pid, index, ctypes.addressof(buffer))
        yield buffer.raw
        index += 1


def let_trace(instructions: bytes, machine: str) -> bytes:
    """Return a filter that allows ptrace and process_vm_readv on MACHINE, and decides all other calls as INSTRUCTIONS do.

    INSTRUCTIONS come back unchanged when MACHINE is not known, or when the filter has no room for more instructions.
    Source: Documentation/networking/filter.rst.
    """
    number, calls = _TRACING.get(machine, (0, {}))
    # A jump gives the number of instructions to skip. The last instruction clears the accumulator, as a program finds it at its start.
    steps = [(_LOAD, 0, 0, _MACHINE), (_JUMP_IF_EQUAL, 0, len(calls) + 2, number), (_LOAD, 0, 0, _CALL)]
    for index, call in enumerate(calls.values()):
        last = index == len(calls) - 1
        steps.append((_JUMP_IF_EQUAL, len(calls) - 1 - index, int(last), call))
    steps += [(_RETURN, 0, 0, _ALLOW), (_LOAD_NUMBER, 0, 0, 0)]
    before = b"".join(struct.pack("HBBI", *step) for step in steps)
    whole = before + instructions
    return whole if calls and len(whole) <= _MAX_INSTRUCTIONS * _INSTRUCTION_BYTES else instructions


def refuse_openly(instructions: bytes) -> bytes:
    """Return a filter that fails a call with EPERM where INSTRUCTIONS feign its success, and else decides as INSTRUCTIONS do.

    A process under a container's filter must know that a call failed: a feigned capset would leave it its capabilities, and a feigned
    fork would make it take itself for its own child. Raises OSError E2BIG when the filter has no room for more instructions.
    """
    steps = list(struct.iter_unpack("HBBI", instructions))
    refusal = (_RETURN, 0, 0, _FEIGN | errno.EPERM)
    end = len(steps)
    returns_computed = False
    for index, (code, _if_true, _if_false, value) in enumerate(steps):
        if code == _RETURN and value == _FEIGN:
            steps[index] = refusal
        elif code == _RETURN_ACCUMULATOR:
            steps[index] = (_JUMP, 0, 0, end - index - 1)
            returns_computed = True
    if returns_computed:
        steps += [(_JUMP_IF_EQUAL, 0, 1, _FEIGN), refusal, (_RETURN_ACCUMULATOR, 0, 0, 0)]
    if len(steps) > _MAX_INSTRUCTIONS:
        raise OSError(errno.E2BIG, "its seccomp filter is too long to be installed for the command: use rights=host")
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def install_filter(instructions: bytes) -> None:
    """Install the filter INSTRUCTIONS, changed by refuse_openly, in the calling thread; needs CAP_SYS_ADMIN or no_new_privs.

    Raises OSError E2BIG when refuse_openly finds no room.
    """
    instructions = refuse_openly(instructions)
    program = _Program(len(instructions) // _INSTRUCTION_BYTES, instructions)
    syscalls.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program))
