# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One feature of a host: whether it is there, why not, what to do about that, and what does not work without it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass

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


def make_feature(name: str, ok: bool, reason: str) -> Feature:
    """Return the Feature NAME, which is there if OK; else missing for REASON."""
    return Feature(name, True, "") if ok else make_missing(name, reason)


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
    return make_feature(name, done.returncode == 0, f"the kernel has no module for it (CONFIG_{name.upper()})")
