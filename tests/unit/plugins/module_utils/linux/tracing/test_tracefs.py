# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Content of the control files of tracefs."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import tracefs

STATISTICS = """\
entries: 1234
overrun: 56
commit overrun: 7
bytes: 89012
oldest event ts:  3400.123456
now ts:  3405.026956
dropped events: 3
read events: 4567
"""


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[local] global counter uptime perf mono mono_raw boot tai x86-tsc", "local"),
        ("local global counter uptime perf mono mono_raw [boot] tai", "boot"),
        ("local [x86-tsc]\n", "x86-tsc"),
        ("nothing selected", ""),
        ("", ""),
    ],
)
def test_the_selected_word(text, word):
    assert tracefs.parse_selected(text) == word


def test_statistics():
    assert tracefs.parse_statistics(STATISTICS) == tracefs.CpuStatistics(
        entries=1234, overrun=56, commit_overrun=7, bytes=89012, dropped=3, read=4567
    )


def test_statistics_that_a_kernel_does_not_give_are_zero():
    assert tracefs.parse_statistics("entries: 5\n") == tracefs.CpuStatistics(5, 0, 0, 0, 0, 0)
    assert tracefs.parse_statistics("") == tracefs.CpuStatistics(0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("line", ["entries", "entries:", "entries: -1", "entries: many", ":", "\0"])
def test_damaged_statistics_are_passed_over(line):
    assert tracefs.parse_statistics(line + "\noverrun: 2\n") == tracefs.CpuStatistics(0, 2, 0, 0, 0, 0)


def test_what_a_kernel_can_trace_is_read_from_its_files(tmp_path):
    (tmp_path / "instances").mkdir()
    (tmp_path / "available_events").write_text("sched:sched_switch\nsched:sched_process_exec\nraw_syscalls:sys_exit\n")
    (tmp_path / "available_tracers").write_text("function nop\n")
    (tmp_path / "trace_clock").write_text("local [global] mono\n")
    assert tracefs.list_available(str(tmp_path)) == {
        "events": {"sched": ["sched_switch", "sched_process_exec"], "raw_syscalls": ["sys_exit"]},
        "tracers": ["function", "nop"],
        "clocks": ["local", "global", "mono"],
    }


def test_an_instance_that_is_not_there_is_named(tmp_path):
    instance = tracefs.Instance(str(tmp_path), "crashcart-0123")
    assert not instance.exists()
    with pytest.raises(tracefs.TraceError, match="tracing_on of trace instance crashcart-0123"):
        instance.is_tracing()
    with pytest.raises(tracefs.TraceError, match="no tracing instances"):
        instance.create()


LOG = """\
[  100.1] event filter parse error: error: Field not found
  Command: old == 1
           ^
[ 4130.711728] event filter parse error: error: Field not found
  Command: common_pid >= 0 && (nonesuch == 1)
                               ^
"""


def test_the_kernels_newest_error():
    assert tracefs.parse_last_error(LOG) == (
        "event filter parse error: error: Field not found in common_pid >= 0 && (<here>nonesuch == 1)"
    )
    assert tracefs.parse_last_error("") == ""
    assert tracefs.parse_last_error("[ 1.0] something\n") == "something"
