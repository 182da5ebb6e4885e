# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of instances and sizes of their buffers."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import metadata
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import outbox
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import recordings
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.selection import list_instances
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.setup.configure import parse_buffer_kb
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.trace import find_instance

WEB = Container("0123456789ab" + "c" * 52, "web", "running", 4242, "image", {})


@pytest.fixture(autouse=True)
def no_recordings(tmp_path, monkeypatch):
    """Whatever this host records."""
    monkeypatch.setattr(recordings, "FOLDER", str(tmp_path / "traces"))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1408", 1408),
        ("1408\n", 1408),
        ("7 (expanded: 1408)", 7),
        # The CPUs' buffers differ.
        ("X", 0),
        ("", 0),
        ("-5", 0),
    ],
)
def test_size_of_a_buffer(text, size):
    assert parse_buffer_kb(text) == size


def test_an_instance_bears_the_short_id_of_its_container():
    one = find_instance("/sys/kernel/tracing", WEB)
    assert one.instance.name == "crashcart-0123456789ab"
    assert one.instance.path == "/sys/kernel/tracing/instances/crashcart-0123456789ab"
    assert (one.container_id, one.container_name) == (WEB.id, "web")


@pytest.fixture
def nothing_kept(tmp_path, monkeypatch):
    """The host's own records, recordings and captures are not the test's."""
    for module in (recordings, outbox):
        monkeypatch.setattr(module, "FOLDER", str(tmp_path / "kept"))
    monkeypatch.setattr(metadata, "_FOLDER", str(tmp_path / "records"))


def test_instances_are_matched_with_containers_by_id(tmp_path, nothing_kept):
    for name in ("crashcart-0123456789ab", "crashcart-ffffffffffff", "somebody-else", "crashcart"):
        (tmp_path / "instances" / name).mkdir(parents=True)
    found = list_instances(str(tmp_path), [WEB])
    assert [(one.instance.name, one.container) for one in found] == [
        ("crashcart-0123456789ab", WEB),
        ("crashcart-ffffffffffff", None),
    ]
    assert (found[1].container_id, found[1].container_name) == ("ffffffffffff", "ffffffffffff")


def test_a_kernel_without_instances_has_none(tmp_path, nothing_kept):
    assert list_instances(str(tmp_path), [WEB]) == []
