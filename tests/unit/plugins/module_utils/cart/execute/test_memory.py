# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's kills in a container's memory group, in folders that look like those of both versions of control groups."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.memory import MemoryWatch
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.cgroups import Membership
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.mounts import parse_mountinfo

ID = "ab" * 32
V1 = "30 29 0:26 / {}/memory rw - cgroup cgroup rw,memory"
V2 = "30 29 0:26 / {} rw - cgroup2 cgroup2 rw"


@pytest.fixture(params=[1, 2], name="group")
def make_group(request, tmp_path):
    """Give the watch of a container's group, and a function that writes its kills and its limit."""
    line, controllers = (V1, ("memory",)) if request.param == 1 else (V2, ())
    top = tmp_path / "memory" if request.param == 1 else tmp_path
    folder = top / "docker" / ID
    folder.mkdir(parents=True)

    def write(kills, limit):
        if request.param == 1:
            (folder / "memory.oom_control").write_text(f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n")
            (folder / "memory.limit_in_bytes").write_text(f"{9223372036854771712 if limit is None else limit}\n")
        else:
            (folder / "memory.events").write_text(f"low 0\nmax 7\noom 7\noom_kill {kills}\noom_group_kill 0\n")
            (folder / "memory.max").write_text("max\n" if limit is None else f"{limit}\n")

    write(3, 64 << 20)
    mounts = list(parse_mountinfo([line.format(tmp_path)]))
    return MemoryWatch([Membership(controllers, f"/docker/{ID}/inner")], mounts, ID), write


def test_kills_from_before_are_not_the_commands(group):
    watch, _write = group
    assert watch.explain_kill() == ""


def test_a_kill_at_the_containers_limit(group):
    watch, write = group
    write(4, 64 << 20)
    assert watch.explain_kill() == (
        "the kernel has killed the command, since the container has reached its memory limit of 64.0 MiB:"
        " raise the limit, or use a tool that needs less"
    )


def test_a_kill_where_the_container_has_no_limit(group):
    watch, write = group
    write(4, None)
    assert "the memory of the host, or of a control group above the container, is used up" in watch.explain_kill()


def test_a_group_that_is_gone(group, tmp_path):
    watch, _write = group
    for file in tmp_path.rglob("memory.*"):
        file.unlink()
    assert watch.explain_kill() == ""


def test_no_memory_group():
    assert MemoryWatch([], [], ID).explain_kill() == ""
