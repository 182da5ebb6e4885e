# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Instructions before a seccomp filter. The kernel runs them in the integration tests; here each way through them is taken."""

from __future__ import annotations

import struct

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import seccomp

ALLOW, DENY = 0x7FFF0000, 0x00050001
X86_64, I386, AARCH64 = 0xC000003E, 0x40000003, 0xC00000B7
DENY_ALL = struct.pack("HBBI", 0x06, 0, 0, DENY)
# Denies where the accumulator is what a program finds at its start, and allows otherwise.
DENY_AT_ZERO = b"".join(
    struct.pack("HBBI", *step) for step in [(0x15, 0, 1, 0), (0x06, 0, 0, DENY), (0x06, 0, 0, ALLOW)]
)


def run(instructions, call, machine):
    """Return what the filter says of CALL on MACHINE; the instructions are those of classic BPF that are used here."""
    data = struct.pack("II", call, machine)
    steps = list(struct.iter_unpack("HBBI", instructions))
    place = accumulator = 0
    while True:
        code, if_true, if_false, value = steps[place]
        place += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("I", data, value)
        elif code == 0x00:
            accumulator = value
        elif code == 0x05:
            place += value
        elif code == 0x15:
            place += if_true if accumulator == value else if_false
        elif code == 0x16:
            return accumulator
        else:
            assert code == 0x06
            return value


@pytest.mark.parametrize("before", [DENY_ALL, DENY_AT_ZERO])
@pytest.mark.parametrize(
    ("machine", "number", "passing"),
    [("x86_64", X86_64, {101, 310}), ("aarch64", AARCH64, {117, 270})],
)
def test_only_what_traces_passes(before, machine, number, passing):
    whole = seccomp.let_trace(before, machine)
    assert whole.endswith(before)
    assert {call for call in range(500) if run(whole, call, number) == ALLOW} == passing
    assert {call for call in range(500) if run(whole, call, I386) == ALLOW} == set()


def test_a_filter_that_cannot_grow_and_an_unknown_machine_stay_as_they_are():
    longest = DENY_ALL * 4096
    assert seccomp.let_trace(longest, "x86_64") == longest
    assert seccomp.let_trace(DENY_ALL, "vax") == DENY_ALL
    assert len(seccomp.let_trace(DENY_ALL * 4080, "x86_64")) <= 4096 * 8


FEIGN, RETURN_ACCUMULATOR = 0x00050000, struct.pack("HBBI", 0x16, 0, 0, 0)


@pytest.mark.parametrize("jumps", [(0, 0), (7, 9)])  # which the kernel does not look at
def test_success_is_not_feigned(jumps):
    feign = struct.pack("HBBI", 0x06, *jumps, FEIGN)
    steps = (
        struct.pack("HBBI", 0x20, 0, 0, 0)
        + struct.pack("HBBI", 0x15, 0, 1, 126)
        + feign
        + DENY_ALL[:4]
        + struct.pack("I", ALLOW)
    )
    assert [run(steps, call, X86_64) for call in (125, 126)] == [ALLOW, FEIGN]
    assert [run(seccomp.refuse_openly(steps), call, X86_64) for call in (125, 126)] == [ALLOW, DENY]


@pytest.mark.parametrize(("answer", "wanted"), [(FEIGN, DENY), (ALLOW, ALLOW), (0x0005000D, 0x0005000D), (0, 0)])
def test_nor_by_what_a_filter_has_computed(answer, wanted):
    steps = struct.pack("HBBI", 0x00, 0, 0, answer) + RETURN_ACCUMULATOR
    assert run(steps, 1, X86_64) == answer
    assert run(seccomp.refuse_openly(steps), 1, X86_64) == wanted
    # From wherever it is reached.
    early = (
        struct.pack("HBBI", 0x00, 0, 0, answer)
        + struct.pack("HBBI", 0x15, 0, 1, answer)
        + RETURN_ACCUMULATOR
        + DENY_ALL
    )
    assert run(seccomp.refuse_openly(early), 1, X86_64) == wanted


def test_a_filter_without_feints_is_as_it_was_and_one_that_cannot_grow_is_refused():
    assert seccomp.refuse_openly(DENY_AT_ZERO) == DENY_AT_ZERO
    with pytest.raises(OSError, match="rights=host"):
        seccomp.refuse_openly(DENY_ALL * 4094 + RETURN_ACCUMULATOR)
