# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reports count the calls that strace counts, and a capture is read as trace-cmd reads it, field by field."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import compat_program, every_kernel, host
from support.fetching import fetch_here
from support.peers import list_lines, read_ours, read_theirs

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.events import gen_event_blocks

WORK = """
import os, threading
def work():
    for _number in range(25): os.access('/nonesuch', 0)
    for _number in range(10):
        try: os.close(99)
        except OSError: pass
"""
THREADS = """
threads = [threading.Thread(target=work) for _number in range(6)]
[one.start() for one in threads]; [one.join() for one in threads]
# A joined thread may still be unmapping its stack. If the process ended then, that call would have an exit that the kernel traces and strace
# does not see.
while len(os.listdir('/proc/self/task')) > 1: pass
"""
FORKS = """
for _number in range(5):
    child = os.fork()
    if child == 0: work(); os._exit(0)
    os.waitpid(child, 0)
"""
PROGRAMS = {
    "single": ["/usr/bin/python3", "-S", "-E", "-c", WORK + "work()"],
    "threads": ["/usr/bin/python3", "-S", "-E", "-c", WORK + THREADS],
    "forks": ["/usr/bin/python3", "-S", "-E", "-c", WORK + FORKS],
    "compat": ["/compat"],
}
SCHED = {
    "sched:sched_switch": ("prev_pid", "prev_prio", "prev_state", "next_pid", "next_prio"),
    "sched:sched_waking": ("pid", "prio", "target_cpu"),
    "raw_syscalls:sys_exit": ("id", "ret"),
}


def parse_strace(text):
    """Calls and errors by name from all tables of strace -c: it has one for each architecture."""
    table = {}
    for words in (line.split() for line in text.splitlines()):
        if len(words) in (2, 3) and words[0].isidentifier() and all(word.isdigit() for word in words[1:]):
            calls, errors = table.get(words[0], (0, 0))
            table[words[0]] = (calls + int(words[1]), errors + int(words[2] if len(words) == 3 else 0))
    table.pop("total", None)
    return table


@pytest.mark.parametrize("program", PROGRAMS)
def test_strace_counts_what_we_count(container, tmp_path, program):
    name = container("python")
    path = tmp_path / "compat"
    path.write_bytes(compat_program.make())
    path.chmod(0o755)
    host.docker("cp", str(path), f"{name}:/compat")
    # Both look at one run of the program: strace is in the trace, too, by its own name.
    host.call_module("crashcart_attach", containers=[name])
    host.call_module("ftrace_instance", containers=[name], buffer_size="8MiB")
    strace = ["/dev/crashcart/bin/strace", "-f", "-c", "-U", "name,calls,errors"]
    theirs = parse_strace(host.run("docker", "exec", name, *strace, *PROGRAMS[program]).stderr)
    (capture,) = fetch_here(tmp_path, containers=[name])
    assert capture["manifest"]["complete"]
    (summary,) = every_kernel.report(tmp_path, tmp_path / "report")
    pid = host.find_pid(name)
    own = [row for row in summary["processes"] if row["pids"] != [pid] and row["name"] in ("python3", "compat")]
    counted = every_kernel.count({"processes": own})
    ours = {syscall: (one["calls"], sum(one["errors"].values())) for syscall, one in counted.items()}
    # strace counts what comes back.
    for syscall in ("exit", "exit_group"):
        ours.pop(syscall, None)
    assert len(theirs) >= 5
    assert ours == theirs


def test_trace_cmd_reads_the_same_fields(container, tmp_path):
    name = container("python")
    every_kernel.wait_for_worker(every_kernel_here, name)
    (made,) = host.call_module("ftrace_instance", containers=[name], syscalls=["*"], events=["sched:sched_*"])[
        "instances"
    ]
    every_kernel.run_workload(every_kernel_here, name)
    words = [f"word {number} of the application" for number in range(20)]
    marker = Path(host.TRACEFS, "instances", made["name"], "trace_marker")
    for word in words:
        marker.write_text(word)
    (capture,) = fetch_here(tmp_path, containers=[name])
    lines = list_lines(capture["path"])
    for event, fields in SCHED.items():
        ours = read_ours(capture["path"], event, fields)
        assert len(ours) > 3, event  # how often a thread is woken depends on the machine
        assert ours == read_theirs(lines, event, fields), event
    with open(capture["path"], "rb") as file:
        trace = Trace(file)
        known = trace.formats["ftrace:print"]
        found = [
            block.text(event, known.field("buf")).strip()
            for block in gen_event_blocks(trace, capture["manifest"])
            for event in block.select(known.id).tolist()
        ]
    assert sorted(found) == sorted(words)
    assert [word for word in words if not any(word in line for line in lines)] == []
    (summary,) = every_kernel.report(tmp_path, tmp_path / "report")
    assert sum(summary["event_counts"].values()) == len(lines) - 1


class Here:
    """This machine, as much of it as a workload needs."""

    def run(self, command):
        return host.run("sh", "-c", command).stdout


every_kernel_here = Here()
