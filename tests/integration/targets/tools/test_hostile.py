# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Our processes in a container's namespaces give a hostile container nothing to work with."""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
import sys

import pytest
from support import host
from support.records import find_record

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach import mounting
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import open_targets

CLONE_NEWPID = "CLONE_NEWPID"
# All that the child does once it is inside. No execve, and no openat, which would follow links; write is its answer.
INSIDE = {
    *(
        "setns",
        "fchdir",
        "chroot",
        "openat2",
        "getdents64",
        "fstat",
        "newfstatat",
        "fstatfs",
        "statfs",
        "close",
        "write",
    ),
    *("move_mount", "mkdir", "mkdirat", "rmdir", "unlinkat", "umount2", "umask", "setfsuid", "setfsgid", "mount"),
    *("fcntl", "lseek", "mmap", "munmap", "brk", "exit_group", "rt_sigaction", "rt_sigreturn", "futex"),
}


def trace(tmp_path, calls, module, **arguments):
    """MODULE run below strace: the lines of each process, by its pid."""
    path = tmp_path / "strace"
    command = ["strace", "-f", "-qq", "-o", str(path), *calls, sys.executable, "-m"]
    text = json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_version": "2.19"}})
    done = host.run(*command, f"{host.COLLECTION}.plugins.modules.{module}", input=text)
    host.parse_result(done.stdout, done.stderr)
    lines = {}
    for line in path.read_text(errors="replace").splitlines():
        pid, _space, rest = line.partition(" ")
        lines.setdefault(pid, []).append(rest.strip())
    return lines


@pytest.mark.parametrize("method", ["fsmount", "mknod"])
@pytest.mark.parametrize("state", ["attached", "detached"])
def test_the_child_inside_runs_nothing_and_imports_nothing(container, tmp_path, method, state):
    name = container()
    if state == "detached":
        host.call_module("crashcart_attach", containers=[name], method=method)
    lines = trace(tmp_path, [], "crashcart_attach", containers=[name], method=method, state=state)
    entered = {pid: calls for pid, calls in lines.items() if any(call.startswith("setns(") for call in calls)}
    assert entered
    for calls in entered.values():
        first = next(number for number, call in enumerate(calls) if call.startswith("setns("))
        inside = {match.group(1) for call in calls[first:] if (match := re.match(r"(\w+)\(", call))}
        assert inside <= INSIDE, inside - INSIDE
        assert not any("CLONE_NEWPID" in call for call in calls), "it shows in the container's list of processes"


def test_the_child_inside_has_no_writable_descriptor_but_its_answer(container):
    name = container()
    record = find_record(name)

    def look(_index, _parent_fd, _name):
        found = []
        for fd in range(1024):
            try:
                mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
                found.append([mode != os.O_RDONLY, stat.S_IFMT(os.fstat(fd).st_mode)])
            except OSError:
                continue
        return found

    with open(os.devnull, "w", encoding="ascii"), open_targets([record]) as targets:
        (found,) = mounting.enter(targets, "/dev/crashcart", look)
    assert found
    assert [kind for is_writable, kind in found if is_writable] == [stat.S_IFIFO]


def test_the_container_sees_one_mount_more_and_no_path_of_the_host(container):
    name = container("busybox", options=("--network", "none", "--cap-add", "SYS_ADMIN"))
    before = host.read_container_mounts(name).splitlines()
    devices = sorted(os.listdir(f"/proc/{host.find_pid(name)}/root/dev"))
    host.call_module("crashcart_attach", containers=[name])
    (line,) = set(host.read_container_mounts(name).splitlines()) - set(before)
    fields = line.split()
    assert (fields[3], fields[4], fields[-3]) == ("/", "/dev/crashcart", "squashfs")
    assert re.fullmatch(r"/dev/loop\d+", fields[-2])
    assert sorted(os.listdir(f"/proc/{host.find_pid(name)}/root/dev")) == sorted([*devices, "crashcart"])
    # The container's root, who may mount, makes it writable for nobody.
    for options in ("remount,rw", "remount,bind,rw"):
        host.run("docker", "exec", name, "/bin/busybox", "mount", "-o", options, "/dev/crashcart", check=False)
        assert host.run("docker", "exec", name, "/bin/touch", "/dev/crashcart/x", check=False).returncode != 0


def test_no_process_of_ours_shows_in_the_container_while_it_is_attached(container):
    """Looked at over and over from inside, while the tools come and go."""
    name = container()
    watch = "while :; do for p in /proc/[0-9]*; do /bin/cat $p/comm; done; done"
    with host.start("docker", "exec", name, "/bin/sh", "-c", watch, stdout=-1, text=True) as watcher:
        for _round in range(3):
            host.call_module("crashcart_attach", containers=[name])
            host.call_module("crashcart_attach", containers=[name], state="detached")
        host.docker("kill", name)
        seen = set(watcher.communicate(timeout=host.seconds(60))[0].splitlines())
    assert "sleep" in seen
    assert seen <= {"sleep", "sh", "cat", "busybox"}, seen
