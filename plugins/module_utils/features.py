# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Features of this host that the collection can use, and the reasons for missing ones. The checks change nothing on the host."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups, syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.mounts import read_mounts
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import (
    dynamic_events,
    syscall_names,
    tracefs,
)

_MIN_KERNEL = (5, 8)


_NO_IMAGES = "images of this format can be neither attached nor used by crashcart_exec: load the module, or build them with another format"
_NO_TRACES = "nothing can be traced, attached tools and crashcart_exec work all the same"
# What a host without the feature cannot do, and what to do instead. The collection needs no feature that is not listed here.
_CONSEQUENCES = {
    "kernel": "crashcart_exec and the connection do not work: use crashcart_attach, which works by method mknod, or a newer kernel",
    "mount_api": "nothing can be run by crashcart_exec, and crashcart_attach works by method mknod only, with privileges",
    "squashfs": _NO_IMAGES,
    "erofs": _NO_IMAGES,
    "ext4": _NO_IMAGES,
    "loop": "images can be neither attached nor used by crashcart_exec",
    "cgroups": "the processes of containers are not known, so nothing can be attached to them, run in them or traced: mount cgroup2",
    "tracefs": _NO_TRACES,
    "trace_instances": _NO_TRACES,
    "syscall_events": "system calls cannot be traced: trace events or functions",
    "event_fork": _NO_TRACES,
    "kprobes": "probes of the kernel's functions cannot be traced: trace its events, or probes of programs",
    "eprobes": "probes of events cannot be traced, and paths of system calls are recorded in another way, which costs more",
    "uprobes": "probes of programs cannot be traced: trace events",
    "function_graph": "tracer=function_graph fails: use tracer=function, or events",
    "function": "tracer=function and tracer=function_graph fail: trace events",
    "syscall_names": "system calls cannot be chosen by name",
}


@dataclass(frozen=True)
class Feature:
    """A feature of the host that the collection can use."""

    name: str
    ok: bool  # the host has it
    reason: str  # why the feature is missing, and what to do; '' when it is there
    consequence: str = ""  # what the host cannot do without it; '' when it is there, or the collection does not need it


def make_missing(name: str, reason: str) -> Feature:
    """Return the Feature NAME as missing on this host, for REASON."""
    return Feature(name, False, reason, _CONSEQUENCES.get(name, ""))


def find_way(library: str, package: str) -> str:
    """Return the advice that brings the PyPI project LIBRARY to the running Python.

    The distribution's own Python gets PACKAGE from the distribution; any other Python (a venv, a build) uses pip.
    """
    is_distributions = sys.prefix == sys.base_prefix and os.path.realpath(sys.executable or "").startswith("/usr/bin/")
    return (
        f"install {package}" if is_distributions or not sys.executable else f"{sys.executable} -m pip install {library}"
    )


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


def parse_release(release: str) -> tuple[int, ...]:
    """Return the major and minor number of a kernel release such as 6.1.0-17-amd64."""
    return tuple(int(number) for number in re.findall(r"\d+", release)[:2])


def _feature(name: str, ok: bool, reason: str) -> Feature:
    return Feature(name, True, "") if ok else make_missing(name, reason)


def _check_kernel() -> Feature:
    release = os.uname().release
    wanted = ".".join(map(str, _MIN_KERNEL))
    return _feature("kernel", parse_release(release) >= _MIN_KERNEL, f"Linux {release} is older than {wanted}")


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


def check_filesystem(name: str) -> Feature:
    """Return the Feature NAME, a file system: the kernel can mount it now, or modprobe finds a module for it."""
    with open("/proc/filesystems", encoding="ascii") as file:
        if name in file.read().split():
            return Feature(name, True, "")
    # The PATH of an unprivileged login may lack the folders of modprobe.
    modprobe = shutil.which("modprobe", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin")))
    if modprobe is None:
        return make_missing(
            name, f"the kernel does not know it now, and there is no modprobe to load it (CONFIG_{name.upper()})"
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
    """Return one Feature for each ability of the kernel to trace; only a missing `tracefs` when tracefs cannot be read."""
    try:
        root = tracefs.find_tracefs()
    except tracefs.TraceError as error:
        return [make_missing("tracefs", str(error))]
    if not os.access(root, os.R_OK | os.X_OK):
        return [make_missing("tracefs", f"{root} needs root: use become")]
    refusal = _try_to_read(os.path.join(root, "available_tracers"))
    if refusal:
        return [make_missing("tracefs", refusal)]
    needed = {
        "trace_instances": ("instances", "the kernel has no tracing instances (CONFIG_TRACING)"),
        "syscall_events": ("events/raw_syscalls", "the kernel has no syscall events (CONFIG_FTRACE_SYSCALLS)"),
        "event_fork": ("options/event-fork", "the kernel cannot follow children (event-fork, Linux 4.8)"),
        # The collection does not need these two, but a person who looks for a cause can use them.
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
    return [Feature("tracefs", True, ""), *checks, _feature("function", not reason, reason)]


def _try_to_read(path: str) -> str:
    """Return why PATH of tracefs cannot be read; '' when it can."""
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
    """Return the kernel's lockdown mode (none, integrity or confidentiality); '' when it is not known."""
    try:
        with open("/sys/kernel/security/lockdown", encoding="ascii") as file:
            return tracefs.parse_selected(file.read())
    except OSError:
        return ""


def _check_syscall_names() -> Feature:
    try:
        syscall_names.find_number("read")
    except FleetError as error:
        return make_missing("syscall_names", str(error))
    return Feature("syscall_names", True, "")
