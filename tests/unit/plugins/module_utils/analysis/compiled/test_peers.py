# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Peers of connections, from the changes of sockets' states, and connections that were never made."""

from __future__ import annotations

import errno
import ipaddress

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled import codes
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.compiled.scripts import (
    NUMBERS,
    TCP_CLOSE,
    TCP_ESTABLISHED,
    TCP_SYN_SENT,
    Script,
    list_cells,
)

HERE = bytes([10, 1, 2, 3])
PEER = "10.1.2.3:443 (tcp)"
IN_PROGRESS = -errno.EINPROGRESS


@pytest.mark.parametrize(
    ("address", "about", "text"),
    [
        ("10.1.2.3", {}, PEER),
        ("2001:db8::1", {"family": 10}, "[2001:db8::1]:443 (tcp)"),
        ("::1", {"family": 10}, "[::1]:443 (tcp)"),
        ("::ffff:10.1.2.3", {"family": 10}, PEER),
        ("10.1.2.3", {"protocol": 262}, "10.1.2.3:443 (mptcp)"),
        ("10.1.2.3", {"protocol": 132}, "10.1.2.3:443 (sctp)"),
        ("10.1.2.3", {"protocol": 33}, "10.1.2.3:443 (protocol 33)"),
    ],
)
def test_addresses(address, about, text):
    script = Script()
    script.connect(5, 3, ipaddress.ip_address(address).packed, 443, **about)
    (call,) = script.calls()
    assert (call.peer, call.descriptor) == (text, text)


def test_only_the_first_step_of_a_connect_has_the_peer():
    steps = (
        (TCP_SYN_SENT, TCP_ESTABLISHED),
        (TCP_CLOSE, TCP_ESTABLISHED),
        (TCP_ESTABLISHED, TCP_CLOSE),
        (3, TCP_SYN_SENT),
    )
    for old, new in steps:
        script = Script()
        script.enter(5, "connect", 3)
        script.change_state(5, old, new, HERE, 443)
        script.exit(5, "connect")
        assert [call.peer for call in script.calls()] == [None]


def test_a_peer_is_of_its_call_and_its_descriptor():
    script = Script()
    script.connect(5, 3, HERE, 443)
    # Seccomp denied this call: it has no entry.
    script.exit(5, "getpid", -1)
    script.call(5, "read", 3, result=5)
    script.call(5, "read", 4, result=5)
    script.call(6, "read", 3, result=5)
    script.call(5, "close", 3)
    script.call(5, "read", 3, result=-9)
    calls = script.calls()
    assert [call.peer for call in calls] == [PEER, None, PEER, None, None, PEER, None]
    assert calls[1].denied


def test_a_connect_that_fails_makes_its_descriptor_no_peer():
    script = Script()
    script.call(5, "socket", 2, 1, 0, result=3)
    script.connect(5, 3, HERE, 443, result=-errno.ECONNREFUSED)
    script.call(5, "close", 3)
    assert [call.descriptor for call in script.calls()][1:] == [PEER, "TCP socket (IPv4)"]


def test_without_entries_a_peer_is_only_of_a_connect():
    script = Script()
    script.change_state(5, TCP_CLOSE, TCP_SYN_SENT, HERE, 443)
    script.exit(5, "connect", -111)
    script.exit(5, "getpid", -1)
    # This connect succeeded, so its exit is not recorded.
    script.change_state(5, TCP_CLOSE, TCP_SYN_SENT, HERE, 80)
    script.exit(5, "getpid", -1)
    script.exit(5, "connect", -111)
    everything = {"native": [], "compat": []}
    calls = script.calls({"specification": {"syscalls": everything, "errors_only": True}})
    assert [call.peer for call in calls] == [PEER, None, None, None]


def find_not_connected(script):
    return [
        (name, number, text, count)
        for name, number, outcome, text, count in list_cells(script.tables())
        if outcome & codes.NOT_CONNECTED
    ]


def test_a_connection_that_is_closed_before_a_byte_passed():
    script = Script()
    script.connect(5, 3, HERE, 443, result=IN_PROGRESS)
    script.call(5, "poll", 1)
    script.call(5, "close", 3)
    assert find_not_connected(script) == [("", NUMBERS["close"], PEER, 1)]


@pytest.mark.parametrize("transfer", [("read", 3), ("write", 3)])
def test_a_connection_with_a_byte_was_made(transfer):
    script = Script()
    script.connect(5, 3, HERE, 443, result=IN_PROGRESS)
    script.call(5, *transfer, result=1)
    script.call(5, "close", 3)
    assert find_not_connected(script) == []


def test_a_failed_or_empty_transfer_is_none():
    script = Script()
    script.connect(5, 3, HERE, 443, result=IN_PROGRESS)
    script.call(5, "read", 3, result=-111)
    script.call(5, "read", 3, result=0)
    script.call(5, "write", 4, result=1)
    script.call(5, "close", 3)
    assert len(find_not_connected(script)) == 1


def test_a_second_connect_may_say_that_the_first_has_succeeded():
    script = Script()
    script.connect(5, 3, HERE, 443, result=IN_PROGRESS)
    script.call(5, "connect", 3, result=0)
    script.call(5, "close", 3)
    assert find_not_connected(script) == []


def test_a_descriptor_whose_object_is_not_known_says_nothing():
    script = Script()
    script.open(5, b"/a", 4)
    script.call(5, "connect", 3, result=IN_PROGRESS)
    script.call(5, "write", 3, result=1)
    script.call(5, "close", 3)
    assert find_not_connected(script) == []


@pytest.mark.parametrize("closing", [("close", 3), ("close_range", 3, 9), ("dup2", 8, 3)])
def test_the_next_thing_with_the_number_is_no_connection(closing):
    script = Script()
    script.open(5, b"/a", 8)
    script.connect(5, 3, HERE, 443, result=IN_PROGRESS)
    script.call(5, *closing, result=3 if closing[0] == "dup2" else 0)
    before = len(find_not_connected(script))
    # A pipe, whose descriptors are not in the trace.
    script.call(5, "pipe")
    script.call(5, "close", 3)
    assert len(find_not_connected(script)) == before == (closing[0] == "close")


def test_an_exec_that_closes_a_connection_leaves_nothing_of_it():
    script = Script()
    script.call(5, "socket", 2, 0x80001, 0, result=3)
    script.connect(5, 3, HERE, 443, result=IN_PROGRESS)
    script.execute(5)
    script.call(5, "pipe")
    script.call(5, "close", 3)
    assert find_not_connected(script) == []
