# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way to the paths of system calls that a kernel has, here one that is made of files."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request import path_calls, paths
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import dynamic_events
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.syscall_names import SyscallNumbers
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import TraceError

COMMON = "\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n\tfield:int __syscall_nr;\toffset:8;\tsize:4;\tsigned:1;\n"
ARGUMENTS = {
    "openat": ("int dfd", "const char * filename", "int flags", "umode_t mode"),
    "newstat": ("const char * filename", "struct stat * statbuf"),
    "rename": ("const char * oldname", "const char * newname"),
}
CALLS = ["openat", "rename", "stat", "unlink"]


@pytest.fixture
def make_kernel(tmp_path, monkeypatch):
    def make(*kinds, texts=()):
        (tmp_path / "instances").mkdir()
        for name, arguments in ARGUMENTS.items():
            folder = tmp_path / "events" / "syscalls" / f"sys_enter_{name}"
            folder.mkdir(parents=True)
            own = [*arguments, *("__data_loc char[] __filename_val" for _one in range(name in texts))]
            lines = [f"\tfield:{one};\toffset:16;\tsize:8;\tsigned:0;\n" for one in own]
            (folder / "format").write_text(f"name: sys_enter_{name}\n{COMMON}{''.join(lines)}")
        missing = {kind: f"no {kind}" for kind in dynamic_events.KINDS if kind not in kinds}
        monkeypatch.setattr(dynamic_events, "find_missing_kinds", lambda root: missing)
        return str(tmp_path)

    return make


def test_texts_of_the_events_are_best(make_kernel):
    plan = paths.find_plan(make_kernel("eprobe", "kprobe", "uprobe", texts=("openat",)), CALLS, "auto", "x86_64")
    assert (plan.by, plan.events, plan.probes) == ("event", ("syscalls:sys_enter_openat",), ())
    assert plan.missing == ("rename", "stat", "unlink")


def test_then_probes_of_the_events(make_kernel):
    plan = paths.find_plan(make_kernel("eprobe", "kprobe", "uprobe"), CALLS, "auto", "x86_64")
    assert (plan.by, plan.missing) == ("eprobe", ("unlink",))
    assert plan.why.startswith(
        "event: the kernel's events of system calls have no text (Linux 6.19); probes of the events"
    )
    assert [(one.name, one.place, dict(one.arguments)) for one in plan.probes] == [
        ("path_openat", "syscalls/sys_enter_openat", {"path": "+0($filename):ustring"}),
        ("path_rename", "syscalls/sys_enter_rename", {"path": "+0($oldname):ustring", "path2": "+0($newname):ustring"}),
        ("path_stat", "syscalls/sys_enter_newstat", {"path": "+0($filename):ustring"}),
    ]


@pytest.mark.parametrize(
    ("machine", "function", "argument"),
    [
        ("x86_64", "__x64_sys_openat", "+0(+104(%di)):ustring"),
        ("aarch64", "__arm64_sys_openat", "+0(+8(%x0)):ustring"),
    ],
)
def test_then_probes_of_functions(make_kernel, machine, function, argument):
    plan = paths.find_plan(make_kernel("kprobe", "uprobe"), ["openat"], "auto", machine)
    assert plan.by == "kprobe"
    assert [(one.name, one.place, dict(one.arguments)) for one in plan.probes] == [
        ("path_openat", function, {"path": argument})
    ]


def test_then_probes_of_the_c_library(make_kernel):
    plan = paths.find_plan(make_kernel("uprobe"), ["openat", "rename"], "auto", "aarch64")
    assert plan.by == "uprobe"
    functions = {one.symbol: dict(one.arguments) for one in plan.probes}
    assert functions["fopen"] == {"path": "+0(%x0):ustring"}
    assert functions["openat"] == {"path": "+0(%x1):ustring"}
    assert functions["renameat2"] == {"path": "+0(%x1):ustring", "path2": "+0(%x3):ustring"}
    assert "stat" not in functions
    assert all(one.is_optional and "/lib/aarch64-linux-gnu/libc.so.6" in one.binaries for one in plan.probes)


def test_none_is_said_with_every_reason(make_kernel):
    root = make_kernel()
    with pytest.raises(
        TraceError, match=r"on this host: event: .*6\.19.*; eprobe: no eprobe; kprobe: .*; uprobe: no upro"
    ):
        paths.find_plan(root, CALLS, "auto", "x86_64")
    with pytest.raises(TraceError, match=r"on this host: kprobe: no kprobe$"):
        paths.find_plan(root, CALLS, "kprobe", "x86_64")


ALL = SyscallNumbers()


def find_number(call):
    return next(number for number, name in paths.syscall_names.list_names().items() if name == call)


@pytest.mark.parametrize(
    ("kinds", "texts", "by"),
    [
        (("eprobe", "kprobe", "uprobe"), ("openat",), "event"),
        (("eprobe", "kprobe", "uprobe"), (), "eprobe"),
        (("kprobe", "uprobe"), (), "kprobe"),
        (("uprobe",), (), None),
        ((), (), None),
    ],
)
def test_auto_takes_the_best_way_that_slows_nobody_else(make_kernel, kinds, texts, by):
    root = make_kernel(*kinds, texts=texts)
    plan = paths.choose_plan(root, ALL, "auto", "auto", "x86_64")
    assert plan.by == by
    assert paths.choose_plan(root, ALL, "false", "auto", "x86_64") is None
    if by is not None:
        assert plan == paths.choose_plan(root, ALL, "true", "auto", "x86_64")
        return
    assert (plan.events, plan.probes) == ((), ())
    assert {"openat", "execve"} <= set(plan.missing)
    assert plan.why.endswith("; eprobe: no eprobe; kprobe: no kprobe")
    assert plan.as_result() == {"by": None, "why": plan.why, "missing": list(plan.missing)}
    if kinds:
        assert paths.choose_plan(root, ALL, "true", "auto", "x86_64").by == "uprobe"
    else:
        with pytest.raises(TraceError, match="uprobe: no uprobe"):
            paths.choose_plan(root, ALL, "true", "auto", "x86_64")


def test_auto_is_content_where_no_call_takes_a_path(make_kernel):
    root = make_kernel("eprobe")
    connect = SyscallNumbers((find_number("connect"),), ())
    plan = paths.choose_plan(root, connect, "auto", "auto", "x86_64")
    assert (plan.by, plan.missing) == (None, ())
    assert "none of the system calls to record takes a path" in plan.why
    with pytest.raises(TraceError, match="none of the system calls"):
        paths.choose_plan(root, connect, "true", "auto", "x86_64")
    # Events alone are no reason for probes at each call that takes a path.
    assert paths.choose_plan(root, None, "auto", "auto", "x86_64") == paths.PathPlan(
        None, "no system calls are recorded"
    )


def test_auto_by_one_way(make_kernel):
    root = make_kernel("eprobe", "kprobe", "uprobe")
    assert paths.choose_plan(root, ALL, "auto", "kprobe", "x86_64").by == "kprobe"
    plan = paths.choose_plan(root, ALL, "auto", "event", "x86_64")
    assert (plan.by, "no text" in plan.why) == (None, True)
    with pytest.raises(TraceError, match="paths=auto never uses probes of programs"):
        paths.choose_plan(root, ALL, "auto", "uprobe", "x86_64")


def test_a_way_can_be_chosen(make_kernel):
    root = make_kernel("eprobe", "kprobe", "uprobe")
    for by in ("eprobe", "kprobe", "uprobe"):
        assert paths.find_plan(root, CALLS, by, "x86_64").by == by


def test_a_machine_whose_registers_are_not_known(make_kernel):
    with pytest.raises(TraceError, match="kprobe: .* does not know .* on sparc64; uprobe: .* on sparc64"):
        paths.find_plan(make_kernel("kprobe", "uprobe"), CALLS, "auto", "sparc64")


def test_calls_that_take_paths():
    every = paths.list_calls(SyscallNumbers())
    assert {"openat", "execve", "newfstatat", "statx", "faccessat", "unlinkat"} <= set(every)
    assert "connect" not in every
    assert paths.list_calls(None) == every
    with pytest.raises(TraceError, match="none of the system calls to record takes a path"):
        paths.list_calls(SyscallNumbers((find_number("connect"),), ()))


def test_every_call_and_function_is_of_one_family():
    for table in ("calls", "functions"):
        names = [name for family in path_calls.FAMILIES.values() for name in getattr(family, table)]
        assert len(names) == len(set(names))
    # A name that both have is of the same family, so that a probe's name says which.
    for name in set(path_calls.FAMILY_OF_CALL) & set(path_calls.FAMILY_OF_FUNCTION):
        assert path_calls.FAMILY_OF_CALL[name] == path_calls.FAMILY_OF_FUNCTION[name]
