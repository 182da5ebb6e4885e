# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Captures in one task over a real ssh: what comes home, what fails alone, and what is left when the controller or the connection is gone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import support
from support import host

ENGINE = os.environ.get("DOCKER_HOST", "")
LOOP = ("busybox", "/bin/sh", "-c", "while /bin/true; do /bin/cat /nonesuch; /bin/sleep 0.05; done")
STORM = Path(support.__file__).with_name("workload_storm.py").read_text(encoding="utf-8")
FOLDER = Path("/var/lib/crashcart/captures")
RECORD = {"mode": "record", "min_free": "1MiB", "buffer_size": "256KiB"}


@pytest.fixture(autouse=True)
def nothing_is_left():
    """After each test no trace is left, and no process of ours."""
    yield
    host.call_module("ftrace_instance", state="absent", everything=True)
    host.wait_until_empty(host.list_processes)
    for path in FOLDER.glob("*"):  # of a test that failed
        path.unlink()


def capture(names, dest, *options, where="as_user", **more):
    """The result of the task over ssh."""
    arguments = {"containers": names, "dest": str(dest), "docker_host": ENGINE, "seconds": 1, **more}
    return host.ad_hoc(where, "ftrace_capture", arguments, "-b", *options)


@contextmanager
def capturing(ssh_hosts, name, dest, **more):
    """The process of `ansible`, in a group of its own, whose host traces container NAME now."""
    arguments = {"containers": [name], "dest": str(dest), "docker_host": ENGINE, **more}
    command = ("ansible", "as_user", "-i", str(ssh_hosts), "-b", "-m", "crashcart.fleet.ftrace_capture")
    with host.start(
        *command, "-a", json.dumps(arguments), start_new_session=True, stdout=subprocess.DEVNULL
    ) as process:
        host.wait_until(is_traced)
        yield process


def kill(process):
    """Kill PROCESS, the controller, with all its workers and their ssh, at once and without a word to the host."""
    family = [process.pid]
    for pid in family:
        os.kill(pid, signal.SIGSTOP)  # so that none is born meanwhile
        family += map(int, host.run("pgrep", "-P", str(pid), check=False).stdout.split())
    for pid in family:
        os.kill(pid, signal.SIGKILL)


def find_guard():
    """The pid of the one guard."""

    def look():
        return host.run("pgrep", "-f", "^crashcart-guard", check=False).stdout.strip()

    return int(host.wait_until(look))


def is_traced():
    return any(
        host.run("cat", f"{host.TRACEFS}/instances/{name}/tracing_on", check=False).stdout.strip() == "1"
        for name in host.list_instances()
    )


def test_one_task_brings_all_that_can_be_traced(container, ssh_hosts, tmp_path):
    good, other, stopped = container(*LOOP), container(*LOOP), container()
    host.docker("stop", "-t", "0", stopped)
    with pytest.raises(host.ModuleFailed) as failed:
        capture([good, other, stopped], tmp_path, "-i", str(ssh_hosts))
    result = failed.value.result
    assert re.search(rf"1 of 3 containers failed: container {stopped} \(\w+\) is exited", result["msg"])
    assert re.search(rf"; traced all the same: (?=.*{good}).*{other}", result["msg"])
    assert [one["container"] for one in result["failed_containers"]] == [stopped]
    assert sorted(one["container"] for one in result["instances"]) == sorted([good, other])
    assert [one["manifest"]["container"]["name"] for one in result["captures"]] == sorted([good, other])
    for one, line in zip(result["captures"], result["lines"], strict=True):
        assert one["path"].startswith(f"{tmp_path}/as_user/")
        assert "cat" in host.run("trace-cmd", "report", one["path"]).stdout
        assert one["path"] in line
    assert not {"transfer", "more", "left", "leave", "empty", "cursor"} & set(result)
    assert (host.list_instances(), os.listdir(FOLDER)) == ([], [])


def test_the_line_that_is_typed(container, tmp_path):
    name = container(*LOOP)
    words = f"containers={name} seconds=0.5 dest={tmp_path}/traces"
    done = host.run("ansible", "localhost", "-b", "-m", "crashcart.fleet.ftrace_capture", "-a", words)
    assert re.search(rf"{name}: {tmp_path}/traces/localhost/{name}/\S+\.dat \(\d+ events\)", done.stdout)
    assert host.list_instances() == []


def test_each_mode_and_what_was_asked_for(container, tmp_path):
    name = container(*LOOP)
    for more in ({"mode": "ring", "syscalls": ["openat"]}, {**RECORD, "profile": "files"}):
        result = capture([name], tmp_path, where="localhost", **more)
        (one,) = result["captures"]
        asked = one["manifest"]["specification"]
        assert (one["manifest"]["mode"], asked["profile"]) == (more["mode"], more.get("profile"))
        assert one["manifest"]["complete"] and one["manifest"]["stopped"] is None
        assert host.list_instances() == []
        assert not os.path.exists("/var/lib/crashcart/traces") or os.listdir("/var/lib/crashcart/traces") == []


def test_check_mode_changes_nothing(container, tmp_path):
    name = container(*LOOP)
    before = host.read_host_state()
    result = capture([name], tmp_path / "traces", "--check", where="localhost", seconds=600)
    assert (result["changed"], result["captures"], result["selected"]) == (True, [], [name])
    assert host.read_host_state() == before
    assert not (tmp_path / "traces").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"seconds": 0}, "seconds: 0 is not a time from"),
        ({"seconds": 100000}, "use the playbooks start and stop"),
        ({"seconds": 20, "ttl": "10s"}, "ttl: 10s is shorter than seconds"),
        ({"dest": None}, "dest is missing"),
        ({"leave": ["a"]}, "leave can be used with phase=finish only"),
        ({"phase": "finish", "containers": None}, "say which containers"),
        ({"containers": ["nonesuch"]}, "no container is called 'nonesuch'"),
        ({"max_size": "1GiB", "mode": "ring"}, "max_size is for mode=record"),
    ],
)
def test_what_cannot_be_meant_is_told_and_changes_nothing(container, tmp_path, more, words):
    container(*LOOP)
    arguments = {"containers": ["*"], "dest": str(tmp_path / "traces"), **more}
    with pytest.raises(host.ModuleFailed, match=re.escape(words)):
        host.ad_hoc(
            "localhost", "ftrace_capture", {name: value for name, value in arguments.items() if value is not None}
        )
    assert host.list_instances() == []
    assert not (tmp_path / "traces").exists()


def test_a_trace_that_is_there_is_refused_or_changed_and_goes_on(container, tmp_path):
    name = container(*LOOP)
    host.call_module("ftrace_instance", containers=[name], ttl="1h")
    with pytest.raises(host.ModuleFailed, match="is traced already"):
        capture([name], tmp_path, where="localhost")
    (one,) = capture([name], tmp_path, where="localhost", existing="change", profile="files")["captures"]
    assert one["manifest"]["specification"]["profile"] == "files"
    (left,) = host.call_module("ftrace_info", gather=["instances"])["instances"]
    assert left["state"] == "started"


@pytest.mark.parametrize("mode", ["ring", "record"])
def test_a_killed_controller_leaves_nothing_and_collect_brings_it(container, ssh_hosts, tmp_path, mode):
    name = container(*LOOP)
    more = RECORD if mode == "record" else {"mode": "ring"}
    with capturing(ssh_hosts, name, tmp_path, seconds=6, **more) as process:
        kill(process)
    host.wait_until_empty(host.list_instances)
    collected(ssh_hosts, name, tmp_path)


def collected(ssh_hosts, name, dest):
    """Let the playbook collect bring the one capture of container NAME, and return its manifest."""
    host.wait_until_empty(host.list_processes)
    assert len([path for path in FOLDER.iterdir() if path.suffix == ".new"]) == 1
    host.playbook("collect", "-i", str(ssh_hosts), "-l", "as_user", dest=str(dest))
    (path,) = dest.glob(f"as_user/{name}/*.json")
    manifest = json.loads(path.read_text())
    assert manifest["entries"] > 10
    assert os.listdir(FOLDER) == []
    return manifest


@pytest.mark.parametrize("mode", ["ring", "record"])
def test_a_killed_module_leaves_nothing_after_its_ttl(container, ssh_hosts, tmp_path, mode):
    name = container(*LOOP)
    more = RECORD if mode == "record" else {"mode": "ring"}
    with capturing(ssh_hosts, name, tmp_path, seconds=5, ttl="6s", **more) as process:
        module = int(Path(f"/proc/{find_guard()}/stat").read_text().rpartition(")")[2].split()[1])
        kill(process)
        os.kill(module, signal.SIGKILL)
    host.wait_until_empty(host.list_instances, 40)
    assert collected(ssh_hosts, name, tmp_path)["stopped"] == "its ttl is over"


def test_a_hangup_and_a_termination_do_not_lose_what_was_recorded(container, tmp_path):
    name = container(*LOOP)
    for number, seconds in ((signal.SIGHUP, 3), (signal.SIGTERM, 600)):
        arguments = {"containers": [name], "dest": str(tmp_path), "seconds": seconds, "_methods": ["zstd"]}
        process = host.start_module("ftrace_capture", **arguments)
        host.wait_until(is_traced)
        host.pause(0.5)
        process.send_signal(number)
        result = host.parse_result(*process.communicate())
        assert result["transfer"]["segments"]
        assert host.list_instances() == []


def test_captures_for_which_the_host_has_no_room_at_once_come_in_several_calls(container, tmp_path):
    storms = [container("python", "/usr/bin/python3", "-S", "-c", STORM, "1", "60000") for _number in range(2)]
    for name in storms:
        host.wait_until(lambda name=name: "ready" in host.docker("logs", name))
    FOLDER.mkdir(mode=0o711, parents=True, exist_ok=True)
    host.run("mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(FOLDER))
    found = {}

    def run():
        more = {**RECORD, "buffer_size": "1MiB", "rotate_size": "512KiB", "syscalls": ["getppid"], "compat": False}
        found.update(capture(storms, tmp_path, where="localhost", seconds=host.seconds(16), **more))

    try:
        thread = threading.Thread(target=run)
        thread.start()
        host.wait_until(lambda: len(host.list_instances()) == 2 and is_traced())
        for name in storms:
            host.docker("kill", "--signal", "USR1", name)
        thread.join()
    finally:
        host.run("umount", str(FOLDER))
    manifests = [one["manifest"] for one in found["captures"]]
    assert len(manifests) > 2 and any(one["partial"] for one in manifests)
    for name in storms:
        calls = int(host.docker("logs", name).split("calls ")[1].split()[0])
        own = [one for one in manifests if one["container"]["name"] == name]
        assert all(one["complete"] for one in own)
        assert sum(one["entries"] for one in own) == 2 * calls
    assert sorted(one["container"] for one in found["instances"]) == sorted(storms)
    assert host.list_instances() == []


def test_the_two_halves(container, tmp_path):
    name, other = container(*LOOP), container(*LOOP)
    started = host.ad_hoc(
        "localhost", "ftrace_capture", {"phase": "start", "containers": [name, other], "seconds": 1, "ttl": "10m"}
    )
    assert len(started["instances"]) == len(started["lines"]) == len(host.list_instances()) == 2
    host.pause(0.5)
    host.docker("rm", "-f", other)
    arguments = {
        "phase": "finish",
        "containers": [one["id"] for one in started["instances"]],
        "allow_empty": True,
        "dest": str(tmp_path),
    }
    finished = host.ad_hoc("localhost", "ftrace_capture", arguments)
    assert [one["manifest"]["container"]["name"] for one in finished["captures"]] == sorted([name, other])
    assert host.list_instances() == []
    again = host.ad_hoc("localhost", "ftrace_capture", arguments)
    assert (again["changed"], again["captures"]) == (False, [])


def test_the_guard_finishes_when_it_is_asked(container, tmp_path):
    """By the small module that the action calls first, and with the failures of single containers."""
    names = [container(*LOOP) for _number in range(2)]
    started = host.call_module("ftrace_capture", phase="start", containers=names, seconds=600, **RECORD)
    ids = [one["id"] for one in started["instances"]]
    assert host.call_module("ftrace_guard", containers=ids[:1])["answer"] is None
    host.pause(1)
    answer = host.call_module("ftrace_guard", containers=ids, _methods=["zstd"])["answer"]
    assert len(answer["transfer"]["segments"]) == 2
    assert (answer["selected"], answer["failed_containers"], answer["left"]) == (sorted(names), [], [])
    assert host.list_instances() == []
    host.wait_until_empty(host.list_processes)
    os.unlink(answer["transfer"]["path"])
    fetched = host.ad_hoc("localhost", "ftrace_fetch", {"dest": str(tmp_path)})["captures"]
    assert sorted(one["manifest"]["container"]["name"] for one in fetched) == sorted(names)
    assert host.call_module("ftrace_guard", containers=ids)["answer"] is None


def test_a_trace_that_nobody_finishes_is_finished_by_the_host(container, tmp_path):
    name = container(*LOOP)
    host.ad_hoc("localhost", "ftrace_capture", {"phase": "start", "containers": [name], "seconds": 1, "ttl": "2s"})
    host.wait_until_empty(host.list_instances)
    (one,) = host.ad_hoc("localhost", "ftrace_fetch", {"dest": str(tmp_path)})["captures"]
    assert one["manifest"]["stopped"] == "its ttl is over"


def test_what_cannot_be_brought_home_is_finished_by_the_host(container, tmp_path):
    """The folder of the host is a file, which only the finishing task finds out."""
    name = container(*LOOP)
    (tmp_path / "localhost").write_text("")
    with pytest.raises(host.ModuleFailed, match="cannot be written"):
        capture([name], tmp_path, where="localhost")
    assert host.list_instances() == []
