# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The published form of a manifest, and that rings and recordings have the same one."""

from __future__ import annotations

import copy
import json
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, ValidationError

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import manifest
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import holdings, tables
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.trace_dat import TraceFileError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.holdings import members
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.holdings.collect import collect
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.loss import CpuLoss, Loss, Rotated
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import recordings
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import Process
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.clocks import measure_offset

ON_CONTROLLER = {"in_trace": {}, "inventory_hostname": "web1", "size": 4096, "sha256": "0" * 64}


def find_schema():
    """The file stands in docs/, beside plugins/ in the checkout and in a built collection."""
    folder = next(path for path in Path(manifest.__file__).parents if (path / "docs" / "manifest.schema.json").exists())
    return json.loads((folder / "docs" / "manifest.schema.json").read_text(encoding="utf-8"))


@contextmanager
def started(*command):
    with subprocess.Popen(command) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def validator():
    schema = find_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def make(mode="ring", loss=None, **values):
    container = Container("a" * 64, "api", "running", 5, "image", {"a": "b"})
    known = {
        "host": manifest.describe_host(),
        "container": manifest.describe_container(container),
        "instance": "crashcart-aaaaaaaaaaaa",
        "mode": mode,
        "clock": "mono",
        "buffer_kb": "2048",
        "events": {"raw_syscalls:sys_enter": "id == 2"},
        "start": measure_offset("mono"),
        "changed": measure_offset("mono"),
        "end": measure_offset("mono"),
        "specification": {"syscalls": None},
        "earlier_syscalls": [],
        "limits": {},
        "followed": {"exec": "descent"},
        "has_run": True,
        "tracing": False,
        "stopped": None,
    }
    made = manifest.Manifest(**{**known, **values}).as_json(loss or Loss([CpuLoss(0), CpuLoss(1)]))
    return {**json.loads(json.dumps(made)), **ON_CONTROLLER}


def test_both_modes_have_the_published_form_and_the_same_keys(validator):
    ring = make()
    recorded = make(
        "record",
        Loss([CpuLoss(0, lost=4, error="x")], rotated=Rotated(1, 2, 3), segments=2, partial=True, touched=["who"]),
        start=None,
        changed=None,
        end=None,
        specification=None,
        followed=None,
        stopped=recordings.DIED,
    )
    validator.validate(ring)
    validator.validate(recorded)
    assert list(ring) == list(recorded)
    assert set(ring) == set(find_schema()["properties"]) - {"rule"}
    by_rule = make(rule="shop")
    validator.validate(by_rule)
    assert by_rule["rule"] == "shop"
    assert (ring["complete"], recorded["complete"]) == (True, False)


@pytest.mark.sweep
@pytest.mark.parametrize(
    "damage",
    [
        lambda one: one.pop("reasons"),
        lambda one: one.update(version=1),
        lambda one: one.update(complete="yes"),
        lambda one: one.update(more=1),
        lambda one: one["cpus"][0].pop("exact"),
        lambda one: one.pop("events"),
        lambda one: one["container"].pop("labels"),
        lambda one: one.update(in_trace={"events": 1}),  # they are there
        lambda one: one.update(in_trace={"reasons": 1}),
        lambda one: one["container"].update(labels={"a": 1}),
    ],
)
def test_another_form_is_not_the_published_one(validator, damage):
    damaged = copy.deepcopy(make())
    damage(damaged)
    with pytest.raises(ValidationError):
        validator.validate(damaged)


def make_long():
    """A manifest each of whose long parts is long."""
    return make(
        container={**make()["container"], "labels": {f"label{number}": "x" * 150 for number in range(40)}},
        events={f"sched:event{number}": "common_pid >= 0" for number in range(100)},
        specification={"syscalls": {"native": list(range(300))}},
        earlier_syscalls=[{"native": list(range(200))}] * 20,
        limits={f"limit{number}": "y" * 50 for number in range(40)},
        followed={"problems": ["z" * 1000]},
        loss=Loss([CpuLoss(number) for number in range(128)]),
    )


def test_a_long_manifest_is_short_beside_its_trace_which_has_the_rest(validator):
    whole = make_long()
    short, parts = tables.split(whole, 4096)
    assert len(tables.format_manifest(short)) <= 4096 < len(tables.format_manifest(whole))
    validator.validate(short)
    assert short["in_trace"] == {name: len(part) for name, part in parts.items()}
    assert (short["in_trace"]["events"], short["in_trace"]["container.labels"], short["in_trace"]["cpus"]) == (
        100,
        40,
        128,
    )
    assert "labels" not in short["container"] and short["container"]["name"] == "api"
    option = tables.pack({"syscalls": {"1": "write"}}, parts)
    assert tables.unite(short, [option]) == {**whole, "syscalls": {"1": "write"}, "in_trace": short["in_trace"]}
    # All of them, where nothing is short enough.
    assert set(tables.split(whole, 0)[1]) == set(tables.PARTS)
    validator.validate(tables.split(whole, 0)[0])


def test_a_short_manifest_has_all():
    whole = make()
    assert tables.split(whole, 4096) == (whole, {})
    assert "in_trace" in tables.split({}, 0)[0]


@pytest.mark.parametrize("parts", [None, [], {}, {"events": {}}])
def test_a_trace_that_lacks_parts_of_its_manifest_is_damaged(parts):
    short, _parts = tables.split(make_long(), 0)
    with pytest.raises(TraceFileError, match="lack a part that its manifest says"):
        tables.unite(short, [tables.pack({}, parts)])


@pytest.mark.parametrize("in_trace", [5, [], None, {}])
def test_odd_words_of_what_is_in_the_trace_mean_nothing(in_trace):
    assert tables.unite({"in_trace": in_trace}, []) == {"in_trace": in_trace}
    with pytest.raises(TraceFileError):
        tables.unite({"in_trace": {"nonesuch": 1}}, [tables.pack({}, {"nonesuch": 1})])


def test_how_paths_are_recorded_has_the_published_form(validator):
    known = {"by": "eprobe", "why": "probes of the events", "missing": ["unlink"]}
    for told in (None, known, {**known, "by": None}):
        validator.validate(make(specification={"paths": told}))
    for wrong in ({**known, "by": "guess"}, {**known, "why": None}, {"by": None}, "auto"):
        with pytest.raises(ValidationError):
            validator.validate(make(specification={"paths": wrong}))


def test_what_processes_hold_has_the_published_form(monkeypatch, tmp_path):
    monkeypatch.setattr(members, "open_process", lambda container: Process(container.pid))
    monkeypatch.setattr(cgroups, "find_container_directory", lambda _text, _id="": str(tmp_path))
    with started("sleep", "600") as process:
        found = collect(Container("a" * 64, "api", "running", process.pid, "image", {}))
    schema = find_schema()
    names = {
        name for name in schema["$defs"] if schema["$defs"][name]["description"].startswith("Within the trace.dat")
    }
    assert names == set(holdings.NAMES) < set(tables.NAMES)
    for known in (holdings.join(found, found), holdings.join({}, found), holdings.join({}, {})):
        for name, table in known.items():
            form = Draft202012Validator({**schema["$defs"][name], "$defs": schema["$defs"]})
            form.validate(json.loads(json.dumps(table)))
            with pytest.raises(ValidationError):
                form.validate({**table, "first": [{}]})
    assert found["descriptors"] and found["resource_limits"]["processes"]
