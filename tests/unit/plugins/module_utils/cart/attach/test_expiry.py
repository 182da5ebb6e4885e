# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that say when attachments end, and what the watchdog makes of them."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import replace

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach import expiry, expiry_watchdog
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach.expiry import Expiry
from ansible_collections.crashcart.fleet.plugins.module_utils.containers import targets
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container, ContainerError
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import background, boot, locks

WEB = Container("a" * 64, "web", "running", 5, "image", {"a": "b"})


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "LOCKS", str(tmp_path / "locks"))
    monkeypatch.setattr(expiry, "WATCHDOG_LOCK", str(tmp_path / "locks" / "watchdog"))
    monkeypatch.setattr(expiry, "FOLDER", str(tmp_path / "expiry"))
    return tmp_path / "expiry"


def make(path="/dev/crashcart", in_s=100.0, container=WEB):
    return Expiry(container, path, boot.read_clock() + in_s)


def test_what_was_written_is_read_the_next_one_first(folder):
    assert expiry.list_expiries() == []
    later, sooner = make(in_s=100.0), make("/opt/tools", 50.0)
    expiry.write([later, sooner])
    assert expiry.list_expiries() == [sooner, later]
    assert all(os.stat(folder / name).st_mode & 0o077 == 0 for name in os.listdir(folder))
    assert later.place == ("a" * 64, "/dev/crashcart")


def test_each_attachment_has_a_file_of_its_own_and_one_that_is_settled_anew_the_same(folder):
    other = replace(WEB, id="b" * 64)
    expiry.write([make(), make("/dev/crashcart2"), make(container=other)])
    assert len(os.listdir(folder)) == 3
    again = make(in_s=7.0)
    expiry.write([again])
    assert len(os.listdir(folder)) == 3
    assert expiry.list_expiries()[0] == again


def test_what_nobody_of_us_has_written_is_passed_over(folder):
    one = make()
    expiry.write([one])
    whole = (folder / one.name).read_text()
    for name, text in (("a", "{}"), ("b", "no json"), ("c", "[]"), ("d", json.dumps({"container": {}})), (".d", whole)):
        (folder / name).write_text(text)  # the last one is what a killed writer has left
    assert expiry.list_expiries() == [one]


def test_only_what_is_as_it_was_is_dropped(folder):
    old = make()
    new = make(in_s=500.0)
    expiry.write([old])
    expiry.write([new])  # somebody has given it more time meanwhile
    expiry.drop([old])
    assert expiry.list_expiries() == [new]
    expiry.drop([make("/nonesuch"), new])
    assert expiry.list_expiries() == []


def test_to_drop_nothing_makes_nothing(tmp_path):
    expiry.drop([])
    assert os.listdir(tmp_path) == []


def test_what_could_not_be_ended_is_tried_later_and_says_why():
    due = make(in_s=-5.0)
    expiry.write([due])
    expiry.postpone(due, 60.0, "in use")
    (found,) = expiry.list_expiries()
    assert found.error == "in use"
    assert 55 < found.deadline - boot.read_clock() <= 60
    # Never sooner than it was to be, and not what was settled anew.
    expiry.postpone(found, 1.0, "still in use")
    (again,) = expiry.list_expiries()
    assert (again.deadline, again.error) == (found.deadline, "still in use")
    expiry.postpone(due, 1000.0, "late")
    assert expiry.list_expiries() == [again]


def test_an_end_is_told_by_the_hosts_clock():
    one = make(in_s=100.0)
    result = one.as_result()
    assert result["expires"] == pytest.approx(time.time() + 100, abs=5)
    assert (result["container"], result["path"], result["error"]) == ("web", "/dev/crashcart", "")
    assert result["expires_at"].startswith("20")


def test_a_watchdog_is_found_by_its_lock(tmp_path):
    assert expiry.find_watchdog() is None
    with locks.lock(expiry.WATCHDOG_LOCK, 0) as fd:
        locks.tell_holder(fd)
        assert expiry.find_watchdog() == os.getpid()
    assert expiry.find_watchdog() is None


def test_a_watchdog_is_started_where_there_is_something_to_watch_and_nobody_does(monkeypatch):
    started = []

    def start(function, _is_running):
        started.append(function)
        return len(started) == 1

    monkeypatch.setattr(background, "start_daemon", start)
    expiry_watchdog.ensure_watchdog()
    assert started == []
    expiry.write([make()])
    with locks.lock(expiry.WATCHDOG_LOCK, 0):
        expiry_watchdog.ensure_watchdog()
    assert started == []
    expiry_watchdog.ensure_watchdog()
    assert started == [expiry_watchdog.watch]
    with pytest.raises(FleetError, match="the watchdog, which would end the attachments in time, does not start"):
        expiry_watchdog.ensure_watchdog()


def test_whose_container_has_ended_is_forgotten():
    with subprocess.Popen(["true"]) as process:
        process.wait()
        gone = replace(WEB, pid=process.pid, start_ticks=1)
    later = make(in_s=1000.0, container=gone)
    expiry.write([later])
    assert expiry_watchdog._end_due() == 0.0
    assert expiry.list_expiries() == []


def test_one_that_cannot_be_ended_costs_no_other_and_is_tried_again(monkeypatch):
    ended = []

    def end(one, *, due_only):
        assert due_only
        if one.path == "/busy":
            raise ContainerError("in use")
        ended.append(one.path)
        expiry.drop([one])

    monkeypatch.setattr(expiry_watchdog, "end_attachment", end)
    expiry.write([make("/busy", -2.0), make("/idle", -1.0)])
    wait_s = expiry_watchdog._end_due()
    assert ended == ["/idle"]
    (left,) = expiry.list_expiries()
    assert (left.path, left.error) == ("/busy", "in use")
    assert 5 < wait_s <= 10


def test_a_wait_ends_when_the_next_one_is_due(monkeypatch):
    monkeypatch.setattr(expiry_watchdog, "open_targets", hold)
    expiry.write([make("/late", 1000.0), make("/soon", 4.0)])
    assert 0 < expiry_watchdog._end_due() <= 4.0
    expiry.drop(expiry.list_expiries()[:1])
    assert expiry_watchdog._end_due() == expiry_watchdog._LOOK_S
    assert len(expiry.list_expiries()) == 1


class hold:
    """Containers all of which run."""

    def __init__(self, containers, *, ended_ok):
        self._containers = containers

    def __enter__(self):
        return self._containers

    def __exit__(self, *_error):
        return False
