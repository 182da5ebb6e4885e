# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rule names: resolvers that get no answer, by C library, and what only looks like them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.codes import (
    CONTINUED,
    TIMED_OUT,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rules.names import RULE
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.findings.captures import (
    Call,
    make_capture,
)
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.findings.histories import (
    Lived,
    add_lives,
)

_UDP = ("socket", "UDP socket (IPv4)")
_NSCD = ("socket", "unix stream socket")
_CONFIG = Call("openat", "/etc/resolv.conf")


def find(*calls, **manifest):
    return list(RULE.find(add_lives(make_capture(*calls, **manifest), Lived("web", 4711))))


def poll(milliseconds, **parts):
    args = (0, 1, milliseconds, 0, 0, 0)
    return Call("poll", flags=TIMED_OUT, longest=milliseconds / 1000, args=args, is_long=True, **parts)


def test_glibc_and_a_server_that_does_not_answer():
    (found,) = find(_CONFIG, Call("sendto", _UDP, count=2), poll(5000), poll(5000))
    assert found.statement == (
        "web could not resolve names: the name server in /etc/resolv.conf did not answer within 5 s, 2 times"
    )
    assert found.confidence == "likely"
    assert found.severity >= 80


def test_a_wait_that_began_before_the_trace_has_no_request_in_it():
    before = replace(poll(5000), flags=TIMED_OUT | CONTINUED)
    (found,) = find(Call("sendto", _UDP, count=2), before, poll(5000), poll(5000))
    assert found.statement.endswith("did not answer within 5 s, 2 times")


@pytest.mark.parametrize("before", [None, ("socket", "udp 0.0.0.0:45000")])
def test_a_question_over_a_socket_from_before_the_trace_counts_where_the_socket_is_not_known(before):
    # Of musl. The fifth wait is for the second question of a lookup that began before the trace.
    lookups = (Call("sendto", _UDP, count=4), *[poll(2500)] * 5)
    (found,) = find(Call("sendto", before), *lookups)
    assert found.statement.endswith("did not answer within 2.5 s, 5 times")
    assert find(Call("sendto", ("peer", "10.0.0.7:5432 (tcp)")), *lookups) == []
    assert find(*lookups) == []  # more waits than questions are no resolver's


def test_a_connection_that_times_out_after_an_answered_lookup_is_none_of_the_name_server():
    lookup = (_CONFIG, Call("sendmmsg", _UDP), Call("recvfrom", _UDP, count=2))
    connection = (Call("connect", ("peer", "203.0.113.7:443 (tcp)"), "EINPROGRESS"), poll(3000))
    assert find(*lookup, *connection) == []
    assert find(*lookup, poll(3000))  # a second answer may be missing


def test_without_paths_the_timeout_has_to_be_that_of_a_resolver():
    assert find(Call("sendto", _UDP, count=2), poll(5000))[0].confidence == "inferred"
    assert find(Call("sendto", _UDP, count=2), poll(2500))[0].confidence == "inferred"  # musl
    assert find(Call("sendto", _UDP, count=2), poll(4000)) == []  # NTP


def test_a_resolver_with_timeouts_of_its_own_is_known_by_its_other_calls():
    at_nscd = Call("connect", _NSCD, "ENOENT", count=2)
    glibc = (at_nscd, Call("sendto", _UDP, count=13), Call("poll", count=26), *[poll(1000)] * 13)
    (found,) = find(*glibc)
    assert found.statement == (
        "web could not resolve names: the name server in /etc/resolv.conf did not answer within 1 s, 13 times"
    )
    assert found.confidence == "inferred"
    # One that gets answers, with a wait now and then that is none.
    assert find(*glibc, Call("recvfrom", _UDP, count=12)) == []


def test_musls_resolver_with_timeouts_of_its_own_is_known_by_its_other_calls():
    musl = [Call("open", count=26), Call("bind", _UDP, count=13), Call("sendto", _UDP, count=13), *[poll(1000)] * 13]
    (found,) = find(*musl)
    assert "the name server in /etc/resolv.conf did not answer within 1 s, 13 times" in found.statement
    assert found.confidence == "inferred"
    # One that gets answers, and a client of another protocol, which opens no files for each request.
    assert find(*musl, Call("recvfrom", _UDP, count=12)) == []
    assert find(Call("open", count=3), *musl[1:]) == []
    assert find(Call("open", "/opt/app", count=26), *musl[1:]) == []


_SERVER = {"descriptors": {"last": [{"pid": 4711, "fd": 5, "target": "udp 172.17.0.2:45000->8.8.8.8:53"}]}}


def test_a_resolver_is_known_by_its_server_where_paths_are_not():
    (found,) = find(Call("sendto", _UDP, count=13), *[poll(1000)] * 13, **_SERVER)
    said = "web could not resolve names: the name server 8.8.8.8:53 did not answer within 1 s, 13 times"
    assert (found.statement, found.confidence) == (said, "inferred")
    # What is open from before the trace has a path, though no call has.
    before = Call("close", "/opt/app")
    assert len(find(Call("sendto", _UDP, count=2), before, poll(5000))) == 1
    assert find(Call("sendto", _UDP, count=2), Call("openat", "/opt/app"), poll(5000)) == []
    # One that gets answers may also wait for something else.
    assert find(Call("sendto", _UDP, count=13), Call("recvfrom", _UDP), *[poll(1000)] * 13, **_SERVER) == []


def test_a_socket_from_before_the_trace_counts():
    peer = ("peer", "8.8.8.8:53 (udp)")
    (found,) = find(Call("sendto", peer), poll(5000), **_SERVER)
    assert "the name server 8.8.8.8:53 did not answer within 5 s, once" in found.statement
    assert find(Call("sendto", ("peer", "8.8.8.8:123 (udp)")), poll(5000)) == []


def test_the_address_of_the_server_is_told_where_it_is_known():
    entry = {"pid": 4711, "fd": 5, "target": "udp 172.17.0.2:45000->8.8.8.8:53"}
    (found,) = find(_CONFIG, Call("sendto", _UDP), poll(5000), descriptors={"last": [entry]})
    assert "the name server 8.8.8.8:53 did not answer" in found.statement


def test_a_server_that_refuses():
    (found,) = find(_CONFIG, Call("write", _UDP), Call("read", _UDP, "ECONNREFUSED"))
    assert "refuses, so nothing listens there" in found.statement
    (found,) = find(
        Call("connect", _NSCD, "ENOENT", count=2),
        Call("connect", _UDP),
        Call("sendto", _UDP, count=2),
        Call("poll", count=4),
    )
    assert found.statement.endswith("nothing came from the name server in /etc/resolv.conf, asked 2 times")


def test_go_that_gets_no_answer():
    calls = [Call("connect", _UDP, count=4), Call("write", _UDP, count=4), Call("read", _UDP, "EAGAIN", count=4)]
    (found,) = find(*calls)
    assert "nothing came from the name server" in found.statement
    assert find(*calls, Call("read", _UDP)) == []


def test_no_way_to_the_server():
    (found,) = find(_CONFIG, Call("connect", _UDP, "ENETUNREACH", count=2))
    assert "no way leads to the name server in /etc/resolv.conf (ENETUNREACH, 2 times)" in found.statement
    assert find(_CONFIG, Call("connect", ("socket", "UDP socket (IPv6)"), "ENETUNREACH")) == []  # addresses are sorted


@pytest.mark.parametrize(
    "calls",
    [
        [_CONFIG, Call("sendto", _UDP), Call("recvfrom", _UDP), Call("poll")],  # answered
        [Call("sendto", _UDP, count=900)],  # metrics
        [Call("sendto", _UDP, count=900), Call("sendto", _UDP, "ECONNREFUSED", count=900)],
        [
            Call("openat", "/etc/ntp.conf"),
            Call("sendto", _UDP),
            poll(5000),
        ],  # paths are recorded, and it is no resolver
        [_CONFIG, poll(5000)],  # nothing was sent
        [_CONFIG, Call("sendto", _UDP), Call("recvfrom", _UDP), poll(60000)],  # idle
    ],
)
def test_answered_lookups_and_other_protocols_are_not_told(calls):
    assert find(*calls) == []
