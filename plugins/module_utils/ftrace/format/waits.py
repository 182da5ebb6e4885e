# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""System calls in which threads wait, by what they wait for. Pure.

A host asks these lists which captures without events tell something, and rules ask them what a wait means.
"""

from __future__ import annotations

LOCKS = ("flock", "fcntl", "fcntl64")
LOCK_COMMANDS = (7, 14, 38)  # F_SETLKW, F_SETLKW64 and F_OFD_SETLKW: the commands of fcntl that wait
RECEIVES = ("read", "readv", "recvfrom", "recvmsg", "recvmmsg", "recv")
SENDS = ("write", "writev", "sendto", "sendmsg", "sendmmsg", "send", "sendfile", "sendfile64")
SYNCS = ("fsync", "fdatasync", "sync", "syncfs", "sync_file_range", "msync")
OPENS = ("open", "openat", "openat2", "creat")
FILE_CALLS = (
    *("stat", "lstat", "newfstatat", "statx", "fstat", "access", "faccessat", "faccessat2", "readlink", "readlinkat"),
    *("getdents", "getdents64", "rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir"),
    *("link", "linkat", "symlink", "symlinkat", "truncate", "ftruncate", "fallocate", "statfs", "fstatfs", "chmod"),
    *("fchmod", "fchmodat", "chown", "fchown", "fchownat", "utimensat", "pread64", "preadv", "pwrite64", "pwritev"),
    *("copy_file_range", "mount", "umount2"),
)
FOR_SOMETHING = frozenset((*LOCKS, "connect", *RECEIVES, *SENDS, *SYNCS, *OPENS, *FILE_CALLS))
"""Calls that wait for something that has a name. Those in which servers wait for the next thing to do, and sleeps, are not among them."""
FUTEXES = ("futex", "futex_time64")
CHILD_WAITS = ("wait4", "waitid", "waitpid")
SIGNAL_WAITS = ("pause", "rt_sigsuspend", "sigsuspend")
AMONG_THEMSELVES = frozenset((*FUTEXES, *CHILD_WAITS, *SIGNAL_WAITS))
"""Calls in which a thread waits for other threads of its container, or for a signal."""
POLLS = ("poll", "ppoll", "select", "pselect6")
EPOLLS = ("epoll_wait", "epoll_pwait", "epoll_pwait2")
