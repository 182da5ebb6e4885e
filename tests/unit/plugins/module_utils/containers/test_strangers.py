# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers of users that are believed, and others that are not. No user is asked; processes of this test stand for the user's."""

from __future__ import annotations

import json
import os

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import strangers
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.asking import Account, Unanswered
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.trust import Unreadable

BOB = Account(4242, 4242, "bob", "/home/bob")
ENTRY = {
    "id": "ab" * 32,
    "name": "web",
    "state": "exited",
    "pid": 0,
    "image": "",
    "labels": {},
    "runtime": "podman",
    "place": {},
}


def tell(*entries, troubles=()):
    answer = {"containers": [dict(one) for one in entries], "troubles": list(troubles)}
    return strangers._make(BOB, answer, strangers.Budget(0))


def test_a_container_that_does_not_run_is_the_users():
    (one,) = tell(ENTRY).list_containers()
    assert (one.owner_uid, one.pid, one.full_name) == (4242, 0, f"podman:4242/{'ab' * 32}")


def test_a_process_that_is_not_the_users_is_not_believed():
    stranger = tell({**ENTRY, "state": "running", "pid": os.getpid()}, {**ENTRY, "id": "cd" * 32, "name": "other"})
    assert [one.name for one in stranger.list_containers()] == ["other"]
    assert stranger.describe_troubles().startswith("container web is left out: ")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", None),
        ("id", ""),
        ("id", ["x"]),
        ("id", "a b"),
        ("name", 5),
        ("name", "a\nb"),
        ("name", "\x1b[31m"),
        ("name", "\ud800"),
        ("name", "x" * 513),
        ("state", {}),
        ("state", "\x07"),
        ("pid", "5"),
        ("pid", True),
        ("pid", 1.5),
        ("pid", -1),
        ("pid", 1 << 70),
        ("image", 5),
        ("image", "a\x1bb"),
        ("labels", [1]),
        ("labels", {"a": 5}),
        ("labels", {"a": "\ud800"}),
    ],
)
def test_a_wrong_field_costs_that_container_alone(field, value):
    stranger = tell({**ENTRY, field: value}, {**ENTRY, "id": "cd" * 32, "name": "good"})
    assert [one.name for one in stranger.list_containers()] == ["good"]
    assert "a container is left out: " in stranger.describe_troubles()
    assert stranger.describe_troubles().isprintable()


def test_an_id_that_is_there_twice_counts_once():
    stranger = tell(ENTRY, {**ENTRY, "name": "second"})
    assert [one.name for one in stranger.list_containers()] == ["web"]
    assert "container second is left out: its id is there twice" in stranger.describe_troubles()


@pytest.mark.parametrize("answer", [None, 5, [], {}, {"troubles": 5}, {"troubles": [], "containers": [5]}])
def test_an_answer_of_a_wrong_form(answer):
    stranger = strangers._make(BOB, answer, strangers.Budget(0))
    assert stranger.list_containers() == []
    assert "wrong form" in stranger.describe_troubles()


def test_who_does_not_answer():
    stranger = strangers._make(BOB, Unanswered("no answer in time"), strangers.Budget(0))
    assert (stranger.label, stranger.describe_troubles()) == ("user bob (4242)", "no answer in time")


def test_of_many_troubles_the_first_are_told():
    stranger = tell(troubles=[f"trouble {number}" for number in range(1000)])
    assert stranger.describe_troubles() == "trouble 0; trouble 1; trouble 2; and 997 more"


def test_inspected_networks_are_a_map():
    for settings in (None, 5, [], {"Networks": 5}, {"Networks": ["x"]}):
        assert strangers._sound({"NetworkSettings": settings})["NetworkSettings"] == {}
    good = {"NetworkSettings": {"Networks": {"a": {}}}}
    assert strangers._sound(good) == good


def test_shells_are_the_users():
    stranger = tell(ENTRY)
    (one,) = stranger.list_containers()
    words = stranger.list_shell_words(one, ["A=1"], ["sh"])
    assert words[:6] == ["runuser", "-u", "bob", "--", "env", "XDG_RUNTIME_DIR=/run/user/4242"]
    assert words[6:] == ["podman", "exec", "-it", "-e", "A=1", "ab" * 32, "sh"]


@pytest.fixture(name="state")
def make_state(tmp_path):
    """Reads what is written as state of a container: state(NAME, TEXT, …)."""

    def read(**texts):
        for name, text in texts.items():
            (tmp_path / name.replace("_json", ".json")).write_text(text)
        fd = os.open(str(tmp_path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            return strangers._read_state(fd, "web", strangers._Reader(1 << 20))
        finally:
            os.close(fd)

    return read


def test_state_of_runc(state):
    labels = ["bundle=/b", "tier=front=end", "io.kubernetes.pod.name=api", "io.kubernetes.container.name=app", "odd"]
    found = state(state_json=json.dumps({"init_process_pid": 5, "init_process_start": 7, "config": {"labels": labels}}))
    assert (found["id"], found["name"], found["state"]) == ("web", "default/api/app", "running")
    assert (found["pid"], found["claimed_ticks"], found["place"]["bundle"]) == (5, 7, "/b")
    assert found["labels"]["tier"] == "front=end"


def test_state_of_crun(state):
    found = state(
        status=json.dumps({"pid": 5, "process-start-time": 7, "bundle": "/nonesuch"}),
        config_json=json.dumps({"annotations": {"io.container.manager": "libpod"}}),
    )
    assert (found["pid"], found["runtime"], found["place"]["program"]) == (5, "podman", "crun")


def test_one_that_is_made_and_not_started(state, tmp_path):
    os.mkfifo(str(tmp_path / "exec.fifo"))
    text = json.dumps({"init_process_pid": 5, "init_process_start": 7, "config": {}})
    assert state(state_json=text)["state"] == "created"


def test_what_is_no_state(state):
    assert state(other="x") is None


@pytest.mark.parametrize("text", ["", "5", "null", '"x"', "[{}]", "{}", "{", "[" * 100_000, '{"config": 5}'])
def test_state_of_a_wrong_form(state, text):
    with pytest.raises((*strangers.WRONG_FORM, Unreadable)):
        state(state_json=text)


@pytest.mark.parametrize("labels", [5, {"a": 1}, [5], "x"])
def test_annotations_of_a_wrong_form(state, labels):
    text = json.dumps({"init_process_pid": 5, "init_process_start": 7, "config": {"labels": labels}})
    try:
        found = state(state_json=text)
    except strangers.WRONG_FORM:
        return
    assert found["labels"] == {}


@pytest.mark.parametrize(
    ("socket", "runtime", "command"),
    [
        ("", "podman", ["podman"]),
        ("", "evil", ["podman"]),
        ("unix:///s", "docker", ["docker", "--host", "unix:///s"]),
        ("unix:///s", "podman", ["podman", "--url", "unix:///s"]),
        ("unix:///s", "evil", ["docker", "--host", "unix:///s"]),
    ],
)
def test_what_a_user_calls_a_runtime_is_no_command(socket, runtime, command):
    answer = {"containers": [{**ENTRY, "runtime": runtime, "place": {}}], "troubles": []}
    stranger = strangers._make(BOB, answer, strangers.Budget(0), socket)
    (one,) = stranger.list_containers()
    words = stranger.list_shell_words(one, [], ["sh"])
    assert words[words.index("env") + 2 :] == [*command, "exec", "-it", one.id, "sh"]
