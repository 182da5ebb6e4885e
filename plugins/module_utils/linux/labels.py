# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Labels of AppArmor (profiles) and SELinux (contexts): read the label of a process, and take it on at the next execve.

Sources: AppArmor's interface in /proc, proc_pid_attr(5).
"""

from __future__ import annotations

import os
import re

from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import Process, ProcessGone

_APPARMOR = "attr/apparmor"
_ANY = "attr"
_MODE = re.compile(r" \([a-z]+\)\Z")  # AppArmor writes `docker-default (enforce)`


def parse_label(text: bytes) -> str:
    """Return the label in TEXT, the text of a file `current` below /proc/PID/attr, without AppArmor's mode."""
    return _MODE.sub("", text.decode("utf-8", "surrogateescape").rstrip("\0\n"))


def find_transition(process: Process) -> tuple[str, str]:
    """Return the file below /proc/self, and the text to write to it, that give the caller PROCESS's label at its next execve.

    Both are '' when the host has no such security module, or when the caller has that label already.
    """
    for folder in (_APPARMOR, _ANY):
        try:
            wanted = parse_label(process.read(f"{folder}/current"))
            with open(f"/proc/self/{folder}/current", "rb") as file:
                own = parse_label(file.read())
        except (OSError, ProcessGone):
            # EINVAL: no security module has labels. ENOENT: the kernel has no folder for AppArmor alone.
            continue
        if not wanted or wanted == own:
            return "", ""
        return f"{folder}/exec", f"exec {wanted}" if _is_apparmor(folder) else wanted
    return "", ""


def _is_apparmor(folder: str) -> bool:
    return folder == _APPARMOR or os.path.exists("/sys/kernel/security/apparmor")


def set_at_exec(file: str, text: str) -> None:
    """Write TEXT to FILE below /proc/self, as find_transition returned them, to change the label at the next execve.

    /proc must be the host's.
    """
    fd = os.open(f"/proc/self/{file}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode("utf-8", "surrogateescape"))
    finally:
        os.close(fd)
