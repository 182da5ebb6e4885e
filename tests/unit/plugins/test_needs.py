# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that each module takes along to hosts: Ansible sends and hosts read all that a module imports, with each task."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.tests.unit.plugins.imports import is_below, list_needed, read_modules
from ansible_collections.crashcart.fleet.tests.unit.plugins.test_layers import is_on_hosts

# The folders of module_utils that most modules need little of.
LARGE = ("analysis", "cart", "ftrace", "image", "linux.tracing")
DESCRIBED = (
    "ftrace.describe",
    "ftrace.fetch.outbox",
    "ftrace.follow.following",
    "ftrace.follow.pid_lists",
    "ftrace.format.capture_file",
    "ftrace.format.compression",
    "ftrace.history",
    "ftrace.metadata",
    "ftrace.recorder.orders",
    "ftrace.recorder.recordings",
    "ftrace.recorder.state",
    "ftrace.request",
    "ftrace.rule",
    "ftrace.selection",
    "ftrace.setup.configure",
    "ftrace.setup.installed_probes",
    "ftrace.trace",
    "linux.tracing",
)
FETCHED = (
    *DESCRIBED,
    "ftrace.drain",
    "ftrace.fetch.recording",
    "ftrace.fetch.ring",
    "ftrace.follow.tasks",
    "ftrace.format.holdings",
    "ftrace.holdings",
    "ftrace.format.capture_file_writer",
    "ftrace.format.ring_pages",
    "ftrace.format.trace_dat",
    "ftrace.format.trace_dat_reader",
    "ftrace.format.waits",
    "ftrace.head",
    "ftrace.loss",
    "ftrace.manifest",
    "ftrace.recorder.channel",
    "ftrace.recorder.client",
    "ftrace.recorder.foreign_access",
    "ftrace.recorder.keeper",
    "ftrace.recorder.process",
    "ftrace.recorder.writer",
    "ftrace.fetch.distribute",
    "ftrace.rules",
)
CENSUS = (
    "cart.attach.expiry",
    "cart.attach.mounting",
    "cart.attach.tool_users",
    "cart.census",
    "cart.execute.scratch",
    "cart.exposure",
    "cart.image_mounts",
    "cart.store",
)
STARTED = (
    *FETCHED,
    "cart.attach.mounting",
    "cart.attach.tool_users",
    "cart.exposure",
    "cart.image_mounts",
    "cart.store",
    "ftrace.calls.arguments",
    "ftrace.calls.awaiting",
    "ftrace.calls.rule_requests",
    "ftrace.calls.starting",
    "ftrace.end",
    "ftrace.plan",
    "ftrace.recorder.handover",
    "ftrace.setup.probe_places",
    "ftrace.start",
)
# What the programs that stay on a host do not need: they begin traces, and say nothing of any.
_NOT_OF_PROGRAMS = (
    "ftrace.calls.awaiting",
    "ftrace.calls.starting",
    "ftrace.describe",
    "ftrace.fetch.distribute",
    "ftrace.fetch.recording",
    "ftrace.fetch.ring",
    "ftrace.format.trace_dat_reader",
    "ftrace.format.waits",
    "ftrace.selection",
)
_BEGUN = tuple(name for name in STARTED if name not in _NOT_OF_PROGRAMS)
# Module → what it needs of these, and nothing else of them.
NEEDS = {
    "crashcart_attach": ("cart.attach", "cart.image_mounts", "cart.store"),
    "crashcart_exec": (
        "cart.attach.attachments",
        "cart.attach.expiry",
        "cart.execute",
        "cart.image_mounts",
        "cart.store",
    ),
    "crashcart_host_check": ("cart.store", "linux.tracing"),
    "crashcart_image": (*CENSUS, "linux.tracing.dynamic_events", "linux.tracing.tracefs"),
    "crashcart_info": (*CENSUS, *DESCRIBED, "cart.attach.attachments"),
    "crashcart_playbook_check": (),
    "crashcart_shell": (),
    "ftrace_capture": (
        *STARTED,
        "ftrace.calls.finishing",
        "ftrace.calls.guard",
        "ftrace.calls.live",
        "ftrace.calls.requests",
        "ftrace.fetch.arguments",
        "ftrace.fetch.fetch",
        "ftrace.fetch.new_pages",
    ),
    "ftrace_fetch": (*FETCHED, "ftrace.fetch.arguments", "ftrace.fetch.fetch"),
    "ftrace_guard": ("ftrace.calls.requests", "ftrace.fetch.arguments"),
    "ftrace_hook": (*_BEGUN, "ftrace.hook", "ftrace.installed"),
    "ftrace_info": (*DESCRIBED, "ftrace.hook.notes", "ftrace.hook.policy"),
    "ftrace_instance": STARTED,
    "ftrace_report": (),
    "ftrace_rules": (*_BEGUN, "ftrace.boot", "ftrace.installed"),
    "ftrace_store": (),
}
# What must not come back, even where somebody writes it into NEEDS.
_ATTACHING = [f"cart.attach.{name}" for name in ("removal", "mounting", "methods", "volumes", "tool_users")]
_RECORDING = [f"ftrace.recorder.{name}" for name in ("process", "keeper", "writer", "client", "foreign_access")]
_READING = "ftrace.format.trace_dat_reader"
NEVER = {
    **dict.fromkeys(NEEDS, ("analysis", "image")),
    "crashcart_attach": ("analysis", "image", "ftrace", "linux.tracing", "cart.execute"),
    "crashcart_exec": ("analysis", "image", "ftrace", "linux.tracing", *_ATTACHING),
    "crashcart_info": ("analysis", "image", *_RECORDING, _READING, "cart.attach.attach", "cart.execute.supervisor"),
    "ftrace_guard": ("analysis", "image", "cart", "linux.tracing", *_RECORDING),
    "ftrace_info": ("analysis", "image", *_RECORDING, _READING, "cart"),
    "ftrace_fetch": ("analysis", "image", "cart"),
}
MODULES = read_modules()


def list_of_large(modules, name):
    """Return what the module NAME needs of the large folders of module_utils, by the names below it."""
    found = (
        other.partition(".")[2]
        for other in list_needed(modules, f"modules.{name}")
        if other.startswith("module_utils.")
    )
    return sorted(other for other in found if is_below(other, LARGE))


def list_unexpected(modules, name, entries):
    """Return what the module NAME needs of the large folders and is not in ENTRIES."""
    return [other for other in list_of_large(modules, name) if not is_below(other, entries)]


def list_unused(modules, name, entries):
    """Return those of ENTRIES that the module NAME does not need."""
    found = list_of_large(modules, name)
    return [entry for entry in entries if not any(is_below(other, [entry]) for other in found)]


def test_each_module_of_hosts_is_looked_at():
    names = {name.partition(".")[2] for name in MODULES if name.startswith("modules.") and is_on_hosts(name)}
    assert names == NEEDS.keys() == NEVER.keys()


@pytest.mark.parametrize("name", NEEDS)
def test_a_module_needs_what_is_said_and_no_more(name):
    assert list_unexpected(MODULES, name, NEEDS[name]) == []
    assert list_unused(MODULES, name, NEEDS[name]) == []
    assert [other for other in list_of_large(MODULES, name) if is_below(other, NEVER[name])] == []


def test_what_is_needed_by_way_of_others_is_found():
    modules = {
        "modules.m": {"module_utils.errors", "os"},
        "module_utils.errors": {"module_utils.cart.store", "module_utils.errors"},
        "module_utils.cart.store": {"module_utils.ftrace.start"},
        "module_utils.ftrace.start": {"modules.m"},
        "module_utils.image.tree": set(),
    }
    assert list_of_large(modules, "m") == ["cart.store", "ftrace.start"]
    assert list_unexpected(modules, "m", ("cart", "ftrace.star")) == ["ftrace.start"]
    assert list_unused(modules, "m", ("cart", "ftrace", "image", "cart.stor")) == ["image", "cart.stor"]
