# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Labels of AppArmor (profiles) and SELinux (contexts): which one a process has, and how another gets it by its next execve.

Sources: apparmor's proc interface, proc_pid_attr(5).
"""

from __future__ import annotations

import os
import re

from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import Process, ProcessGone

_APPARMOR = "attr/apparmor"
_ANY = "attr"
_MODE = re.compile(r" \([a-z]+\)\Z")  # AppArmor says `docker-default (enforce)`


def parse_label(text: bytes) -> str:
    """The label from the text of a file `current`, without AppArmor's mode."""
    return _MODE.sub("", text.decode("utf-8", "surrogateescape").rstrip("\0\n"))


def find_transition(process: Process) -> tuple[str, str]:
    """The file below /proc/self that the caller writes to, and what, to have PROCESS's label from its next execve on.

    Both are empty where there is no such module, or the caller has that label already.
    """
    for folder in (_APPARMOR, _ANY):
        try:
            wanted = parse_label(process.read(f"{folder}/current"))
            with open(f"/proc/self/{folder}/current", "rb") as file:
                own = parse_label(file.read())
        except (
            OSError,
            ProcessGone,
        ):  # EINVAL: no module that has labels; ENOENT: a kernel without AppArmor's own folder
            continue
        if not wanted or wanted == own:
            return "", ""
        return f"{folder}/exec", f"exec {wanted}" if _is_apparmor(folder) else wanted
    return "", ""


def _is_apparmor(folder: str) -> bool:
    return folder == _APPARMOR or os.path.exists("/sys/kernel/security/apparmor")


def set_at_exec(file: str, text: str) -> None:
    """Do what find_transition has told; /proc must be the host's."""
    fd = os.open(f"/proc/self/{file}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode("utf-8", "surrogateescape"))
    finally:
        os.close(fd)
