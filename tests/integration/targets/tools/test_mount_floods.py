# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A container that stacks mounts until the kernel takes minutes to show them costs itself, and nobody else."""

from __future__ import annotations

import json
import os

import pytest
from support import host

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import mount_tables, mounts, syscalls

COUNT = 8000  # which take the kernel three tenths of a second to show
TOO_LONG = r"container {}: its table of mounts is too long to be read \(over \d+ mounts\)"


def stack_mounts(pid, count=COUNT):
    """Mount COUNT times on one folder in the mount namespace of process PID."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with open(f"/proc/{pid}/ns/mnt", "rb") as file:
                syscalls.setns(file.fileno(), syscalls.CLONE_NEWNS)
            for _number in range(count):
                syscalls.mount("none", "/tmp", "tmpfs", 0)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


@pytest.fixture
def pair(container, monkeypatch):
    """A good container and one with such a table. No table has more than 0.05 s."""
    monkeypatch.setattr(mount_tables, "EACH_S", 0.05)
    names = container(), container()
    stack_mounts(host.find_pid(names[1]))
    return names


def fail(module, bad, **arguments):
    with pytest.raises(host.ModuleFailed, match=TOO_LONG.format(bad)) as failed:
        host.call_module(module, **arguments)
    return failed.value.result


def test_commands_and_attachments(pair):
    good, bad = pair
    result = fail("crashcart_exec", bad, containers=pair, argv=["id", "-u"])
    assert {one["container"]: one["rc"] for one in result["results"]} == {good: 0, bad: -1}
    result = fail("crashcart_attach", bad, containers=pair)
    assert [one["container"] for one in result["attachments"]] == [good]
    result = host.call_module("crashcart_info", gather=["attachments", "census"])
    assert [one["container"] for one in result["attachments"] if one["container"] in pair] == [good]
    warnings = json.dumps(result["warnings"])
    assert f"container {bad}: its table of mounts" in warnings
    assert "not all processes of user root (0) were searched" in warnings
    result = fail("crashcart_attach", bad, containers=pair, state="detached")
    assert [one["container"] for one in result["failed_containers"]] == [bad]
    assert "/dev/crashcart" not in host.read_container_mounts(good)


def test_its_trace_is_removed_all_the_same(pair):
    _good, bad = pair
    host.call_module("ftrace_instance", containers=pair, events=["sched:sched_switch"])
    fail("ftrace_instance", bad, containers=pair, state="absent")
    assert host.list_instances() == []


def test_the_whole_mount_namespace(pair, monkeypatch):
    """Where the host's /proc is looked for, by a child."""
    good, bad = pair
    monkeypatch.setattr(mounts, "read_table", mounts.read_all)  # for what is attached
    with pytest.raises(host.ModuleFailed, match=f"container {bad}.*is not known for sure.*too long") as failed:
        host.call_module("crashcart_exec", containers=pair, argv=["id", "-u"])
    assert {one["container"]: one["rc"] for one in failed.value.result["results"]} == {good: 0, bad: -1}


def test_the_hosts_own_table_is_read_to_its_end(monkeypatch):
    monkeypatch.setattr(mount_tables, "EACH_S", 0.0)
    assert len(mounts.read_mounts()) > 1
    assert mounts.read_mounts(os.getppid()) == mounts.read_mounts()
    with pytest.raises(mount_tables.TableTooLong), open("/proc/self/mountinfo", "rb") as file:
        mounts.read_open_mounts(file.fileno())
