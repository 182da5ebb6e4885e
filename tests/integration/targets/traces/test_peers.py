# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that trace-cmd makes, of our captures and of its own, are read as it reads them; a bad one is named, and the playbook goes on.

What `trace-cmd record` writes is in tests/fleet: this machine's kernel refuses it.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from support import every_kernel, host, peers
from support.fetching import fetch_here

from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import machines

INSTANCES = {
    "peer-calls": ("sched:sched_switch", "sched:sched_waking", "raw_syscalls:sys_enter", "raw_syscalls:sys_exit"),
    "peer-files": (
        *("syscalls:sys_enter_openat", "syscalls:sys_exit_openat", "sock:inet_sock_set_state"),
        *("sched:sched_process_fork", "sched:sched_process_exec", "sched:sched_process_exit"),
    ),
}
CONVERSIONS = {
    "version 6": ("--file-version", "6"),
    "version 7, plain": ("--file-version", "7", "--compression", "none"),
    "version 7, zstd": ("--file-version", "7", "--compression", "zstd"),
}


def extract(path, clock):
    """Have trace-cmd extract INSTANCES, which were traced by CLOCK, to PATH."""
    places = {name: Path(host.TRACEFS, "instances", name) for name in INSTANCES}
    try:
        for name, place in places.items():
            place.mkdir()
            (place / "buffer_size_kb").write_text("1024")
            (place / "trace_clock").write_text(clock)
            for event in INSTANCES[name]:
                (place / "events" / event.replace(":", "/") / "enable").write_text("1")
        host.run(sys.executable, "-S", "-E", "-c", peers.WORKLOAD)
        for place in places.values():
            (place / "tracing_on").write_text("0")
        host.run("trace-cmd", "extract", *(part for name in INSTANCES for part in ("-B", name)), "-o", str(path))
    finally:
        for place in places.values():
            with suppress(FileNotFoundError):  # it ends what it has extracted
                place.rmdir()


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    """A file of two buffers, which trace-cmd has extracted."""
    path = tmp_path_factory.mktemp("extracted") / "trace.dat"
    extract(path, "mono")
    return path


@pytest.fixture
def capture(container, tmp_path):
    """A capture of ours."""
    name = container("python")
    every_kernel.wait_for_worker(Here(), name)
    host.call_module("ftrace_instance", containers=[name], syscalls=["*"], events=["sched:sched_*"])
    every_kernel.run_workload(Here(), name)
    (fetched,) = fetch_here(tmp_path / "traces", containers=[name])
    return Path(fetched["path"])


class Here:
    """This machine, as much of it as a workload needs."""

    def run(self, command):
        return host.run("sh", "-c", command).stdout


def convert(path, folder):
    """PATH converted to each version and compression, there and back."""
    made = {}
    for kind, options in CONVERSIONS.items():
        made[kind] = folder / f"{kind}.dat"
        host.run("trace-cmd", "convert", "-i", str(path), "-o", str(made[kind]), *options)
    back = folder / "back.dat"
    host.run("trace-cmd", "convert", "-i", str(made["version 6"]), "-o", str(back), *CONVERSIONS["version 7, zstd"])
    return {**made, "back from version 6": back}


def test_all_buffers_of_what_trace_cmd_has_extracted_and_converted(extracted, tmp_path):
    for path in (extracted, *convert(extracted, tmp_path).values()):
        assert peers.check_reads_the_same(path, tmp_path / "report") == {
            event for events in INSTANCES.values() for event in events if event in peers.FIELDS
        }
    buffers = [one["buffer"] for one in every_kernel.report(extracted, tmp_path / "report")]
    assert sorted(buffers) == sorted(INSTANCES)


def test_every_event_is_shown_as_trace_cmd_shows_it(extracted, tmp_path):
    names = {event.partition(":")[2] for events in INSTANCES.values() for event in events}
    for path in (extracted, *convert(extracted, tmp_path).values()):
        assert peers.check_shows_the_same(path) == names


@pytest.mark.parametrize("machine", machines.PEERS_MACHINES, ids=machines.name_machine)
def test_machines_of_other_byte_orders_and_word_sizes(tmp_path, machine):
    path = tmp_path / "trace.dat"
    for seed in range(5):
        path.write_bytes(machines.pack_random(machine, seed))
        assert peers.check_shows_the_same(path) >= {
            "sys_enter",
            "sys_exit",
            "task_newtask",
            "path_openat",
            "path_rename",
        }
    for version in (6, 7):
        path.write_bytes(machines.pack_story(machine, version))
        assert "sched_process_exec" in peers.check_shows_the_same(path)


def test_a_clock_that_trace_cmd_gives_another_name_is_found_out(tmp_path):
    path = tmp_path / "trace.dat"
    extract(path, "counter")
    assert '"local" clock' in host.run("trace-cmd", "dump", "--summary", str(path)).stdout
    with pytest.raises(host.ModuleFailed, match="its clock is not 'local', as the file says.*record it again with -C"):
        host.call_module("ftrace_report", src=str(path), dest=str(tmp_path / "report"))


def test_what_trace_cmd_has_made_of_a_capture_of_ours(capture, tmp_path):
    files = convert(capture, tmp_path)
    events = {"sched:sched_switch", "sched:sched_waking", "raw_syscalls:sys_exit"}
    for kind, path in list(files.items()):
        files[f"split of {kind}"] = tmp_path / f"split of {kind}.dat"
        host.run("trace-cmd", "split", "-i", str(path), "-e", "700", "-o", str(files[f"split of {kind}"]))
    for kind, path in {"ours": capture, **files}.items():
        # It numbers what it splits, or not, from version to version.
        found = path if path.exists() else Path(f"{path}.1")
        assert peers.check_reads_the_same(found, tmp_path / "report") == events, kind
        (one,) = every_kernel.report(found, tmp_path / "report")
        assert (one["events"] == 700) == kind.startswith("split")


def test_a_playbook_names_bad_files_and_goes_on(capture, extracted, tmp_path):
    traces = tmp_path / "traces"
    content = capture.read_bytes()
    foreign = traces / "trace.dat"
    foreign.write_bytes(extracted.read_bytes())
    (traces / "trace.json").write_text('{"tasks": "of something else"}')
    (traces / "cut.dat").write_bytes(content[: len(content) // 2])
    (traces / "empty.dat").write_bytes(b"")
    (traces / "picture.dat").write_bytes(b"\x89PNG\r\n\x1a\n" * 100)
    (traces / "gone.dat").symlink_to("nonesuch")
    bad = ["cut.dat", "empty.dat", "gone.dat", "picture.dat", "trace.json"]
    done = host.playbook("report", src=str(traces), dest=str(traces))
    summary = json.loads((traces / "report/summary.json").read_text())
    assert [one["path"] for one in summary["skipped"]] == bad
    reported = [(one["capture"], one["buffer"]) for one in summary["captures"]]
    assert reported[0] == (str(capture.relative_to(traces)), None)
    assert sorted(buffer for name, buffer in reported if name == "trace.dat") == sorted(INSTANCES)
    told = " ".join((done.stdout + done.stderr).split())
    for name in bad:
        assert told.count(f"skipped {name}: ") == 1, told
        assert told.count(f"Skipped: {name}: ") == 1, told
