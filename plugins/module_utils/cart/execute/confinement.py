# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The choice of a command's rights: those of its container's first process, these and the ones that tools need, or the host's."""

from __future__ import annotations

from dataclasses import replace
from typing import Iterator, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.filter_cache import FilterSource
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.jobs import (
    HOST,
    NAMESPACES,
    TOOLS,
    Command,
    ExecutionError,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.rights import Rights
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import Target
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.users import User
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import capabilities, id_maps, labels, processes
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.capabilities import CapabilitySets

_UNLIMITED = -1  # as resource.setrlimit takes it
_SECCOMP_STRICT = "1"
_SECCOMP_FILTER = "2"


def gen_limits(text: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield resource, soft and hard limit from TEXT, the content of /proc/PID/limits, whose lines are in the order of the resources' numbers."""
    for number, line in enumerate(text.decode("ascii").splitlines()[1:]):
        soft, hard = (_UNLIMITED if word == "unlimited" else int(word) for word in line[26:].split()[:2])
        yield number, soft, hard


def choose_rights(target: Target, user: User | None, command: Command, shared: Mapping[str, str]) -> Rights:
    """Return the rights of COMMAND in TARGET as USER (None: nobody was named); SHARED is find_shared's result for TARGET.

    Raises ExecutionError where a capability would act on more than the container.
    """
    if command.rights == HOST:
        return choose_host_rights(user or User(), command.capabilities)
    rights = read_rights(target, user)
    return add_for_tools(rights, target, command, shared) if command.rights == TOOLS else rights


def choose_host_rights(user: User, chosen: int | None) -> Rights:
    """Return the rights of USER with the host's capabilities in the set CHOSEN; None means all for root and none for others."""
    sets = None
    if chosen is not None and user.uid == 0:
        sets = CapabilitySets(inheritable=0, permitted=chosen, effective=chosen, bounding=chosen, ambient=0)
    elif chosen is not None:
        sets = CapabilitySets(chosen, chosen, chosen, chosen, chosen)
    elif user.uid != 0:
        sets = CapabilitySets(0, 0, 0, capabilities.ALL, 0)
    # Setuid programs of the container would give a user other than root the host's capabilities, not the container's.
    return Rights(user.uid, user.gid, user.groups, sets, no_new_privileges=user.uid != 0)


def read_rights(target: Target, user: User | None) -> Rights:
    """Return the rights of TARGET's first process; with USER, the rights that it would have as that user.

    Raises ExecutionError where the process is in seccomp's strict mode.
    """
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
        filters=FilterSource(
            target.process.tid,
            processes.parse_start_ticks(target.process.read("stat")),
            int(status.get("Seccomp_filters", 0)),
        )
        if status.get("Seccomp") == _SECCOMP_FILTER
        else None,
    )


# For strace, gdb, lsof and ss -p (SYS_PTRACE), and for tcpdump and ping (NET_RAW).
TOOL_CAPABILITIES = capabilities.parse_names(("SYS_PTRACE", "NET_RAW"))


def list_namespaces(command: Command) -> list[str]:
    """Return the kinds of namespaces on which those capabilities act that COMMAND gets in addition to its container's."""
    if command.rights != TOOLS:
        return []
    return [kind for kind in command.namespaces if _find_added(command) & capabilities.select({kind})]


def _find_added(command: Command) -> int:
    return TOOL_CAPABILITIES if command.capabilities is None else command.capabilities


def add_for_tools(rights: Rights, target: Target, command: Command, shared: Mapping[str, str]) -> Rights:
    """Return RIGHTS, those of a first process, with the capabilities that COMMAND gets in addition.

    A capability that acts on a namespace that is not entered would act on the host's: it is left out, also of the first process's own.
    Raises ExecutionError where an added capability would act on a SHARED namespace.
    """
    have = rights.capability_sets or capabilities.NONE
    outside = set(NAMESPACES) - set(command.namespaces)
    allowed = capabilities.ALL & ~capabilities.select({"net", "ipc"} & outside)
    if outside:  # CAP_SYS_ADMIN acts on namespaces of all kinds
        allowed &= ~capabilities.parse_names(["SYS_ADMIN"])
    added = _find_added(command) & allowed
    # A capability that the user names and the first process has anyway is no addition.
    given = added if command.capabilities is None else added & ~have.permitted
    for kind, owner in shared.items():
        names = capabilities.list_names(given & capabilities.select({kind}))
        if names:
            raise ExecutionError(
                f"rights=tools gives {', '.join(names)}, which acts on all of the {kind} namespace, and that is {owner}: use"
                " rights=container, which adds nothing to what the container's first process may, rights=host, by which a command"
                " may do what the host's root may, or capabilities without that one"
            )
    root = id_maps.find_outside(0, id_maps.parse_id_map(target.process.read("uid_map")))
    ambient = have.ambient if rights.uid == root else have.ambient | added
    sets = CapabilitySets(
        inheritable=(have.inheritable | ambient) & allowed,
        permitted=(have.permitted | added) & allowed,
        effective=(have.effective | added) & allowed,
        bounding=(have.bounding | added) & allowed,
        ambient=ambient & allowed,
    )
    return replace(rights, capability_sets=sets, may_trace=True)
