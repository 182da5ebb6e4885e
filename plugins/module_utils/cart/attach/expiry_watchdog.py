# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's one watchdog: a small process that ends attachments whose time has come, and itself when none is left to watch.

It belongs to no module and no login: it has a session of its own, no open file of anybody, and stands in the root control
group, where logind does not look for what a login leaves.
"""

from __future__ import annotations

import os
import select
from contextlib import ExitStack, suppress

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach import expiry
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach.attachments import end_attachment
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import open_targets
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import background, boot, locks, processes, syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_folder
from ansible_collections.crashcart.fleet.plugins.module_utils.names import WATCHDOG_LOCK, WATCHDOG_TITLE

_TAKE_OVER_S = 5.0  # in which one that is ending has ended
_LOOK_S = 10.0  # between two looks at whether the containers are still there
_RETRY_S = 10.0


def ensure_watchdog() -> None:
    """Start a watchdog if there is something to watch and nobody does; raises FleetError when it does not start."""
    if not expiry.list_expiries() or expiry.find_watchdog() is not None:
        return
    if not background.start_daemon(watch, lambda: expiry.find_watchdog() is not None):
        raise FleetError("the watchdog, which would end the attachments in time, does not start on this host")


def watch(ready_fd: int) -> None:
    """End attachments in time until none is left; READY_FD gets a byte when this process is the host's watchdog."""
    processes.set_title(WATCHDOG_TITLE)
    background.leave_control_groups()
    with suppress(locks.LockTimeout), ExitStack() as stack:
        lock_fd = stack.enter_context(locks.lock(WATCHDOG_LOCK, _TAKE_OVER_S))
        locks.tell_holder(lock_fd)
        events_fd = _watch_folder()
        background.tell_ready(ready_fd)
        while os.path.isdir(expiry.FOLDER):  # a cleanup may have taken it, and wants none of ours made again
            wait_s = _RETRY_S
            with suppress(FleetError, OSError):  # a full /run, say, or a lock that somebody keeps: then later
                wait_s = _end_due()
                with expiry.hold():
                    if not expiry.list_expiries():
                        # In this order: who writes the next one looks after that whether a watchdog runs.
                        stack.close()
                        return
            select.select([events_fd], [], [], wait_s)
            with suppress(BlockingIOError):
                os.read(events_fd, 65536)


def _watch_folder() -> int:
    make_folder(expiry.FOLDER)
    return syscalls.inotify_watch(
        expiry.FOLDER, syscalls.IN_MOVED_TO | syscalls.IN_DELETE | syscalls.IN_DELETE_SELF | syscalls.IN_MOVE_SELF
    )


def _end_due() -> float:
    """End what is due, forget whose container has ended; in how many seconds to look again."""
    for one in expiry.list_expiries():
        try:
            if one.deadline <= boot.read_clock():
                end_attachment(one, due_only=True)
            else:
                with open_targets([one.container], ended_ok=True) as targets:
                    if not targets:
                        expiry.drop([one])
        except (FleetError, OSError) as error:
            expiry.postpone(one, _RETRY_S, str(error))
    left = expiry.list_expiries()
    return min(_LOOK_S, max(0.0, left[0].deadline - boot.read_clock())) if left else 0.0
