# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From options to what is asked of a kernel, here one that is made of files."""

from __future__ import annotations

import json

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request import options
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.profiles import PROFILES
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.specification import find_settings
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import syscall_names
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.syscall_names import SyscallNumbers
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import TraceError

ALLOC = "kmem:kmem_cache_alloc"
DEFAULTS = {
    "profile": None,
    "syscalls": [],
    "compat": True,
    "errors_only": False,
    "events": [],
    "buffer_size": "2MiB",
    "clock": "mono",
    "mode": "ring",
    "follow_exec": True,
    "tracer": "nop",
    "functions": [],
    "notrace": [],
    "probes": [],
    "paths": "false",
    "paths_by": "auto",
}


PROBE = {"name": "p", "type": "kprobe", "function": "vfs_read", "arguments": {"a": "%di"}, "filter": "a == 1"}


AVAILABLE = f"{ALLOC}\nsched:sched_switch\nsched:sched_waking\n"


def find(tmp_path, field="name", available=AVAILABLE, **parameters):
    (tmp_path / "available_events").write_text(available)
    folder = tmp_path / "events" / "kmem" / "kmem_cache_alloc"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "format").write_text(f"\tfield:__data_loc char[] {field};\toffset:24;\tsize:4;\tsigned:0;\n")
    (tmp_path / "instances").mkdir(exist_ok=True)
    return options.find_specification({**DEFAULTS, **parameters}, str(tmp_path))


def test_without_a_wish_all_system_calls(tmp_path):
    assert find(tmp_path).syscalls == SyscallNumbers()


@pytest.mark.parametrize(
    "wish",
    [
        {"events": ["sched:*"]},
        {"profile": "sched"},
        {"tracer": "function", "functions": ["vfs_*"]},
        {"probes": [PROBE]},
    ],
)
def test_who_wishes_for_something_else_gets_no_system_calls(tmp_path, wish):
    assert find(tmp_path, **wish).syscalls is None
    assert find(tmp_path, **wish, syscalls=["*"]).syscalls == SyscallNumbers()
    assert find(tmp_path, **wish, errors_only=True).syscalls == SyscallNumbers()
    number = syscall_names.find_number("read")
    assert find(tmp_path, **wish, syscalls=["read"], compat=False).syscalls == SyscallNumbers((number,))


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_fits_into_a_kernels_filter(tmp_path, profile):
    assert find_settings(find(tmp_path, profile=profile)).events


def test_a_profile_and_more(tmp_path):
    found = find(tmp_path, profile="sched", events=["kmem:*"], syscalls=["read"])
    assert set(found.events) == {ALLOC, "sched:sched_switch", "sched:sched_waking"}
    assert find(tmp_path, profile="errors").errors_only


def test_an_event_whose_field_a_kernel_lacks_is_left_out_of_a_profile(tmp_path):
    assert "dentry" in find(tmp_path, profile="memory").events[ALLOC].filter
    assert find(tmp_path, profile="memory", field="nome").events == {}


def test_requests_by_io_uring_are_in_profiles_of_calls_where_the_kernel_has_them(tmp_path):
    for event in ("io_uring:io_uring_submit_sqe", ALLOC):
        found = find(tmp_path, available=f"{event}\n", profile="files")
        is_there = event.startswith("io_uring")
        assert sorted(found.events) == ([event] if is_there else [])
        assert options.describe({**DEFAULTS, "profile": "files"}, found)["io_uring"] is is_there


def test_what_was_asked_for_in_the_manifest(tmp_path):
    parameters = {**DEFAULTS, "profile": "sched"}
    described = options.describe(parameters, find(tmp_path, profile="sched"))
    assert described["profile"] == "sched"
    assert described["events"] == ["sched:sched_switch", "sched:sched_waking"]
    assert described["syscalls"] is None
    assert described["tracer"]["tracer"] == "nop"


def test_probes_and_paths_in_the_manifest(tmp_path):
    folder = tmp_path / "events" / "syscalls" / "sys_enter_openat"
    folder.mkdir(parents=True)
    (folder / "format").write_text(
        "\tfield:int dfd;\toffset:16;\n\tfield:__data_loc char[] __filename_val;\toffset:48;\n"
    )
    wish = {"probes": [PROBE], "paths": "true", "syscalls": ["openat", "unlink"]}
    found = find(tmp_path, **wish)
    assert (
        find_settings(found).events["syscalls:sys_enter_openat"]
        == find_settings(found).events["sched:sched_process_exec"]
    )
    described = json.loads(json.dumps(options.describe({**DEFAULTS, **wish}, found)))
    assert described["probes"][0]["name"] == "p"
    assert (described["paths"]["by"], described["paths"]["missing"]) == ("event", ["unlink"])


def test_what_no_kernel_has_is_no_way_to_paths(tmp_path):
    with pytest.raises(
        TraceError, match="the paths of system calls cannot be recorded on this host: event: .*; uprobe: "
    ):
        find(tmp_path, paths="true")
