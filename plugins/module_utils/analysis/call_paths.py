# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the events that hold the paths of system calls: events of probes, or the calls' own events where these hold texts.

A path belongs to the next call of its family that ends in its thread, for a thread makes one call at a time.
"""

from __future__ import annotations

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.formats import EventFormat, Field
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.path_calls import (
    CALL_OF_KERNEL_NAME,
    FAMILIES,
    FAMILY_OF_CALL,
    FAMILY_OF_FUNCTION,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.probes import GROUP_PREFIX, PATH_PREFIX

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
