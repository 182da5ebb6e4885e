# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which rights a command is to have: those of its container's first process (confined), or some of the host's."""

from __future__ import annotations

from typing import Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.jobs import ExecutionError
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.rights import Rights
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import Target
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.users import User
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import capabilities, id_maps, labels, processes
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.capabilities import CapabilitySets

_UNLIMITED = -1  # as resource.setrlimit takes it
_SECCOMP_STRICT = "1"
_SECCOMP_FILTER = "2"


def gen_limits(text: bytes) -> Iterator[tuple[int, int, int]]:
    """Resource, soft and hard limit from the text of /proc/PID/limits, which has a line for each in the order of their numbers."""
    for number, line in enumerate(text.decode("ascii").splitlines()[1:]):
        soft, hard = (_UNLIMITED if one == "unlimited" else int(one) for one in line[26:].split()[:2])
        yield number, soft, hard


def choose_rights(user: User, chosen: int | None) -> Rights:
    """The rights of USER with the host's capabilities in the set CHOSEN; None are all for root and none for others."""
    sets = None
    if chosen is not None and user.uid == 0:
        sets = CapabilitySets(inheritable=0, permitted=chosen, effective=chosen, bounding=chosen, ambient=0)
    elif chosen is not None:
        sets = CapabilitySets(chosen, chosen, chosen, chosen, chosen)
    elif user.uid != 0:
        sets = CapabilitySets(0, 0, 0, capabilities.ALL, 0)
    # The container's setuid programs would get the host's capabilities, not the container's.
    return Rights(user.uid, user.gid, user.groups, sets, no_new_privileges=user.uid != 0)


def read_rights(target: Target, user: User | None) -> Rights:
    """The rights of TARGET's first process; as USER, when one is given, those it has as that user."""
    status = processes.parse_status(target.process.read("status"))
    name = target.container.name
    if status.get("Seccomp") == _SECCOMP_STRICT:
        raise ExecutionError(
            f"container {name}: its first process is in seccomp's strict mode, where no program can be run"
        )
    uid, gid = (int(status[field].split()[1]) for field in ("Uid", "Gid"))
    sets = capabilities.parse_sets(status)
    groups = tuple(map(int, status["Groups"].split()))
    if user is not None:
        if user.uid != uid:
            root = id_maps.find_outside(0, id_maps.parse_id_map(target.process.read("uid_map")))
            have = sets.bounding if user.uid == root else 0
            sets = CapabilitySets(sets.inheritable, have, have, sets.bounding, 0)
        uid, gid, groups = user.uid, user.gid, user.groups
    limits = tuple(gen_limits(target.process.read("limits")))  # prlimit(2) would need CAP_SYS_RESOURCE
    return Rights(
        uid,
        gid,
        groups,
        sets,
        no_new_privileges=status.get("NoNewPrivs") == "1",
        limits=limits,
        label=labels.find_transition(target.process),
        has_filters=status.get("Seccomp") == _SECCOMP_FILTER,
    )
