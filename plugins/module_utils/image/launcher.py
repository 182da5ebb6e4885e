# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make launchers: tiny static programs that start another program and put arguments before their own.

A shell script would need a shell in the image, would add that shell's start to each start of Python, and could not set argv[0].
A launcher is static, so nothing is loaded before it. This module writes machine code, so that no compiler is needed for any machine.

Sources: elf(5), execve(2); the System V ABI of x86-64 and of AArch64 for the start of a process and for system calls: at the
start the stack pointer leads to argc, argv, a null pointer and envp.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

_BASE = 0x400000  # of the one segment; a multiple of all sizes that pages have
_HEADERS = 64 + 2 * 56
_CANNOT_START = 126  # the exit code of shells for this
_X86_64, _AARCH64 = 62, 183


def make_launcher(machine: int, path: str, name: str | None, arguments: Sequence[str]) -> bytes | None:
    """Return an ELF program for MACHINE (e_machine) that starts PATH with ARGUMENTS before its own.

    NAME becomes argv[0]; for None the launcher passes its own argv[0] on. Return None for a machine other than x86-64 and AArch64.
    """
    assemble = _ASSEMBLERS.get(machine)
    if assemble is None:
        return None
    texts = [path, *arguments, *([name] if name is not None else [])]
    data, offsets = b"", []
    for text in texts:
        offsets.append(len(data))
        data += text.encode() + b"\0"
    # The data comes after the code, whose length does not depend on the offsets: the first call only measures the code.
    length = len(assemble(offsets, len(arguments), name is not None))
    code = assemble([length + offset for offset in offsets], len(arguments), name is not None)
    return _wrap(machine, code + data)


def _wrap(machine: int, content: bytes) -> bytes:
    """Return an ELF file for MACHINE that holds CONTENT and starts at its first byte."""
    size = _HEADERS + len(content)
    ident = b"\x7fELF" + bytes((2, 1, 1, 0)) + bytes(8)  # 64 bits, little-endian
    header = struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x10000)
    stack = struct.pack("<IIQQQQQQ", 0x6474E551, 6, 0, 0, 0, 0, 0, 16)  # PT_GNU_STACK: data only
    return ident + header + load + stack + content


def _assemble_x86_64(places: Sequence[int], count: int, is_named: bool) -> bytes:
    """Return the code for x86-64; PLACES are the offsets of path, COUNT arguments and perhaps a name from its first byte."""
    code = b"\x58"  # pop rax: argc
    code += b"\x48\x8d\x54\xc4\x08"  # lea rdx, [rsp + 8 * rax + 8]: envp
    code += b"\x5f"  # pop rdi: argv[0]

    def load(opcode: bytes, place: int) -> bytes:
        return opcode + struct.pack("<i", place - len(code) - len(opcode) - 4)

    # The stack grows down, so the last push becomes argv[0]. The old arguments after argv[0] stay where they are.
    for place in reversed(places[1 : count + 1]):
        code += load(b"\x48\x8d\x05", place) + b"\x50"  # lea rax, [rip + …]; push rax
    code += load(b"\x48\x8d\x05", places[-1]) + b"\x50" if is_named else b"\x57"  # push rdi
    code += b"\x48\x89\xe6"  # mov rsi, rsp
    code += load(b"\x48\x8d\x3d", places[0])  # lea rdi, [rip + …]
    code += b"\xb8\x3b\x00\x00\x00\x0f\x05"  # execve
    return code + b"\xbf" + struct.pack("<I", _CANNOT_START) + b"\xb8\xe7\x00\x00\x00\x0f\x05"  # exit_group


def _assemble_aarch64(places: Sequence[int], count: int, is_named: bool) -> bytes:
    """Return the code for AArch64; PLACES are the offsets of path, COUNT arguments and perhaps a name from its first byte."""
    words = [0xF94003E0, 0x8B206FE2, 0x91004042]  # x0 = argc; x2 = sp + 8 * argc + 16: envp
    words += [0xF94007E3]  # x3 = argv[0]
    first = 8 * (count - 1)
    words += [
        0xD10003E1 | first << 10 if first >= 0 else 0x910023E1
    ]  # x1 = sp - first: the new argv, which ends with the old one

    def load(register: int, place: int) -> int:
        away = place - 4 * len(words)  # adr takes a signed number of 21 bits
        return 0x10000000 | (away & 3) << 29 | (away >> 2 & 0x7FFFF) << 5 | register

    if is_named:
        words += [load(3, places[-1])]
    words += [0xF9000023]  # str x3, [x1]
    for index, place in enumerate(places[1 : count + 1], 1):
        words += [load(4, place)]
        words += [0xF9000024 | index << 10]  # str x4, [x1, 8 * index]
    words += [load(0, places[0])]
    words += [0xD2801BA8, 0xD4000001]  # execve
    words += [0xD2800000 | _CANNOT_START << 5, 0xD2800BC8, 0xD4000001]  # exit_group
    return struct.pack(f"<{len(words)}I", *words)


_ASSEMBLERS: dict[int, Callable[[Sequence[int], int, bool], bytes]] = {
    _X86_64: _assemble_x86_64,
    _AARCH64: _assemble_aarch64,
}
