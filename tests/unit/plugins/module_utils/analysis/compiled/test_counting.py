# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Counts of calls, the longest calls, and histograms, against plain counting of random calls."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled import codes
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.counting import find_step
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.syscalls import (
    TableMaker,
    _find_end,
    make_all_tables,
)
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.compiled.scripts import (
    MANIFEST,
    NUMBERS,
    Script,
    list_cells,
)


def make_calls(durations, tids=(5,), name="read"):
    """A call of each of DURATIONS, one after another, by TIDS in turn."""
    script = Script()
    for index, duration in enumerate(durations):
        tid = tids[index % len(tids)]
        script.enter(tid, name)
        script.exit(tid, name, time=script.now + duration)
    return script


def test_cells_count_what_was_called():
    chance = random.Random(1)
    script, wanted = Script(), defaultdict(list)
    for _index in range(4000):
        tid, name = chance.randrange(100, 140), chance.choice(["read", "write", "getpid", "poll"])
        result, duration = chance.choice([0, 5, -1, -11, -110]), chance.randrange(1, 1000)
        script.enter(tid, name)
        script.exit(tid, name, result, time=script.now + duration)
        flags = codes.TIMED_OUT if name == "poll" and result == 0 else 0
        wanted[tid, NUMBERS[name], max(0, -result) | flags].append((script.now, duration))
    tables = script.tables()
    cells = tables.cells
    columns = (
        cells.task,
        cells.number,
        cells.outcome,
        cells.count,
        cells.first_ns,
        cells.last_ns,
        cells.total_ns,
        cells.max_ns,
    )
    found = {
        (int(tables.tasks.tid[task]), number, outcome): rest
        for task, number, outcome, *rest in zip(*(column.tolist() for column in columns))
    }
    assert found == {
        key: [len(rows), rows[0][0], rows[-1][0], sum(row[1] for row in rows), max(row[1] for row in rows)]
        for key, rows in wanted.items()
    }


@pytest.mark.parametrize("share", [4, 8, 16, 1 << 40])
def test_where_cells_run_short_no_call_is_lost(share):
    script = Script()
    for index in range(60):
        script.open(index % 7 + 5, b"/%d" % index, -2)
        script.call(5, 5000 + index, result=-38)

    def prepare(state):
        most = len(state.cells)
        state.scalars[codes.CELLS] = most - most // share - 5 if share < 100 else most - 90

    tables = script.tables(prepare=prepare)
    rows = [row for row in list_cells(tables) if row[4]]
    assert sum(row[4] for row in rows) == 120
    errors = Counter()
    for _name, _number, outcome, _text, count in rows:
        errors[outcome] += count
    assert errors == {2: 60, 38: 60}
    assert sum(1 for row in rows if row[3]) <= (3 if share < 100 else 0)
    assert (tables.left_out == 0) is (share == 4)
    if share >= 16:
        table = make_table(script, prepare)
        assert sum(row.calls for row in table.processes) == 120
        assert "(other calls)" in [row.syscall for row in table.programs]


def make_table(script, prepare):
    made = script.run(prepare=prepare)
    tables = script.tables(prepare=prepare)
    return TableMaker(script.trace(), made, tables, []).make()


@pytest.mark.parametrize("kind", ["random", "few", "equal", "growing", "wide"])
def test_the_longest_calls_are_kept(kind):
    chance = random.Random(2)
    make = {
        "random": lambda _index: chance.randrange(1 << 20),
        "few": lambda _index: chance.choice([5, 1000, 1010, 1020]),
        "equal": lambda _index: 1000,
        "growing": lambda index: index,
        "wide": lambda _index: int(2 ** (chance.random() * 30)),
    }[kind]
    durations = [make(index) for index in range(45000)]
    long = make_calls(durations).tables().long_calls
    assert long.duration_ns.tolist() == sorted(durations, reverse=True)[:4000]
    assert len(set(long.start_ns.tolist())) == 4000


def list_p99(script, min_latency_ns=0):
    table, _tables = make_all_tables(script.trace(), MANIFEST, min_latency_ns)
    return {row.pids[0]: (row.calls, row.measured, row.total_ns, row.p99_ns) for row in table.processes}


def test_the_99th_percentile_is_at_most_7_percent_too_long():
    chance = random.Random(3)
    tids, durations = list(range(100, 160)), defaultdict(list)
    script = Script()
    for tid in tids:
        low, high = sorted((chance.random() * 34, chance.random() * 34))
        for _index in range(chance.choice([1, 2, 99, 100, 101, 300])):
            duration = int(2 ** chance.uniform(low, high))
            durations[tid].append(duration)
            script.enter(tid, "read")
            script.exit(tid, "read", time=script.now + duration)
    found = list_p99(script)
    assert set(found) == set(tids)
    for tid, (calls, measured, total, p99) in found.items():
        own = sorted(durations[tid])
        exact = own[-(-len(own) * 99 // 100) - 1]
        assert (calls, measured, total) == (len(own), len(own), sum(own))
        assert exact <= p99 <= exact * 1.07


def test_every_duration_lies_in_its_step():
    chance = random.Random(4)
    for duration in [*range(200), *(int(2 ** (chance.random() * 42)) for _index in range(2000))]:
        step = int(find_step.py_func(np.int64(duration)))
        assert duration <= _find_end(step) <= max(duration * 1.07, duration)
        assert step == 0 or _find_end(step - 1) < duration
    assert int(find_step.py_func(np.int64(1 << 60))) == codes.OCTAVES * codes.STEPS - 1
    assert int(find_step.py_func(np.int64(-5))) == 0


def test_without_room_for_histograms_the_longest_call_stands_in():
    script = make_calls([100, 200, 50], tids=(5, 6, 6))

    def prepare(state):
        state.scalars[codes.HISTOGRAMS] = len(state.histograms) - 1

    rows = make_table(script, prepare).processes
    assert {row.pids[0]: (row.measured, row.total_ns, row.p99_ns) for row in rows} == {
        5: (1, 100, 100),
        6: (2, 250, 200),
    }

    def fill(state):
        state.scalars[codes.ROWS] = len(state.rows)

    rows = make_table(script, fill).processes
    assert sorted((row.calls, row.measured, row.p99_ns) for row in rows if row.calls) == [(1, 0, None), (2, 0, None)]


def test_no_more_calls_are_measured_than_counted_when_cells_run_short():
    script = Script()
    for tid in range(10, 60):
        script.call(tid, "getpid", result=tid)
        script.call(tid, "read", 3, result=1)
    for share in (2, 3, 4, 5):

        def prepare(state, share=share):
            state.scalars[codes.CELLS] = len(state.cells) - (len(state.cells) >> share) - 20

        made = script.run(prepare=prepare)
        first = len(made.state.cells) - (len(made.state.cells) >> share) - 20
        counts, measures = {}, {}
        for cell in made.state.cells[first : made.state.scalars[codes.CELLS]].tolist():
            key = cell[codes.CELL_TASK], cell[codes.CELL_NUMBER]
            counts[key] = counts.get(key, 0) + cell[codes.COUNT]
        for row in made.state.rows[: made.state.scalars[codes.ROWS]].tolist():
            measures[row[codes.ROW_TASK], row[codes.ROW_NUMBER]] = row[codes.MEASURED]
        assert measures == counts
        assert sum(counts.values()) == 100
