# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules that begin with the host: the program that systemd runs there. That systemd does run it is tested on a guest (fleet/test_faults.py)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from support import host
from support.fetching import fetch_here

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.boot import program, setup
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.installed import archive
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import orders
from ansible_collections.crashcart.fleet.plugins.module_utils.names import BOOT_RULES


@pytest.fixture
def boot(tmp_path):
    """Give boot(RULES), which runs the program with RULES (name → options) as systemd does, and returns the process that has ended."""
    path = tmp_path / "begin-rules"
    path.write_bytes(archive.make(program.__name__)[0])
    path.chmod(0o755)
    settings = Path(BOOT_RULES)
    assert not settings.parent.exists()
    settings.parent.mkdir()

    def run(rules):
        settings.write_text(json.dumps({"rules": rules}))
        environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"}
        return subprocess.run([path], cwd="/", env=environment, capture_output=True, text=True, check=False)

    yield run
    shutil.rmtree(settings.parent)
    host.call_module("ftrace_instance", state="absent", everything=True)


def complete(*entries):
    return setup.complete_rules(
        [{"labels": None, "max_containers": None, "max_time": None, **entry} for entry in entries]
    )


def run_container(name):
    words = ("run", "--rm", "--network", "none", "--name", name, "crashcart-test/busybox", "cat", "/nonesuch")
    host.docker(*words, check=False)


def test_a_rule_that_begins_with_the_host_traces_what_starts_then(boot, tmp_path):
    done = boot(complete({"name": "late", "containers": ["cc-late-*"]}))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    found = host.call_module("ftrace_info", gather=["boot_rules", "summary"])
    assert found["boot_rules"] == [{"name": "late", "is_running": True}]
    assert "rule late: begins when the host starts, runs" in found["summary"]
    run_container("cc-late-one")
    run_container("cc-other")
    (capture,) = fetch_here(tmp_path / "captures")
    assert capture["manifest"]["container"]["name"] == "cc-late-one"
    assert capture["manifest"]["rule"] == "late"
    # Once more, as by `systemctl restart`: nothing changes where it runs, and it goes on where somebody has killed the recorder.
    assert boot(complete({"name": "late", "containers": ["cc-late-*"]})).returncode == 0
    os.kill(orders.find_recorder(), signal.SIGKILL)
    assert boot(complete({"name": "late", "containers": ["cc-late-*"]})).returncode == 0
    run_container("cc-late-two")
    names = [one["manifest"]["container"]["name"] for one in fetch_here(tmp_path / "more")]
    assert names == ["cc-late-two"]


def test_a_rule_that_cannot_begin_is_named_and_costs_no_other(boot):
    bad = {"name": "bad", "containers": ["x"], "max_time": "soon"}
    done = boot(complete(bad, {"name": "good", "containers": ["cc-late-*"]}))
    assert done.returncode == 1
    assert done.stderr.startswith("rule bad: ") and "max_time" in done.stderr and len(done.stderr.splitlines()) == 1
    assert host.call_module("ftrace_info", gather=["boot_rules"])["boot_rules"] == [
        {"name": "bad", "is_running": False},
        {"name": "good", "is_running": True},
    ]


def test_without_systemd_the_module_says_what_to_use_and_writes_nothing():
    assert not os.path.exists("/run/systemd/system"), "this machine has systemd, so the module would change it"
    with pytest.raises(host.ModuleFailed, match="no systemd runs here.*state=awaiting"):
        host.call_module("ftrace_rules", rules=[{"name": "late", "containers": ["cc-late-*"]}])
    assert not os.path.exists("/etc/crashcart")
    assert not host.call_module("ftrace_rules", state="absent")["changed"]
