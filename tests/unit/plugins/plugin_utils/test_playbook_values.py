# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values of playbooks' variables that no task would take, and those that tasks take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ansible_collections.crashcart.fleet.plugins.plugin_utils import playbook_values


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("profile", "diagnos", "crashcart_profile: value of profile must be one of: "),
        ("dat_version", "8", "crashcart_dat_version: value of dat_version must be one of: 6, 7, got: 8"),
        (
            "formats",
            "json,html",
            "crashcart_formats: value of formats must be one or more of: json, text. Got no match for: html",
        ),
        ("max_rate", "fast", "crashcart_max_rate: "),
        ("follow_exec", "perhaps", "crashcart_follow_exec: "),
        ("seconds", "ten", "crashcart_seconds: "),
        (
            "probes",
            [{"type": "uprobe", "pathh": "/x"}],
            "crashcart_probes: missing required arguments: name found in probes; probes.pathh. ",
        ),
        ("buffer_size", "8 barrels", "crashcart_buffer_size: '8 barrels' is not a size: write for example 512KiB"),
        ("ttl", "soon", "crashcart_ttl: 'soon' is not a time: write for example 30s"),
        ("fail_on", "critcal", "crashcart_fail_on: no rule is called 'critcal': critical may be meant"),
    ],
)
def test_a_value_that_no_task_takes_is_told(name, value, says):
    (problem,) = playbook_values.find_wrong({f"crashcart_{name}": value, "crashcart_hosts": "all"})
    assert problem.startswith(says)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("profile", "diagnose"),
        ("profile", None),
        ("profile", "{{ later }}"),
        ("dat_version", 6),
        ("formats", ["json"]),
        ("formats", "json,text"),
        ("max_rate", "1000"),
        ("follow_exec", "no"),
        ("seconds", "0.5"),
        ("seconds", 3),
        ("buffer_size", "8MiB"),
        ("ttl", "1h30m"),
        ("ttl", 90),
        ("fail_on", ["critical", "failures"]),
        ("events", ["sched:sched_switch", {"name": "syscalls:sys_enter_write", "filter": "fd == 1"}]),
        ("expose", {"files": ["trace_marker"]}),
    ],
)
def test_a_value_that_tasks_take_is_none_of_them(name, value):
    assert playbook_values.find_wrong({f"crashcart_{name}": value}) == []


def test_the_check_asks_for_no_variable_that_needs_the_facts_of_a_host(tmp_path):
    task = {"crashcart.fleet.crashcart_playbook_check": {}, "run_once": True}
    (tmp_path / "play.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": [task]}]))
    variables = {
        "address": "{{ ansible_facts.default_ipv4.address }}",
        "crashcart_mode": "{{ 'rin' ~ last }}",
        "last": "k",
    }
    (tmp_path / "hosts.yml").write_text(json.dumps({"all": {"hosts": {"one": {}}, "vars": variables}}))
    program = Path(sys.executable).with_name("ansible-playbook")
    words = [program, "-i", tmp_path / "hosts.yml", tmp_path / "play.yml"]
    collections = next(
        path for path in sys.path if Path(path, "ansible_collections/crashcart/fleet/galaxy.yml").exists()
    )
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": collections}
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert "crashcart_mode: value of mode must be one of: ring, record, got: rink" in done.stdout + done.stderr
    assert "default_ipv4" not in done.stdout
