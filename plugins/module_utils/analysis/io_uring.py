# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Count the requests that programs made through io_uring, for which they make no system calls: io_uring(7)."""

from __future__ import annotations

from collections import Counter
from typing import Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Batch
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.formats import EventFormat
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.profiles import (
    IO_URING_CREATE,
    IO_URING_REQUESTS,
)

_SETUP_SQPOLL = 2


class RingRequests:
    """The requests through io_uring in a trace. Call `feed` with all batches, then read the attributes.

    REQUESTS counts the requests by operation. HAS_POLLED is True if a program had a kernel thread fetch its requests (SQPOLL): no trace
    holds the events of that thread.
    """

    def __init__(self, formats: Mapping[str, EventFormat]) -> None:
        self._submits = [formats[event] for event in IO_URING_REQUESTS if event in formats]
        self._create = formats.get(IO_URING_CREATE)
        self.requests: Counter[str] = Counter()
        self.has_polled = False

    def feed(self, batch: Batch) -> None:
        """Count the requests in BATCH."""
        for submit in self._submits:
            events = batch.select(submit.id)
            if not events.size:
                continue
            codes = batch.integers(events, submit.field("opcode"))
            for code, first, count in zip(
                *(column.tolist() for column in np.unique(codes, return_index=True, return_counts=True))
            ):
                text = submit.fields.get("op_str")
                name = batch.text(int(events[first]), text) if text else ""
                self.requests[name or f"operation {code}"] += count
        if self._create:
            events = batch.select(self._create.id)
            flags = batch.integers(events, self._create.field("flags"))
            self.has_polled |= bool((flags & _SETUP_SQPOLL).any())
