# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names that this collection uses on a host: of its folders, locks, trace instances and processes."""

from __future__ import annotations

# Files that are gone after a reboot; only root may enter the folder.
RUN = "/run/crashcart"
LOCKS = f"{RUN}/locks"
RECORDER_LOCK = f"{LOCKS}/recorder"
RECORDER_FOLDER = f"{RUN}/recorder"  # of its orders
# The number is the protocol's version. A recorder of another version listens elsewhere.
RECORDER_SOCKET_NAME = ".socket-3"
RECORDER_SOCKET = f"{RECORDER_FOLDER}/{RECORDER_SOCKET_NAME}"
# The error where a request names a trace or rule that the recorder does not have.
RECORDER_UNKNOWN = "it is not looked after"
HOOK_FOLDER = f"{RUN}/start-hook"
# What roles install for later: settings and programs, of which each has a file in both.
HOST_SETTINGS = "/etc/crashcart"
HOST_PROGRAMS = "/usr/libexec/crashcart"
HOOK_POLICY = f"{HOST_SETTINGS}/start-hook.json"
HOOK_PROGRAM = f"{HOST_PROGRAMS}/start-hook"
HOOK_RUNTIME_TITLE = "crashcart-runtime"
HOOK_RUNTIME = f"{HOST_PROGRAMS}/{HOOK_RUNTIME_TITLE}"  # and HOOK_RUNTIME-PROFILE
# Patterns of all files of the start hook, which hook/wiring.py makes.
HOOK_FILES = (
    HOOK_POLICY,
    HOOK_PROGRAM,
    "/etc/cdi/crashcart.fleet-trace.json",
    "/usr/share/containers/oci/hooks.d/crashcart-*.json",
    f"{HOOK_RUNTIME}*",
)
HOOK_RULE_PREFIX = "start-hook:"  # of the rule of a profile of the start hook
BOOT_RULES = f"{HOST_SETTINGS}/rules.json"
BOOT_PROGRAM = f"{HOST_PROGRAMS}/begin-rules"
BOOT_UNIT = "crashcart-rules.service"
BOOT_UNIT_FILE = f"/etc/systemd/system/{BOOT_UNIT}"
WATCHDOG_LOCK = f"{LOCKS}/watchdog"
# Files that survive a reboot: images, recordings, captures that are not fetched yet.
STATE = "/var/lib/crashcart"
# The name of a trace instance is this prefix and its container's short id.
INSTANCE_PREFIX = "crashcart-"
# Names of processes; the kernel keeps the first TITLE_LENGTH bytes of a name.
SUPERVISOR_TITLE = "crashcart-supervisor"
WATCHDOG_TITLE = "crashcart-watchdog"
RECORDER_TITLE = "crashcart-recorder"
GUARD_TITLE = "crashcart-guard"
TITLE_LENGTH = 15
