# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work, result and end of an attach. The tests' own process plays the container."""

from __future__ import annotations

import os
import subprocess
from dataclasses import asdict, replace

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import store
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach import attach, expiry, tool_users
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach.attachments import Attachment
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach.expiry import Expiry
from ansible_collections.crashcart.fleet.plugins.module_utils.containers import targets
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import Patience, Target
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import background, boot
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import Process

WEB, DB = (
    Container(digit * 64, name, "running", os.getpid(), "image", {}) for digit, name in (("a", "web"), ("d", "db"))
)
PATH = "/dev/crashcart"
ON_WEB = Attachment(WEB, PATH, "default", "f" * 64, "7:1", "erofs", "fsmount")


@pytest.fixture(autouse=True)
def host(tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "LOCKS", str(tmp_path / "locks"))
    monkeypatch.setattr(expiry, "WATCHDOG_LOCK", str(tmp_path / "locks" / "watchdog"))
    monkeypatch.setattr(expiry, "FOLDER", str(tmp_path / "expiry"))
    monkeypatch.setattr(background, "start_daemon", lambda _function, _is_running: True)
    return tmp_path


@pytest.fixture
def held():
    """The containers, whose process is held."""
    with Process(os.getpid()) as process:
        yield [Target(one, process) for one in (WEB, DB)]


def test_a_change_is_told_and_survives_its_journey():
    ended = replace(ON_WEB, has_end=True, deadline=boot.read_clock() + 100)
    nothing = attach.Change([ON_WEB], [ON_WEB])
    more = attach.Change([], [replace(ON_WEB, container=DB)], ["an empty folder"])
    assert (nothing.is_change, more.is_change) == (False, True)
    assert attach.Change([ON_WEB], [ended]).is_change
    assert attach.Change([ON_WEB], [ON_WEB], ["an empty folder"]).is_change
    # The time of an end is no change by itself.
    assert not attach.Change([ended], [replace(ended, deadline=5.0)]).is_change
    both = attach.add_changes([nothing, more])
    assert both == attach.Change([ON_WEB], [ON_WEB, replace(ON_WEB, container=DB)], ["an empty folder"])
    assert attach.parse_change(asdict(both)) == both


def test_attachments_for_a_diff():
    ended = replace(ON_WEB, container=DB, has_end=True, deadline=boot.read_clock())
    found = attach.describe([ON_WEB, ended], ["one", "two"])
    assert found["web:/dev/crashcart"] == "default ffffffffffff"
    assert found["db:/dev/crashcart"].startswith("default ffffffffffff, until 20")
    assert found["left over"] == "one, two"
    assert attach.describe([]) == {}


def test_an_attachment_has_the_end_of_its_place():
    ends = {ON_WEB.place: 7.0}
    assert ON_WEB.ending(ends).deadline == 7.0 and ON_WEB.ending(ends).has_end
    other = replace(ON_WEB, path="/opt/tools").ending(ends)
    assert (other.deadline, other.has_end, other.as_result()["expires"]) == (None, False, None)
    assert ON_WEB.ending(ends).as_result()["expires_at"].startswith("20")


def make_image():
    return store.StoredImage("default", "f" * 64, {})


def test_what_is_mounted_there_and_not_ours_is_left_alone(held):
    outcome = Outcome()
    assert attach._list_missing(held, outcome, make_image(), "/nonesuch/crashcart") == held
    assert outcome.as_result() == []
    assert attach._list_missing(held[:1], outcome, make_image(), "/proc") == []
    (failure,) = outcome.as_result()
    assert (
        failure["msg"] == "container web: /proc already holds a mount of proc (proc) that is not ours; unmount it first"
    )


def test_an_end_is_settled_before_anything_is_attached_and_gone_where_nothing_was(held):
    outcome = Outcome()
    with attach._expire(held, outcome, PATH, 100.0):
        settled = expiry.list_expiries()
        assert {one.place for one in settled} == {(WEB.id, PATH), (DB.id, PATH)}
        assert all(90 < one.deadline - boot.read_clock() <= 100 for one in settled)
    assert expiry.list_expiries() == []


def test_an_end_from_before_is_settled_again_where_an_attach_fails(held):
    before = Expiry(WEB, PATH, boot.read_clock() + 5)
    expiry.write([before])
    outcome = Outcome()
    with pytest.raises(FleetError), attach._expire(held, outcome, PATH, 100.0):
        assert all(one.deadline > before.deadline for one in expiry.list_expiries())
        raise FleetError("no mount here")
    assert expiry.list_expiries() == [before]


def test_without_a_ttl_no_end_changes(held):
    before = Expiry(WEB, PATH, boot.read_clock() + 5)
    expiry.write([before])
    with attach._expire(held, Outcome(), PATH, None):
        pass
    assert expiry.list_expiries() == [before]


def test_where_nothing_is_attached_nothing_has_an_end(held):
    others = replace(WEB, id="e" * 64)
    kept = [Expiry(others, PATH, 1.0), Expiry(WEB, "/opt/tools", 2.0)]
    gone = [Expiry(WEB, PATH, 3.0), Expiry(DB, PATH, 4.0)]
    expiry.write([*kept, *gone])
    attach._forget(held, Outcome(), PATH, Patience())
    assert expiry.list_expiries() == kept
    attach._forget(held, Outcome(), None, Patience())
    assert expiry.list_expiries() == kept[:1]


@pytest.fixture
def user(tmp_path):
    """A process that stands in a folder."""
    with subprocess.Popen(["sleep", "600"], cwd=tmp_path) as process:
        yield process
        process.kill()


def test_who_stands_in_a_folder_or_has_a_file_of_it_open_uses_it(held, user, tmp_path):
    path = str(tmp_path)
    assert [one.pid for one in tool_users.find_users(held[0], path)] == [user.pid]
    assert str(tool_users.find_users(held[0], path)[0]) == f"'sleep' (pid {user.pid})"
    with open(tmp_path / "file", "w", encoding="ascii"):
        assert {one.pid for one in tool_users.find_users(held[0], path)} == {user.pid, os.getpid()}
    # A name that only begins so is another one.
    assert tool_users.find_users(held[0], path[:-1]) == []
    assert tool_users.find_users(held[0], path + "/deeper") == []


@pytest.mark.parametrize("kill", [True, False])
def test_users_are_ended_or_waited_for(held, user, tmp_path, kill, monkeypatch):
    tool_users.end_users(held[0], str(tmp_path), 10.0 if kill else 0.0, kill=kill)
    if not kill:
        assert user.poll() is None
        user.kill()
        user.wait()
        monkeypatch.setattr(tool_users, "_PAUSE_S", -1)  # for which nobody can wait
        tool_users.end_users(held[0], str(tmp_path), 10.0, kill=False)
    assert tool_users.find_users(held[0], str(tmp_path)) == []
