# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What programs asked for through io_uring, where no system call is made for it: io_uring(7)."""

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
    """How many requests there were. Feed it all batches, then look at REQUESTS (operation → number).

    HAS_POLLED tells that somebody had the kernel fetch requests by a thread of its own, which is in no trace.
    """

    def __init__(self, formats: Mapping[str, EventFormat]) -> None:
        self._submits = [formats[event] for event in IO_URING_REQUESTS if event in formats]
        self._create = formats.get(IO_URING_CREATE)
        self.requests: Counter[str] = Counter()
        self.has_polled = False

    def feed(self, batch: Batch) -> None:
        """Take the events of BATCH into account."""
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
