# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hold the newest pages of one CPU back until all CPUs' events up to a time have come. Pure.

The pages of several CPUs come one after the other, and a call may begin on one CPU and end on another. So only the events up to a time at
which all buffers were read may be handled. A page that goes on behind that time is split in two. Source: the kernel's ring_buffer.c.
"""

from __future__ import annotations

import struct
import sys
from collections import deque

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import ring_pages

_HEADER = ring_pages.PAGE_HEADER_SIZE
_PADDING, _TIME_EXTEND = 29, 30
_LOW_TIME = (1 << 59) - 1  # an absolute time stamp has the lower bits only
_WORD = (1 << 64) - 1
_IS_LITTLE = sys.byteorder == "little"


class PageQueue:
    """Pages of PAGE_SIZE bytes of one CPU, in the order of writing."""

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._pages: deque[bytes] = deque()

    def put(self, pages: bytes, *, has_gap: bool) -> None:
        """Add PAGES, whole pages. HAS_GAP says that earlier pages were passed over."""
        size = self._page_size
        for start in range(0, len(pages) - size + 1, size):
            page = pages[start : start + size]
            self._pages.append(_mark_missed(page) if has_gap and not start else page)

    def take(self, until_ns: int | None) -> bytes:
        """Return and remove the pages with the events before UNTIL_NS, a raw time of the trace's clock; None: all pages."""
        taken = []
        while self._pages:
            page = self._pages[0]
            if until_ns is not None and _read_time(page) >= until_ns:
                break
            self._pages.popleft()
            if until_ns is not None and not (self._pages and _read_time(self._pages[0]) <= until_ns):
                page, rest = split_page(page, until_ns)
                if rest:
                    self._pages.appendleft(rest)
                    taken.append(page)
                    break
            taken.append(page)
        return b"".join(taken)


def _read_time(page: bytes) -> int:
    return int(struct.unpack_from("Q", page)[0])


def _mark_missed(page: bytes) -> bytes:
    """Return PAGE with the mark that an unknown number of events was lost before it."""
    size, _missed, _stored = ring_pages.unpack_commit(struct.unpack_from("Q", page, 8)[0])
    return page[:8] + struct.pack("Q", size | ring_pages.MISSED_EVENTS) + page[_HEADER:]


def split_page(page: bytes, until_ns: int) -> tuple[bytes, bytes]:
    """Return the part of PAGE with the events before UNTIL_NS, and the part with the others; b"" where there are none.

    The first part has the mark of lost events, for they are lost before it.
    """
    time = _read_time(page)
    size, missed, _stored = ring_pages.unpack_commit(struct.unpack_from("Q", page, 8)[0])
    at, end = _HEADER, min(_HEADER + size, len(page))
    before, start = time, at  # where the next event begins, with the time stamps that belong to it
    while at + 4 <= end:
        kind, delta, word = _read_entry(page, at)
        length = _find_length(kind, word)
        if (kind == _PADDING and delta == 0) or at + length > end:
            break
        if kind > _PADDING:
            wide = (word << 27) + delta
            time = (time + wide if kind == _TIME_EXTEND else wide & _LOW_TIME | time & ~_LOW_TIME) & _WORD
            at += length
            continue
        time = (time + delta) & _WORD
        if kind != _PADDING and time >= until_ns:
            rest = _make_page(before, page[start:end], 0, len(page))
            return _make_page(_read_time(page), page[_HEADER:start], missed * ring_pages.MISSED_EVENTS, len(page)), rest
        at += length
        before, start = time, at
    return page, b""


def _read_entry(page: bytes, at: int) -> tuple[int, int, int]:
    """Return kind and time delta of the entry AT a place of PAGE, and the word behind them, 0 where the page ends."""
    header = struct.unpack_from("I", page, at)[0]
    kind, delta = (header & 31, header >> 5) if _IS_LITTLE else (header >> 27, header & 0x7FFFFFF)
    return kind, delta, struct.unpack_from("I", page, at + 4)[0] if at + 8 <= len(page) else 0


def _find_length(kind: int, word: int) -> int:
    """Return the bytes of an entry of KIND with WORD behind its header."""
    if kind > _PADDING:
        return 8
    if kind in (0, _PADDING):
        return 4 + max(4, word + 3 & ~3)
    return 4 + 4 * kind


def _make_page(time: int, events: bytes, flags: int, size: int) -> bytes:
    return (struct.pack("QQ", time, len(events) | flags) + events).ljust(size, b"\0")
