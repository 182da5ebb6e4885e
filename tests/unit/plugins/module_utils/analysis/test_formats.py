# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Formats of events, as kernels write them and as nobody should."""

from __future__ import annotations

import random
import time

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.formats import Field, parse_format, read_formats
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.trace_dat import Head, TraceFileError
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages

COMMON = ["common_type", "common_flags", "common_preempt_count", "common_pid"]


def test_sys_enter():
    parsed = parse_format(pages.SYS_ENTER, "raw_syscalls")
    assert (parsed.id, parsed.system, parsed.name) == (443, "raw_syscalls", "sys_enter")
    assert list(parsed.fields) == [*COMMON, "id", "args"]
    assert parsed.fields["id"] == Field("id", 8, 8, is_signed=True, is_dynamic=False, is_array=False)
    assert parsed.fields["args"] == Field("args", 16, 48, is_signed=False, is_dynamic=False, is_array=True)
    assert parsed.fields["common_preempt_count"] == Field("common_preempt_count", 3, 1, False, False, False)


def test_sys_exit():
    parsed = parse_format(pages.SYS_EXIT, "raw_syscalls")
    assert (parsed.id, parsed.name) == (442, "sys_exit")
    assert parsed.fields["ret"] == Field("ret", 16, 8, is_signed=True, is_dynamic=False, is_array=False)


def test_task_rename_with_and_without_pid():
    parsed = parse_format(pages.TASK_RENAME, "task")
    assert list(parsed.fields) == [*COMMON, "pid", "oldcomm", "newcomm", "oom_score_adj"]
    assert parsed.fields["newcomm"] == Field("newcomm", 28, 16, is_signed=False, is_dynamic=False, is_array=True)
    parsed = parse_format(pages.TASK_RENAME_WITHOUT_PID, "task")
    assert "pid" not in parsed.fields
    assert parsed.fields["newcomm"].offset == 24


def test_a_text_whose_place_counts_from_the_field():
    parsed = parse_format(pages.make_path_format("x", 9, "path", kind="__rel_loc").decode(), "crashcart")
    assert (parsed.fields["path"].is_dynamic, parsed.fields["path"].is_relative) == (True, True)
    parsed = parse_format(pages.SCHED_PROCESS_EXEC, "sched")
    assert (parsed.fields["filename"].is_relative, parsed.fields["pid"].is_relative) == (False, False)


def test_sched_process_exec_has_a_text_behind_the_record():
    parsed = parse_format(pages.SCHED_PROCESS_EXEC, "sched")
    assert parsed.fields["filename"] == Field("filename", 8, 4, is_signed=False, is_dynamic=True, is_array=False)
    assert parsed.fields["old_pid"] == Field("old_pid", 16, 4, is_signed=True, is_dynamic=False, is_array=False)


@pytest.mark.parametrize(
    ("line", "name", "offset", "is_array", "is_dynamic"),
    [
        ("field:const char * name;\toffset:8;\tsize:8;\tsigned:0;", "name", 8, False, False),
        ("field:const char *name;\toffset:8;\tsize:8;\tsigned:0;", "name", 8, False, False),
        ("field:struct list_head *x;\toffset:24;\tsize:8;\tsigned:0;", "x", 24, False, False),
        ("field:unsigned long long n;\toffset:8;\tsize:8;\tsigned:0;", "n", 8, False, False),
        ("field:char comm[TASK_COMM_LEN];\toffset:8;\tsize:16;\tsigned:0;", "comm", 8, True, False),
        ("field:__data_loc u8[] data;\toffset:12;\tsize:4;\tsigned:0;", "data", 12, False, True),
        ("field: char data;\toffset:16;\tsize:4080;\tsigned:0;", "data", 16, False, False),
    ],
)
def test_other_types_of_fields(line, name, offset, is_array, is_dynamic):
    (field,) = parse_format(f"name: x\nID: 1\nformat:\n\t{line}\n", "s").fields.values()
    assert (field.name, field.offset, field.is_array, field.is_dynamic) == (name, offset, is_array, is_dynamic)


@pytest.mark.parametrize(
    "text", ["", "name: x\n", "ID: 5\n", "name:\nID: 5\n", "name: x\nID: -5\n", "name: x\nID: 0x5\n", "\0"]
)
def test_a_format_without_a_name_or_a_number_is_refused(text):
    with pytest.raises(TraceFileError, match="'raw_syscalls'"):
        parse_format(text, "raw_syscalls")


@pytest.mark.parametrize(
    "line",
    [
        "field:int x;",
        "field:int x;\toffset:;\tsize:4;\tsigned:1;",
        "field:int x;\toffset:-8;\tsize:4;\tsigned:1;",
        "field:int x;\toffset:8;\tsize:4;",
        "field:;\toffset:8;\tsize:4;\tsigned:1;",
    ],
)
def test_a_damaged_field_is_passed_over(line):
    fields = parse_format(f"name: x\nID: 1\n\t{line}\n\tfield:int y;\toffset:12;\tsize:4;\tsigned:1;\n", "s").fields
    assert list(fields) == ["y"]


def test_formats_of_a_head_by_system_and_name():
    head = Head(4096, b"", b"", [], {"raw_syscalls": [pages.SYS_ENTER.encode(), pages.SYS_EXIT.encode()], "x": []})
    assert {name: one.id for name, one in read_formats(head).items()} == {
        "raw_syscalls:sys_enter": 443,
        "raw_syscalls:sys_exit": 442,
    }
    head.event_formats["x"] = [b"\xff\xfe"]
    with pytest.raises(TraceFileError):
        read_formats(head)


@pytest.mark.sweep
def test_damaged_texts_give_a_format_or_the_one_error():
    source = random.Random(3)
    refused = 0
    for _round in range(3000):
        text = bytearray(pages.SCHED_PROCESS_EXEC.encode())
        for _change in range(source.randrange(1, 20)):
            text[source.randrange(len(text))] = source.choice(b"0123456789:;[] \t\nax_-")
        try:
            parsed = parse_format(text.decode(), "s")
        except TraceFileError:
            refused += 1
            continue
        assert parsed.name
        assert all(field.offset >= 0 and field.size >= 0 for field in parsed.fields.values())
    assert 0 < refused < 3000


@pytest.mark.parametrize("number", ["\u00b2", "9" * 5000])
def test_a_number_that_int_does_not_take_is_refused(number):
    with pytest.raises(TraceFileError):
        parse_format(f"name: x\nID: {number}\n", "s")


def test_a_long_line_takes_no_quadratic_time():
    start = time.process_time()
    parse_format("name: x\nID: 1\n\tfield:" + "a" * 8000, "s")
    assert time.process_time() - start < 0.1
