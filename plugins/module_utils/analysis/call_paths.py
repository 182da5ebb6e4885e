# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the paths that system calls were given, by events of probes, or by the calls' own events where these hold texts.

A path belongs to the next call of its family that ends in its thread, for a thread makes one call at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Batch
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.formats import EventFormat, Field
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.path_calls import (
    CALL_OF_KERNEL_NAME,
    FAMILIES,
    FAMILY_OF_CALL,
    FAMILY_OF_FUNCTION,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.probes import GROUP_PREFIX, PATH_PREFIX

if TYPE_CHECKING:
    from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import Ints

_ENTER = "sys_enter_"
_FAMILY_NUMBERS = {name: number for number, name in enumerate(FAMILIES)}


def find_family(event: EventFormat) -> int | None:
    """Return the number of the family of calls whose paths EVENT holds; None when EVENT holds no paths."""
    if event.system.startswith(GROUP_PREFIX) and event.name.startswith(PATH_PREFIX):
        name = event.name[len(PATH_PREFIX) :]
    elif event.system == "syscalls" and event.name.startswith(_ENTER):
        name = event.name[len(_ENTER) :]
        name = CALL_OF_KERNEL_NAME.get(name, name)
    else:
        return None
    family = FAMILY_OF_CALL.get(name) or FAMILY_OF_FUNCTION.get(name)
    return _FAMILY_NUMBERS[family] if family and list_fields(event) else None


def list_fields(event: EventFormat) -> list[Field]:
    """Return the fields of EVENT that are texts of variable length, in their order."""
    return [field for field in event.fields.values() if field.is_dynamic]


class PathEvents:
    """The paths that threads gave to system calls. Call `feed` with all batches, then `find`.

    FORMATS are the trace's event formats by system:name.
    """

    def __init__(self, formats: Mapping[str, EventFormat]) -> None:
        families = ((event, find_family(event)) for event in formats.values())
        self._events = [(event, family) for event, family in families if family is not None]
        self._numbers: dict[str, int] = {}
        # Per batch: threads, times, families, numbers of paths; one entry per event.
        self._parts: list[tuple[Ints, Ints, Ints, Ints]] = []

    @property
    def names(self) -> list[str]:
        """The paths in the order of their numbers; several paths of one call are joined by ' -> '."""
        return list(self._numbers)

    def feed(self, batch: Batch) -> None:
        """Add the paths in the events of BATCH."""
        for event, family in self._events:
            events = batch.select(event.id)
            if not events.size:
                continue
            columns = [batch.texts(events, field) for field in list_fields(event)]
            paths = [self._numbers.setdefault(" -> ".join(row), len(self._numbers)) for row in zip(*columns)]
            self._parts.append(
                (batch.tids[events], batch.times[events], np.full(events.size, family), np.array(paths, np.int64))
            )

    def find(self, tids: Ints, ends: Ints, numbers: Ints, syscalls: Mapping[int, str]) -> Ints:
        """Return for each call the number of its path, an index of `names`; -1 where no path is known.

        TIDS are the threads that began the calls, ENDS the times of the calls' ends, NUMBERS the calls' numbers, with names in SYSCALLS.
        """
        found = np.full(tids.size, -1, np.int64)
        if not self._parts or not tids.size:
            return found
        own_tids, times, families, paths = (np.concatenate(column) for column in zip(*self._parts))
        calls_families = _find_families(numbers, syscalls)
        # Sorted by thread and family, and then by time, the event with a path stands directly before the end of its call.
        lines = np.concatenate([own_tids, tids]) * len(FAMILIES) + np.concatenate([families, calls_families])
        is_end = np.concatenate([np.zeros(times.size, np.int64), np.ones(ends.size, np.int64)])
        order = np.lexsort((is_end, np.concatenate([times, ends]), lines))
        before, after = order[:-1], order[1:]
        is_pair = (is_end[before] == 0) & (is_end[after] == 1) & (lines[before] == lines[after])
        calls = after[is_pair] - times.size
        is_known = calls_families[calls] >= 0
        found[calls[is_known]] = paths[before[is_pair]][is_known]
        return found


def _find_families(numbers: Ints, syscalls: Mapping[int, str]) -> Ints:
    """Return the number of the family of each of NUMBERS; -1 for calls that take no path."""
    kinds, places = np.unique(numbers, return_inverse=True)
    names = (FAMILY_OF_CALL.get(syscalls.get(number, "")) for number in kinds.tolist())
    families = np.array([_FAMILY_NUMBERS[name] if name else -1 for name in names], np.int64)
    return families[places.reshape(-1)]
