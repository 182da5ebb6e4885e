# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages about containers that cannot be used."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    Container,
    ContainerError,
    check_running,
    open_process,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import read_start_ticks

ID = "0123456789ab" + "f" * 52


def make(state="running", pid=4242):
    return Container(id=ID, name="web", state=state, pid=pid, image="nginx", labels={"tier": "front"})


def test_a_running_container_passes():
    assert check_running(make()) is None


@pytest.mark.parametrize(
    ("state", "hint"),
    [
        ("paused", "unpause it first"),
        ("exited", "start it first"),
        ("created", "start it first"),
        ("restarting", "restart policy"),
        ("removing", "being removed"),
        ("dead", "could not be removed"),
        ("some-future-state", "it has no process"),
    ],
)
@pytest.mark.parametrize("pid", [0, 4242])
def test_a_container_that_does_not_run_is_named_with_the_next_step(state, hint, pid):
    with pytest.raises(ContainerError) as caught:
        check_running(make(state, pid))
    assert str(caught.value).startswith(f"container web (0123456789ab) is {state}: ")
    assert hint in str(caught.value)


@pytest.mark.parametrize("pid", [0, 1, -1])
def test_a_container_that_runs_without_a_process_of_its_own_is_refused(pid):
    with pytest.raises(ContainerError, match="it has no process"):
        check_running(make(pid=pid))


def test_result_and_short_id():
    container = make()
    assert container.short_id == "0123456789ab"
    assert container.as_result() == {
        "id": ID,
        "name": "web",
        "state": "running",
        "pid": 4242,
        "image": "nginx",
        "runtime": "docker",
        "user": None,
    }


def test_a_pid_that_now_is_a_strangers_is_refused():
    # This process lives, and stands in no control group that bears the container's id.
    with pytest.raises(ContainerError, match="now belongs to another process"):
        open_process(make(pid=os.getpid()))


def test_a_container_that_has_ended_is_named():
    with pytest.raises(ContainerError, match=r"container web \(0123456789ab\) has just ended"):
        open_process(make(pid=0))


def test_a_process_is_held_by_when_it_started_where_no_cgroup_bears_the_id():
    # A child in a mount namespace of its own would be let in; this process is in ours, and the start is what differs here.
    ticks = read_start_ticks(os.getpid())
    with pytest.raises(ContainerError, match="shares the host's mount namespace"):
        open_process(replace(make(pid=os.getpid()), id="web", start_ticks=ticks))
    with pytest.raises(ContainerError, match="now belongs to another process"):
        open_process(replace(make(pid=os.getpid()), id="web", start_ticks=ticks + 1))


def test_an_id_that_is_any_text_is_not_looked_for_in_cgroups():
    # "/" or "s" stand in many a cgroup's path.
    with pytest.raises(ContainerError, match="now belongs to another process"):
        open_process(replace(make(pid=os.getpid()), id="s"))


def test_short_ids_of_any_text_are_twelve_digits_and_differ_by_runtime():
    short = {replace(make(), id="web", runtime=runtime).short_id for runtime in ("runc", "crun", "lxc")}
    assert len(short) == 3
    assert all(len(one) == 12 and set(one) <= set("0123456789abcdef") for one in short)
