# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Signals that take their default effect, and victims of the OOM killer."""

from __future__ import annotations

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled import codes
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.compiled.scripts import Script


def list_signals(tables):
    signals = tables.signals
    return [
        (int(tables.tasks.tid[task]), int(time), int(number))
        for task, time, number in zip(signals.task, signals.time_ns, signals.number)
    ]


def test_signals_and_victims_in_the_order_of_time():
    script = Script()
    script.call(5, "getpid")
    script.deliver(5, 15, handler=0x401000)
    script.deliver(5, 11)
    script.mark_victim(5, 6)
    script.mark_victim(5, 5)
    script.deliver(6, 9)
    assert list_signals(script.tables()) == [(5, 1040, 11), (-1, 1050, 0), (5, 1060, 0), (6, 1070, 9)]


def test_a_handler_anywhere_is_one():
    script = Script()
    script.deliver(5, 15, handler=1 << 40)
    script.deliver(5, 15, handler=-(1 << 63))
    assert list_signals(script.tables()) == []


def test_signals_are_bounded():
    script = Script()
    script.deliver(5, 17)
    script.deliver(5, 18)
    script.deliver(5, 19)

    def prepare(state):
        state.scalars[codes.SIDES] = len(state.sides) - 2

    assert [row[2] for row in list_signals(script.tables(prepare=prepare))][-2:] == [17, 18]


def test_the_status_that_a_process_ends_with():
    script = Script()
    script.enter(5, "exit_group", 3)
    script.leave(5)
    script.call(6, "getpid")
    script.enter(7, "exit_group", 256 + 255)
    script.leave(7)
    # Denied: it does not end.
    script.exit(6, "exit_group", -1)
    processes = script.tables().processes
    assert processes.pid.tolist()[1:] == [5, 6, 7]
    assert processes.status.tolist()[1:] == [3, -1, 255]
    assert processes.end_ns.tolist()[1:] == [1020, 0, 1060]


def test_a_process_ends_with_its_last_thread():
    script = Script()
    script.open(5, b"/a", 3)
    script.fork(5, 6, pages.CLONE_THREAD)
    script.fork(5, 7, pages.CLONE_THREAD)
    script.leave(5)
    script.call(6, "read", 3, result=1)
    script.leave(7)
    script.call(6, "read", 3, result=1)
    script.leave(6)
    tables = script.tables()
    assert (tables.processes.pid.tolist()[1:], tables.processes.end_ns.tolist()[1:]) == ([5], [script.now])
    assert [call.descriptor for call in script.calls() if call.call == "read"] == ["/a", "/a"]
    assert tables.descriptors.count == []


def test_after_exit_group_a_process_has_ended_though_the_end_of_a_thread_is_missing():
    script = Script()
    script.fork(5, 6, pages.CLONE_THREAD)
    script.fork(5, 7, pages.CLONE_THREAD)
    script.enter(6, "exit_group", 3)
    script.leave(6)
    script.leave(5)
    processes = script.tables().processes
    assert (processes.end_ns.tolist()[1:], processes.status.tolist()[1:]) == ([script.now], [3])


def test_a_process_whose_first_thread_has_ended_has_not():
    script = Script()
    script.fork(5, 6, pages.CLONE_THREAD)
    script.leave(5)
    assert script.tables().processes.end_ns.tolist()[1:] == [0]
