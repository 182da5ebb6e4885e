# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The published form of a manifest, and that rings and recordings have the same one."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, ValidationError

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import manifest, recordings
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.clocks import measure_offset
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.loss import CpuLoss, Loss, Rotated

ON_CONTROLLER = {"inventory_hostname": "web1", "size": 4096, "sha256": "0" * 64}


def find_schema():
    """The file stands in docs/, beside plugins/ in the checkout and in a built collection."""
    folder = next(path for path in Path(manifest.__file__).parents if (path / "docs" / "manifest.schema.json").exists())
    return json.loads((folder / "docs" / "manifest.schema.json").read_text(encoding="utf-8"))


@pytest.fixture
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
    assert set(ring) == set(find_schema()["properties"])
    assert (ring["complete"], recorded["complete"]) == (True, False)


@pytest.mark.parametrize(
    "damage",
    [
        lambda one: one.pop("reasons"),
        lambda one: one.update(version=1),
        lambda one: one.update(complete="yes"),
        lambda one: one.update(more=1),
        lambda one: one["cpus"][0].pop("exact"),
        lambda one: one["container"].update(labels={"a": 1}),
    ],
)
def test_another_form_is_not_the_published_one(validator, damage):
    damaged = copy.deepcopy(make())
    damage(damaged)
    with pytest.raises(ValidationError):
        validator.validate(damaged)
