# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put threads into the lists of an instance without waiting for the kernel."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import Callable

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.follow import pid_lists
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import (
    PIDS_PER_WRITE,
    Instance,
    TraceError,
)

_MAX_WAIT_S = 10.0


class ListWriter:
    """Adds threads to the lists of INSTANCE, one write after the other, by a thread of its own.

    A write takes the kernel 20 to 50 ms and has its effect at the beginning. Meanwhile the kernel lets nobody read or write a list of any
    instance. What is added in that time goes with the next write, all of a list together. EXPECT(file) is called before each write.
    FD is readable when all that was added has been written. Raises TraceError or OSError where no thread can be made.
    """

    def __init__(self, instance: Instance, expect: Callable[[str], None]) -> None:
        self._instance = instance
        self._expect = expect
        self._state = threading.Condition()
        self._wanted: dict[str, set[int]] = {}
        self._is_at_work = self._is_closing = False
        self._trouble: TraceError | None = None
        self.fd, self._idle_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._work, name="list writer", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._close_fds()
            raise TraceError(f"the recorder cannot have another thread: {error}") from error

    @property
    def is_busy(self) -> bool:
        """Return True while anything that was added is not in its list yet."""
        with self._state:
            return self._is_at_work or bool(self._wanted)

    def check(self) -> None:
        """Forget that FD is readable, and raise TraceError if a write has failed."""
        with suppress(BlockingIOError):
            os.read(self.fd, 4096)
        with self._state:
            if self._trouble is not None:
                raise self._trouble

    def add(self, tids: set[int], file: str = pid_lists.EVENT_PIDS) -> None:
        """Have the threads TIDS added to control file FILE, unless they are in it or have ended."""
        if tids:
            with self._state:
                self._wanted.setdefault(file, set()).update(tids)
                self._state.notify_all()

    def wait(self) -> None:
        """Wait until all that was added is in its list. Raises TraceError if a write has failed, or takes too long."""
        with self._state:
            if not self._state.wait_for(lambda: not self._is_at_work and not self._wanted, _MAX_WAIT_S):
                raise TraceError(f"the kernel has not taken a list of threads for {_MAX_WAIT_S:g} s")
        self.check()

    def _work(self) -> None:
        while True:
            with self._state:
                was_at_work, self._is_at_work = self._is_at_work, False
                self._state.notify_all()
                if was_at_work and not self._wanted:
                    with suppress(BlockingIOError):  # it is readable already
                        os.write(self._idle_fd, b"1")
                self._state.wait_for(lambda: self._is_closing or bool(self._wanted))
                if self._is_closing:
                    return
                # What is to be recorded has no time to lose.
                file = min(self._wanted, key=lambda name: name != pid_lists.EVENT_PIDS)
                tids = self._wanted.pop(file)
                self._is_at_work = True
            try:
                self._write(file, tids)
            except Exception as error:  # pylint: disable=broad-exception-caught # it has to come to the recorder's other thread
                # What is recorded in vain is left out when it is fetched.
                if file == pid_lists.EVENT_PIDS:
                    with self._state:
                        self._trouble = error if isinstance(error, TraceError) else TraceError(repr(error))

    def _write(self, file: str, tids: set[int]) -> None:
        missing = sorted(pid_lists.find_missing(self._instance, lambda: tids, file))
        for start in range(0, len(missing), PIDS_PER_WRITE):
            self._expect(file)
            self._instance.add_pids(file, missing[start : start + PIDS_PER_WRITE])

    def close(self) -> None:
        """Give up what is not written yet, and wait for the write that is under way."""
        with self._state:
            self._wanted = {}
            self._is_closing = True
            self._state.notify_all()
        self._thread.join()
        self._close_fds()

    def _close_fds(self) -> None:
        os.close(self.fd)
        os.close(self._idle_fd)
