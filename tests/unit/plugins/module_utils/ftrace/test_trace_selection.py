# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose traces a selection means: of containers that run, of removed ones, of ones that only a file still tells of."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import options
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    Container,
    ContainerError,
    ContainerGoneError,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import metadata, selection
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.describe import describe_trace, read_container
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import outbox
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import trace_dat
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.capture_file_writer import SegmentWriter
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.manifest import describe_container
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import recordings
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.trace import TraceInstance
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_folder
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.ftrace import kernel as kernels

API, DB, OLD = (
    Container(digit * 64, name, "running", 2, "image", {"tier": tier})
    for digit, name, tier in (("a", "api", "front"), ("d", "db", "back"), ("e", "old", "back"))
)


class Runtimes:
    """The runtimes of a host that know CONTAINERS; REMOVED are ids of those that go between two looks."""

    def __init__(self, *containers, removed=(), errors=None):
        self._containers = containers
        self._removed = removed
        self.errors = errors or {}
        self.warnings = []
        self.is_complete = not self.errors

    def list_containers(self, *, users=True):
        return list(self._containers)

    @staticmethod
    def find_meant(pattern):
        return pattern

    def refresh(self, container):
        if container.id in self._removed:
            raise ContainerGoneError(f"container {container.name} was removed")
        return replace(container, pid=container.pid + 1)


class Module:
    def __init__(self, **params):
        nothing = {"containers": None, "labels": None, "query": None, "docker_host": None, "allow_empty": False}
        self.params = {**nothing, **params}
        self.warnings = []

    def warn(self, text):
        self.warnings.append(text)


def trace(kernel, container, record=True):
    """Have CONTAINER be traced, and its start be on RECORD."""
    instance = Instance(kernel.root, "crashcart-" + container.short_id)
    instance.create()
    if record:
        metadata.write_record(instance, {"container": describe_container(container)})
    return instance


@pytest.fixture
def select(kernel, monkeypatch):
    def call(host, containers=None, params=None, **more):
        def open_host(_module):
            if isinstance(host, Exception):
                raise host
            return host

        monkeypatch.setattr(options, "open_host", open_host)
        module = Module(containers=containers, **(params or {}))
        found = selection.select_instances(module, kernel.root, **more)
        return [(one.container_name, one.container and one.container.state) for one in found], module.warnings

    return call


def test_those_that_are_selected_and_traced(kernel, select):
    for container in (API, DB):
        trace(kernel, container)
    host = Runtimes(API, DB, OLD)
    assert select(host, ["api"]) == ([("api", "running")], [])
    assert select(host, ["*"])[0] == [("api", "running"), ("db", "running")]
    assert select(host, params={"labels": {"tier": "back"}})[0] == [("db", "running")]
    assert select(host)[0] == [("api", "running"), ("db", "running")]


def test_what_is_said_of_a_container_is_what_its_runtime_says_last(kernel, select):
    trace(kernel, API)
    instances = selection.list_instances(kernel.root, [API])
    assert [one.container.pid for one in instances] == [2]
    select(Runtimes(API), ["api"])
    module = Module(containers=["api"])
    (found,) = selection.select_instances(module, kernel.root)
    assert found.container.pid == 3
    # One that goes just now leaves its trace.
    assert select(Runtimes(API, removed=[API.id]), ["api"])[0] == [(API.short_id, None)]


def test_a_selection_of_nobody_who_is_traced_is_an_error_that_names_those_who_are(kernel, select):
    trace(kernel, DB)
    host = Runtimes(API, DB)
    with pytest.raises(ContainerError, match=r"matches no traced container; traced are: db \(allow_empty=true"):
        select(host, ["api"])
    assert select(host, ["api"], untraced_ok=True) == ([], [])
    assert select(host, ["api"], {"allow_empty": True}) == ([], [])
    kernel.rmdir(f"{kernel.root}/instances/crashcart-{DB.short_id}")
    metadata.remove_record(Instance(kernel.root, f"crashcart-{DB.short_id}"))
    with pytest.raises(ContainerError, match="traced are: none"):
        select(host, ["db"])


def test_a_name_that_nobody_has_is_an_error_or_a_warning(kernel, select):
    trace(kernel, API)
    with pytest.raises(ContainerError, match="no container is called 'nonesuch'"):
        select(Runtimes(API), ["nonesuch"])
    found, (warning,) = select(Runtimes(API), ["nonesuch", "api"], missing_ok=True)
    assert (found, "'nonesuch'" in warning) == ([("api", "running")], True)
    # Where a runtime is silent the name may be one of its own.
    with pytest.raises(ContainerError, match="nonesuch"):
        select(Runtimes(API, errors={"podman": "silent"}), ["nonesuch", "api"], missing_ok=True)


def test_a_removed_container_is_known_by_its_record_and_by_the_beginning_of_its_id(kernel, select):
    trace(kernel, OLD)
    host = Runtimes(API)
    for pattern in ("old", OLD.id, OLD.id[:12], "o*"):
        assert select(host, [pattern])[0] == [("old", "gone")], pattern
    assert select(host, params={"labels": {"tier": "back"}})[0] == [("old", "gone")]
    assert select(host)[0] == [("old", "gone")]
    with pytest.raises(ContainerError):
        select(host, [OLD.id[:11]])


def test_of_a_removed_container_without_a_record_the_id_is_left(kernel, select):
    trace(kernel, OLD, record=False)
    host = Runtimes(API)
    assert select(host, [OLD.id[:12]])[0] == [(OLD.short_id, None)]
    assert select(host, [OLD.id])[0] == [(OLD.short_id, None)]
    assert select(host, [OLD.short_id, "api"], untraced_ok=True)[0] == [(OLD.short_id, None)]
    with pytest.raises(ContainerError):
        select(host, ["old"])


def test_a_name_that_somebody_has_by_now_is_his(kernel, select):
    trace(kernel, OLD)
    new = replace(OLD, id="f" * 64)
    host = Runtimes(new)
    assert select(host, ["old"], untraced_ok=True)[0] == []
    assert select(host, [OLD.short_id])[0] == [(OLD.short_id, None)]
    trace(kernel, new)
    assert select(host, ["old"])[0] == [("old", "running")]


def test_where_no_runtime_answers_traces_are_known_by_their_records(kernel, select):
    trace(kernel, API)
    silence = ContainerError("Docker does not answer")
    assert select(silence, ["api"]) == ([("api", "gone")], ["Docker does not answer"])
    assert select(silence) == ([("api", "gone")], ["Docker does not answer"])
    with pytest.raises(ContainerError, match="Docker does not answer"):
        select(silence, params={"query": "State.Running"})


def test_where_all_runtimes_are_silent_a_query_is_an_error_and_nothing_else_is(kernel, select):
    class Silent(Runtimes):
        inspect = None

        def list_containers(self, *, users=True):
            raise ContainerError("Docker is silent")

    trace(kernel, API)
    warning = "no runtime of this host says what containers it has: Docker is silent"
    assert select(Silent(), ["api"]) == ([("api", "gone")], [warning])
    assert select(Silent()) == ([("api", "gone")], [warning])
    pytest.importorskip("jmespath")
    with pytest.raises(ContainerError, match="Docker is silent"):
        select(Silent(), params={"query": "State.Running"})


def test_a_users_container_has_no_trace_of_roots(kernel, select):
    """A user may give a container any id, so also that of one that root has traced."""
    trace(kernel, OLD)
    of_user = replace(OLD, owner_uid=1000, name="mine")
    (found,) = selection.list_instances(kernel.root, [of_user])
    assert found.container is None
    (found,) = selection.list_instances(kernel.root, [of_user, OLD])
    assert found.container == OLD
    kernel.rmdir(found.instance.path)
    trace(kernel, of_user)
    (found,) = selection.list_instances(kernel.root, [of_user])
    assert found.container == of_user
    (found,) = selection.list_instances(kernel.root, [replace(of_user, owner_uid=1001)])
    assert found.container is None


def test_what_is_left_in_files_only_is_listed_too(kernel, tmp_path):
    trace(kernel, API)
    make_folder(outbox.FOLDER)
    with open(f"{outbox.FOLDER}/crashcart-{DB.short_id}.{1:020d}.kept", "wb") as file:
        writer = SegmentWriter(file, "zlib")
        writer.write_head(trace_dat.Head(512, b"", b"", [], {}))
        writer.write_document({"container": describe_container(DB)})
    path = recordings.create(f"crashcart-{OLD.short_id}", {"container": describe_container(OLD)}, b"")
    recordings.begin(path)
    kernels.put(f"{kernel.root}/instances/somebodys/x", "")
    removed = trace(kernel, replace(API, id="b" * 64, name="taken"))
    kernel.rmdir(removed.path)
    metadata.note_removed(removed)
    found = selection.list_instances(kernel.root, [])
    assert [(one.instance.name, read_container(one)["name"]) for one in found] == [
        (f"crashcart-{API.short_id}", "api"),
        ("crashcart-bbbbbbbbbbbb", "taken"),
        (f"crashcart-{DB.short_id}", "db"),
        (f"crashcart-{OLD.short_id}", "old"),
    ]
    assert read_container(TraceInstance(Instance(kernel.root, "crashcart-0123456789ab"), None)) is None


def test_a_host_without_tracefs_has_no_instances(tmp_path, kernel):
    assert selection.list_instances(str(tmp_path / "nonesuch"), [API]) == []


def test_a_trace_is_described_and_so_is_one_that_is_gone(kernel):
    instance = trace(kernel, API)
    instance.write("trace_clock", "mono")
    instance.event_enable("sched:sched_switch", "prev_pid == 1")
    instance.trigger_write("sched:sched_switch", "traceoff if next_pid == 2")
    instance.add_pids("set_event_pid", [os.getpid()])
    instance.trace_on()
    kernels.set_stats(instance, 1, entries=3, overrun=2)
    one = TraceInstance(instance, API)
    found = describe_trace(one)
    assert (found["name"], found["container"], found["id"], found["state"]) == (instance.name, "api", API.id, "started")
    assert (found["clock"], found["events"]) == ("mono", {"sched:sched_switch": "prev_pid == 1"})
    assert found["triggers"] == {"sched:sched_switch": ["traceoff:unlimited if next_pid == 2"]}
    assert (found["tracer"], found["pids"], found["mode"], found["probes"]) == ("nop", 1, "ring", {})
    assert [(cpu["cpu"], cpu["entries"], cpu["overrun"]) for cpu in found["cpus"]] == [(0, 0, 0), (1, 3, 2)]
    assert (found["ended"], found["stopped"], found["recordings"]) == (None, None, [])
    kernel.rmdir(instance.path)
    metadata.note_removed(instance)
    gone = describe_trace(one)
    assert (gone["state"], gone["events"], gone["cpus"], gone["pids"]) == ("stopped", {}, [], 0)
    assert gone["stopped"].startswith("somebody removed its trace instance at ")
    assert list(gone) == list(found)
