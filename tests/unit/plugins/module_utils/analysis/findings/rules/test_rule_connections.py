# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rule connections: refused, unreachable, timed out, reset, and those that came to nothing."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled import codes
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rules.connections import RULE
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.findings.captures import (
    Call,
    make_capture,
)

PEER = ("peer", "10.0.0.7:5432 (tcp)")


def find(*calls, **parts):
    return list(RULE.find(make_capture(*calls, **parts)))


@pytest.mark.parametrize(
    ("error", "statement"),
    [
        ("ECONNREFUSED", "10.0.0.7:5432 (tcp) refused the connection of web (ECONNREFUSED), 3 of 4 times within 2 s"),
        ("ETIMEDOUT", "web got no answer from 10.0.0.7:5432 (tcp): timed out (ETIMEDOUT), 3 of 4 times within 2 s"),
        (
            "EHOSTUNREACH",
            "web could not reach 10.0.0.7:5432 (tcp): no route, or the host does not answer (EHOSTUNREACH), 3 of 4 times within 2 s",
        ),
    ],
)
def test_a_peer_that_does_not_take_the_connection(error, statement):
    (found,) = find(Call("connect", PEER, error, count=3, first=1, last=3), Call("connect", PEER))
    assert found.statement == statement
    assert (found.severity, found.confidence, found.object.text) == (80, "certain", PEER[1])
    assert "TCP:10.0.0.7:5432,connect-timeout=3" in found.next


def test_programs_that_are_refused_by_one_peer_are_one_finding():
    (found,) = find(
        Call("connect", PEER, "ECONNREFUSED"), Call("connect", PEER, "ECONNREFUSED", program="cron", pid=9, count=2)
    )
    assert (
        found.statement == "10.0.0.7:5432 (tcp) refused the connection of cron and 1 more (ECONNREFUSED), 3 of 3 times"
    )


def test_a_connection_that_came_to_nothing_is_inferred():
    begun = Call("connect", PEER, "EINPROGRESS", count=5)
    (found,) = find(begun, Call("close", PEER, flags=codes.NOT_CONNECTED, count=5))
    assert found.statement == (
        "web did not connect to 10.0.0.7:5432 (tcp): it closed the connection without a read or write, 5 of 5 times"
    )
    assert (found.confidence, found.severity) == ("inferred", 60)
    # Also refused: one cause.
    both = find(begun, Call("close", PEER, flags=codes.NOT_CONNECTED), Call("connect", PEER, "ECONNREFUSED"))
    assert [finding.error for finding in both] == ["ECONNREFUSED"]


def test_the_slower_of_two_addresses_and_spare_connections_are_no_finding():
    begun, closed = Call("connect", PEER, "EINPROGRESS", count=100), Call("close", PEER, flags=codes.NOT_CONNECTED)
    assert find(begun, closed, Call("write", ("peer", "[fd00::7]:5432 (tcp)"))) == []
    assert find(begun, closed, Call("write", PEER)) == []


@pytest.mark.parametrize(
    ("failed", "error"),
    [("[::1]:5432 (tcp)", "ECONNREFUSED"), ("[2001:db8::1]:5432 (tcp)", "ENETUNREACH")],
)
def test_another_address_of_the_same_service_that_connects(failed, error):
    other = Call("connect", ("peer", "127.0.0.1:5432 (tcp)"), first=3, last=3)
    refused = Call("connect", ("peer", failed), error)
    assert find(refused, other) == []
    assert len(find(refused)) == 1
    assert len(find(refused, Call("connect", ("peer", "127.0.0.1:80 (tcp)")))) == 1
    assert len(find(refused, Call("connect", ("peer", "127.0.0.1:5432 (tcp)"), program="other", pid=9))) == 1


def test_one_of_several_servers_that_refuses_is_told():
    (found,) = find(Call("connect", PEER, "ECONNREFUSED"), Call("connect", ("peer", "10.0.0.8:5432 (tcp)")))
    assert found.object.text == PEER[1]


def test_a_peer_that_resets():
    (found,) = find(Call("read", PEER, "ECONNRESET", count=2))
    assert found.statement == "10.0.0.7:5432 (tcp) reset the connection of web (ECONNRESET), 2 times"
    assert found.severity == 60


@pytest.mark.parametrize(
    "call",
    [
        Call("connect", ("socket", "unix stream socket"), "ENOENT", count=4),  # nscd
        Call("connect", ("socket", "UDP socket (IPv6)"), "ENETUNREACH", count=4),  # addresses are sorted
        Call("read", ("socket", "connection accepted at TCP socket (IPv4)"), "ECONNRESET", count=50),
        Call("write", PEER, "EPIPE"),
        Call("connect", PEER, "EINPROGRESS"),
        Call("connect", PEER, "EISCONN"),
        Call("connect", PEER, "EINTR"),
        Call("read", PEER, "EAGAIN"),
        Call("connect", PEER, "ECONNREFUSED", flags=codes.UNFINISHED),
    ],
)
def test_what_is_normal_is_no_finding(call):
    assert find(call) == []


def test_a_peer_that_is_not_recorded():
    (found,) = find(Call("connect", ("socket", "unix stream socket"), "ECONNREFUSED"))
    assert found.statement == "unix stream socket refused the connection of web (ECONNREFUSED), once"
    assert (found.confidence, found.missing) == ("likely", "the address of the peer is not recorded")


def test_a_unix_socket_that_is_not_there():
    (found,) = find(Call("connect", ("socket", "unix stream socket"), "ENOENT", count=50))
    assert found.statement == "web could not connect to unix stream socket: no such file (ENOENT), 50 times"


def make_held(state, last_port=42846, seconds=4):
    first, last = (
        [{"pid": 4711, "fd": 3, "target": f"tcp 0.0.0.0:{port}->192.0.2.7:443 {state}"}] for port in (42846, last_port)
    )
    return {"first": first, "last": last, "time_ns": {"first": 10**9, "last": (seconds + 1) * 10**9}}


def test_a_peer_that_does_not_answer_in_the_whole_trace():
    (found,) = find(Call("read"), descriptors=make_held("SYN_SENT"))
    assert (
        found.statement
        == "web got no answer from 192.0.2.7:443 (tcp) in the whole trace: it waits for 4 s or longer to connect"
    )
    assert (found.severity, found.container_pids) == (80, (711,))
    assert find(Call("read"), descriptors=make_held("ESTABLISHED")) == []
    assert find(Call("read"), descriptors=make_held("SYN_SENT", last_port=9)) == []
    assert find(Call("read"), descriptors=make_held("SYN_SENT", seconds=0.5)) == []


def test_a_peer_that_was_not_up_yet_is_told_last():
    refused = Call("connect", PEER, "ECONNREFUSED", count=3, first=1, last=3)
    (found,) = find(refused, Call("connect", PEER, first=4), Call("read", PEER, count=9, first=4.1, last=9))
    assert found.statement == (
        "10.0.0.7:5432 (tcp) refused the connection of web (ECONNREFUSED), 3 of 4 times within 2 s, and was connected after that"
    )
    assert found.severity == 20
    # Where it was connected before, too, it may happen again.
    (found,) = find(refused, Call("read", PEER, count=9, first=0.5, last=9))
    assert found.severity == 80


@pytest.mark.parametrize(("call", "error"), [("read", "ECONNRESET"), ("write", "ETIMEDOUT")])
def test_a_client_that_was_accepted_before_the_trace_may_leave(call, error):
    client = ("peer", "10.0.0.9:51234 (tcp)")
    held = [
        {"pid": 4711, "fd": 3, "target": "tcp 0.0.0.0:80 LISTEN"},
        {"pid": 4711, "fd": 5, "target": "tcp 10.0.0.2:80->10.0.0.9:51234 ESTABLISHED"},
    ]
    assert find(Call(call, client, error), descriptors={"first": held}) == []
    assert find(Call(call, PEER, error), descriptors={"first": held})


def test_a_unix_server_whose_queue_is_full():
    (found,) = find(Call("connect", ("socket", "unix stream socket"), "EAGAIN", count=500))
    assert found.statement == (
        "unix stream socket took no connection of web: its queue of connections is full (EAGAIN), 500 times"
    )
    assert find(Call("connect", PEER, "EAGAIN")) == []
