# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Traces that are recorded to files, and traces that end by themselves, on real containers with the machine's own kernel."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import support
from support import host, serving
from support.every_kernel import count, report
from support.fetching import fetch_here
from support.records import find_record

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.docker_engine import DockerEngine
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import plan, start
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request import specification
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.limits import Limits
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.setup import configure as configuration
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.syscall_names import find_number
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance, TraceError

STORE = "/var/lib/crashcart/traces"
CAPTURES = "/var/lib/crashcart/captures"
PROGRAM = Path(support.__file__).with_name("workload_storm.py").read_text(encoding="utf-8")
# What is free is of no interest on a machine that runs tests.
RECORD = {"mode": "record", "buffer_size": "4MiB", "syscalls": ["getppid"], "compat": False, "min_free": "1MiB"}
# Bounds are met soon with these; a workload of 20000 calls a second leaves the recorder 200 ms to come.
SMALL = {**RECORD, "buffer_size": "256KiB"}


@pytest.fixture
def storm(container):
    """Starts containers that make known numbers of getppid: storm(SECONDS, RATE) → name."""

    def start(seconds=1.0, rate=100_000):
        name = container("python", "/usr/bin/python3", "-S", "-c", PROGRAM, str(seconds), str(rate))
        host.wait_until(lambda: "ready" in host.docker("logs", name))
        return name

    return start


@pytest.fixture(autouse=True)
def nobody_left():
    """After each test no recorder is left, and no file of any recording."""
    yield
    host.call_module("ftrace_instance", state="absent", everything=True)
    host.wait_until(lambda: find_recorder()["pid"] is None)
    assert not os.path.exists(STORE)


def find_recorder():
    return host.call_module("crashcart_info", gather=["recorder"])["recorder"]


def begin(name):
    host.docker("kill", "--signal", "USR1", name)


def finish(name, times=1, timeout_s=60):
    """How many calls the last round of container NAME made, once that is over."""
    host.wait_until(lambda: host.docker("logs", name).count("calls") >= times, timeout_s)
    return int(host.docker("logs", name).split("calls ")[-1].split()[0])


def run_storm(name, times=1):
    begin(name)
    return finish(name, times)


def info(name):
    (instance,) = host.call_module("ftrace_info", gather=["instances"], containers=[name])["instances"]
    return instance


def find_folder(name):
    return f"{STORE}/crashcart-{host.docker('inspect', '-f', '{{.Id}}', name)[:12]}"


def find_size(path):
    """Bytes of all pages below PATH."""
    total = 0
    for folder, _folders, names in os.walk(path):
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name)).st_size if name.startswith("cpu") else 0
            except FileNotFoundError:
                continue
    return total


def count_calls(folder):
    """Events of getppid in all captures below FOLDER: beginnings and ends of calls."""
    return sum(
        captured["event_counts"].get("raw_syscalls:sys_enter", 0)
        + captured["event_counts"].get("raw_syscalls:sys_exit", 0)
        for captured in report(folder, folder / "report")
    )


@contextmanager
def small_store(size):
    """The folder of recordings as a file system of its own, of SIZE."""
    os.makedirs(STORE)
    host.run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", STORE)
    try:
        yield
    finally:
        host.run("umount", "-l", STORE)
        os.rmdir(STORE)


def test_nothing_is_lost_at_a_million_events_per_second(storm, tmp_path):
    """Or as many as this machine makes while other tests run on it; where the recorder gets no processor in time that is told."""
    name = storm(5, 600_000)
    host.call_module("ftrace_instance", containers=[name], mode="record", buffer_size="8MiB", max_size="4GiB")
    calls = run_storm(name)
    stopped = host.call_module("ftrace_instance", containers=[name], state="stopped")["instances"][0]
    assert (stopped["state"], stopped["mode"], stopped["stopped"]) == ("stopped", "record", None)
    (capture,) = fetch_here(tmp_path, containers=[name])
    manifest = capture["manifest"]
    assert (manifest["complete"], manifest["lost_exact"]) == (manifest["lost"] == 0, True)
    (captured,) = report(tmp_path, tmp_path / "report")
    assert captured["events"] == manifest["entries"]
    counted = count(captured)["getppid"]["calls"]
    assert counted == calls if manifest["complete"] else calls - manifest["lost"] <= counted < calls
    # What was fetched is gone, and the buffers' memory is free.
    assert not os.path.exists(find_folder(name))
    assert info(name)["buffer_kb"] < 64
    assert fetch_here(tmp_path / "again", containers=[name]) == []


def test_what_a_slow_recorder_loses_is_counted_exactly(storm, tmp_path):
    name = storm()
    host.call_module("ftrace_instance", containers=[name], **SMALL)
    pid = find_recorder()["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        calls = run_storm(name)
    finally:
        os.kill(pid, signal.SIGCONT)
    calls += run_storm(name, 2)
    host.call_module("ftrace_instance", containers=[name], state="stopped")
    (capture,) = fetch_here(tmp_path, containers=[name])
    manifest = capture["manifest"]
    assert manifest["lost"] > 100_000
    assert (manifest["complete"], manifest["lost_exact"]) == (False, True)
    assert manifest["lost"] == sum(cpu["overrun"] for cpu in manifest["cpus"])
    assert count_calls(tmp_path) + manifest["lost"] == 2 * calls
    text = host.run("trace-cmd", "report", capture["path"]).stdout
    assert "EVENTS DROPPED" in text


def test_what_has_to_make_room_is_counted_and_the_bound_holds(storm, tmp_path):
    name = storm(3, 40_000)
    limits = {"max_size": "4MiB", "rotate_size": "512KiB", "when_full": "rotate"}
    host.call_module("ftrace_instance", containers=[name], **SMALL, **limits)
    folder = find_folder(name)
    begin(name)
    sizes = []
    while "calls" not in host.docker("logs", name):
        sizes.append(find_size(folder))
        assert info(name)["state"] == "started"
    calls = finish(name)
    assert max(sizes) <= 4 << 20
    assert info(name)["recordings"][0]["rotated"] > 0
    host.call_module("ftrace_instance", containers=[name], state="stopped")
    assert find_size(folder) <= 4 << 20
    (capture,) = fetch_here(tmp_path, containers=[name])
    manifest = capture["manifest"]
    assert (manifest["complete"], manifest["lost_exact"], manifest["stopped"]) == (False, True, None)
    assert 0 < manifest["rotated"]["events"] <= manifest["lost"]
    assert count_calls(tmp_path) + manifest["lost"] == 2 * calls


def test_a_full_recording_stops_complete(storm, tmp_path):
    name = storm(4, 20_000)
    host.call_module("ftrace_instance", containers=[name], **SMALL, max_size="4MiB", rotate_size="512KiB")
    calls = run_storm(name)
    stopped = info(name)
    assert (stopped["state"], stopped["events"]) == ("stopped", {})
    assert stopped["stopped"] == f"it reached max_size ({4 << 20} bytes)"
    assert 2 << 20 < find_size(find_folder(name)) <= 4 << 20
    host.wait_until(lambda: find_recorder()["pid"] is None)
    (capture,) = fetch_here(tmp_path, containers=[name])
    manifest = capture["manifest"]
    assert (manifest["complete"], manifest["lost"], manifest["stopped"]) == (True, 0, stopped["stopped"])
    assert 0 < count_calls(tmp_path) < 2 * calls


def test_segments_end_in_time_and_what_is_too_old_goes(storm, tmp_path):
    name = storm(5, 2000)
    host.call_module("ftrace_instance", containers=[name], **RECORD, rotate_time="500ms", max_age="2s")
    begin(name)
    host.wait_until(lambda: info(name)["recordings"][0]["rotated"] > 0)
    (recording,) = info(name)["recordings"]
    assert recording["recording"] and 2 <= recording["segments"] <= 8
    calls = finish(name)
    host.call_module("ftrace_instance", containers=[name], state="stopped")
    (capture,) = fetch_here(tmp_path, containers=[name])
    manifest = capture["manifest"]
    assert manifest["lost"] == manifest["rotated"]["events"] > 0
    assert count_calls(tmp_path) + manifest["lost"] == 2 * calls


def test_some_room_stays_free(storm, tmp_path):
    with small_store("20m"):
        name = storm(7, 20_000)
        host.call_module("ftrace_instance", containers=[name], **{**SMALL, "min_free": "12MiB"})
        run_storm(name)
        stopped = info(name)["stopped"]
        assert "MiB free, less than min_free (12 MiB)" in stopped
        place = os.statvfs(STORE)
        assert place.f_bavail * place.f_frsize > 10 << 20
        (capture,) = fetch_here(tmp_path, containers=[name])
        assert (capture["manifest"]["complete"], capture["manifest"]["stopped"]) == (True, stopped)
        with pytest.raises(host.ModuleFailed, match="MiB free, less than min_free"):
            host.call_module("ftrace_instance", containers=[name], **{**SMALL, "min_free": "100MiB"})


def test_a_recording_that_has_no_room_for_a_copy_comes_home_in_parts(storm, tmp_path):
    name = storm(1, 150_000)
    host.call_module("ftrace_instance", containers=[name], **{**RECORD, "buffer_size": "1MiB"}, rotate_size="1MiB")
    calls = run_storm(name)
    host.call_module("ftrace_instance", containers=[name], state="stopped")
    assert find_size(STORE) > 5 << 20
    os.makedirs(CAPTURES, mode=0o711, exist_ok=True)
    host.run("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", CAPTURES)
    try:
        fetched = host.ad_hoc("localhost", "ftrace_fetch", {"containers": [name], "dest": str(tmp_path)})["captures"]
    finally:
        host.run("umount", CAPTURES)
    manifests = [one["manifest"] for one in fetched]
    assert len(manifests) > 2
    assert [one["partial"] for one in manifests] == [True] * (len(manifests) - 1) + [False]
    assert all(one["complete"] for one in manifests)
    assert count_calls(tmp_path) == sum(one["entries"] for one in manifests) == 2 * calls


def test_a_full_disk_stops_the_trace_and_every_event_is_accounted_for(storm, tmp_path):
    with small_store("4m"):
        name = storm(3, 300_000)
        # Nothing is kept free: another program, say, fills the disk.
        host.call_module("ftrace_instance", containers=[name], **{**SMALL, "min_free": "1B"})
        root = f"{host.TRACEFS}/instances/{info(name)['name']}"
        run_storm(name)
        assert info(name)["stopped"].endswith("No space left on device")
        host.wait_until(lambda: not info(name)["recordings"][0]["recording"])
        statistics = [Instance(host.TRACEFS, os.path.basename(root)).read_statistics(cpu) for cpu in (0, 1)]
        recorded = sum(one.read + one.entries + one.overrun + one.dropped for one in statistics)
        (capture,) = fetch_here(tmp_path, containers=[name])
        manifest = capture["manifest"]
        assert (manifest["complete"], manifest["lost_exact"]) == (False, True)
        (captured,) = report(tmp_path, tmp_path / "report")
        assert captured["events"] == manifest["entries"]
        assert captured["events"] + manifest["lost"] == recorded


def test_a_killed_recorder_takes_the_trace_with_it(storm, tmp_path):
    name = storm(3, 50_000)
    host.call_module("ftrace_instance", containers=[name], **RECORD)
    begin(name)
    host.pause(1)
    assert info(name)["state"] == "started"
    os.kill(find_recorder()["pid"], signal.SIGKILL)
    host.wait_until(lambda: info(name)["state"] == "stopped")
    assert info(name)["stopped"] == "the recorder died"
    calls = finish(name)
    statistics = [Instance(host.TRACEFS, info(name)["name"]).read_statistics(cpu) for cpu in (0, 1)]
    recorded = sum(one.read + one.entries + one.overrun + one.dropped for one in statistics)
    assert 0 < recorded < 2 * calls
    (capture,) = fetch_here(tmp_path, containers=[name])
    manifest = capture["manifest"]
    assert (manifest["complete"], manifest["stopped"]) == (False, "the recorder died")
    assert manifest["lost_exact"]
    (captured,) = report(tmp_path, tmp_path / "report")
    assert captured["events"] == manifest["entries"]
    assert captured["events"] + manifest["lost"] == recorded
    # The next start begins anew, and says that it changes something.
    assert host.call_module("ftrace_instance", containers=[name], **RECORD)["changed"]
    calls = run_storm(name, 2)
    (again,) = fetch_here(tmp_path / "again", containers=[name])
    assert again["manifest"]["complete"]
    assert count_calls(tmp_path / "again") == 2 * calls


def test_it_survives_the_login_that_began_it(storm, ssh_hosts, tmp_path):
    name = storm()
    arguments = {"containers": [name], "docker_host": os.environ["DOCKER_HOST"], **RECORD, "ttl": "60s"}
    host.ad_hoc("as_user", "ftrace_instance", arguments, "-b", "-i", str(ssh_hosts))
    recorder = find_recorder()
    pid = recorder["pid"]
    assert [(one["container"], one["mode"]) for one in recorder["traces"]] == [(name, "record")]
    assert os.getsid(pid) == pid
    assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)} == {"/dev/null"}
    with open(f"/proc/{pid}/cgroup", encoding="ascii") as file:
        assert {line.rstrip("\n").split(":", 2)[2] for line in file} == {"/"}
    with open(f"/proc/{pid}/cmdline", encoding="ascii") as file:
        assert file.read().strip("\0") == "crashcart-recorder"
    calls = run_storm(name)
    (capture,) = fetch_here(tmp_path, containers=[name])
    assert capture["manifest"]["complete"]
    assert count_calls(tmp_path) == 2 * calls


def test_a_session_that_is_killed_leaves_the_recorder(storm, tmp_path):
    name = storm()
    process = host.start_module("ftrace_instance", new_session=True, containers=[name], **RECORD)
    host.parse_result(*process.communicate(timeout=host.seconds(60)))
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            if os.getsid(pid) == process.pid:
                os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    calls = run_storm(name)
    fetch_here(tmp_path, containers=[name])
    assert count_calls(tmp_path) == 2 * calls


def test_the_containers_end_ends_it_and_nothing_is_lost(storm, tmp_path):
    name = storm()
    host.call_module("ftrace_instance", containers=[name], **RECORD)
    calls = run_storm(name)
    host.docker("kill", name)
    host.wait_until(lambda: info(name)["stopped"] == "the container ended")
    host.wait_until(lambda: find_recorder()["pid"] is None)
    (capture,) = fetch_here(tmp_path, containers=[name])
    assert (capture["manifest"]["complete"], capture["manifest"]["stopped"]) == (True, "the container ended")
    assert count_calls(tmp_path) == 2 * calls


def test_a_recording_outlives_instance_and_container(storm, tmp_path):
    name = storm()
    host.call_module("ftrace_instance", containers=[name], **RECORD)
    calls = run_storm(name)
    instance = info(name)["name"]
    host.call_module("ftrace_instance", containers=[name], state="stopped")
    # As after a reboot.
    Instance(host.TRACEFS, instance).remove()
    os.unlink(f"/run/crashcart/traces/{instance}.json")
    host.docker("rm", "-f", name)
    (listed,) = host.call_module("ftrace_info", gather=["instances"])["instances"]
    assert (listed["name"], listed["container"], listed["state"], listed["mode"]) == (
        instance,
        name,
        "stopped",
        "record",
    )
    (capture,) = fetch_here(tmp_path, containers=[name])
    assert (capture["manifest"]["complete"], capture["manifest"]["container"]["name"]) == (True, name)
    (captured,) = report(tmp_path, tmp_path / "report")
    assert count(captured)["getppid"]["calls"] == calls
    assert {row["name"] for row in captured["processes"]} == {"python3"}
    assert host.call_module("ftrace_info", gather=["instances"])["instances"] == []


def test_what_goes_on_is_fetched_bit_by_bit(storm, tmp_path):
    name = storm(8, 20_000)
    host.call_module("ftrace_instance", containers=[name], **RECORD, rotate_size="512KiB")
    begin(name)
    for number in range(2):
        host.pause(0.5)
        (capture,) = fetch_here(tmp_path / "parts", containers=[name])
        assert (capture["manifest"]["complete"], capture["manifest"]["tracing"]) == (True, True), number
        assert capture["manifest"]["entries"] > 1000
    calls = finish(name)
    (capture,) = fetch_here(tmp_path / "parts", containers=[name])
    assert capture["manifest"]["tracing"]
    assert info(name)["state"] == "started"
    assert count_calls(tmp_path / "parts") == 2 * calls


@pytest.mark.parametrize("mode", ["ring", "record"])
def test_a_trace_ends_in_time_and_keeps_what_it_has(storm, tmp_path, mode):
    name = storm(0.5)
    options = {**(RECORD if mode == "record" else {"syscalls": ["getppid"], "buffer_size": "32MiB"}), "ttl": "4s"}
    began = time.time()
    (made,) = host.call_module("ftrace_instance", containers=[name], **options)["instances"]
    assert began + 3.5 < made["expires"] < time.time() + 4
    assert [one["mode"] for one in find_recorder()["traces"]] == [mode]
    calls = run_storm(name)
    host.wait_until(lambda: info(name)["state"] == "stopped")
    assert 3.8 < time.time() - began < 7
    ended = info(name)
    # No event is on any more, so the host's other processes take the fast path again.
    assert (ended["stopped"], ended["events"], ended["expires"]) == ("its ttl is over", {}, None)
    if mode == "record":
        host.wait_until(lambda: find_recorder()["pid"] is None)
    else:  # what its ring holds is watched until it is gone
        assert [(one["mode"], one["expires"]) for one in find_recorder()["traces"]] == [("ring", None)]
    run_storm(name, 2)
    (capture,) = fetch_here(tmp_path, containers=[name])
    manifest = capture["manifest"]
    assert (manifest["complete"], manifest["stopped"], manifest["mode"]) == (True, "its ttl is over", mode)
    assert manifest["time"]["end"]["real_time_ns"] / 1e9 < began + 7
    assert count_calls(tmp_path) == 2 * calls
    assert host.call_module("ftrace_instance", containers=[name], **options)["changed"]
    assert info(name)["stopped"] is None


def test_more_time_is_no_change(storm):
    name = storm()
    first = host.call_module("ftrace_instance", containers=[name], ttl="3s")["instances"][0]
    again = host.call_module("ftrace_instance", containers=[name], ttl="3s")
    assert not again["changed"]
    assert again["instances"][0]["expires"] > first["expires"]
    host.pause(1.5)
    host.call_module("ftrace_instance", containers=[name], ttl="3s")
    host.pause(2)
    assert info(name)["state"] == "started"
    host.wait_until(lambda: info(name)["state"] == "stopped")


def test_a_killed_recorder_is_missed_by_the_next_call(storm, tmp_path):
    name, other = storm(), storm()
    host.call_module("ftrace_instance", containers=[name], ttl="4s")
    os.kill(find_recorder()["pid"], signal.SIGKILL)
    host.wait_until(lambda: find_recorder()["pid"] is None)
    # A flight recorder in the kernel's memory needs nobody.
    assert info(name)["state"] == "started"
    (warning,) = host.call_module("ftrace_info", gather=["instances"])["warnings"]
    assert f"nobody watches the trace of {name} any more" in str(warning)
    fetch_here(tmp_path, containers=[name])
    os.kill(find_recorder()["pid"], signal.SIGKILL)
    host.wait_until(lambda: find_recorder()["pid"] is None)
    host.call_module("ftrace_instance", containers=[other])
    assert find_recorder()["pid"] is not None
    assert "warnings" not in host.call_module("ftrace_info")
    host.wait_until(lambda: info(name)["stopped"] == "its ttl is over")
    assert info(other)["state"] == "started"


@pytest.mark.parametrize("mode", ["ring", "record"])
def test_a_storm_brakes(storm, tmp_path, mode):
    name = storm(3, 200_000)
    options = RECORD if mode == "record" else {"syscalls": ["getppid"], "buffer_size": "1MiB"}
    host.call_module("ftrace_instance", containers=[name], **options, max_rate=20_000)
    host.pause(1)
    assert info(name)["state"] == "started"
    calls = run_storm(name)
    stopped = info(name)
    assert (stopped["state"], stopped["events"]) == ("stopped", {})
    assert stopped["stopped"].endswith("events per second, more than max_rate (20000) allows")
    (capture,) = fetch_here(tmp_path, containers=[name])
    assert capture["manifest"]["stopped"] == stopped["stopped"]
    assert capture["manifest"]["complete"] == (mode == "record")
    # It took what five seconds may bring, and what came until the next look.
    assert 100_000 < capture["manifest"]["entries"] + capture["manifest"]["lost"] < calls
    assert mode == "ring" or count_calls(tmp_path) == capture["manifest"]["entries"]


def test_a_loss_over_the_budget_brakes(storm, tmp_path):
    name = storm()
    host.call_module("ftrace_instance", containers=[name], **SMALL, max_loss=1000)
    pid = find_recorder()["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        run_storm(name)
    finally:
        os.kill(pid, signal.SIGCONT)
    host.wait_until(lambda: info(name)["state"] == "stopped")
    (capture,) = fetch_here(tmp_path, containers=[name])
    assert f"it lost {capture['manifest']['lost']} events, more than max_loss (1000)" in capture["manifest"]["stopped"]


def test_two_containers_are_recorded_at_once_by_one_recorder(storm, tmp_path):
    names = [storm(2, 100_000), storm(2, 50_000)]
    host.call_module("ftrace_instance", containers=names, **RECORD)
    # That of the test before lets go of its lock a moment before it ends.
    host.wait_until(lambda: host.run("pgrep", "-xc", "crashcart-recor").stdout == "1\n")
    for name in names:
        begin(name)
    calls = {name: finish(name) for name in names}
    host.call_module("ftrace_instance", containers=names[:1], state="absent")
    assert info(names[1])["state"] == "started"
    (capture,) = fetch_here(tmp_path, containers=names)
    assert (capture["manifest"]["container"]["name"], capture["manifest"]["complete"]) == (names[1], True)
    assert count_calls(tmp_path) == 2 * calls[names[1]]


def test_every_state_of_a_recording_twice_and_in_check_mode(storm):
    name = storm()

    def call(state, **options):
        settings = RECORD if state == "started" else {}
        return host.call_module("ftrace_instance", containers=[name], state=state, diff=True, **settings, **options)

    for state in ("started", "stopped", "absent"):
        before = host.read_host_state()
        predicted = call(state, check_mode=True)
        assert host.read_host_state() == before
        real = call(state)
        assert predicted["changed"] and real["changed"], state
        assert predicted["diff"] == real["diff"]
        assert not call(state, check_mode=True)["changed"]
        assert not call(state)["changed"], state
    assert not os.path.exists(STORE)


def test_another_limit_and_another_mode_are_changes(storm, tmp_path):
    name = storm()
    host.call_module("ftrace_instance", containers=[name], syscalls=["getppid"], compat=False, buffer_size="8MiB")
    calls = run_storm(name)
    # What the ring holds comes along.
    assert host.call_module("ftrace_instance", containers=[name], **RECORD)["changed"]
    calls += run_storm(name, 2)
    assert host.call_module("ftrace_instance", containers=[name], **RECORD, max_size="2GiB")["changed"]
    calls += run_storm(name, 3)
    assert host.call_module("ftrace_instance", containers=[name], syscalls=["getppid"], compat=False)["changed"]
    kept = info(name)
    assert (kept["mode"], [one["recording"] for one in kept["recordings"]]) == ("ring", [False, False])
    captures = fetch_here(tmp_path, containers=[name])
    # The ring may have overflown: that came along, too.
    lost = sum(one["manifest"]["lost"] for one in captures)
    assert count_calls(tmp_path) + lost == 2 * calls


def test_a_recording_counts_what_the_ring_before_it_lost_since_it_was_fetched(storm, tmp_path):
    name = storm(0.2)
    ring = {"containers": [name], "syscalls": ["getppid"], "compat": False, "buffer_size": "64KiB"}
    host.call_module("ftrace_instance", **ring)
    calls = run_storm(name)
    (first,) = fetch_here(tmp_path, containers=[name])
    calls += run_storm(name, 2)
    host.call_module("ftrace_instance", containers=[name], **RECORD)
    calls += run_storm(name, 3)
    (second,) = fetch_here(tmp_path, containers=[name])
    assert second["manifest"]["mode"] == "record"
    for capture in (first, second):
        assert capture["manifest"]["lost"] > 0
        assert (capture["manifest"]["complete"], capture["manifest"]["lost_exact"]) == (False, True)
    lost = first["manifest"]["lost"] + second["manifest"]["lost"]
    assert count_calls(tmp_path) + lost == 2 * calls


@pytest.mark.parametrize("mode", ["ring", "record"])
def test_a_start_is_seen_from_its_first_program_on(container, tmp_path, mode):
    program = "import os, time; os.getppid(); os.path.exists('/nonesuch'); time.sleep(1000)"
    name, other = (container("python", "/usr/bin/python3", "-S", "-c", program) for _number in range(2))
    options = {"mode": mode, "min_free": "1MiB"} if mode == "record" else {}
    (made,) = host.call_module("ftrace_instance", containers=[name], profile="startup", **options)["instances"]
    assert made["followed"]["restarts"]
    for number in (1, 2):
        fetch_here(tmp_path / f"before-{number}", containers=[name])
        host.docker("restart", "-t", "0", name, other)
        host.wait_until(lambda: host.find_pid(name) in read_pids(made["name"]))
        host.wait_until(lambda: host.read_state(host.find_pid(name)) == "S")
        assert (info(name)["state"], info(name)["stopped"]) == ("started", None)
        host.docker("exec", name, "/usr/bin/python3", "-S", "-c", "open('/nonesuch/exec')", check=False)
        folder = tmp_path / f"after-{number}"
        (capture,) = fetch_here(folder, containers=[name])
        assert capture["manifest"]["complete"]
        (summary,) = report(folder, folder / "report")
        first = {row["syscall"]: row for row in summary["processes"] if row["container_pid"] == 1}
        assert (first["execve"]["name"], first["execve"]["continued"]) == ("python3", 1)
        assert sum(row["errors"].get("ENOENT", 0) for row in first.values()) >= 1
        # What is exec'ed is followed as before, the other container is not.
        assert len({row["pids"][0] for row in summary["processes"] if row["name"] == "python3"}) == 2
    # It is the same trace to whoever asks for it again.
    again = host.call_module("ftrace_instance", containers=[name], profile="startup", **options)
    assert not again["changed"]
    if mode == "ring":
        # A recorder that was killed finds the container started again.
        os.kill(find_recorder()["pid"], signal.SIGKILL)
        host.wait_until(lambda: find_recorder()["pid"] is None)
        host.docker("restart", "-t", "0", name)
        fetch_here(tmp_path / "between", containers=[name])
        host.wait_until(lambda: host.find_pid(name) in read_pids(made["name"]))
    host.docker("rm", "-f", name)
    assert info(made["id"])["state"] == "started"


@pytest.mark.parametrize("mode", ["ring", "record"])
def test_who_does_not_run_is_awaited(container, tmp_path, mode):
    program = "import os, time; os.path.exists('/nonesuch'); time.sleep(1000)"
    name = container("python", "/usr/bin/python3", "-S", "-c", program)
    host.docker("stop", "-t", "0", name)
    wish = {"containers": [name], "profile": "startup", "mode": mode}
    with pytest.raises(
        host.ModuleFailed, match=f"{name}.* is exited: start it first, or trace its next start with follow_"
    ):
        host.call_module("ftrace_instance", **wish, follow_restarts=False)
    predicted = host.call_module("ftrace_instance", **wish, check_mode=True)
    assert predicted["changed"] and not host.list_instances()
    (made,) = host.call_module("ftrace_instance", **wish)["instances"]
    assert (made["state"], made["pids"], made["followed"]["exec"]) == ("started", 0, "descent")
    assert not host.call_module("ftrace_instance", **wish)["changed"]
    # An empty list would mean the whole host.
    host.run("sh", "-c", "ls / >/dev/null")
    host.pause(0.2)
    assert all(cpu["entries"] == 0 for cpu in info(name)["cpus"])
    host.docker("start", name)
    host.wait_until(lambda: host.find_pid(name) in read_pids(made["name"]))
    host.wait_until(lambda: host.read_state(host.find_pid(name)) == "S")
    # What is set on one that runs by now is the same.
    assert not host.call_module("ftrace_instance", **wish)["changed"]
    fetch_here(tmp_path, containers=[name])
    (summary,) = report(tmp_path, tmp_path / "report")
    first = {row["syscall"]: row for row in summary["processes"] if row["container_pid"] == 1}
    assert first["execve"]["name"] == "python3"
    assert {row["name"] for row in summary["processes"] if row["syscall"] == "execve"} == {"python3"}


def test_a_container_that_was_never_started_is_awaited_beside_one_that_runs(container, tmp_path):
    runs, never = container("busybox", "sleep", "1000"), container("busybox", "true")
    image = host.docker("inspect", "-f", "{{.Config.Image}}", never)
    host.docker("rm", "-f", never)
    host.docker("create", "--name", never, "--network", "none", image, "cat", "/nonesuch")
    made = host.call_module("ftrace_instance", containers=[runs, never], profile="startup")["instances"]
    assert {one["container"]: one["pids"] > 0 for one in made} == {runs: True, never: False}
    early = host.ad_hoc("localhost", "ftrace_fetch", {"containers": [never], "dest": str(tmp_path)})
    (line,) = early["lines"]
    assert line.startswith(f"{never}: nothing was recorded, for it has not started since the trace awaits it: start it")
    assert not early["changed"]
    host.docker("start", never)
    assert host.docker("wait", never) == "1"
    fetch_here(tmp_path, containers=[never])
    (summary,) = report(tmp_path, tmp_path / "report")
    errors = {row["syscall"]: row["errors"] for row in summary["processes"] if row["name"] == "cat"}
    assert "ENOENT" in errors["openat"] and "execve" in errors


def test_a_crash_loop_is_awaited(container, tmp_path):
    """Its runs end sooner than anybody could set a trace on them."""
    options = ("--network", "none", "--restart", "always")
    name = container("busybox", "sh", "-c", "cat /nonesuch/config; exit 3", options=options)

    def count_starts():
        return int(host.docker("inspect", "-f", "{{.RestartCount}}", name))

    # By now it takes its engine a while to start it again; before, this meets it in any state.
    host.wait_until(lambda: count_starts() >= 1)
    host.call_module("ftrace_instance", containers=[name], profile="startup")
    before = count_starts()
    host.wait_until(lambda: count_starts() >= before + 2, 60)
    fetch_here(tmp_path, containers=[name])
    (summary,) = report(tmp_path, tmp_path / "report")
    assert summary["complete"]
    programs = {(row["name"], row["syscall"]): row for row in summary["programs"]}
    assert programs["sh", "execve"]["calls"] + programs["sh", "execve"]["continued"] >= 2
    assert programs["cat", "openat"]["errors"]["ENOENT"] >= 2


def test_a_refused_change_leaves_the_wait_for_a_start_as_it_was(container):
    name = container("busybox", "sleep", "1000")
    host.docker("stop", "-t", "0", name)
    wish = {"containers": [name], "follow_restarts": True, "ttl": "1h"}
    host.call_module("ftrace_instance", **wish)
    before = info(name)
    with pytest.raises(host.ModuleFailed, match="nonesuch"):
        host.call_module("ftrace_instance", **wish, events=[{"name": "sched:sched_switch", "filter": "nonesuch == 1"}])
    after = info(name)
    assert {**after, "expires": 0} == {**before, "expires": 0}
    assert after["expires"] == pytest.approx(before["expires"], abs=0.1)
    assert not host.call_module("ftrace_instance", **wish)["changed"]
    host.docker("start", name)
    host.wait_until(lambda: host.find_pid(name) in read_pids(after["name"]))


def test_a_change_that_fails_since_the_container_ends_lets_nobody_else_in(container, monkeypatch):
    name = container("busybox", "sleep", "1000")
    (made,) = host.call_module("ftrace_instance", containers=[name])["instances"]
    record = find_record(name)
    configure = start.configure

    def configure_later(*arguments):
        host.docker("kill", name)
        host.wait_until(lambda: not os.path.exists(f"/proc/{record.pid}"))
        configure(*arguments)

    monkeypatch.setattr(start, "configure", configure_later)
    settings = specification.find_settings(specification.Specification(buffer_kb=64))
    with pytest.raises(FleetError, match="has just ended"):
        serving.start_traces([record], plan.TraceRequest(settings, follow_exec=True, described={}))
    host.wait_until(lambda: info(name)["pids"] == 0)  # its shim lives a moment longer
    before = info(name)
    assert (before["state"], before["buffer_kb"] > 1024) == ("started", True)
    host.run("sh", "-c", "ls / >/dev/null")
    host.pause(0.2)
    assert [cpu["entries"] for cpu in info(name)["cpus"]] == [cpu["entries"] for cpu in before["cpus"]]
    assert made["name"] == before["name"]


def test_groups_that_a_container_makes_are_its_own(container):
    """Systemd and crun make such groups in a container: the first process is in one, others are in another."""
    name = container("busybox", "sh", "-c", "sleep 1001 & sleep 1002")
    first = host.find_pid(name)
    host.wait_until(lambda: host.runs(name, "sleep 1001"))
    (child,) = (int(pid) for pid in host.run("pgrep", "-P", str(first), "-f", "sleep 1001").stdout.split())
    group = cgroups.find_container_directory(Path(f"/proc/{first}/cgroup").read_bytes())
    try:
        for folder, pid in (("init.scope", first), ("system", child)):
            os.mkdir(f"{group}/{folder}")
            Path(f"{group}/{folder}/cgroup.procs").write_text(str(pid))
        wish = {"containers": [name], "follow_restarts": True, "follow_exec": False}
        (made,) = host.call_module("ftrace_instance", **wish)["instances"]
        assert read_pids(made["name"]) >= {first, child}
        assert made["followed"]["restarts"]
    finally:
        host.docker("kill", name)
        for folder in ("init.scope", "system"):
            if os.path.isdir(f"{group}/{folder}"):
                os.rmdir(f"{group}/{folder}")
    # The group that is awaited is the container's.
    assert not host.call_module("ftrace_instance", **wish)["changed"]
    host.docker("start", name)
    host.wait_until(lambda: host.find_pid(name) in read_pids(made["name"]))


def test_a_group_that_its_user_has_chosen_is_awaited_there(container, tmp_path):
    parent = f"/cc-test-{os.getpid()}"
    options = ("--network", "none", "--cgroup-parent", parent)
    name = container("busybox", "cat", "/nonesuch", options=options)
    assert host.docker("wait", name) == "1"
    folder = Path(f"/sys/fs/cgroup/pids{parent}")
    folder.rmdir()
    with pytest.raises(host.ModuleFailed, match=f"{folder}, where its control group should be, is not there"):
        host.call_module("ftrace_instance", containers=[name], profile="startup")
    container("busybox", "sleep", "1000", options=options)
    host.call_module("ftrace_instance", containers=[name], profile="startup")
    host.docker("start", name)
    assert host.docker("wait", name) == "1"
    fetch_here(tmp_path, containers=[name])
    (summary,) = report(tmp_path, tmp_path / "report")
    assert [row["name"] for row in summary["processes"] if "ENOENT" in row["errors"]] == ["cat"]


@pytest.mark.parametrize("how", ["alone", "interrupted"])
def test_a_start_that_fails_keeps_what_was_recorded_before(storm, monkeypatch, tmp_path, how):
    """Of an instance that is gone, as after a reboot, where another one is made for the same container and taken back: since its own start
    fails, or since the call is interrupted while it sets up the next one."""
    first, second = sorted((storm(0.2), storm(0.2)))
    (made,) = host.call_module("ftrace_instance", containers=[first], **RECORD)["instances"]
    calls = run_storm(first)
    host.call_module("ftrace_instance", containers=[first], state="stopped")
    os.rmdir(f"{host.TRACEFS}/instances/{made['name']}")
    bad = specification.find_settings(specification.Specification())
    bad.events["sched:sched_switch"] = "nonesuch == 1"
    configure = start.configure

    def configure_one(instance, present, settings, *others):
        if instance.name == made["name"]:
            settings = bad if how == "alone" else settings
        elif how == "interrupted":
            raise KeyboardInterrupt
        configure(instance, present, settings, *others)

    monkeypatch.setattr(start, "configure", configure_one)
    wish = plan.TraceRequest(
        specification.find_settings(specification.Specification(is_recorded=True, buffer_kb=256)),
        follow_exec=False,
        limits=Limits(is_recorded=True, max_bytes=1 << 30, rotate_bytes=1 << 26, rotate_s=60.0),
        described={},
    )
    with pytest.raises(FleetError if how == "alone" else KeyboardInterrupt, match="nonesuch" if how == "alone" else ""):
        serving.start_traces([find_record(first), find_record(second)], wish)
    assert made["name"] not in host.list_instances()
    assert len(host.list_instances()) == (how == "alone")
    (capture,) = fetch_here(tmp_path, containers=[first])
    assert capture["manifest"]["complete"]
    assert count_calls(tmp_path) == 2 * calls


@pytest.mark.parametrize("restarts", [False, True], ids=["once", "restarts"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_container_that_ends_while_its_trace_is_set(container, monkeypatch, restarts, when):
    """Before it is set: that is an error that leaves nothing, or the next start is awaited; after: there is a trace, and it is known."""
    name = container("busybox", "sleep", "1000")
    record = find_record(name)
    configure = start.configure

    def end():
        host.docker("kill", name)
        host.wait_until(lambda: not os.path.exists(f"/proc/{record.pid}"))

    def configure_meanwhile(*arguments):
        monkeypatch.setattr(start, "configure", configure)
        if when == "before":
            end()
        configure(*arguments)
        if when == "after":
            end()

    monkeypatch.setattr(start, "configure", configure_meanwhile)
    settings = specification.find_settings(specification.Specification())
    wish = plan.TraceRequest(settings, follow_exec=False, limits=Limits(restarts=restarts), described={})

    def begin():
        return serving.start_traces([record], wish, predict_place=DockerEngine(None).predict_place)

    if when == "before" and not restarts:
        with pytest.raises(FleetError, match="has just ended"):
            begin()
        assert host.list_instances() == []
        return
    started = begin()
    assert (started.changed, started.before, started.after[name]["state"]) == (True, {name: None}, "started")
    assert [one.container_name for one in started.made] == [name]
    assert info(name)["followed"]["restarts"] == restarts
    if restarts:
        host.docker("start", name)
        host.wait_until(lambda: host.find_pid(name) in read_pids(info(name)["name"]))


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"tracer": "function"}, "tracers of functions do not follow a start|cannot be traced|Operation not permitted"),
        (
            {"probes": [{"name": "mine", "type": "uprobe", "binary": "/bin/busybox", "offset": 1}]},
            "probes in programs .mine.",
        ),
        ({"expose": {"files": ["trace"]}}, "start it first"),
    ],
    ids=["tracer", "probe", "expose"],
)
def test_what_does_not_follow_a_start_is_refused_where_nothing_runs(container, wish, said):
    name = container("busybox", "true")
    host.wait_until(lambda: host.docker("inspect", "-f", "{{.State.Status}}", name) == "exited")
    with pytest.raises(host.ModuleFailed, match=said):
        host.call_module("ftrace_instance", containers=[name], profile="startup", **wish)
    assert host.list_instances() == []


def read_pids(instance):
    return {int(line) for line in Path(f"{host.TRACEFS}/instances/{instance}/set_event_pid").read_text().split()}


@pytest.mark.parametrize("then", [{}, {"mode": "record"}], ids=["ring", "record"])
def test_what_another_clock_drops_is_counted(storm, tmp_path, then):
    name = storm(0.2)
    ring = {"containers": [name], "syscalls": ["getppid"], "compat": False, "buffer_size": "64KiB", "min_free": None}
    host.call_module("ftrace_instance", **ring)
    calls = run_storm(name)
    (changed,) = host.call_module("ftrace_instance", **ring, clock="boot")["instances"]
    assert changed["discarded"] >= 2 * calls
    calls += run_storm(name, 2)
    host.call_module("ftrace_instance", **{**ring, **(RECORD if then else {})}, clock="global")
    calls += run_storm(name, 3)
    (capture,) = fetch_here(tmp_path, containers=[name])
    manifest = capture["manifest"]
    assert (manifest["complete"], manifest["lost_exact"], manifest["clock"]) == (False, True, "global")
    assert count_calls(tmp_path) + manifest["lost"] == 2 * calls
    # It is told once.
    calls = run_storm(name, 4)
    (capture,) = fetch_here(tmp_path / "later", containers=[name])
    assert count_calls(tmp_path / "later") + capture["manifest"]["lost"] == 2 * calls


def test_a_trigger_that_stops_the_trace_ends_the_recording(storm, tmp_path):
    name = storm(0.2)
    stop = {"name": "raw_syscalls:sys_exit", "triggers": [f"traceoff:1 if id == {find_number('getppid')}"]}
    host.call_module("ftrace_instance", containers=[name], **RECORD, events=[stop])
    assert info(name)["recordings"][0]["recording"]
    run_storm(name)
    host.wait_until(lambda: not info(name)["recordings"][0]["recording"])
    assert info(name)["stopped"] == "a trigger switched tracing off"
    (capture,) = fetch_here(tmp_path, containers=[name])
    assert (capture["manifest"]["complete"], capture["manifest"]["stopped"]) == (True, info(name)["stopped"])
    assert 1 <= count_calls(tmp_path) <= 2
    # The buffers were the recording's: there is nothing more to fetch.
    assert fetch_here(tmp_path, containers=[name]) == []


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"max_loss": 3}, "max_loss is for mode=record"),
        ({"when_full": "rotate"}, "when_full is for mode=record"),
        ({"ttl": "soon"}, "ttl: 'soon' is not a time"),
        ({"max_rate": 0}, "max_rate: 0 is too small"),
        ({"mode": "record", "max_size": "1MiB"}, "less than four times the ring buffers of all CPUs"),
        ({"mode": "record", "max_size": "much"}, "max_size: 'much' is not a size"),
    ],
)
def test_limits_that_do_not_fit_are_named_and_leave_nothing(storm, options, wanted):
    with pytest.raises(host.ModuleFailed, match=wanted):
        host.call_module("ftrace_instance", containers=[storm()], **options)
    assert host.list_instances() == []


def test_a_buffer_that_the_kernel_refuses_is_named_with_its_size(storm):
    name = storm()
    host.call_module("ftrace_instance", containers=[name])
    instance = Instance(host.TRACEFS, info(name)["name"])
    settings = specification.find_settings(specification.Specification(buffer_kb=1 << 30, follow_exec=False))
    before = configuration.read_settings(instance, settings)
    with pytest.raises(TraceError, match=f"does not give {1 << 30} KiB on each of 2 CPUs, {1 << 31} KiB in all"):
        followers = SimpleNamespace(restore=lambda: None)
        configuration.configure(instance, before, settings, followers, lambda: None, lambda: None)
    assert info(name)["state"] == "started"


def test_a_recorders_files_are_nobody_elses(storm):
    name = storm()
    host.call_module("ftrace_instance", containers=[name], **RECORD)
    for folder, folders, _names in os.walk(STORE):
        assert all(os.stat(os.path.join(folder, one)).st_mode & 0o077 == 0 for one in folders)
    orders = json.loads(Path(f"/run/crashcart/recorder/{info(name)['name']}").read_text())
    assert orders["container"]["name"] == name
