# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Results of ftrace_store: before a collection and after it, in check mode too, and after a kill in a removal."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from ansible.module_utils.common.yaml import yaml_load

from ansible_collections.crashcart.fleet.plugins.action import ftrace_store as action
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.modules import ftrace_store
from ansible_collections.crashcart.fleet.plugins.plugin_utils import fetching
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store import catalogue as catalogues
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store import update
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store.database import list_removed
from ansible_collections.crashcart.fleet.tests.unit.plugins.plugin_utils.store.stores import (
    DAY,
    ENVIRONMENT,
    HOUR,
    NOW,
    Clock,
    fill_up,
    mount_small_disk,
    write_capture,
)

TOP = Path(__file__).parents[5]


@pytest.fixture
def clock(monkeypatch):
    """The controller's clock: a test cannot wait for days."""
    clock = Clock()
    opened = catalogues.open_catalogue

    def open_with_clock(store, warnings, *, in_memory=False):
        return opened(store, warnings, in_memory=in_memory, clock=clock)

    monkeypatch.setattr(update, "open_catalogue", open_with_clock)
    return clock


SESSIONS = itertools.count()


def ask(folder, *, check_mode=False, session=None, **options):
    """Return a request of a run of its own, unless SESSION says of which."""
    request = update.make_request({"path": "s", **options}, str(folder), check_mode=check_mode)
    return replace(request, session=session or f"session {next(SESSIONS)}")


def run(folder, **options):
    return update.update(ask(folder, **options))


def list_files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def query(folder, text):
    with contextlib.closing(sqlite3.connect(folder / "s/catalogue.sqlite")) as connection:
        return connection.execute(text).fetchall()


def fill(folder, days=range(5), **about):
    for day in days:
        write_capture(folder / "s", f"{day:02}", begin=NOW - day * DAY - HOUR, end=NOW - day * DAY, **about)


def test_what_came_what_was_removed_and_what_is_kept(tmp_path, clock):
    fill(tmp_path)
    result = run(tmp_path, run="run-1", keep_age="3d")
    assert result["added"] == [f"web1/api/{day:02}.dat" for day in range(5)] and result["changed"]
    assert result["removed"] == [] and result["kept"] == 5 and result["problems"] == []
    for hours in (1, 2, 12):
        clock.now = NOW + hours * HOUR
        assert run(tmp_path, keep_age="3d")["changed"] is False
    clock.now = NOW + DAY + HOUR
    write_capture(tmp_path / "s", "new", begin=NOW, end=NOW + DAY)
    result = run(tmp_path, run="run-2", keep_age="3d")
    assert result["removed"] == [{"path": f"web1/api/{day}.dat", "why": "keep_age=3d"} for day in ("04", "03", "02")]
    (line,) = result["lines"]
    words = r"1 capture came, 3 were removed \(keep_age=3d\), 3 are kept \([\d.]+ KiB\); [\d.]+ GiB are free"
    assert re.fullmatch(words, line)
    assert result["bytes"] == sum(path.stat().st_size for path in (tmp_path / "s/web1").rglob("*.*") if path.is_file())
    assert list_files(tmp_path / "s/web1/api") == ["00.dat", "00.json", "01.dat", "01.json", "new.dat", "new.json"]
    assert query(tmp_path, "SELECT id, began_ns = ended_ns FROM runs") == [("run-1", 1), ("run-2", 1)]
    assert query(tmp_path, "SELECT count(*), removed_why FROM captures GROUP BY 2") == [(3, None), (3, "keep_age=3d")]


def test_check_mode_says_the_same_and_writes_nothing(tmp_path, clock):
    fill(tmp_path)
    run(tmp_path)
    clock.now = NOW + DAY
    run(tmp_path)
    clock.now = NOW + DAY + HOUR
    fill(tmp_path, [7])
    (tmp_path / "findings.json").write_text(
        json.dumps(
            {"findings": [{"rule": "r", "statement": "s", "severity": 1, "evidence": [{"file": "web1/api/07.dat"}]}]}
        )
    )
    options = {"run": "run-2", "keep_count": "2", "findings": "findings.json"}
    before = {path: (tmp_path / path).read_bytes() for path in list_files(tmp_path)}
    tried = run(tmp_path, check_mode=True, **options)
    assert before == {path: (tmp_path / path).read_bytes() for path in list_files(tmp_path)}
    result = run(tmp_path, **options)
    assert [one["path"] for one in result["removed"]] == [
        "web1/api/04.dat",
        "web1/api/03.dat",
        "web1/api/02.dat",
        "web1/api/01.dat",
    ]

    def settle(result):
        return {**result, "free": 0, "lines": [re.sub(r"[\d.]+ \w+ are free", "", line) for line in result["lines"]]}

    assert settle(tried) == settle(result)
    assert query(tmp_path, "SELECT capture, rule FROM findings") == [("web1/api/07.dat", "r")]


def test_check_mode_where_there_is_no_store(tmp_path):
    result = run(tmp_path, check_mode=True, run="run-1", keep_age="1d")
    assert result["kept"] == 0 and not result["changed"] and os.listdir(tmp_path) == []


def test_the_times_of_files_mean_nothing(tmp_path, clock):
    fill(tmp_path)
    run(tmp_path, keep_age="3d")
    clock.now = NOW + DAY
    run(tmp_path)
    for path in (tmp_path / "s/web1/api").iterdir():
        os.utime(path, (4e9, 4e9) if path.name.startswith("04") else (0, 0))
    clock.now = NOW + DAY + HOUR
    result = run(tmp_path, keep_age="3d")
    assert [one["path"][-6:-4] for one in result["removed"]] == ["04", "03", "02"] and result["added"] == []


def test_a_clock_that_jumped_removes_nothing_in_that_run(tmp_path, clock):
    fill(tmp_path)
    for hours in (0, 1, 2):
        clock.now = NOW + hours * HOUR
        run(tmp_path, keep_age="1d")
    clock.now = NOW + 400 * DAY
    result = run(tmp_path, keep_age="1d")
    assert result["removed"] == [] and "may have jumped" in result["lines"][1]
    clock.now = NOW + 3 * HOUR  # somebody has set it right
    write_capture(tmp_path / "s", "new", begin=NOW, end=NOW + HOUR)
    result = run(tmp_path, keep_age="1d")
    assert result["removed"] == [] and "which is before 2027-12-26" in result["lines"][1]
    clock.now = NOW + 4 * HOUR
    result = run(tmp_path, keep_age="1d")
    assert result["removed"] == [] and "the last run was 1.0 hours ago, and nothing tells" in result["lines"][1]
    clock.now = NOW + 5 * HOUR
    result = run(tmp_path, keep_age="1d")
    assert len(result["lines"]) == 1 and result["removed"] == []  # they came less than a day ago
    assert "clock" not in run(tmp_path)["lines"][0]


@pytest.mark.parametrize("back", [2 * HOUR, 20 * HOUR, 30 * DAY])
@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("limit", [{"keep_age": "1d"}, {"keep_count": 1}])
def test_a_clock_that_was_behind_for_some_runs_removes_nothing_of_the_day_before(tmp_path, clock, back, runs, limit):
    came = {}
    for hours in range(60):
        path = write_capture(tmp_path / "s", f"{hours:02}", begin=NOW + (hours - 1) * HOUR, end=NOW + hours * HOUR)
        came[os.path.relpath(path, tmp_path / "s")] = hours
        was_behind = 5 <= hours < 5 + runs
        clock.now = NOW + hours * HOUR - (back if was_behind else 0)
        for one in run(tmp_path, **limit)["removed"]:
            assert hours - came.pop(one["path"]) >= 24, (hours, one)
    assert len(came) < 60


def test_a_clock_that_is_set_by_the_network_after_a_boot_removes_nothing_of_that_boot(tmp_path, clock):
    for hours in range(5):
        clock.now = NOW + hours * HOUR
        run(tmp_path, keep_count=1)
    clock.now += HOUR // 60  # the time of the shutdown, three days ago
    fill(tmp_path)
    run(tmp_path, keep_count=1)
    for hours in (0, 0.5, 1, 23):
        clock.now = NOW + 3 * DAY + int(hours * HOUR)
        assert run(tmp_path, keep_count=1)["removed"] == []


def test_captures_that_came_while_the_clock_was_ahead_count_as_new_when_it_is_right(tmp_path, clock):
    fill(tmp_path)
    clock.now = NOW + 400 * DAY
    run(tmp_path)
    clock.now = NOW
    assert "which is before" in run(tmp_path, keep_age="1d")["lines"][1]
    # The run at 8 is the first after the step back, so that all count as new once more.
    for hours in (8, 16, 23, 31, 33):
        clock.now = NOW + hours * HOUR
        removed = run(tmp_path, keep_age="1d")["removed"]
        assert len(removed) == (4 if hours == 33 else 0)


def test_files_that_are_no_captures_of_ours_stay_and_are_named(tmp_path, clock):
    fill(tmp_path, [9])
    fill(tmp_path, [8])
    run(tmp_path)
    (tmp_path / "s/web1/api/09.json").write_text("{")
    (tmp_path / "s/trace.dat").write_bytes(b"of trace-cmd")
    (tmp_path / "s/notes.txt").write_text("mine")
    fill(tmp_path, [1])
    removed = []
    for hours in (12, 23, 25):
        clock.now = NOW + hours * HOUR
        result = run(tmp_path, keep_age="1d", keep_total="1B")
        removed += [(hours, one["path"]) for one in result["removed"]]
    assert removed == [(25, "web1/api/08.dat")]
    assert "that is more than keep_total=1B: what is left is the newest of a container" in result["lines"][1]
    assert len(result["problems"]) == 2 and all(
        any(name in line for line in result["lines"]) for name in ("09.", "trace.dat")
    )
    assert list_files(tmp_path / "s") == [
        *("catalogue.sqlite", "notes.txt", "trace.dat"),
        *("web1/api/01.dat", "web1/api/01.json", "web1/api/09.dat", "web1/api/09.json"),
    ]


def test_lines_name_twenty_problems_and_count_the_others(tmp_path, clock):
    (tmp_path / "s").mkdir()
    for number in range(25):
        (tmp_path / f"s/{number}\x1b.dat").write_bytes(b"")
    result = run(tmp_path)
    assert len(result["problems"]) == 25 and len(result["lines"]) == 22 and all(map(str.isprintable, result["lines"]))
    assert result["lines"][-1].startswith("and 5 more files")


def test_only_the_captures_of_a_run_are_noted_with_it(tmp_path, clock):
    fill(tmp_path, [1])
    fill(tmp_path, [2], host="web2")
    (tmp_path / "link").symlink_to("s")
    run(tmp_path, run="run-1", captures=["link/web2/api/02.dat", "s/nonesuch.dat"])
    assert query(tmp_path, "SELECT path FROM captures WHERE run = 'run-1'") == [("web2/api/02.dat",)]


@pytest.mark.parametrize("text", ["{", "[" * 10**5, None])
def test_findings_that_cannot_be_read_are_named(tmp_path, clock, text):
    fill(tmp_path, [1])
    if text is not None:
        (tmp_path / "f.json").write_text(text)
    result = run(tmp_path, findings="f.json")
    assert result["kept"] == 1 and "its findings are not noted" in result["problems"][0]


def test_a_check_before_a_collection(tmp_path, clock):
    result = update.check(ask(tmp_path, run="run-1", keep_free="1B"))
    assert result["changed"] and result["free"] > 0 and result["lines"][0].endswith("are free")
    assert query(tmp_path, "SELECT * FROM runs") == [("run-1", NOW, None)]
    assert list_files(tmp_path) == ["s/catalogue.sqlite"]
    assert update.check(ask(tmp_path))["changed"] is False
    clock.now = NOW + HOUR
    run(tmp_path, run="run-1")
    assert query(tmp_path, "SELECT * FROM runs") == [("run-1", NOW, NOW + HOUR)]


def test_too_little_room_fails_the_check_with_the_next_step(tmp_path):
    with pytest.raises(FleetError) as caught:
        update.check(ask(tmp_path, keep_free="900000GiB"))
    words = r".*/s: [\d.]+ GiB are free, and keep_free=900000GiB asks for 900000\.0 GiB: remove captures, for example by: ansible .*"
    assert re.fullmatch(words, str(caught.value)) and caught.value.result["free"] > 0
    result = run(tmp_path, keep_free="900000GiB")
    assert "less than keep_free=900000GiB: the next collection fails" in result["lines"][1]


@pytest.mark.parametrize("place", ["/proc/nonesuch", "file/s"])
@pytest.mark.parametrize("check_mode", [False, True])
def test_a_folder_that_cannot_be_written_fails_the_check(tmp_path, place, check_mode):
    (tmp_path / "file").write_text("")
    with pytest.raises(FleetError, match="the captures cannot go to .*choose another folder"):
        update.check(update.make_request({"path": place}, str(tmp_path), check_mode=check_mode))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"run": "a\nb"}, "is no id of a run"),
        ({"run": "x" * 201}, "is no id of a run"),
        ({"keep_age": "x"}, "keep_age"),
    ],
)
def test_wrong_options_are_told(tmp_path, options, words):
    with pytest.raises(FleetError, match=words):
        ask(tmp_path, **options)


KILLED = """
import sys
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store import update
print("begins", flush=True)
update.update(update.make_request({"path": sys.argv[1], "keep_count": "1"}, "/", check_mode=False))
"""


def test_an_update_that_is_killed_in_its_removals_is_finished_by_the_next_one(tmp_path, clock):
    store = tmp_path / "s"
    clock.now = time.time_ns() - 40 * HOUR
    for number in range(400):
        write_capture(store, f"{number:03}", text="x", begin=NOW - 500 * DAY, end=NOW - 400 * DAY + number)
    run(tmp_path)
    clock.now = time.time_ns() - 20 * HOUR
    run(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(store)], stdout=subprocess.PIPE, env=ENVIRONMENT)
    process.stdout.readline()
    while (store / "web1/api/005.dat").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    left = len(list((store / "web1/api").glob("*.dat")))
    clock.now = time.time_ns()
    result = run(tmp_path, keep_count="1")
    assert result["kept"] == 1 and result["gone"] == [] and result["added"] == []
    assert list_files(store) == ["catalogue.sqlite", "web1/api/399.dat", "web1/api/399.json", "web1/api/399.txt"]
    assert left == 1 or len(result["removed"]) >= left - 1
    assert query(tmp_path, "SELECT count(*), removed_why FROM captures GROUP BY 2") == [
        (1, None),
        (399, "keep_count=1"),
    ]


KILLED_AT = """
import os, signal, sys
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store import catalogue, removal, update
left = int(sys.argv[2])
def count(function):
    def call(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call
os.unlink, os.rmdir = count(os.unlink), count(os.rmdir)
catalogue.Catalogue.note_removed = count(catalogue.Catalogue.note_removed)
catalogue.Catalogue.plan_removal = count(catalogue.Catalogue.plan_removal)
catalogue.Catalogue.note_update = count(catalogue.Catalogue.note_update)
update.update(update.make_request({"path": sys.argv[1], "keep_count": "1"}, "/", check_mode=False))
"""


def test_a_kill_before_any_step_of_an_update_is_made_good(tmp_path, clock):
    ends = []
    for step in range(12):
        store = tmp_path / f"{step}/s"
        for number in range(3):
            write_capture(store, f"{number}", text="x", begin=NOW, end=NOW + number)
        clock.now = time.time_ns() - 40 * HOUR
        run(store.parent)
        clock.now = time.time_ns() - 20 * HOUR
        run(store.parent)
        command = [sys.executable, "-c", KILLED_AT, str(store), str(step)]
        ends.append(subprocess.run(command, check=False, timeout=120, env=ENVIRONMENT).returncode)
        clock.now = time.time_ns()
        result = run(store.parent, keep_count="1")
        assert result["kept"] == 1 and result["gone"] == [] and result["added"] == [] and result["problems"] == []
        assert list_files(store) == ["catalogue.sqlite", "web1/api/2.dat", "web1/api/2.json", "web1/api/2.txt"]
        rows = query(store.parent, "SELECT count(*), removed_why FROM captures GROUP BY 2")
        assert rows == [(1, None), (2, "keep_count=1")]
    assert ends[0] == -signal.SIGKILL and ends[-1] == 0 and ends == sorted(ends)


def name_tasks(tasks):
    """The parts of the role trace that TASKS use, in their order, with the phase of the store."""
    for task in tasks:
        for part in ("block", "always"):
            yield from name_tasks(task.get(part, []))
        roles = (task.get(f"ansible.builtin.{word}_role", {}).get("tasks_from") for word in ("import", "include"))
        files = (task.get(f"ansible.builtin.{word}_tasks") for word in ("import", "include"))
        used = next(filter(None, (*roles, *files)), "")
        phase = task.get("vars", {}).get("trace_phase")
        if used:
            yield " ".join(filter(None, (used.removesuffix(".yml"), phase)))


def test_the_store_is_checked_before_a_collection_and_kept_in_order_after_the_report():
    parts = {
        name: list(name_tasks(yaml_load((TOP / f"roles/trace/tasks/{name}.yml").read_text(encoding="utf-8"))))
        for name in ("main", "room", "conclude")
    }
    assert parts == {
        "main": ["room", "capture_start", "capture_finish", "conclude"],
        "room": ["store check"],
        "conclude": ["report", "store", "failures"],
    }
    for name, between in (("collect", ["fetch"]), ("stop", ["stop", "remove"])):
        play, *_others = yaml_load((TOP / f"playbooks/{name}.yml").read_text(encoding="utf-8"))
        assert list(name_tasks(play["tasks"])) == ["room", *between, "conclude"]


def test_the_options_are_those_of_the_page():
    options = yaml_load(ftrace_store.DOCUMENTATION)["options"]
    assert set(options) == set(action.ARGUMENTS)
    for name, spec in action.ARGUMENTS.items():
        assert {key: options[name].get(key) for key in spec} == spec, name


def test_the_role_has_every_option_of_a_store():
    specs = yaml_load((TOP / "roles/trace/meta/argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"]
    (task,) = yaml_load((TOP / "roles/trace/tasks/store.yml").read_text(encoding="utf-8"))
    passed = set(task["block"][0]["crashcart.fleet.ftrace_store"])
    assert passed == set(action.ARGUMENTS)
    known = {name.removeprefix("trace_") for name in specs["store"]["options"]}
    assert known - {"dest"} == passed - {"path", "captures", "findings"}


def test_the_hosts_of_a_run_that_come_in_turns_are_one_update_for_the_clock(tmp_path, clock):
    """Check two updates a run: after a jump neither removes anything, and runs two days apart are no jump.

    All runs have the same id, as where somebody has it in a file of variables.
    """
    fill(tmp_path, range(8))

    def run_in_turns(name, at):
        clock.now = at
        update.check(ask(tmp_path, session=name, run="nightly"))
        results = []
        for minute in (1, 2):
            clock.now = at + minute * HOUR // 60
            results.append(run(tmp_path, session=name, run="nightly", keep_age="6d"))
        return results

    for number in range(2):
        for result in run_in_turns(f"run-{number}", NOW + 2 * number * DAY):
            assert result["removed"] == []  # they came less than a day ago, or nothing tells yet what is usual
    first, second = run_in_turns("run-2", NOW + 4 * DAY)
    assert (
        len(first["removed"]) > 1
        and second["removed"] == []
        and not any("jumped" in line for line in first["lines"] + second["lines"])
    )
    for result in run_in_turns("run-3", NOW + 400 * DAY):
        assert result["removed"] == [] and "may have jumped" in result["lines"][1]


def test_a_clock_that_jumped_within_a_run_and_was_set_right_stops_nothing_for_long(tmp_path, clock):
    fill(tmp_path, range(8))

    def run_at(name, at):
        clock.now = at
        return run(tmp_path, session=name, keep_age="6d")

    for number in range(2):
        run_at(f"run-{number}", NOW + 2 * number * DAY)
    run_at("ahead", NOW + 4 * DAY)
    run_at("ahead", NOW + 400 * DAY)
    found = [run_at(f"later-{number}", NOW + (6 + 2 * number) * DAY) for number in range(4)]
    assert [any("nothing is removed" in line for line in one["lines"]) for one in found] == [True, True, False, False]
    assert [bool(one["removed"]) for one in found] == [False, False, True, False]


def test_all_workers_of_one_process_of_ansible_are_one_session(tmp_path, monkeypatch):
    def name():
        return update.make_request({"path": "s"}, str(tmp_path), check_mode=False).session

    text = (
        "import sys; from ansible_collections.crashcart.fleet.plugins.plugin_utils.store import update;"
        "print(update.make_request({'path': 's'}, '/', check_mode=False).session)"
    )
    other = subprocess.run(
        [sys.executable, "-c", text], check=True, capture_output=True, text=True, env=ENVIRONMENT
    ).stdout.strip()
    assert name() == name() != other and str(os.getpid()) in other
    monkeypatch.setenv(update.SESSION, "traces-20261201T000000Z")
    assert name() == "traces-20261201T000000Z"


@pytest.fixture
def small(tmp_path):
    with mount_small_disk(tmp_path):
        yield tmp_path


def test_a_disk_without_any_room_is_served_again(small, clock):
    fill(small)
    for hours in (0, 12, 24):
        clock.now = NOW + hours * HOUR
        run(small)
    clock.now = NOW + 30 * HOUR
    fill_up(small)
    with pytest.raises(FleetError, match="No space left on device; make room there"):
        update.check(ask(small, run="run-1"))
    removed = [{"path": f"web1/api/{day}.dat", "why": "keep_age=3d"} for day in ("04", "03", "02")]
    assert update.check(ask(small, run="run-1", keep_age="3d"))["removed"] == removed
    assert query(small, "SELECT count(*), removed_why FROM captures GROUP BY 2") == [(2, None), (3, "keep_age=3d")]
    assert run(small)["gone"] == []


def test_an_update_on_a_disk_without_any_room_makes_some(small, clock):
    fill(small, size=30000)
    for hours in (0, 12, 24):
        clock.now = NOW + hours * HOUR
        run(small)
    clock.now = NOW + 30 * HOUR
    write_capture(small / "s", "new", begin=clock.now - HOUR, end=clock.now)
    fill_up(small)
    result = run(small, run="run-1", keep_age="3d")
    assert [one["path"] for one in result["removed"]] == [f"web1/api/{day}.dat" for day in ("04", "03", "02")]
    assert (result["added"], result["gone"], result["kept"]) == (["web1/api/new.dat"], [], 3)
    assert result["lines"][0].startswith("1 capture came, 3 were removed (keep_age=3d), 3 are kept")


def test_what_was_removed_here_and_stays_on_the_host_does_not_come_again(tmp_path, clock):
    fill(tmp_path)
    write_capture(tmp_path / "s", "99", begin=NOW - 9 * DAY, end=NOW - 9 * DAY, host="web10")
    write_capture(tmp_path / "s", "98", begin=NOW, end=NOW, host="web10")
    for hours in (0, 12, 24):
        clock.now = NOW + hours * HOUR
        run(tmp_path)
    clock.now = NOW + 30 * HOUR
    assert len(run(tmp_path, keep_age="3d")["removed"]) == 4
    store = str(tmp_path / "s")
    removed = list_removed(store, "web1")
    assert removed == [f"web1/api/{day}.dat" for day in ("02", "03", "04")]
    assert fetching._list_stamps(f"{store}/web1", removed) == ["00", "01", "02", "03", "04"]
    assert fetching._list_stamps(f"{store}/web1", []) == ["00", "01"]
    (tmp_path / "s/catalogue.sqlite").write_text("damaged")
    assert list_removed(store, "web1") == list_removed(str(tmp_path), "web1") == []


def test_runs_without_captures_are_forgotten(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(catalogues, "_RUNS", 2)
    fill(tmp_path, range(1))
    for number in range(5):
        run(tmp_path, run=f"run-{number}")
    assert [name for (name,) in query(tmp_path, "SELECT id FROM runs ORDER BY began_ns, id")] == [
        "run-0",
        "run-3",
        "run-4",
    ]


def test_what_is_removed_before_a_collection_is_told(tmp_path, clock, monkeypatch):
    fill(tmp_path)
    for hours in (0, 12, 24):
        clock.now = NOW + hours * HOUR
        run(tmp_path)
    clock.now = NOW + 30 * HOUR
    enough = {"keep_age": "3d", "keep_free": "1KiB"}
    # In check mode, what would be removed counts as room.
    with monkeypatch.context() as patch:
        patch.setattr(update, "find_free", lambda _folder: 1)
        result = update.check(ask(tmp_path, check_mode=True, run="run-1", **enough))
        assert (len(result["removed"]), result["free"] - 1) == (3, result["freed"]) and result["freed"] > 1024
    assert update.check(ask(tmp_path, run="run-1", **enough))["removed"] == []
    with pytest.raises(
        FleetError, match="asks for 900000.0 GiB, although 3 captures were removed: remove captures"
    ) as failed:
        update.check(ask(tmp_path, run="run-1", keep_age="3d", keep_free="900000GiB"))
    removed = [{"path": f"web1/api/{day}.dat", "why": "keep_age=3d"} for day in ("04", "03", "02")]
    assert (failed.value.result["removed"], failed.value.result["changed"]) == (removed, True)
    # The same where it makes enough room.
    free = iter([0, 1 << 40, 1 << 40])
    monkeypatch.setattr(update, "find_free", lambda _folder: next(free))
    result = update.check(ask(tmp_path, run="run-2", keep_age="2d", keep_free="1GiB"))
    assert [one["path"] for one in result["removed"]] == ["web1/api/01.dat"] and result["changed"]
    assert re.match(r"0 captures came, 1 was removed \(keep_age=2d\)", result["lines"][0])
