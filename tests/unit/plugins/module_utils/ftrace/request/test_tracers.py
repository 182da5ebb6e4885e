# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wishes for a tracer, and the answers of a kernel that is made of files."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request import tracers
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.tracers import TracerRequest
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import TraceError

NEW, OLD = (6, 12), (6, 1)
OURS = ["crashcart-0123456789ab"]


def make_tracefs(tmp_path, *, offered="irqsoff function_graph function nop", top="nop", **instances):
    (tmp_path / "available_tracers").write_text(offered)
    (tmp_path / "current_tracer").write_text(top)
    (tmp_path / "available_filter_functions").write_text("vfs_read\nvfs_write\next4_sync [ext4]\n")
    for name, tracer in instances.items():
        (tmp_path / "instances" / name).mkdir(parents=True)
        (tmp_path / "instances" / name / "current_tracer").write_text(tracer)
    (tmp_path / "instances").mkdir(exist_ok=True)
    return str(tmp_path)


def test_what_to_trace_is_written_before_the_tracer():
    files = TracerRequest("function", ("vfs_*", "do_sys*"), ("vfs_read",)).find_files()
    assert files["set_ftrace_filter"] == "vfs_* do_sys*"
    assert list(files)[-1] == "current_tracer"
    assert TracerRequest("irqsoff").find_files() == {"current_tracer": "irqsoff"}


@pytest.mark.parametrize(
    "request_",
    [
        TracerRequest("nop", ("vfs_*",)),
        TracerRequest("irqsoff", notrace=("vfs_*",)),
        *(
            TracerRequest("function", (text,))
            for text in ("", "a b", "a\n", "!vfs_read", "vfs_read:traceoff", "#x", "ſ")
        ),
    ],
)
def test_options_that_do_not_fit(request_):
    with pytest.raises(TraceError):
        tracers.check_request(request_)


def test_a_tracer_that_can_be_had(tmp_path):
    root = make_tracefs(tmp_path, other="function")
    for request in (TracerRequest(), TracerRequest("function", ("vfs_*",)), TracerRequest("function_graph")):
        tracers.check_possible(root, request, [*OURS, "crashcart-2"], NEW)
    tracers.check_possible(root, TracerRequest("irqsoff"), OURS, OLD)


@pytest.mark.parametrize(
    ("request_", "names", "release", "reason"),
    [
        (TracerRequest("wakeup"), OURS, NEW, "no tracer wakeup .*CONFIG_SCHED_TRACER.*it has function, "),
        (TracerRequest("function_graph"), OURS, OLD, "before Linux 6.11 function_graph works only in the top instance"),
        (TracerRequest("irqsoff"), [*OURS, "crashcart-2"], NEW, "one instance per host: select one container, not 2"),
        (TracerRequest("function", ("vfs_reed",)), OURS, NEW, "no function 'vfs_reed'.*near ones: vfs_read"),
        (TracerRequest("function", (), ("nope*",)), OURS, NEW, "no function 'nope.*near ones: none"),
    ],
)
def test_a_tracer_that_cannot_be_had(tmp_path, request_, names, release, reason):
    with pytest.raises(TraceError, match=reason):
        tracers.check_possible(make_tracefs(tmp_path), request_, names, release)


def test_the_one_user_is_named(tmp_path):
    root = make_tracefs(tmp_path, other="irqsoff")
    with pytest.raises(TraceError, match="one instance per host, and other uses one like it"):
        tracers.check_possible(root, TracerRequest("irqsoff"), OURS, NEW)
    tracers.check_possible(root, TracerRequest("irqsoff"), ["other"], NEW)


def test_a_host_that_lets_nobody_trace_functions(tmp_path):
    root = make_tracefs(tmp_path)
    (tmp_path / "available_filter_functions").unlink()
    with pytest.raises(TraceError, match="functions cannot be traced on this host: .*available_filter_functions"):
        tracers.check_possible(root, TracerRequest("function"), OURS, NEW)


def test_functions_in_force():
    assert tracers.parse_filter("#### all functions enabled ####\n") == set()
    assert tracers.parse_filter("vfs_read\next4_sync [ext4]\n") == {"vfs_read", "ext4_sync"}
    assert tracers.find_functions("vfs_* x", ["vfs_read", "do_x", "x"]) == {"vfs_read", "x"}
    assert tracers.find_functions("", ["vfs_read"]) == set()
