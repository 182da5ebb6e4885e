# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Descriptors, waits and limits of processes: texts of /proc, and real processes that play a container's."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container, ContainerGoneError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import holdings
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.holdings import (
    collect,
    descriptors,
    members,
    resources,
    sizes,
    sockets,
    waits,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.mounts import parse_mountinfo
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import Process, ProcessGone

LINE = b"  0: 0100007F:1F90 0200000A:1538 01 00000000:00000000 00:00000000 00000000     0        0 4711 1 00000000 20 4 30 10 -1"
LISTENS = b"  1: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1 00000000 100 0 0 10 0"
FUTEX = b"202 0x7f0012345678 0x80 0x2 0x0 0x0 0xffffffffffffffff 0x7ffd00000000 0x7f0011111111\n"
LONG = members.Until(10**6)  # from now on, while these tests may begin much later
OVER = members.Until(-1)


def read_here(wanted):
    """Read what this very process holds, whose pid is no container's."""
    with Process(os.getpid()) as process:
        return wanted(members.Members([process], 0, "", b""))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0100007F:1F90", "127.0.0.1:8080"),
        ("00000000:0000", "0.0.0.0:0"),
        ("00000000000000000000000001000000:0050", "[::1]:80"),
        ("00000000000000000000000000000000:0050", "[::]:80"),
        ("0000000000000000FFFF00000200000A:1538", "10.0.0.2:5432"),
    ],
)
def test_addresses_of_sockets(text, address):
    if sys.byteorder == "big":
        pytest.skip("the texts are of a machine with the other byte order")
    assert sockets.parse_address(text) == address


@pytest.mark.parametrize("text", ["", "local_address", "0100007F", "G100007F:0050", "0100007F0100007F:50"])
def test_what_is_no_address(text):
    with pytest.raises(ValueError, match="."):
        sockets.parse_address(text)


def test_lines_of_sockets():
    assert sockets.parse_inet("tcp", LINE)[0] == 4711
    assert sockets.parse_inet("tcp", LISTENS) == (4712, "tcp 0.0.0.0:80 LISTEN")
    assert sockets.parse_inet("udp", LISTENS) == (4712, "udp 0.0.0.0:80")
    assert sockets.parse_unix(b"000: 00000002 00000000 00010000 0001 01 77 /run/x y.sock") == (77, "unix /run/x y.sock")
    assert sockets.parse_unix(b"000: 00000002 00000000 00010000 0001 01 77 @abstract") == (77, "unix @abstract")
    assert sockets.parse_unix(b"000: 00000002 00000000 00000000 0001 03 78") == (78, "unix:[78]")
    for line in (b"Num       RefCount Protocol Flags    Type St Inode Path", b"", b"x: 1"):
        with pytest.raises((ValueError, IndexError)):
            sockets.parse_unix(line)


def test_calls_that_threads_wait_in():
    assert waits.parse_syscall(FUTEX) == (202, [0x7F0012345678, 0x80, 2, 0, 0, 2**64 - 1])
    for text in (b"running\n", b"-1 0x7ffd 0x7f00\n", b"", b"x 0x1 0x1 0x1 0x1 0x1 0x1 0x1 0x1"):
        assert waits.parse_syscall(text) is None


def test_limits_of_processes():
    text = (
        b"Limit                     Soft Limit           Hard Limit           Units     \n"
        b"Max processes             unlimited            96365                processes \n"
        b"Max open files            1024                 524288               files     \n"
    )
    assert resources.parse_limits(text) == {"nproc": None, "nofile": 1024}
    with open("/proc/self/limits", "rb") as file:
        assert resources.parse_limits(file.read())["nofile"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def put_all(folder, files):
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="ascii")


CONTAINER = "c" * 64
V1 = f"4:pids:/docker/{CONTAINER}\n3:memory:/docker/{CONTAINER}/below\n0::/\n"
V2 = f"0::/system.slice/docker-{CONTAINER}.scope/init\n"
BOTH = holdings.GROUP


def read_group(tmp_path, monkeypatch, cgroup, mounts):
    lines = [
        f"{number} 1 0:{number} / {tmp_path}/{name} rw - {kind} cgroup rw" for number, (name, kind) in enumerate(mounts)
    ]
    monkeypatch.setattr(resources, "read_mounts", lambda *_words: list(parse_mountinfo(lines)))
    return resources.read_group(members.Members([], 0, CONTAINER, cgroup.encode()))


def test_a_control_group_of_version_1(tmp_path, monkeypatch):
    put_all(
        tmp_path / "pids" / "docker" / CONTAINER, {"pids.max": "100\n", "pids.current": "7\n", "pids.events": "max 3\n"}
    )
    put_all(
        tmp_path / "memory" / "docker" / CONTAINER,
        {
            "memory.limit_in_bytes": "1048576\n",
            "memory.usage_in_bytes": "524288\n",
            "memory.memsw.limit_in_bytes": "3145728\n",
            "memory.memsw.usage_in_bytes": "524388\n",
            "memory.failcnt": "5\n",
            "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        },
    )
    found = read_group(tmp_path, monkeypatch, V1, [("pids", "cgroup"), ("memory", "cgroup"), ("unified", "cgroup2")])
    assert found == {
        "pids.max": 100,
        "pids.current": 7,
        "pids.events.max": 3,
        "memory.max": 1048576,
        "memory.current": 524288,
        "memory.swap.max": 2097152,
        "memory.swap.current": 100,
        "memory.events.max": 5,
        "memory.events.oom_kill": 2,
    }
    put = tmp_path / "memory" / "docker" / CONTAINER / "memory.limit_in_bytes"
    put.write_text("9223372036854771712\n", encoding="ascii")
    assert read_group(tmp_path, monkeypatch, V1, [("memory", "cgroup")])["memory.max"] is None


def test_a_control_group_of_version_2(tmp_path, monkeypatch):
    files = {
        "pids.max": "max\n",
        "pids.current": "7\n",
        "pids.events": "max 0\n",
        "memory.max": "max\n",
        "memory.current": "4096\n",
        "memory.swap.max": "0\n",
        "memory.events": "low 0\nhigh 0\nmax 4\noom 2\noom_kill 1\noom_group_kill 0\n",
    }
    put_all(tmp_path / "all" / "system.slice" / f"docker-{CONTAINER}.scope", files)
    found = read_group(tmp_path, monkeypatch, V2, [("all", "cgroup2")])
    assert found == {
        "pids.max": None,
        "pids.current": 7,
        "pids.events.max": 0,
        "memory.max": None,
        "memory.current": 4096,
        "memory.swap.max": 0,
        "memory.events.max": 4,
        "memory.events.oom": 2,
        "memory.events.oom_kill": 1,
    }


@pytest.mark.parametrize("cgroup", ["", "0::/\n", V2])
def test_without_a_group_or_its_files_nothing_is_known(tmp_path, monkeypatch, cgroup):
    assert read_group(tmp_path, monkeypatch, cgroup, [("all", "cgroup2")]) == {}
    assert read_group(tmp_path, monkeypatch, cgroup, []) == {}


MOUNTS = [
    "1 0 0:1 / / rw - overlay overlay rw",
    "2 1 0:2 / /dev rw - tmpfs tmpfs rw",
    "3 2 0:3 / /dev/shm rw - tmpfs shm rw",
    "4 1 0:4 / /fuse rw - fuse.x x rw",
    "5 4 0:5 / /fuse/tmp rw - tmpfs tmpfs rw",
    "6 1 0:6 / /nfs rw - nfs4 server:/x rw",
    "7 1 0:7 / /over rw - overlay overlay rw",
    "8 1 0:8 / /proc rw - proc proc rw",
    "9 8 8:1 / /proc/x rw - ext4 /dev/sda1 rw",
    "11 12 0:9 / /loop rw - tmpfs tmpfs rw",
    "12 11 0:9 / /loop/x rw - tmpfs tmpfs rw",
]


def test_only_what_cannot_hang_is_asked_for_its_size():
    paths = [mount.mount_point for mount in sizes.gen_sized(parse_mountinfo(MOUNTS))]
    assert paths == ["/", "/dev", "/dev/shm", "/proc/x", "/loop", "/loop/x"]


def test_sizes_of_this_process_s_own_mounts():
    found, left_out = read_here(lambda one: sizes.list_sizes(one.first, LONG))
    assert left_out == 0 or len(found) == holdings.MAX_MOUNTS
    for entry in found:
        told = os.statvfs(entry["path"])
        assert entry["size"] == (told.f_blocks * told.f_frsize or None)
    assert read_here(lambda one: sizes.list_sizes(one.first, OVER))[0] == []


@contextmanager
def opened(*files):
    try:
        yield [file.fileno() for file in files]
    finally:
        for file in files:
            file.close()


def test_descriptors_of_this_process(tmp_path):
    strange = tmp_path / os.fsdecode(b"new\nline \xff")
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(str(tmp_path / "x.sock"))
    listening = socket.create_server(("::1", 0), family=socket.AF_INET6) if socket.has_ipv6 else None
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.connect(("127.0.0.1", 53))
    files = [server, client, bound, udp, open(strange, "w", encoding="utf-8"), *([listening] if listening else [])]
    with opened(*files) as fds:
        entries, left_out = read_here(lambda one: descriptors.list_descriptors(one, LONG))
        count = read_here(lambda one: descriptors.count_open(one.first))
        here, there = ("{}:{}".format(*one.getsockname()) for one in (client, server))
        assert left_out <= 2  # the descriptors by which the folder is listed
        assert abs(count - len(entries)) <= 3
        targets = {entry["fd"]: entry["target"] for entry in entries}
        assert [targets[fd] for fd in fds[:5]] == [
            f"tcp {there} LISTEN",
            f"tcp {here}->{there} ESTABLISHED",
            f"unix {tmp_path}/x.sock",
            f"udp {udp.getsockname()[0]}:{udp.getsockname()[1]}->127.0.0.1:53",
            f"{tmp_path}/new\nline \\xff",
        ]
        if listening is not None:
            assert targets[fds[5]] == f"tcp [::1]:{listening.getsockname()[1]} LISTEN"
        assert all(entry["pid"] == os.getpid() for entry in entries)


def test_a_name_of_a_socket_that_pretends_to_be_another_socket_is_not_believed():
    victim = socket.socket(socket.AF_UNIX)
    victim.bind("")  # the kernel chooses an abstract name
    inode = os.fstat(victim.fileno()).st_ino
    forger = socket.socket(socket.AF_UNIX)
    forger.bind(f"\0x\n0: 2 0 0 1 1 {inode} /forged".encode())
    with opened(victim, forger):
        assert read_here(lambda one: sockets.describe_sockets(one.first, {inode}, LONG)) == {}
    victim = socket.socket(socket.AF_UNIX)
    victim.bind("")
    with opened(victim):
        inode = os.fstat(victim.fileno()).st_ino
        found = read_here(lambda one: sockets.describe_sockets(one.first, {inode}, LONG))
        assert found == {inode: "unix @" + victim.getsockname()[1:].decode()}


@pytest.mark.parametrize(
    ("counts", "most", "share"),
    [([], 4, 1), ([3, 1], 4, 3), ([100, 1], 11, 10), ([10] * 20, 4, 1), ([512] * 4, 4096, 512)],
)
def test_each_process_has_a_share_of_descriptors(counts, most, share):
    assert descriptors.find_share(counts, most) == share


@pytest.mark.parametrize(
    ("most", "chosen"),
    [(0, []), (1, [3]), (2, [3, 9]), (5, [3, 4, 5, 8, 9]), (7, [*range(3, 10)]), (9, [*range(3, 10)])],
)
def test_of_too_many_descriptors_the_lowest_and_the_highest_are_kept(most, chosen):
    assert descriptors.choose(range(3, 10), most) == chosen


def test_of_too_many_descriptors_the_number_is_said(monkeypatch):
    monkeypatch.setattr(descriptors, "MAX_DESCRIPTORS_EACH", 20)
    with opened(*(open("/dev/null", encoding="ascii") for _number in range(30))) as fds:
        entries, left_out = read_here(lambda one: descriptors.list_descriptors(one, LONG))
        assert 15 < len(entries) <= 20  # the descriptors by which the folder is listed are gone again
        assert left_out >= 10
        numbers = [entry["fd"] for entry in entries]
        assert numbers == sorted(numbers)
        assert numbers[0] < min(fds) and numbers[-1] >= max(fds)
    assert read_here(lambda one: descriptors.list_descriptors(one, OVER))[0] == []


def test_a_thread_that_waits(tmp_path):
    if not os.access("/proc/self/syscall", os.R_OK):
        pytest.skip("this kernel does not tell what threads wait in")
    held = open(tmp_path / "lock", "w", encoding="ascii")
    fcntl.flock(held, fcntl.LOCK_EX)
    other = open(tmp_path / "lock", "w", encoding="ascii")
    tids = []

    def wait():
        tids.append(threading.get_native_id())
        fcntl.flock(other, fcntl.LOCK_EX)

    thread = threading.Thread(target=wait)
    with opened(held, other):
        thread.start()
        try:
            until = time.monotonic() + 20
            found = []
            while not any(entry["args"][:2] == [other.fileno(), fcntl.LOCK_EX] for entry in found):
                assert time.monotonic() < until, found
                found, left_out = read_here(lambda one: waits.list_waits(one, LONG))
                found = [entry for entry in found if entry["tid"] in tids]
            assert left_out == 0
        finally:
            fcntl.flock(held, fcntl.LOCK_UN)
            thread.join()
    found, left_out = read_here(lambda one: waits.list_waits(one, OVER))
    assert found == [] and left_out >= 1  # the kernel may show the ended thread for a while


def test_a_process_that_has_ended_holds_nothing():
    with subprocess.Popen(["sleep", "600"]) as child:
        process = Process(child.pid)
        child.kill()
    gone = members.Members([process], 0, "", b"")
    assert descriptors.list_descriptors(gone, LONG) == ([], 0)
    assert waits.list_waits(gone, LONG) == ([], 0)
    assert resources.list_limits(gone, LONG) == ([], 0)
    with pytest.raises((ProcessGone, OSError)):
        sizes.list_sizes(process, LONG)
    process.close()


@pytest.fixture
def container(tmp_path, monkeypatch):
    """Two processes that play a container's, in a folder that plays its control group."""
    with subprocess.Popen(["sleep", "600"]) as first, subprocess.Popen(["sleep", "600"]) as second:
        (tmp_path / "cgroup.procs").write_text(f"{first.pid}\n{second.pid}\n", encoding="ascii")
        monkeypatch.setattr(cgroups, "find_container_directory", lambda _text, _id="": str(tmp_path))
        monkeypatch.setattr(members, "open_process", lambda one: Process(one.pid))
        yield Container(CONTAINER, "web", "running", first.pid, "image", {})
        first.kill()
        second.kill()


def test_all_of_a_container(container):
    found = collect.collect(container)
    assert json.loads(json.dumps(found)) == found
    pids = [entry["pid"] for entry in found["resource_limits"]["processes"]]
    assert pids[0] == container.pid and len(pids) == 2
    assert {entry["pid"] for entry in found["descriptors"]} == set(pids)
    assert abs(found["time_ns"] - time.time_ns()) < 60 * 10**9
    tables = holdings.join(found, {})
    assert list(tables) == list(holdings.NAMES)
    for name, table in tables.items():
        assert holdings.is_sound(name, table)
        assert table["last"] is None and table["first"] == found[name]
        assert table["time_ns"] == {"first": found["time_ns"], "last": None}


def test_a_pid_that_went_to_another_process_is_left_out(container, tmp_path, monkeypatch):
    rounds = itertools.count()
    pids = [int(line) for line in (tmp_path / "cgroup.procs").read_text(encoding="ascii").split()]
    # The second process leaves the group between the list and the look at the list again.
    monkeypatch.setattr(cgroups, "gen_pids", lambda _folder: iter(pids if next(rounds) == 0 else pids[:1]))
    assert [process.pid for process in members.hold_members(container).held] == [container.pid]


def test_a_host_that_gives_few_descriptors(container, monkeypatch):
    monkeypatch.setattr(members, "SPARE_DESCRIPTORS", resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 1)
    found = members.hold_members(container)
    assert (len(found.held), found.left_out) == (1, 1)


def test_more_processes_than_are_looked_at(container, monkeypatch):
    monkeypatch.setattr(members, "MAX_PROCESSES", 1)
    found = members.hold_members(container)
    assert (len(found.held), found.left_out) == (1, 1)


@pytest.mark.parametrize("part", range(len(collect._PARTS)))
def test_a_part_that_hangs_costs_itself_alone(container, monkeypatch, part):
    monkeypatch.setattr(collect, "_HANG_S", 1.0)
    parts = list(collect._PARTS)
    parts[part] = (parts[part][0], lambda *_words: signal.pause())
    monkeypatch.setattr(collect, "_PARTS", tuple(parts))
    found = collect.collect(container)
    known = [found[name] is not None for name in holdings.NAMES]
    assert known == [part != 0, part != 1, part != 2]
    if part == 3:
        assert found["resource_limits"]["mounts"] == []


def test_a_container_that_does_not_run_holds_nothing_that_is_known(container, monkeypatch):
    assert collect.collect(None) == {}
    assert collect.collect(Container(CONTAINER, "web", "exited", 0, "image", {})) == {}

    def refuse(_container):
        raise ContainerGoneError("it has just ended")

    monkeypatch.setattr(members, "open_process", refuse)
    assert collect.collect(container) == {}
