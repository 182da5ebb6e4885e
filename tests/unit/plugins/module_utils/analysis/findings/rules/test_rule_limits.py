# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rule limits: limits that were reached, with names and values."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rules.limits import RULE
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.findings.captures import (
    Call,
    make_capture,
)


def make_limits(first=(), last=(), mounts=(), **process):
    ends = {"first": dict(first), "last": dict(last)}
    processes = [{"pid": 4711, "nofile": None, "nproc": None, "open": 5, **process}]
    return {when: {"processes": processes, "group": group, "mounts": list(mounts)} for when, group in ends.items()}


def make_mount(path, filesystem="tmpfs", free=0, free_files=500):
    return {
        "path": path,
        "filesystem": filesystem,
        "size": 1 << 20,
        "free": free,
        "files": 1000,
        "free_files": free_files,
    }


def find(*calls, **parts):
    return list(RULE.find(make_capture(*calls, **parts)))


def test_open_descriptors():
    (found,) = find(
        Call("openat", "/x", "EMFILE", count=3), Call("openat", "/x"), resource_limits=make_limits(nofile=64)
    )
    assert found.statement == (
        "web reached its limit of 64 open descriptors (nofile): openat failed with EMFILE, 3 of 4 times"
    )
    assert (found.severity, found.missing, found.object.text) == (85, None, "nofile")
    assert "cat /proc/711/limits" in found.next


def test_a_limit_whose_value_is_not_known():
    (found,) = find(Call("socket", None, "EMFILE"))
    assert found.statement == "web reached its limit of open descriptors (nofile): socket failed with EMFILE, once"
    assert found.missing == "the value of nofile"


@pytest.mark.parametrize(
    ("table", "text", "confidence"),
    [
        (
            make_limits({"pids.max": 10, "pids.events.max": 0}, {"pids.max": 10, "pids.events.max": 3}),
            "the container's limit of 10 processes and threads (pids.max)",
            "certain",
        ),
        (
            make_limits(last={"pids.max": 10, "pids.current": 10}),
            "the container's limit of 10 processes and threads (pids.max)",
            "certain",
        ),
        (make_limits(last={"pids.max": None}, nproc=50), "its user's limit of 50 processes (nproc)", "certain"),
        (
            make_limits(last={"pids.max": 100, "pids.current": 5}),
            "a limit of processes (pids.max is 100, or nproc)",
            "likely",
        ),
        (None, "a limit of processes (pids.max or nproc)", "certain"),
    ],
)
def test_processes(table, text, confidence):
    (found,) = find(Call("clone", None, "EAGAIN"), resource_limits=table)
    assert found.statement == f"web reached {text}: clone failed with EAGAIN, once"
    assert found.confidence == confidence


def test_memory():
    grown = make_limits(
        {"memory.max": 1 << 26, "memory.events.max": 1}, {"memory.max": 1 << 26, "memory.events.max": 9}
    )
    (found,) = find(Call("mmap", None, "ENOMEM", count=5), resource_limits=grown)
    assert (
        "the container's limit of 64.0 MiB of memory (memory.max): mmap failed with ENOMEM, 5 of 5 times"
        in found.statement
    )
    assert found.confidence == "likely"
    (found,) = find(Call("mmap", None, "ENOMEM", count=5))
    assert "memory.max, as, vm.overcommit_memory or vm.max_map_count" in found.missing


def test_large_pages_that_a_program_does_without_are_no_finding():
    assert find(Call("mmap", None, "ENOMEM"), Call("mmap", None, "ENOMEM", pid=9)) == []
    assert find(Call("mremap", None, "ENOMEM")) == []


def test_a_full_file_system_by_the_longest_path_above():
    mounts = [make_mount("/", "overlay", free=1 << 19), make_mount("/tmp"), make_mount("/tmp2")]
    (found,) = find(Call("write", "/tmp/a/b", "ENOSPC", count=2), resource_limits=make_limits(mounts=mounts))
    assert found.statement == (
        "the file system at /tmp is full (tmpfs of 1.0 MiB): write of web failed with ENOSPC, 2 times"
    )
    assert (found.object.text, found.confidence) == ("/tmp", "certain")
    assert "df -h /tmp" in found.next


def test_a_file_system_without_free_files():
    mounts = [make_mount("/tmp", free=1 << 19, free_files=0)]
    (found,) = find(Call("openat", "/tmp/a", "ENOSPC"), resource_limits=make_limits(mounts=mounts))
    assert "the file system at /tmp is full (tmpfs of 1000 files)" in found.statement


def test_a_file_system_whose_size_is_not_known():
    # The root has room, so another file system is full.
    mounts = [make_mount("/", "overlay", free=1 << 19)]
    (found,) = find(Call("write", "/data/a", "ENOSPC"), resource_limits=make_limits(mounts=mounts))
    assert found.statement == "there is no space left for /data/a: write of web failed with ENOSPC, once"
    assert found.missing == "the size of the file system"
    (found,) = find(Call("write", None, "ENOSPC"))
    assert found.statement == "a file system is full: write of web failed with ENOSPC, once"
    (found,) = find(Call("write", None, "ENOSPC"), resource_limits=make_limits(mounts=[*mounts, make_mount("/tmp")]))
    assert (found.object.text, found.confidence) == ("/tmp", "likely")


@pytest.mark.parametrize(
    ("call", "error", "name"),
    [
        ("inotify_add_watch", "ENOSPC", "fs.inotify.max_user_watches"),
        ("inotify_init1", "EMFILE", "fs.inotify.max_user_instances"),
        ("openat", "ENFILE", "fs.file-max"),
        ("write", "EDQUOT", "disk quota"),
        ("write", "EFBIG", "fsize"),
        ("setuid", "EAGAIN", "nproc"),
    ],
)
def test_limits_of_their_own(call, error, name):
    (found,) = find(Call(call, None, error))
    assert name in found.statement
    assert found.missing


def test_counters_of_the_control_group_that_grew():
    table = make_limits({"pids.max": 10, "pids.events.max": 0}, {"pids.max": 10, "pids.events.max": 7})
    (found,) = find(Call("read"), resource_limits=table)
    assert found.statement == "the container reached its limit of 10 processes and threads (pids.max), 7 times"
    names = ("memory.events.max", "memory.events.oom", "memory.events.oom_kill")
    table = make_limits(
        {"memory.max": 1 << 26, **dict.fromkeys(names, 0)}, {"memory.max": 1 << 26, **dict.fromkeys(names, 2)}
    )
    (found,) = find(Call("read"), resource_limits=table)
    assert "64.0 MiB of memory, and the kernel killed a process each time (memory.max), 2 times" in found.statement


@pytest.mark.parametrize(
    "call",
    [
        Call("read", None, "EAGAIN", count=99),
        Call("clone3", None, "ENOSYS"),
        Call("execve", "/x", "ETXTBSY"),
        Call("read"),
    ],
)
def test_what_is_no_limit(call):
    same = make_limits({"pids.max": 10, "pids.events.max": 7}, {"pids.max": 10, "pids.events.max": 7})
    assert find(call, resource_limits=same) == []
    assert find(call, resource_limits={"first": None, "last": None}) == []
