# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks that have to pass with every kernel: the machine's own in the integration tests, and the guests' in the fleet's tests."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from pathlib import Path
from typing import Any, Protocol

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.events import gen_event_blocks
from support import compat_program, host, images, matrix
from support.workload_counts import COUNTS


class Machine(Protocol):
    """A host with containers, seen from the controller."""

    def run(self, command: str, stdin: bytes = b"") -> str:
        """Run the shell command COMMAND as root and return its output."""

    def call(self, module: str, **arguments: Any) -> dict[str, Any]:
        """Return the result of a module of the collection. Raises ModuleFailed or AssertionError when it fails."""

    def fetch(self, dest: Path, **selection: Any) -> list[dict[str, Any]]:
        """Return the captures of ftrace_fetch, whose files are in DEST on the controller."""


def wait_for_worker(machine: Machine, worker: str) -> None:
    """Wait until workload.py in container WORKER waits for signals."""
    machine.run(_make_wait(worker, "ready", "0"))


def run_workload(machine: Machine, worker: str) -> None:
    """Run one round of the workload in container WORKER and wait for its end."""
    # One command does all, since each command costs an emulated machine half a second.
    begin = f"rounds=$(docker logs {worker} | grep -c done); docker kill --signal USR1 {worker} || exit"
    machine.run(f"{begin}; {_make_wait(worker, 'done', '$rounds')}")


def _make_wait(worker: str, word: str, count: str) -> str:
    """Return a command that waits until container WORKER has logged WORD more than COUNT times, for a minute at most."""
    condition = f"[ $(docker logs {worker} | grep -c {word}) -gt {count} ]"
    return f"for try in $(seq 600); do {condition} && break; sleep 0.1; done; {condition}"


def report(src: Path, dest: Path) -> list[dict[str, Any]]:
    """Run ftrace_report on SRC, write the report to DEST, and return the captures in its summary."""
    host.call_module("ftrace_report", src=str(src), dest=str(dest))
    captures: list[dict[str, Any]] = json.loads((dest / "summary.json").read_text(encoding="utf-8"))["captures"]
    return captures


def count(capture: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return calls and errors per system call of all processes of CAPTURE."""
    calls: dict[str, dict[str, Any]] = {}
    for row in capture["processes"]:
        entry = calls.setdefault(row["syscall"], {"calls": 0, "errors": {}})
        entry["calls"] += row["calls"]
        for error, number in row["errors"].items():
            entry["errors"][error] = entry["errors"].get(error, 0) + number
    return calls


def check_exact_counts(machine: Machine, worker: str, folder: Path) -> None:
    """Check that a known workload is counted exactly, and that trace-cmd reads as many events as the report."""
    machine.call("ftrace_instance", containers=[worker], buffer_size="8MiB")
    run_workload(machine, worker)
    machine.call("ftrace_instance", containers=[worker], state="stopped")
    (capture,) = machine.fetch(folder, containers=[worker])
    assert (capture["manifest"]["complete"], capture["manifest"]["lost"]) == (True, 0)
    (summary,) = report(folder, folder / "report")
    counted = count(summary)
    for syscall, (calls, errors) in COUNTS.items():
        assert counted[syscall] == {"calls": calls, "errors": errors}, syscall
    text = subprocess.run(["trace-cmd", "report", capture["path"]], capture_output=True, text=True, check=True).stdout
    assert len(text.splitlines()) - 1 == summary["events"]


def check_filters(machine: Machine, worker: str, folder: Path) -> None:
    """Check that `syscalls` and `errors_only` are filters in the kernel: no other events are in the trace."""
    machine.call("ftrace_instance", containers=[worker], syscalls=["openat", "write"], errors_only=True)
    run_workload(machine, worker)
    machine.fetch(folder, containers=[worker])
    (summary,) = report(folder, folder / "report")
    _calls, errors = COUNTS["openat"]
    assert count(summary) == {"openat": {"calls": sum(errors.values()), "errors": errors}}


def check_loss(machine: Machine, worker: str, folder: Path) -> None:
    """Check that the capture of a ring that overflows has the exact number of lost events."""
    # The container is pinned to one CPU, so that this CPU's counter has all lost events.
    pid = machine.run(f"docker inspect -f '{{{{.State.Pid}}}}' {worker}").strip()
    machine.run(f"taskset -a -p 1 {pid}")
    machine.call("ftrace_instance", containers=[worker], buffer_size="8KiB")
    for _round in range(3):
        run_workload(machine, worker)
    machine.call("ftrace_instance", containers=[worker], state="stopped")
    statistics = machine.run(f"cat {host.TRACEFS}/instances/crashcart-*/per_cpu/cpu0/stats")
    overrun, entries = (
        int(re.search(rf"^{name}: (\d+)", statistics, re.M).group(1))  # type: ignore[union-attr]
        for name in ("overrun", "entries")
    )
    assert overrun > 0
    (capture,) = machine.fetch(folder, containers=[worker])
    manifest = capture["manifest"]
    assert (manifest["complete"], manifest["lost"], manifest["lost_exact"]) == (False, overrun, True)
    assert manifest["cpus"][0]["overrun"] == overrun
    (summary,) = report(folder, folder / "report")
    assert (summary["complete"], summary["lost"], summary["events"]) == (False, overrun, entries)
    assert f"INCOMPLETE: {overrun} events were lost" in (folder / "report" / "summary.txt").read_text()


def check_touched(machine: Machine, worker: str, folder: Path) -> None:
    """Check that a capture names others who read, clear or change the trace, and that the next capture does not repeat it."""
    machine.call("ftrace_instance", containers=[worker])
    run_workload(machine, worker)
    machine.run(
        f"cd {host.TRACEFS}/instances/crashcart-*; echo 0 > tracing_on; echo 1 > tracing_on; echo 1 > events/raw_syscalls/enable;"
        " head -n 1 trace_pipe > /dev/null; [ ! -e snapshot ] || echo 1 > snapshot; echo > trace"
    )
    run_workload(machine, worker)
    (capture,) = machine.fetch(folder, containers=[worker])
    reasons = "; ".join(capture["manifest"]["reasons"])
    for file in (
        "wrote to tracing_on",
        "wrote to events/raw_syscalls/enable",
        "opened trace_pipe",
        "cleared the trace",
    ):
        assert file in reasons, reasons
    run_workload(machine, worker)
    (capture,) = machine.fetch(folder / "again", containers=[worker])
    assert "trace_pipe" not in "; ".join(capture["manifest"]["reasons"])
    machine.call("ftrace_instance", containers=[worker], state="absent")


def check_executed(machine: Machine, worker: str, folder: Path) -> None:
    """Check that processes of `docker exec` are in the trace from their first call on, and that the runtime is not."""
    machine.call("ftrace_instance", containers=[worker])
    for _number in range(3):
        machine.run(f"docker exec {worker} /usr/bin/python3 -S -c 'import os; os.rmdir(\"/nonesuch\")' || true")
    (capture,) = machine.fetch(folder, containers=[worker])
    (summary,) = report(folder, folder / "report")
    assert {row["name"] for row in summary["processes"]} == {"python3"}
    looked = [row for row in summary["processes"] if row["syscall"] == "rmdir"]
    assert [row["errors"] for row in looked] == [{"ENOENT": 1}] * 3
    text = subprocess.run(["trace-cmd", "report", capture["path"]], capture_output=True, text=True, check=True).stdout
    assert "runc" not in text
    assert "containerd-shim" not in text


def check_32_bit_program(machine: Machine, worker: str, folder: Path) -> None:
    """Check that the calls of a 32-bit program have their own names from the first one on, whether all or some are recorded."""
    program = base64.b64encode(compat_program.make()).decode()
    machine.run(
        f"echo {program} | base64 -d >/tmp/compat && chmod 755 /tmp/compat && docker cp /tmp/compat {worker}:/compat"
    )
    machine.run("rm /tmp/compat")
    some = {name: compat_program.COUNTS[name] for name in ("open", "connect")}
    for number, (options, wanted) in enumerate(
        (({}, compat_program.COUNTS), ({"syscalls": ["open", "connect"]}, some))
    ):
        machine.call("ftrace_instance", containers=[worker], **options)
        machine.run(f"docker exec {worker} /compat")
        place = folder / str(number)
        machine.fetch(place, containers=[worker])
        (summary,) = report(place, place / "report")
        counted = count(
            {"processes": [row for row in summary["processes"] if row["name"] == "compat" and row["compat"]]}
        )
        # Its execve begins as a call of the runtime, which is left out, and ends as its own.
        rest_of_own = {name: counted.pop(name, None) for name in ("exit", "execve")}
        assert counted == wanted, (counted, rest_of_own)
        rest = {row["syscall"] for row in summary["processes"] if row["name"] == "compat" and not row["compat"]}
        assert rest <= {"execve"}, rest


def check_events(machine: Machine, worker: str, folder: Path) -> None:
    """Check events by name and glob, with a filter and a trigger: only this container's processes are in the trace."""
    write = {"name": "syscalls:sys_enter_write", "filter": "count == 1", "triggers": ["stacktrace"]}
    arguments = {"containers": [worker], "events": ["sched:sched_wak*", "syscalls:sys_enter_conn*", write]}
    machine.call("ftrace_instance", state="absent", containers=[worker])
    (made,) = machine.call("ftrace_instance", **arguments)["instances"]
    assert {"sched:sched_waking", "sched:sched_wakeup", "sched:sched_wakeup_new"} <= set(made["events"])
    assert "raw_syscalls:sys_enter" not in made["events"]
    assert not machine.call("ftrace_instance", **arguments)["changed"]
    run_workload(machine, worker)
    machine.fetch(folder, containers=[worker])
    (summary,) = report(folder, folder / "report")
    # The filter takes writes of one byte. The workload's last write is a word.
    writes = COUNTS["write"][0] - 1
    counts = summary["event_counts"]
    assert (counts["syscalls:sys_enter_write"], counts["syscalls:sys_enter_connect"]) == (writes, COUNTS["connect"][0])
    # A trigger also fires for events that the event's own filter leaves out: here for the word's write.
    assert counts["ftrace:kernel_stack"] in (writes, writes + 1)
    changed = machine.call("ftrace_instance", **{**arguments, "events": ["sched:sched_wak*"]})
    assert changed["changed"]
    assert changed["instances"][0]["triggers"] == {}


def check_triggers(machine: Machine, worker: str, folder: Path) -> None:
    """Check that the container's processes fire triggers, that the host's do not, and that triggers change the container's own trace."""
    remove = "/usr/bin/python3 -S -c 'import os; os.rmdir(\"/nonesuch\")' || true"
    event = {"name": "syscalls:sys_enter_rmdir", "triggers": ["traceoff:1", "enable_event:sched:sched_switch"]}
    machine.call("ftrace_instance", containers=[worker], events=[event])
    machine.run(f"{remove}; rmdir /nonesuch || true")
    (info,) = machine.call("ftrace_info", gather=["instances"], containers=[worker])["instances"]
    assert (info["state"], "sched:sched_switch" in info["events"]) == ("started", False)
    machine.run(f"docker exec {worker} {remove}")
    (info,) = machine.call("ftrace_info", gather=["instances"], containers=[worker])["instances"]
    assert (info["state"], "sched:sched_switch" in info["events"]) == ("stopped", True)
    # A trace that its trigger has stopped is changed again. The event that the trigger has enabled, and its exhausted count, are no
    # differences. A trace that is started again counts from the beginning.
    assert machine.call("ftrace_instance", containers=[worker], events=[event])["changed"]
    assert not machine.call("ftrace_instance", containers=[worker], events=[event])["changed"]
    machine.run(f"docker exec {worker} {remove}")
    (info,) = machine.call("ftrace_info", gather=["instances"], containers=[worker])["instances"]
    assert info["state"] == "stopped"
    offered = machine.run(f"cat {host.TRACEFS}/events/sched/sched_waking/trigger")
    hist = {"name": "sched:sched_waking", "triggers": ["hist:keys=pid"]}
    if "hist" in offered:
        machine.call("ftrace_instance", containers=[worker], events=[hist])
        assert not machine.call("ftrace_instance", containers=[worker], events=[hist])["changed"]
    else:
        assert "CONFIG_HIST_TRIGGERS" in refuse(machine, containers=[worker], events=[hist])
    machine.call("ftrace_instance", containers=[worker], state="absent")


def check_refusals(machine: Machine, worker: str, folder: Path) -> None:
    """Check that a refusal of the kernel is reported in its own words, and leaves no instance."""
    bad_filter = {"name": "sched:sched_switch", "filter": "nonesuch == 1"}
    bad_trigger = {"name": "sched:sched_switch", "triggers": ["stacktrace if nonesuch == 1"]}
    for options, wanted in (
        ({"events": [bad_filter]}, "Field not found in .*nonesuch ?<here> ?== 1"),
        ({"events": [bad_trigger]}, "Field not found in .*nonesuch ?<here> ?== 1"),
        ({"events": ["sched:sched_swich"]}, "near ones: sched:sched_switch"),
        ({"syscalls": ["opnat"]}, "near ones: openat"),
    ):
        said = refuse(machine, containers=[worker], **options)
        assert re.search(wanted, said)
        assert "containerd-shim" not in said  # the filter that the module has added to the user's
    assert machine.run(f"ls {host.TRACEFS}/instances | grep crashcart || true") == ""


def refuse(machine: Machine, **arguments: Any) -> str:
    """Call ftrace_instance, check that it fails, and return its message."""
    try:
        machine.call("ftrace_instance", **arguments)
    except (host.ModuleFailed, AssertionError) as error:
        return str(error)
    raise AssertionError("it did not fail")


def check_tracers(machine: Machine, worker: str, folder: Path) -> None:
    """Check that functions of the kernel can be traced, or that the module gives the reason before it changes anything."""
    machine.call("ftrace_instance", containers=[worker], state="absent")
    tracers = machine.run(f"cat {host.TRACEFS}/available_tracers").split()
    wish = {"containers": [worker], "tracer": "function", "functions": ["vfs_*"], "notrace": ["vfs_fsync*"]}
    if machine.run(f"head -c 1 {host.TRACEFS}/available_filter_functions || true"):
        assert "near ones: vfs_write" in refuse(machine, **{**wish, "functions": ["vfs_writ"]})
        (made,) = machine.call("ftrace_instance", **wish)["instances"]
        assert (made["tracer"], "raw_syscalls:sys_enter" in made["events"]) == ("function", False)
        assert not machine.call("ftrace_instance", **wish)["changed"]
        run_workload(machine, worker)
        machine.run("rmdir /nonesuch || true")
        (capture,) = machine.fetch(folder, containers=[worker])
        (summary,) = report(folder, folder / "report")
        # The workload writes to a device, and at last to the log. Both writes are the same function.
        assert summary["functions"]["vfs_write"] == COUNTS["write"][0]
        assert "vfs_rmdir" not in summary["functions"]
        assert sum(summary["functions"].values()) == summary["event_counts"]["ftrace:function"]
        text = subprocess.run(
            ["trace-cmd", "report", capture["path"]], capture_output=True, text=True, check=True
        ).stdout
        lines = [line for line in text.splitlines() if " function: " in line]
        assert len(lines) == summary["event_counts"]["ftrace:function"]
        assert sum(bool(re.search(r" function: +vfs_write(\s|$)", line)) for line in lines) == COUNTS["write"][0]
    else:
        assert "functions cannot be traced on this host" in refuse(machine, **wish)
    for tracer, option in (
        ("function_graph", "GRAPH_TRACER"),
        ("irqsoff", "IRQSOFF_TRACER"),
        ("wakeup", "SCHED_TRACER"),
    ):
        if tracer not in tracers:
            assert option in refuse(machine, containers=[worker], tracer=tracer)
    if "function_graph" in tracers:
        wish = {"containers": [worker], "tracer": "function_graph", "functions": ["vfs_write"]}
        if _read_version(machine) < (6, 11):
            assert "before Linux 6.11" in refuse(machine, **wish)
        else:
            (made,) = machine.call("ftrace_instance", **wish)["instances"]
            assert made["tracer"] == "function_graph"
            run_workload(machine, worker)
            (capture,) = machine.fetch(folder / "graph", containers=[worker])
            (summary,) = report(folder / "graph", folder / "graph-report")
            assert summary["functions"]["vfs_write"] == COUNTS["write"][0]
    assert "are for the tracers" in refuse(machine, containers=[worker], functions=["vfs_write"])
    machine.call("ftrace_instance", containers=[worker], state="absent")
    assert machine.run(f"cat {host.TRACEFS}/current_tracer; ls {host.TRACEFS}/instances").split() == ["nop"]


def _read_version(machine: Machine) -> tuple[int, ...]:
    """Return the first two numbers of the kernel's version."""
    return tuple(map(int, machine.run("uname -r").split(".")[:2]))


def check_denials(machine: Machine, worker: str, folder: Path) -> None:
    """Check that calls that the container's seccomp filter denies are counted as denied, also where no other calls are recorded."""
    machine.call("ftrace_instance", containers=[worker], syscalls=["clock_settime"])
    attempt = "import time; time.clock_settime(0, 1)"
    machine.run(f"! docker exec {worker} /usr/bin/python3 -S -c '{attempt}' 2>/dev/null")
    machine.fetch(folder, containers=[worker])
    (summary,) = report(folder, folder / "report")
    rows = [(row["syscall"], row["calls"], row["errors"], row["denied"]) for row in summary["programs"]]
    assert rows == [("clock_settime", 1, {"EPERM": 1}, {"EPERM": 1})]


def check_profiles(machine: Machine, worker: str, folder: Path) -> None:
    """Check that every profile can be used, and records the events that it is for."""
    # Profile → an event, or a system call with "()", that the workload or an exec must have left.
    wanted = {
        "errors": "connect()",
        "syscalls": "write()",
        "files": "openat()",
        "network": "socket()",
        "sched": "sched:sched_switch",
        "exec": "sched:sched_process_exit",
        "memory": "mmap()",
        "startup": "openat()",
        "diagnose": "connect()",
    }
    for profile, sign in wanted.items():
        machine.call("ftrace_instance", containers=[worker], profile=profile)
        run_workload(machine, worker)
        machine.run(f"docker exec {worker} /usr/bin/python3 -S -c ''")
        place = folder / profile
        machine.fetch(place, containers=[worker])
        (summary,) = report(place, place / "report")
        calls = {f"{row['syscall']}()" for row in summary["programs"]}
        assert sign in {*calls, *summary["event_counts"]}, (profile, summary["event_counts"])
        if profile == "errors":
            interrupted = sum(sum(row["interrupted"].values()) for row in summary["programs"])
            assert sum(row["calls"] for row in summary["programs"]) == sum(summary["errors"].values()) + interrupted
        machine.call("ftrace_instance", containers=[worker], state="absent")


LIBC = "/lib/x86_64-linux-gnu/libc.so.6"
# Each of these probes sees the workload's 300 calls of openat, of which 100 fail.
PROBES: tuple[dict[str, Any], ...] = (
    {"type": "uprobe", "binary": LIBC, "symbol": "open64", "arguments": {"path": "+0(%di):ustring"}},
    {"type": "uretprobe", "binary": LIBC, "symbol": "open64", "arguments": {"result": "$retval:s32"}},
    {"type": "kprobe", "function": "do_sys_openat2", "arguments": {"path": "+0($arg2):ustring"}},
    {"type": "kretprobe", "function": "do_sys_openat2", "arguments": {"result": "$retval:s32"}},
    {"type": "eprobe", "event": "syscalls:sys_enter_openat", "arguments": {"path": "+0($filename):ustring"}},
)


def list_probes(machine: Machine) -> str:
    """Return the kernel's lists of probes."""
    return machine.run(f"cat {host.TRACEFS}/dynamic_events {host.TRACEFS}/[ku]probe_events 2>/dev/null || true")


def read_texts(path: str, event: str, name: str) -> list[tuple[int, int, str]]:
    """Return time, thread and the field NAME of every EVENT of the capture PATH, sorted, by the collection's decoder."""
    rows: list[tuple[int, int, str]] = []
    with open(path, "rb") as file:
        trace = Trace(file)
        # An earlier probe of the same name may be in the capture, too.
        fields = {known.id: known.field(name) for known in trace.formats.values() if known.name == event}
        assert fields
        for block in gen_event_blocks(trace, {}):
            for number, field in fields.items():
                events = block.select(number)
                read = block.texts if field.is_dynamic else block.integers
                values = map(str, read(events, field))
                rows += zip(block.times[events].tolist(), block.tids[events].tolist(), values)
    return sorted(rows)


def read_texts_by_trace_cmd(path: str, event: str, name: str) -> list[tuple[int, int, str]]:
    """Return time, thread and the field NAME of every EVENT of the capture PATH, sorted, by trace-cmd."""
    text = subprocess.run(["trace-cmd", "report", "-t", path], capture_output=True, text=True, check=True).stdout
    pattern = re.compile(rf" *.*-(\d+) +\[\d+\].* (\d+)\.(\d{{9}}): +{event}: .*\b{name}=\"?([^\"]*?)\"?$", re.M)
    return sorted((int(line[2] + line[3]), int(line[1]), line[4]) for line in pattern.finditer(text))


def check_probes(machine: Machine, worker: str, folder: Path) -> None:
    """Check that every type of probe of the kernel sees each call once, and that a missing type is refused with the kernel's option."""
    machine.call("ftrace_instance", containers=[worker], state="absent")
    features = {one["name"]: one["ok"] for one in machine.call("ftrace_info", gather=["features"])["features"]}
    wanted = []
    for probe in ({"name": f"my_{probe['type']}", **probe} for probe in PROBES):
        kind = probe["type"].replace("ret", "")
        if features[f"{kind}s"]:
            wanted.append(probe)
        else:
            assert f"CONFIG_{kind.upper()}_EVENTS" in refuse(machine, containers=[worker], probes=[probe])
    assert wanted
    assert list_probes(machine) == ""
    names = sorted(probe["name"] for probe in wanted)
    calls, errors = COUNTS["openat"]
    (made,) = machine.call("ftrace_instance", containers=[worker], probes=wanted)["instances"]
    assert not machine.call("ftrace_instance", containers=[worker], probes=wanted)["changed"]
    assert (sorted(made["probes"]), "raw_syscalls:sys_enter" in made["events"]) == (names, False)
    run_workload(machine, worker)
    machine.run("cat /etc/hostname")
    (capture,) = machine.fetch(folder / "all", containers=[worker])
    for probe in wanted:
        (field,) = probe["arguments"]
        rows = read_texts(capture["path"], probe["name"], field)
        assert rows == read_texts_by_trace_cmd(capture["path"], probe["name"], field)
        values = [value for _time, _tid, value in rows]
        failed = [value for value in values if value.startswith("/nonesuch/") or value in ("-1", "-2")]
        assert (len(values), len(failed)) == (calls, errors["ENOENT"]), probe
    # A filter uses the probe's own arguments. Another filter does not make another probe.
    before = list_probes(machine)
    filters = {"result": "result < 0", "path": 'path ~ "/nonesuch/*"'}
    filtered = [{**probe, "filter": filters[next(iter(probe["arguments"]))]} for probe in wanted]
    assert machine.call("ftrace_instance", containers=[worker], probes=filtered)["changed"]
    assert list_probes(machine) == before
    run_workload(machine, worker)
    (capture,) = machine.fetch(folder / "filtered", containers=[worker])
    for probe in wanted:
        (field,) = probe["arguments"]
        assert len(read_texts(capture["path"], probe["name"], field)) == errors["ENOENT"], probe
    # A refusal of the kernel is reported in its own words, and changes nothing.
    for probe in wanted:
        said = refuse(machine, containers=[worker], probes=[{**probe, "arguments": {"x": "+0(%nonesuch):u8"}}])
        assert re.search("refuses the probe .*Invalid argument; it says: .*nonesuch", said), said
    bad = {**wanted[0], "filter": "nonesuch == 1"}
    assert re.search("Field not found in .*nonesuch ?<here> ?== 1", refuse(machine, containers=[worker], probes=[bad]))
    assert list_probes(machine) == before
    (left,) = machine.call("ftrace_info", gather=["instances"], containers=[worker])["instances"]
    assert sorted(left["probes"]) == names
    machine.call("ftrace_instance", containers=[worker], state="absent")
    assert list_probes(machine) == ""


def check_paths(machine: Machine, worker: str, folder: Path) -> None:
    """Check that every way of the kernel records the paths of failing calls, and that the best way is chosen and named."""
    ways = find_ways_to_paths(machine)
    wish = {"containers": [worker], "paths": True, "buffer_size": "8MiB"}
    best, *others = [way for way, is_there in ways.items() if is_there]
    (made,) = machine.call("ftrace_instance", **wish)["instances"]
    assert made["paths"]["by"] == best
    for worse in list(ways)[: list(ways).index(best)]:
        assert f"{worse}: the kernel" in made["paths"]["why"]
        assert f"cannot be recorded on this host: {worse}: the kernel" in refuse(machine, **wish, paths_by=worse)
    assert not machine.call("ftrace_instance", **wish)["changed"]
    check_paths_of_workload(machine, worker, folder / "best", made["paths"])
    for way in others:
        (changed,) = machine.call("ftrace_instance", **wish, paths_by=way)["instances"]
        assert changed["paths"]["by"] == way
        check_paths_of_workload(machine, worker, folder / way, changed["paths"])
    # Only recorded calls have paths, and none where none of these calls takes a path.
    (some,) = machine.call("ftrace_instance", **wish, syscalls=["unlink"])["instances"]
    assert not [event for event in (*some["probes"], *some["events"]) if "open" in event]
    said = refuse(machine, **wish, syscalls=["connect"])
    assert "none of the system calls to record takes a path" in said
    machine.call("ftrace_instance", containers=[worker], state="absent")
    assert list_probes(machine) == ""


def find_ways_to_paths(machine: Machine) -> dict[str, bool]:
    """Return for each way to record paths whether the kernel has it, the best way first."""
    features = {one["name"]: one["ok"] for one in machine.call("ftrace_info", gather=["features"])["features"]}
    opening = machine.run(f"cat {host.TRACEFS}/events/syscalls/sys_enter_openat/format")
    return {
        "event": "__data_loc char[] __filename_val" in opening,
        **{way: features[f"{way}s"] for way in ("eprobe", "kprobe", "uprobe")},
    }


def check_paths_where_they_slow_nobody(machine: Machine, worker: str, folder: Path) -> None:
    """Check that paths=auto uses no probes of programs: without another way the trace starts without paths, and says why."""
    ways = find_ways_to_paths(machine)
    best = next((way for way, is_there in ways.items() if is_there and way != "uprobe"), None)
    wish = {"containers": [worker], "paths": "auto", "buffer_size": "8MiB"}
    (made,) = machine.call("ftrace_instance", **wish)["instances"]
    plan = made["paths"]
    assert plan["by"] == best
    assert not machine.call("ftrace_instance", **wish)["changed"]
    if best is not None:
        check_paths_of_workload(machine, worker, folder / "auto", plan)
    else:
        assert list_probes(machine) == ""
        assert ["eprobe: the kernel" in plan["why"], "openat" in plan["missing"]] == [True, True]
        run_workload(machine, worker)
        (capture,) = machine.fetch(folder / "auto", containers=[worker])
        assert capture["manifest"]["specification"]["paths"] == plan
        (summary,) = report(folder / "auto", folder / "auto-report")
        assert not any(row["paths"] for row in summary["programs"])
    # No probe is set where no recorded call takes a path.
    (some,) = machine.call("ftrace_instance", **wish, syscalls=["connect"])["instances"]
    assert (some["paths"]["by"], some["probes"]) == (None, {})
    (some,) = machine.call("ftrace_instance", **wish, events=["sched:sched_process_exit"])["instances"]
    assert (some["paths"]["by"], some["probes"]) == (None, {})
    assert "paths=auto never uses probes of programs" in refuse(machine, **wish, paths_by="uprobe")
    machine.call("ftrace_instance", containers=[worker], state="absent")
    assert list_probes(machine) == ""


def check_paths_of_workload(machine: Machine, worker: str, folder: Path, plan: dict[str, Any]) -> None:
    """Check the paths of one round of the workload, which are recorded by PLAN."""
    run_workload(machine, worker)
    (capture,) = machine.fetch(folder, containers=[worker])
    assert capture["manifest"]["specification"]["paths"] == plan
    (summary,) = report(folder, folder / "report")
    calls, errors = COUNTS["openat"]
    assert count(summary)["openat"] == {"calls": calls, "errors": errors}
    (row,) = (row for row in summary["programs"] if row["syscall"] == "openat")
    # The workload opens each path once. The row has ten of them.
    assert [use["errors"] for use in row["paths"]] == [{"ENOENT": 1}] * 10, (plan, row["paths"])
    assert all(re.fullmatch(r"/nonesuch/\d+", use["path"]) for use in row["paths"]), row["paths"]
    (connecting,) = (row for row in summary["programs"] if row["syscall"] == "connect")
    assert connecting["paths"] == []
    text = (folder / "report" / "summary.txt").read_text()
    assert "  paths of calls that failed:\n    python3 openat '/nonesuch/" in text


def check_what_is_missing_is_named(machine: Machine, worker: str, folder: Path) -> None:
    """Check that exactly the features of the kernel are reported as present, and that reasons name the kernel's option."""
    features = {one["name"]: one for one in machine.call("crashcart_info", gather=["features"])["features"]}
    tracers = machine.run(f"cat {host.TRACEFS}/available_tracers").split()
    there = machine.run(
        f"grep -o -m1 eprobe_dyn_event_create /proc/kallsyms; cd {host.TRACEFS}; "
        "ls -d kprobe_events uprobe_events snapshot events/sched/sched_switch/hist || true"
    )
    for name, is_there, option in (
        ("kprobes", "kprobe_events" in there, "CONFIG_KPROBE_EVENTS"),
        ("eprobes", "eprobe_dyn_event_create" in there, "CONFIG_EPROBE_EVENTS"),
        ("uprobes", "uprobe_events" in there, "CONFIG_UPROBE_EVENTS"),
        ("hist_triggers", "hist" in there, "CONFIG_HIST_TRIGGERS"),
        ("snapshot", "snapshot" in there, "CONFIG_TRACER_SNAPSHOT"),
        ("function_graph", "function_graph" in tracers, "CONFIG_FUNCTION_GRAPH_TRACER"),
    ):
        assert features[name]["ok"] == is_there, name
        assert (option in features[name]["reason"]) == (not is_there), name
    of_traces = {one["name"]: one for one in machine.call("ftrace_info", gather=["features"])["features"]}
    assert of_traces == {**of_traces, **{name: one for name, one in features.items() if name in of_traces}}
    can_be_read = machine.run(f"head -c 1 {host.TRACEFS}/available_filter_functions || true") != ""
    assert of_traces["function"]["ok"] == can_be_read
    assert ("Operation not permitted" in of_traces["function"]["reason"]) == (not can_be_read)
    for tracer, option in (("irqsoff", "CONFIG_IRQSOFF_TRACER"), ("wakeup", "CONFIG_SCHED_TRACER")):
        assert (tracer in of_traces) == (tracer not in tracers)
        assert tracer in tracers or option in of_traces[tracer]["reason"]


def check_starts(machine: Machine, worker: str, folder: Path) -> None:
    """Check that a trace that awaits starts of a container, even of a stopped one, has each start from the first program on."""
    features = {one["name"]: one["ok"] for one in machine.call("ftrace_info", gather=["features"])["features"]}
    has_paths = features["eprobes"] or features["kprobes"]  # probes of its C library do not follow a start
    machine.run(f"docker stop -t 0 {worker}")
    wish = {"containers": [worker], "profile": "startup", "buffer_size": "4MiB", "paths": has_paths}
    (made,) = machine.call("ftrace_instance", **wish)["instances"]
    assert (made["followed"]["restarts"], made["followed"]["exec"], made["pids"]) == (True, "descent", 0)
    for command in ("start", "restart -t 0"):
        start = f"before=$(docker logs {worker} | grep -c ready); docker {command} {worker} || exit"
        machine.run(f"{start}; {_make_wait(worker, 'ready', '$before')}")
        here = folder / command.partition(" ")[0]
        machine.fetch(here, containers=[worker])
        (summary,) = report(here, here / "report")
        assert summary["complete"]
        first = {row["syscall"]: row for row in summary["processes"] if row["container_pid"] == 1}
        assert first["execve"]["name"] == "python3" and first["openat"]["calls"] > 5
        paths = {use["path"] for row in summary["programs"] if row["syscall"] == "openat" for use in row["paths"]}
        assert ("/etc/ld.so.cache" in paths) == has_paths, paths
    machine.call("ftrace_instance", containers=[worker], state="absent")


def check_rules(machine: Machine, worker: str, folder: Path) -> None:
    """Check that a rule traces containers that did not exist, and live for a moment only, from their first instruction on."""
    image, python = machine.run(f"docker inspect -f '{{{{.Config.Image}}}} {{{{.Path}}}}' {worker}").split()
    machine.call("ftrace_instance", state="awaiting", rule="ruled", containers=["ruled-*"], paths=False)
    for number in range(3):
        new = f"docker run --rm --network none --volumes-from {worker} --name ruled-{number} {image}"
        machine.run(f"""{new} {python} -c 'open("/nonesuch/ruled")'; [ $? = 1 ]""")
    found = {capture["manifest"]["container"]["name"]: capture for capture in machine.fetch(folder)}
    caught = {name: capture for name, capture in found.items() if name.startswith("ruled-")}
    assert caught.keys() == {f"ruled-{number}" for number in range(3)}
    for capture in caught.values():
        assert capture["manifest"]["complete"], capture["manifest"]["reasons"]
        text = subprocess.run(
            ["trace-cmd", "report", capture["path"]], capture_output=True, text=True, check=True
        ).stdout
        lines = [line for line in text.splitlines() if " [0" in line]
        assert "sched_process_exec" in lines[0], lines[:3]
        assert any(line.endswith("= -2") for line in lines), lines
    machine.call("ftrace_instance", state="absent", rule="ruled")


# In this order all checks can use one container: a check may leave an instance and a pinned process.
CHECKS = (
    check_what_is_missing_is_named,
    check_refusals,
    check_exact_counts,
    check_filters,
    check_executed,
    check_touched,
    check_32_bit_program,
    check_events,
    check_triggers,
    check_tracers,
    check_probes,
    check_paths,
    check_paths_where_they_slow_nobody,
    check_denials,
    check_profiles,
    check_loss,
    check_starts,
    check_rules,
)


def check_all(machine: Machine, image: str, folder: Path) -> None:
    """Run all checks on MACHINE by its Docker, in a container of IMAGE that uses the machine's own Python. FOLDER is for captures."""
    machine.run("cat >/root/workload.py", Path(images.WORKLOAD).read_bytes())
    shared = " ".join(f"-v {path}:{path}:ro" for path in ("/usr", "/lib", "/lib64"))
    machine.run(
        f"docker run -d --name worker --network none {shared} -v /root/workload.py:/workload.py:ro "
        f"{image} /usr/bin/python3 /workload.py"
    )
    wait_for_worker(machine, "worker")
    for check in CHECKS:
        check(machine, "worker", folder / check.__name__)
    machine.call("ftrace_instance", containers=["worker"], state="absent")
    machine.run("docker rm -f worker")
    _note_features(machine)


def _note_features(machine: Machine) -> None:
    """Note what the kernel of MACHINE can do, and why not more, as the checks have seen it."""
    features = machine.call("crashcart_info", gather=["features"])["features"]
    column = f"Linux {'.'.join(map(str, _read_version(machine)[:2]))}"
    seen = [("kernels", column, f"`{one['name']}`", matrix.WORKS if one["ok"] else one["reason"]) for one in features]
    matrix.write(seen)
