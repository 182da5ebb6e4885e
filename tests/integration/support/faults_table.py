# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The text that has to be among the first lines of a report, for each fault of faults.py, way of recording paths, and C library.

A path is known by the kernel's event, an eprobe and a kprobe whatever the C library is, and by a uprobe where there is a C library to
put it on, which a static program has not. Where no path is known, a finding says what failed, how and how often, and that paths are missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from support.faults import NOFILE_LIMIT, PIDS_LIMIT

WAYS = ("event", "eprobe", "kprobe", "uprobe", "none")
FIRST_LINES = 45


@dataclass(frozen=True)
class Texts:
    """Regular expressions that a finding's statement matches.

    KNOWN: with the paths of calls. UNKNOWN: without. MUSL: of programs with musl, with and without, where these make other calls.
    IS_RUN: True for the path of a program that is run right after a fork. The kernel may not have that text in memory yet when it looks.
    """

    known: str
    unknown: str
    musl: str = ""
    is_run: bool = False


def _always(text: str, musl: str = "") -> Texts:
    """Return the same TEXT for all ways: what it tells is not known by the path that a call got."""
    return Texts(text, text, musl)


# Fault → texts with paths (event, eprobe and kprobe with any C library; uprobe with glibc and musl), and without (none; uprobe with static).
TABLE: Mapping[str, Texts] = {
    "missing_file": Texts(r"could not open /etc/app/settings\.conf\b.*ENOENT", r"could not open a file\b.*ENOENT"),
    "refused": _always(r"127\.0\.0\.1:5432 .*ECONNREFUSED"),
    "denied": Texts(r"could not open /etc/app/secret\.key\b.*EACCES", r"could not open a file\b.*EACCES"),
    # Its path is known by the descriptor, from /proc.
    "lock": _always(r"wait(s|ed) .*lock.* /var/lib/app/data\.lock\b"),
    "leak": _always(r"/etc/app/(app\.conf|\*)\b.* open: \d+ in this trace"),
    "forks": _always(rf"limit of {PIDS_LIMIT} processes.*pids\.max"),
    # musl does not connect its socket, so its peer is in the memory of the program only.
    "name_server": _always(
        r"name server 192\.0\.2\.53:53 did not answer", musl="name server in /etc/resolv.conf did not answer"
    ),
    "architecture": Texts(
        r"cannot run /opt/app/worker\b.* another architecture",
        "cannot run a program.* another architecture",
        is_run=True,
    ),
    "full": _always(r"/var/spool/app\b.* full.*ENOSPC"),
    "configured": _always(r"1 of 20 containers differs: .*(staging\.conf|127\.0\.0\.1:5433)"),
    # Others of the same kinds.
    "missing_folder": Texts(r"/srv/uploads/incoming\b.*ENOENT", "stat.*ENOENT"),
    "missing_socket": Texts(r"(/run/app/worker\.sock|unix).*ENOENT", "unix.*ENOENT"),
    "stale_socket": _always(r"(/var/lib/app/stale\.sock|unix).*ECONNREFUSED"),
    "silent_peer": _always(r"\b192\.0\.2\.7:443\b"),
    "no_network": _always("could not reach .*ENETUNREACH"),
    "read_only": Texts(r"could not open /etc/app/state\.json\b.*EROFS", "could not open a file.*EROFS"),
    "not_permitted": Texts(r"chown( .*/etc/app/app\.conf)?\b.*EPERM.*CAP_CHOWN", "chown.*EPERM.*CAP_CHOWN"),
    "lock_of_a_file": _always(r"wait(s|ed) .*lock.* /var/lib/app/queue\.lock\b"),
    "lock_with_a_timeout": _always(r"wait(s|ed) .*lock.* /var/lib/app/index\.lock\b"),
    "lock_tried_again": _always(r"lock.* /var/lib/app/cache\.lock\b"),
    "leak_of_sockets": _always(r"leaves descriptors (of 127\.0\.0\.1:\S+ .*)?open: \d+ in this trace"),
    "descriptors_used_up": _always(rf"limit of {NOFILE_LIMIT} open descriptors.*nofile.*EMFILE"),
    "threads_used_up": _always(rf"limit of {PIDS_LIMIT} processes.*pids\.max"),
    "no_interpreter": Texts(
        r"cannot run /opt/app/script\b.* interpreter", "cannot run a program.* interpreter", is_run=True
    ),
    "carriage_return": Texts(
        r"cannot run /opt/app/edited\b.* interpreter", "cannot run a program.* interpreter", is_run=True
    ),
    "not_executable": Texts(r"cannot run /opt/app/data\b.*EACCES", "cannot run a program.*EACCES", is_run=True),
    "no_loader": Texts(
        r"cannot run /opt/app/foreign\b.* interpreter", "cannot run a program.* interpreter", is_run=True
    ),
    "file_too_large": _always("limit of a file's size.*EFBIG"),
    "crash": _always("died of SIGSEGV"),
    "out_of_memory": _always("killed by the OOM killer"),
    "pipe_that_nobody_reads": _always("wait(s|ed) .*pipe"),
    "child_that_hangs": _always("wait(s|ed) .*child"),
    "deadlock": _always("wait(s|ed) .*mutex"),
    "name_server_soon": _always(
        r"name server 192\.0\.2\.53:53 did not answer", musl="name server in /etc/resolv.conf did not answer"
    ),
    "storm_of_forks": _always(r"made \d+ processes, \d+ per second"),
    "storm_of_closes": _always("closes descriptors that are not open"),
}


@dataclass(frozen=True)
class Expected:
    """TEXT: a regular expression that a statement matches. IS_LACKING: True if its finding has to say that something was not recorded."""

    text: str
    is_lacking: bool


def expect(fault: str, way: str, kind: str) -> Expected:
    """Return what has to be said about FAULT in a program of KIND, whose paths are recorded by WAY.

    KIND is one of faults.LIBCS and faults.LANGUAGES.
    """
    texts = TABLE[fault]
    if kind == "musl" and texts.musl:
        return Expected(texts.musl, is_lacking=False)
    is_known = way in ("event", "eprobe", "kprobe") or (way == "uprobe" and kind != "static")
    if texts.is_run and is_known and way != "uprobe":
        return Expected(f"{texts.known}|{texts.unknown}", is_lacking=False)
    return Expected(
        texts.known if is_known else texts.unknown, is_lacking=not is_known and texts.known != texts.unknown
    )
