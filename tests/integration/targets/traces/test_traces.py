# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""ftrace_instance, ftrace_fetch and ftrace_report on real containers, with the machine's own kernel."""

from __future__ import annotations

import json
import os
import pwd
import re
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import every_kernel, host, serving, workload_counts
from support.every_kernel import count, report
from support.fetching import fetch_here
from support.records import find_record

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import options
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.host import Host
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import plan
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request import specification
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.events import parse_triggers
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.syscall_names import find_number
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance

WORKLOAD = workload_counts.COUNTS


class Here:
    """This machine, with modules run as processes of their own."""

    def run(self, command):
        return host.run("sh", "-c", command).stdout

    def call(self, module, **arguments):
        return host.call_module(module, **arguments)

    def fetch(self, dest, **selection):
        return fetch_here(dest, **selection)


HERE = Here()


@pytest.fixture
def worker(container):
    name = container("python")
    every_kernel.wait_for_worker(HERE, name)
    return name


def run_workload(name):
    every_kernel.run_workload(HERE, name)


@pytest.mark.parametrize("check", every_kernel.CHECKS)
def test_what_holds_on_every_kernel(worker, tmp_path, check):
    check(HERE, worker, tmp_path)


def test_strace_counts_the_workload_as_we_do(worker):
    with host.start(
        "docker", "logs", "-f", "--since", "0s", worker, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ):
        process = host.start_module(
            "crashcart_exec",
            containers=[worker],
            argv=["strace", "-f", "-c", "-U", "name,calls,errors", "-o", "/dev/stderr", "-p", "1"],
            timeout="30s",
        )
        host.wait_until(lambda: "TracerPid:\t0\n" not in open(f"/proc/{host.find_pid(worker)}/status").read())
        run_workload(worker)
        # Its own end is strace's end, too; INT makes it print.
        host.run("pkill", "-INT", "-f", "^strace -f -c")
        with pytest.raises(host.ModuleFailed, match="exit code 130") as interrupted:
            host.parse_result(*process.communicate(timeout=host.seconds(60)))
        (result,) = interrupted.value.result["results"]
    table = {}
    for line in result["stderr"].splitlines():
        words = line.split()
        if len(words) in (2, 3) and words[1].isdigit():
            table[words[0]] = (int(words[1]), int(words[2]) if len(words) == 3 else 0)
    for syscall, (calls, errors) in WORKLOAD.items():
        assert table[syscall] == (calls, sum(errors.values())), syscall


def test_trace_cmd_reads_what_we_read(worker, tmp_path):
    host.call_module("ftrace_instance", containers=[worker])
    run_workload(worker)
    capture = fetch_here(tmp_path, containers=[worker])[0]
    lines = host.run("trace-cmd", "report", capture["path"]).stdout.splitlines()[1:]
    summary = report(tmp_path, tmp_path / "report")[0]
    assert len(lines) == summary["events"]
    assert sum("sys_enter:" in line and "NR 42 " in line for line in lines) == WORKLOAD["connect"][0]
    pid = host.find_pid(worker)
    assert all(f"-{pid} " in line for line in lines)
    assert "python3" in lines[0]
    manifest = capture["manifest"]
    stamp_s = float(re.search(r"\s(\d+\.\d+):", lines[0]).group(1))
    assert abs(stamp_s + manifest["clock_offset_ns"] / 1e9 - time.time()) < 60


def test_without_follow_exec_only_the_containers_own_tree_is_traced(container, tmp_path):
    name = container("busybox", "/bin/sh", "-c", "while /bin/true; do /bin/ls /; /bin/sleep 0.2; done")
    host.call_module("ftrace_instance", containers=[name], follow_exec=False)
    host.run("docker", "exec", name, "/bin/id")
    host.pause(1)
    fetch_here(tmp_path, containers=[name])
    names = {row["name"] for row in report(tmp_path, tmp_path / "report")[0]["processes"]}
    assert {"sh", "ls", "sleep"} <= names
    assert "id" not in names


def test_other_containers_and_the_host_are_not_in_the_trace(container, tmp_path):
    busy = "while /bin/true; do /bin/ls /; done"
    traced = container("busybox", "/bin/sh", "-c", "while /bin/true; do /bin/id; /bin/sleep 0.1; done")
    container("busybox", "/bin/sh", "-c", busy)
    host.call_module("ftrace_instance", containers=[traced])
    host.pause(0.5)
    host.run("ls", "/")
    fetch_here(tmp_path, containers=[traced])
    names = {row["name"] for row in report(tmp_path, tmp_path / "report")[0]["processes"]}
    assert names <= {"sh", "id", "sleep", "true"}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"syscalls": ["nonesuch"]}, "no system call 'nonesuch'"),
        ({"events": ["nonesuch:event"]}, "no event 'nonesuch:event'"),
        ({"events": ["../../x"]}, "is not an event"),
        ({"buffer_size": "much"}, "buffer_size: 'much' is not a size"),
        ({"buffer_size": "4000GiB"}, "more than half of the .* KiB that the host has free"),
        ({"buffer_size": "1KiB"}, "less than the kernel takes"),
    ],
)
def test_bad_input_is_named_and_leaves_no_instance(worker, options, wanted):
    with pytest.raises(host.ModuleFailed, match=wanted):
        host.call_module("ftrace_instance", containers=[worker], **options)
    assert host.list_instances() == []


def test_loss_is_counted_anew_for_each_fetch(worker, tmp_path):
    host.call_module("ftrace_instance", containers=[worker], buffer_size="8KiB")
    for _round in range(3):
        run_workload(worker)
    first = fetch_here(tmp_path / "a", containers=[worker])[0]["manifest"]
    assert not first["complete"]
    host.docker("exec", worker, "/usr/bin/python3", "-c", "pass", check=False)
    host.call_module("ftrace_instance", containers=[worker], state="stopped")
    host.call_module("ftrace_instance", containers=[worker], buffer_size="8MiB")
    run_workload(worker)
    second = fetch_here(tmp_path / "b", containers=[worker])[0]["manifest"]
    assert second["lost"] < first["lost"] + first["entries"]


def test_fetch_twice_brings_nothing_twice(worker, tmp_path):
    host.call_module("ftrace_instance", containers=[worker])
    run_workload(worker)
    host.call_module("ftrace_instance", containers=[worker], state="stopped")
    first = host.ad_hoc("localhost", "ftrace_fetch", {"dest": str(tmp_path), "containers": [worker]})
    second = host.ad_hoc("localhost", "ftrace_fetch", {"dest": str(tmp_path), "containers": [worker]})
    assert (first["changed"], second["changed"]) == (True, False)
    assert second["captures"][0]["path"] is None
    path = first["captures"][0]["path"]
    assert path.startswith(f"{tmp_path}/localhost/{worker}/")
    manifest = json.load(open(path[:-4] + ".json", encoding="utf-8"))
    assert host.run("sha256sum", path).stdout.split()[0] == manifest["sha256"]
    assert sorted(os.listdir(os.path.dirname(path))) == sorted(
        [os.path.basename(path), os.path.basename(path)[:-4] + ".json"]
    )


def test_an_instance_that_cannot_be_read_costs_no_other_its_events(container, tmp_path):
    names = [container("python"), container("python")]
    for broken in names:
        host.call_module("ftrace_instance", containers=names)
        host.wait_until(lambda: all("ready" in host.docker("logs", name) for name in names))
        for name in names:
            run_workload(name)
        short_id = host.docker("inspect", "-f", "{{.Id}}", broken)[:12]
        events = f"{host.TRACEFS}/instances/crashcart-{short_id}/events"
        host.run("mount", "--bind", str(tmp_path), events)
        try:
            with pytest.raises(host.ModuleFailed, match=f"1 of 2 containers failed: container {broken}: ") as failure:
                host.ad_hoc("localhost", "ftrace_fetch", {"dest": str(tmp_path / broken), "containers": names})
        finally:
            host.run("umount", events)
        (capture,) = failure.value.result["captures"]
        assert capture["manifest"]["container"]["name"] == next(name for name in names if name != broken)
        assert capture["manifest"]["entries"] > 0
        assert os.path.getsize(capture["path"]) > 4096
        later = {
            one["manifest"]["container"]["name"]: one["path"] for one in fetch_here(tmp_path / broken, containers=names)
        }
        assert later[broken]


def test_a_refused_change_leaves_the_trace_as_it_was(worker):
    host.call_module("ftrace_instance", containers=[worker], errors_only=True, syscalls=["openat"], clock="boot")
    before = host.read_host_state()["instances"]
    for check_mode in (True, False):
        with pytest.raises(host.ModuleFailed, match="'ftrace:function' is the kernel's own"):
            host.call_module("ftrace_instance", containers=[worker], events=["ftrace:function"], check_mode=check_mode)
        assert host.read_host_state()["instances"] == before
    # A filter that the kernel refuses when everything else was written already.
    record = find_record(worker)
    settings = specification.find_settings(specification.Specification(clock="mono", follow_exec=False))
    settings.events["sched:sched_switch"] = "nonesuch == 1"
    with pytest.raises(FleetError, match="nonesuch"):
        serving.start_traces([record], plan.TraceRequest(settings, follow_exec=False))
    assert host.read_host_state()["instances"] == before


def test_an_applet_of_busybox_bears_its_own_name(container, tmp_path):
    """Its shell starts it as /proc/self/exe, and it names itself."""
    name = container("busybox", "/bin/sh", "-c", "while true; do cat /nonesuch; /bin/sleep 0.2; done")
    host.call_module("ftrace_instance", containers=[name], syscalls=["openat", "open"])
    host.pause(1)
    fetch_here(tmp_path, containers=[name])
    (capture,) = report(tmp_path, tmp_path / "report")
    assert {row["name"] for row in capture["processes"] if row["errors"]} == {"cat"}


def test_every_state_twice_and_in_check_mode(worker):
    def call(state, **options):
        return host.call_module("ftrace_instance", containers=[worker], state=state, diff=True, **options)

    for state in ("started", "stopped", "absent"):
        before = host.read_host_state()
        predicted = call(state, check_mode=True)
        assert host.read_host_state() == before
        real = call(state)
        assert predicted["changed"], state
        assert real["changed"], state
        assert (predicted["diff"] == real["diff"]) and real["diff"]["before"] != real["diff"]["after"]
        assert not call(state, check_mode=True)["changed"]
        assert not call(state)["changed"], state
    assert host.list_instances() == []


def test_a_changed_specification_is_a_change(worker):
    host.call_module("ftrace_instance", containers=[worker])
    assert host.call_module("ftrace_instance", containers=[worker], syscalls=["read"])["changed"]
    assert host.call_module("ftrace_instance", containers=[worker], syscalls=["read"], buffer_size="64KiB")["changed"]
    last = host.call_module("ftrace_instance", containers=[worker], syscalls=["read"], buffer_size="64KiB")
    assert not last["changed"]
    assert last["instances"][0]["events"]["raw_syscalls:sys_enter"].startswith("(id == 0 || id == 3) && ")
    only = host.call_module("ftrace_instance", containers=[worker], syscalls=["read"], compat=False)
    assert only["instances"][0]["events"]["raw_syscalls:sys_enter"].startswith("(id == 0) && ")


def test_nobody_else_sets_off_triggers_while_they_are_set(worker):
    event = {"name": "syscalls:sys_enter_rmdir", "triggers": ["traceoff:1"]}
    elsewhere = "import os\nwhile True:\n try: os.rmdir('/nonesuch')\n except OSError: pass"
    with host.start(sys.executable, "-S", "-c", elsewhere):
        for size in ("64KiB", "128KiB", "256KiB"):
            for wish in ({"events": [event]}, {"events": [event], "follow_restarts": True}):
                (made,) = host.call_module("ftrace_instance", containers=[worker], buffer_size=size, **wish)[
                    "instances"
                ]
                assert made["state"] == "started", (size, wish)


def test_what_a_killed_start_has_not_put_on_record_the_next_one_does(worker):
    (made,) = host.call_module("ftrace_instance", containers=[worker], ttl="1h")["instances"]
    os.unlink(f"/run/crashcart/traces/{made['name']}.json")
    assert host.call_module("ftrace_instance", containers=[worker], ttl="1h", check_mode=True)["changed"]
    again = host.call_module("ftrace_instance", containers=[worker], ttl="1h")
    assert (again["changed"], again["instances"][0]["followed"]) == (True, made["followed"])
    assert not host.call_module("ftrace_instance", containers=[worker], ttl="1h")["changed"]


def test_info_changes_nothing_and_lists_what_there_is(worker):
    host.call_module("ftrace_instance", containers=[worker])
    before = host.read_host_state()
    for check_mode in (False, True):
        info = host.call_module("ftrace_info", gather=["all"], check_mode=check_mode)
        assert [one["container"] for one in info["instances"]] == [worker]
        assert "sys_enter" in info["available"]["events"]["raw_syscalls"]
        assert "mono" in info["available"]["clocks"]
        assert not host.call_module("crashcart_info", gather=["all"], check_mode=check_mode)["changed"]
    assert host.read_host_state() == before


def test_foreign_instances_are_never_touched(worker):
    foreign = f"{host.TRACEFS}/instances/somebody-elses"
    os.mkdir(foreign)
    try:
        host.call_module("ftrace_instance", containers=[worker])
        host.call_module("ftrace_instance", state="absent", everything=True)
        assert host.list_instances() == []
        assert os.path.isdir(foreign)
    finally:
        os.rmdir(foreign)


def test_a_restarted_and_a_removed_container(worker, tmp_path):
    host.call_module("ftrace_instance", containers=[worker])
    run_workload(worker)
    host.docker("restart", "-t", "0", worker)
    assert host.call_module("ftrace_instance", containers=[worker])["changed"]
    host.wait_until(lambda: host.docker("logs", worker).count("ready") == 2)
    run_workload(worker)
    container_id = host.docker("inspect", "-f", "{{.Id}}", worker)
    host.docker("rm", "-f", worker)
    captures = fetch_here(tmp_path, containers=[container_id])
    assert captures[0]["manifest"]["complete"]
    assert count(report(tmp_path, tmp_path / "report")[0])["connect"]["calls"] == 2 * WORKLOAD["connect"][0]
    assert host.call_module("ftrace_instance", containers=[container_id], state="absent")["changed"]
    assert host.list_instances() == []


def test_hostile_names_do_no_harm(container, tmp_path):
    names = {}
    for comm in ("a\x1b[2Jb", "x\ny z", "$(id)", "../../x", "';--"):
        program = (
            "import ctypes, os, signal, time\n"
            "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n"
            "print('ready', flush=True)\n"
            "signal.sigwait([signal.SIGUSR1])\n"
            f"ctypes.CDLL(None).prctl(15, {comm.encode()!r}, 0, 0, 0)\n"
            "os.access('/nonesuch', 0)\n"
            "time.sleep(1000)\n"
        )
        labels = ("--label", f"evil={comm}", "--label", "a=../b")
        name = container("python", "/usr/bin/python3", "-c", program, options=("--network", "none", *labels))
        names[comm] = name
    for name in names.values():
        host.wait_until(lambda name=name: "ready" in host.docker("logs", name))
    host.call_module("ftrace_instance", containers=list(names.values()))
    host.docker("kill", "--signal", "USR1", *names.values())
    host.pause(0.5)
    for number, (comm, name) in enumerate(names.items()):
        folder = tmp_path / str(number)
        (capture,) = fetch_here(folder, labels={"evil": comm})
        assert capture["manifest"]["container"]["labels"]["evil"] == comm
        assert capture["path"].startswith(f"{folder}/localhost/{name}/")
        (summary,) = report(folder, folder / "report")
        rows = [row for row in summary["processes"] if row["syscall"] in ("access", "faccessat2")]
        assert [row["name"] for row in rows] == [comm]
        text = (folder / "report" / "summary.txt").read_text()
        assert "\x1b" not in text
        assert len([line for line in text.splitlines() if "access" in line]) == 1
        raw = host.run("trace-cmd", "report", capture["path"]).stdout
        # trace-cmd prints a name as it is, so only the beginnings of its lines are counted.
        assert len(re.findall(r"\[\d{3}\] +\d+\.\d+: \w+:", raw)) == summary["events"]


def test_threads_and_children_are_counted_with_their_process(container, tmp_path):
    program = (
        "import os, threading, time\n"
        "time.sleep(1.5)\n"
        "def work():\n"
        "    for _ in range(10): os.access('/nonesuch', 0)\n"
        "threads = [threading.Thread(target=work) for _ in range(7)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    work(); os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "time.sleep(1000)\n"
    )
    name = container("python", "/usr/bin/python3", "-c", program)
    host.call_module("ftrace_instance", containers=[name])
    host.pause(2.5)
    fetch_here(tmp_path, containers=[name])
    rows = [
        row
        for row in report(tmp_path, tmp_path / "report")[0]["processes"]
        if row["syscall"] in ("access", "faccessat2")
    ]
    assert sorted(row["calls"] for row in rows) == [10, 70]
    assert {row["calls"]: row["container_pid"] for row in rows}[70] == 1


def test_a_report_twice_and_in_check_mode(worker, tmp_path):
    host.call_module("ftrace_instance", containers=[worker])
    run_workload(worker)
    fetch_here(tmp_path / "in", containers=[worker])
    arguments = {"src": str(tmp_path / "in"), "dest": str(tmp_path / "out")}
    assert host.call_module("ftrace_report", check_mode=True, **arguments)["changed"]
    assert not (tmp_path / "out").exists()
    assert host.call_module("ftrace_report", **arguments)["changed"]
    (path,) = map(str, (tmp_path / "in").rglob("*.dat"))
    named = host.call_module("ftrace_report", captures=[path], dest=str(tmp_path / "one"))
    assert [one["capture"] for one in named["summary"]["captures"]] == [os.path.basename(path)]
    for more in ({}, {"src": str(tmp_path / "in")}):
        none = host.call_module("ftrace_report", captures=[], dest=str(tmp_path / "none"), **more)
        assert (none["changed"], none["files"]) == (False, {})
        assert none["lines"] == ["No capture: there is nothing to report on."]
    assert not (tmp_path / "none").exists()
    with pytest.raises(host.ModuleFailed, match="one of the following is required: src, captures"):
        host.call_module("ftrace_report", dest=str(tmp_path / "none"))
    again = host.call_module("ftrace_report", **arguments)
    assert not again["changed"]
    text = (tmp_path / "out" / "summary.txt").read_text()
    assert again["lines"][-2 - len(text.splitlines()) : -2] == text.splitlines()
    assert re.search(r"python3 +\d+ +connect +50 +\d+\.\d{3} +\d+\.\d +ENOENT 50", text)


def test_damaged_captures_are_named(worker, tmp_path):
    host.call_module("ftrace_instance", containers=[worker])
    run_workload(worker)
    path = fetch_here(tmp_path / "in", containers=[worker])[0]["path"]
    os.truncate(path, os.stat(path).st_size - 6000)
    with pytest.raises(host.ModuleFailed, match="cut short"):
        host.call_module("ftrace_report", src=path, dest=str(tmp_path / "out"))
    with open(path, "wb") as file:
        file.write(b"something else")
    with pytest.raises(host.ModuleFailed, match="is no trace.dat"):
        host.call_module("ftrace_report", src=path, dest=str(tmp_path / "out"))
    with pytest.raises(host.ModuleFailed, match="there is no capture"):
        host.call_module("ftrace_report", src=str(tmp_path / "out2"), dest=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_storm_of_short_lives_leads_nobody_elses_events_in(container, tmp_path):
    """While processes are born and die, the list of threads is written: it must never be empty, which means the whole host."""
    storm = "for i in 1 2 3 4 5 6; do while /bin/true; do /bin/true; done & done; while /bin/true; do /bin/true; done"
    # Half a processor of them: the rest is for who looks at them.
    name = container("busybox", "/bin/sh", "-c", storm, options=("--network", "none", "--cpus", "0.5"))
    for number in range(8):
        instance = host.call_module("ftrace_instance", containers=[name], syscalls=["openat", "execve"])["instances"][0]
        assert instance["pids"] > 0
        host.run("cat", "/etc/hostname")
        fetch_here(tmp_path / str(number), containers=[name])
        host.call_module("ftrace_instance", containers=[name], state="absent")
        captures = report(tmp_path / str(number), tmp_path / "report")
        calls = {}
        for row in captures[0]["processes"]:
            calls[row["name"]] = calls.get(row["name"], 0) + row["calls"]
        # Who was born on a CPU that is drained already, and called on one that is not yet, has no name: a few at the seam.
        assert calls.pop("?", 0) <= 4, calls
        assert set(calls) <= {"sh", "true"}


@pytest.mark.parametrize("state", ["stopped", "absent"])
def test_an_empty_selection_is_not_everything(worker, state):
    host.call_module("ftrace_instance", containers=[worker])
    host.call_module("crashcart_attach", containers=[worker])
    assert not host.call_module("ftrace_instance", containers=[], state=state)["changed"]
    assert not host.call_module("crashcart_attach", containers=[], state="detached")["changed"]
    assert "/dev/crashcart" in host.read_container_mounts(worker)
    with pytest.raises(host.ModuleFailed, match="labels is empty"):
        host.call_module("crashcart_attach", labels={}, state="detached")
    for module, its_state in (("ftrace_instance", state), ("crashcart_attach", "detached")):
        with pytest.raises(host.ModuleFailed, match=r"say which containers: .* \(everything=true means "):
            host.call_module(module, state=its_state)
        with pytest.raises(host.ModuleFailed, match="everything=true cannot be combined with a selection"):
            host.call_module(module, state=its_state, everything=True, containers=[worker])
        with pytest.raises(host.ModuleFailed, match=r"everything can be used with .* only \(containers='\*' means all"):
            host.call_module(module, everything=True)
    assert "/dev/crashcart" in host.read_container_mounts(worker)
    assert len(host.list_instances()) == 1
    assert host.call_module("ftrace_info", gather=["instances"])["instances"][0]["state"] == "started"


def test_two_containers_at_once_see_nothing_of_each_other(container, tmp_path):
    loops = {
        "id": container("busybox", "/bin/sh", "-c", "while /bin/true; do /bin/id >/dev/null; /bin/sleep 0.1; done")
    }
    loops["ls"] = container("busybox", "/bin/sh", "-c", "while /bin/true; do /bin/ls >/dev/null; /bin/sleep 0.1; done")
    host.call_module("ftrace_instance", containers=list(loops.values()), profile="exec")
    host.pause(1)
    names = {}
    for capture in fetch_here(tmp_path, containers=list(loops.values())):
        (summary,) = report(Path(capture["path"]), tmp_path / "report")
        names[capture["manifest"]["container"]["name"]] = {row["name"] for row in summary["processes"]}
    for program, name in loops.items():
        (other,) = set(loops) - {program}
        assert program in names[name] and other not in names[name]
    host.call_module("ftrace_instance", containers=[loops["id"]], state="absent")
    (left,) = host.call_module("ftrace_info", gather=["instances"])["instances"]
    assert (left["container"], left["state"]) == (loops["ls"], "started")
    host.pause(0.5)
    (capture,) = fetch_here(tmp_path / "later", containers=[loops["ls"]])
    assert capture["manifest"]["entries"] > 0


def test_a_users_filters_and_ours_hold_together(worker, tmp_path):
    """Of a call by its number, in a process whose name has blanks; the kernel's own filter of a glob's other events stays as it is."""
    name = "a  name of 2"
    program = f"open('/proc/self/comm', 'w').write({name!r}); import os; os.getppid(); os.getppid(); os.access('/x', 0)"
    host.call_module(
        "ftrace_instance",
        containers=[worker],
        syscalls=["getppid", "access"],
        events=[
            {"name": "raw_syscalls:sys_enter", "filter": f'COMM == "{name}" && id == {find_number("getppid")}'},
            {"name": "syscalls:sys_exit_e*", "filter": "ret == 12345"},
        ],
    )
    host.docker("exec", worker, "/usr/bin/python3", "-c", program)
    (capture,) = fetch_here(tmp_path, containers=[worker])
    lines = host.run("trace-cmd", "report", capture["path"]).stdout.splitlines()
    entries = [line for line in lines if " sys_enter:" in line]
    assert len(entries) == 2, entries
    assert any("sys_exit_execve:" in line for line in lines) and not any("sys_exit_exit" in line for line in lines)


def test_foreign_instances_and_probes_with_their_settings_are_never_touched(worker, tmp_path):
    foreign = f"{host.TRACEFS}/instances/somebody-elses"
    probe = "somebody/ours"
    os.mkdir(foreign)
    try:
        events = os.open(f"{host.TRACEFS}/uprobe_events", os.O_WRONLY | os.O_APPEND)
        try:
            os.write(events, f"p:{probe} /bin/true:0x1000\n".encode())
        finally:
            os.close(events)
        for file, value in (
            ("events/sched/sched_switch/filter", "prev_pid == 1"),
            ("events/sched/sched_switch/trigger", "stacktrace:3 if prev_pid == 1"),
            ("events/sched/sched_switch/enable", "1"),
            (f"events/{probe}/enable", "1"),
            ("set_event_pid", "1"),
        ):
            with open(f"{foreign}/{file}", "w", encoding="ascii") as opened:
                opened.write(value)

        def read_all():
            files = ("set_event", "set_event_pid", "tracing_on", "trace_clock", "current_tracer", "buffer_size_kb")
            files += tuple(f"events/sched/sched_switch/{name}" for name in ("filter", "trigger"))
            texts = {file: open(f"{foreign}/{file}", encoding="ascii").read() for file in files}
            return {**texts, "probes": open(f"{host.TRACEFS}/uprobe_events", encoding="ascii").read()}

        before = read_all()
        switch = {"name": "sched:sched_switch", "filter": "next_pid == 1", "triggers": ["stacktrace"]}
        result = host.call_module("ftrace_instance", containers=[worker], events=[switch, "so*:*"], clock="boot")
        systems = {event.partition(":")[0] for event in result["instances"][0]["events"]}
        assert "sock" in systems and "somebody" not in systems
        fetch_here(tmp_path, containers=[worker])
        host.call_module("ftrace_instance", containers=[worker], state="stopped")
        host.call_module("ftrace_instance", state="absent", everything=True)
        assert read_all() == before
        assert "stacktrace" in before["events/sched/sched_switch/trigger"]
    finally:
        with open(f"{foreign}/events/enable", "w", encoding="ascii") as opened:
            opened.write("0")
        os.rmdir(foreign)
        events = os.open(f"{host.TRACEFS}/uprobe_events", os.O_WRONLY | os.O_APPEND)
        try:
            os.write(events, f"-:{probe}\n".encode())
        finally:
            os.close(events)


def test_time_is_measured_at_the_start_and_at_the_end(worker, tmp_path):
    began = time.time_ns()
    host.call_module("ftrace_instance", containers=[worker])
    started = time.time_ns()
    run_workload(worker)
    host.call_module("ftrace_instance", containers=[worker], state="stopped")
    stopped = time.time_ns()
    host.pause(1)
    manifest = fetch_here(tmp_path, containers=[worker])[0]["manifest"]
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        assert manifest["boot_id"] == file.read().strip()
    start, end = manifest["time"]["start"], manifest["time"]["end"]
    assert manifest["clock"] == "mono"
    assert began < start["real_time_ns"] < started < end["real_time_ns"] < stopped
    real_offset = time.time_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    for one in (start, end):
        assert 0 < one["uncertainty_ns"] < 1_000_000
        assert abs(one["offset_ns"] - real_offset) < 100_000_000
    assert manifest["clock_offset_ns"] == end["offset_ns"]
    (capture,) = report(tmp_path, tmp_path / "report")
    first = datetime.fromisoformat(capture["start"]).timestamp() * 1e9
    assert start["real_time_ns"] - 5e6 < first < end["real_time_ns"]


def test_a_running_trace_ends_with_its_fetch_and_a_clock_of_the_kernels_own_has_no_offset(worker, tmp_path):
    host.call_module("ftrace_instance", containers=[worker], clock="global")
    run_workload(worker)
    before = time.time_ns()
    manifest = fetch_here(tmp_path, containers=[worker])[0]["manifest"]
    assert manifest["time"]["end"]["real_time_ns"] > before
    assert manifest["time"]["end"]["offset_ns"] is None
    assert manifest["clock_offset_ns"] is None


def test_who_was_there_at_the_start_is_known_at_the_end(container, tmp_path):
    """A process that ends before the fetch: its name and its number in the container come from the start."""
    child = "    time.sleep(2)\n    os.access('/nonesuch', 0)\n    os._exit(0)\n"
    program = f"import os, time\nif os.fork() == 0:\n{child}os.wait()\ntime.sleep(1000)"
    name = container("python", "/usr/bin/python3", "-S", "-c", program)
    host.pause(0.5)
    host.call_module("ftrace_instance", containers=[name])
    host.pause(3)
    fetch_here(tmp_path, containers=[name])
    (capture,) = report(tmp_path, tmp_path / "report")
    (row,) = [row for row in capture["processes"] if row["syscall"] in ("access", "faccessat2")]
    assert row["container_pid"] not in (None, 1)
    assert row["name"] == "python3"


def test_without_tracefs_the_reason_is_said_and_the_next_step():
    """In a mount namespace of its own, so that nobody else misses it."""
    command = f"umount -a -t tracefs; exec {sys.executable} -m {host.COLLECTION}.plugins.modules."
    texts = {}
    for module, more in (("ftrace_info", {"gather": "all"}), ("ftrace_instance", {})):
        arguments = json.dumps({"ANSIBLE_MODULE_ARGS": {"_ansible_version": "2.19", **more}})
        done = host.run("unshare", "-m", "sh", "-c", command + module, input=arguments, check=False)
        texts[module] = json.loads(done.stdout)
    assert (texts["ftrace_info"]["available"], texts["ftrace_info"]["instances"]) == (None, [])
    (feature,) = texts["ftrace_info"]["features"]
    assert (feature["name"], feature["ok"]) == ("tracefs", False)
    assert "apply the role crashcart.fleet.install" in feature["reason"]
    assert "nothing can be traced" in feature["consequence"]
    told = [one for one in texts["ftrace_info"]["summary"] if one.startswith("missing")]
    assert told == [f"missing tracefs: {feature['reason']}; {feature['consequence']}"]
    assert texts["ftrace_instance"]["msg"] == feature["reason"]


def test_short_calls_can_be_left_out_of_a_report(container, tmp_path):
    name = container("busybox", "/bin/sh", "-c", "while /bin/true; do /bin/sleep 0.2; done")
    host.call_module("ftrace_instance", containers=[name], profile="syscalls")
    host.pause(1)
    fetch_here(tmp_path / "in", containers=[name])
    arguments = {"src": str(tmp_path / "in"), "dest": str(tmp_path / "out"), "min_latency": "150ms"}
    host.call_module("ftrace_report", **arguments)
    (capture,) = json.loads((tmp_path / "out/summary.json").read_text())["captures"]
    assert {row["syscall"] for row in capture["programs"]} <= {"clock_nanosleep", "nanosleep", "wait4"}
    assert capture["programs"]
    assert "only calls of 150 ms and longer" in (tmp_path / "out/summary.txt").read_text()


@pytest.mark.parametrize("tools", [False, True])
def test_tools_are_in_a_trace_if_that_is_asked_for(container, tmp_path, tools):
    """One that runs when the trace begins, and one that starts later; what `docker exec` starts is there in any case."""
    name = container()

    def start(seconds, call):
        script = f"sleep {seconds}; {call}; true"
        return host.start_module("crashcart_exec", containers=[name], argv=["bash", "-c", script])

    first = start(4, "mkdir /proc/nonesuch")
    host.wait_until(lambda: host.runs(name, "mkdir /proc/nonesuch; true"))
    made = host.call_module("ftrace_instance", containers=[name], follow_tools=tools)["instances"][0]["followed"]
    assert (made["exec"], made["tools"], made["may_be_missed"] is None) == ("descent", tools, not tools)
    second = start(0.5, "rmdir /proc/nonesuch")
    host.docker("exec", name, "/bin/busybox", "unlink", "/nonesuch", check=False)
    for process in (first, second):
        host.parse_result(*process.communicate(timeout=host.seconds(60)))
    fetch_here(tmp_path, containers=[name])
    (summary,) = every_kernel.report(tmp_path, tmp_path / "report")
    found = every_kernel.count(summary).keys() & {"mkdir", "rmdir", "unlink"}
    assert found == ({"mkdir", "rmdir", "unlink"} if tools else {"unlink"})


def test_a_trigger_goes_with_the_wish_for_it_also_where_its_event_is_off(worker):
    """A trigger of the trace, or the end of its time, switches an event off so."""
    event = {"name": "syscalls:sys_enter_rmdir", "triggers": ["traceoff", "stacktrace"]}
    name = host.call_module("ftrace_instance", containers=[worker], events=[event])["instances"][0]["name"]
    instance = Instance(host.TRACEFS, name)
    instance.events_disable()
    assert len(parse_triggers(instance.read_triggers(event["name"]))) == 2
    host.call_module("ftrace_instance", containers=[worker], events=[event])
    instance.events_disable()
    host.call_module("ftrace_instance", containers=[worker], syscalls=["openat"])
    assert parse_triggers(instance.read_triggers(event["name"])) == []


def test_a_change_that_a_reader_forbids_leaves_the_trace_as_it_was(worker):
    wish = {"containers": [worker], "syscalls": ["openat"]}
    name = host.call_module("ftrace_instance", **wish)["instances"][0]["name"]
    before = read_settings_of(name)
    with open(f"{host.TRACEFS}/instances/{name}/trace", encoding="utf-8") as reader:
        reader.read(1)
        with pytest.raises(host.ModuleFailed, match="buffer_size cannot change while another process reads the trace"):
            host.call_module("ftrace_instance", **wish, buffer_size="4MiB")
    assert read_settings_of(name) == before
    assert before["tracing_on"] == "1"


def read_settings_of(name):
    files = ("tracing_on", "set_event", "buffer_size_kb")
    return {file: Path(f"{host.TRACEFS}/instances/{name}/{file}").read_text().strip() for file in files}


def test_who_is_no_longer_followed_is_not(worker, tmp_path):
    wish = {"containers": [worker], "syscalls": ["*"]}
    host.call_module("ftrace_instance", **wish)
    host.call_module("ftrace_instance", **wish, follow_exec=False)
    host.docker("exec", worker, "/usr/bin/python3", "-S", "-c", "")
    run_workload(worker)
    fetch_here(tmp_path, containers=[worker])
    (summary,) = report(tmp_path, tmp_path / "report")
    assert {row["name"] for row in summary["processes"]} == {"python3"}
    assert "execve" not in {row["syscall"] for row in summary["processes"]}


def test_a_container_that_is_gone_has_its_name_in_the_capture(container, tmp_path):
    name = container("busybox", "/bin/sh", "-c", "while /bin/true; do /bin/cat /nonesuch; /bin/sleep 0.1; done")
    host.call_module("ftrace_instance", containers=[name])
    host.pause(0.5)
    host.docker("rm", "-f", name)
    (capture,) = fetch_here(tmp_path, containers=[name])
    about = capture["manifest"]["container"]
    assert (about["name"], about["image"]) == (name, "crashcart-test/busybox")


DEAD = {"docker_host": "unix:///nonesuch.sock"}


@pytest.mark.parametrize("engine", [{}, DEAD], ids=["the engine knows it no more", "the engine is dead"])
def test_traces_are_found_by_the_names_of_their_containers(container, tmp_path, engine):
    loop = ("busybox", "/bin/sh", "-c", "while /bin/true; do /bin/cat /nonesuch; /bin/sleep 0.1; done")
    name, other = container(*loop), container(*loop)
    host.call_module("ftrace_instance", containers=[name, other])
    host.pause(0.5)
    if not engine:
        host.docker("rm", "-f", name)
    told = host.call_module("ftrace_info", gather=["all"], containers=[name], **engine)
    assert [one["container"] for one in told["instances"]] == [name]
    assert ("warnings" in told) == bool(engine)
    assert len(host.call_module("ftrace_info", gather=["instances"], **engine)["instances"]) == 2
    host.call_module("ftrace_instance", containers=[name], state="stopped", **engine)
    assert {
        one["container"]: one["state"] for one in host.call_module("ftrace_info", gather=["instances"])["instances"]
    } == {
        name: "stopped",
        other: "started",
    }
    arguments = {"containers": [name], "dest": str(tmp_path), "consume": False, **engine}
    (capture,) = host.ad_hoc("localhost", "ftrace_fetch", arguments)["captures"]
    assert capture["manifest"]["container"]["name"] == name
    # As after a reboot: what is kept for others is still theirs.
    instance = told["instances"][0]["name"]
    Instance(host.TRACEFS, instance).remove()
    os.unlink(f"/run/crashcart/traces/{instance}.json")
    (kept,) = fetch_here(tmp_path / "other", containers=[name], consume=False, **DEAD)
    assert kept["manifest"]["sha256"] == capture["manifest"]["sha256"]
    host.call_module("ftrace_instance", containers=[other], state="absent", **engine)
    assert host.list_instances() == []
    with pytest.raises(host.ModuleFailed, match="no container is called 'nonesuch'"):
        host.call_module("ftrace_info", containers=["nonesuch"], **engine)


@pytest.mark.parametrize("mode", ["ring", "record"])
def test_who_traces_is_told(container, monkeypatch, mode):
    name = container()
    ask = {"containers": [name], "mode": mode, "ttl": "1h"}

    def look():
        (one,) = host.call_module("ftrace_info", containers=[name], gather=["instances"])["instances"]
        return one

    with open("/proc/self/loginuid", encoding="ascii") as file:
        login = int(file.read())
    alice, bob = ("alice", "bob") if login == 2**32 - 1 else (pwd.getpwuid(login).pw_name,) * 2
    monkeypatch.setenv("SUDO_USER", "alice")
    (begun,) = host.call_module("ftrace_instance", **ask)["instances"]
    assert (begun["begun"]["user"], begun["begun"]["login"], begun["ended"]) == ("root", alice, None)
    assert abs(begun["begun"]["time"] - time.time()) < 60
    assert " by its ttl" in begun["summary"]
    monkeypatch.setenv("SUDO_USER", "bob")
    (changed,) = host.call_module("ftrace_instance", **{**ask, "errors_only": True})["instances"]
    assert changed["begun"] == begun["begun"] == look()["begun"]
    host.call_module("ftrace_instance", containers=[name], state="stopped")
    stopped = look()
    assert stopped["begun"] == begun["begun"]
    assert (stopped["ended"]["user"], stopped["ended"]["login"], stopped["stopped"]) == ("root", bob, None)
    assert stopped["ended"]["time"] >= begun["begun"]["time"]
    assert re.search(r"begun .* UTC by root.*, stopped .* UTC by root", stopped["summary"])
    # Who starts it again has begun it.
    (again,) = host.call_module("ftrace_instance", **{**ask, "ttl": "1s"})["instances"]
    assert (again["begun"]["login"], again["ended"]) == (bob, None)
    assert again["begun"]["time"] > stopped["ended"]["time"]
    host.wait_until(lambda: look()["state"] == "stopped")
    over = host.wait_until(lambda: (one := look())["stopped"] and one)
    assert (over["begun"], over["ended"]["user"]) == (again["begun"], None)
    assert re.search(r"stopped .* UTC: its ttl is over$", over["summary"])


def test_what_is_not_there_is_absent(container):
    name, untraced = container(), container()
    host.call_module("ftrace_instance", containers=[name])
    arguments = {"containers": ["nonesuch", untraced, name], "state": "absent"}
    with pytest.raises(host.ModuleFailed, match="no container is called 'nonesuch'"):
        host.call_module("ftrace_instance", **arguments, **DEAD)  # who does not answer may have one
    assert host.list_instances() != []
    result = host.call_module("ftrace_instance", **arguments)
    assert (result["changed"], result["failed_containers"], host.list_instances()) == (True, [], [])
    assert "nothing to do for 'nonesuch': no container here is called so" in str(result["warnings"])
    again = host.call_module("ftrace_instance", **arguments, allow_empty=True)
    assert (again["changed"], "warnings" in again) == (False, False)
    for module, more in (("ftrace_instance", {"state": "stopped"}), ("ftrace_info", {"gather": ["instances"]})):
        with pytest.raises(host.ModuleFailed, match="no container is called 'nonesuch'"):
            host.call_module(module, containers=["nonesuch"], **more)
        assert host.call_module(module, containers=["nonesuch"], allow_empty=True, **more)["instances"] == []
    assert host.call_module("ftrace_instance", containers=["nonesuch"], allow_empty=True)["instances"] == []


def test_a_container_that_ends_meanwhile_is_no_matter_where_only_a_glob_means_it(container):
    name, other = container(), container()
    engine = Host(os.environ["DOCKER_HOST"])
    refresh = engine.refresh

    def refresh_later(one):
        if one.name == other:
            host.docker("kill", other, check=False)
        return refresh(one)

    engine.refresh = refresh_later

    def select(*patterns):
        parameters = {"containers": patterns, "labels": None, "query": None, "allow_empty": False, "docker_host": None}
        return [one.name for one in options.select(SimpleNamespace(params=parameters), engine, required=True)]

    assert select("cc-test-*") == [name]
    assert other in select(other, name)  # whoever named it is told that it does not run


def test_a_cursor_ahead_of_the_clock_loses_nothing(worker, tmp_path):
    host.call_module("ftrace_instance", containers=[worker], syscalls=["openat"])
    run_workload(worker)
    captures = fetch_here(tmp_path, containers=[worker], cursor="9" * 20)
    assert [one["manifest"]["entries"] for one in captures] == [600]


def test_what_was_recorded_before_a_change_is_reported(worker, tmp_path):
    host.call_module("ftrace_instance", containers=[worker], syscalls=["openat"])
    run_workload(worker)
    host.call_module("ftrace_instance", containers=[worker], syscalls=["write"])
    run_workload(worker)
    fetch_here(tmp_path, containers=[worker])
    (summary,) = report(tmp_path, tmp_path / "report")
    counted = count(summary)
    assert {name: one["calls"] for name, one in counted.items()} == {
        name: WORKLOAD[name][0] for name in ("openat", "write")
    }


def test_stacks_have_names(worker, tmp_path):
    event = {"name": "syscalls:sys_enter_connect", "triggers": ["stacktrace"]}
    host.call_module("ftrace_instance", containers=[worker], events=[event])
    run_workload(worker)
    arguments = {"containers": [worker], "dest": str(tmp_path), "format": "text"}
    (capture,) = host.ad_hoc("localhost", "ftrace_fetch", arguments)["captures"]
    said = host.run("trace-cmd", "report", capture["path"]).stdout
    stacks = [re.findall(r"=> (\S+) \(", one) for one in said.split("kernel_stack:")[1:]]
    assert len(stacks) == WORKLOAD["connect"][0] and all("do_syscall_64" in stack for stack in stacks)
    text = Path(capture["path"]).with_suffix(".txt").read_text()
    ours = [re.findall(r"(\S+)\+0x[0-9a-f]+", line) for line in re.findall("kernel_stack: (.*)", text)]
    assert ours == stacks


def test_calls_that_wait_while_a_trace_is_fetched_are_counted_once(container, tmp_path):
    program = (
        "import os, time\nwhile not os.path.exists('/go'): time.sleep(0.01)\n"
        "for _number in range(40): time.sleep(0.1)\nos.open('/done', os.O_CREAT)\ntime.sleep(1000)"
    )
    name = container("python", "/usr/bin/python3", "-S", "-c", program)
    host.wait_until(lambda: host.read_state(host.find_pid(name)) == "S")
    host.call_module("ftrace_instance", containers=[name], syscalls=["clock_nanosleep", "openat"], compat=False)
    host.docker("exec", name, "/usr/bin/python3", "-c", "open('/go', 'w')")
    root = f"/proc/{host.find_pid(name)}/root"
    rounds = 0
    while not os.path.exists(f"{root}/done"):
        fetch_here(tmp_path, containers=[name])
        rounds += 1
    fetch_here(tmp_path, containers=[name])
    assert rounds > 5
    rows = [
        (number, row)
        for number, capture in enumerate(report(tmp_path, tmp_path / "report"))
        for row in capture["processes"]
        if row["syscall"] == "clock_nanosleep" and row["container_pid"] == 1
    ]
    waits = sum(row["calls"] - (row["continued"] if number else 0) for number, row in rows)
    unfinished = sum(row["unfinished"] for _number, row in rows)
    assert unfinished > 5
    # Those before the word to go are not known, but there is one for each end, and one that began before the trace.
    ended = sum(row["calls"] - row["unfinished"] for _number, row in rows)
    assert waits == ended + 1
