# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers without a control group, by processes and files that stand for a monitor's; Podman's own are tested on a guest."""

from __future__ import annotations

import os
import subprocess

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rules import groupless
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rules.identity import Source

SPEC = b'{"annotations": {"io.container.manager": "libpod"}}'


class Monitors:
    """Stands for Sources: each runtime has a conmon that knows the container NAME."""

    def __init__(self, folder):
        self.pid_file = folder / "pid"
        self.name = "web"

    def find(self, _group, _pid):
        words = ("conmon", "-c", "ab" * 32, "-n", self.name)
        return Source(words=words, spec=SPEC, pid_file=str(self.pid_file))


@pytest.fixture
def monitors(tmp_path):
    return Monitors(tmp_path)


@pytest.fixture
def left_out():
    return []


@pytest.fixture
def starts(monitors, left_out):
    return groupless.StartsUnderWay(monitors, lambda container: container.name == "web", left_out.append)


@pytest.fixture
def runtime():
    """Give a process that ends with its stdin."""
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    yield process
    process.communicate()


def test_a_container_in_no_group_is_named_and_left_out_as_soon_as_its_runtime_has_ended(
    starts, runtime, monitors, left_out
):
    starts.add([runtime.pid])
    monitors.pid_file.write_text(str(os.getpid()))  # which is in no container
    starts.look()
    assert (bool(starts), starts.troubles) == (True, [])
    runtime.communicate()
    starts.look()
    (trouble,) = starts.troubles
    assert trouble.startswith("container web was not traced: it has no control group of its own")
    (threads,) = left_out
    assert os.getpid() in threads
    assert not starts


def test_one_that_is_not_meant_is_left_out_silently(starts, runtime, monitors, left_out):
    monitors.name = "other"
    starts.add([runtime.pid])
    monitors.pid_file.write_text(str(os.getpid()))
    runtime.communicate()
    starts.look()
    assert (starts.troubles, len(left_out)) == ([], 1)


def test_one_with_a_group_is_no_matter_of_this(starts, runtime, monitors, left_out, monkeypatch):
    monkeypatch.setattr(groupless, "is_within_container", lambda _text: True)
    starts.add([runtime.pid])
    monitors.pid_file.write_text(str(os.getpid()))
    runtime.communicate()
    starts.look()
    assert (bool(starts), starts.troubles, left_out) == (False, [], [])


def test_one_that_was_never_made_is_forgotten_after_a_while(starts, runtime, monkeypatch):
    starts.add([runtime.pid])
    runtime.communicate()
    starts.look()
    assert starts
    monkeypatch.setattr(groupless, "_MOST_S", 0.0)
    starts.look()
    assert (bool(starts), starts.troubles) == (False, [])
