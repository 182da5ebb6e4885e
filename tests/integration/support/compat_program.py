# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a 32-bit program for x86_64 without a compiler. The program makes an exactly known number of system calls and exits.

Source: elf(5); Intel's Software Developer's Manual, volume 2, for the few instructions.
"""

from __future__ import annotations

import struct

_BASE = 0x08048000
_HEADERS = 52 + 32
_TEXT = b"/nonesuch\0"
_PATH = _BASE + _HEADERS
_BAD_FD = 99
# Name → 32-bit number, first argument, count. In 64-bit programs these numbers mean other calls: fstat, writev, lstat and others.
_CALLS = {"open": (5, _PATH, 70), "getpid": (20, 0, 30), "close": (6, _BAD_FD, 20), "connect": (362, _BAD_FD, 10)}
COUNTS: dict[str, dict[str, object]] = {
    "open": {"calls": 70, "errors": {"ENOENT": 70}},
    "getpid": {"calls": 30, "errors": {}},
    "close": {"calls": 20, "errors": {"EBADF": 20}},
    "connect": {"calls": 10, "errors": {"EBADF": 10}},
}


def make() -> bytes:
    """Return the program, an ELF file."""
    code = b"".join(_make_loop(*call) for call in _CALLS.values())
    code += b"\xb8\x01\0\0\0" + b"\x31\xdb" + b"\xcd\x80"  # exit(0)
    size = _HEADERS + len(_TEXT) + len(code)
    identity = b"\x7fELF" + bytes([1, 1, 1]) + bytes(9)
    header = identity + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, _PATH + len(_TEXT), 52, 0, 0, 52, 32, 1, 0, 0, 0)
    segment = struct.pack("<IIIIIIII", 1, 0, _BASE, _BASE, size, size, 5, 0x1000)
    return header + segment + _TEXT + code


def _make_loop(number: int, argument: int, times: int) -> bytes:
    """Return the code of a loop that makes the system call NUMBER with ARGUMENT TIMES times.

    mov ebp, TIMES; again: mov eax, NUMBER; mov ebx, ARGUMENT; xor ecx, ecx; xor edx, edx; int 0x80; dec ebp; jnz again
    """
    body = b"\xb8" + struct.pack("<I", number) + b"\xbb" + struct.pack("<I", argument)
    body += b"\x31\xc9" + b"\x31\xd2" + b"\xcd\x80" + b"\x4d"
    return b"\xbd" + struct.pack("<I", times) + body + b"\x75" + struct.pack("b", -len(body) - 2)
