# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A shell script that prints the rights of a process in a container, to compare two ways of starting it."""

from __future__ import annotations

# Both ways have to start the container's own shell. Its `ulimit -a` prints all resource limits.
LOOK = (
    "grep -E '^(Uid|Gid|Groups|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp|Seccomp_filters|Umask):' /proc/self/status;"
    " cat /proc/self/cgroup; ulimit -a; cat /proc/self/attr/current 2>&1; cat /proc/self/uid_map /proc/self/gid_map;"
    " for kind in pid net ipc uts cgroup time user; do /bin/busybox readlink /proc/self/ns/$kind; done; pwd"
)
