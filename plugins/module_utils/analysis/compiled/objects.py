# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Number the objects of system calls: paths, peers and what else descriptors refer to. Equal objects have one number."""

from __future__ import annotations

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.codes import (
    ARENA,
    OBJECTS,
    OTHER_OBJECTS,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.jit import compile_part
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np

_MAX_TEXT = 4096


@compile_part
def number_object(state, kind, source, start, size):
    """Return the number of the object of KIND whose bytes are SIZE bytes of SOURCE from START on.

    Without room for another object, it is OTHER_OBJECTS.
    """
    size = min(max(size, 0), _MAX_TEXT)
    mask = state.object_index.size - 1
    place = np.int64(kind * 31 + 7)
    for index in range(start, start + size):
        place = ((place * 33) ^ np.int64(source[index])) & 0x3FFFFFFFFFFFFFF
    place = (place ^ (place >> 23)) & mask
    objects, arena, scalars = state.objects, state.arena, state.scalars
    while state.object_index[place]:
        found = state.object_index[place] - 1
        if objects[found, 0] == kind and objects[found, 2] == size:
            own = objects[found, 1]
            is_equal = True
            for index in range(size):
                if arena[own + index] != source[start + index]:
                    is_equal = False
                    break
            if is_equal:
                return np.int64(found)
        place = (place + 1) & mask
    number, used = scalars[OBJECTS], scalars[ARENA]
    if number >= objects.shape[0] or used + size > arena.size:
        return np.int64(OTHER_OBJECTS)
    for index in range(size):
        arena[used + index] = source[start + index]
    objects[number, 0], objects[number, 1], objects[number, 2] = kind, used, size
    state.object_index[place] = number + 1
    scalars[OBJECTS], scalars[ARENA] = number + 1, used + size
    return np.int64(number)


@compile_part
def number_pair(state, kind, first, second):
    """Return the number of the object of KIND that two numbers of 32 bits describe."""
    text = state.scratch
    for index in range(4):
        text[index] = (first >> (8 * index)) & 0xFF
        text[4 + index] = (second >> (8 * index)) & 0xFF
    return number_object(state, kind, text, 0, 8)
