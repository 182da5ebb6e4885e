# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Threads and processes through births, names, execs and ends; and many of them against dictionaries of Python."""

from __future__ import annotations

import random

import numpy as np
import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.calls import CallStream
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled import codes
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.compiled.scripts import (
    MANIFEST,
    NUMBERS,
    Script,
)

FIRST = [
    {"tid": 5, "tgid": 5, "container_tid": 1, "comm": "web"},
    {"tid": 6, "tgid": 5, "container_tid": 2, "comm": "worker"},
]


def list_who(script, manifest=None, cmdlines=b""):
    """Thread, process and name of each getpid."""
    calls = script.calls(manifest, cmdlines)
    return [(call.tid, call.pid, call.program) for call in calls if call.call == "getpid"]


def test_births():
    script = Script()
    script.fork(6, 7, name=b"child")
    script.fork(6, 8, pages.CLONE_THREAD | 1 << 40, name=b"thread")
    script.fork(8, 9, name=b"grandchild")
    for tid in (7, 8, 9):
        script.call(tid, "getpid")
    assert list_who(script, {"first_tasks": FIRST}) == [(7, 7, "child"), (8, 5, "thread"), (9, 9, "grandchild")]
    processes = script.tables({"first_tasks": FIRST}).processes
    assert processes.pid.tolist()[1:] == [5, 7, 9]
    assert processes.parent.tolist()[1:] == [-1, 1, 1]
    assert processes.begin_ns.tolist()[1:] == [codes.NEVER, 1010, 1030]


def test_a_guessed_name_gives_way_to_the_known_one():
    script = Script()
    script.call(5, "getpid")
    script.add(pages.make_rename(5, b"early", b"middle"))
    script.call(5, "getpid")
    script.add(pages.make_rename(5, b"untrue", b"late"))
    script.call(5, "getpid")
    assert [row[2] for row in list_who(script, {}, b"5 late\n")] == ["early", "middle", "late"]
    assert [row[2] for row in list_who(script, {"first_tasks": FIRST})] == ["web", "middle", "late"]


@pytest.mark.parametrize(
    ("is_renamed", "path", "name"),
    [
        (False, b"/usr/bin/a-very-long-program", "a-very-long-pro"),
        (False, b"plain", "plain"),
        (False, b"/bin/", "?"),
        (True, b"/bin/path", "own"),
    ],
)
def test_an_exec_gives_a_name_where_no_rename_does(is_renamed, path, name):
    script = Script()
    if is_renamed:
        script.add(pages.make_rename(5, b"web", b"own"))
    script.execute(5, path)
    script.call(5, "getpid")
    assert list_who(script, {"first_tasks": FIRST})[-1] == (5, 5, name)


@pytest.mark.parametrize("has_left", [False, True])
@pytest.mark.parametrize("is_known", [False, True])
def test_another_thread_execs(has_left, is_known):
    script = Script()
    script.enter(5, "poll")
    script.call(6, "getpid")
    script.enter(6, "execve")
    if has_left:
        script.leave(5)
    script.execute(5, b"/bin/new", old=6)
    script.exit(5, "execve")
    script.call(5, "getpid")
    script.call(6, "getpid")
    manifest = {"first_tasks": FIRST if is_known else FIRST[:1]}
    made = script.run(manifest)
    own = made.state.processes[1]
    assert (own[codes.PID], own[codes.PROCESS_END]) == (5, -codes.NEVER if is_known or not has_left else 1050)
    assert set(made.state.processes[1 : made.state.scalars[codes.PROCESSES], codes.PID].tolist()) <= {5, 6}
    calls = script.calls(manifest)
    assert [(call.tid, call.call, call.unfinished) for call in calls] == [
        (6, "getpid", False),
        (5, "poll", True),
        (5, "execve", False),
        (5, "getpid", False),
        (6, "getpid", False),
    ]
    assert [call.pid for call in calls[1:4]] == [5, 5, 5]
    assert calls[3].program == "new"


def test_a_number_is_used_again():
    script = Script()
    script.enter(7, "read")
    script.fork(5, 7, name=b"second")
    script.call(7, "getpid")
    script.leave(7)
    script.fork(5, 7, pages.CLONE_THREAD, name=b"third")
    script.call(7, "getpid")
    calls = script.calls({"first_tasks": FIRST, "tasks": [{"tid": 7, "tgid": 5, "container_tid": 3, "comm": "later"}]})
    assert [(call.tid, call.pid, call.program, call.call, call.unfinished) for call in calls] == [
        (7, 5, "later", "read", True),
        (7, 7, "second", "getpid", False),
        (7, 5, "third", "getpid", False),
    ]


def test_a_thread_that_ends_is_forgotten():
    script = Script()
    script.add(pages.make_paths(1501, 6, b"/never/opened"))
    script.enter(6, "openat")
    script.leave(6)
    script.exit(6, "openat", 3)
    calls = script.calls({"first_tasks": FIRST})
    assert [(call.path, call.unfinished, call.continued) for call in calls] == [
        ("/never/opened", True, False),
        (None, False, True),
    ]


def test_more_threads_than_there_is_room_for():
    script = Script()
    for tid in range(1, 6):
        script.exit(tid, "getpid", 1)

    def prepare(state):
        state.scalars[codes.THREADS] = len(state.thread_free) - 2

    made = script.run(prepare=prepare)
    assert (made.state.scalars[codes.UNKNOWN_EVENTS], made.state.scalars[codes.EVENTS]) == (3, 5)


def test_more_tasks_and_processes_than_there_is_room_for():
    script = Script()
    for tid in range(10, 15):
        script.call(tid, "getpid")
        script.open(tid, b"/a", 3)
        script.fork(tid, tid + 100)
        script.execute(tid)
        script.leave(tid)

    def prepare(state):
        state.scalars[codes.TASKS] = len(state.tasks) - 2
        state.scalars[codes.PROCESSES] = len(state.processes) - 1

    tables = script.tables(prepare=prepare)
    assert sum(tables.cells.count.tolist()) == 15
    assert set(tables.tasks.process[tables.cells.task].tolist()) <= {0, len(tables.processes.pid) - 1}


def choose_numbers(chance):
    """Numbers of threads of which many have the same place in the index, also at its end."""
    numbers = np.arange(2, 1 << 22, dtype=np.int64)
    homes = (numbers * 0x9E3779B1 >> 8) & 0x1FFFF
    crowded = numbers[(homes < 4) | (homes >= 0x1FFFC) | ((homes >= 5000) & (homes < 5004))].tolist()
    return chance.sample(crowded, 250) + chance.sample(range(2, 1 << 22), 250)


class Model:
    """Threads in dictionaries. OWNERS has the number of the process, counted from 1, by thread."""

    def __init__(self):
        self.owners, self.names, self.named, self.pids = {5: 1}, {5: "web"}, set(), [5]

    def forget(self, tid):
        self.owners.pop(tid, None)
        self.names.pop(tid, None)
        self.named.discard(tid)

    def add(self, tid, owner, name):
        self.forget(tid)
        self.owners[tid], self.names[tid] = owner, name


def act(chance, script, model, numbers, count):
    """Add a random event to SCRIPT and its effect to MODEL; return the call that it makes, if any."""
    tid, action = chance.choice(list(model.owners)), chance.random()
    name, owner = f"n{count}", model.owners[tid]
    if action < 0.3 and len(model.owners) < 300:
        other = chance.choice(numbers)
        if other == tid:
            return None
        flags = chance.choice([0, pages.CLONE_THREAD])
        script.fork(tid, other, flags, name.encode())
        if not flags:
            model.pids.append(other)
        model.add(other, owner if flags else len(model.pids), name)
    elif action < 0.5 and len(model.owners) > 1:
        script.leave(tid)
        model.forget(tid)
    elif action < 0.55:
        script.add(pages.make_rename(tid, b"?", name.encode()))
        model.names[tid] = name
        model.named.add(tid)
    elif action < 0.65:
        pid = model.pids[owner - 1]
        script.execute(pid, b"/bin/" + name.encode(), old=tid)
        # The rename that belongs to an exec is recorded for the number of the process.
        new = model.names[pid] if pid in model.named else name
        model.forget(tid)
        model.add(pid, owner, new)
    else:
        script.call(tid, "getpid")
        return tid, model.pids[owner - 1], model.names[tid], owner
    return None


@pytest.mark.parametrize("seed", [1, 2])
def test_many_threads_that_come_and_go(seed):
    chance = random.Random(seed)
    numbers = choose_numbers(chance)
    script, model, wanted = Script(), Model(), []
    for count in range(15000):
        made = act(chance, script, model, numbers, count)
        if made:
            wanted.append(made)
    manifest = {**MANIFEST, "first_tasks": FIRST[:1]}
    stream = CallStream(script.trace(), manifest)
    tasks = np.concatenate([block.tasks[block.numbers == NUMBERS["getpid"]] for block in stream.gen_blocks()])
    assert list_who(script, manifest) == [row[:3] for row in wanted]
    state = stream._pass.state
    assert state.tasks[tasks, codes.TASK_PROCESS].tolist() == [row[3] for row in wanted]
    assert state.processes[1 : state.scalars[codes.PROCESSES], codes.PID].tolist() == model.pids
    living = [
        tid for tid in state.threads[:, codes.TID].tolist() if tid not in (0, codes.NO_TID)
    ]  # 0: a row never used
    assert sorted(living) == sorted(model.owners)
    assert np.count_nonzero(state.thread_index) == state.scalars[codes.THREADS] == len(model.owners)
