# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What this host can and cannot do for us, and why not. Looks, and changes nothing."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import (
    cgroups,
    dynamic_events,
    syscall_names,
    syscalls,
    tracefs,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.mounts import read_mounts

_MIN_KERNEL = (5, 8)


@dataclass(frozen=True)
class Feature:
    """Something the collection needs: REASON says why it is not there, and what to do."""

    name: str
    ok: bool
    reason: str


def list_features() -> list[Feature]:
    """All checks of this host."""
    return [
        _check_kernel(),
        _check_mount_api(),
        *(check_filesystem(name) for name in ("squashfs", "erofs", "ext4")),
        _check_loop(),
        _check_cgroups(),
        *list_trace_features(),
        _check_syscall_names(),
    ]


def parse_release(release: str) -> tuple[int, ...]:
    """Major and minor number from a kernel release such as 6.1.0-17-amd64."""
    return tuple(int(number) for number in re.findall(r"\d+", release)[:2])


def _feature(name: str, ok: bool, reason: str) -> Feature:
    return Feature(name, ok, "" if ok else reason)


def _check_kernel() -> Feature:
    release = os.uname().release
    wanted = ".".join(map(str, _MIN_KERNEL))
    reason = f"Linux {release} is older than {wanted}: crashcart_attach works by method mknod, crashcart_exec and the connection do not"
    return _feature("kernel", parse_release(release) >= _MIN_KERNEL, reason)


def _check_mount_api() -> Feature:
    try:
        os.close(syscalls.fsopen("tmpfs"))
    except OSError as error:
        reasons = {
            errno.ENOSYS: "the kernel has no fsopen (Linux 5.2)",
            errno.EPERM: "it needs CAP_SYS_ADMIN: use become",
        }
        return Feature("mount_api", False, reasons.get(error.errno or 0, str(error.strerror)))
    return Feature("mount_api", True, "")


def check_filesystem(name: str) -> Feature:
    """Whether the kernel can mount the file system NAME, or load a module for it."""
    with open("/proc/filesystems", encoding="ascii") as file:
        if name in file.read().split():
            return Feature(name, True, "")
    # An unprivileged login's PATH may lack it.
    modprobe = shutil.which("modprobe", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin")))
    if modprobe is None:
        return Feature(
            name, False, f"the kernel does not know it now, and there is no modprobe to load it (CONFIG_{name.upper()})"
        )
    done = subprocess.run([modprobe, "--dry-run", "--quiet", name], check=False)
    return _feature(name, done.returncode == 0, f"the kernel has no module for it (CONFIG_{name.upper()})")


def _check_loop() -> Feature:
    return _feature(
        "loop", os.path.exists("/dev/loop-control"), "/dev/loop-control is missing: modprobe loop (CONFIG_BLK_DEV_LOOP)"
    )


def _check_cgroups() -> Feature:
    return _feature(
        "cgroups", cgroups.find_version(read_mounts("self", " - cgroup")) != "none", "no cgroup filesystem is mounted"
    )


def list_trace_features() -> list[Feature]:
    """What the kernel can trace."""
    try:
        root = tracefs.find_tracefs()
    except tracefs.TraceError as error:
        return [Feature("tracefs", False, str(error))]
    if not os.access(root, os.R_OK | os.X_OK):
        return [Feature("tracefs", False, f"{root} needs root: use become")]
    refusal = _try_to_read(os.path.join(root, "available_tracers"))
    if refusal:
        return [Feature("tracefs", False, refusal)]
    needed = {
        "trace_instances": ("instances", "the kernel has no tracing instances (CONFIG_TRACING)"),
        "syscall_events": ("events/raw_syscalls", "the kernel has no syscall events (CONFIG_FTRACE_SYSCALLS)"),
        "event_fork": ("options/event-fork", "the kernel cannot follow children (event-fork, Linux 4.8)"),
        # Nothing needs these, but who looks for a cause wants to know whether they can be had.
        "hist_triggers": ("events/sched/sched_switch/hist", "the kernel has no histograms (CONFIG_HIST_TRIGGERS)"),
        "snapshot": ("snapshot", "the kernel takes no snapshots of a trace (CONFIG_TRACER_SNAPSHOT)"),
    }
    checks = [
        _feature(name, os.path.exists(os.path.join(root, path)), reason) for name, (path, reason) in needed.items()
    ]
    missing = dynamic_events.find_missing_kinds(root)
    checks += [_feature(f"{kind}s", kind not in missing, missing.get(kind, "")) for kind in dynamic_events.KINDS]
    with open(os.path.join(root, "available_tracers"), encoding="ascii") as file:
        reason = "the kernel has no function_graph tracer (CONFIG_FUNCTION_GRAPH_TRACER)"
        checks.append(_feature("function_graph", "function_graph" in file.read().split(), reason))
    functions = os.path.join(root, "available_filter_functions")
    reason = (
        _try_to_read(functions)
        if os.path.exists(functions)
        else "the kernel cannot trace its functions (CONFIG_FUNCTION_TRACER, CONFIG_DYNAMIC_FTRACE)"
    )
    return [Feature("tracefs", True, ""), *checks, Feature("function", not reason, reason)]


def _try_to_read(path: str) -> str:
    """Why PATH of tracefs cannot be read, and what to do; '' when it can."""
    try:
        with open(path, "rb") as file:
            file.read(1)
        return ""
    except OSError as error:
        if error.errno != errno.EPERM:
            return f"{path}: {error.strerror}"
    if _read_lockdown() == "confidentiality":
        return f"{path}: the kernel is locked down (lockdown=confidentiality on its command line, or secure boot)"
    return f"{path}: Operation not permitted, by a security module or by whoever runs this virtual machine"


def _read_lockdown() -> str:
    """The kernel's lockdown: none, integrity or confidentiality; '' where it has none or does not say."""
    try:
        with open("/sys/kernel/security/lockdown", encoding="ascii") as file:
            return tracefs.parse_selected(file.read())
    except OSError:
        return ""


def _check_syscall_names() -> Feature:
    try:
        syscall_names.find_number("read")
    except FleetError as error:
        return Feature("syscall_names", False, str(error))
    return Feature("syscall_names", True, "")
