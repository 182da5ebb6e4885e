# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read pages of the kernel's ring buffer: their headers and their number of events. Source: include/linux/ring_buffer.h."""

from __future__ import annotations

import struct
import sys

PAGE_HEADER_SIZE = 16
_COMMIT_MASK = (1 << 20) - 1
MISSED_EVENTS = 1 << 31
_MISSED_STORED = 1 << 30
# Values of an entry's type_len that do not mean an event.
PADDING, TIME_EXTEND, TIME_STAMP = 29, 30, 31


def unpack_commit(commit: int) -> tuple[int, bool, bool]:
    """Split a page's COMMIT word.

    Returns the bytes of events, True if events were lost before them, and True if the number of lost events is stored behind them.
    """
    return commit & _COMMIT_MASK, bool(commit & MISSED_EVENTS), bool(commit & _MISSED_STORED)


def read_loss(page: bytes | memoryview) -> tuple[int, bool]:
    """Return how many events were lost before PAGE, as the kernel noted it, and whether that number is known."""
    commit = struct.unpack_from("Q", page, 8)[0]
    size, missed, stored = unpack_commit(commit)
    if not missed:
        return 0, True
    if not stored:
        return 0, False
    return int(struct.unpack_from("Q", page, PAGE_HEADER_SIZE + size)[0]), True


def count_events(pages: bytes, page_size: int) -> int:
    """Return the number of events in PAGES, whole pages of PAGE_SIZE bytes; padding and separate time stamps do not count."""
    count = 0
    for start in range(0, len(pages) - page_size + 1, page_size):
        size, _missed, _stored = unpack_commit(struct.unpack_from("Q", pages, start + 8)[0])
        place = start + PAGE_HEADER_SIZE
        end = min(place + size, start + page_size)
        while place + 4 <= end:
            word = struct.unpack_from("I", pages, place)[0]
            is_little = sys.byteorder == "little"
            kind, delta = (word & 31, word >> 5) if is_little else (word >> 27, word & 0x7FFFFFF)
            if kind == PADDING and delta == 0:
                break  # up to the page's end
            if kind in (TIME_EXTEND, TIME_STAMP):
                place += 8
                continue
            if kind in (0, PADDING):
                if place + 8 > end:
                    break
                length = struct.unpack_from("I", pages, place + 4)[0]
                place += 4 + (length + 3 & ~3)
            else:
                place += 4 + 4 * kind
            count += kind != PADDING
    return count
