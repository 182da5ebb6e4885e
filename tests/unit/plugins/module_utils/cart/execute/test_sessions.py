# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute import server
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.jobs import Command, Job
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.memory import MemoryWatch
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.rights import Rights
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.server import Server
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.sessions import run_jobs
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.sinks import STREAMS, Sink
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import Target
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import Process


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the server makes namespaces")
def test_a_container_that_has_just_ended_is_an_error_and_no_hang(monkeypatch, tmp_path):
    monkeypatch.setattr(server, "_FILTERS", str(tmp_path / "seccomp"))
    with subprocess.Popen(["sleep", "1000"]) as child, Process(child.pid) as process:
        child.kill()
        child.wait()
        container = Container("a" * 64, "gone", "running", child.pid, "image", {})
        rights = Rights(0, 0, (), None, no_new_privileges=False)
        program = "/dev/crashcart/bin/true"
        job = Job(
            Target(container, process),
            Command(("true",)),
            rights,
            -1,
            "/dev/crashcart",
            program,
            {},
            {},
            MemoryWatch([], [], ""),
        )
        sinks = {stream: Sink(1) for stream in STREAMS}
        signal.alarm(120)  # a hang ends the test run
        try:
            with Server() as running:
                results = run_jobs([job, job], [sinks, sinks], running)
        finally:
            signal.alarm(0)
    assert [(one.container, one.rc) for one in results] == [("gone", -1)] * 2
    assert all("may have just ended" in one.error for one in results)
