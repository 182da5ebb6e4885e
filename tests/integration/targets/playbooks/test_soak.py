# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check that a schedule loses nothing while things go wrong, and brings nothing home twice.

The hosts are three names of this machine, each with an sshd of its own. So three fetch from one host at the same time, and what they bring is
in any of their folders. `make soak` does it on real hosts, for longer.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import host, soak
from support.schedules import Schedule, kill_with_children

NAMES = ("one", "two", "three")
ROOM = 64 << 20  # of the store's file system


class Sshd:
    """An sshd for one more name of this machine, by the settings in FOLDER, that can be killed and brought back."""

    def __init__(self, folder: Path, name: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._config = folder / f"config-{name}"
        text = re.sub(r"Port \d+", f"Port {self.port}", (folder / "config").read_text())
        self._config.write_text(text.replace(f"{folder}/pid", f"{folder}/pid-{name}"))
        key = (folder / "host_key.pub").read_text().split()
        with open(folder / "known_hosts", "a", encoding="ascii") as file:
            file.write(f"[127.0.0.1]:{self.port} {key[0]} {key[1]}\n")
        self.bring_back()

    def bring_back(self):
        """Start it."""
        self._process = subprocess.Popen(["/usr/sbin/sshd", "-D", "-f", self._config], start_new_session=True)
        host.wait_until(lambda: host.run("ss", "-Htln", f"sport = :{self.port}").stdout)

    def kill(self):
        """Kill it with all its sessions."""
        kill_with_children(self._process.pid)
        self._process.wait()


@pytest.fixture
def fleet(ssh_hosts, container, tmp_path):
    """Three names of this machine, in the inventory `tmp_path / "hosts.json"`, and a container for each."""
    found = {name: Sshd(ssh_hosts.parent, name) for name in NAMES}
    hosts = {name: {"ansible_port": sshd.port, "ansible_user": "root"} for name, sshd in found.items()}
    (tmp_path / "hosts.json").write_text(json.dumps({"all": {"children": {"soak": {"hosts": hosts}}}}))
    for name in NAMES:
        container("busybox", "/bin/sh", "-c", soak.COUNTER, name=f"cc-soak-{name}")
    yield found
    for sshd in found.values():
        sshd.kill()


@pytest.fixture
def store(tmp_path):
    """A folder for the store that can be full."""
    folder = tmp_path / "store"
    folder.mkdir()
    host.run("mount", "-t", "tmpfs", "-o", f"size={ROOM}", "crashcart-test", str(folder))
    yield folder
    host.run("umount", str(folder))


@pytest.fixture
def schedule(fleet, ssh_hosts, store, tmp_path):
    """A schedule over the three names."""
    made = Schedule(
        f"soak-{os.getpid()}",
        inventory=[str(ssh_hosts), str(tmp_path / "hosts.json")],
        limit="soak",
        dest=str(store),
        keep_free="1MiB",
        containers="cc-soak-*",
        rotate_time="2s",
        **soak.TRACED,
    )
    yield made
    made.take_away()


def read_now(name):
    # It is empty for a moment.
    return int(host.wait_until(lambda: host.docker("exec", f"cc-soak-{name}", "/bin/cat", "/now", check=False).strip()))


def run(schedule):
    """Run SCHEDULE once and return its outcome, and the state of each host."""
    done = schedule.run()
    record = schedule.read_record()
    assert done.returncode == record["status"], done.stdout + done.stderr
    return record["outcome"], {name: about["state"] for name, about in record["hosts"].items()}


def kill_while_it_fetches(schedule, store):
    """Begin a run of SCHEDULE into STORE, and kill all its processes as soon as it fetches."""
    log = schedule.folder / "last-run.log"
    before = log.read_text()
    with subprocess.Popen(schedule.list_words(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        host.wait_until(lambda: before != (text := log.read_text()) and ": Fetch]" in text)
        kill_with_children(process.pid)
    schedule.wait_for_killed_run(store)


OK = ("success", dict.fromkeys(NAMES, "ok"))


def test_nothing_is_lost_and_nothing_comes_twice(schedule, fleet, store, ssh_hosts, tmp_path):
    schedule.play()
    assert run(schedule) == OK
    begun = {name: read_now(name) for name in NAMES}

    fleet["two"].kill()
    assert run(schedule) == ("hosts_missing", {"one": "ok", "two": "unreachable", "three": "ok"})
    fleet["two"].bring_back()
    assert run(schedule) == OK

    with open(store / "other", "wb") as other:
        os.posix_fallocate(other.fileno(), 0, os.statvfs(store).f_bavail * os.statvfs(store).f_frsize - (64 << 10))
    before = set(store.rglob("*.dat"))
    assert run(schedule)[0] == "failure"
    assert "1.0 MiB" in schedule.read_record()["message"], schedule.read_record()
    assert set(store.rglob("*.dat")) == before
    os.unlink(store / "other")

    kill_while_it_fetches(schedule, store)
    assert run(schedule) == OK
    assert {path.name for path in schedule.folder.iterdir()} == {
        "plan.json",
        "last-run.json",
        "last-run.log",
        ".crashcart-run",
    }

    hosts = ("-i", str(ssh_hosts), "-i", str(tmp_path / "hosts.json"), "-l", "soak")
    variables = json.dumps({"crashcart_dest": str(store), "crashcart_run": "by-hand"})
    collect = ("ansible-playbook", "crashcart.fleet.collect", *hosts, "-e", variables)
    with host.start(*collect, stdout=subprocess.PIPE, text=True) as other:
        assert run(schedule) == OK
        text, _errors = other.communicate()
        assert other.returncode == 0, text

    ended = {name: read_now(name) for name in NAMES}
    schedule.take_away()
    # Three names of one machine would end the same traces at the same time.
    host.playbook("stop", *hosts[:-1], "one", dest=str(store), containers="cc-soak-*", run="last")

    for name in NAMES:
        seen = soak.read(f"cc-soak-{name}", store)
        assert (seen.count_missing(begun[name], ended[name]), seen.count_lost(), seen.list_reasons()) == (0, 0, [])
    soak.check_catalogue(store)
    assert host.list_instances() == []
    assert list_waiting() == []


def list_waiting():
    return [path for path in Path("/var/lib/crashcart").glob("captures/*") if path.is_file()]


def test_what_was_recorded_while_no_controller_came_is_brought_by_one_collection_each(container, ssh_hosts, tmp_path):
    names = [container("busybox", "/bin/sh", "-c", soak.COUNTER, name=f"cc-soak-{name}") for name in NAMES]
    recorded = {"mode": "record", "when_full": "rotate", "follow_restarts": True, "ttl": "2d", **soak.TRACED}
    host.call_module("ftrace_instance", containers=names, **recorded)
    begun = {name: read_now(name) for name in NAMES}
    host.pause(1)
    ended = {name: read_now(name) for name in NAMES}
    host.docker("restart", "--time", "0", names[0])
    host.docker("rm", "--force", names[1])
    host.call_module("ftrace_instance", containers=[names[2]], state="stopped")
    again = read_now(NAMES[0])
    host.pause(1)
    yesterday = time.time() - 86400
    for path in Path("/var/lib/crashcart").rglob("*"):
        os.utime(path, (yesterday, yesterday))

    stores = [tmp_path / "first", tmp_path / "second"]
    collect = ("ansible-playbook", "crashcart.fleet.collect", "-i", str(ssh_hosts), "-l", "as_root")
    with ExitStack() as stack:
        both = [
            stack.enter_context(
                host.start(
                    *collect, "-e", json.dumps({"crashcart_dest": str(store)}), stdout=subprocess.PIPE, text=True
                )
            )
            for store in stores
        ]
        for process in both:
            text, _errors = process.communicate()
            assert process.returncode == 0, text
    assert any(store.rglob("*.dat") for store in stores)
    last = read_now(NAMES[0])
    host.playbook("stop", "-i", str(ssh_hosts), "-l", "as_root", dest=str(stores[0]), containers="cc-soak-*")

    for name in NAMES:
        seen = soak.read(f"cc-soak-{name}", *stores)
        assert (seen.count_missing(begun[name], ended[name]), seen.count_lost(), seen.list_reasons()) == (0, 0, []), (
            name
        )
        if name == NAMES[0]:
            assert (len(seen.list_ends()), seen.count_missing(again, last)) == (2, 0)
    assert list_waiting() == []
