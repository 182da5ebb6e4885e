# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The accounts of a capture, and names that go to a terminal."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import metadata
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.drain import CpuDrain
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import ring
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.follow.tasks import (
    format_cmdlines,
    make_printable,
    parse_saved_cmdlines,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.loss import CpuLoss, Loss, Rotated
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import CpuStatistics


def make_statistics(entries=0, overrun=0, commit_overrun=0, dropped=0, read=0):
    return CpuStatistics(entries, overrun, commit_overrun, 0, dropped, read)


def test_a_complete_capture():
    before = {0: make_statistics(entries=100), 1: make_statistics(entries=20)}
    after = {0: make_statistics(entries=0, read=100), 1: make_statistics(entries=3, read=20)}
    summary = ring.summarize_loss(before, after, {0: CpuDrain(5), 1: CpuDrain(1)}).as_json()
    assert (summary["entries"], summary["pages"], summary["lost"]) == (120, 6, 0)
    assert summary["complete"] is True
    assert summary["lost_exact"] is True
    assert summary["reasons"] == []
    # The entries are those that were read, also those that came while others were.
    assert [(one["cpu"], one["entries"], one["pages"]) for one in summary["cpus"]] == [(0, 100, 5), (1, 20, 1)]


def test_lost_events_are_summed_over_cpus():
    statistics = {0: make_statistics(), 1: make_statistics()}
    summary = ring.summarize_loss(statistics, statistics, {0: CpuDrain(1, 30), 1: CpuDrain(1, 12)}).as_json()
    assert (summary["lost"], summary["lost_exact"], summary["complete"]) == (42, True, False)
    assert [(one["lost"], one["exact"]) for one in summary["cpus"]] == [(30, True), (12, True)]


def test_an_unknown_loss_is_no_complete_capture():
    statistics = {0: make_statistics(), 1: make_statistics(read=1)}
    summary = ring.summarize_loss(statistics, statistics, {0: CpuDrain(1), 1: CpuDrain(1, unknown=1)}).as_json()
    assert (summary["lost"], summary["lost_exact"], summary["complete"]) == (0, False, False)


@pytest.mark.parametrize("counter", ["dropped", "commit_overrun"])
def test_events_that_the_kernel_refused_count_as_lost(counter):
    after = {0: make_statistics(**{counter: 4})}
    summary = ring.summarize_loss({0: make_statistics()}, after, {0: CpuDrain(1, 1)}).as_json()
    assert (summary["lost"], summary["complete"]) == (5, False)
    summary = ring.summarize_loss({0: make_statistics()}, after, {0: CpuDrain(1)}).as_json()
    assert (summary["lost"], summary["complete"]) == (4, False)


def test_overwritten_events_that_an_earlier_capture_told_of_are_not_lost_again():
    after = {0: make_statistics(overrun=1000)}
    summary = ring.summarize_loss({0: make_statistics(overrun=1000)}, after, {0: CpuDrain(1)}).as_json()
    assert (summary["lost"], summary["complete"]) == (0, True)
    assert summary["cpus"][0]["overrun"] == 1000


@pytest.mark.parametrize(
    ("text", "printable"),
    [
        ("nginx: worker", "nginx: worker"),
        ("", ""),
        ("\x1b[31mred\x1b[0m", "?[31mred?[0m"),
        ("a\nb\tc\rd\0", "a?b?c?d?"),
        ("\x7f\x80\x9b", "???"),
        ("é\u202e\U0001f600", "???"),
        (" ~", " ~"),
    ],
)
def test_printable(text, printable):
    assert make_printable(text) == printable


def test_command_names_of_now_replace_those_the_kernel_remembers():
    tasks = [{"tid": tid, "comm": comm} for tid, comm in ((20, "new"), (5, "evil\n9 root\x1b"), (7, ""), (8, "x" * 40))]
    first = [{"tid": 20, "comm": "oldest"}, {"tid": 30, "comm": "older"}, {"tid": 40, "comm": "forgotten"}]
    text = format_cmdlines(first, "20 old\n30 other name\nnonsense\n31\nx y\n", tasks)
    assert text == "5 evil?9 root?\n7 ?\n8 " + "x" * 15 + "\n20 new\n30 other name\n40 forgotten\n"


def test_of_an_unknown_loss_the_first_reader_knows_the_counter_since_the_start():
    before = {0: make_statistics(entries=10, overrun=70)}
    summary = ring.summarize_loss(before, before, {0: CpuDrain(2, 5, 1)}).as_json()
    assert (summary["lost"], summary["lost_exact"]) == (70, True)
    before = {0: make_statistics(entries=10, overrun=70, read=1)}
    summary = ring.summarize_loss(before, before, {0: CpuDrain(2, 5, 1)}).as_json()
    assert (summary["lost"], summary["lost_exact"], summary["complete"]) == (5, False, False)


def test_a_drain_that_ended_early_is_no_complete_capture_and_says_why():
    before = {0: make_statistics(entries=10)}
    summary = ring.summarize_loss(before, before, {0: CpuDrain(1, error="No space left on device")}).as_json()
    assert (summary["complete"], summary["lost_exact"]) == (False, False)
    assert summary["cpus"][0]["error"] == "No space left on device"
    assert summary["reasons"] == ["CPU 0: No space left on device"]


def test_a_name_that_pretends_to_be_a_line_of_the_list_names_nobody_else():
    saved = "7 victim\n9 a\n7 evil\n8 sh\n\u0661 x\n"
    assert parse_saved_cmdlines(saved) == {9: "a", 8: "sh"}
    # What is known from elsewhere stands.
    assert format_cmdlines([{"tid": 7, "comm": "victim"}], saved, []) == "7 victim\n8 sh\n9 a\n"


def test_what_a_change_of_settings_dropped_is_lost():
    statistics = {0: make_statistics(entries=5)}
    dropped = metadata.Discarded(7)
    summary = ring.summarize_loss(statistics, statistics, {0: CpuDrain(1)}, dropped).as_json()
    assert (summary["lost"], summary["discarded"], summary["lost_exact"], summary["complete"]) == (7, 7, True, False)
    dropped = metadata.Discarded(0, exact=False)
    summary = ring.summarize_loss(statistics, statistics, {0: CpuDrain(1)}, dropped).as_json()
    assert (summary["lost"], summary["lost_exact"], summary["complete"]) == (0, False, False)


def test_what_others_have_touched_is_not_complete_and_says_why():
    statistics = {0: make_statistics(entries=5)}
    summary = ring.summarize_loss(statistics, statistics, {0: CpuDrain(1)}, touched=["somebody did", "somebody did"])
    assert (summary.as_json()["complete"], summary.list_reasons()) == (False, ["somebody did"])


def test_counters_that_began_anew_count_nothing_twice():
    before, after = {0: make_statistics(entries=5, read=90)}, {0: make_statistics(read=2)}
    summary = ring.summarize_loss(before, after, {0: CpuDrain(1)}).as_json()
    assert (summary["entries"], summary["lost_exact"], summary["complete"]) == (0, False, False)


def test_every_reason_is_said_in_words():
    loss = Loss(
        [CpuLoss(0, lost=3, exact=False)], others=4, discarded=4, rotated=Rotated(1, 20, 4096), touched=["by somebody"]
    )
    assert loss.lost == 27
    assert loss.list_reasons() == [
        "by somebody",
        "20 events had to make room for newer ones",
        "4 events went when a setting of the trace changed",
        "at least 3 events were lost: the buffers were full before they were read",
    ]
    assert Loss([CpuLoss(0, exact=False)]).list_reasons() == ["nobody knows whether events were lost"]
    assert Loss([CpuLoss(0)]).list_reasons() == []
