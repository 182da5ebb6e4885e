# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""ftrace_fetch on real buffers: versions of trace.dat, text, transfers that break, modules that are killed, what is kept for others."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest
from support import every_kernel, host
from support.every_kernel import count, report
from support.killing import kill_everywhere
from support.workload_counts import COUNTS

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import fetch as fetching
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import outbox
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.selection import list_instances

FOLDER = Path(outbox.FOLDER)


class Here:
    """This machine, as much of it as a workload needs."""

    def run(self, command):
        return host.run("sh", "-c", command).stdout


HERE = Here()


@pytest.fixture(name="worker")
def start_worker(container):
    name = container("python")
    every_kernel.wait_for_worker(HERE, name)
    yield name
    # What a test has left is brought home by the next fetch, and so would be in another test's way.
    for file in FOLDER.glob("*"):
        file.unlink()


def run_workload(name):
    every_kernel.run_workload(HERE, name)


def fetch(dest, where=("localhost",), **arguments):
    return host.ad_hoc(where[0], "ftrace_fetch", {"dest": str(dest), **arguments}, *where[1:])


def trace_cmd(path):
    """The lines of trace-cmd report, without the one that counts CPUs."""
    return host.run("trace-cmd", "report", "-R", "-t", str(path)).stdout.splitlines()[1:]


def list_staged():
    return sorted(path.name for path in FOLDER.iterdir()) if FOLDER.exists() else []


def check_counts(folder, rounds=1):
    """The captures in FOLDER hold ROUNDS of the workload, each call once."""
    calls = {}
    for capture in report(folder, folder / "report"):
        for name, one in count(capture).items():
            calls[name] = calls.get(name, 0) + one["calls"]
    assert {name: calls.get(name) for name in COUNTS} == {name: calls * rounds for name, (calls, _e) in COUNTS.items()}


def test_both_versions_hold_the_same_events_for_us_and_for_trace_cmd(worker, tmp_path):
    host.call_module("ftrace_instance", containers=[worker], buffer_size="8MiB")
    run_workload(worker)
    host.call_module("ftrace_instance", containers=[worker], state="stopped")
    # One segment, made into a file of either version.
    (seven,) = fetch(tmp_path / "7", containers=[worker], consume=False)["captures"]
    (six,) = (one for one in fetch(tmp_path / "6", containers=[worker], dat_version=6)["captures"] if one["path"])
    assert open(seven["path"], "rb").read(12)[10:] == b"7\0"
    assert open(six["path"], "rb").read(12)[10:] == b"6\0"
    assert os.path.getsize(seven["path"]) < os.path.getsize(six["path"]) / 4
    lines = trace_cmd(seven["path"])
    assert lines == trace_cmd(six["path"])
    summaries = [report(tmp_path / version, tmp_path / "report")[0] for version in ("7", "6")]
    for summary in summaries:
        for name in ("path", "sha256"):
            summary.pop(name, None)
        assert summary["events"] == len(lines)
    assert summaries[0] == summaries[1]
    check_counts(tmp_path / "7")
    for capture in (seven, six):
        with open(capture["path"], "rb") as file:
            assert hashlib.sha256(file.read()).hexdigest() == capture["manifest"]["sha256"]
    assert host.run("trace-cmd", "dump", "--summary", "-i", seven["path"]).stdout.count("zstd") == 1


def test_a_controller_without_zstd_gets_the_same_events_plain(worker, tmp_path):
    host.call_module("ftrace_instance", containers=[worker])
    run_workload(worker)
    result = host.call_module("ftrace_fetch", dest=str(tmp_path), containers=[worker], _methods=["zlib"])
    assert result["transfer"]["segments"][0]["state"] == "new"
    with open(result["transfer"]["path"], "rb") as file:
        assert b"zlib" in file.read(64)
    os.unlink(result["transfer"]["path"])
    (capture,) = fetch(tmp_path, containers=[worker])["captures"][:1]
    assert len(trace_cmd(capture["path"])) == report(Path(capture["path"]), tmp_path / "report")[0]["events"]
    check_counts(tmp_path)


def test_the_text_has_the_events_of_trace_cmd_and_who_it_was_inside(worker, tmp_path):
    host.call_module("ftrace_instance", containers=[worker], syscalls=["openat", "connect"])
    run_workload(worker)
    result = fetch(tmp_path, containers=[worker], format="text")
    (capture,) = result["captures"]
    assert result["lines"] == [f"{worker}: {capture['path']} ({capture['manifest']['entries']} events)"]
    text = Path(capture["path"]).with_suffix(".txt").read_text().splitlines()
    assert text[0] == f"# container {worker} on localhost, clock mono, complete"
    theirs = [
        re.match(r" *.*-(\d+) +\[(\d+)\].* (\d+\.\d{9}): +(\S+):", line).groups() for line in trace_cmd(capture["path"])
    ]
    ours = [re.match(r" *.*-(\d+) +\([-\d]+\) +\[(\d+)\] +(\d+\.\d{9}): (\S+):", line).groups() for line in text[2:]]
    assert sorted(ours) == sorted(theirs)
    assert [one[2] for one in ours] == [one[2] for one in theirs]
    pid = host.find_pid(worker)
    calls = [line for line in text if "(connect)" in line and "sys_exit" in line]
    assert len(calls) == COUNTS["connect"][0]
    assert all(re.match(rf" *python3-{pid} +\(1\) ", line) and line.endswith("ret=-2 (ENOENT)") for line in calls)


def break_transfer(folder, login, ssh_hosts, after, **arguments):
    """A fetch by LOGIN whose sftp ends after so many bytes of the file; what ansible says."""
    sftp = folder / f"sftp-{after}"
    # A pipe between sftp and the server's end would need a server; what is written is cut by the file size limit instead.
    sftp.write_text(f'#!/bin/bash\nulimit -f {after // 1024}\nexec sftp "$@"\n')
    sftp.chmod(0o755)
    options = (
        "-b",
        "-i",
        str(ssh_hosts),
        "-e",
        f"ansible_sftp_executable={sftp}",
        "-e",
        "ansible_ssh_transfer_method=sftp",
    )
    return host.run(
        *("ansible", login, "-m", "crashcart.fleet.ftrace_fetch", "-a", json.dumps(arguments), *options), check=False
    )


@pytest.mark.parametrize("login", ["as_root", "as_user"])
def test_a_transfer_that_broke_goes_on_at_its_byte(worker, ssh_hosts, tmp_path, login):
    host.call_module("ftrace_instance", containers=[worker], buffer_size="8MiB")
    for _round in range(6):
        run_workload(worker)
    dest = tmp_path / "traces"
    arguments = {"dest": str(dest), "containers": [worker], "docker_host": os.environ["DOCKER_HOST"]}
    done = break_transfer(tmp_path, login, ssh_hosts, 8192, **arguments)
    assert done.returncode != 0
    assert "the next fetch brings them" in " ".join((done.stdout + done.stderr).split())
    (staged,) = FOLDER.glob("*.new")
    (part,) = (dest / login / ".crashcart-parts").glob("crashcart-*")
    assert part.name == staged.name[: -len(".new")]
    content = staged.read_bytes()
    assert 0 < part.stat().st_size < len(content)
    assert content.startswith(part.read_bytes())
    # What is on the way comes first, and nothing that was recorded since is missed.
    before = part.stat().st_size
    run_workload(worker)
    result = fetch(
        dest, (login, "-b", "-i", str(ssh_hosts)), **{n: arguments[n] for n in ("containers", "docker_host")}
    )
    assert len(result["captures"]) == 2
    assert all(one["manifest"]["complete"] for one in result["captures"])
    check_counts(dest, 7)
    assert before > 0
    assert list_staged() == []
    assert not (dest / login / ".crashcart-parts").exists()
    again = fetch(dest, (login, "-b", "-i", str(ssh_hosts)), **{n: arguments[n] for n in ("containers", "docker_host")})
    check_counts(dest, 7)
    assert [one["path"] for one in again["captures"]] == [None]


def test_only_the_rest_of_a_broken_transfer_travels(worker, tmp_path):
    host.call_module("ftrace_instance", containers=[worker])
    run_workload(worker)
    arguments = {"dest": str(tmp_path), "containers": [worker], "_methods": ["zstd"]}
    (segment,) = host.call_module("ftrace_fetch", **arguments)["transfer"]["segments"]
    host.call_module("ftrace_instance", containers=[worker], state="stopped")
    host.call_module("ftrace_fetch", **arguments)
    again = host.call_module("ftrace_fetch", **arguments, _parts={segment["name"]: segment["size"] - 10})["transfer"]
    assert again["segments"][0] == {**segment, "start": segment["size"] - 10}
    assert os.path.getsize(again["path"]) == again["size"]


def test_what_another_fetch_brings_home_is_left_to_it(worker, tmp_path):
    host.call_module("ftrace_instance", containers=[worker])
    run_workload(worker)
    arguments = {"dest": str(tmp_path), "containers": [worker], "_methods": ["zstd"]}
    first = host.call_module("ftrace_fetch", **arguments)["transfer"]
    run_workload(worker)
    second = host.call_module("ftrace_fetch", **arguments)
    assert "transferred by another fetch" in str(second["warnings"])
    names = [[segment["name"] for segment in one["segments"]] for one in (first, second["transfer"])]
    assert (len(names[0]), len(names[1])) == (1, 1)
    assert names[0] != names[1]
    # Both were broken: whose folder it was gets them, or anybody after a while.
    for path in (first["path"], second["transfer"]["path"]):
        os.unlink(path)
    fetch(tmp_path, containers=[worker])
    check_counts(tmp_path, 2)
    assert list_staged() == []


def test_what_is_not_consumed_stays_for_others_until_its_instance_goes(worker, tmp_path):
    host.call_module("ftrace_instance", containers=[worker])
    first = {}
    for _number in range(2):
        run_workload(worker)
        first = fetch(tmp_path / "a", containers=[worker], consume=False)
    assert host.call_module("ftrace_info", gather=["instances"])["instances"][0]["state"] == "started"
    check_counts(tmp_path / "a", 2)
    # Another controller, or folder, sees all of it; the same one nothing twice.
    assert len(fetch(tmp_path / "b", containers=[worker], consume=False)["captures"]) >= 2
    check_counts(tmp_path / "b", 2)
    later = fetch(tmp_path / "c", containers=[worker], consume=False, cursor=first["cursor"])
    assert int(later["cursor"]) >= int(first["cursor"])
    assert all(
        one["path"] is None or int(first["cursor"]) / 1e9 < one["manifest"]["fetched"] + 1 for one in later["captures"]
    )
    told = host.call_module("ftrace_info", gather=["captures"])["captures"]
    assert {one["state"] for one in told} == {"kept"}
    kept = [name for name in list_staged() if name.endswith(".kept")]
    assert len(told) == len(kept)
    assert len(kept) >= 2
    assert all(stat.S_IMODE((FOLDER / name).stat().st_mode) == 0o600 for name in kept)
    host.call_module("ftrace_instance", containers=[worker], state="absent")
    assert list_staged() == []


def test_consumed_means_gone_from_the_host(worker, tmp_path):
    host.call_module("ftrace_instance", containers=[worker])
    run_workload(worker)
    fetch(tmp_path / "a", containers=[worker], consume=False)
    fetch(tmp_path / "b", containers=[worker])
    assert list_staged() == []
    assert [one["path"] for one in fetch(tmp_path / "c", containers=[worker])["captures"]] == [None]
    for folder in ("a", "b"):
        check_counts(tmp_path / folder)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"containers": ["x"]}, "dest is missing"),
        ({"dest": "new/dest", "colour": "red"}, "Unsupported parameters.*colour"),
    ],
)
def test_what_is_wrong_with_a_task_is_told_before_a_folder_is_made(tmp_path, arguments, wanted):
    os.chdir(tmp_path)
    with pytest.raises(host.ModuleFailed, match=wanted):
        host.ad_hoc("localhost", "ftrace_fetch", arguments)
    assert os.listdir(tmp_path) == []


def test_a_bad_cursor_is_named(worker, tmp_path):
    host.call_module("ftrace_instance", containers=[worker])
    with pytest.raises(host.ModuleFailed, match="cursor: '../x' is not a cursor"):
        fetch(tmp_path, containers=[worker], cursor="../x")


def test_killed_at_any_system_call_of_the_drain(worker, tmp_path):
    """A fetch is killed again and again at later and later moments. What was not in its hands is at home in the end, once, and
    what was is told."""
    host.call_module("ftrace_instance", containers=[worker], buffer_size="1MiB")
    rounds = [1]
    run_workload(worker)

    def drain():
        found = list_instances(host.TRACEFS, [])
        fetching.fetch(found, Outcome(), fetching.Home(methods=["zstd"]), lambda _text: None, consume=True)

    def look(_moment):
        run_workload(worker)
        rounds.append(1)

    moments = kill_everywhere(drain, look, step=29)
    assert moments > 3
    for file in FOLDER.glob("transfer-*"):
        file.unlink()
    captures = [one for one in fetch(tmp_path, containers=[worker])["captures"] if one["path"]]
    assert list_staged() == []
    calls = {}
    for capture in report(tmp_path, tmp_path / "report"):
        for name, one in count(capture).items():
            calls[name] = calls.get(name, 0) + one["calls"]
    wanted = {name: one * len(rounds) for name, (one, _errors) in COUNTS.items()}
    found = {name: calls[name] for name in COUNTS}
    if any(not one["manifest"]["complete"] for one in captures):
        assert all(found[name] <= wanted[name] for name in COUNTS)
        assert sum(found.values()) > sum(wanted.values()) / 2
    else:
        assert found == wanted


def test_a_full_disk_drains_nothing(worker, tmp_path):
    host.call_module("ftrace_instance", containers=[worker], buffer_size="8MiB")
    run_workload(worker)
    FOLDER.mkdir(mode=0o711, exist_ok=True)
    host.run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(FOLDER))
    try:
        with pytest.raises(host.ModuleFailed, match=r"has \d+ KiB free and the traces hold up to \d+ KiB"):
            fetch(tmp_path, containers=[worker])
    finally:
        host.run("umount", str(FOLDER))
    (capture,) = fetch(tmp_path, containers=[worker])["captures"]
    assert capture["manifest"]["complete"]
    check_counts(tmp_path)


def test_many_containers_in_one_call_and_one_transfer(container, tmp_path):
    loop = ("busybox", "/bin/sh", "-c", "while /bin/true; do /bin/id >/dev/null; /bin/sleep 0.1; done")
    names = [container(*loop) for _number in range(4)]
    host.call_module("ftrace_instance", containers=names)
    host.pause(1)
    captures = fetch(tmp_path, containers=names)["captures"]
    assert sorted(one["manifest"]["container"]["name"] for one in captures) == sorted(names)
    for capture in captures:
        assert Path(capture["path"]).parent.name == capture["manifest"]["container"]["name"]
        assert len(trace_cmd(capture["path"])) == report(Path(capture["path"]), tmp_path / "report")[0]["events"] > 50


def test_what_is_left_of_a_removed_instance_comes_with_the_next_fetch_of_anything(worker, tmp_path):
    host.call_module("ftrace_instance", containers=[worker])
    run_workload(worker)
    transfer = host.call_module("ftrace_fetch", dest=str(tmp_path), containers=[worker], _methods=["zstd"])["transfer"]
    os.unlink(transfer["path"])
    host.call_module("ftrace_instance", containers=[worker], state="absent")
    assert fetch(tmp_path)["changed"]
    check_counts(tmp_path)
    assert list_staged() == []


def test_without_root_nobody_reads_what_is_staged(worker, ssh_hosts, tmp_path):
    host.call_module("ftrace_instance", containers=[worker])
    run_workload(worker)
    host.call_module("ftrace_fetch", dest=str(tmp_path), containers=[worker])
    (path,) = FOLDER.glob("*.new")
    for command in (["ls", str(FOLDER)], ["cat", str(path)]):
        done = subprocess.run(["runuser", "-u", "nobody", "--", *command], capture_output=True, check=False)
        assert done.returncode != 0
