# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs of a schedule: real processes of ansible-playbook, whose hosts are this machine and one that cannot be reached."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.plugin_utils.compiled_cache import COLLECTION
from ansible_collections.crashcart.fleet.plugins.plugin_utils.schedule import outcome, playing, running
from ansible_collections.crashcart.fleet.plugins.plugin_utils.schedule.plan import Plan, read_plan
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store.catalogue import open_catalogue
from ansible_collections.crashcart.fleet.tests.unit.plugins.plugin_utils.store.stores import (
    DAY,
    HOUR,
    fill_up,
    mount_small_disk,
    write_capture,
)

pytestmark = pytest.mark.sweep  # a run takes seconds
PROGRAM = [sys.executable, "-P", str(COLLECTION / "plugins/plugin_utils/schedule/run.py")]
PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
COLLECTIONS = next(path for path in sys.path if Path(path, "ansible_collections/crashcart/fleet/galaxy.yml").exists())
ENVIRONMENT = {"PYTHONPATH": COLLECTIONS}
SLEEP_S = f"1000.{os.getpid():07}"  # other processes run tests of this file, too
# Tasks by word; each is of a playbook over all hosts.
TASKS = {
    "ok": {"ansible.builtin.debug": {"msg": "done"}},
    "fail": {"ansible.builtin.fail": {"msg": "no room"}, "when": "inventory_hostname == 'second'"},
    "ignore": {"ansible.builtin.fail": {"msg": "it does not matter"}, "ignore_errors": True},
    "once": {"ansible.builtin.fail": {"msg": "the store is full"}, "run_once": True},
    "stubborn": {
        "ansible.builtin.shell": f"trap '' TERM; sleep {SLEEP_S} & wait; wait",
        "when": "inventory_hostname == 'first'",
    },
    "note": {
        "ansible.builtin.shell": "echo {{ inventory_hostname }} {{ crashcart_ttl | default('') }} >>{{ crashcart_dest }}/note"
    },
    "allow": {
        "ansible.builtin.shell": "echo {{ inventory_hostname }} {{ crashcart_allow_empty | default(false) }} >>{{ crashcart_dest }}/note"
    },
    "reach": {"ansible.builtin.ping": {}},
    "wait": {"ansible.builtin.command": {"argv": ["sleep", SLEEP_S]}, "when": "inventory_hostname == 'first'"},
}
HOSTS = {
    "first": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable},
    "second": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable},
    "away": {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_ssh_common_args": "-F none"},
}


@pytest.fixture
def schedule(tmp_path):
    """Return what makes a plan: of tasks by their words, for hosts by their names; and its path."""

    def make(*tasks, hosts=("first", "second"), name="tests", serial="100%", then=(), inventory_vars=None, **more):
        """Of TASKS is the first playbook, of THEN the second one; INVENTORY_VARS are those of all hosts."""
        state = tmp_path / name
        state.mkdir(exist_ok=True)
        books = [state / "play.yml", *([state / "then.yml"] if then else [])]
        for book, words in zip(books, (tasks, then)):
            play = {"hosts": "all", "gather_facts": False, "serial": serial, "tasks": [TASKS[task] for task in words]}
            book.write_text(json.dumps([play]))
        inventory = {"all": {"hosts": {host: HOSTS[host] for host in hosts}, "vars": inventory_vars or {}}}
        (state / "inventory.yml").write_text(json.dumps(inventory))
        plan = {
            "name": name,
            "command": str(PLAYBOOK),
            "playbooks": [str(book) for book in books],
            "inventory": [str(state / "inventory.yml")],
            "store": str(tmp_path / "store"),
            "state": str(state),
            "cron": "0 * * * *",
            "environment": {"ANSIBLE_COLLECTIONS_PATH": COLLECTIONS},
            **more,
        }
        (state / "plan.json").write_text(json.dumps(plan))
        return state

    return make


def run(state, *options):
    return subprocess.run([*PROGRAM, *options, str(state / "plan.json")], capture_output=True, text=True, check=False)


def read(state):
    return json.loads((state / "last-run.json").read_text())


def list_sleepers():
    found = subprocess.run(["pgrep", "-f", f"sleep {SLEEP_S}"], capture_output=True, text=True, check=False)
    return found.stdout.split()


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("tasks", "hosts", "status", "words"),
    [
        (["ok", "ignore"], ("first", "second"), 0, "2 hosts"),
        (["fail", "ok"], ("first", "second"), 3, "1 of 2 hosts are missing"),
        (["reach"], ("first", "away"), 3, "1 of 2 hosts are missing"),
        (["reach"], ("away",), 1, "1 of 1 hosts are missing"),
        (["once"], ("first", "second"), 1, "the store is full"),
        (["ok"], (), 1, "no host of the inventory was meant"),
    ],
)
def test_the_exit_status_and_the_record_say_what_came_of_the_hosts(schedule, tasks, hosts, status, words):
    state = schedule(*tasks, hosts=hosts)
    done = run(state)
    assert done.returncode == status, done.stdout + done.stderr
    record = read(state)
    assert (record["status"], words in record["message"]) == (status, True), record
    assert words in done.stdout.splitlines()[-1]
    if "second" in hosts and status == 3:
        assert record["hosts"] == {
            "first": {"state": "ok", "message": ""},
            "second": {"state": "failed", "message": "no room"},
        }
    if "away" in hosts:
        assert record["hosts"]["away"]["state"] == "unreachable" and "away: unreachable (" in done.stdout
    assert record["last_success"] == (record["ended"] if status == 0 else 0)


@pytest.mark.parametrize(
    ("tasks", "status"), [(["reach"], 3), (["fail"], 3), (["ok", "once"], 1), (["reach", "fail", "once"], 1)]
)
def test_what_fails_in_one_playbook_keeps_no_host_from_the_next(schedule, tmp_path, tasks, status):
    hosts = ("away", "first", "second") if "reach" in tasks else ("first", "second")
    state = schedule(*tasks, hosts=hosts, then=("note",))
    done = run(state)
    assert done.returncode == status, done.stdout + done.stderr
    assert sorted((tmp_path / "store/note").read_text().split()) == ["first", "second"]
    found = read(state)["hosts"]
    assert {name: about["state"] for name, about in found.items()} == {
        "first": "ok",
        "second": "failed" if "fail" in tasks else "ok",
        **({"away": "unreachable"} if "reach" in tasks else {}),
    }
    if "fail" in tasks:
        assert found["second"]["message"] == "no room"
    if "once" in tasks:
        assert "the store is full" in read(state)["message"]


def test_a_turn_of_hosts_that_fails_as_a_whole_keeps_no_others_from_theirs(schedule, tmp_path):
    state = schedule("reach", "fail", "allow", hosts=("away", "first", "second"), serial=1)
    done = run(state)
    assert done.returncode == 3, done.stdout + done.stderr
    assert {name: about["state"] for name, about in read(state)["hosts"].items()} == {
        "away": "unreachable",
        "first": "ok",
        "second": "failed",
    }
    # What the others lack, the first of the hosts may have.
    assert (tmp_path / "store/note").read_text().split() == ["first", "True"]


def test_hosts_whose_turn_does_not_come_are_missing(schedule):
    state = schedule("once", hosts=("first", "second"), serial=1)
    assert run(state).returncode == 1
    assert read(state)["hosts"]["second"] == {"state": "failed", "message": "it was not tried"}


def test_variables_of_the_inventory_go_before_the_schedules_defaults_and_given_ones_before_both(schedule, tmp_path):
    cases = [
        ({"defaults": {"crashcart_ttl": "1d"}}, "1d"),
        ({"defaults": {"crashcart_ttl": "1d"}, "inventory_vars": {"crashcart_ttl": "2h"}}, "2h"),
        ({"inventory_vars": {"crashcart_ttl": "2h"}, "variables": {"crashcart_ttl": "3h"}}, "3h"),
    ]
    for more, wanted in cases:
        assert run(schedule("note", hosts=("first",), **more)).returncode == 0
        assert (tmp_path / "store/note").read_text().split()[-2:] == ["first", wanted]


def test_a_program_that_is_gone_ends_with_a_status_of_no_outcome_but_failure(tmp_path):
    done = subprocess.run([sys.executable, "-P", tmp_path / "run.py"], capture_output=True, check=False)
    assert done.returncode not in {status for name, status in outcome.STATUSES.items() if name != outcome.FAILURE}


def test_a_run_that_takes_too_long_is_ended_with_all_that_it_has_started(schedule):
    state = schedule("ok", "wait", time_limit="6s")
    done = run(state)
    assert done.returncode == 1
    assert "time limit of 6 s was over" in read(state)["message"]
    assert list_sleepers() == []


def test_who_was_waited_for_is_named(schedule):
    state = schedule("ok", "wait")
    with subprocess.Popen([*PROGRAM, str(state / "plan.json")], stdout=subprocess.DEVNULL) as process:
        wait_until(list_sleepers)
        # As when the time is over. The other host's task is skipped, or will be.
        subprocess.run(["pkill", "-TERM", "-f", f"ansible-playbook {state}/play.yml"], check=True)
        assert process.wait(60) == 1
    record = read(state)
    assert record["hosts"]["first"] == {
        "state": "failed",
        "message": "it was not done with the task 'ansible.builtin.command' when the run was ended",
    }
    assert record["hosts"]["second"]["state"] == "failed" and "before it was done: see its output" in record["message"]


def test_a_schedule_of_another_user_is_not_run(schedule):
    state = schedule("ok")
    os.chown(state / "plan.json", 65534, -1)
    done = run(state)
    assert done.returncode == 1 and not (state / running.LOCK).exists()
    assert f"is run by nobody: runuser -u nobody -- {' '.join(PROGRAM)} {state}/plan.json\n" in done.stderr
    os.chown(state / "plan.json", os.geteuid(), -1)
    assert run(state).returncode == 0


@pytest.fixture
def open_folder():
    """A folder that all users can reach, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def check_as_nobody(plan):
    """Return the message of check(PLAN) for a user without rights, '' where there is none."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            running.check(plan)
        except FleetError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as file:
        text = file.read()
    os.waitpid(pid, 0)
    return text


def test_what_the_user_of_the_runs_cannot_use_is_refused(open_folder):
    tmp_path = open_folder
    plan = Plan("tests", "/bin/true", ("x",), str(tmp_path / "new"), str(tmp_path), ("a,",), cron="0 * * * *")
    assert check_as_nobody(plan) == ""
    (tmp_path / "closed").mkdir(mode=0o700)
    (tmp_path / "closed/ansible.cfg").touch()
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(0o777)
    assert check_as_nobody(replace(plan, store=str(tmp_path / "store"))) == ""
    (tmp_path / "store" / running.LOCK).touch(0o600)
    for change, words in (
        ({"store": f"{tmp_path}/closed/store"}, f"cannot reach {tmp_path}/closed/store: Permission denied"),
        ({"store": f"{tmp_path}/store"}, f"cannot write {tmp_path}/store/{running.LOCK}, which another user's run"),
        ({"environment": {"ANSIBLE_CONFIG": f"{tmp_path}/closed/ansible.cfg"}}, "ANSIBLE_CONFIG: the user of the runs"),
    ):
        assert words in check_as_nobody(replace(plan, **change))


def test_a_time_that_is_not_over_for_long_is_only_missed_for_who_makes_up(schedule):
    plan = read_plan(str(schedule("ok", offset="0") / "plan.json"))
    os.utime(Path(plan.state, "plan.json"), (0, 0))
    now = 1_796_000_400 - 1_796_000_400 % 3600 + 30  # half a minute after it was due
    assert running._list_missed(plan, now - 3600, now, only_missed=False) == []
    assert running._list_missed(plan, now - 3600, now, only_missed=True) == [now - 30]


def test_after_a_boot_hosts_that_cannot_be_reached_yet_are_tried_again(schedule, monkeypatch):
    results = [{"a": "unreachable", "b": "unreachable"}, {"a": "unreachable", "b": "ok"}, {"a": "ok"}]

    class Player:
        def __init__(self, _plan, found, _deadline, _locks):
            self._found = found

        def play(self):
            self._found.hosts.update({name: outcome.Host(state) for name, state in results.pop(0).items()})
            return ""

    monkeypatch.setattr(running, "Player", Player)
    monkeypatch.setattr(running, "_SIGNALS", ())  # those of this process stay as they are
    monkeypatch.setattr(running, "_AGAIN_S", 0.01)
    state = schedule("ok", cron="* * * * *")
    os.utime(state / "plan.json", (0, 0))
    (state / "last-run.json").write_text(json.dumps({"began": time.time() - 600}))
    assert running.run(read_plan(str(state / "plan.json")), only_missed=True) == 3
    assert len(results) == 1 and read(state)["hosts"]["b"]["state"] == "ok"


def test_also_what_does_not_want_to_end_is_ended(schedule):
    state = schedule("ok", "stubborn", time_limit="6s")
    assert run(state).returncode == 1
    assert list_sleepers() == []


def test_the_time_limit_counts_the_wait_for_the_store_too(schedule, tmp_path, monkeypatch):
    left_s = []

    class Player:
        def __init__(self, _plan, _found, deadline, _locks):
            left_s.append(deadline - time.monotonic())

        def play(self):
            return ""

    monkeypatch.setattr(running, "Player", Player)
    monkeypatch.setattr(running, "_SIGNALS", ())  # those of this process stay as they are
    plan = read_plan(str(schedule("ok", time_limit="60s") / "plan.json"))
    (tmp_path / "store").mkdir()
    with subprocess.Popen(["flock", str(tmp_path / "store" / running.LOCK), "sleep", "3"]) as other:
        wait_until((tmp_path / "store" / running.LOCK).exists)
        time.sleep(0.5)
        assert other.poll() is None
        running.run(plan)
        other.wait(60)
    assert left_s[0] < 60 - 1


def test_a_playbook_for_which_no_time_is_left_is_told(schedule, monkeypatch):
    plan = read_plan(str(schedule("ok", then=("ok",), time_limit="60s") / "plan.json"))
    found = outcome.Run("tests", "tests-1", time.time(), log=os.devnull)
    player = playing.Player(plan, found, time.monotonic() + 60, ())
    played = []

    def end_with_the_time(player, words, folder, log, deadline):
        played.append(words)
        player._deadline = time.monotonic()
        return play_all(player, words, folder, log, time.monotonic()) if len(played) > 1 else ""

    play_all = playing.Player._play_all
    monkeypatch.setattr(playing.Player, "_play_all", end_with_the_time)
    monkeypatch.setattr(playing, "set_child_subreaper", lambda: None)  # this process is no run
    assert "its time limit of 60 s was over" in player.play() and len(played) == 2


def test_what_takes_all_the_time_of_one_playbook_leaves_some_to_the_next(schedule, tmp_path):
    state = schedule("wait", then=("note",), time_limit="100s")
    text = (
        "import sys; from ansible_collections.crashcart.fleet.plugins.plugin_utils.schedule import playing, running;"
        f"playing._SHARE = 0.93; sys.exit(running.main([{str(state / 'plan.json')!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=False, env={**os.environ, **ENVIRONMENT}
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"its time limit of 100 s leaves 7 s to {state}/play.yml, and they were over" in read(state)["message"]
    assert sorted((tmp_path / "store/note").read_text().split()) == ["first", "second"]


def test_a_run_that_goes_on_is_ended_before_its_schedule_is_taken_away(schedule):
    state = schedule("wait")
    assert run(state, "--end").returncode == 0  # there is none
    with subprocess.Popen([*PROGRAM, str(state / "plan.json")], stdout=subprocess.DEVNULL) as process:
        wait_until(list_sleepers)
        assert run(state, "--end").returncode == 0
        assert process.wait(60) == 1
    assert list_sleepers() == [] and "ended by SIGTERM" in read(state)["message"]
    with subprocess.Popen(["flock", str(state / running.LOCK), "sleep", "1000.25"]) as other:
        wait_until(lambda: run(state, "--end").returncode == 75)
        assert other.poll() is None
        subprocess.run(["pkill", "-P", str(other.pid)], check=True)
        other.wait(10)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_run_by_hand_that_is_interrupted_has_a_record(schedule, number):
    state = schedule("wait", textfile=str(schedule("ok")))
    # These tests may run in the background, where a shell, or nohup, has the signal ignored.
    heed = partial(signal.signal, number, signal.SIG_DFL)
    with subprocess.Popen(
        [*PROGRAM, str(state / "plan.json")],
        stdout=subprocess.DEVNULL,
        preexec_fn=heed,  # noqa: PLW1509 - there are no threads
    ) as process:
        try:
            wait_until(list_sleepers)
            process.send_signal(number)
            assert process.wait(60) == 1
        finally:
            process.kill()
    record = read(state)
    assert record["message"] == f"the run was ended by {number.name}" and record["ended"] >= record["began"]
    assert list_sleepers() == []


def test_where_there_is_no_store_that_is_recorded(schedule, tmp_path):
    (tmp_path / "file").touch()
    state = schedule("ok", store=str(tmp_path / "file/store"), textfile=str(tmp_path))
    assert run(state).returncode == 1
    assert read(state)["message"] == f"{tmp_path}/file/store: Not a directory"
    assert 'last_run_status{schedule="tests"} 1\n' in (tmp_path / "crashcart_schedule_tests.prom").read_text()


def test_a_run_on_a_disk_without_any_room_makes_some_first(schedule, tmp_path):
    """Check a disk that has the store and the schedule's own files; captures that may be removed have come in runs before."""
    now = time.time_ns()
    with mount_small_disk(tmp_path):
        state = schedule("ok", variables={"crashcart_keep_age": "3d"})
        store = tmp_path / "store"
        for days in (0, 5, 6):
            write_capture(store, str(days), size=50000, begin=now - days * DAY - HOUR, end=now - days * DAY)
        for hours in (30, 18, 6):
            at = now - hours * HOUR
            with open_catalogue(str(store), [], clock=lambda at=at: at) as catalogue, catalogue.transaction():
                catalogue.sync()
                catalogue.note_update(at, f"run {hours}")
        fill_up(tmp_path)
        done = run(state)
        assert done.returncode == 0, done.stdout + done.stderr
        assert [path.stem for path in store.rglob("*.dat")] == ["0"]


def test_a_record_that_cannot_be_written_costs_no_metrics_and_a_reader_that_is_gone_costs_neither(schedule, tmp_path):
    state = schedule("ok", textfile=str(tmp_path))
    (state / "last-run.json").mkdir()
    done = run(state)
    assert done.returncode == 0 and "the record cannot be written: " in done.stderr
    metrics = tmp_path / "crashcart_schedule_tests.prom"
    assert 'last_run_status{schedule="tests"} 0\n' in metrics.read_text()
    metrics.unlink()
    (state / "last-run.json").rmdir()
    words = " ".join([*PROGRAM, str(state / "plan.json")])
    done = subprocess.run(
        ["bash", "-c", f"{words} | true; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert read(state)["outcome"] == "success" and metrics.exists()


@pytest.mark.parametrize("began", [-5, 1, "NaN", "Infinity", "1e400"])
def test_an_odd_time_of_the_run_before_costs_nothing(schedule, began):
    state = schedule("ok", hosts=("first",), cron="* * * * *")
    os.utime(state / "plan.json", (0, 0))
    (state / "last-run.json").write_text(f'{{"began": {began}, "missed_total": 5}}')
    assert run(state).returncode == 0
    record = read(state)
    # Thirty-one days back, in which a change of daylight saving time is an hour.
    assert abs(record["missed_count"] - 31 * 1440) < 62
    assert record["missed_total"] == record["missed_count"] + 5 and len(record["missed"]) == min(
        record["missed_count"], 1000
    )


def test_a_second_run_of_a_schedule_does_not_begin_and_leaves_the_record_alone(schedule):
    state = schedule("wait", textfile="")
    with subprocess.Popen([*PROGRAM, str(state / "plan.json")], stdout=subprocess.DEVNULL) as first:
        try:
            wait_until(list_sleepers)
            second = run(state)
            assert second.returncode == 75
            assert "another run of the schedule tests goes on" in second.stderr
            assert not (state / "last-run.json").exists()
            # Another schedule with the same store waits for it, for its time at most.
            other = schedule("ok", name="others", time_limit="1s")
            (other / "last-run.log").write_text("of an earlier run")
            done = run(other)
            assert "of an earlier run" not in done.stdout
            assert done.returncode == 75
            assert read(other)["outcome"] == "skipped"
            first.send_signal(signal.SIGTERM)
            assert first.wait(60) == 1
        finally:
            first.kill()
    assert "ended by SIGTERM" in read(state)["message"]
    assert list_sleepers() == []
    assert run(schedule("ok", name="others")).returncode == 0


def test_after_a_runner_that_was_killed_the_next_run_begins(schedule):
    state = schedule("wait")
    with subprocess.Popen([*PROGRAM, str(state / "plan.json")], stdout=subprocess.DEVNULL) as first:
        wait_until(list_sleepers)
        first.kill()
    wait_until(lambda: not list_sleepers())
    state = schedule("ok")
    wait_until(lambda: run(state).returncode == 0)


def test_a_run_that_a_shutdown_cuts_off_is_made_up_for(schedule):
    state = schedule("wait")
    os.utime(state / "plan.json", (0, 0))
    (state / "last-run.json").write_text(json.dumps({"began": time.time() - 3 * 3600}))
    for _time in range(2):  # the catch-up itself is cut off, too
        with subprocess.Popen([*PROGRAM, "--catch-up", str(state / "plan.json")], stdout=subprocess.DEVNULL) as process:
            wait_until(list_sleepers)
            process.terminate()
            assert process.wait(60) == 1
        assert "ended by SIGTERM" in read(state)["message"]
    schedule("ok", hosts=("first",))
    os.utime(state / "plan.json", (0, 0))
    assert run(state, "--catch-up").returncode == 0
    assert read(state)["missed_count"] in (3, 4) and read(state)["outcome"] == "success"  # an hour may begin meanwhile
    began = read(state)["began"]
    assert run(state, "--catch-up").returncode == 0 and read(state)["began"] == began


def test_missed_runs_are_listed_and_counted_and_caught_up_only_where_there_are_some(schedule):
    state = schedule("ok", hosts=("first",))
    run(state)
    assert read(state)["missed"] == []
    now = read(state)["began"]
    assert run(state, "--catch-up").returncode == 0
    assert read(state)["began"] == now
    last = {**read(state), "began": now - 5 * 3600}
    (state / "last-run.json").write_text(json.dumps(last))
    # Before the schedule was what it is nothing was missed.
    assert run(state, "--catch-up").returncode == 0 and read(state)["began"] == last["began"]
    os.utime(state / "plan.json", (0, 0))
    done = run(state, "--catch-up")
    record = read(state)
    assert done.returncode == 0 and record["began"] > now
    assert record["missed_count"] == record["missed_total"] == len(record["missed"]) == 5
    assert f"{record['missed_count']} runs were missed" in done.stdout
    assert all(time.localtime(due).tm_min == 0 and last["began"] < due < record["began"] for due in record["missed"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cron": "61 * * * *"}, "not the five fields of crontab"),
        *(
            ({"cron": cron}, "not the five fields of crontab")
            for cron in ("0 0 L * *", "0 0 LW * *", "0 0 * * 5#2", "* * * * * *")
        ),
        ({"forks": 0}, "crashcart_forks: give a number of hosts"),
        ({"inventory": ["hosts.ini"]}, "crashcart_inventory: hosts.ini is no path from /"),
        ({"inventory": ["/nonesuch/hosts"]}, "cannot read /nonesuch/hosts: give a source that is there"),
        ({"store": "~/traces"}, "crashcart_dest: ~/traces is no path from /"),
        ({"store": "/proc/version"}, "crashcart_dest: /proc/version is no folder"),
        ({"textfile": "/nonesuch"}, "crashcart_textfile: /nonesuch is no folder"),
        ({"variables": {"crashcart_keep_age": "2weeks"}}, "keep_age: '2weeks' is not a time"),
        ({"defaults": {"crashcart_keep_free": "much"}}, "keep_free: 'much' is not a size"),
        ({"time_limit": "soon"}, "crashcart_time_limit: 'soon' is not a time"),
        ({"variables": {"crashcart_seconds": 7200}}, "crashcart_seconds: a run ends after 1h (crashcart_time_limit)"),
        ({"variables": {"crashcart_host_timeout": "3600"}}, "crashcart_host_timeout: a run ends after 1h"),
        ({"offset": "2h"}, "crashcart_offset is longer"),
        ({"command": "/nonesuch/ansible-playbook"}, "install ansible-core"),
        ({"name": "../tests"}, "no name or no playbook"),
        ({"what": 1}, "is no plan of a schedule"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused_with_the_reason(schedule, change, words):
    state = schedule("ok")
    plan = json.loads((state / "plan.json").read_text())
    (state / "plan.json").write_text(json.dumps({**plan, **change}))
    done = run(state, "--check")
    assert done.returncode == 1 and words in done.stderr
    assert not (state / "last-run.json").exists()


def test_a_good_plan_is_accepted_and_nothing_is_run(schedule):
    state = schedule("ok")
    assert (run(state, "--check").returncode, os.listdir(state).count("last-run.json")) == (0, 0)
    assert run(schedule("ok", inventory=["one,two,"], cron="*/15,7 0-23/2 1,15 JAN-DEC mon"), "--check").returncode == 0


def test_the_offset_is_the_same_each_time_and_another_for_each_schedule():
    offsets = [running.find_offset(Plan(f"plan{number}", "", ("x",), "", "", offset="10m")) for number in range(50)]
    assert offsets == [
        running.find_offset(Plan(f"plan{number}", "", ("x",), "", "", offset="10m")) for number in range(50)
    ]
    assert len(set(offsets)) == 50 and min(offsets) >= 0 and max(offsets) < 600
    assert max(offsets) - min(offsets) > 300
    assert running.find_offset(Plan("plan", "", ("x",), "", "", offset="0")) == 0
