# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Captures tell of a container's processes what they hold open, wait for and are limited by, at both ends."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support import host
from support.fetching import fetch_here

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.capture_summary import add_tables, gen_source
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.search import Search
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.syscall_names import find_number

# Waits in flock for a lock that its parent holds; the parent opens one more file at each SIGUSR1.
PROGRAM = """
import fcntl, os, signal, socket
server = socket.create_server(("127.0.0.1", 8080))
client = socket.create_connection(("127.0.0.1", 8080))
peer = server.accept()[0]
named = socket.socket(socket.AF_UNIX)
named.bind("/small/x.sock")
known = open("/small/known", "w")
os.write(known.fileno(), bytes(65536))
lock = open("/small/lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
more = []
signal.signal(signal.SIGUSR1, lambda *_args: more.append(open("/small/later", "w")))
if os.fork() == 0:
    own = open("/small/lock")
    print("ready", own.fileno(), flush=True)
    fcntl.flock(own, fcntl.LOCK_EX)
while True:
    signal.pause()
    print("more", len(more), flush=True)
"""
OPTIONS = (
    *("--network", "none", "--ulimit", "nofile=100:200", "--pids-limit", "50", "--memory", "64m"),
    *("--tmpfs", "/small:size=1m,nr_inodes=20"),
)


@pytest.fixture
def holder(container):
    """A container whose first process holds a lock, and whose second one waits for it."""
    name = container("python", "/usr/bin/python3", "-S", "-c", PROGRAM, options=OPTIONS)
    host.wait_until(lambda: "ready" in host.docker("logs", name))
    yield name


def open_more(name, times):
    host.docker("kill", "--signal", "USR1", name)
    host.wait_until(lambda: f"more {times}" in host.docker("logs", name))


def fetch(folder, name):
    """Fetch the one capture of container NAME into FOLDER, and return its manifest with its tables."""
    folder.mkdir(exist_ok=True)
    (capture,) = fetch_here(folder, containers=[name])
    path = Path(capture["path"])
    with open(path, "rb") as file:
        return add_tables(json.loads(path.with_suffix(".json").read_text(encoding="utf-8")), Trace(file))


def list_targets(whole, when, pid):
    return [entry["target"] for entry in whole["descriptors"][when] if entry["pid"] == pid]


def check_limits(found, pid):
    """The limits that OPTIONS set are told, and how far they are used."""
    (own,) = (entry for entry in found["processes"] if entry["pid"] == pid)
    assert (own["nofile"], 8 < own["open"] < 20) == (100, True)
    assert (found["group"]["pids.max"], found["group"]["pids.current"]) == (50, 2)
    assert found["group"]["memory.max"] == 64 << 20 > found["group"]["memory.current"] > 0
    mounts = {entry["path"]: entry for entry in found["mounts"]}
    small = mounts["/small"]
    assert (small["filesystem"], small["size"], small["files"]) == ("tmpfs", 1 << 20, 20)
    assert 65536 <= small["size"] - small["free"] < small["size"]
    assert 10 < small["free_files"] < 20
    assert mounts["/"]["size"] > 1 << 20
    assert "/proc" not in mounts


@pytest.mark.parametrize("mode", ["ring", "record"])
def test_a_capture_tells_what_processes_hold_and_wait_for(holder, tmp_path, mode):
    room = {"min_free": "1MiB"} if mode == "record" else {}
    host.call_module("ftrace_instance", containers=[holder], syscalls=["openat", "write"], mode=mode, **room)
    open_more(holder, 1)
    pid = host.find_pid(holder)
    one = fetch(tmp_path / "1", holder)
    assert one["descriptors"]["left_out"] == one["waits"]["left_out"] == {"first": 0, "last": 0}
    for when in ("first", "last"):
        targets = list_targets(one, when, pid)
        assert {"/small/known", "/small/lock", "unix /small/x.sock", "tcp 127.0.0.1:8080 LISTEN"} <= {*targets}
        (client,) = (text for text in targets if text.endswith("->127.0.0.1:8080 ESTABLISHED"))
        assert f"tcp 127.0.0.1:8080->{client.split()[1].split('-')[0]} ESTABLISHED" in targets
        assert targets.count("/small/later") == (when == "last")
        check_limits(one["resource_limits"][when], pid)
        # The child waits for the lock, by a descriptor of its own.
        fd = int(host.docker("logs", holder).split()[1])
        (wait,) = (entry for entry in one["waits"][when] if entry["number"] == find_number("flock"))
        (child,) = (task for task in one["tasks"] if task["tid"] == wait["tid"])
        assert (wait["args"][0], child["tgid"] != pid) == (fd, True)
        (entry,) = (e for e in one["descriptors"][when] if (e["pid"], e["fd"]) == (child["tgid"], fd))
        assert entry["target"] == "/small/lock"
    open_more(holder, 2)
    host.call_module("ftrace_instance", containers=[holder], state="stopped")
    open_more(holder, 3)  # this is after the end
    two = fetch(tmp_path / "2", holder)
    # The second capture begins where the first one ends.
    assert two["descriptors"]["time_ns"]["first"] == one["descriptors"]["time_ns"]["last"]
    assert [list_targets(two, when, pid).count("/small/later") for when in ("first", "last")] == [1, 2]


def test_a_container_that_has_ended_holds_nothing(holder, tmp_path):
    host.call_module("ftrace_instance", containers=[holder], syscalls=["openat", "write"])
    open_more(holder, 1)
    host.docker("kill", holder)
    whole = fetch(tmp_path / "1", holder)
    assert whole["descriptors"]["first"] and whole["waits"]["first"]
    assert [whole[name]["last"] for name in ("descriptors", "waits", "resource_limits")] == [None] * 3


@pytest.mark.parametrize("mode", ["ring", "record"])
def test_a_wait_for_a_lock_is_found_though_nothing_happens(holder, tmp_path, mode):
    room = {"min_free": "1MiB"} if mode == "record" else {}
    host.call_module("ftrace_instance", containers=[holder], syscalls=["flock"], mode=mode, **room)
    host.pause(2)
    foreseen = host.call_module("ftrace_fetch", check_mode=True, containers=[holder], dest=str(tmp_path / "none"))
    assert foreseen["changed"]
    whole = fetch(tmp_path / "1", holder)
    assert (whole["entries"], whole["pages"], whole["lost"]) == (0, 0, 0)
    search = Search()
    (summary,) = gen_source(str(tmp_path / "1"), [], search=search)
    assert (summary["events"], summary["duration_s"] > 1.5) == (0, True)
    (found,) = search.finish()
    said = r"python3 waits for a lock on /small/lock \(flock\): for all \S+ s of the trace; python3 has it open, too"
    assert re.fullmatch(said, found.statement), found.statement


def test_a_container_that_does_nothing_gives_no_file(container, tmp_path):
    name = container("busybox", "sleep", "100000")
    host.call_module("ftrace_instance", containers=[name], syscalls=["flock"])
    host.pause(2)
    assert not host.call_module("ftrace_fetch", check_mode=True, containers=[name], dest=str(tmp_path))["changed"]
    (capture,) = fetch_here(tmp_path, containers=[name])
    assert capture["path"] is None


# Has 700 files open; at each SIGUSR1, thirty more.
FILES = ("known", "later")
LEAK = """
import signal
held = [open("/small/known", "w") for _number in range(700)]
signal.signal(signal.SIGUSR1, lambda *_args: held.extend(open("/small/later", "w") for _number in range(30)))
print("ready", flush=True)
while True:
    signal.pause()
    print("more", len(held), flush=True)
"""


def test_of_many_descriptors_those_that_were_opened_last_are_told(container, tmp_path):
    options = ("--network", "none", "--tmpfs", "/small:size=1m", "--ulimit", "nofile=2000:2000")
    name = container("python", "/usr/bin/python3", "-S", "-c", LEAK, options=options)
    host.wait_until(lambda: "ready" in host.docker("logs", name))
    host.call_module("ftrace_instance", containers=[name], syscalls=["write"])
    open_more(name, 730)
    whole = fetch(tmp_path / "1", name)
    pid = host.find_pid(name)
    counts = [[list_targets(whole, when, pid).count(f"/small/{file}") for when in ("first", "last")] for file in FILES]
    assert counts[1] == [0, 30]
    assert counts[0][0] > 450 and sum(counts[0]) < 2 * 512
    assert whole["descriptors"]["left_out"]["last"] > 200
