# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take the tools away from containers again, whatever method has attached them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach import expiry, mounting, tool_users, volumes
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach.attachments import Attachment, find_all
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach.expiry import Expiry
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import (
    Target,
    hold_container,
    open_targets,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.mounts import parse_device


@dataclass(frozen=True)
class Busy:
    """The behaviour of a detach where processes use the tools.

    CHOICE: fail, wait, kill or lazy. TIMEOUT_S: the longest time that wait and kill last.
    """

    choice: str = "fail"
    timeout_s: float = 30.0


def take_away(targets: Sequence[Target], outcome: Outcome, found: Sequence[Attachment], busy: Busy) -> None:
    """Unmount FOUND from the locked TARGETS, and remove the empty folder; OUTCOME gets the failures.

    FOUND are attachments with one path, one for each mount.
    """
    path = found[0].path
    is_lazy = busy.choice == "lazy"
    from_volumes = {attachment.container.id for attachment in found if attachment.method == "rslave"}
    for target in targets:
        with outcome.serve(target, ended_ok=True):
            if busy.choice in ("wait", "kill"):
                tool_users.end_users(target, path, busy.timeout_s, kill=busy.choice == "kill")
            if target.id in from_volumes:
                volumes.detach([target], path, lazy=is_lazy)
    own = [attachment for attachment in found if attachment.method != "rslave"]
    others = [
        target
        for target in outcome.list_left(targets)
        if any(attachment.container.id == target.id for attachment in own)
    ]
    counts = [sum(attachment.container.id == target.id for attachment in own) for target in others]
    devices = {parse_device(attachment.device) for attachment in own}
    removable = mounting.find_removable(others, path)

    def detach_here(index: int, parent_fd: int, name: str) -> None:
        mounting.detach(counts[index], devices, lazy=is_lazy, parent_fd=parent_fd, name=name)
        if removable[index]:
            mounting.remove_our_folder(parent_fd, name)

    outcome.fail_each(others, mounting.try_in_targets(others, path, detach_here, "detach from"), ended_ok=True)


def end_attachment(ended: Expiry, *, due_only: bool = False) -> None:
    """Unmount an attachment lazily, also where processes still use it, and drop its expiry; with DUE_ONLY only if its time has come.

    Raises FleetError where that fails.
    """
    with open_targets([ended.container], ended_ok=True) as targets, hold_container(ended.container):
        # Before the lock was taken, another call may have given it more time, or detached it.
        if due_only and ended not in expiry.list_expiries():
            return
        outcome = Outcome()
        found = find_all(targets, outcome, path=ended.path, ended_ok=True)
        if found:
            take_away(targets, outcome, found, Busy("lazy"))
        outcome.check()
        expiry.drop([ended])
