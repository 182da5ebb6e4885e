# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check a schedule of one minute over three hosts for ten minutes in which much goes wrong; `make soak` runs this file.

Lost is only what manifests count as lost, nothing comes twice, the catalogue agrees with the files, and nothing is left. The short form, on
this machine alone, is in tests/integration/targets/playbooks/test_soak.py.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from contextlib import contextmanager

import fleet
import inventory
import pytest
from conftest import CENSUS, call, on_all, play, start_play
from machine import seconds
from support import soak
from support.schedules import Schedule, kill_with_children

MINUTES = float(os.environ.get("CRASHCART_SOAK_MINUTES", "10"))
IMAGE = "crashcart-test/busybox"
NAME = "soak"


@pytest.fixture
def counting(hosts):
    """Run a container on each host whose calls are numbered."""
    command = f"docker run -d --name {NAME} --network none {IMAGE} /bin/sh -c {shlex.quote(soak.COUNTER)}"
    on_all(lambda host: host.run(command), hosts)
    yield
    on_all(lambda host: host.run(f"docker rm -f {NAME}"), hosts)


@pytest.fixture
def schedule(counting, tmp_path):
    """A schedule of one minute over all hosts."""
    path = tmp_path / "hosts.json"
    path.write_text(json.dumps({"all": {"children": inventory.list_groups()}}))
    made = Schedule(
        f"soak-{os.getpid()}",
        inventory=[str(path)],
        limit="fleet",
        dest=str(tmp_path / "store"),
        containers=NAME,
        host_timeout=round(seconds(120)),
        min_free="32MiB",
        **soak.TRACED,
    )
    yield made
    made.take_away()


@contextmanager
def cron(schedule):
    """Let cron begin the runs of SCHEDULE until the context ends, and wait for the end of a run then."""
    try:
        with schedule.cron():
            yield
    finally:
        wait(lambda: not list_runs(schedule))


def wait(condition, limit_s=600):
    """Return the first result of CONDITION() that is true. Raises AssertionError where there is none within LIMIT_S of a usual machine.

    It looks less often than the support's wait_until, since the emulated guests need the processors.
    """
    deadline = time.monotonic() + seconds(limit_s)
    while not (found := condition()):
        assert time.monotonic() < deadline, "what was waited for has not come"
        time.sleep(0.2)
    return found


def list_runs(schedule):
    found = subprocess.run(
        ["pgrep", "-f", f"run.py --timer {schedule.folder}"], capture_output=True, text=True, check=False
    )
    return [pid for pid in found.stdout.split() if b"sh\0-c" not in read_command(pid)]


def read_command(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


def wait_for_run(schedule):
    """Return the outcome of the next run of SCHEDULE that begins from now on, and the state of each host."""
    begun = time.time()

    def find():
        try:
            record = schedule.read_record()
        except (OSError, ValueError):  # there was no run, or it is being written
            return None
        return record if record["began"] > begun and record["ended"] else None

    record = wait(find)
    told = [f"{name}: {about['message']}" for name, about in record["hosts"].items() if about["message"]]
    print(time.strftime("%X"), record["message"], f"{record['ended'] - record['began']:.0f} s", *told, flush=True)
    return record["outcome"], {name: about["state"] for name, about in record["hosts"].items()}


def wait_for_fetch(schedule):
    """Return the pid of a run of SCHEDULE as soon as it fetches."""
    log = schedule.folder / "last-run.log"
    before = log.stat().st_mtime

    def find():
        runs = list_runs(schedule)
        text = log.read_text(errors="replace")
        return runs and log.stat().st_mtime > before and ": Fetch]" in text and ": Report]" not in text and runs[0]

    return int(wait(find))


def read_now(host):
    return int(wait(lambda: host.run(f"docker exec {NAME} cat /now").strip()))  # it is empty for a moment


def test_ten_minutes_in_which_much_goes_wrong(hosts, schedule, tmp_path):
    store = tmp_path / "store"
    _one, two, three = hosts
    fine = ("success", {host.name: "ok" for host in hosts})
    begun_s = time.monotonic()
    schedule.play()
    with cron(schedule):
        assert wait_for_run(schedule) == fine
        begun = {host.name: read_now(host) for host in hosts}
        assert wait_for_run(schedule) == fine

        cut = read_now(two)
        two.machine.cut_power()
        assert wait_for_run(schedule) == ("hosts_missing", {"host1": "ok", "host2": "unreachable", "host3": "ok"})
        two.boot()
        two.wait_until_up()
        fleet.start_containers(two, [NAME])
        assert wait_for_run(schedule) == fine
        again = read_now(two)

        filled = read_now(three)
        three.run("fallocate -l $(($(stat -f -c '%a * %S' /var/lib) - 4000000)) /var/lib/filler")
        assert wait_for_run(schedule) == ("hosts_missing", {"host1": "ok", "host2": "ok", "host3": "failed"})
        three.run("rm /var/lib/filler")
        assert wait_for_run(schedule) == fine
        freed = read_now(three)

        kill_with_children(wait_for_fetch(schedule))
        assert wait_for_run(schedule) == fine

        wait_for_fetch(schedule)
        other = start_play("collect", dest=str(store), run="by-hand")
        assert wait_for_run(schedule) == fine
        output, errors = other.communicate()
        assert other.returncode == 0, output + errors

        while time.monotonic() - begun_s < MINUTES * 60:
            assert wait_for_run(schedule) == fine
    ended = {host.name: read_now(host) for host in hosts}
    schedule.take_away()
    assert play("stop", dest=str(store), run="last", containers=NAME).count("failures") == dict.fromkeys(fine[1], 0)

    seen = {host.name: soak.read(NAME, store, host=host.name) for host in hosts}
    for name, found in seen.items():
        missing = sum(found.count_missing(*ends) for ends in found.list_ends())
        print(name, len(found.manifests), found.list_ends(), missing, found.count_lost(), found.list_reasons())
    found = seen["host1"]
    assert (found.count_missing(begun["host1"], ended["host1"]), found.count_lost(), found.list_reasons()) == (0, 0, [])
    # The recording that had no room ended, and its manifest says so. Before it, the oldest events had made room.
    found = seen["host3"]
    assert found.count_missing(begun["host3"], filled) <= found.count_lost()
    assert any("less than min_free" in (manifest["stopped"] or "") for manifest in found.manifests)
    assert found.count_missing(freed, ended["host3"]) == 0
    first, second = seen["host2"].list_ends()
    assert first[0] <= begun["host2"] and second[0] <= again and second[1] >= ended["host2"]
    assert first[1] >= cut or seen["host2"].list_reasons()
    assert sum(seen["host2"].count_missing(*ends) for ends in (first, second)) <= seen["host2"].count_lost()
    soak.check_catalogue(store)
    on_all(lambda host: call(host.name, "ftrace_instance", {"state": "absent", "everything": True}), hosts)
    assert play("cleanup").count("failures") == dict.fromkeys(fine[1], 0)
    assert on_all(lambda host: host.run(CENSUS), hosts) == [""] * 3
