# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The catalogue is what the files say: after kills, with several processes, whatever manifests and names hold."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store import catalogue as catalogue_module
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store import database, records
from ansible_collections.crashcart.fleet.tests.unit.plugins.plugin_utils.store.stores import (
    DAY,
    ENVIRONMENT,
    HOUR,
    NOW,
    SECOND,
    Clock,
    list_paths,
    make_manifest,
    open_store,
    write_capture,
)

SYNC = """
import sys
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store.catalogue import open_catalogue
with open_catalogue(sys.argv[1], []) as catalogue:
    print("open", flush=True)
    found = catalogue.sync(sys.argv[2])
    print(len(found.added), flush=True)
"""


def query(store, text):
    with contextlib.closing(sqlite3.connect(store / database.NAME)) as connection:
        return connection.execute(text).fetchall()


def start_sync(store, run):
    command = [sys.executable, "-c", SYNC, str(store), run]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)


def test_what_a_manifest_says_is_in_the_catalogue(tmp_path):
    path = write_capture(tmp_path, "a", text="events", lost=3, complete=False)
    with open_store(tmp_path) as catalogue:
        found = catalogue.sync("run-1")
        (record,) = catalogue.list_there()
    assert found.added == ["web1/api/a.dat"] and not found.gone and not found.problems
    assert record == records.Record(
        "web1/api/a.dat",
        "web1",
        "api",
        "c" * 64,
        "docker",
        "shop/api:1",
        NOW - HOUR,
        NOW,
        False,
        3,
        7,
        sum(one.stat().st_size for one in path.parent.iterdir()),
        "a" * 64,
        "run-1",
        NOW,
    )
    assert query(tmp_path, "SELECT * FROM runs") == [("run-1", NOW, NOW)]
    assert query(tmp_path, "PRAGMA user_version") == [(1,)]
    assert (tmp_path / database.NAME).stat().st_mode & 0o777 == 0o600


def test_a_capture_that_is_known_is_not_read_again_and_one_that_grew_is(tmp_path):
    path = write_capture(tmp_path, "a")
    manifest = path.with_suffix(".json")
    with open_store(tmp_path) as catalogue:
        catalogue.sync("run-1")
        manifest.write_text("x" * manifest.stat().st_size)  # of the same size: nobody looks at it
        os.utime(path, (0, 0))
        assert not catalogue.sync("run-2").problems
        path.with_suffix(".txt").write_text("more")
        problems = catalogue.sync("run-2").problems
        assert list(problems) == ["web1/api/a.dat"] and "the manifest is damaged" in problems["web1/api/a.dat"]
        assert list_paths(catalogue) == ["web1/api/a.dat"]
        manifest.write_text(json.dumps(make_manifest(entries=8)))
        found = catalogue.sync("run-2")
        (record,) = catalogue.list_there()
    assert not found.added and not found.problems and (record.entries, record.run) == (8, "run-1")


def test_what_is_gone_and_what_is_there_again(tmp_path):
    path, clock = write_capture(tmp_path, "a"), Clock()
    other = write_capture(tmp_path, "b")
    with open_store(tmp_path, clock) as catalogue:
        catalogue.sync("run-1")
        path.rename(tmp_path / "kept")
        clock.now += DAY
        assert catalogue.sync("run-2").gone == ["web1/api/a.dat"]
        assert list_paths(catalogue) == ["web1/api/b.dat"] and other.exists()
        assert query(tmp_path, "SELECT removed_ns, removed_why FROM captures WHERE path LIKE '%a.dat'") == [
            (NOW + DAY, "gone")
        ]
        assert catalogue.sync("run-2").gone == []
        (tmp_path / "kept").rename(path)
        assert catalogue.sync("run-3").added == ["web1/api/a.dat"]
        again = next(record for record in catalogue.list_there() if record.path == "web1/api/a.dat")
    assert (again.run, again.added_ns) == ("run-3", NOW + DAY)
    assert query(tmp_path, "SELECT count(*) FROM captures") == [(2,)]


def test_captures_below_a_folder_that_cannot_be_read_are_not_gone():
    with tempfile.TemporaryDirectory() as place:  # pytest's own folder is closed to other users
        path = write_capture(Path(place), "a")
        other = write_capture(Path(place), "b", host="web2")
        with open_store(place) as catalogue:
            catalogue.sync()
            other.unlink()
            with unreadable(path.parent, place):
                found = catalogue.sync()
            assert found.gone == ["web2/api/b.dat"] and list_paths(catalogue) == ["web1/api/a.dat"]
            assert list(found.problems) == ["web1/api"] and "cannot be read" in found.problems["web1/api"]


@contextlib.contextmanager
def unreadable(folder, store):
    """Let nobody list FOLDER below STORE: be another user where this is root, whom modes do not keep out."""
    folder.chmod(0)
    with contextlib.ExitStack() as stack:
        stack.callback(folder.chmod, 0o700)
        if os.geteuid() == 0:
            for one in (store, os.path.join(store, database.NAME), os.path.dirname(folder)):
                os.chown(one, 65534, -1)
            os.seteuid(65534)
            stack.callback(os.seteuid, 0)
        yield


def test_only_what_the_run_has_fetched_is_of_the_run(tmp_path):
    write_capture(tmp_path, "a")
    write_capture(tmp_path, "b")
    with open_store(tmp_path) as catalogue:
        catalogue.sync()  # somebody's report, in the middle of the run
        write_capture(tmp_path, "c")
        catalogue.sync("run-1", {"web1/api/b.dat", "web1/api/nonesuch.dat"})
        assert {record.path[-5]: record.run for record in catalogue.list_there()} == {
            "a": None,
            "b": "run-1",
            "c": None,
        }
        catalogue.sync("run-2", {"web1/api/b.dat"})
        assert [record.run for record in catalogue.select(runs=["run-1"])] == ["run-1"]


def test_a_process_that_is_killed_leaves_the_old_catalogue_or_the_new_one(tmp_path):
    for number in range(600):
        write_capture(tmp_path, f"{number:04}", size=1)
    with open_store(tmp_path) as catalogue:
        catalogue.sync("before")
    for number in range(600, 1200):
        write_capture(tmp_path, f"{number:04}", size=1)
    kills = set()
    for delay in (0, 0.005, 0.02, 0.05, 0.1, 0.3):
        process = start_sync(tmp_path, "killed")
        assert process.stdout.readline() == "open\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills.add(process.stdout.read())
        process.stdout.close()
        ((count,),) = query(tmp_path, "SELECT count(*) FROM captures")
        assert count in (600, 1200)
    assert "" in kills  # one was killed before its end
    with open_store(tmp_path) as catalogue:
        catalogue.sync("after")
        assert catalogue.warnings == [] and len(catalogue.list_there()) == 1200


def test_two_processes_at_once_give_one_catalogue(tmp_path):
    for number in range(300):
        write_capture(tmp_path, f"{number:04}", size=1)
    processes = [start_sync(tmp_path, f"run-{number}") for number in range(3)]
    counts = sorted(int(process.communicate()[0].split()[1]) for process in processes)
    assert counts == [0, 0, 300] and [process.returncode for process in processes] == [0, 0, 0]
    assert query(tmp_path, "SELECT count(*) FROM captures WHERE removed_ns IS NULL") == [(300,)]
    assert len(query(tmp_path, "SELECT * FROM runs WHERE ended_ns IS NOT NULL")) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"no database at all" * 300),
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        lambda path: path.write_bytes(path.read_bytes()[:4096] + b"\xa5" * 4096 + path.read_bytes()[8192:]),
        lambda path: execute(path, "DROP TABLE findings"),
        lambda path: execute(path, "ALTER TABLE captures RENAME COLUMN lost TO won"),
        lambda path: execute(path, "PRAGMA user_version = 0"),
    ],
)
def test_a_damaged_catalogue_is_set_aside_and_made_anew(tmp_path, damage):
    write_capture(tmp_path, "a")
    with open_store(tmp_path) as catalogue:
        catalogue.sync("run-1")
    path = tmp_path / database.NAME
    damage(path)
    broken = path.read_bytes()
    with open_store(tmp_path, in_memory=True) as catalogue:
        assert catalogue.sync().added == ["web1/api/a.dat"] and path.read_bytes() == broken
        assert "cannot be read" in catalogue.warnings[0] and not (tmp_path / "catalogue.sqlite.damaged").exists()
    with open_store(tmp_path) as catalogue:
        (warning,) = catalogue.warnings
        assert warning.startswith(f"{path} was damaged (") and "catalogue.sqlite.damaged" in warning
        assert catalogue.sync("run-2").added == ["web1/api/a.dat"]
    assert (tmp_path / "catalogue.sqlite.damaged").read_bytes() == broken
    with open_store(tmp_path) as catalogue:
        assert catalogue.warnings == [] and list_paths(catalogue) == ["web1/api/a.dat"]


def execute(path, text):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(text)


def test_a_newer_catalogue_is_refused_by_name_and_stays(tmp_path):
    write_capture(tmp_path, "a")
    with open_store(tmp_path) as catalogue:
        catalogue.sync()
    path = tmp_path / database.NAME
    execute(path, "PRAGMA user_version = 2")
    before = path.read_bytes()
    for in_memory in (False, True):
        with pytest.raises(FleetError, match="is a catalogue of version 2, and this collection knows 1"):
            open_store(tmp_path, in_memory=in_memory).__enter__()
    assert path.read_bytes() == before and not (tmp_path / "catalogue.sqlite.damaged").exists()


def test_a_link_in_place_of_the_catalogue_is_not_followed(tmp_path):
    other = tmp_path / "other"
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / database.NAME).symlink_to(other)
    with pytest.raises(OSError), open_store(tmp_path / "store"):
        pass
    assert not other.exists()


def test_in_memory_nothing_is_written(tmp_path):
    write_capture(tmp_path, "a")
    with open_store(tmp_path, in_memory=True) as catalogue:
        assert catalogue.sync("run-1").added == ["web1/api/a.dat"]
    assert not (tmp_path / database.NAME).exists()
    with open_store(tmp_path) as catalogue:
        catalogue.sync("run-1")
    before = (tmp_path / database.NAME).read_bytes()
    write_capture(tmp_path, "b")
    with open_store(tmp_path, in_memory=True) as catalogue:
        assert catalogue.sync("run-2").added == ["web1/api/b.dat"]
        assert list_paths(catalogue) == ["web1/api/a.dat", "web1/api/b.dat"]
    assert (tmp_path / database.NAME).read_bytes() == before


@pytest.mark.parametrize(
    "manifest",
    [
        make_manifest(begin=10**40, end=-(10**40)),
        make_manifest(time="soon", fetched="late", clock_offset_ns=None),
        make_manifest(time={"start": [], "changed": 1, "end": {"real_time_ns": True}}, fetched=float("inf")),
        make_manifest(fetched=float("nan"), time=None),
        make_manifest(time={"end": {"real_time_ns": 1.5e300}}, fetched=-1),
        make_manifest(lost=-5, entries=1 << 61, sha256="g" * 64),
        make_manifest(sha256=7, complete=None, reasons=[]),
        {**make_manifest(), "container": {"id": None, "name": "a\0pi\ud800\x1b[2J", "image": [1], "runtime": {}}},
        {**make_manifest(), "container": {"id": "x" * 10**6, "name": "n" * 10**6}},
    ],
)
def test_hostile_manifests_give_sane_records(tmp_path, manifest):
    stamp = "20261121T231500.250000Z"
    path = tmp_path / f"{stamp}.dat"
    path.write_bytes(b"x")
    path.with_suffix(".json").write_text(json.dumps(manifest))
    with open_store(tmp_path) as catalogue:
        found = catalogue.sync("run")
        assert found.added == [path.name] and not found.problems
        (record,) = catalogue.list_there()
        assert catalogue.select(containers=["*"]) == [record]
    assert 0 < record.begin_ns <= record.end_ns < 8 * 10**18
    assert record.lost in (None, 0) and (record.entries is None or record.entries >= 0)
    assert len(record.container) <= 1000 and (record.image is None or isinstance(record.image, str))


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "1" * 5000, "[" * 10**5, '{"lost": 1e999}', '{"container": 5}'])
def test_what_is_no_manifest_is_named_and_the_others_are_read(tmp_path, text):
    path = write_capture(tmp_path, "a")
    path.with_suffix(".json").write_text(text)
    write_capture(tmp_path, "b")
    with open_store(tmp_path) as catalogue:
        found = catalogue.sync()
        assert found.added == ["web1/api/b.dat"] and list(found.problems) == ["web1/api/a.dat"]
        assert catalogue.sync().added == [] and path.exists()


def test_captures_without_a_manifest_of_ours_are_named(tmp_path):
    (tmp_path / "trace.dat").write_bytes(b"of trace-cmd")
    (tmp_path / "nobody.dat").write_bytes(b"x")
    (tmp_path / "nobody.json").write_text("{}")
    (tmp_path / "pipe.dat").mkdir()
    os.mkfifo(tmp_path / "waits.dat")
    (tmp_path / "link.dat").symlink_to("/etc/passwd")
    with open_store(tmp_path) as catalogue:
        problems = catalogue.sync().problems
    assert set(problems) == {"trace.dat", "nobody.dat", "waits.dat", "link.dat"}
    assert "it has no manifest" in problems["trace.dat"]


def test_times_that_cannot_be_are_those_of_the_fetch_of_the_name_or_of_now():
    path = "web1/api/20261121T231500.250000Z.dat"
    assert records.find_times(path, make_manifest(time=None), 5) == (NOW, NOW)
    assert records.find_times(path, {"fetched": 1e30}, 5) == (NOW + SECOND // 4, NOW + SECOND // 4)
    assert records.find_times("20269999T999999.000000Z.dat", {}, 5) == (5, 5)
    assert records.find_times("x.dat", make_manifest(begin=NOW + 1, end=NOW), 5) == (NOW, NOW)


@pytest.mark.parametrize(
    "name", ["a b", "größe", "x'y\"z", "%?#", "new\nline", "\udcff\udcfe", "[*]", "-rf", "\u202e", "a;--"]
)
def test_names_with_odd_characters(tmp_path, name):
    store = tmp_path / f"store {name}"
    path = write_capture(store, name, container="api")
    with open_store(store) as catalogue:
        assert catalogue.sync("run").added == [f"web1/api/{name}.dat"]
        assert list_paths(catalogue) == [f"web1/api/{name}.dat"]
        assert catalogue.sync().added == []
        path.unlink()
        assert catalogue.sync().gone == [f"web1/api/{name}.dat"] and list_paths(catalogue) == []
    with open_store(store, in_memory=True) as catalogue:
        assert list_paths(catalogue) == [] and catalogue.warnings == []


def test_a_selection_is_what_overlaps_in_the_order_of_time(tmp_path):
    write_capture(tmp_path, "late", begin=NOW - 2 * HOUR, end=NOW - HOUR)
    write_capture(tmp_path, "long", host="web2", container="db", begin=NOW - 9 * HOUR, end=NOW - HOUR)
    write_capture(tmp_path, "early", host="db1", container="db-1", begin=NOW - 9 * HOUR, end=NOW - 8 * HOUR)
    with open_store(tmp_path) as catalogue:
        catalogue.sync("run-1")

        def select(*times, **globs):
            return [record.path.rpartition("/")[2][:-4] for record in catalogue.select(*times, **globs)]

        assert select() == ["early", "long", "late"]
        assert select(NOW - 7 * HOUR, NOW - 3 * HOUR) == ["long"]
        assert select(NOW - 8 * HOUR) == ["early", "long", "late"]
        assert select(None, NOW - 3 * HOUR) == ["early", "long"]
        assert select(-(10**30), 10**30) == ["early", "long", "late"]
        assert select(hosts=["web*"]) == ["long", "late"] and select(hosts=["web1", "db1"]) == ["early", "late"]
        assert select(containers=["db*"]) == ["early", "long"] and select(containers=["d"]) == []
        assert select(containers=["c" * 12]) == ["early", "long", "late"]
        assert select(runs=["run-1"], hosts=["db?"]) == ["early"] and select(runs=["run-2"]) == []


def test_findings_are_noted_with_the_captures_of_their_evidence(tmp_path):
    write_capture(tmp_path, "a")
    write_capture(tmp_path, "\udcff")
    finding = {"rule": "failures", "statement": "it failed", "severity": 80}
    evidence = [{"file": "web1/api/a.dat"}, {"file": "web1/api/\\udcff.dat"}, {"file": "../x.dat"}, {"file": 5}, 7]
    document = {
        "findings": [
            {**finding, "evidence": evidence},
            {**finding, "severity": "high", "evidence": evidence},
            {**finding, "rule": None, "evidence": evidence},
            {**finding, "evidence": None},
            5,
        ]
    }
    with open_store(tmp_path) as catalogue:
        catalogue.sync()
        assert catalogue.note_findings(document) == 2 and catalogue.note_findings(document) == 0
        assert [catalogue.note_findings(other) for other in ([], None, {}, {"findings": 5})] == [0] * 4
    rows = query(tmp_path, "SELECT rule, severity, statement FROM findings")
    assert rows == [("failures", 80, "it failed")] * 2


def test_the_captures_that_were_removed_first_are_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue_module, "MAX_REMOVED", 2)
    paths = [write_capture(tmp_path, f"{number}") for number in range(5)]
    finding = {"rule": "r", "statement": "s", "severity": 1}
    with open_store(tmp_path, Clock()) as catalogue:
        catalogue.sync()
        evidence = [{"file": f"web1/api/{number}.dat"} for number in range(5)]
        assert catalogue.note_findings({"findings": [{**finding, "evidence": evidence}]}) == 5
        for number, path in enumerate(paths[:4]):
            path.unlink()
            catalogue._clock.now = NOW + number
            catalogue.sync()
        catalogue.forget()
        assert query(tmp_path, "SELECT path FROM captures ORDER BY 1") == [(f"web1/api/{n}.dat",) for n in (2, 3, 4)]
        assert query(tmp_path, "SELECT count(*) FROM findings") == [(3,)]


def test_a_folder_that_somebody_has_locked_is_opened_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "_OPEN_SECONDS", 0.1)
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    write_capture(tmp_path, "a")
    with open_store(tmp_path) as catalogue:
        assert catalogue.sync().added == ["web1/api/a.dat"]
    os.close(folder)


@pytest.mark.sweep
def test_thirty_thousand_captures_that_are_known_take_seconds(tmp_path):
    manifest = json.dumps(make_manifest())
    for number in range(30_000):
        folder = tmp_path / f"web{number % 50}" / "api"
        if number < 50:
            folder.mkdir(parents=True)
        (folder / f"{number}.dat").touch()
        (folder / f"{number}.json").write_text(manifest)
    with open_store(tmp_path) as catalogue:
        assert len(catalogue.sync().added) == 30_000
        begin = time.process_time()
        assert catalogue.sync().added == []
        assert time.process_time() - begin < 8
