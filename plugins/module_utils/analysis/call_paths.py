# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which paths system calls were given: from events of probes, or from the calls' own events where these have texts, to the calls.

What a probe saw belongs to the next call of its family in its thread: in one thread there is no other between them.
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
    """The number of the family of calls that EVENT has paths of; None where it has none."""
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
    """The fields of EVENT that are texts of any length, in their order."""
    return [one for one in event.fields.values() if one.is_dynamic]


class PathEvents:
    """What paths threads gave to which calls. Feed it all batches, then ask for the calls' paths.

    NAMES has the paths by number.
    """

    def __init__(self, formats: Mapping[str, EventFormat]) -> None:
        families = ((one, find_family(one)) for one in formats.values())
        self._events = [(one, family) for one, family in families if family is not None]
        self._numbers: dict[str, int] = {}
        # Thread, time, family, number of the path, one array of each for a batch.
        self._parts: list[tuple[Ints, Ints, Ints, Ints]] = []

    @property
    def names(self) -> list[str]:
        """The paths by number; of a call with several they stand beside each other."""
        return list(self._numbers)

    def feed(self, batch: Batch) -> None:
        """Take the events of BATCH into account."""
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
        """The number of the path of each call, -1 where none is known: threads, times of ends and numbers of the calls,
        SYSCALLS the names of these numbers."""
        found = np.full(tids.size, -1, np.int64)
        if not self._parts or not tids.size:
            return found
        own_tids, times, families, paths = (np.concatenate(column) for column in zip(*self._parts))
        calls_families = _find_families(numbers, syscalls)
        # One line of events for each thread and family: a path, and then the end of its call.
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
    """The family of each of NUMBERS; -1 for calls that take no path."""
    kinds, places = np.unique(numbers, return_inverse=True)
    names = (FAMILY_OF_CALL.get(syscalls.get(number, "")) for number in kinds.tolist())
    families = np.array([_FAMILY_NUMBERS[name] if name else -1 for name in names], np.int64)
    return families[places.reshape(-1)]
