# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Name the kernel's constants: flags, modes, signals and options. Pure.

The tables come from the kernel's uapi headers: uapi.py lists them, and tools/generate_uapi_names.py makes it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.names.uapi import TABLES
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.names.uapi_differences import DIFFERENCES

WORDS_OF_32_BITS = ("armv7l", "i686")
_ABSENT = "-"
_OTHER_NAMES = {
    "amd64": "x86_64",
    "arm64": "aarch64",
    "ppc64": "ppc64le",
    "i386": "i686",
    "i486": "i686",
    "i586": "i686",
}
_ALL_BITS = (1 << 64) - 1


def find_compat_machine(arch: str) -> str:
    """Return the architecture of 32-bit programs on machines of the architecture ARCH; ARCH where it runs none."""
    return {"x86_64": "i686", "aarch64": "armv7l"}.get(find_machine(arch), arch)


def find_machine(arch: str) -> str:
    """Return the architecture ARCH, as `uname -m` or Debian calls it, by the name that the tables have; ARCH when it has no tables."""
    if arch.startswith("arm") and arch != "arm64":
        return "armv7l"
    return _OTHER_NAMES.get(arch, arch)


@lru_cache(maxsize=None)
def _read_table(name: str, machine: str) -> Mapping[str, int]:
    words = (TABLES[name] + " " + DIFFERENCES.get(machine, {}).get(name, "")).split()
    table = {constant: number for constant, _sign, number in (word.partition("=") for word in words)}
    return {constant: int(number, 0) for constant, number in table.items() if number != _ABSENT}


def get_table(name: str, arch: str = "x86_64") -> Mapping[str, int]:
    """Return the table NAME, one of uapi.TABLES, on the architecture ARCH: name of the constant → value.

    An architecture that has no differences listed has the values of x86_64. Raises KeyError when there is no such table.
    """
    machine = find_machine(arch)
    return _read_table(name, machine if machine in DIFFERENCES else "")


def name_value(value: int, table: Mapping[str, int]) -> str | None:
    """Return the name that TABLE gives to VALUE; None when it gives none."""
    return next((name for name, number in table.items() if number == value), None)


def decode_flags(value: int, table: Mapping[str, int]) -> str:
    """Return the names of VALUE's flags in TABLE, joined by |, smallest first, and then the bits without a name as one hex number.

    A name of several bits stands for them only where all of them are set. No flag is 0, or the name that TABLE gives to 0.
    Of a negative VALUE, the lowest 64 bits count.
    """
    rest = value & _ALL_BITS
    if not rest:
        return name_value(0, table) or "0"
    found = []
    for name, number in sorted(table.items(), key=lambda item: -bin(item[1]).count("1")):
        if number > 0 and rest & number == number:
            rest &= ~number
            found.append((number, name))
    return "|".join([name for _number, name in sorted(found)] + ([hex(rest)] if rest else []))
