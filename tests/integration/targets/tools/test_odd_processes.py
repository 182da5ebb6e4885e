# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers whose first process is not as usual: its first thread has ended, or it is dead and nobody has been told."""

from __future__ import annotations

import os
import signal

import pytest
from support import host

NETWORK = ("--network", "none")
# The first thread ends, as pthread_exit(3) ends it. Another one goes on, and looks for a file that is not there.
HEADLESS = """
import ctypes, os, platform, threading, time
def work():
    while True:
        os.path.exists("/nonesuch/headless")
        time.sleep(0.1)
threading.Thread(target=work).start()
exit_thread = {"x86_64": 60, "aarch64": 93}[platform.machine()]
ctypes.CDLL(None).syscall(exit_thread, 0)
"""


@pytest.fixture
def headless(container):
    """Give a container of whose first process only a second thread is left."""
    name = container("python", "python3", "-c", HEADLESS)
    first = host.find_pid(name)
    host.wait_until(lambda: _read_state(first) == "Z" and len(os.listdir(f"/proc/{first}/task")) == 2)
    yield name
    os.kill(first, signal.SIGKILL)  # Docker takes the process for a dead one, and does not remove its container


def _read_state(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return file.read().rpartition(") ")[2][0]


def test_tools_where_the_first_thread_has_ended(headless):
    assert host.call_module("crashcart_attach", containers=[headless])["changed"]
    assert not host.call_module("crashcart_attach", containers=[headless])["changed"]
    (attached,) = host.call_module("crashcart_info", gather=["attachments"])["attachments"]
    assert attached["container"] == headless
    assert host.call_module("crashcart_attach", containers=[headless], state="detached")["changed"]


@pytest.mark.parametrize("rights", ["container", "tools", "host"])
def test_a_command_where_the_first_thread_has_ended(headless, rights):
    (result,) = host.execute(containers=[headless], argv=["cat", "/proc/1/comm", "/proc/self/status"], rights=rights)
    name, *status = result["stdout"].splitlines()
    assert (result["rc"], name[:6]) == (0, "python"), result
    filtered = next(line.split()[1] for line in status if line.startswith("Seccomp:"))
    assert filtered == ("0" if rights == "host" else "2")


def test_a_trace_where_the_first_thread_has_ended(headless):
    first = host.find_pid(headless)
    (instance,) = host.call_module("ftrace_instance", containers=[headless])["instances"]
    folder = f"{host.TRACEFS}/instances/{instance['name']}"
    host.wait_until(lambda: "-> " in _read(f"{folder}/trace") or "sys_exit" in _read(f"{folder}/trace"))
    assert str(first) in _read(f"{folder}/set_event_pid").split()


def _read(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def test_a_first_process_that_nobody_has_reaped(container):
    """The shim that would reap it is stopped, so that the engine believes the container runs."""
    name = container("busybox", options=(*NETWORK, "--pid", "host"))
    first = host.find_pid(name)
    with open(f"/proc/{first}/stat", encoding="ascii") as file:
        shim = int(file.read().rpartition(") ")[2].split()[1])
    os.kill(shim, signal.SIGSTOP)
    try:
        os.kill(first, signal.SIGKILL)
        host.wait_until(lambda: _read_state(first) == "Z")
        for module, more in (
            ("crashcart_attach", {}),
            ("crashcart_exec", {"argv": ["true"]}),
        ):
            with pytest.raises(host.ModuleFailed, match=f"{name}.* has just ended"):
                host.call_module(module, containers=[name], **more)
        assert host.list_loop_devices() == []
    finally:
        os.kill(shim, signal.SIGCONT)
