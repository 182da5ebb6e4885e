# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Test everyday uses of the collection on three real hosts, over ssh with an unprivileged login.

These tests and those of the other files follow each other from install to cleanup, since each step takes long on emulated hosts. Each of
them can also be run alone. Where possible, different hosts run different tests at the same time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import fleet
import golden
import machine
import pytest
from conftest import NAMES, NOISY, call, each, list_captures, on_all, play, same

# Ansible reaches host2 without pipelining, so that modules are files there.
MIXED = ("-e", "ansible_pipelining={{ inventory_hostname != 'host2' }}")


def test_hosts_are_themselves(hosts):
    files = (
        "/etc/machine-id /proc/sys/kernel/random/boot_id /etc/ssh/ssh_host_ed25519_key.pub /sys/class/net/eth0/address"
    )
    profile = f"cat /proc/$(docker inspect -f '{{{{.State.Pid}}}}' {NOISY})/attr/apparmor/current"
    command = f"{profile}; date +%s; hostname; cat {files}; head -c 8 /dev/urandom | od -An -x"
    answers = on_all(lambda host: host.run(command).strip().split("\n"), hosts)
    for profile, date, *others in answers:
        assert profile == "docker-default (enforce)"
        assert abs(float(date) - time.time()) < 10
        assert len(others) == 6
    for what in range(2, 8):
        assert len({answer[what] for answer in answers}) == 3, answers


def test_guests_that_cannot_start_leave_nothing(hosts, monkeypatch, tmp_path):
    """Check that guests with a damaged state leave neither files nor processes."""
    for path in hosts[0].base.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "state").unlink()
    (tmp_path / "state").write_bytes(b"no state")
    monkeypatch.setattr(golden, "prepare", lambda _release: tmp_path)
    monkeypatch.setattr(fleet, "FOLDER", tmp_path / "build" / "fleet")
    with pytest.raises(machine.MachineError, match="its state cannot be moved|does not answer"):
        fleet.up(2)
    assert not list(fleet.FOLDER.glob("*"))
    assert subprocess.run(["pgrep", "-f", str(fleet.FOLDER)], capture_output=True, check=False).stdout == b""


GOLDEN_MAKER = """
import sys, time
from pathlib import Path
tests, base, folder = sys.argv[1:]
sys.path.insert(0, tests)
import machine
golden = machine.Machine(Path(folder), Path(base))
golden.create_disk(Path(base) / "disk.qcow2")
golden.start(machine.find_free_port(), Path(folder) / "memory", is_shared=True)
print("started", flush=True)
time.sleep(1000)
"""


def test_a_golden_guest_ends_with_a_maker_that_is_killed(hosts, tmp_path):
    golden_guest = machine.Machine(tmp_path / "golden", hosts[0].base)
    tests = str(Path(machine.__file__).parent)
    command = [sys.executable, "-c", GOLDEN_MAKER, tests, golden_guest.base, golden_guest.folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as maker:
        try:
            assert maker.stdout.readline() == "started\n"
            assert golden_guest.find_pid()
        finally:
            maker.kill()
    try:
        golden_guest.wait(lambda: golden_guest.find_pid() is None, 20, "end")
    finally:
        golden_guest.cut_power()


def test_install(installed, image):
    digest = json.loads(image.with_suffix(".squashfs.json").read_text())["digest"]
    assert {host: one["image"]["digest"] for host, one in installed.find("Push the tool image").items()} == same(digest)
    for said in installed.find("Say what the host is, has and cannot do").values():
        assert any("cgroups v2, Docker 2" in line for line in said["msg"]), said
    for result in installed.find("See what the host can do").values():
        info = result["host"]
        assert (info["cgroups"], info["tracefs"]) == ("v2", "/sys/kernel/tracing")
        assert {one["ok"] for one in result["features"]} == {True}


def test_things_for_single_hosts(hosts, installed, image):
    each(hosts, refuse_an_unprivileged_login, lambda host: push_without_pipelining(host, image), predict_for_a_group)
    assert on_all(lambda host: host.run("losetup -a"), hosts) == [""] * 3


def refuse_an_unprivileged_login(host):
    """Check that an unprivileged login is told which rights it lacks."""
    info = call(host.name, "crashcart_info", {"gather": ["features"]}, become=False)
    features = {one["name"]: one["reason"] for one in info["features"]}
    assert features["squashfs"] == ""
    assert "use become" in features["mount_api"]
    assert "use become" in features["tracefs"]
    silent = call(host.name, "crashcart_info", {}, become=False, check=False)
    assert "use become" in silent["msg"]
    refused = call(host.name, "crashcart_attach", {"containers": "*"}, become=False, check=False)
    assert "needs root on the host" in refused["msg"]


def push_without_pipelining(host, image):
    """Check a push without pipelining: modules are then files on the host, in the same folder as the transferred image."""
    pushed = call(host.name, "crashcart_image", {"src": str(image), "name": "again"}, pipelining=False)
    assert (pushed["changed"], pushed["image"]["name"]) == (True, "again")
    assert call(host.name, "crashcart_image", {"name": "again", "state": "absent"}, pipelining=False)["changed"]
    assert host.run("find /root/.ansible /home/*/.ansible -type f 2>/dev/null; true") == ""


def predict_for_a_group(_host):
    """Check a playbook in check mode for a group that is a part of the fleet."""
    predicted = play("attach", "-l", "rest", "--check", containers="*")
    assert predicted.count("changed") == {"host2": 1, "host3": 1}, predicted.output


def test_from_attach_to_detach(hosts, installed, tmp_path):
    """Check attach, exec, trace and detach on all hosts, two at a time: results are equal, and nothing is left."""
    argv = ["bash", "-c", "cat /proc/1/comm; test -e /dev/crashcart/bin/bash"]
    attach = play("attach", "-l", "fleet", "-f", "2", *MIXED, containers="*", serial=2)
    tasks = attach.list_tasks()
    assert tasks.index(("Attach", "host3")) > tasks.index(("Say how to get a shell", "host2"))
    run = play("exec trace detach", "-l", "fleet", *MIXED, containers="*", argv=argv, seconds=4, dest=str(tmp_path))
    assert run.count("failures") == same(0), run.output
    for results in (attach.find("Attach"), run.find("Detach")):
        assert {host: one["changed"] for host, one in results.items()} == same(True), attach.output
    for one in attach.find("Attach").values():
        assert sorted(attachment["container"] for attachment in one["attachments"]) == sorted(NAMES)
    expected = [(name, 0, "sh\n") for name in sorted(NAMES)]
    for one in run.find("Run").values():
        assert sorted((ran["container"], ran["rc"], ran["stdout"]) for ran in one["results"]) == expected
    for one in on_all(lambda host: call(host.name, "ftrace_info", {"gather": ["available"]}), hosts):
        assert {"kprobe", "uprobe", "synthetic"} <= set(one["available"]["probes"])
        assert "function_graph" in one["available"]["tracers"]

    captures = [one for one in list_captures(tmp_path) if one["container"] == NOISY]
    assert len(captures) == 3
    for capture in captures:
        failing = [row for row in capture["processes"] if (row["name"], row["syscall"]) == ("cat", "openat")]
        assert sum(row["errors"].get("ENOENT", 0) for row in failing) >= 1, capture
    assert on_all(lambda host: host.run("losetup -a; ls /sys/kernel/tracing/instances"), hosts) == [""] * 3
