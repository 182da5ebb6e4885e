# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of the tests' fleet that need no guest: its cache, its order of kernel modules, what it believes of processes and ports."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "fleet"))

import fleet
import golden
import guest
import machine
import processes


class Maker:
    """Fills a folder, and counts how often; with DELAY_S it takes its time."""

    def __init__(self, delay_s=0.0):
        self.times = 0
        self._delay_s = delay_s

    def __call__(self, folder):
        time.sleep(self._delay_s)
        self.times += 1
        (folder / "golden").mkdir()
        (folder / "golden" / "memory").write_bytes(b"0123456789")


def test_a_golden_guest_is_made_once(tmp_path):
    make = Maker()
    folder = golden.keep(tmp_path / "cache", "key", make)
    assert (folder / "golden" / "memory").read_bytes() == b"0123456789"
    assert golden.keep(tmp_path / "cache", "key", make) == folder
    assert make.times == 1
    assert golden.keep(tmp_path / "cache", "other", make) != folder
    assert make.times == 2


@pytest.mark.parametrize("damage", ["cut", "gone", "no sizes", "not json"])
def test_a_damaged_golden_guest_is_made_anew(tmp_path, damage, capsys):
    make = Maker()
    folder = golden.keep(tmp_path, "key", make)
    memory = folder / "golden" / "memory"
    {
        "cut": lambda: os.truncate(memory, 3),
        "gone": memory.unlink,
        "no sizes": (folder / "sizes.json").unlink,
        "not json": lambda: (folder / "sizes.json").write_text("{"),
    }[damage]()
    golden.keep(tmp_path, "key", make)
    assert make.times == 2
    assert memory.read_bytes() == b"0123456789"
    assert "is damaged" in capsys.readouterr().err


def test_what_a_killed_build_has_left_is_removed(tmp_path):
    (tmp_path / "new-killed").mkdir()
    (tmp_path / "new-killed" / "disk.raw").touch()
    golden.keep(tmp_path, "key", Maker())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "lock"]


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "disk.raw").touch()
        raise RuntimeError("no mirror")

    with pytest.raises(RuntimeError, match="no mirror"):
        golden.keep(tmp_path, "key", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_two_at_once_make_one(tmp_path):
    make = Maker(0.2)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _number: golden.keep(tmp_path, "key", make), range(2))
    assert first == second
    assert make.times == 1


def test_kernel_modules_are_loaded_after_what_they_need(tmp_path):
    (tmp_path / "modules.builtin").write_text("kernel/drivers/virtio/virtio_rng.ko\n")
    (tmp_path / "modules.dep").write_text(
        "kernel/virtio-pci.ko: kernel/virtio-ring.ko kernel/virtio.ko\n"
        "kernel/virtio.ko:\nkernel/virtio-ring.ko: kernel/virtio.ko\nkernel/virtio_blk.ko: kernel/virtio-ring.ko kernel/virtio.ko\n"
    )
    order = guest.order_modules(tmp_path, ["virtio_pci", "virtio_blk", "virtio_rng"])
    assert order == ["kernel/virtio.ko", "kernel/virtio-ring.ko", "kernel/virtio-pci.ko", "kernel/virtio_blk.ko"]


def test_addresses_differ_and_stay():
    first, second = (machine.make_mac(Path(f"/build/fleet/{name}")) for name in ("host1", "host2"))
    assert first != second
    assert first == machine.make_mac(Path("/build/fleet/host1"))
    assert len(first.split(":")) == 6
    assert int(first[:2], 16) & 3 == 2  # of one machine, and of no maker


def test_a_pid_that_is_somebody_elses_is_no_machine(tmp_path):
    there = machine.Machine(tmp_path, tmp_path)
    assert there.find_pid() is None
    (tmp_path / "pid").write_text(f"{os.getpid()}\n")
    assert there.find_pid() is None
    there.cut_power()  # and kills nobody
    with subprocess.Popen([sys.executable, "-c", "input()", tmp_path / "pid"], stdin=subprocess.PIPE) as alike:
        (tmp_path / "pid").write_text(f"{alike.pid}\n")
        while there.find_pid() is None:
            time.sleep(0.01)
        there.cut_power()
        assert there.find_pid() is None
        assert alike.poll() == -9


def test_a_wait_ends_and_shows_the_console(tmp_path):
    (tmp_path / "console.log").write_text("Kernel panic\n")
    with pytest.raises(machine.MachineError, match=r"did not start within [\d.]+ s; it last said:\nKernel panic"):
        machine.Machine(tmp_path, tmp_path).wait(lambda: False, 0.1, "start")


@pytest.mark.parametrize(("greeting", "expected"), [(b"SSH-2.0-x\r\n", True), (b"HTTP", False), (b"", False)])
def test_only_an_ssh_server_greets(greeting, expected):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def greet():
            connection, _address = server.accept()
            connection.sendall(greeting)
            connection.close()

        thread = threading.Thread(target=greet)
        thread.start()
        assert machine.has_banner(port) is expected
        thread.join()
    assert machine.has_banner(port) is False


def test_a_fleet_of_none_is_refused():
    with pytest.raises(machine.MachineError, match="0 guests are none: give a number from 1 on"):
        fleet.up(0)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["up", "many"], 1, "'many' is no number of guests"),
        (["up", "0"], 1, "0 guests are none"),
        (["ping"], 1, "no guest runs: start some with make fleet-up"),
        (["ssh", "host9"], 1, "host9 does not run; running: none"),
        (["sing"], 2, "Usage:"),
    ],
)
def test_the_command_line_says_what_is_wrong(tmp_path, monkeypatch, capsys, arguments, code, says):
    monkeypatch.setattr(fleet, "FOLDER", tmp_path / "fleet")
    try:
        assert fleet.main(arguments) == code
        said = "".join(capsys.readouterr())
    except machine.MachineError as error:  # what the process ends with, as 1
        assert code == 1
        said = str(error)
    assert says in said


STARTER = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
import processes
processes.end_all_on_sigterm(lambda: os.write(1, b"cleaned\\n"))
one = processes.start(["sh", "-c", "trap '' TERM; sleep 1000 & echo $!; sleep 1000"])
print(one.pid, one.stdout.readline(), flush=True)
time.sleep(1000)
"""


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_for_the_end_of(pids):
    deadline = time.monotonic() + 10
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline, pids
        time.sleep(0.01)


def test_a_run_that_is_told_to_end_leaves_no_process():
    command = [sys.executable, "-c", STARTER, str(Path(fleet.__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        pids = [int(word) for word in (run.stdout.readline() + run.stdout.readline()).split()]
        assert len(pids) == 2
        assert all(map(is_alive, pids))
        run.terminate()
        assert run.stdout.read() == "cleaned\n"
        assert run.wait() == 128 + 15
    wait_for_the_end_of(pids)


MAKER = """
import subprocess, sys
sys.path.insert(0, sys.argv[1])
import processes
inside = "sleep 1000 & echo $!; sleep 1000 & echo $!; sleep 1000"
subprocess.Popen(processes.bind(["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", inside]))
subprocess.run(processes.bind(["timeout", "1000", *processes.bind(["sh", "-c", "echo $$; exec sleep 1000"])]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces")
def test_what_is_bound_ends_also_with_a_maker_that_is_killed():
    command = [sys.executable, "-c", MAKER, str(Path(fleet.__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        for _line in range(3):
            assert int(run.stdout.readline()) > 0
        run.kill()
        # Whoever lives on has the pipe's other end; inside of the namespace pids are others.
        assert run.communicate(timeout=10)[0] == ""


def test_what_does_not_mind_being_ended_is_killed_with_its_children():
    process = processes.start(["sh", "-c", "trap '' TERM; sleep 1000 & echo $!; sleep 1000"])
    pids = [process.pid, int(process.stdout.readline())]
    processes.end(process, patience_s=0.1)
    wait_for_the_end_of(pids)
