# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runtimes below engines: what their folders of state hold, and what they answer. A script plays the runtime."""

from __future__ import annotations

import json
import os
import re

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import oci
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    ContainerError,
    ContainerGoneError,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.oci import Root
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import read_start_ticks

ID = "c" * 64
# Not of the test itself, which ansible-test runs in a child.
PID = os.getpid()
STATE = {"id": ID, "status": "running", "pid": PID, "annotations": {"tier": "front"}}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only what is root's is believed")


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "state"
    (made / ID).mkdir(parents=True, mode=0o700)
    (made / ID / "state.json").write_text("{}")
    return made


@pytest.fixture
def make_root(folder, tmp_path):
    """Return a function that makes the runtime of the folder: a script that prints ANSWER and ERROR, and ends with CODE."""

    def make(answer, code=0, error=""):
        program = tmp_path / "runc"
        (tmp_path / "answer").write_text(answer if isinstance(answer, str) else json.dumps(answer))
        (tmp_path / "error").write_text(error)
        program.write_text(
            f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ncat {tmp_path}/error >&2\ncat {tmp_path}/answer\nexit {code}\n'
        )
        program.chmod(0o700)
        return Root(str(folder), str(program), "containerd")

    return make


@needs_root
def test_containers_are_those_that_the_runtime_lists(make_root, folder, tmp_path):
    stopped = {"id": "d" * 64, "status": "stopped", "pid": 77, "annotations": {"io.container.manager": "libpod"}}
    found = make_root([STATE, stopped]).list_containers()
    assert [(one.id, one.name, one.state, one.pid, one.runtime) for one in found] == [
        (ID, ID, "running", PID, "containerd"),
        ("d" * 64, "d" * 64, "exited", 0, "podman"),
    ]
    assert found[0].labels == {"tier": "front"}
    assert (tmp_path / "asked").read_text() == f"--root {folder} list --format json\n"
    assert make_root("null").list_containers() == []


@needs_root
@pytest.mark.parametrize(
    "answer",
    [
        "{",
        "5",
        [5],
        [{}],
        [{**STATE, "id": ""}],
        [{**STATE, "pid": "5"}],
        [{**STATE, "pid": -1}],
        [{**STATE, "annotations": 5}],
    ],
)
def test_an_answer_of_another_form_is_an_error(make_root, answer):
    with pytest.raises(ContainerError, match="runc --root .*(wrong form|does not answer with a list|cannot be asked)"):
        make_root(answer).list_containers()


@needs_root
def test_a_runtime_that_refuses_is_quoted_and_one_that_is_missing_named(make_root, folder):
    with pytest.raises(ContainerError, match=r"does not answer as it should: no \?\[31mway"):
        make_root("", 1, "no \x1b[31mway\n").list_containers()
    with pytest.raises(ContainerError, match="holds containers of crun-nonesuch, which is not in "):
        Root(str(folder), "crun-nonesuch", "crun").list_containers()


@needs_root
def test_state_that_others_can_change_or_that_is_no_file_is_not_asked_about(make_root, folder, tmp_path):
    root = make_root([STATE])
    path = folder / ID / "state.json"
    path.chmod(0o666)
    with pytest.raises(ContainerError, match="can be changed by others than root"):
        root.list_containers()
    path.chmod(0o600)
    os.chown(path, 1000, 0)
    with pytest.raises(ContainerError, match="user 1000 can change it"):
        root.list_containers()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ContainerError, match="is no regular file: remove it to have"):
        root.list_containers()
    assert not (tmp_path / "asked").exists()


def test_a_container_is_what_the_runtime_says_last(make_root):
    root = make_root(STATE)
    container = root._parse({**STATE, "pid": 0, "status": "created"})
    fresh = root.refresh(container)
    assert (fresh.state, fresh.pid, fresh.start_ticks) == ("running", PID, read_start_ticks(PID))
    assert fresh.may_mount  # of which nothing is known
    found = root.inspect(container)
    assert (found["State"], found["Annotations"]) == ({"Status": "running", "Pid": PID}, {"tier": "front"})
    paused = make_root({**STATE, "status": "paused"}).refresh(container)
    assert (paused.state, paused.pid) == ("paused", PID)


def test_one_that_was_removed_is_told_from_a_runtime_that_refuses(make_root, folder):
    root = make_root("", 1, "container does not exist")
    container = root._parse(STATE)
    with pytest.raises(ContainerError, match="does not answer as it should: container does not exist") as raised:
        root.refresh(container)
    assert not isinstance(raised.value, ContainerGoneError)
    (folder / ID / "state.json").unlink()
    (folder / ID).rmdir()
    with pytest.raises(ContainerGoneError, match="was just removed"):
        root.refresh(container)


@needs_root
@pytest.mark.parametrize("is_bundle", [True, False])
def test_what_a_state_leaves_out_is_in_its_configuration_if_that_is_roots(make_root, folder, tmp_path, is_bundle):
    place = tmp_path / "bundle" if is_bundle else folder / ID
    place.mkdir(exist_ok=True)
    configuration = {
        "annotations": {"io.kubernetes.cri.sandbox-name": "pod", "io.kubernetes.cri.container-name": "app"},
        "process": {"capabilities": {"bounding": ["CAP_CHOWN"]}},
    }
    (place / "config.json").write_text(json.dumps(configuration))
    state = {**STATE, "annotations": None, "bundle": str(tmp_path / "bundle")}
    root = make_root(state)
    container = root._parse(state)
    assert (container.name, root.refresh(container).may_mount) == ("default/pod/app", False)
    # Only as a whole path: the folder that it would be relative to is nobody's.
    relative = root._parse({**state, "bundle": str(tmp_path / "bundle")[1:]})
    assert relative.name == (ID if is_bundle else "default/pod/app")
    (place / "config.json").chmod(0o666)
    assert root._parse(state).name == ID
    assert root.refresh(container).may_mount
    for bundle in ("relative", 5, None):
        assert root._parse({**state, "bundle": bundle}).name == ID


def test_a_shell_is_given_by_the_runtime_itself(make_root, folder):
    root = make_root(STATE)
    words = root.list_shell_words(root._parse(STATE), ["A=1", "B=2"], ["sh", "-i"])
    assert words[1:] == ["--root", str(folder), "exec", "--tty", "--env", "A=1", "--env", "B=2", ID, "sh", "-i"]
    assert root.list_ids() == [ID]
    assert Root("/nonesuch", "runc", "runc").list_ids() == []


@needs_root
def test_roots_are_folders_that_hold_containers_and_are_roots(folder, tmp_path, monkeypatch):
    for name, file in (("crun", "status"), ("empty", None), ("others", "state.json")):
        (tmp_path / name / "x").mkdir(parents=True)
        if file:
            (tmp_path / name / "x" / file).write_text("")
    os.chown(tmp_path / "others", 1000, 0)
    names = ("state", "crun", "empty", "others", "nonesuch")
    monkeypatch.setattr(oci, "_PLACES", tuple((f"{tmp_path}/{name}*", name) for name in names))
    roots, (warning,) = oci.find_roots()
    assert [(root.name, root.label) for root in roots] == [
        ("state", f"runc --root {folder}"),
        ("crun", f"crun --root {tmp_path}/crun"),
    ]
    assert re.search("others is not believed: user 1000 can change it; make it root's alone", warning)
