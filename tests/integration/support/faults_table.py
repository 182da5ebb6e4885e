# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The text that has to be among the first lines of a report, for each fault of faults.py, way of recording paths, and C library.

A path is known by the kernel's event, an eprobe and a kprobe whatever the C library is, and by a uprobe where there is a C library to
put it on, which a static program has not. Where no path is known, a finding says what failed, how and how often, and that paths are missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from support.faults import FILE_BYTES, NOFILE_LIMIT, PIDS_LIMIT

WAYS = ("event", "eprobe", "kprobe", "uprobe", "none")
FIRST_LINES = 45


@dataclass(frozen=True)
class Texts:
    """Regular expressions that a finding's statement matches: with the paths of calls, and without."""

    known: str
    unknown: str


def _always(text: str) -> Texts:
    """Return the same TEXT for all ways: what it tells is not known by the path that a call got."""
    return Texts(text, text)


_OPEN = "open(at)?"
_DB = r"127\.0\.0\.1:5432"
# Fault → texts with paths (event, eprobe and kprobe with any C library; uprobe with glibc and musl), and without (none; uprobe with static).
TABLE: Mapping[str, Texts] = {
    "missing_file": Texts(f"{_OPEN} /etc/app/settings.conf .*ENOENT", f"{_OPEN} .*ENOENT"),
    "refused": _always(f"connect {_DB} .*ECONNREFUSED"),
    "denied": Texts(f"{_OPEN} /etc/app/secret.key .*EACCES", f"{_OPEN} .*EACCES"),
    "lock": _always("waits? .*lock.* /var/lib/app/data.lock"),
    "leak": Texts("/etc/app/app.conf.* not close", "descriptors.* not close"),
    "forks": _always(rf"pids\.max.*\b{PIDS_LIMIT}\b"),
    "name_server": _always(r"192\.0\.2\.53"),
    "architecture": Texts("/opt/app/worker.*(ENOEXEC|architecture)", "execve.*(ENOEXEC|architecture)"),
    "full": _always("/var/spool/app.*(full|ENOSPC)"),
    "configured": _always(r"1 of 20 containers differs.*(staging\.conf|127\.0\.0\.1:5433)"),
    # Others of the same kinds.
    "missing_folder": Texts("stat.* /srv/uploads/incoming .*ENOENT", "stat.* .*ENOENT"),
    "missing_socket": Texts("connect .*(/run/app/worker.sock|unix).*ENOENT", "connect .*unix.*ENOENT"),
    "stale_socket": _always("connect .*(/var/lib/app/stale.sock|unix).*ECONNREFUSED"),
    "silent_peer": _always(r"connect.*192\.0\.2\.7:443"),
    "no_network": _always("connect .*ENETUNREACH"),
    "read_only": Texts(f"{_OPEN} /etc/app/state.json .*EROFS", f"{_OPEN} .*EROFS"),
    "not_permitted": Texts("chown.* /etc/app/app.conf .*EPERM", "chown.* .*EPERM"),
    "lock_of_a_file": _always("waits? .*lock.* /var/lib/app/queue.lock"),
    "lock_tried_again": _always("lock.* /var/lib/app/cache.lock"),
    "leak_of_sockets": _always("(127.0.0.1:8125|sockets?).* not close"),
    "descriptors_used_up": _always(rf"nofile.*\b{NOFILE_LIMIT}\b"),
    "threads_used_up": _always(rf"pids\.max.*\b{PIDS_LIMIT}\b"),
    "no_interpreter": Texts("/opt/app/script.*(ENOENT|interpreter)", "execve.*(ENOENT|interpreter)"),
    "carriage_return": Texts("/opt/app/edited.*(ENOENT|interpreter)", "execve.*(ENOENT|interpreter)"),
    "not_executable": Texts("/opt/app/data.*EACCES", "execve.*EACCES"),
    "no_loader": Texts("/opt/app/foreign.*(ENOENT|interpreter|loader)", "execve.*(ENOENT|interpreter|loader)"),
    "file_too_large": _always(rf"EFBIG|fsize.*\b{FILE_BYTES}\b"),
    "crash": _always("SIGSEGV"),
    "out_of_memory": _always("(?i)memory|OOM"),
    "pipe_that_nobody_reads": _always("wait.*pipe|pipe.*wait|write.* pipe"),
    "child_that_hangs": _always("waits? .*child"),
    "deadlock": _always("futex|lock in memory"),
    "storm_of_forks": _always("fork|clone"),
    "storm_of_closes": _always("close.*EBADF|closes"),
}


def expect(fault: str, way: str, libc: str) -> str:
    """Return the regular expression for a statement about FAULT in a program with LIBC, whose paths are recorded by WAY."""
    is_known = way in ("event", "eprobe", "kprobe") or (way == "uprobe" and libc != "static")
    return TABLE[fault].known if is_known else TABLE[fault].unknown
