# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a process in a container may do, to be compared between two ways of starting it."""

from __future__ import annotations

# For the same shell in both, the container's own. `ulimit -a` is a shell's word for all resource limits.
LOOK = (
    "grep -E '^(Uid|Gid|Groups|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp|Seccomp_filters|Umask):' /proc/self/status;"
    " cat /proc/self/cgroup; ulimit -a; cat /proc/self/attr/current 2>&1; cat /proc/self/uid_map /proc/self/gid_map;"
    " for kind in pid net ipc uts cgroup time user; do /bin/busybox readlink /proc/self/ns/$kind; done; pwd"
)
