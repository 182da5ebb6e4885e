# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rights of a command, and the steps by which its process takes them, in an order in which each step is still permitted."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from typing import Any, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.filter_cache import FilterSource
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import capabilities, seccomp, syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.capabilities import CapabilitySets


@dataclass(frozen=True)
class Rights:
    """The rights of a process; numbers of users and groups are the host's.

    CAPABILITY_SETS: None for all capabilities. LIMITS: triples of resource, soft and hard limit. LABEL: from labels.find_transition.
    FILTERS: the process whose seccomp filters apply, None for no filters. MAY_TRACE: the filters are changed to let ptrace pass.
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
    """Return the Rights of which asdict made GIVEN, after a way through JSON."""
    sets, filters = given["capability_sets"], given["filters"]
    return Rights(
        **{
            **given,
            "capability_sets": None if sets is None else CapabilitySets(**sets),
            "filters": None if filters is None else FilterSource(**filters),
        }
    )


def take(rights: Rights, filters: Sequence[bytes], user_namespace_fd: int | None) -> None:
    """Take on RIGHTS, in the user namespace of USER_NAMESPACE_FD, except for the steps of `seal`."""
    for number, soft, hard in rights.limits:
        _limit(number, soft, hard)
    os.setgroups(rights.groups)
    os.setresgid(rights.gid, rights.gid, rights.gid)
    sets = rights.capability_sets
    if sets is not None:
        capabilities.keep_over_setuid(True)
    os.setresuid(rights.uid, rights.uid, rights.uid)
    if user_namespace_fd is not None:
        # Entering it gives all capabilities inside, and takes those outside.
        syscalls.setns(user_namespace_fd, syscalls.CLONE_NEWUSER)
    if sets is not None:
        capabilities.keep_over_setuid(False)
        capabilities.drop_bounding(sets.bounding)
    if not rights.no_new_privileges:
        for program in filters:  # needs CAP_SYS_ADMIN, so before capabilities are dropped
            seccomp.install_filter(program)
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
        # A root without CAP_SYS_RESOURCE cannot raise a limit; a lower one than the container's permits nothing more.
        resource.setrlimit(number, (_lower(soft, have[1]), _lower(hard, have[1])))


def _lower(wanted: int, present: int) -> int:
    infinity = resource.RLIM_INFINITY
    return present if wanted == infinity else wanted if present == infinity else min(wanted, present)


def seal(rights: Rights, filters: Sequence[bytes]) -> None:
    """Take on the remaining rights, as the last step: the container's filter may forbid every later step."""
    if rights.no_new_privileges:
        for program in filters:
            seccomp.install_filter(program)
