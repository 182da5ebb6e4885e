# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rule differs: which of several containers with the same work did something else, and what."""

from __future__ import annotations

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.digest import digest
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rules.differs import RULE
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.findings.captures import (
    Call,
    make_capture,
)

COMMON = (Call("openat", "/etc/app.conf"), Call("connect", ("peer", "10.0.0.7:5432 (tcp)")))


def find(captures):
    return list(RULE.find_across([digest(capture) for capture in captures]))


def make_captures(odd, count=20, common=COMMON, **parts):
    return [
        make_capture(*(odd if number == 7 else common), host=f"web{number}", image="shop:1", **parts)
        for number in range(count)
    ]


def test_the_one_that_asks_another_peer_is_found():
    odd = (COMMON[0], Call("connect", ("peer", "10.0.0.8:5432 (tcp)")))
    (found,) = find(make_captures(odd))
    assert found.statement == (
        "1 of 20 containers differs: connect 10.0.0.8:5432 (tcp) of web; the others have 10.0.0.7:5432 (tcp) in its place"
    )
    assert [place.host for place in found.where] == ["web7"] and found.confidence == "likely"


def test_the_one_that_fails_is_found():
    odd = (Call("openat", "/etc/app.conf", "EACCES", count=5), COMMON[1])
    (found,) = find(make_captures(odd))
    assert found.statement == (
        "1 of 20 containers differs: openat /etc/app.conf of web fails with EACCES; for the others it does not fail"
    )
    assert (found.count, found.error) == (5, "EACCES")
    alone = (*COMMON, Call("statx", "/etc/extra", "ENOENT"))
    (found,) = find(make_captures(alone))
    assert (
        found.statement == "1 of 20 containers differs: statx /etc/extra of web fails with ENOENT; the others did not"
    )


def test_containers_with_requests_of_their_own_are_not_told_apart():
    captures = [
        make_capture(*COMMON, Call("statx", f"/srv/{number}", "ENOENT"), host=f"web{number}", image="shop:1")
        for number in range(4)
    ]
    assert find(captures) == []


def test_those_that_are_alike_or_too_few_are_not_told_apart():
    odd = (COMMON[0], Call("connect", ("peer", "10.0.0.8:5432 (tcp)")))
    assert find(make_captures(COMMON)) == []
    assert find(make_captures((*COMMON, Call("openat", "/tmp/1")))) == []  # more work, and nothing in its place
    captures = make_captures(odd)
    assert find([captures[0], captures[7]]) == []
    assert find([*captures[:7], *[make_capture(*odd, host=f"db{n}", image="shop:1") for n in range(7)]]) == []
    others = [make_capture(*odd, host=f"db{number}", image=f"other:{number}") for number in range(3)]
    assert find([*captures[:7], *others]) == []


def test_without_images_those_with_the_same_programs_are_compared():
    odd = (COMMON[0], Call("connect", ("peer", "10.0.0.8:5432 (tcp)")))
    captures = [make_capture(*(odd if n == 3 else COMMON), host=f"web{n}") for n in range(5)]
    stranger = make_capture(Call("openat", "/x", program="db"), host="db1")
    assert len(find([*captures, stranger])) == 1


def test_numbers_of_pipes_and_errors_that_are_answers_are_no_difference():
    captures = [
        make_capture(
            *COMMON,
            Call("ioctl", ("pipe", f"pipe:[{number}]"), "ENOTTY"),
            Call("write", ("pipe", f"pipe:[{number}]")),
            host=f"web{number}",
            image="shop:1",
        )
        for number in range(5)
    ]
    assert find(captures) == []
