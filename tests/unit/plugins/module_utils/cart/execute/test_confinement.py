# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which rights a command is to have."""

from __future__ import annotations

import json
import resource
from dataclasses import asdict

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.confinement import (
    TOOL_CAPABILITIES,
    choose_host_rights,
    gen_limits,
    list_namespaces,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.filter_cache import FilterSource
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.jobs import CONTAINER, HOST, Command
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.rights import Rights, parse_rights
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.users import User
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.capabilities import ALL, CapabilitySets, parse_names


def test_root_has_all_unless_some_are_chosen():
    assert choose_host_rights(User(), None) == Rights(0, 0, (), None, no_new_privileges=False)
    assert choose_host_rights(User(), 6).capability_sets == CapabilitySets(0, 6, 6, 6, 0)
    assert choose_host_rights(User(), 0).capability_sets == CapabilitySets(0, 0, 0, 0, 0)


def test_others_have_none_unless_some_are_chosen_and_gain_none():
    plain = choose_host_rights(User(7, 8, (9,)), None)
    assert plain == Rights(7, 8, (9,), CapabilitySets(0, 0, 0, ALL, 0), no_new_privileges=True)
    assert choose_host_rights(User(7, 8), 6).capability_sets == CapabilitySets(6, 6, 6, 6, 6)


def test_rights_come_through_as_json():
    rights = Rights(
        1,
        2,
        (3,),
        CapabilitySets(1, 2, 3, ALL, 5),
        no_new_privileges=True,
        label=("attr/exec", "exec x"),
        filters=FilterSource(7, 8, 9),
        may_trace=True,
    )
    travelled = json.loads(json.dumps(asdict(rights)))
    assert (travelled["groups"], travelled["label"]) == ([3], ["attr/exec", "exec x"])
    assert asdict(parse_rights(travelled)) == travelled


def test_limits_are_the_kernels_own_text():
    with open("/proc/self/limits", "rb") as file:
        limits = list(gen_limits(file.read()))
    assert [number for number, _soft, _hard in limits] == list(range(16))
    for number, soft, hard in limits:
        assert (soft, hard) == resource.getrlimit(number)


def test_namespaces_that_must_be_the_containers_own():
    command = Command(("x",))
    assert sorted(list_namespaces(command)) == ["net", "pid"]
    assert list_namespaces(Command(("x",), rights=CONTAINER)) == list_namespaces(Command(("x",), rights=HOST)) == []
    assert list_namespaces(Command(("x",), capabilities=parse_names(["SYS_PTRACE"]))) == ["pid"]
    assert list_namespaces(Command(("x",), capabilities=parse_names(["CHOWN"]))) == ["user"]
    assert list_namespaces(Command(("x",), capabilities=0)) == []
    assert list_namespaces(Command(("x",), namespaces=("mnt", "pid", "user"))) == ["pid"]
    assert parse_names(["SYS_PTRACE", "NET_RAW"]) == TOOL_CAPABILITIES
