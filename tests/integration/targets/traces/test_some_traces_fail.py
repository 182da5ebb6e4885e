# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Traces of several containers, some of which fail: the others are traced, and nothing is left of what failed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from support import failures, host
from support.failures import fail
from support.fetching import fetch_here

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import targets
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import start

LOOP = ("busybox", "/bin/sh", "-c", "while /bin/true; do /bin/cat /nonesuch; /bin/sleep 0.05; done")
EXPOSED = "/dev/crashcart-trace"
STORE = "/var/lib/crashcart/traces"
RECORD = {"mode": "record", "buffer_size": "256KiB", "min_free": "1MiB"}
# A place in busybox's code, which containers of another image lack.
PROBE = {"name": "mine", "type": "uprobe", "binary": "/bin/busybox"}


@pytest.fixture(autouse=True)
def nothing_is_left():
    """After each test no trace, no recorder and no file of either is left."""
    yield
    host.call_module("ftrace_instance", state="absent", everything=True)
    host.wait_until(lambda: host.call_module("crashcart_info", gather=["recorder"])["recorder"]["pid"] is None)
    assert host.list_instances() == []
    assert not os.path.exists(STORE)


def find_name(name):
    """The name of the instance of container NAME."""
    return f"crashcart-{host.docker('inspect', '-f', '{{.Id}}', name)[:12]}"


def list_traced(names):
    """Return those of NAMES that have an instance."""
    return {name for name in names if find_name(name) in host.list_instances()}


def list_left(name):
    """All that is left anywhere of a trace of container NAME: instance, probes, recordings, orders, metadata, what is exposed."""
    instance = find_name(name)
    short_id = instance.partition("-")[2]
    places = [f"{host.TRACEFS}/instances/{instance}"]
    for top in ("/run/crashcart", STORE):
        for folder, folders, files in os.walk(top):
            places += [f"{folder}/{one}" for one in (*folders, *files) if short_id in one and "/locks" not in folder]
    for file in ("uprobe_events", "dynamic_events"):
        lines = Path(host.TRACEFS, file).read_text().splitlines()
        places += [line for line in lines if f"crashcart_{short_id}" in line]
    if host.docker("inspect", "-f", "{{.State.Running}}", name) == "true":
        places += [line for line in host.read_container_mounts(name).splitlines() if EXPOSED in line]
        if os.path.lexists(f"/proc/{host.find_pid(name)}/root{EXPOSED}"):
            places.append(EXPOSED)
    return [place for place in places if not place.startswith("/") or os.path.lexists(place)]


def find_code():
    """The offset of code in busybox: where it begins."""
    text = host.run("readelf", "-hlW", "/bin/busybox").stdout
    entry = int(text.split("Entry point address:")[1].split()[0], 16)
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["LOAD"] and int(words[2], 16) <= entry < int(words[2], 16) + int(words[4], 16):
            return entry - int(words[2], 16) + int(words[1], 16)
    raise AssertionError(text)


def end_meanwhile(monkeypatch, name):
    """Have container NAME end when its trace is set up."""
    configure = start.configure
    mine = find_name(name)

    def configure_later(instance, *arguments):
        if instance.name == mine:
            failures.end(name)
        configure(instance, *arguments)

    monkeypatch.setattr(start, "configure", configure_later)


def test_start(container, monkeypatch):
    good = [container(*LOOP), container(*LOOP)]
    stopped, dying, lacking = failures.stop(container()), container(), container("static")
    end_meanwhile(monkeypatch, dying)
    probes = [{**PROBE, "offset": find_code()}]
    reasons = {
        stopped: "is exited: start it first, or trace its next start with follow_restarts=true",
        dying: "has just ended",
        lacking: "probe mine: /bin/busybox of container .*: there is no such file",
    }
    result = fail("ftrace_instance", reasons, good, probes=probes)
    assert result["changed"]
    assert {one["container"] for one in result["instances"] if one["created"]} == set(good)
    assert list_traced([*good, *reasons]) == set(good)
    assert {one["probes"].keys() == {"mine"} for one in result["instances"]} == {True}
    assert [list_left(name) for name in reasons] == [[], [], []]


def test_what_stands_where_one_is_exposed(container):
    good, busy = container(*LOOP), container(*LOOP)
    host.docker("exec", busy, "/bin/mkdir", EXPOSED)
    host.docker("exec", busy, "/bin/touch", f"{EXPOSED}/mine")
    for check_mode in (True, False):
        reasons = {busy: f"cannot expose a trace in .* at {EXPOSED}: the directory there is not empty"}
        wish = {"expose": {}, "follow_exec": False, "check_mode": check_mode}
        result = fail("ftrace_instance", reasons, [good], **wish)
        assert result["changed"]
    assert list_traced([good, busy]) == {good}
    assert EXPOSED in host.read_container_mounts(good)
    assert host.docker("exec", busy, "/bin/ls", EXPOSED) == "mine"


def test_what_comes_in_the_way_meanwhile(container, monkeypatch):
    """Its trace runs already when the folder turns out to be taken: it is taken back with its recording."""
    good, busy = container(*LOOP), container(*LOOP)
    mine, begin = find_name(busy), start._bring_about

    def start_and_take(change, plan, present):
        done = begin(change, plan, present)
        if plan.instance.name == mine:
            host.docker("exec", busy, "/bin/touch", EXPOSED)
        return done

    monkeypatch.setattr(start, "_bring_about", start_and_take)
    wish = {"expose": {}, "follow_exec": False, **RECORD}
    fail("ftrace_instance", {busy: "what stands there is not a directory"}, [good], **wish)
    host.docker("exec", busy, "/bin/rm", EXPOSED)
    assert list_left(busy) == []
    assert list_traced([good, busy]) == {good}
    assert host.call_module("ftrace_info", gather=["instances"], containers=[good])["instances"][0]["recordings"][0][
        "recording"
    ]


def test_a_full_disk(container):
    good, full = container(*LOOP), container(*LOOP)
    place = Path(STORE, find_name(full))
    place.mkdir(parents=True, mode=0o700)
    host.run("mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(place))
    try:
        reasons = {full: f"{STORE} cannot take a recording: No space left on device"}
        fail("ftrace_instance", reasons, [good], **RECORD)
        assert list_traced([good, full]) == {good}
        assert os.listdir(place) == []
    finally:
        host.run("umount", str(place))
    place.rmdir()
    assert list_left(full) == []


def test_an_instance_that_somebody_keeps(container):
    good, kept = container(*LOOP), container(*LOOP)
    host.call_module("ftrace_instance", containers=[good, kept])
    before = host.read_host_state()["instances"][find_name(kept)]
    with open(f"{host.TRACEFS}/instances/{find_name(kept)}/trace", encoding="utf-8") as reader:
        reader.read(1)
        reasons = {kept: "buffer_size cannot change while another process reads the trace: end that process"}
        result = fail("ftrace_instance", reasons, [good], buffer_size="4MiB")
        assert result["changed"]
        assert {**host.read_host_state()["instances"][find_name(kept)], "set_event_pid": None} == {
            **before,
            "set_event_pid": None,
        }
        result = fail("ftrace_instance", {kept: r"held open by pid \d+"}, [good], state="absent")
        assert result["changed"]
        assert [one["container"] for one in result["instances"]] == [kept]
        assert list_traced([good, kept]) == {kept}
    assert host.call_module("ftrace_instance", containers=[kept], state="absent")["failed_containers"] == []


def test_stop(container, monkeypatch):
    good, kept = container(*LOOP), container(*LOOP)
    host.call_module("ftrace_instance", containers=[good, kept])
    monkeypatch.setattr(targets, "TIMEOUT_S", 0.2)
    with failures.held("trace", kept):
        result = fail("ftrace_instance", {kept: "another process holds .*lslocks"}, [good], state="stopped")
    assert {one["container"]: one["state"] for one in result["instances"]} == {good: "stopped", kept: "started"}


def test_who_is_kept_delays_nobody_else(container, monkeypatch):
    good, kept = [container(*LOOP), container(*LOOP)], [container(*LOOP), container(*LOOP)]
    monkeypatch.setattr(targets, "TIMEOUT_S", 3.0)
    reasons = dict.fromkeys(kept, "another process holds")
    with failures.held("trace", kept[0]), failures.held("trace", kept[1]):
        process = host.start_module("ftrace_instance", containers=[*kept, *good])
        host.wait_until(lambda: list_traced([*kept, *good]) == set(good))
        assert process.poll() is None
    assert host.parse_result(*process.communicate(timeout=host.seconds(30)))["failed_containers"] == []
    assert list_traced(kept) == set(kept)
    with failures.held("trace", kept[0]), failures.held("trace", kept[1]):
        for more in ({"errors_only": True}, {"state": "stopped"}, {"state": "absent"}):
            start = time.monotonic()
            fail("ftrace_instance", reasons, good, **more)
            assert 3 <= time.monotonic() - start < host.seconds(6)
    assert list_traced([*kept, *good]) == set(kept)


def test_await(container, monkeypatch):
    """Containers that do not run are awaited, except for one that cannot be, and one whose trace's lock another process holds."""
    ended = [failures.stop(container()) for _number in range(2)]
    running = container(*LOOP)
    lacking = failures.stop(container("busybox", options=("--network", "none", "--cgroup-parent", "/nonesuch")))
    for folder in Path("/sys/fs/cgroup").glob("*/nonesuch"):
        folder.rmdir()
    monkeypatch.setattr(targets, "TIMEOUT_S", 0.2)
    kept = failures.stop(container())
    reasons = {lacking: "where its control group should be, is not there: start it", kept: "another process holds"}
    with failures.held("trace", kept):
        result = fail("ftrace_instance", reasons, [*ended, running], profile="startup")
    assert all(one["followed"]["restarts"] for one in result["instances"])
    assert list_traced([*ended, running, lacking, kept]) == {*ended, running}
    assert [list_left(name) for name in (lacking, kept)] == [[], []]


def test_fetch(container, tmp_path):
    good, broken = container(*LOOP), container(*LOOP)
    host.call_module("ftrace_instance", containers=[good, broken])
    host.wait_until(lambda: all(one["entries"] for one in fetchable()))
    events = f"{host.TRACEFS}/instances/{find_name(broken)}/events"
    (tmp_path / "empty").mkdir()
    host.run("mount", "--bind", str(tmp_path / "empty"), events)
    try:
        result = fail("ftrace_fetch", {broken: "cannot|No such file"}, [good], dest=str(tmp_path), _methods=["zstd"])
        assert [one["name"].rpartition(".")[0] for one in result["transfer"]["segments"]] == [find_name(good)]
        with pytest.raises(host.ModuleFailed) as failure:
            host.ad_hoc("localhost", "ftrace_fetch", {"dest": str(tmp_path), "containers": [good, broken]})
        told = failure.value.result
        assert {one["manifest"]["container"]["name"] for one in told["captures"] if one["path"]} == {good}
        assert [one["container"] for one in told["failed_containers"]] == [broken]
    finally:
        host.run("umount", events)
    captures = fetch_here(tmp_path, containers=[broken])
    assert [one["manifest"]["container"]["name"] for one in captures] == [broken]


def fetchable():
    """The counters of all traces."""
    found = host.call_module("ftrace_info", gather=["instances"])["instances"]
    return [{"entries": sum(cpu["entries"] for cpu in one["cpus"])} for one in found]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_call_leaves_nothing_that_nobody_knows_of(container, number):
    """The traces that the call has made are undone, and the trace that was there before stays."""
    names = [container(*LOOP) for _number in range(3)]
    blocked, *others = names  # the engine lists the youngest first
    host.call_module("ftrace_instance", containers=[others[0]], syscalls=["openat"])
    with failures.held("trace", blocked):
        process = host.start_module("ftrace_instance", containers=names, expose={}, follow_exec=False)
        host.wait_until(lambda: list_traced(names) == set(others))
        host.wait_until(lambda: all(EXPOSED in host.read_container_mounts(name) for name in others))
        process.send_signal(number)
        process.communicate(timeout=host.seconds(60))
    assert process.returncode != 0
    assert list_traced(names) == {others[0]}
    assert [list_left(name) for name in (blocked, others[1])] == [[], []]
