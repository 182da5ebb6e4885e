# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What things of this collection are called on a host: its folders, its locks, its trace instances, its processes."""

from __future__ import annotations

# Gone with the next boot, and root's alone.
RUN = "/run/crashcart"
LOCKS = f"{RUN}/locks"
RECORDER_LOCK = f"{LOCKS}/recorder"
WATCHDOG_LOCK = f"{LOCKS}/watchdog"
# What stays: images, recordings, captures that are not home yet.
STATE = "/var/lib/crashcart"
# A trace instance is called so and by its container's short id.
INSTANCE_PREFIX = "crashcart-"
# Names of processes, of which the kernel keeps the first TITLE_LENGTH bytes.
SUPERVISOR_TITLE = "crashcart-supervisor"
WATCHDOG_TITLE = "crashcart-watchdog"
RECORDER_TITLE = "crashcart-recorder"
TITLE_LENGTH = 15
