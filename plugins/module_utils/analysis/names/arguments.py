# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show the arguments of a system call as strace does: flags and options by name, paths and descriptors where they are known. Pure.

Differences from strace: what pointers lead to is not known and so not shown, flags stand in the order of their values, and the arguments of
clone are in the kernel's order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.names.signatures import find_kinds
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.names.tables import (
    WORDS_OF_32_BITS,
    decode_flags,
    find_machine,
    get_table,
    name_value,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import mask

_INT = 32
_AT_FDCWD = -100
_SIGNAL_BITS = 0xFF  # of clone's flags: the signal that the child's end sends
_MAX_SIGNAL = 64
_PATHS_JOINED_BY = " -> "  # as call_paths.py joins the paths of a call that takes two
_OPTIONS = {0: "ip", 6: "tcp", 17: "udp", 41: "ipv6", 270: "netlink_option"}  # by level
_INTERNET = (2, 10)  # families
_NETLINK = 16
_FLAGS_OF_WORDS = ("mount|", "prot|", "clone|", "mremap|")  # the kernel takes other flags as ints
_HUGE_SHIFT = 26  # of mmap's flags: the logarithm of a huge page's size


@dataclass(frozen=True)
class _Call:
    """A call while its arguments are shown."""

    words: tuple[int, ...]  # the arguments, without a sign
    arch: str
    word_bits: int
    paths: tuple[str | None, ...]  # of the arguments of kind path, by their positions; None where not known
    fd_text: Callable[[int], str | None] | None

    def flags(self, table: str, value: int) -> str:
        return decode_flags(value, get_table(table, self.arch))

    def name(self, table: str, value: int) -> str | None:
        return name_value(value, get_table(table, self.arch))


def format_arguments(
    call: str,
    args: Sequence[int],
    arch: str,
    *,
    path: str | None = None,
    fd_text: Callable[[int], str | None] | None = None,
) -> str:
    """Return the arguments ARGS of the system call CALL as strace shows them, such as: 3</etc/passwd>, 0x7ffd1c2f, 4096.

    ARGS are the raw words, six or fewer, signed or not; those that the call does not have are left out. Those of a call that is not listed
    in signatures.py are shown as hexadecimal numbers, as many as there are. ARCH is the program's architecture as `uname -m` calls it: i686
    for a 32-bit program on x86_64. PATH is the path that the call was given; two paths are joined by ' -> '. FD_TEXT returns what a
    descriptor refers to, or None. Characters that are not printable are masked.
    """
    word_bits = 32 if find_machine(arch) in WORDS_OF_32_BITS else 64
    words = tuple(int(word) & ((1 << word_bits) - 1) for word in args)
    kinds = find_kinds(call, words, arch)
    if kinds is None:
        kinds = ("hex",) * len(words)
    shown = _Call(words, arch, word_bits, _place_paths(kinds, path), fd_text)
    return ", ".join(_show(shown, kind, i) for i, kind in enumerate(kinds[: len(words)]) if kind != "-")


def _place_paths(kinds: Sequence[str], path: str | None) -> tuple[str | None, ...]:
    """Return the texts of the arguments with KINDS: parts of PATH for those that are paths, None for the others.

    Where the parts are not as many as the arguments, as a path itself may hold an arrow, the first argument has the whole of PATH.
    """
    positions = [i for i, kind in enumerate(kinds) if kind == "path"]
    texts: list[str | None] = [None] * len(kinds)
    if path is not None and positions:
        parts = path.split(_PATHS_JOINED_BY) if len(positions) > 1 else [path]
        for position, part in zip(positions, parts if len(parts) == len(positions) else [path]):
            texts[position] = part
    return tuple(texts)


def _show(call: _Call, kind: str, position: int) -> str:
    """Return the text of CALL's argument at POSITION, which is of KIND."""
    word = call.words[position]
    if kind.endswith("|"):
        return call.flags(kind[:-1], word if kind in _FLAGS_OF_WORDS else word & 0xFFFFFFFF)
    if kind.endswith("="):
        return _show_value(call, kind[:-1], word)
    return _SHOWERS[kind](call, position)


def _sign(word: int, bits: int) -> int:
    """Return WORD's lowest BITS as a signed number."""
    low = word & ((1 << bits) - 1)
    return low - (1 << bits) if low >> (bits - 1) else low


def _show_value(call: _Call, table: str, word: int) -> str:
    """Return the name of an int in TABLE; a number in decimal when it is small, else in hexadecimal."""
    value, low = _sign(word, _INT), word & 0xFFFFFFFF
    name = call.name(table, value) or call.name(table, low)
    return name or (str(value) if -1000 < value < 1000 else hex(low))


def _show_int(call: _Call, position: int) -> str:
    return str(_sign(call.words[position], _INT))


def _show_uint(call: _Call, position: int) -> str:
    return str(call.words[position] & 0xFFFFFFFF)


def _show_long(call: _Call, position: int) -> str:
    return str(_sign(call.words[position], call.word_bits))


def _show_size(call: _Call, position: int) -> str:
    return str(call.words[position])


def _show_hex(call: _Call, position: int) -> str:
    return hex(call.words[position]) if call.words[position] else "0"


def _show_pointer(call: _Call, position: int) -> str:
    return hex(call.words[position]) if call.words[position] else "NULL"


def _show_path(call: _Call, position: int) -> str:
    """Return the path in quotes, with quotes and backslashes in it escaped; the pointer where the path is not known."""
    text = call.paths[position]
    if text is None:
        return _show_pointer(call, position)
    return '"' + mask(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _show_fd(call: _Call, position: int) -> str:
    number = _sign(call.words[position], _INT)
    text = call.fd_text(number) if call.fd_text and number >= 0 else None
    return str(number) if text is None else f"{number}<{mask(text)}>"


def _show_dirfd(call: _Call, position: int) -> str:
    is_cwd = _sign(call.words[position], _INT) == _AT_FDCWD
    return "AT_FDCWD" if is_cwd else _show_fd(call, position)


def _show_mode(call: _Call, position: int) -> str:
    """Return a mode of 16 bits in octal, at least three digits, with the type of the file where it has one."""
    mode = call.words[position] & 0xFFFF
    digits = ("0" + format(mode & 0o7777, "o")).zfill(3)
    if not mode & 0o170000:
        return digits
    return f"{call.name('file_type', mode & 0o170000) or oct(mode & 0o170000).replace('o', '')}|{digits}"


def _show_device(call: _Call, position: int) -> str:
    """Return a device number of 32 bits as major and minor number: new_decode_dev in the kernel's linux/kdev_t.h."""
    number = call.words[position] & 0xFFFFFFFF
    return f"makedev({(number & 0xFFF00) >> 8:#x}, {(number & 0xFF) | ((number >> 12) & 0xFFF00):#x})"


def _show_signal(call: _Call, position: int) -> str:
    return _name_signal(call, _sign(call.words[position], _INT))


def _name_signal(call: _Call, number: int) -> str:
    first = get_table("signal", call.arch)["SIGRTMIN"]
    if first < number <= _MAX_SIGNAL:
        return f"SIGRT_{number - first}"
    return call.name("signal", number) or str(number)


def _show_open_flags(call: _Call, position: int) -> str:
    modes = get_table("access_mode", call.arch)
    value = call.words[position] & 0xFFFFFFFF
    mode = name_value(value & modes["O_ACCMODE"], modes) or ""
    rest = value & ~modes["O_ACCMODE"]
    return f"{mode}|{call.flags('open', rest)}" if rest else mode


def _show_map_flags(call: _Call, position: int) -> str:
    """Return the flags of mmap: the kind of mapping, its flags, and the size of huge pages."""
    types, flags = get_table("map_type", call.arch), get_table("map", call.arch)
    value = call.words[position] & 0xFFFFFFFF
    kind = value & types["MAP_TYPE"]
    rest, huge = value & ~types["MAP_TYPE"], 0
    if value & flags["MAP_HUGETLB"]:
        huge = rest >> _HUGE_SHIFT
        rest &= (1 << _HUGE_SHIFT) - 1
    parts = [name_value(kind, types) or hex(kind)] + ([decode_flags(rest, flags)] if rest else [])
    return "|".join(parts + ([f"{huge}<<MAP_HUGE_SHIFT"] if huge else []))


def _show_clone_flags(call: _Call, position: int) -> str:
    signal = call.words[position] & _SIGNAL_BITS
    flags = call.words[position] & ~_SIGNAL_BITS
    parts = ([call.flags("clone", flags)] if flags else []) + ([_name_signal(call, signal)] if signal else [])
    return "|".join(parts) or "0"


def _show_socket_type(call: _Call, position: int) -> str:
    value = call.words[position] & 0xFFFFFFFF
    name = call.name("socket_type", value & 0xF) or hex(value & 0xF)
    return f"{name}|{call.flags('socket_flag', value & ~0xF)}" if value & ~0xF else name


def _show_protocol(call: _Call, position: int) -> str:
    family = call.words[0] & 0xFFFFFFFF
    table = "protocol" if family in _INTERNET else "netlink" if family == _NETLINK else None
    return _show_value(call, table, call.words[position]) if table else _show_int(call, position)


def _show_level(call: _Call, position: int) -> str:
    level = _sign(call.words[position], _INT)
    return call.name("level_socket", level) or call.name("level", level) or str(level)


def _show_option(call: _Call, position: int) -> str:
    level = _sign(call.words[position - 1], _INT)
    table = "so" if call.name("level_socket", level) else _OPTIONS.get(level)
    return _show_value(call, table, call.words[position]) if table else _show_int(call, position)


def _show_futex_operation(call: _Call, position: int) -> str:
    """Return the operation of futex, and the flag that may stand beside it."""
    clock = get_table("futex_flag", call.arch)["FUTEX_CLOCK_REALTIME"]
    value = call.words[position] & 0xFFFFFFFF
    name = call.name("futex", value & ~clock) or hex(value & ~clock)
    return f"{name}|{call.flags('futex_flag', clock)}" if value & clock else name


def _show_bitset(call: _Call, position: int) -> str:
    value = call.words[position] & 0xFFFFFFFF
    return "FUTEX_BITSET_MATCH_ANY" if value == 0xFFFFFFFF else hex(value)


def _show_pages(call: _Call, position: int) -> str:
    """Return the offset that mmap2 takes in units of 4096 bytes: mmap2(2)."""
    return hex(call.words[position] << 12) if call.words[position] else "0"


_SHOWERS: dict[str, Callable[[_Call, int], str]] = {
    "bitset": _show_bitset,
    "clone_flags": _show_clone_flags,
    "dev": _show_device,
    "dirfd": _show_dirfd,
    "fd": _show_fd,
    "futex_op": _show_futex_operation,
    "hex": _show_hex,
    "int": _show_int,
    "level": _show_level,
    "long": _show_long,
    "mmap_flags": _show_map_flags,
    "mode": _show_mode,
    "open_flags": _show_open_flags,
    "option": _show_option,
    "pages": _show_pages,
    "path": _show_path,
    "protocol": _show_protocol,
    "ptr": _show_pointer,
    "sig": _show_signal,
    "size": _show_size,
    "socket_type": _show_socket_type,
    "uint": _show_uint,
}
