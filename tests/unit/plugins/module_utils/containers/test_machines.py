# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers that are found by their control groups, and processes by their pids; a folder plays the control groups."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import replace

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import machines
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    ContainerError,
    ContainerGoneError,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.machines import Machines
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import read_start_ticks


@pytest.fixture
def inside():
    """The pid of a process that is the first one of a pid namespace, and so of what looks like a container."""
    command = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "sh", "-c", "echo; exec sleep 600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        if not process.stdout.readline():
            pytest.skip("this user gets no namespaces here")
        with open(f"/proc/{process.pid}/task/{process.pid}/children", encoding="ascii") as file:
            pid = int(file.read())
        yield pid
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def put(tmp_path, monkeypatch):
    """Return a function that makes a control group with the given name and processes."""
    monkeypatch.setattr(machines, "_HIERARCHIES", (f"{tmp_path}/one", f"{tmp_path}/two"))

    def make(name, *pids):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))

    return make


@pytest.mark.parametrize(
    ("group", "runtime", "name"),
    [
        ("lxc.payload.web", "lxc", "web"),
        ("lxc/db", "lxc", "db"),
        (r"machine.slice/machine-my\x2dbox.scope", "systemd-nspawn", "my-box"),
        (r"machine.slice/my\x2dbox.scope/payload", "systemd-nspawn", "my-box"),
        ("machine.slice/systemd-nspawn@box.service", "systemd-nspawn", "box"),
    ],
)
def test_a_container_is_called_by_its_control_group(put, inside, group, runtime, name):
    put(f"one/{group}/init.scope", os.getpid(), inside)
    put(f"two/{group}", inside)
    (found,) = Machines().list_containers()
    assert (found.runtime, found.name, found.id, found.state) == (runtime, name, name, "running")
    assert (found.pid, found.start_ticks) == (inside, read_start_ticks(inside))
    assert found.owner_uid == (os.getuid() or None)
    assert Machines().refresh(found) == found
    with pytest.raises(ContainerGoneError, match=f"container {name} .* has just ended"):
        Machines().refresh(replace(found, start_ticks=1))


@pytest.mark.parametrize(
    "group",
    [
        *("lxc/.hidden", "lxc.monitor.web", "machine.slice/other.service", "docker/abc"),
        *("machine.slice/box.scope/supervisor", "machine.slice/libpod-ab.scope/payload"),
    ],
)
def test_other_control_groups_are_none(put, inside, group):
    put(f"one/{group}", inside)
    assert Machines().list_containers() == []


def test_a_group_of_processes_of_the_host_is_no_container(put):
    put("one/lxc/web", os.getpid(), 1, 1 << 22)
    assert Machines().list_containers() == []


def test_a_process_is_named_by_its_pid():
    pid = os.getpid()
    found = Machines().find_process(f"pid:{pid}")
    assert (found.name, found.id, found.pid) == (f"pid:{pid}", f"{pid}-{read_start_ticks(pid)}", pid)
    assert Machines().inspect(found)["State"] == {"Status": "running", "Pid": pid}
    assert Machines().list_shell_words(found, ["A=1"], ["sh", "-i"]) == [
        *("env", "-i", "TERM=xterm", "A=1"),
        *("nsenter", "--all", "--root", "--wd", f"--target={pid}", "sh", "-i"),
    ]


@pytest.mark.parametrize(
    "text", ["pid:", "pid:x", "pid:-5", "pid:0", "pid:1", "pid:4194304", "pid:99999999999", "pid:\u0665"]
)
def test_what_is_no_process_is_an_error(text):
    with pytest.raises(ContainerError, match="the host has no such process"):
        Machines().find_process(text)
