# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hold the newest pages of one CPU back until all CPUs' events up to a time have come. Pure.

The pages of several CPUs come one after the other, and a call may begin on one CPU and end on another. So only the events up to a time at
which all buffers were read may be handled. A page that goes on behind that time is split in two. Source: the kernel's ring_buffer.c.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import ring_pages, trace_dat

_PADDING, _TIME_EXTEND = 29, 30
_LOW_TIME = (1 << 59) - 1  # an absolute time stamp has the lower bits only
_WORD = (1 << 64) - 1


@dataclass(frozen=True)
class PageForm:
    """How a kernel writes a page of SIZE bytes: a header of HEADER_SIZE bytes and the events, all numbers in ORDER, little or big.

    The header is a time of 8 bytes and, in COMMIT_SIZE bytes (4 or 8), the size of the events.
    """

    size: int
    header_size: int
    commit_size: int
    order: str

    def read(self, page: bytes, at: int, size: int = 4) -> int:
        """Return the number of SIZE bytes AT a place of PAGE."""
        return int.from_bytes(page[at : at + size], "little" if self.order == "little" else "big")

    def read_time(self, page: bytes) -> int:
        """Return the time at which PAGE begins, in units of the trace's clock."""
        return self.read(page, 0, 8)

    def read_commit(self, page: bytes) -> tuple[int, bool]:
        """Return the bytes of events on PAGE, and True if events were lost before them."""
        size, missed, _stored = ring_pages.unpack_commit(self.read(page, 8, self.commit_size))
        return size, missed

    def make_page(self, time: int, events: bytes, *, has_loss: bool) -> bytes:
        """Return a page that begins at TIME with EVENTS. HAS_LOSS marks that an unknown number of events was lost before them."""
        commit = len(events) | has_loss * ring_pages.MISSED_EVENTS
        header = struct.pack(trace_dat.find_mark(self.order) + ("QQ" if self.commit_size == 8 else "QI"), time, commit)
        return (header.ljust(self.header_size, b"\0") + events).ljust(self.size, b"\0")

    def read_entry(self, page: bytes, at: int) -> tuple[int, int, int]:
        """Return kind and time delta of the entry AT a place of PAGE, and the word behind them, 0 where the page ends."""
        header = self.read(page, at)
        kind, delta = (header & 31, header >> 5) if self.order == "little" else (header >> 27, header & 0x7FFFFFF)
        return kind, delta, self.read(page, at + 4) if at + 8 <= len(page) else 0


class PageQueue:
    """Pages of one CPU, in the order of writing, which a kernel writes in FORM."""

    def __init__(self, form: PageForm) -> None:
        self._form = form
        self._pages: deque[bytes] = deque()

    def put(self, pages: bytes, *, has_gap: bool) -> None:
        """Add PAGES, whole pages. HAS_GAP says that earlier pages were passed over."""
        form = self._form
        for start in range(0, len(pages) - form.size + 1, form.size):
            page = pages[start : start + form.size]
            if has_gap and not start:
                size, _missed = form.read_commit(page)
                page = form.make_page(form.read_time(page), page[form.header_size :][:size], has_loss=True)
            self._pages.append(page)

    def take(self, until_ns: int | None) -> bytes:
        """Return and remove the pages with the events before UNTIL_NS, a raw time of the trace's clock; None: all pages."""
        taken = []
        read_time = self._form.read_time
        while self._pages:
            page = self._pages[0]
            if until_ns is not None and read_time(page) >= until_ns:
                break
            self._pages.popleft()
            if until_ns is not None and not (self._pages and read_time(self._pages[0]) <= until_ns):
                page, rest = split_page(page, self._form, until_ns)
                if rest:
                    self._pages.appendleft(rest)
                    taken.append(page)
                    break
            taken.append(page)
        return b"".join(taken)


def split_page(page: bytes, form: PageForm, until_ns: int) -> tuple[bytes, bytes]:
    """Return the part of PAGE in FORM with the events before UNTIL_NS, and the part with the others; b"" where there are none.

    The first part has the mark of lost events, for they are lost before it.
    """
    time = form.read_time(page)
    size, missed = form.read_commit(page)
    at, end = form.header_size, min(form.header_size + size, len(page))
    before, start = time, at  # where the next event begins, with the time stamps that belong to it
    while at + 4 <= end:
        kind, delta, word = form.read_entry(page, at)
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
            rest = form.make_page(before, page[start:end], has_loss=False)
            return form.make_page(form.read_time(page), page[form.header_size : start], has_loss=missed), rest
        at += length
        before, start = time, at
    return page, b""


def _find_length(kind: int, word: int) -> int:
    """Return the bytes of an entry of KIND with WORD behind its header."""
    if kind > _PADDING:
        return 8
    if kind in (0, _PADDING):
        return 4 + max(4, word + 3 & ~3)
    return 4 + 4 * kind
