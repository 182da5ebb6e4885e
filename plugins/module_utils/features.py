# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Features of this host that the collection can use, and the reasons for missing ones. The checks change nothing on the host."""

from __future__ import annotations

import errno
import os

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.feature import (
    Feature,
    check_filesystem,
    make_feature,
    make_missing,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups, syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.boot import parse_release
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.mounts import read_mounts
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import (
    dynamic_events,
    syscall_names,
    tracefs,
)

_MIN_KERNEL = (5, 8)


def list_features() -> list[Feature]:
    """Check every feature of this host, and return one Feature for each."""
    return [
        _check_kernel(),
        _check_mount_api(),
        *(check_filesystem(name) for name in ("squashfs", "erofs", "ext4")),
        _check_loop(),
        _check_cgroups(),
        *list_trace_features(),
        _check_syscall_names(),
    ]


def _check_kernel() -> Feature:
    release = os.uname().release
    wanted = ".".join(map(str, _MIN_KERNEL))
    return make_feature("kernel", parse_release(release) >= _MIN_KERNEL, f"Linux {release} is older than {wanted}")


def _check_mount_api() -> Feature:
    try:
        os.close(syscalls.fsopen("tmpfs"))
    except OSError as error:
        reasons = {
            errno.ENOSYS: "the kernel has no fsopen (Linux 5.2)",
            errno.EPERM: "it needs CAP_SYS_ADMIN: use become",
        }
        return make_missing("mount_api", reasons.get(error.errno or 0, str(error.strerror)))
    return Feature("mount_api", True, "")


def _check_loop() -> Feature:
    return make_feature(
        "loop", os.path.exists("/dev/loop-control"), "/dev/loop-control is missing: modprobe loop (CONFIG_BLK_DEV_LOOP)"
    )


def _check_cgroups() -> Feature:
    return make_feature(
        "cgroups", cgroups.find_version(read_mounts("self", " - cgroup")) != "none", "no cgroup filesystem is mounted"
    )


def list_trace_features() -> list[Feature]:
    """Return one Feature for each ability of the kernel to trace; only a missing `tracefs` when tracefs cannot be read."""
    try:
        root = tracefs.find_tracefs()
    except tracefs.TraceError as error:
        return [make_missing("tracefs", str(error))]
    if not os.access(root, os.R_OK | os.X_OK):
        return [make_missing("tracefs", f"{root} needs root: use become")]
    needed = {
        "trace_instances": ("instances", "the kernel has no tracing instances (CONFIG_TRACING)"),
        "syscall_events": ("events/raw_syscalls", "the kernel has no syscall events (CONFIG_FTRACE_SYSCALLS)"),
        "event_fork": ("options/event-fork", "the kernel cannot follow children (event-fork, Linux 4.8)"),
        # The collection does not need these two, but a person who looks for a cause can use them.
        "hist_triggers": ("events/sched/sched_switch/hist", "the kernel has no histograms (CONFIG_HIST_TRIGGERS)"),
        "snapshot": ("snapshot", "the kernel takes no snapshots of a trace (CONFIG_TRACER_SNAPSHOT)"),
    }
    checks = [
        make_feature(name, os.path.exists(os.path.join(root, path)), reason) for name, (path, reason) in needed.items()
    ]
    missing = dynamic_events.find_missing_kinds(root)
    checks += [make_feature(f"{kind}s", kind not in missing, missing.get(kind, "")) for kind in dynamic_events.KINDS]
    with open(os.path.join(root, "available_tracers"), encoding="ascii") as file:
        reason = "the kernel has no function_graph tracer (CONFIG_FUNCTION_GRAPH_TRACER)"
        checks.append(make_feature("function_graph", "function_graph" in file.read().split(), reason))
    functions = os.path.join(root, "available_filter_functions")
    reason = (
        tracefs.find_refusal(functions)
        if os.path.exists(functions)
        else "the kernel cannot trace its functions (CONFIG_FUNCTION_TRACER, CONFIG_DYNAMIC_FTRACE)"
    )
    return [Feature("tracefs", True, ""), *checks, make_feature("function", not reason, reason)]


def _check_syscall_names() -> Feature:
    try:
        syscall_names.find_number("read")
    except FleetError as error:
        return make_missing("syscall_names", str(error))
    return Feature("syscall_names", True, "")
