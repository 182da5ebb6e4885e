# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records of a trace's start, the owner of a trace, and clocks beside real time."""

from __future__ import annotations

import os
import time

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import metadata
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import boot
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import clocks
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance

NAME = "crashcart-0123456789ab"


@pytest.fixture
def instance(tmp_path, monkeypatch):
    monkeypatch.setattr(metadata, "_FOLDER", str(tmp_path / "traces"))
    os.makedirs(str(tmp_path / "instances" / NAME))
    return Instance(str(tmp_path), NAME)


def test_a_record_is_kept_and_forgotten(instance, tmp_path):
    assert metadata.read_record(instance) == {}
    metadata.write_record(instance, {"tasks": [{"tid": 5}]})
    metadata.write_record(instance, {"tasks": [{"tid": 6}]})
    assert metadata.read_record(instance) == {"tasks": [{"tid": 6}]}
    assert os.listdir(str(tmp_path / "traces")) == [NAME + ".json"]
    metadata.remove_record(instance)
    metadata.remove_record(instance)
    assert not (tmp_path / "traces").exists()


def test_a_record_of_an_earlier_instance_of_that_name_is_none(instance):
    metadata.write_record(instance, {"tasks": []})
    os.rename(instance.path, instance.path + "-old")  # keeps the inode, so that the new one has another
    os.mkdir(instance.path)
    assert metadata.read_record(instance) == {}


def test_a_record_of_an_earlier_boot_is_none(instance, monkeypatch):
    metadata.write_record(instance, {"tasks": []})
    monkeypatch.setattr(boot, "read_boot_id", lambda: "another")
    assert metadata.read_record(instance) == {}


@pytest.mark.parametrize("text", ["", "{", "[]", "5", '{"tasks": []}'])
def test_a_damaged_record_is_none(instance, tmp_path, text):
    metadata.write_record(instance, {})
    (tmp_path / "traces" / (NAME + ".json")).write_text(text)
    assert metadata.read_record(instance) == {}


@pytest.mark.parametrize("clock", ["mono", "mono_raw", "boot"])
def test_an_offset_leads_to_real_time(clock):
    numbers = {"mono": time.CLOCK_MONOTONIC, "mono_raw": time.CLOCK_MONOTONIC_RAW, "boot": time.CLOCK_BOOTTIME}
    found = clocks.measure_offset(clock)
    now = time.clock_gettime_ns(numbers[clock]) + found["offset_ns"]
    assert 0 < found["uncertainty_ns"] < 10_000_000
    assert abs(now - time.time_ns()) < 1_000_000_000


def test_a_clock_that_only_the_kernel_reads():
    found = clocks.measure_offset("global")
    assert (found["offset_ns"], found["uncertainty_ns"]) == (None, None)
    assert found["real_time_ns"] > 0


def test_what_is_wanted_is_kept_for_one_instance_and_goes_with_its_record(instance, tmp_path):
    assert metadata.read_wanted(instance) is None
    metadata.write_wanted(instance, {"tracing_on": "1"})  # there is no record that it would go with
    assert metadata.read_wanted(instance) is None
    metadata.write_record(instance, {})
    metadata.write_wanted(instance, {"tracing_on": "1"})
    assert metadata.read_wanted(instance) == {"tracing_on": "1"}
    metadata.remove_record(instance)
    assert not (tmp_path / "traces").exists()


def test_an_instance_that_somebody_removed_is_on_record_until_it_is_made_again(instance, tmp_path):
    metadata.note_removed(instance)  # of which nothing is known
    assert metadata.list_removed(str(tmp_path)) == []
    metadata.write_record(instance, {"container": {"name": "api"}})
    os.rename(instance.path, instance.path + "-old")
    metadata.note_removed(instance)
    metadata.note_removed(instance)
    assert metadata.list_removed(str(tmp_path)) == [NAME]
    record = metadata.read_removed(instance)
    assert record["container"] == {"name": "api"}
    assert metadata.describe_removed(record).startswith("somebody removed its trace instance at 20")
    os.mkdir(instance.path)
    assert metadata.read_removed(instance) is None
    assert metadata.read_record(instance) == {}


def test_what_processes_held_is_of_the_beginning_of_the_next_capture(instance):
    (first, second) = ({"time_ns": 1}, {"time_ns": 2})
    os.makedirs(os.path.dirname(os.path.join(instance.path, "trace_clock")), exist_ok=True)
    with open(os.path.join(instance.path, "trace_clock"), "w", encoding="ascii") as file:
        file.write("[mono]\n")
    metadata.write_record(instance, {metadata.HOLDINGS: first})
    metadata.note_taken(instance)
    assert metadata.read_record(instance)[metadata.HOLDINGS] == first
    metadata.note_taken(instance, second)
    assert metadata.read_record(instance)[metadata.HOLDINGS] == second


@pytest.mark.parametrize(
    ("record", "is_recorded", "found"),
    [
        ({"holdings": {"time_ns": 1}}, False, {"time_ns": 1}),
        ({"holdings": {"time_ns": 1}}, True, {}),  # a recording is a capture of its own
        ({"holdings": {"time_ns": 1}, "end": {}}, False, {}),  # the trace begins again
        ({}, False, {}),  # an older version has begun it
    ],
)
def test_what_a_running_trace_held_at_its_start(record, is_recorded, found):
    assert metadata.find_holdings(record, is_recorded=is_recorded) == found
