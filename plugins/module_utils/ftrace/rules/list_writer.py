# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put threads into the lists of an instance without waiting for the kernel."""

from __future__ import annotations

import threading

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.follow import pid_lists
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance, TraceError


class ListWriter:
    """Adds threads to the lists of INSTANCE, one write after the other, by a thread of its own.

    A write takes the kernel 20 to 50 ms and has its effect at the beginning. Meanwhile the kernel lets nobody read or write a list of any
    instance. What is added in that time goes with the next write, all of a list together.
    """

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._state = threading.Condition()
        self._wanted: dict[str, set[int]] = {}
        self._is_writing = self._is_closing = False
        self._trouble: TraceError | None = None
        self._thread = threading.Thread(target=self._work, name="list writer", daemon=True)
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """Return True while anything that was added is not in its list yet."""
        with self._state:
            return self._is_writing or bool(self._wanted)

    def add(self, tids: set[int], file: str = pid_lists.EVENT_PIDS) -> None:
        """Have the threads TIDS added to control file FILE, unless they are in it. Raises TraceError if an earlier write has failed."""
        with self._state:
            self._check()
            if tids:
                self._wanted.setdefault(file, set()).update(tids)
                self._state.notify_all()

    def wait(self) -> None:
        """Wait until all that was added is in its list. Raises TraceError if a write has failed."""
        with self._state:
            self._state.wait_for(lambda: not self._is_writing and not self._wanted)
            self._check()

    def _check(self) -> None:
        if self._trouble is not None:
            raise self._trouble

    def _work(self) -> None:
        while True:
            with self._state:
                self._is_writing = False
                self._state.notify_all()
                self._state.wait_for(lambda: self._is_closing or bool(self._wanted))
                if self._is_closing:
                    return
                # What is to be recorded has no time to lose.
                file = min(self._wanted, key=lambda name: name != pid_lists.EVENT_PIDS)
                tids = self._wanted.pop(file)
                self._is_writing = True
            try:
                self._write(file, tids)
            except TraceError as error:
                with self._state:
                    # What is recorded in vain is left out when it is fetched.
                    self._trouble = error if file == pid_lists.EVENT_PIDS else self._trouble

    def _write(self, file: str, tids: set[int]) -> None:
        missing = pid_lists.find_missing(self._instance, lambda: tids, file)
        if missing:
            self._instance.add_pids(file, missing)

    def close(self) -> None:
        """Give up what is not written yet, and wait for the write that is under way."""
        with self._state:
            self._wanted = {}
            self._is_closing = True
            self._state.notify_all()
        self._thread.join()
