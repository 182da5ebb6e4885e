# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's one watchdog: a small process that ends attachments when their time has come, and ends itself when none is left to watch.

The watchdog belongs to no module and no login. It has a session of its own and none of its starter's open files, and it is in the root control
group, where logind does not look for remains of a login.
"""

from __future__ import annotations

import os
import select
from contextlib import ExitStack, suppress

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach import expiry
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach.removal import end_attachment
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import open_targets
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import background, boot, locks, processes, syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_folder
from ansible_collections.crashcart.fleet.plugins.module_utils.names import WATCHDOG_LOCK, WATCHDOG_TITLE

_TAKE_OVER_S = 5.0  # long enough for a previous watchdog that is ending
_LOOK_S = 10.0  # between two looks at whether the containers are still there
_RETRY_S = 10.0


def ensure_watchdog() -> None:
    """Start the watchdog if there is something to watch and none runs; raises FleetError when it does not start."""
    if not expiry.list_expiries() or expiry.find_watchdog() is not None:
        return
    if not background.start_daemon(watch, lambda: expiry.find_watchdog() is not None):
        raise FleetError("the watchdog, which would end the attachments in time, does not start on this host")


def watch(ready_fd: int) -> None:
    """End attachments in time until none is left; write a byte to READY_FD once this process is the host's watchdog."""
    processes.set_title(WATCHDOG_TITLE)
    background.leave_control_groups()
    with suppress(locks.LockTimeout), ExitStack() as stack:
        lock_fd = stack.enter_context(locks.lock(WATCHDOG_LOCK, _TAKE_OVER_S))
        locks.tell_holder(lock_fd)
        events_fd = _watch_folder()
        background.tell_ready(ready_fd)
        while os.path.isdir(expiry.FOLDER):  # a cleanup may have removed it, and it must not be made again
            wait_s = _RETRY_S
            with suppress(FleetError, OSError):  # such as a full /run, or a lock that is held: try again later
                wait_s = _end_due()
                with expiry.hold():
                    if not expiry.list_expiries():
                        # The watchdog's lock is released before the lock of expiries: the next writer sees that no watchdog runs.
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
    """End the attachments that are due, and drop the expiries of ended containers; return the seconds until the next look."""
    for ending in expiry.list_expiries():
        try:
            if ending.deadline <= boot.read_clock():
                end_attachment(ending, due_only=True)
            else:
                with open_targets([ending.container], ended_ok=True) as targets:
                    if not targets:
                        expiry.drop([ending])
        except (FleetError, OSError) as error:
            expiry.postpone(ending, _RETRY_S, str(error))
    left = expiry.list_expiries()
    return min(_LOOK_S, max(0.0, left[0].deadline - boot.read_clock())) if left else 0.0
