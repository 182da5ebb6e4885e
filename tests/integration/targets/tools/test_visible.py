# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A container's root gets nothing of the host from our processes in its pid namespace, whatever it may do."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from support import host, inside

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import (
    capabilities,
    mounts,
    processes,
    read_only,
    syscalls,
)

SECRET = "SECRET_OF_THE_HOST"
CONTAINERS = {
    "Docker's default": (),
    "may trace and administer": (
        *("--cap-add", "SYS_PTRACE", "--cap-add", "SYS_ADMIN"),
        *("--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"),
    ),
}
# Looks at whatever comes into the pid namespace until a file appears, and says what it got by each of the ways there are.
SPY = """
import ctypes, json, os, stat, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
own = set(filter(str.isdigit, os.listdir('/proc'))) | {str(os.getpid())}
root = os.stat('/')
got, met = set(), set()
print('looking', flush=True)

def writable(path):
    # Not by trying: on a code that fails this test it would be the host's file that is written to.
    fd = os.open(path, os.O_PATH)
    try:
        return not os.fstatvfs(fd).f_flag & os.ST_RDONLY
    finally:
        os.close(fd)

def look(pid):
    with open(f'/proc/{pid}/stat', 'rb') as file:
        before, _bracket, after = file.read().rpartition(b')')
    if int(after.split()[1]) == os.getpid():
        return  # a child of this program
    comm = before.partition(b'(')[2].decode()
    met.add(comm)
    for name, test in WAYS.items():
        try:
            for found in test(f'/proc/{pid}'):
                got.add((name, comm, found))
        except OSError:
            pass

def exe(folder):
    path = f'{folder}/exe'
    target = os.readlink(path)
    if not target.startswith('/dev/crashcart/') and writable(path):
        yield target

def environ(folder):
    with open(f'{folder}/environ', 'rb') as file:
        text = file.read()
    if b'SECRET_OF_THE_HOST' in text or (text.strip(b'\\0') and not os.readlink(f'{folder}/exe').startswith('/dev/crashcart/')):
        yield repr(text[:200])

def fd(folder):
    # The command itself opens what it likes, but for what it was given.
    is_command = os.readlink(f'{folder}/exe').startswith('/dev/crashcart/')
    own = ('/dev/crashcart-scratch/', '/tmp/') if is_command else ()
    for name in ('0', '1', '2') if is_command else os.listdir(f'{folder}/fd'):
        target = os.readlink(f'{folder}/fd/{name}')
        if not target.startswith(('pipe:', 'socket:', '/dev/null', *own)):
            yield target

def map_files(folder):
    for name in os.listdir(f'{folder}/map_files'):
        target = os.readlink(f'{folder}/map_files/{name}')
        if not target.startswith('/dev/crashcart/') and writable(f'{folder}/map_files/{name}'):
            yield target

def is_made_for_it(top, place):
    # A root that was made for one command: nobody writes to it, and all in it is what the container has at the same place, or the tools.
    for name in os.listdir(top):
        found, own = f'{top}/{name}', f'{place}/{name}'
        status = os.lstat(found)
        if stat.S_ISLNK(status.st_mode) or own.startswith('/dev/crashcart'):
            continue
        if os.path.lexists(own) and os.path.samestat(status, os.lstat(own)):
            continue
        if status.st_dev != os.stat(top).st_dev or not stat.S_ISDIR(status.st_mode) or not is_made_for_it(found, own):
            return False
    return not writable(top)

def folders(folder):
    for name in ('root', 'cwd'):
        top = f'{folder}/{name}'
        if os.stat(top).st_dev != root.st_dev and not is_made_for_it(top, ''):
            yield name + ' ' + os.readlink(top)

def ptrace(folder):
    # In a child: what it traces goes on when that has ended.
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        if libc.ptrace(0x4206, int(folder[6:]), None, None) == 0:
            with open(f'{folder}/status') as file:
                fields = dict(line.split(':', 1) for line in file if ':' in line)
            # As it is called now: before it was traced it may have been somebody else.
            os.write(writer, (fields['Name'].strip() + ' ' + fields['CapPrm'].strip()).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    text = os.read(reader, 100).decode()
    os.close(reader)
    if text:
        yield text

WAYS = {one.__name__: one for one in (exe, environ, fd, map_files, folders, ptrace)}
while not os.path.exists('/tmp/enough'):
    for pid in filter(str.isdigit, os.listdir('/proc')):
        if pid not in own:
            try:
                look(pid)
            except OSError:
                pass
print(json.dumps([sorted(met), sorted(got)]))
"""


@pytest.fixture
def spy(container):
    """spy(KIND, ACT): what a program of a container's root of KIND met and got while ACT(NAME) ran."""

    def look(kind, act):
        name = container(options=("--network", "none", *CONTAINERS[kind]))
        host.call_module("crashcart_attach", containers=[name])
        command = ["docker", "exec", "-i", name, "/dev/crashcart/bin/python3", "-I", "-c", SPY]
        with host.start(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout.readline() == "looking\n"
            act(name)
            # From outside: a `docker exec` would show runc's own processes.
            Path(f"/proc/{host.find_pid(name)}/root/tmp/enough").touch()
            said, _nothing = process.communicate(timeout=host.seconds(60))
        bounding = capabilities.parse_sets(processes.parse_status(read_status(name))).bounding
        met, got = json.loads(said.splitlines()[-1])
        return met, got, bounding

    return look


def read_status(name):
    with open(f"/proc/{host.find_pid(name)}/status", "rb") as file:
        return file.read()


def run_by_module(name, rights):
    running = [
        host.start_module("crashcart_exec", containers=[name], argv=["sleep", seconds], rights=rights)
        for seconds in ("0", "0.2", "0.2")
    ]
    for process in running:
        assert host.parse_result(*process.communicate(timeout=host.seconds(60)))["results"][0]["rc"] == 0


def run_by_connection(name, rights, folder):
    command = {"argv": ["sleep", "0.2"]}
    inside.run_task(folder, name, "ansible.builtin.command", command, ansible_cart_rights=rights)
    # A large file, so that the spy meets who takes it.
    (folder / "source").write_bytes(bytes(30_000_000))
    copy = {"src": f"{folder}/source", "dest": "/tmp/copied"}
    inside.run_task(folder, name, "ansible.builtin.copy", copy, ansible_cart_rights=rights)
    fetch = {"src": "/tmp/copied", "dest": f"{folder}/fetched", "flat": True}
    inside.run_task(folder, name, "ansible.builtin.fetch", fetch, ansible_cart_rights=rights)
    assert (folder / "fetched").read_bytes() == bytes(30_000_000)


@pytest.mark.parametrize("way", ["module", "connection"])
@pytest.mark.parametrize(
    ("kind", "rights"),
    [
        ("Docker's default", "container"),
        ("Docker's default", "tools"),
        ("Docker's default", "host"),
        ("may trace and administer", "container"),
        ("may trace and administer", "tools"),
    ],
)
def test_nothing_of_the_host_is_to_be_had(spy, kind, rights, way, monkeypatch, tmp_path):
    monkeypatch.setenv(SECRET, "1")
    if way == "module":
        met, got, bounding = spy(kind, lambda name: run_by_module(name, rights))
    else:
        met, got, bounding = spy(kind, lambda name: run_by_connection(name, rights, tmp_path))
    assert {"crashcart", "sleep"} <= set(met)
    # To trace gives nothing where what is traced may do no more than who traces, and what tools need.
    allowed = bounding | capabilities.parse_names(["SYS_PTRACE", "NET_RAW"])
    traced = [
        one
        for one in got
        if one[0] == "ptrace" and int(one[2].split()[1], 16) & ~allowed == 0 and kind != "Docker's default"
    ]
    assert not [one for one in got if one not in traced and not is_equal(one, rights, bounding)], got


def is_equal(one, rights, bounding):
    """Return True if ONE is a command with the container's own rights: its root may trace that as what it started itself."""
    way, _comm, found = one
    name, _blank, has = found.rpartition(" ")
    return rights == "container" and way == "ptrace" and name != "crashcart" and int(has, 16) & ~bounding == 0


@pytest.mark.parametrize("way", [read_only.make_read_only, read_only.remount_read_only])
def test_the_view_of_the_host_is_read_only_on_every_kernel(way):
    """By the call that came with Linux 5.12, and mount by mount as before."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            syscalls.mount_make_slave("/")
            before = {mount.mount_point: mount.options for mount in mounts.read_mounts()}
            way()
            # Of several mounts at one place the last one is what a path leads to.
            after = {mount.mount_point: mount.options for mount in mounts.read_mounts()}
            os.write(writer, json.dumps([before, after]).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        before, after = json.load(file)
    os.waitpid(child, 0)
    assert [place for place, options in after.items() if options.split(",")[0] != "ro"] == ["/proc"]
    kept = {"nosuid", "nodev", "noexec", "relatime", "noatime"}
    assert {place: set(options.split(",")) & kept for place, options in after.items()} == {
        place: set(options.split(",")) & kept for place, options in before.items()
    }
