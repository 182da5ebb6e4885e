# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The accounts of a capture, its parts, and names that go to a terminal."""

from __future__ import annotations

import hashlib
import os
import stat
import zlib

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import capture
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.capture import CpuLoss
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracefs import CpuStatistics


def make_statistics(entries=0, overrun=0, commit_overrun=0, dropped=0, read=0):
    return CpuStatistics(entries, overrun, commit_overrun, 0, dropped, read)


def test_a_complete_capture():
    before = {0: make_statistics(entries=100), 1: make_statistics(entries=20)}
    after = {0: make_statistics(entries=0, read=100), 1: make_statistics(entries=3, read=20)}
    summary = capture.summarize_loss(before, after, {0: CpuLoss(5, 0, True), 1: CpuLoss(1, 0, True)})
    assert (summary["entries"], summary["pages"], summary["lost"]) == (120, 6, 0)
    assert summary["complete"] is True
    assert summary["lost_exact"] is True
    # The entries are those that waited, the other counters those of the end.
    assert [(one["cpu"], one["entries"], one["read"], one["pages"]) for one in summary["cpus"]] == [
        (0, 100, 100, 5),
        (1, 20, 20, 1),
    ]


def test_lost_events_are_summed_over_cpus():
    statistics = {0: make_statistics(), 1: make_statistics()}
    summary = capture.summarize_loss(statistics, statistics, {0: CpuLoss(1, 30, True), 1: CpuLoss(1, 12, True)})
    assert (summary["lost"], summary["lost_exact"], summary["complete"]) == (42, True, False)
    assert [(one["lost"], one["exact"]) for one in summary["cpus"]] == [(30, True), (12, True)]


def test_an_unknown_loss_is_no_complete_capture():
    statistics = {0: make_statistics(), 1: make_statistics()}
    summary = capture.summarize_loss(statistics, statistics, {0: CpuLoss(1, 0, True), 1: CpuLoss(1, 0, False)})
    assert (summary["lost"], summary["lost_exact"], summary["complete"]) == (0, False, False)


@pytest.mark.parametrize("counter", ["dropped", "commit_overrun"])
def test_events_that_the_kernel_refused_count_as_lost(counter):
    after = {0: make_statistics(**{counter: 4})}
    summary = capture.summarize_loss({0: make_statistics()}, after, {0: CpuLoss(1, 1, True)})
    assert (summary["lost"], summary["complete"]) == (5, False)
    summary = capture.summarize_loss({0: make_statistics()}, after, {0: CpuLoss(1, 0, True)})
    assert (summary["lost"], summary["complete"]) == (4, False)


def test_overwritten_events_that_an_earlier_capture_told_of_are_not_lost_again():
    after = {0: make_statistics(overrun=1000)}
    summary = capture.summarize_loss({0: make_statistics(overrun=1000)}, after, {0: CpuLoss(1, 0, True)})
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
    assert capture.make_printable(text) == printable


def test_command_names_of_now_replace_those_the_kernel_remembers():
    tasks = [{"tid": tid, "comm": comm} for tid, comm in ((20, "new"), (5, "evil\n9 root\x1b"), (7, ""), (8, "x" * 40))]
    first = [{"tid": 20, "comm": "oldest"}, {"tid": 30, "comm": "older"}, {"tid": 40, "comm": "forgotten"}]
    text = capture.format_cmdlines(first, "20 old\n30 other name\nnonsense\n31\nx y\n", tasks)
    assert text == b"5 evil?9 root?\n7 ?\n8 " + b"x" * 15 + b"\n20 new\n30 other name\n40 forgotten\n"


def test_parts_stand_one_after_the_other_and_are_verifiable(tmp_path):
    path = str(tmp_path / "captures")
    contents = [[b"first", b"", b" part" * 1000], [], [b"\0" * 100000]]
    with capture.create_stage(path) as file:
        parts = []
        for content in contents:
            writer = capture.PartWriter(file)
            for piece in content:
                writer.write(piece)
            parts.append(writer.finish())
    with open(path, "rb") as file:
        staged = file.read()
    assert parts[0].offset == 0
    assert parts[1].offset == parts[0].size
    assert parts[-1].offset + parts[-1].size == len(staged)
    for part, content in zip(parts, contents):
        data = zlib.decompress(staged[part.offset : part.offset + part.size])
        assert data == b"".join(content)
        assert part.sha256 == hashlib.sha256(data).hexdigest()


def test_the_staged_file_is_for_its_owner_only_and_nobodys_before(tmp_path):
    path = str(tmp_path / "captures")
    capture.create_stage(path).close()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert os.stat(path).st_uid == os.stat(str(tmp_path)).st_uid
    with pytest.raises(FileExistsError):
        capture.create_stage(path)


def test_a_link_in_place_of_the_staged_file_is_not_followed(tmp_path):
    path = str(tmp_path / "captures")
    os.symlink(str(tmp_path / "victim"), path)
    with pytest.raises(OSError):
        capture.create_stage(path)
    assert not os.path.lexists(str(tmp_path / "victim"))
