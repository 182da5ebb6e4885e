# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names and processes of threads at a time."""

from __future__ import annotations

import io
from typing import NamedTuple

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled import codes
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.capture_pass import CapturePass
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.results import find_container_pids
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.histories import Histories
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages


def make_task(tid, tgid, comm, container_tid=1):
    return {"tid": tid, "tgid": tgid, "comm": comm, "container_tid": container_tid}


class Names:
    """The histories of threads after a pass, and what the tables of the pass say of their processes."""

    def __init__(self, state, manifest):
        self._state, self._histories = state, Histories(state, manifest)
        self._inside = find_container_pids(state.processes[: state.scalars[codes.PROCESSES]], manifest)
        self.find_name = self._histories.find_name
        self.find_container_pid = self._histories.find_container_pid

    def find_process(self, tid, time):
        """The process of thread TID at TIME: its number, and its index in the table; 0 without a thread of that number."""
        number = int(self._state.tasks[self._histories.find_task(tid, time), codes.TASK_PROCESS])
        return Process(number, int(self._state.processes[number, codes.PID]), self._inside[number])

    def list_changes(self, tid):
        """The times at which thread TID became another task."""
        tasks = self._state.tasks[1 : self._state.scalars[codes.TASKS]]
        times = tasks[tasks[:, codes.TASK_TID] == tid, codes.TASK_BEGIN]
        return times[times != codes.NEVER].tolist()


class Process(NamedTuple):
    number: int
    pid: int
    container_pid: int


def feed(events, first_tasks=(), last_tasks=(), cmdlines=b"", rename_format=pages.TASK_RENAME):
    """Names after EVENTS, each (time, record), one page for each, and the first half of them on another CPU."""
    made = [pages.pack_page(time, [pages.pack_event(record)]) for time, record in events]
    # Later events stand first in the file.
    half = len(made) // 2
    trace = Trace(io.BytesIO(pages.pack_trace([made[half:], made[:half]], rename_format, cmdlines)))
    manifest = {"first_tasks": list(first_tasks), "tasks": list(last_tasks)}
    return Names(CapturePass(trace, manifest).run(), manifest)


def test_without_any_knowledge():
    names = feed([])
    assert names.find_name(5, 100) == "?"
    assert names.find_process(5, 0).number == 0
    assert names.find_container_pid(5, 0) is None
    assert names.list_changes(5) == []


def test_a_cpu_that_has_nothing_to_do():
    assert feed([]).find_name(0, 100) == "<idle>"
    assert feed([(100, pages.make_newtask(0, 5, b"x"))]).find_name(0, 100) == "<idle>"


def test_what_was_known_before():
    seen = [(900, pages.make_enter(5, 1))]
    names = feed(seen, [], [make_task(5, 4, "worker", 2)], b"4 main\n5 stale\nnonsense\n x\n6 two words\n")
    assert (names.find_name(4, 0), names.find_name(5, 0), names.find_name(6, 0)) == ("main", "worker", "two words")
    assert names.find_process(5, 0).pid == 4
    assert names.find_container_pid(5, 0) == 2


def test_a_new_process_and_a_new_thread():
    names = feed(
        [
            (100, pages.make_newtask(10, 11, b"sh")),
            (200, pages.make_newtask(11, 12, b"sh", pages.CLONE_THREAD)),
            # A thread of a thread is a thread of the same process.
            (300, pages.make_newtask(12, 13, b"sh", pages.CLONE_THREAD | 0x100)),
            (400, pages.make_newtask(13, 14, b"sh", 0x100)),
        ]
    )
    assert [names.find_process(tid, 500).pid for tid in (10, 11, 12, 13, 14)] == [10, 11, 11, 11, 14]
    assert names.find_name(13, 301) == "sh"


def test_a_thread_of_a_thread_that_was_there_before():
    names = feed([(100, pages.make_newtask(21, 22, b"x", pages.CLONE_THREAD))], [make_task(21, 20, "x")])
    assert names.find_process(22, 100).pid == 20


@pytest.mark.parametrize(
    ("rename_format", "make_rename"),
    [(pages.TASK_RENAME, pages.make_rename), (pages.TASK_RENAME_WITHOUT_PID, pages.make_rename_without_pid)],
)
def test_names_change_in_the_course_of_time(rename_format, make_rename):
    names = feed(
        [
            (100, make_rename(5, b"runc:[2:INIT]", b"sh")),
            (200, make_rename(6, b"a", b"b")),
            (300, make_rename(5, b"sh", b"env")),
            (400, make_rename(5, b"env", b"ls")),
        ],
        last_tasks=[make_task(5, 5, "ls")],
        rename_format=rename_format,
    )
    found = [names.find_name(5, time) for time in (0, 99, 100, 299, 300, 399, 400, 10**18)]
    assert found == ["runc:[2:INIT]", "runc:[2:INIT]", "sh", "sh", "env", "env", "ls", "ls"]
    assert names.list_changes(5) == [100, 300, 400]
    assert names.find_name(6, 250) == "b"


def test_another_thread_may_be_renamed():
    record = pages.make_rename(5, b"old", b"new")
    record = record[:4] + (77).to_bytes(4, "little") + record[8:]  # thread 77 renames thread 5
    names = feed([(100, record)])
    assert (names.find_name(5, 50), names.find_name(5, 150), names.find_name(77, 150)) == ("old", "new", "?")


def test_a_number_that_is_used_again():
    names = feed([(100, pages.make_newtask(1, 5, b"first")), (500, pages.make_newtask(1, 5, b"second"))])
    assert [names.find_name(5, time) for time in (150, 499, 500)] == ["first", "first", "second"]


def test_a_hostile_name_is_text():
    names = feed([(100, pages.make_rename(5, b"\xff\xfe", b"\x1b[2J"))], cmdlines=b"7 \xff\n")
    assert names.find_name(5, 0) == "\ufffd\ufffd"
    assert names.find_name(5, 100) == "\x1b[2J"
    assert names.find_name(7, 0) == "\ufffd"


def test_a_line_of_names_whose_number_int_does_not_take_is_passed_over():
    assert feed([], cmdlines="\u00b2 x\n5 y\n".encode()).find_name(5, 0) == "y"


def test_what_a_thread_that_execs_was_called_is_no_name_of_its_process():
    names = feed(
        [
            (100, pages.make_newtask(5, 6, b"web", pages.CLONE_THREAD)),
            (200, pages.make_rename(6, b"web", b"runner")),
            (300, pages.make_rename(5, b"runner", b"ls")),
            (310, pages.make_exec(5, b"/bin/ls", 6)),
        ],
        [make_task(5, 5, "web")],
        [make_task(5, 5, "ls")],
    )
    assert [names.find_name(5, time) for time in (0, 299, 300)] == ["web", "web", "ls"]
    assert [names.find_name(6, time) for time in (150, 250)] == ["web", "runner"]


def test_a_number_that_is_used_again_is_of_another_process():
    names = feed(
        [
            (100, pages.make_newtask(1, 5, b"a")),
            (200, pages.make_newtask(5, 6, b"a", pages.CLONE_THREAD)),
            (300, pages.make_newtask(1, 7, b"b")),
            (400, pages.make_newtask(7, 6, b"b", pages.CLONE_THREAD)),
            (500, pages.make_newtask(1, 5, b"c")),
            (600, pages.make_newtask(5, 6, b"c", pages.CLONE_THREAD)),
        ],
        [make_task(6, 4, "old", 2), make_task(4, 4, "old", 1)],
        [make_task(5, 5, "c", 9)],
    )
    assert [names.find_process(6, time).pid for time in (0, 200, 399, 400, 600)] == [4, 5, 5, 7, 5]
    first, last = names.find_process(6, 200), names.find_process(6, 600)
    assert (first.pid, last.pid, first.number == last.number) == (5, 5, False)
    assert (first.container_pid, last.container_pid) == (-1, 9)
    assert names.find_process(6, 0).container_pid == 1
    assert [names.find_container_pid(6, time) for time in (0, 300, 600)] == [2, None, None]
    assert names.find_name(6, 0) == "old"


def test_who_is_in_no_list_is_named_after_his_program():
    # The rename that came with the exec was the runtime's, and is left out of a trace.
    names = feed([(100, pages.make_exec(5, b"/usr/local/bin/a-very-long-program-name"))], cmdlines=b"")
    assert (names.find_name(5, 99), names.find_name(5, 100)) == ("?", "a-very-long-pro")


def test_a_rename_is_better_than_a_path():
    # By a descriptor a program has no path: execveat(2).
    names = feed([(100, pages.make_rename(5, b"sh", b"tool")), (110, pages.make_exec(5, b"/dev/fd/5"))])
    assert (names.find_name(5, 99), names.find_name(5, 200)) == ("sh", "tool")


def test_tasks_that_are_each_others_processes_end():
    seen = [(900, pages.make_enter(5, 1)), (910, pages.make_enter(6, 1))]
    names = feed(seen, [], [make_task(5, 6, "a"), make_task(6, 5, "b")])
    assert (names.find_process(5, 0).pid, names.find_process(6, 0).pid) == (6, 6)
