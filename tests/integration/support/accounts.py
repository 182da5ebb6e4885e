# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make user accounts of this host for tests, and take them away with all that runs under them."""

from __future__ import annotations

import os
import pwd
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from support import host


@contextmanager
def make_account(name: str, *options: str) -> Iterator[int]:
    """Make a user NAME of this host with OPTIONS of useradd and give the user's uid, until the context ends.

    An account of that name that a killed run has left is taken away first, with its home. The user's processes end with the account: the next
    account gets the same uid, and would own what is left of this one, such as the session that ssh keeps open for the next command.
    """
    remove = ("--remove",) if "--create-home" in options else ()
    with suppress(KeyError):
        _remove(name, pwd.getpwnam(name).pw_uid, *remove)
    host.run("useradd", *options, name)
    uid = pwd.getpwnam(name).pw_uid
    try:
        yield uid
    finally:
        _remove(name, uid, *remove)


def _remove(name: str, uid: int, *options: str) -> None:
    end_processes(uid)
    host.run("userdel", "--force", *options, name)


def list_processes(uid: int) -> list[int]:
    """Return the pids of the processes of user UID, without zombies."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _has_owner(name, uid)]


def end_processes(uid: int) -> None:
    """Kill the processes of user UID until there are none. Raises AssertionError if there are some after 20 seconds."""
    host.wait_until(lambda: not _kill_all(uid))


def _kill_all(uid: int) -> list[int]:
    pids = list_processes(uid)
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return pids


def _has_owner(pid: str, uid: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}").st_uid == uid and host.read_state(int(pid)) != "Z"
    except OSError:
        return False
