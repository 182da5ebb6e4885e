# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Manifests of real captures: one form for rings and recordings, small, and with all that a reader needs within the trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from support import host
from support.every_kernel import count, report
from support.fetching import fetch_here

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.capture_summary import add_tables
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.events import gen_event_blocks

SCHEMA = json.loads((Path(__file__).parents[4] / "docs" / "manifest.schema.json").read_text(encoding="utf-8"))
MAX_BYTES = 4096


@pytest.fixture
def capture(request, container, tmp_path):
    """A small capture of a container that has some threads, in the mode of the test."""
    name = container("busybox", "/bin/busybox", "sh", "-c", "sleep 1000 & sleep 1000 & wait")
    room = {"min_free": "1MiB"} if request.param == "record" else {}
    host.call_module("ftrace_instance", containers=[name], syscalls=["getcwd", "chdir"], mode=request.param, **room)
    for _number in range(3):
        host.docker("exec", name, "/bin/busybox", "sh", "-c", "cd /tmp; cd /nonesuch; pwd")
    host.call_module("ftrace_instance", containers=[name], state="stopped")
    (found,) = fetch_here(tmp_path, containers=[name])
    return found


@pytest.mark.parametrize("capture", ["ring", "record"], indirect=True)
def test_a_manifest_has_the_published_form_and_is_small(capture, tmp_path):
    path = Path(capture["path"])
    text = path.with_suffix(".json").read_bytes()
    manifest = json.loads(text)
    Draft202012Validator(SCHEMA).validate(manifest)
    assert len(text) <= MAX_BYTES, f"{len(text)} bytes"
    assert (manifest["complete"], manifest["reasons"]) == (True, [])
    assert manifest["followed"]["exec"] == "descent"
    # As many events as the kernel counted are in the file.
    with open(path, "rb") as file:
        assert sum(len(block.types) for block in gen_event_blocks(Trace(file), manifest)) == manifest["entries"] > 0


def test_what_makes_a_manifest_long_is_within_the_trace(container, tmp_path):
    labels = {f"com.example.label{number:02}": "x" * 150 for number in range(40)}
    options = [word for name, value in labels.items() for word in ("--label", f"{name}={value}")]
    name = container("busybox", "/bin/busybox", "sleep", "1000", options=("--network", "none", *options))
    asked = {"profile": "network", "events": ["sched:*", "signal:*"]}
    host.call_module("ftrace_instance", containers=[name], **asked)
    host.docker("exec", name, "/bin/busybox", "nc", "127.0.0.1", "1", check=False)
    host.call_module("ftrace_instance", containers=[name], state="stopped")
    (capture,) = fetch_here(tmp_path, containers=[name])
    path = Path(capture["path"])
    text = path.with_suffix(".json").read_bytes()
    manifest = json.loads(text)
    Draft202012Validator(SCHEMA).validate(manifest)
    assert len(text) <= MAX_BYTES, f"{len(text)} bytes"
    assert manifest["in_trace"]["container.labels"] == len(labels)
    with open(path, "rb") as file:
        whole = add_tables(manifest, Trace(file))
    assert whole["container"]["labels"] == labels
    assert len(whole["events"]) > 20
    assert whole["specification"]["syscalls"] is not None
    (summary,) = report(tmp_path, tmp_path / "report")
    assert count(summary)["connect"]["errors"] == {"ECONNREFUSED": 1}


@pytest.mark.parametrize("capture", ["ring", "record"], indirect=True)
@pytest.mark.parametrize("beside", [True, False])
def test_a_trace_is_read_with_its_names_also_without_its_manifest(capture, tmp_path, beside):
    if not beside:
        Path(capture["path"]).with_suffix(".json").unlink()
    (summary,) = report(tmp_path, tmp_path / "report")
    calls = {name: one["calls"] for name, one in count(summary).items()}
    assert calls.get("chdir") == 6, calls


@pytest.mark.parametrize("capture", ["ring"], indirect=True)
def test_trace_cmd_has_nothing_to_say_of_the_tables(capture):
    told = host.run("trace-cmd", "report", capture["path"])
    assert "chdir" in told.stdout or "NR 80 " in told.stdout
    assert "option" not in told.stderr and "warning" not in told.stderr.lower()
    assert "crashcart.fleet" in host.run("trace-cmd", "dump", "--all", "-i", capture["path"]).stdout
