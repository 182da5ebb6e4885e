# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Test standing rules: whatever starts and is meant is traced from its first instruction, and comes home as a capture of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import host, killing, parts, runtimes
from support.fetching import fetch_here

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch.distribute import distribute_all
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import orders, recordings
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rules import starts_log

IMAGES = "crashcart-test"
RULE = "cc-rule"
RUNTIMES = ("runc", "crun", "containerd-shim", "conmon", "dockerd", "exe")
FAILS = ("/bin/busybox", "cat", "/etc/nope")


@pytest.fixture
def rule():
    """Make a rule with the options that are given."""

    def make(**arguments):
        wish = {"containers": ["cc-new-*"], "rule": RULE, "buffer_size": "4MiB", **arguments}
        (instance,) = host.call_module("ftrace_instance", state="awaiting", **wish)["instances"]
        return instance

    yield make
    host.call_module("ftrace_instance", state="absent", everything=True)


def read_lines(path):
    """Return the lines of trace-cmd report of the capture PATH, without the one that counts CPUs."""
    return [line for line in host.run("trace-cmd", "report", str(path)).stdout.splitlines() if " [0" in line]


def run(name, *command, options=()):
    """Run a container called NAME until it ends, which leaves nothing of it."""
    words = ("run", "--rm", "--network", "none", "--name", name, *options, f"{IMAGES}/busybox", *(command or FAILS))
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=False)


def fetch(tmp_path, number=0):
    """Return container → its capture of a fetch."""
    captures = fetch_here(tmp_path / str(number))
    names = [capture["manifest"]["container"]["name"] for capture in captures]
    assert len(set(names)) == len(names), names
    return dict(zip(names, captures))


def check_from_the_first_instruction(capture, program="/bin/busybox"):
    """Check that a CAPTURE begins with the execve of PROGRAM, is complete, has the failure, and nothing of a runtime."""
    manifest = capture["manifest"]
    assert manifest["complete"], manifest["reasons"]
    assert (manifest["rule"], manifest["has_run"]) == (RULE, True)
    lines = read_lines(capture["path"])
    assert f"sched_process_exec:   filename={program}" in lines[0], lines[:3]
    assert any("sys_exit" in line and line.endswith("= -2") for line in lines), lines
    assert not [line for line in lines[1:] if f"comm={RUNTIMES[0]}" in line]
    return lines


def find_state():
    (instance,) = host.call_module("ftrace_info", gather=["instances"])["instances"]
    return instance["rule"]


def test_a_container_that_did_not_exist_is_traced_from_its_first_instruction(rule, tmp_path):
    made = rule()
    assert (made["created"], made["rule"]["patterns"], made["mode"]) == (True, ["cc-new-*"], "record")
    done = run("cc-new-one", options=("--label", "tier=front"))
    assert done.returncode == 1
    run("cc-other")
    captures = fetch(tmp_path)
    assert captures.keys() == {"cc-new-one"}
    about = captures["cc-new-one"]["manifest"]["container"]
    assert (about["labels"], about["image"], about["runtime"]) == ({"tier": "front"}, f"{IMAGES}/busybox", "docker")
    lines = check_from_the_first_instruction(captures["cc-new-one"])
    assert not [line for line in lines if "cc-other" in line]
    found = find_state()
    assert (found["traced"], found["unmeant"], found["refused"], found["running"], found["troubles"]) == (
        1,
        1,
        0,
        0,
        [],
    )
    assert fetch(tmp_path, 1) == {}


def test_the_same_rule_again_changes_nothing(rule):
    rule()
    again = host.call_module(
        "ftrace_instance", state="awaiting", containers=["cc-new-*"], rule=RULE, buffer_size="4MiB"
    )
    assert not again["changed"]
    other = host.call_module(
        "ftrace_instance", state="awaiting", containers=["cc-new-*"], rule=RULE, buffer_size="4MiB", max_containers=3
    )
    assert other["changed"]


def test_a_fetch_of_others_leaves_a_rules_events_within_its_bounds(rule, tmp_path):
    rule()
    for _number in range(2):
        run("cc-new-one")
    assert fetch_here(tmp_path / "others", containers=["cc-else"], allow_empty=True) == []
    assert [name for name in recordings.list_names() if len(recordings.list_names()) == 1]
    found = fetch_here(tmp_path / "mine", containers=["cc-new-*"])
    assert [capture["manifest"]["container"]["name"] for capture in found] == ["cc-new-one"] * 2


def test_a_rule_is_removed_with_what_is_sorted_already(rule, tmp_path):
    rule()
    run("cc-new-one")
    distribute_all(host.TRACEFS, Outcome())
    assert len(recordings.list_names()) == 2
    host.call_module("ftrace_instance", state="absent", rule=RULE)
    assert recordings.list_names() == []


def test_a_host_name_of_a_users_hides_no_later_container(rule, tmp_path):
    rule()
    run("cc-new-odd", options=("-v", "/etc/hostname:/etc/hostname:ro"))
    run("cc-new-one", options=("-v", "/etc/hosts:/etc/hosts:ro"))
    assert fetch(tmp_path).keys() == {"cc-new-odd", "cc-new-one"}


def test_labels_choose(rule, tmp_path):
    rule(containers=None, labels={"tier": "front"})
    run("cc-new-front", options=("--label", "tier=front"))
    run("cc-new-back", options=("--label", "tier=back"))
    assert fetch(tmp_path).keys() == {"cc-new-front"}


def start(name, *command):
    """Start a container called NAME that runs until it is removed, and its program COMMAND."""
    host.docker("run", "-d", "--rm", "--network", "none", "--name", name, f"{IMAGES}/busybox", *command)


def read_time(line):
    return float(line.split("]")[1].split(":")[0])


def test_what_is_forked_and_execed_later_is_of_its_container(rule, tmp_path):
    rule()
    start("cc-new-long", "/bin/sh", "-c", "while true; do cat /nope/in; sleep 0.2; done")
    try:
        run("cc-new-short")
        host.wait_until(lambda: find_state()["running"] == 1)
        time.sleep(0.3)
        host.docker("exec", "cc-new-long", "/bin/ls", "/nope/exec", check=False)
        first = fetch(tmp_path)
        assert first.keys() == {"cc-new-long", "cc-new-short"}
        assert first["cc-new-long"]["manifest"]["tracing"]
        lines = read_lines(first["cc-new-long"]["path"])
        assert {"ls", "cat", "sleep"} <= {line.split("-")[0].strip() for line in lines}
        time.sleep(0.5)
        second = fetch(tmp_path, 1)
        assert second.keys() == {"cc-new-long"}
        assert second["cc-new-long"]["manifest"]["complete"], second["cc-new-long"]["manifest"]["reasons"]
        more = read_lines(second["cc-new-long"]["path"])
        assert read_time(lines[-1]) < read_time(more[0])
    finally:
        host.docker("rm", "-f", "cc-new-long")


def test_a_hundred_at_once_are_complete(rule, tmp_path):
    rule()
    names = [f"cc-new-{number}" for number in range(100)]
    words = ["docker", "run", "--rm", "--network", "none"]
    started = [
        subprocess.Popen([*words, "--name", name, f"{IMAGES}/busybox", *FAILS], stderr=subprocess.DEVNULL)
        for name in names
    ]
    for process in started:
        process.wait()
    captures = fetch(tmp_path)
    assert captures.keys() == set(names)
    for capture in captures.values():
        check_from_the_first_instruction(capture)


def test_beyond_max_containers_the_number_is_told(rule, tmp_path):
    rule(max_containers=2)
    for number in range(4):
        words = ("run", "-d", "--network", "none", "--name", f"cc-new-{number}", f"{IMAGES}/busybox", "/bin/sleep")
        host.docker(*words, "60")
    try:
        run("cc-other")
        found = find_state()
        assert (found["traced"], found["refused"], found["unmeant"], found["running"]) == (2, 2, 1, 2)
        line = host.call_module("ftrace_info")["summary"][0]
        assert "2 were not traced, as max_containers (2) were traced already" in line
        assert fetch(tmp_path).keys() == {"cc-new-0", "cc-new-1"}
    finally:
        host.docker("rm", "-f", *(f"cc-new-{number}" for number in range(4)))


def test_a_full_buffer_makes_the_captures_incomplete_with_the_number(rule, tmp_path):
    rule(buffer_size="8KiB", max_size="1MiB")
    run("cc-new-loud", "/bin/sh", "-c", "i=0; while [ $i -lt 3000 ]; do [ -e /nope ]; i=$((i+1)); done")
    manifest = fetch(tmp_path)["cc-new-loud"]["manifest"]
    assert not manifest["complete"] and manifest["lost"] > 0
    assert any(f"of rule {RULE} were lost" in reason for reason in manifest["reasons"]), manifest["reasons"]


def test_a_container_is_traced_no_longer_than_max_time(rule, tmp_path):
    rule(max_time="1s")
    run("cc-new-timed", "/bin/sh", "-c", "i=0; while [ $i -lt 30 ]; do [ -e /nope ]; sleep 0.1; i=$((i+1)); done")
    capture = fetch(tmp_path)["cc-new-timed"]
    assert "no longer than its max_time" in capture["manifest"]["stopped"]
    lines = read_lines(capture["path"])
    assert 0.5 < read_time(lines[-1]) - read_time(lines[0]) < 2.5


def test_one_that_is_created_anew_again_and_again_is_caught_each_time(rule, tmp_path):
    rule()
    count = 60 if parts.IS_ALL else 10
    for _number in range(count):
        run("cc-new-again")
    captures = fetch_here(tmp_path)
    assert Counter(capture["manifest"]["container"]["name"] for capture in captures) == {"cc-new-again": count}
    for capture in captures:
        check_from_the_first_instruction(capture)


TOLD = re.compile("no execve of its first program was seen|are of threads whose container is not known")


def test_runc_podman_and_ctr(rule, tmp_path):
    """Each is caught. While the kernel takes a list, 20 to 50 ms, a start may be over; then the capture says so, and a later one is caught."""
    rule(containers=["cc-new-*", "cc-runc*"])
    caught = set()
    for number in range(8):
        folder = tmp_path / str(number)
        folder.mkdir()
        with runtimes.run_runc(folder, "cc-runc-rule"), runtimes.run_ctr("cc-new-ctr", "cc-test"), runtimes.run_podman(
            "cc-new-podman"
        ):
            found = {capture["manifest"]["container"]["name"]: capture for capture in list_all(folder / "fetched")}
        list_all(folder / "ends")
        assert {name: capture["manifest"]["container"]["runtime"] for name, capture in found.items()} == {
            "cc-runc-rule": "runc",
            "cc-new-ctr": "containerd",
            "cc-new-podman": "podman",
        }
        assert {name: capture["manifest"]["followed"]["exec"] for name, capture in found.items()} == {
            "cc-runc-rule": "watch",
            "cc-new-ctr": "descent",
            "cc-new-podman": "watch",
        }
        for name, capture in found.items():
            manifest = capture["manifest"]
            if manifest["complete"]:
                lines = read_lines(capture["path"])
                assert "sched_process_exec" in lines[0], lines[:3]
                caught.add(name)
            else:
                assert all(map(TOLD.search, manifest["reasons"])), manifest["reasons"]
        if caught == found.keys():
            return
    raise AssertionError(f"only {caught} were caught")


def list_all(dest):
    """Return the captures of a fetch, also those without an event."""
    arguments = {"dest": str(dest), "docker_host": os.environ["DOCKER_HOST"]}
    return host.ad_hoc("localhost", "ftrace_fetch", arguments)["captures"]


def test_each_start_of_plain_runc_is_seen_and_begins_with_its_execve_or_says_that_it_does_not(rule, tmp_path):
    """runc takes some ten milliseconds from the control group to the program, less than the kernel takes for a list."""
    rule(containers=["cc-runc*"])
    folder = runtimes.make_bundle(tmp_path / "bundle", *FAILS)
    names = {f"cc-runc-{number}" for number in range(10)}
    for name in names:
        host.run("runc", "run", "--bundle", str(folder), name, check=False)
    captures = list_all(tmp_path)
    assert {capture["manifest"]["container"]["name"] for capture in captures} == names
    caught = 0
    for capture in captures:
        manifest = capture["manifest"]
        if manifest["complete"]:
            check_from_the_first_instruction(capture)
            caught += 1
        else:
            assert all(map(TOLD.search, manifest["reasons"])), manifest["reasons"]
    assert caught > 0


def call_as_runtime(folder, *words, **options):
    """Run the program called runc in FOLDER with the words WORDS, which starts no container and waits; return its process."""
    return subprocess.Popen([str(folder / "runc"), *words], stdin=subprocess.PIPE, **options)


@pytest.fixture
def readable():
    """Give a folder that all users can read, with a program called runc that waits for a line."""
    with tempfile.TemporaryDirectory(prefix="crashcart-test-") as folder:
        os.chmod(folder, 0o755)
        # It is written once: a shell that begins to read a file which is just written anew finds it empty, and ends.
        program = Path(folder, "runc")
        program.write_text("#!/bin/sh\n: $@\nread line\n")
        program.chmod(0o755)
        yield Path(folder)


def test_a_runtime_that_starts_a_container_is_followed_before_the_container_exists(rule, readable, tmp_path):
    rule()
    list_of_pids = Path(host.TRACEFS, "instances", host.list_instances()[0], "set_event_pid")
    asked = {
        "create": call_as_runtime(readable, "--root", "/run/nope", "create", "--bundle", "/nope", "cc-new-one"),
        "run": call_as_runtime(readable, "run", "cc-new-two"),
    }
    others = {
        "exec": call_as_runtime(readable, "exec", "cc-new-one", "run"),
        "of a user": call_as_runtime(readable, "run", "cc-new-three", user=65534),
        "of a user in a namespace": subprocess.Popen(
            ["unshare", "--user", "--map-root-user", str(readable / "runc"), "run", "cc-new-four"],
            stdin=subprocess.PIPE,
            user=65534,
        ),
        "in a pid namespace": subprocess.Popen(
            ["unshare", "--pid", "--fork", str(readable / "runc"), "run", "cc-new-five"], stdin=subprocess.PIPE
        ),
    }
    try:
        host.wait_until(
            lambda: {asked[name].pid for name in asked} <= {int(pid) for pid in list_of_pids.read_text().split()}
        )
        followed = {int(pid) for pid in list_of_pids.read_text().split()}
        assert followed == {process.pid for process in asked.values()}
    finally:
        for process in [*asked.values(), *others.values()]:
            process.communicate(b"\n")
    assert find_state()["troubles"] == []
    assert list_all(tmp_path / "fetched") == []


def test_labels_of_podman_are_asked_for_at_the_fetch(rule, tmp_path):
    rule(containers=None, labels={"tier": "front"})
    with runtimes.run_podman("cc-new-front", "--label", "tier=front"), runtimes.run_podman("cc-new-back", "--rm"):
        pass
    captures = fetch(tmp_path)
    assert captures.keys() == {"cc-new-front"}
    about = captures["cc-new-front"]["manifest"]["container"]
    assert about["labels"] == {"tier": "front"}
    assert "crashcart-test/busybox" in about["image"]


def test_a_killed_recorder_ends_the_rule_and_no_container(rule, tmp_path):
    rule()
    run("cc-new-before")
    host.docker(
        "run", "-d", "--rm", "--network", "none", "--name", "cc-new-long", f"{IMAGES}/busybox", "/bin/sleep", "60"
    )
    host.wait_until(lambda: find_state()["running"] == 1)
    os.kill(orders.find_recorder(), signal.SIGKILL)
    try:
        assert run("cc-new-after").returncode == 1
        assert host.docker("inspect", "-f", "{{.State.Running}}", "cc-new-long").strip() == "true"
        captures = fetch(tmp_path)
        assert captures.keys() == {"cc-new-before", "cc-new-long"}
        for capture in captures.values():
            assert not capture["manifest"]["complete"]
            assert any("recorder died" in reason for reason in capture["manifest"]["reasons"])
        # The same rule, asked for again, goes on.
        rule()
        run("cc-new-after")
        assert fetch(tmp_path, 1).keys() == {"cc-new-after"}
    finally:
        host.docker("rm", "-f", "cc-new-long")


def test_kill_9_of_a_fetch_at_every_system_call_loses_nothing_and_brings_nothing_twice(rule, tmp_path):
    rule()
    expected = Counter()

    def check(number):
        captures = fetch_here(tmp_path / str(number))
        assert Counter(capture["manifest"]["container"]["name"] for capture in captures) == expected, number
        for capture in captures:
            check_from_the_first_instruction(capture)
        assert not list(Path(recordings.FOLDER).glob("*/*/made*")), number
        start_some()

    def start_some():
        expected.clear()
        expected.update(("cc-new-one", "cc-new-two"))
        run("cc-new-one")
        run("cc-new-two")

    start_some()
    assert killing.kill_everywhere(lambda: distribute_all(host.TRACEFS, Outcome()), check, own_calls=True, step=23) > 3


def wait_for_watch():
    """Wait until a rule is watched for. Its instance comes into being a second before that, or more."""
    host.wait_until(lambda: list(Path(recordings.FOLDER).glob(f"*/*/*/{starts_log.NAME}")), 60)


def capture(tmp_path, containers):
    """Return what `ansible -m crashcart.fleet.ftrace_capture` prints, while a container called cc-new-one starts."""
    wish = {"containers": containers, "wait_for_start": True, "seconds": 3, "dest": str(tmp_path)}
    with ThreadPoolExecutor() as pool:
        words = ("ansible", "localhost", "-m", "crashcart.fleet.ftrace_capture", "-a", json.dumps(wish))
        asked = pool.submit(host.run, *words)
        wait_for_watch()
        run("cc-new-one")
        done = asked.result()
        return done.stdout + done.stderr


def test_a_capture_waits_for_a_start(tmp_path):
    said = capture(tmp_path, ["cc-new-*"])
    (path,) = tmp_path.glob("localhost/*/*.dat")
    assert path.parent.name == "cc-new-one"
    assert "sched_process_exec" in read_lines(path)[0]
    assert "nothing has started" not in said
    assert json.loads(path.with_suffix(".json").read_text())["complete"]
    assert host.list_instances() == []
    assert not os.path.exists(recordings.FOLDER)


def test_a_capture_says_what_has_started_instead(tmp_path):
    said = capture(tmp_path, ["cc-else"])
    assert "nothing has started that is meant by cc-else: started have meanwhile: cc-new-one" in " ".join(said.split())
    assert not list(tmp_path.glob("localhost/*/*.dat"))
    assert host.list_instances() == []


def test_the_engines_word_on_a_program_that_cannot_be_executed(rule, tmp_path):
    rule()
    name = "cc-new-bad"
    try:
        done = subprocess.run(
            ["docker", "run", "--network", "none", "--name", name, f"{IMAGES}/busybox", "/nonesuch"],
            capture_output=True,
            check=False,
        )
        assert done.returncode == 127
        arguments = {"dest": str(tmp_path), "docker_host": os.environ["DOCKER_HOST"]}
        (found,) = host.ad_hoc("localhost", "ftrace_fetch", arguments)["captures"]
        assert (found["path"], found["manifest"]["container"]["name"]) == (None, name)
        (reason,) = (one for one in found["manifest"]["reasons"] if "no execve" in one)
        assert re.search("its engine says: it was created and has never run: .*/nonesuch.*no such file", reason), reason
        host.call_module("ftrace_instance", state="absent", everything=True)
        said = " ".join(capture(tmp_path / "again", [name, "cc-else"]).split())
        assert re.search(f"nothing has started .*; {name}: it was created and has never run: .*/nonesuch", said), said
    finally:
        host.docker("rm", "-f", name)


def test_the_playbook_waits_for_a_start(tmp_path):
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(
            host.playbook,
            "trace",
            containers=["cc-new-*"],
            wait_for_start=True,
            seconds=4,
            dest=str(tmp_path),
        )
        wait_for_watch()
        run("cc-new-one")
        said = asked.result().stdout
    assert ("cat" in said and "/etc/nope" in said) or "could not open a file" in said, said
    assert list(tmp_path.glob("localhost/cc-new-one/*.dat"))
    assert host.list_instances() == []


def test_nothing_is_left(rule, tmp_path):
    rule()
    run("cc-new-one")
    fetch(tmp_path)
    assert host.call_module("ftrace_instance", state="absent", rule=RULE)["changed"]
    assert not host.call_module("ftrace_instance", state="absent", rule=RULE)["changed"]
    assert host.list_instances() == []
    assert not os.path.exists(recordings.FOLDER)


@pytest.mark.parametrize(
    "wish, message",
    [
        ({"containers": None}, "say which containers to await"),
        ({"mode": "ring"}, "mode=ring"),
        ({"query": "Id != ''"}, "query cannot be used"),
        ({"clock": "global"}, "clock=global"),
        ({"max_containers": 0}, "max_containers: 0 is too small"),
        ({"everything": True}, "everything can be used with"),
        ({"follow_tools": True}, "follow_tools cannot be used"),
        (
            {"state": "started", "max_time": "1s"},
            "max_time cannot be used with state=started: it is for state=awaiting",
        ),
        ({"state": "started", "rule": "x"}, "rule cannot be used with state=started"),
        ({"state": "absent", "max_containers": 3}, "max_containers cannot be used with state=absent"),
        ({"state": "stopped", "containers": None, "rule": "x"}, "no rule here is called 'x'"),
        ({"state": "stopped", "rule": "x"}, "rule cannot be combined with a selection"),
    ],
)
def test_what_a_rule_cannot_be_is_refused_by_name(wish, message):
    with pytest.raises(host.ModuleFailed, match=re.escape(message)):
        host.call_module("ftrace_instance", **{"state": "awaiting", "containers": ["cc-x"], **wish})
    assert host.list_instances() == []
