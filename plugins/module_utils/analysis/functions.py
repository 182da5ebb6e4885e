# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Count calls of the kernel's functions, by name, in traces of the tracers function and function_graph."""

from __future__ import annotations

import bisect
import re
from collections import Counter

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Batch
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.formats import EventFormat
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np

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


class FunctionCounts:
    """The number of calls of each of the kernel's functions. Call `feed` with all batches, then `names`."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def feed(self, batch: Batch, formats: dict[str, EventFormat]) -> None:
        """Count the function events of BATCH; FORMATS are the trace's event formats by system:name."""
        for event, name in _ADDRESSES.items():
            if event in formats:
                found = batch.integers(batch.select(formats[event].id), formats[event].field(name)).view(np.uint64)
                addresses, counts = np.unique(found, return_counts=True)
                self._counts.update(dict(zip(addresses.tolist(), counts.tolist())))

    def names(self, kallsyms: bytes) -> dict[str, int]:
        """Return the number of calls by function, most first.

        A function that KALLSYMS, the text of /proc/kallsyms, does not name has its address as name.
        """
        if not self._counts:
            return {}
        symbols = Symbols(kallsyms)
        named: Counter[str] = Counter()
        for address, count in self._counts.items():
            name, _offset = symbols.find(address)
            named[name or f"{address:#x}"] += count
        return dict(named.most_common())
