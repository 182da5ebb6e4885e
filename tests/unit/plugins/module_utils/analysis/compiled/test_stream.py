# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stream of calls: its columns, its blocks, and the order of ends."""

from __future__ import annotations

import numpy as np

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.calls import Call, CallStream
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled import codes
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.compiled.scripts import (
    MANIFEST,
    NUMBERS,
    Script,
)

FIRST = [
    {"tid": 6, "tgid": 5, "container_tid": 2, "comm": "worker"},
    {"tid": 5, "tgid": 5, "container_tid": 1, "comm": "w"},
]
PLAIN = {
    "tid": 6,
    "pid": 5,
    "program": "worker",
    "container_pid": 1,
    "error": None,
    "path": None,
    "peer": None,
    "descriptor": None,
    **dict.fromkeys(("denied", "trapped", "restarted", "unfinished", "continued", "compat"), False),
}


def test_all_columns():
    script = Script()
    script.open(6, b"/etc/a", 3, arguments=(1, 2, 3, 4, 5, (1 << 64) - 6))
    script.call(6, "read", 3, result=-4)
    script.call(6, "read", 3, result=-512)
    script.exit(6, "getpid", -1)
    script.exit(6, "getpid", 39)
    script.enter(6, "poll", 9)
    calls = script.calls({"first_tasks": FIRST})
    rows = [
        {"start_ns": 1010, "duration_ns": 20, "call": "openat", "arguments": (1, 2, 3, 4, 5, -6), "result": 3}
        | {"path": "/etc/a", "number": NUMBERS["openat"]},
        {"start_ns": 1040, "duration_ns": 10, "call": "read", "arguments": (3, 0, 0, 0, 0, 0), "result": -4}
        | {"error": "EINTR", "descriptor": "/etc/a", "number": 0},
        {"start_ns": 1060, "duration_ns": 10, "call": "read", "arguments": (3, 0, 0, 0, 0, 0), "result": -512}
        | {"error": "ERESTARTSYS", "descriptor": "/etc/a", "number": 0, "restarted": True},
        {"start_ns": 1080, "duration_ns": None, "call": "getpid", "arguments": (), "result": -1, "error": "EPERM"}
        | {"denied": True, "number": 39},
        {"start_ns": 1090, "duration_ns": None, "call": "getpid", "arguments": (), "result": 39}
        | {"denied": True, "trapped": True, "number": 39},
        {"start_ns": 1100, "duration_ns": None, "call": "poll", "arguments": (9, 0, 0, 0, 0, 0), "result": None}
        | {"unfinished": True, "number": NUMBERS["poll"]},
    ]
    assert calls == [Call(**{**PLAIN, **row}) for row in rows]


def test_a_thread_and_a_process_that_nobody_knows():
    script = Script()
    script.exit(9, 9999, 0)
    (call,) = script.calls({"syscalls": {}})
    assert (call.tid, call.pid, call.program, call.container_pid) == (9, 9, "?", None)
    assert (call.call, call.continued, call.arguments) == ("syscall_0x270f", True, ())


def test_a_stream_of_several_blocks():
    script = Script()
    count = 70000
    for index in range(count):
        script.exit(5 + index % 3, "read", index)
    script.open(5, b"/late", 3)
    stream = CallStream(script.trace(), MANIFEST)
    sizes, results = [], []
    for block in stream.gen_blocks():
        sizes.append(len(block.ends))
        results += block.results.tolist()
    assert (sum(sizes), len(sizes)) == (count + 1, 2)
    assert max(sizes) <= 65536
    assert results == [*range(count), 3]
    calls = script.calls()
    assert [call.result for call in calls] == results
    assert calls[-1].path == "/late"


def test_calls_that_do_not_end_come_last_and_may_fill_blocks():
    script = Script()
    threads = 65400
    for tid in range(10, 10 + threads):
        script.enter(tid, "poll")
    for index in range(1000):
        script.call(10, "getpid", result=index)
    stream = CallStream(script.trace(), MANIFEST)
    blocks = [(block.ends.copy(), block.outcomes.copy(), block.tasks.copy()) for block in stream.gen_blocks()]
    assert len(blocks) >= 2
    ends, outcomes, tasks = (np.concatenate(columns) for columns in zip(*blocks))
    assert (np.diff(ends) >= 0).all()
    # The first thread's poll ended without an exit, when it entered the next call.
    unfinished = outcomes & codes.UNFINISHED != 0
    assert unfinished.tolist() == [True, *[False] * 1000, *[True] * (threads - 1)]
    assert len(set(tasks.tolist())) == threads
    assert set(ends[1001:].tolist()) == {script.now}


def test_a_pass_without_a_stream_yields_nothing_and_counts_the_same():
    script = Script()
    for index in range(70000):
        script.exit(5, "read", index % 2)
    made = script.run()
    assert made.state.scalars[codes.OUT] == 0
    assert made.state.cells[: made.state.scalars[codes.CELLS], codes.COUNT].tolist() == [70000]
