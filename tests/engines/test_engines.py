# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Test each engine of each release: attach, commands with each right, connection, inventory, traces, and that nothing is left."""

from __future__ import annotations

import json

import place
import pytest
from support import every_kernel
from support.host import ModuleFailed
from support.rights import LOOK

# A loop in which a program fails twice a second, under a name of its own.
LOOP = "while true; do cat /nonesuch/loop; sleep 0.5; done 2>/dev/null"
PROGRAMS = {"sh", "cat", "sleep", "busybox"}


@pytest.fixture
def app(station, engine):
    """Run a container of the engine, and give its name."""
    name = engine.choose_name("app")
    engine.run(name, LOOP)
    yield name
    station.call("ftrace_instance", state="absent", everything=True)
    station.call("crashcart_attach", state="detached", everything=True)
    engine.remove(name)


def test_attach_and_detach(station, engine, app):
    """Attach and detach."""
    attached = station.call("crashcart_attach", containers=[app])
    (one,) = attached["attachments"]
    assert (attached["changed"], one["container"]) == (True, app)
    assert not station.call("crashcart_attach", containers=[app])["changed"]
    said = engine.exec(app, "/dev/crashcart/bin/bash -c 'echo $BASH_VERSINFO'")
    assert int(said) >= 4
    assert station.call("crashcart_attach", containers=[app], state="detached")["changed"]
    assert "crashcart" not in station.run(f"cat /proc/{one['pid']}/mountinfo")


@pytest.mark.parametrize("rights", ["container", "tools", "host"])
def test_commands_with_each_right(station, engine, app, rights):
    """A command with `rights`:"""
    argv = ["bash", "-c", "tr '\\0' ' ' </proc/1/cmdline"]
    (ran,) = station.call("crashcart_exec", containers=[app], argv=argv, rights=rights)["results"]
    assert (ran["rc"], ran["rights"], ran["stdout"].startswith("/bin/sh -c while")) == (0, rights, True), ran


def test_a_confined_command_has_the_rights_of_the_engines_own(station, engine, app):
    """rights=container is what the engine's own exec gives."""
    wish = {"containers": [app], "argv": ["/bin/sh", "-c", LOOK], "rights": "container"}
    (ran,) = station.call("crashcart_exec", **wish)["results"]
    theirs = engine.exec(app, LOOK)
    if engine.runtime == "podman" and "Groups:\t0 " in theirs:
        # Podman 5.8 gives what it execs a group that the container's first process, whose rights ours are, does not have.
        theirs = theirs.replace("Groups:\t0 ", "Groups:\t ")
    assert ran["stdout"].splitlines() == theirs.splitlines()


def test_containers_as_hosts(station, engine, app):
    """Containers as hosts: inventory and connection."""
    listed = json.loads(station.ansible("ansible-inventory", "--list"))
    name = f"{app}@{station.name}"
    assert name in listed["crashcart_containers"]["hosts"]
    assert name in listed[f"runtime_{engine.runtime}"]["hosts"]
    said = station.ansible("ansible", name, "-m", "ansible.builtin.command", "-a", "cat /proc/1/cmdline")
    assert "/nonesuch/loop" in said


def find_programs(capture):
    """Return the names of all processes that made a call in CAPTURE, of a report's summary."""
    return {row["name"] for row in capture["processes"]}


def test_a_trace_has_what_is_execed_and_nothing_of_the_runtime(station, engine, app, tmp_path):
    """A trace has what is exec'ed, and nothing of the runtime."""
    (instance,) = station.call("ftrace_instance", containers=[app], buffer_size="4MiB")["instances"]
    assert instance["container"] == app
    for number in range(3):
        engine.exec(app, f"cat /nonesuch/{number} 2>/dev/null; sleep 0.3; rmdir /nonesuch/{number} 2>/dev/null; true")
    station.call("ftrace_instance", containers=[app], state="stopped")
    (capture,) = station.fetch(tmp_path, containers=[app])
    assert (capture["manifest"]["complete"], capture["manifest"]["lost"]) == (True, 0)
    (summary,) = every_kernel.report(tmp_path, tmp_path / "report")
    calls = every_kernel.count(summary)
    assert calls["rmdir"] == {"calls": 3, "errors": {"ENOENT": 3}}
    assert find_programs(summary) <= PROGRAMS | {"rmdir"}, find_programs(summary)


def test_an_awaited_start_is_traced_from_its_first_program_on(station, engine, app, tmp_path):
    """An awaited start is traced from its first program on."""
    wish = {"containers": [app], "profile": "startup", "buffer_size": "4MiB", "paths": False}
    (instance,) = station.call("ftrace_instance", **wish)["instances"]
    assert instance["followed"]["restarts"]
    engine.restart(app)
    station.run("sleep 1.5")
    station.fetch(tmp_path, containers=[app])
    (summary,) = every_kernel.report(tmp_path, tmp_path / "report")
    first = [row for row in summary["processes"] if row["container_pid"] == 1]
    assert "execve" in {row["syscall"] for row in first}
    assert find_programs(summary) <= PROGRAMS, find_programs(summary)


def test_a_rule_traces_a_container_that_did_not_exist(station, engine, tmp_path):
    """A rule traces a container that did not exist from its first program on."""
    name = engine.choose_name("new")
    wish = {"state": "awaiting", "rule": "new", "containers": [name], "buffer_size": "4MiB", "paths": False}
    station.call("ftrace_instance", **wish)
    try:
        for _number in range(3):
            engine.run(name, "cat /nonesuch/new; true")
            station.run("sleep 0.5")
            engine.remove(name)
        (found,) = station.call("ftrace_info", gather=["instances"])["instances"]
        assert (found["rule"]["traced"], found["rule"]["troubles"]) == (3, [])
        captures = station.fetch(tmp_path)
        assert {capture["manifest"]["container"]["name"] for capture in captures} == {name}
        reasons = [reason for capture in captures for reason in capture["manifest"]["reasons"]]
        starts = 0  # that were seen
        for summary in every_kernel.report(tmp_path, tmp_path / "report"):
            assert find_programs(summary) <= PROGRAMS, find_programs(summary)
            calls = every_kernel.count(summary)
            assert calls["execve"]["calls"] >= 1
            starts += calls["open"]["errors"]["ENOENT"] if "open" in calls else calls["openat"]["errors"]["ENOENT"]
        # The program of a container of ctr may run some milliseconds after its control group was made. What was missed is told then.
        assert (starts >= 3 and not reasons) or (engine.runtime == "containerd" and "no execve" in reasons[0]), reasons
    finally:
        station.call("ftrace_instance", state="absent", everything=True)


DEVICE = "--device crashcart.fleet/trace=startup"
ASKING = {
    "Docker, by a runtime": ("bookworm trixie", "docker run --network none --runtime crashcart-startup"),
    "Docker, by a device": ("sid", f"docker run --network none {DEVICE}"),
    "Podman, by a device": ("bookworm trixie sid", f"podman run {DEVICE}"),
    "Podman, by an annotation": ("bookworm trixie sid", "podman run --annotation crashcart.trace=startup"),
}


def list_files(station):
    """Return what is in the folders that the start hook uses on the host, and the daemon's configuration."""
    folders = "/etc/cdi /usr/share/containers /etc/crashcart /usr/libexec/crashcart"
    return station.run(f"cat /etc/docker/daemon.json; for path in {folders}; do [ ! -e $path ] || find $path; done")


@pytest.fixture
def hook(station):
    """Set the start hook up on the host; at the end it is taken away, and its files with it."""
    before = list_files(station)
    wish = {"name": "startup", "buffer_size": "4MiB", "paths": "false"}
    yield lambda: station.call("ftrace_hook", profiles=[wish])
    station.run("for tool in docker podman; do $tool ps -aq | xargs -r $tool rm -f; done")
    station.call("ftrace_instance", state="absent", everything=True)
    station.call("ftrace_hook", state="absent")
    assert list_files(station) == before


@pytest.mark.parametrize("way", ASKING)
def test_a_container_that_asks_for_it_is_traced(station, hook, tmp_path, way):
    """The start hook traces a container that asks for it from its first program on."""
    releases, command = ASKING[way]
    if station.name not in releases.split():
        return  # the engine of that release reads no descriptions of devices, or needs no runtime
    assert ("runtime" in hook()["ways"]) == (station.name != "sid")
    for number in range(3):
        station.run(f"{command} --name asking-{number} {place.IMAGE} cat /nonesuch/asked; [ $? = 1 ]")
    captures = {one["manifest"]["container"]["name"]: one for one in station.fetch(tmp_path)}
    assert captures.keys() == {f"asking-{number}" for number in range(3)}
    assert all(one["manifest"]["complete"] for one in captures.values())
    for summary in every_kernel.report(tmp_path, tmp_path / "report"):
        assert find_programs(summary) == {"cat"}, find_programs(summary)
        calls = every_kernel.count(summary)
        assert calls["execve"]["calls"] == 1
        assert "ENOENT" in (calls.get("open") or calls["openat"])["errors"]
    tool = command.split()[0]
    if "annotation" not in command:
        with pytest.raises(ModuleFailed, match=f"could not start any more: .*asking-0 .{tool}"):
            station.call("ftrace_hook", state="absent")
    # What is left lets the containers start, and traces nothing.
    station.call("ftrace_hook", state="absent", keep_stub=True)
    station.run(f"{tool} start -a asking-1; [ $? = 1 ]")
    hook()
    station.run(f"{tool} start -a asking-2; [ $? = 1 ]")
    (again,) = station.fetch(tmp_path / "again")
    assert again["manifest"]["container"]["name"] == "asking-2"


def test_a_daemon_that_starts_again_starts_what_asks_for_a_trace(station, hook):
    """A Docker daemon that is started again starts containers with restart=always that ask for a trace."""
    assert hook()["changed"]
    asking = DEVICE if station.name == "sid" else "--runtime crashcart-startup"
    station.run(f"docker run -d --network none --restart always {asking} --name always {place.IMAGE} sleep 1000")
    station.run(
        "net=$(pidof containerd | cut -d' ' -f1); kill $(cat /run/docker.pid); while pidof dockerd; do sleep 0.1; done;"
        " setsid nsenter --net=/proc/$net/ns/net dockerd --containerd /run/containerd/containerd.sock >>/var/log/dockerd 2>&1 </dev/null &"
        " for try in $(seq 600); do docker version >/dev/null 2>&1 && exit; sleep 0.1; done; exit 1"
    )
    station.run(
        "for try in $(seq 300); do docker ps | grep always && exit; sleep 0.1; done; docker inspect always; cat /var/log/dockerd; exit 1"
    )
    (user,) = hook()["users"]
    assert (user["name"], user["restarts"], user["is_hindered"]) == ("always", True, False)


def test_the_playbook_of_a_trace_names_the_failure(station, engine, app, tmp_path):
    """The playbook `trace` names a failure."""
    said = station.ansible(
        *("ansible-playbook", "crashcart.fleet.trace", "-l", station.name),
        *("-e", json.dumps({"crashcart_containers": [app], "crashcart_seconds": 3, "crashcart_dest": str(tmp_path)})),
    )
    assert "cat ended with status 1 after it could not open a file" in said, said
    assert find_programs(json.loads((tmp_path / "report/summary.json").read_text())["captures"][0]) <= PROGRAMS


def test_every_kernel_by_this_releases_docker(station, tmp_path):
    """Run the checks of all kernels by the release's Docker and Python, in a container that uses the release's Python."""
    every_kernel.check_all(station, place.IMAGE, tmp_path)
