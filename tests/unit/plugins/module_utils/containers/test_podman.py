# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Meaning of Podman's answers. A script plays Podman."""

from __future__ import annotations

import json
import os
import time

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import asking, podman
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    ContainerError,
    ContainerGoneError,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.podman import Podman
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import read_start_ticks

PID = os.getpid()  # not of the test itself, which ansible-test runs in a child
ID = "c" * 64
LISTED = {"Id": ID, "Names": ["web"], "State": "running", "Pid": 5, "Image": "nginx", "Labels": {"a": "b"}}
INSPECTED = {
    "Id": ID,
    "Name": "web",
    "State": {"Status": "running", "Pid": PID},
    "Config": {"Image": "nginx", "Labels": {"a": "b"}},
    "ImageName": "nginx",
    "HostConfig": {"Cgroups": "default", "CgroupManager": "systemd", "CgroupParent": ""},
}
ACCOUNT = asking.Account(1000, 1000, "user", "/home/user")


@pytest.fixture
def answer(tmp_path, monkeypatch):
    """Return a function that has Podman print FOUND and ERROR, and end with CODE."""
    monkeypatch.setattr(asking, "_ENVIRONMENT", {"PATH": str(tmp_path), "LANG": "C"})

    def set_answer(found, code=0, error=""):
        (tmp_path / "answer").write_text(found if isinstance(found, str) else json.dumps(found))
        (tmp_path / "error").write_text(error)
        (tmp_path / "podman").write_text(
            f'#!/bin/sh\nPATH={os.defpath}\necho "$@" > {tmp_path}/asked\necho "$HOME $XDG_RUNTIME_DIR" > {tmp_path}/environment\n'
            f"cat {tmp_path}/error >&2\ncat {tmp_path}/answer\nexit {code}\n"
        )
        (tmp_path / "podman").chmod(0o700)

    return set_answer


def get_container(answer):
    answer([LISTED])
    (container,) = Podman().list_containers()
    return container


def test_containers_are_those_that_podman_lists_and_their_pids_are_old(answer, tmp_path):
    container = get_container(answer)
    assert (container.id, container.name, container.state, container.pid) == (ID, "web", "running", 0)
    assert (container.image, container.labels, container.runtime) == ("nginx", {"a": "b"}, "podman")
    assert (tmp_path / "asked").read_text() == "ps --all --no-trunc --format json\n"
    for nothing in ("", "null", "[]"):
        answer(nothing)
        assert Podman().list_containers() == []


@pytest.mark.parametrize(
    "found",
    [
        "{",
        "5",
        [5],
        [{}],
        [{**LISTED, "Names": []}],
        [{**LISTED, "Names": None}],
        [{**LISTED, "State": ""}],
        [{**LISTED, "Labels": [1]}],
    ],
)
def test_a_list_of_another_form_is_an_error(answer, found):
    answer(found)
    with pytest.raises(ContainerError, match="podman gives an answer of the wrong form"):
        Podman().list_containers()
    if found not in ([{**LISTED, "State": ""}], [{**LISTED, "Labels": [1]}]):  # which the caller checks
        with pytest.raises(ContainerError, match=r"Podman of .*user.* gives an answer of the wrong form"):
            podman.list_as(ACCOUNT, time.monotonic() + 20)


def test_podman_that_refuses_is_quoted_and_one_that_is_missing_or_silent_is_told(answer, tmp_path):
    answer("", 125, "cannot connect\n")
    with pytest.raises(ContainerError, match="podman does not answer as it should: cannot connect"):
        Podman().list_containers()
    with pytest.raises(ContainerError, match="cannot be asked"):
        podman.list_as(ACCOUNT, time.monotonic() - 1)
    (tmp_path / "podman").unlink()
    with pytest.raises(ContainerError, match="podman cannot be asked: .*No such file"):
        Podman().list_containers()


def test_a_container_is_what_podman_says_last(answer):
    container = get_container(answer)
    answer([INSPECTED])
    fresh = Podman().refresh(container)
    assert (fresh.pid, fresh.start_ticks) == (PID, read_start_ticks(PID))
    assert (fresh.name, fresh.runtime) == ("web", "podman")


@pytest.mark.parametrize("error", ["Error: no such container c", "Error: inspecting object: No such object"])
def test_one_that_was_removed_is_told_from_one_of_which_podman_says_nothing(answer, error):
    container = get_container(answer)
    answer("[]", 125, error)
    with pytest.raises(ContainerGoneError, match="container web .* was just removed"):
        Podman().inspect(container)
    for found in ("[]", "[5]", "{}"):
        answer(found)
        with pytest.raises(ContainerError, match="of the wrong form") as raised:
            Podman().inspect(container)
        assert not isinstance(raised.value, ContainerGoneError)


@pytest.mark.parametrize(
    ("chosen", "path"),
    [
        (INSPECTED["HostConfig"], f"/machine.slice/libpod-{ID}.scope"),
        ({"CgroupManager": "cgroupfs", "CgroupParent": ""}, f"/libpod_parent/libpod-{ID}"),
        ({"CgroupManager": "systemd", "Cgroups": "disabled"}, None),
        ({"CgroupManager": "systemd", "Cgroups": "split"}, None),
        (None, None),
    ],
)
def test_where_a_container_will_start(answer, chosen, path):
    container = get_container(answer)
    answer([{**INSPECTED, "HostConfig": chosen}])
    place = Podman().predict_place(container)
    assert (place and (place.path, place.has_shim)) == (path and (path, False))


def test_a_users_podman_is_asked_in_the_users_environment(answer, tmp_path):
    answer([LISTED])
    (fields,) = podman.list_as(ACCOUNT, time.monotonic() + 20)
    assert (fields["id"], fields["pid"], fields["place"]) == (ID, 5, {})
    assert (tmp_path / "environment").read_text() == "/home/user /run/user/1000\n"


def test_of_several_that_are_inspected_those_that_are_left_are_told(answer, tmp_path):
    until = time.monotonic() + 20
    answer([INSPECTED], 125, "Error: no such container")
    assert podman.inspect_as(ACCOUNT, [ID, "d" * 64], until) == {ID: INSPECTED}
    assert (tmp_path / "asked").read_text() == f"inspect --type container {ID} {'d' * 64}\n"
    (tmp_path / "asked").unlink()
    assert podman.inspect_as(ACCOUNT, [], until) == {}
    assert not (tmp_path / "asked").exists()
    answer([{}])
    with pytest.raises(ContainerError, match="of the wrong form"):
        podman.inspect_as(ACCOUNT, [ID], until)


def test_a_shell_is_given_by_podman(answer):
    container = get_container(answer)
    assert Podman().list_shell_words(container, ["A=1"], ["sh"]) == [
        *("podman", "exec", "-it", "-e", "A=1"),
        *(ID[:12], "sh"),
    ]
