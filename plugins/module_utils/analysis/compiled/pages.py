# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decode the events of ring buffer pages, one CPU at a time.

Source: the kernel's ring_buffer.c and events/header_event (type_len and its special values).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.codes import (
    AT,
    BASE,
    CLOCK,
    COMMIT_SIZE,
    CPU_STATE,
    FACTOR,
    FILLED,
    HAS_EVENT,
    HAS_GAP,
    HEAD_TIME,
    HEADER_SIZE,
    IS_MISSED,
    LENGTH,
    NEEDS_PAGES,
    PAGE,
    PAGE_END,
    PAGE_SIZE,
    RECORD,
    SHIFT,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.jit import compile_inline, compile_part
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np

if TYPE_CHECKING:
    import numpy.typing as npt

# Orders of the bytes of a number: little-endian as on this machine, little-endian on a big-endian machine, and big-endian.
NATIVE, LITTLE, BIG = range(3)
_PADDING = 29
_TIME_EXTEND = 30
_DELTA_BITS = 27
_DELTA_MASK = (1 << 27) - 1
_COMMIT_MASK = (1 << 20) - 1
_MISSED_EVENTS = 1 << 31
# An absolute time stamp carries the lower 59 bits only.
_LOW_TIME_BITS = (1 << 59) - 1
# Of damaged pages. NEVER and what stands for the end of all times lie outside, and a difference of two times does not overflow.
_LAST_TIME = (1 << 62) - 1


class Pages(NamedTuple):
    """The pages that are in memory, a slot for each CPU, and the order of the bytes in them."""

    data: npt.NDArray[np.uint8]
    words: npt.NDArray[np.uint32]  # another view of DATA
    order: int  # NATIVE, LITTLE or BIG


@compile_inline
def read_number(pages, at, size):
    """Return the unsigned number of SIZE bytes at offset AT of PAGES; of 8 bytes, as a signed one."""
    if pages.order == NATIVE and at & 3 == 0:
        if size == 4:
            return np.int64(pages.words[at >> 2])
        if size == 8:
            return np.int64(pages.words[at >> 2]) | (np.int64(pages.words[(at >> 2) + 1]) << 32)
    number = np.int64(0)
    for index in range(size):
        place = at + index if pages.order == BIG else at + size - 1 - index
        number = (number << 8) | np.int64(pages.data[place])
    return number


@compile_inline
def read_signed(pages, at, size):
    """Return the signed number of SIZE bytes at offset AT of PAGES."""
    number = read_number(pages, at, size)
    if size < 8 and number >> (8 * size - 1):
        number -= np.int64(1) << (8 * size)
    return number


@compile_inline
def scale_time(raw, factor, shift):
    """Return RAW * FACTOR >> SHIFT without products of more than 64 bits, as the kernel's mul_u64_u32_shr computes it."""
    if factor == 1 and shift == 0:
        return raw
    wide, right = np.uint64(factor), np.uint64(shift)
    low, high = np.uint64(raw & 0xFFFFFFFF), np.uint64((raw >> 32) & 0xFFFFFFFF)
    return np.int64((low * wide >> right) + (high * wide << (np.uint64(32) - right)))


@compile_part
def advance(cursors, cpu, pages, scalars):
    """Find the next event of CPU, and return True. Without an event on the CPU's pages, set its state to NEEDS_PAGES and return False.

    A damaged page ends at the first event that does not fit into it; no byte outside the page is read for its events.
    """
    cursor = cursors[cpu]
    while True:
        at, end = cursor[AT], cursor[PAGE_END]
        if at + 4 > end:
            if not _open_page(cursor, pages, scalars):
                cursor[CPU_STATE] = NEEDS_PAGES
                return False
            continue
        header = read_number(pages, at, 4)
        if pages.order == BIG:
            kind, delta = header >> _DELTA_BITS, header & _DELTA_MASK
        else:
            kind, delta = header & 31, header >> 5
        is_wide = (kind == 0 or kind >= _PADDING) and at + 8 <= end
        word = read_number(pages, at + 4, 4) if is_wide else np.int64(0)
        record, length, size = at + 4, kind * 4, 4 + kind * 4
        if kind == 0:
            record, length, size = at + 8, word - 4, 4 + word
        elif kind == _PADDING:
            size = 4 + word
        elif kind > _PADDING:
            size = np.int64(8)
        is_data = kind < _PADDING
        # Padding without a delta ends a page; an event that reaches beyond the page's end is damage.
        if (kind == _PADDING and delta == 0) or size < 4 or at + size > end or (is_data and length < 8):
            cursor[AT] = end
            continue
        cursor[CLOCK] = _move_clock(cursor[CLOCK], kind, delta, word)
        cursor[AT] = at + ((size + 3) & ~3)
        if is_data:
            time = scale_time(cursor[CLOCK], scalars[FACTOR], scalars[SHIFT])
            cursor[HEAD_TIME] = min(max(time, np.int64(0)), np.int64(_LAST_TIME))
            cursor[RECORD], cursor[LENGTH] = record, length
            cursor[HAS_GAP], cursor[IS_MISSED] = cursor[IS_MISSED], 0
            cursor[CPU_STATE] = HAS_EVENT
            return True


@compile_inline
def _move_clock(time, kind, delta, word):
    """Return the raw time of an event of KIND behind TIME."""
    if kind <= _PADDING:
        return time + delta
    wide = (word << _DELTA_BITS) + delta
    return time + wide if kind == _TIME_EXTEND else wide & _LOW_TIME_BITS | (time & ~_LOW_TIME_BITS)


@compile_part
def _open_page(cursor, pages, scalars):
    """Move CURSOR to the beginning of its next page, and return True; False if its slot has no further page."""
    page = cursor[PAGE] + scalars[PAGE_SIZE]
    if page + scalars[PAGE_SIZE] > cursor[FILLED]:
        return False
    start = cursor[BASE] + page
    commit = read_number(pages, start + 8, scalars[COMMIT_SIZE])
    if commit & _MISSED_EVENTS:
        cursor[IS_MISSED] = 1
    cursor[PAGE] = page
    cursor[CLOCK] = read_number(pages, start, 8)
    cursor[AT] = start + scalars[HEADER_SIZE]
    cursor[PAGE_END] = min(cursor[AT] + (commit & _COMMIT_MASK), start + scalars[PAGE_SIZE])
    return True
