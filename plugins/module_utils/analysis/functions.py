# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Count calls of the kernel's functions, by name, in traces of the tracers function and function_graph."""

from __future__ import annotations

import bisect
import re
from collections import Counter
from typing import Iterable

# Event → field with the function's address. Of function_graph, only the entries count.
_ADDRESSES = {"ftrace:function": "ip", "ftrace:funcgraph_entry": "func", "ftrace:funcgraph_retaddr_entry": "func"}
_SYMBOL = re.compile(r"([0-9a-f]{1,16}) \w (\S{1,512})")


class Symbols:
    """The names of the kernel's functions by address, from KALLSYMS, the text of /proc/kallsyms."""

    def __init__(self, kallsyms: bytes) -> None:
        found = sorted((int(match[1], 16), match[2]) for match in _SYMBOL.finditer(kallsyms.decode("ascii", "replace")))
        self._names = [name for _start, name in found]
        self._starts = [start for start, _name in found]

    def find(self, address: int) -> tuple[str, int]:
        """Return the name of the function that holds ADDRESS, and the bytes from its start to ADDRESS; ('', 0) when it is not known."""
        place = bisect.bisect_right(self._starts, address) - 1
        # A kernel that hides addresses gives 0 for all of them.
        if place < 0 or not self._starts[place]:
            return "", 0
        return self._names[place], address - self._starts[place]

    def describe(self, address: int) -> str:
        """Return ADDRESS as function+0xoffset, or as a hexadecimal number when its function is not known."""
        name, offset = self.find(address)
        return f"{name}+{offset:#x}" if name else f"{address:#x}"


def name_functions(counts: Iterable[tuple[int, int]], kallsyms: bytes) -> dict[str, int]:
    """Return the number of calls by function, most first. COUNTS has pairs of an address, of 64 bits, and a number of calls.

    A function that KALLSYMS, the text of /proc/kallsyms, does not name has its address as name.
    """
    symbols = None
    named: Counter[str] = Counter()
    for signed, count in counts:
        symbols = symbols or Symbols(kallsyms)
        address = signed & (1 << 64) - 1
        name, _offset = symbols.find(address)
        named[name or f"{address:#x}"] += count
    return dict(named.most_common())
