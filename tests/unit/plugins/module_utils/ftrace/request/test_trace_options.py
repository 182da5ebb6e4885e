# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From options to what is asked of a kernel, here one that is made of files."""

from __future__ import annotations

import json

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request import options
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.profiles import PROFILES, complete
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


# What the module has of options that nobody has set.
UNSET = {**DEFAULTS, **dict.fromkeys(("mode", "paths", "buffer_size", "max_size", "max_rate", "when_full"))}


def finish(cpus=2, **options):
    found = complete({**UNSET, **options}, cpus)
    return {name: found[name] for name in ("mode", "paths", "buffer_size", "max_size", "max_rate", "when_full")}


def test_options_that_are_left_out():
    assert finish() == {
        "mode": "ring",
        "paths": "false",
        "buffer_size": "2048KiB",
        "max_size": None,
        "max_rate": None,
        "when_full": None,
    }
    assert finish(profile="syscalls", mode="record") == {**finish(), "mode": "record"}


def test_a_diagnosis_is_a_recording_with_bounds():
    own = finish(profile="diagnose")
    assert own == {
        "mode": "record",
        "paths": "auto",
        "buffer_size": "2048KiB",
        "max_size": "256MiB",
        "max_rate": 200_000,
        "when_full": "stop",
    }
    mine = {"paths": "false", "buffer_size": "64KiB", "max_size": "1GiB", "max_rate": 5, "when_full": "rotate"}
    assert finish(profile="diagnose", **mine) == {**mine, "mode": "record"}
    # What is for recordings alone would be refused for a ring.
    assert finish(profile="diagnose", mode="ring") == {**own, "mode": "ring", "max_size": None, "when_full": None}


@pytest.mark.parametrize(
    ("cpus", "max_size", "size"),
    [
        (32, None, "2048KiB"),
        (64, None, "1024KiB"),
        (8192, None, "64KiB"),
        (2, "4MiB", "512KiB"),
        (2, "1GiB", "2048KiB"),
    ],
)
def test_the_buffers_of_a_diagnosis_fit_into_its_recording(cpus, max_size, size):
    assert finish(cpus, profile="diagnose", max_size=max_size)["buffer_size"] == size
    assert finish(cpus, profile="diagnose", max_size=max_size, buffer_size="4MiB")["buffer_size"] == "4MiB"
    assert finish(cpus, profile="files", mode="record", max_size=max_size)["buffer_size"] == "2048KiB"


def test_a_diagnosis_has_the_calls_that_findings_need(tmp_path):
    found = find(tmp_path, profile="diagnose", compat=False).syscalls
    names = syscall_names.list_names()
    calls = {names[number] for number in found.native}
    wanted = "openat execve newfstatat connect accept4 sendto recvmsg clone3 exit_group wait4 futex poll select"
    more = "pselect6 epoll_wait epoll_pwait read write readv close dup3 fcntl flock ioctl pipe2 mmap nanosleep ptrace mount"
    assert {
        name for name in f"{wanted} {more} setuid semop fsync io_uring_enter kill".split() if name in names.values()
    } <= calls
    assert not calls & {
        "lseek",
        "fstat",
        "brk",
        "munmap",
        "mprotect",
        "getpid",
        "clock_gettime",
        "rt_sigprocmask",
        "sched_yield",
    }
    assert found.compat == ()
