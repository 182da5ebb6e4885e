# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a command may do, and how its process takes that on, in an order in which each step still may be done."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from typing import Any, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.seccomp_filters import FilterSource
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import capabilities, seccomp, syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.capabilities import CapabilitySets


@dataclass(frozen=True)
class Rights:
    """What a process may do. Numbers of users and groups are the host's.

    CAPABILITY_SETS None are all that there are. LIMITS are triples of resource, soft and hard limit. LABEL is what
    labels.find_transition tells. FILTERS says whose seccomp filters hold, None means nobody's, and MAY_TRACE that they let ptrace pass.
    """

    uid: int
    gid: int
    groups: tuple[int, ...]
    capability_sets: CapabilitySets | None
    no_new_privileges: bool
    limits: tuple[tuple[int, int, int], ...] = ()
    label: tuple[str, str] = ("", "")
    filters: FilterSource | None = None
    may_trace: bool = False


def parse_rights(given: dict[str, Any]) -> Rights:
    """Rights from what asdict made of them and JSON brought."""
    sets, filters = given["capability_sets"], given["filters"]
    return Rights(
        **{
            **given,
            "capability_sets": None if sets is None else CapabilitySets(**sets),
            "filters": None if filters is None else FilterSource(**filters),
        }
    )


def take(rights: Rights, filters: Sequence[bytes], user_namespace_fd: int | None) -> None:
    """Become what RIGHTS say, in the user namespace of USER_NAMESPACE_FD, but for what `seal` does."""
    for number, soft, hard in rights.limits:
        _limit(number, soft, hard)
    os.setgroups(rights.groups)
    os.setresgid(rights.gid, rights.gid, rights.gid)
    sets = rights.capability_sets
    if sets is not None:
        capabilities.keep_over_setuid(True)
    os.setresuid(rights.uid, rights.uid, rights.uid)
    if user_namespace_fd is not None:
        # It gives all capabilities in there, and takes those outside.
        syscalls.setns(user_namespace_fd, syscalls.CLONE_NEWUSER)
    if sets is not None:
        capabilities.keep_over_setuid(False)
        capabilities.drop_bounding(sets.bounding)
    if not rights.no_new_privileges:
        for one in filters:  # this takes CAP_SYS_ADMIN
            seccomp.install_filter(one)
    if sets is not None:
        capabilities.take(sets)
    if rights.no_new_privileges:
        syscalls.set_no_new_privileges()


def _limit(number: int, soft: int, hard: int) -> None:
    have = resource.getrlimit(number)
    if have == (soft, hard):
        return
    try:
        resource.setrlimit(number, (soft, hard))
    except ValueError:
        # A root without CAP_SYS_RESOURCE raises none; less than the container has is no more than it has.
        resource.setrlimit(number, (_lower(soft, have[1]), _lower(hard, have[1])))


def _lower(one: int, other: int) -> int:
    infinity = resource.RLIM_INFINITY
    return other if one == infinity else one if other == infinity else min(one, other)


def seal(rights: Rights, filters: Sequence[bytes]) -> None:
    """Take on what is left, last of all: a filter of the container's may not allow other steps after it."""
    if rights.no_new_privileges:
        for one in filters:
            seccomp.install_filter(one)
