# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs of a schedule: real processes of ansible-playbook, whose hosts are this machine and one that cannot be reached."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ansible_collections.crashcart.fleet.plugins.plugin_utils.compiled_cache import COLLECTION
from ansible_collections.crashcart.fleet.plugins.plugin_utils.schedule import outcome, running
from ansible_collections.crashcart.fleet.plugins.plugin_utils.schedule.plan import Plan

pytestmark = pytest.mark.sweep  # a run takes seconds
PROGRAM = [sys.executable, "-P", str(COLLECTION / "plugins/plugin_utils/schedule/run.py")]
PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
COLLECTIONS = next(path for path in sys.path if Path(path, "ansible_collections/crashcart/fleet/galaxy.yml").exists())
# Tasks by word; each is of a playbook over all hosts.
TASKS = {
    "ok": {"ansible.builtin.debug": {"msg": "done"}},
    "fail": {"ansible.builtin.fail": {"msg": "no room"}, "when": "inventory_hostname == 'second'"},
    "ignore": {"ansible.builtin.fail": {"msg": "it does not matter"}, "ignore_errors": True},
    "once": {"ansible.builtin.fail": {"msg": "the store is full"}, "run_once": True},
    "reach": {"ansible.builtin.ping": {}},
    "wait": {"ansible.builtin.command": {"argv": ["sleep", "1000.125"]}, "when": "inventory_hostname == 'first'"},
}
HOSTS = {
    "first": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable},
    "second": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable},
    "away": {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_ssh_common_args": "-F none"},
}


@pytest.fixture
def schedule(tmp_path):
    """Return what makes a plan: of tasks by their words, for hosts by their names; and its path."""

    def make(*tasks, hosts=("first", "second"), name="tests", **more):
        state = tmp_path / name
        state.mkdir(exist_ok=True)
        play = [{"hosts": "all", "gather_facts": False, "tasks": [TASKS[task] for task in tasks]}]
        (state / "play.yml").write_text(json.dumps(play))
        inventory = {"all": {"hosts": {host: HOSTS[host] for host in hosts}}}
        (state / "inventory.yml").write_text(json.dumps(inventory))
        plan = {
            "name": name,
            "command": str(PLAYBOOK),
            "playbooks": [str(state / "play.yml")],
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
    found = subprocess.run(["pgrep", "-f", "sleep 1000.125"], capture_output=True, text=True, check=False)
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


def test_a_program_that_is_gone_ends_with_a_status_of_no_outcome_but_failure(tmp_path):
    done = subprocess.run([sys.executable, "-P", tmp_path / "run.py"], capture_output=True, check=False)
    assert done.returncode not in {status for name, status in outcome.STATUSES.items() if name != outcome.FAILURE}


def test_a_run_that_takes_too_long_is_ended_with_all_that_it_has_started(schedule):
    state = schedule("ok", "wait", time_limit="6s")
    done = run(state)
    assert done.returncode == 1
    assert "time limit of 6 s was over" in read(state)["message"]
    assert list_sleepers() == []


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
            done = run(other)
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


def test_missed_runs_are_listed_and_counted_and_caught_up_only_where_there_are_some(schedule):
    state = schedule("ok", hosts=("first",))
    run(state)
    assert read(state)["missed"] == []
    now = read(state)["began"]
    assert run(state, "--catch-up").returncode == 0
    assert read(state)["began"] == now
    last = {**read(state), "began": now - 5 * 3600}
    (state / "last-run.json").write_text(json.dumps(last))
    done = run(state, "--catch-up")
    record = read(state)
    assert done.returncode == 0 and record["began"] > now
    # The latest of the five may be of the minutes just past, and so be this run's own.
    assert record["missed_count"] == record["missed_total"] == len(record["missed"]) in (4, 5)
    assert f"{record['missed_count']} runs were missed" in done.stdout
    assert all(time.localtime(due).tm_min == 0 and last["began"] < due < record["began"] for due in record["missed"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cron": "61 * * * *"}, "not the five fields of crontab"),
        ({"time_limit": "soon"}, "crashcart_time_limit: 'soon' is not a time"),
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


def test_the_offset_is_the_same_each_time_and_another_for_each_schedule():
    offsets = [running.find_offset(Plan(f"plan{number}", "", ("x",), "", "", offset="10m")) for number in range(50)]
    assert offsets == [
        running.find_offset(Plan(f"plan{number}", "", ("x",), "", "", offset="10m")) for number in range(50)
    ]
    assert len(set(offsets)) == 50 and min(offsets) >= 0 and max(offsets) < 600
    assert max(offsets) - min(offsets) > 300
    assert running.find_offset(Plan("plan", "", ("x",), "", "", offset="0")) == 0
