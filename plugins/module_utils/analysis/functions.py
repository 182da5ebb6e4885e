# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Functions of the kernel in a trace of the tracers function and function_graph, by name."""

from __future__ import annotations

import bisect
import re
from collections import Counter

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Batch
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.formats import EventFormat
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np

# Event → field with the function's address; of a graph the entries.
_ADDRESSES = {"ftrace:function": "ip", "ftrace:funcgraph_entry": "func", "ftrace:funcgraph_retaddr_entry": "func"}
_SYMBOL = re.compile(r"([0-9a-f]{1,16}) \w (\S{1,512})")


class Symbols:
    """The kernel's functions by their addresses, from KALLSYMS, the text of /proc/kallsyms."""

    def __init__(self, kallsyms: bytes) -> None:
        found = sorted((int(match[1], 16), match[2]) for match in _SYMBOL.finditer(kallsyms.decode("ascii", "replace")))
        self._names = [name for _start, name in found]
        self._starts = [start for start, _name in found]

    def find(self, address: int) -> tuple[str, int]:
        """The function that ADDRESS is in and how many bytes behind its start; no name and 0 where that is not known."""
        place = bisect.bisect_right(self._starts, address) - 1
        # Where addresses are hidden all of them are 0.
        if place < 0 or not self._starts[place]:
            return "", 0
        return self._names[place], address - self._starts[place]

    def describe(self, address: int) -> str:
        """ADDRESS as function+offset, or as a number."""
        name, offset = self.find(address)
        return f"{name}+{offset:#x}" if name else f"{address:#x}"


class FunctionCounts:
    """How often functions were called. Feed it all batches, then ask for `names`."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def feed(self, batch: Batch, formats: dict[str, EventFormat]) -> None:
        """Take the function events of BATCH into account."""
        for event, name in _ADDRESSES.items():
            if event in formats:
                found = batch.integers(batch.select(formats[event].id), formats[event].field(name)).view(np.uint64)
                addresses, counts = np.unique(found, return_counts=True)
                self._counts.update(dict(zip(addresses.tolist(), counts.tolist())))

    def names(self, kallsyms: bytes) -> dict[str, int]:
        """Function → calls, most first; by address where KALLSYMS, the text of /proc/kallsyms, does not know it."""
        if not self._counts:
            return {}
        symbols = Symbols(kallsyms)
        named: Counter[str] = Counter()
        for address, count in self._counts.items():
            name, _offset = symbols.find(address)
            named[name or f"{address:#x}"] += count
        return dict(named.most_common())
