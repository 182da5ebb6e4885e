# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes that are held while they live and die, and what /proc says of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import processes
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import Process, ProcessGone

STATUS = (
    b"Name:\ta:b \xff\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t4242\nPid:\t4243\nPPid:\t1\n"
    b"NSpid:\t4243\t77\t7\nVmRSS:\t    1024 kB\nno colon here\nGroups:\t\n"
)


@pytest.fixture(name="child")
def start_child():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdin=subprocess.DEVNULL)
    yield child
    child.kill()
    child.wait()


def end(child):
    child.kill()
    child.wait()


def test_status_fields():
    fields = processes.parse_status(STATUS)
    assert fields["Tgid"] == "4242"
    assert fields["Name"] == "a:b \ufffd"
    assert fields["NSpid"].split() == ["4243", "77", "7"]
    assert fields["VmRSS"] == "1024 kB"
    assert fields["Groups"] == ""
    assert "no colon here" not in fields


def test_status_of_nothing():
    assert processes.parse_status(b"") == {}


@pytest.mark.parametrize("pid", [1, 0, -1, -4242])
def test_the_hosts_first_process_and_no_process_are_never_held(pid):
    with pytest.raises(ProcessGone) as caught:
        Process(pid)
    assert caught.value.pid == pid


def test_a_process_that_has_ended_cannot_be_held(child):
    end(child)
    with pytest.raises(ProcessGone) as caught:
        Process(child.pid)
    assert caught.value.pid == child.pid


def test_a_held_process_that_lives(child):
    with Process(child.pid) as process:
        assert processes.parse_status(process.read("status"))["Tgid"] == str(child.pid)
        assert process.namespace("mnt") == os.readlink("/proc/self/ns/mnt")
        fd = process.open("root", os.O_PATH | os.O_DIRECTORY)
        assert os.path.samestat(os.fstat(fd), os.stat("/"))
        os.close(fd)


def test_every_look_at_a_held_process_that_died_says_so(child):
    with Process(child.pid) as process:
        status_fd = process.open("status")
        end(child)
        for look in (
            lambda: process.read("status"),
            lambda: process.open("root", os.O_PATH),
            lambda: process.namespace("mnt"),
        ):
            with pytest.raises(ProcessGone) as caught:
                look()
            assert caught.value.pid == child.pid
        with pytest.raises(ProcessLookupError):
            processes.read_all(status_fd)
        os.close(status_fd)
        process.kill(signal.SIGKILL)  # of no effect, and no error


def test_a_signal_reaches_the_held_process(child):
    with Process(child.pid) as process:
        process.kill(signal.SIGTERM)
    assert child.wait(10) == -signal.SIGTERM


def test_the_descriptor_is_closed_once(child):
    before = sorted(os.listdir("/proc/self/fd"))
    with Process(child.pid) as process:
        assert len(os.listdir("/proc/self/fd")) == len(before) + 1
    # The number may be somebody else's by now: a second close must leave it alone.
    stranger = os.open("/dev/null", os.O_RDONLY)
    process.close()
    os.fstat(stranger)
    os.close(stranger)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_all_bytes_are_read():
    reader, writer = os.pipe()
    content = bytes(range(256)) * 1024

    def write():
        view = memoryview(content)
        while view:
            view = view[os.write(writer, view) :]
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    assert processes.read_all(reader) == content
    thread.join()
    os.close(reader)


def test_pids_and_threads(child):
    assert {os.getpid(), child.pid} <= set(processes.read_pids())
    ready, done = threading.Event(), threading.Event()
    tids = []

    def stay():
        tids.append(threading.get_native_id())
        ready.set()
        done.wait(10)

    thread = threading.Thread(target=stay)
    thread.start()
    ready.wait(10)
    try:
        assert {os.getpid(), tids[0]} <= set(processes.read_threads(os.getpid()))
        task = processes.read_task(tids[0])
        assert (task.tid, task.tgid) == (tids[0], os.getpid())
    finally:
        done.set()
        thread.join()


def test_a_dead_process_has_no_threads_no_task_and_no_parent(child):
    end(child)
    assert processes.read_threads(child.pid) == []
    assert processes.read_task(child.pid) is None
    assert processes.read_parent(child.pid) == 0


@pytest.mark.parametrize("comm", [b"plain", b") S 1 1 (", b"a\nTgid:\t1", b"\xff\x1b[31m", b"x y (z)"])
def test_a_hostile_name_does_not_change_what_is_read_of_a_process(comm):
    script = (
        "import sys, time; open('/proc/self/comm', 'wb').write(sys.stdin.buffer.read());"
        " print(flush=True); time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        child.stdin.write(comm)
        child.stdin.close()
        child.stdout.readline()
        assert processes.read_parent(child.pid) == os.getpid()
        task = processes.read_task(child.pid)
        assert (task.tid, task.tgid) == (child.pid, child.pid)
        assert task.comm == comm.decode("utf-8", "replace")
    finally:
        child.stdout.close()
        end(child)


HEADLESS = """
import ctypes, platform, sys, threading
threading.Thread(target=sys.stdin.readline).start()
exit_thread = {"x86_64": 60, "aarch64": 93}[platform.machine()]
ctypes.CDLL(None).syscall(exit_thread, 0)
"""


@pytest.fixture(name="headless")
def start_headless():
    """Start a process whose first thread ends, and whose second one ends with the process's stdin."""
    child = subprocess.Popen([sys.executable, "-c", HEADLESS], stdin=subprocess.PIPE)
    while _read_state(child.pid) != "Z":
        pass
    yield child
    child.kill()
    child.communicate()


def _read_state(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return file.read().rpartition(") ")[2][0]


def test_a_process_whose_first_thread_has_ended_is_read_of_another_one(headless):
    with Process(headless.pid) as process:
        assert process.pid == headless.pid
        assert str(process.tid) in os.listdir(f"/proc/{headless.pid}/task")
        assert process.namespace("mnt") == os.readlink("/proc/self/ns/mnt")
        assert process.read_link("root") == "/"
        assert process.read("mountinfo")
        assert processes.parse_status(process.read("status"))["Tgid"] == str(headless.pid)
        assert process.read_start_ticks() == processes.read_start_ticks(headless.pid)


def test_a_first_thread_that_ends_while_its_process_is_held():
    child = subprocess.Popen([sys.executable, "-c", f"input()\n{HEADLESS}"], stdin=subprocess.PIPE)
    try:
        with Process(child.pid) as process:
            assert process.tid == child.pid
            ticks = process.read_start_ticks()
            child.stdin.write(b"go\n")
            child.stdin.flush()
            while _read_state(child.pid) != "Z":
                pass
            assert process.namespace("mnt") == os.readlink("/proc/self/ns/mnt")
            assert process.tid != child.pid
            assert process.read_start_ticks() == ticks
    finally:
        child.kill()
        child.communicate()


def test_a_process_without_a_living_thread_has_ended(child):
    child.kill()
    with Process(child.pid) as process:
        while _read_state(child.pid) != "Z":
            pass
        for look in (
            lambda: process.namespace("mnt"),
            lambda: process.read_link("root"),
            lambda: process.read("mountinfo"),
        ):
            with pytest.raises(ProcessGone):
                look()


def test_the_number_in_the_innermost_namespace_is_the_last(child):
    task = processes.read_task(child.pid)
    with open(f"/proc/{child.pid}/status", "rb") as file:
        numbers = processes.parse_status(file.read())["NSpid"].split()
    assert task.container_tid == int(numbers[-1])


def test_a_thread_that_lives_and_one_that_does_not(child):
    assert processes.is_alive(child.pid)
    end(child)
    assert not processes.is_alive(child.pid)


def test_a_title_is_what_others_see():
    held, hold = os.pipe()
    said, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(hold)
            processes.set_title("crashcart")
            os.write(say, b"x")
            os.read(held, 1)
        finally:
            os._exit(0)
    os.close(held)
    os.close(say)
    try:
        assert os.read(said, 1) == b"x"
        with open(f"/proc/{pid}/comm", "rb") as file:
            assert file.read() == b"crashcart\n"
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            assert file.read().rstrip(b"\0") == b"crashcart"
    finally:
        os.close(hold)
        os.close(said)
        os.waitpid(pid, 0)
