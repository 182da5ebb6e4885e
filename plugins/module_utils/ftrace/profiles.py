# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ready answers to what people want to know of a container, as events and system calls. Their cost is in docs/benchmarks.md."""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.events import EventRequest

_FILE_CALLS = (
    *("open", "openat", "openat2", "creat", "*stat", "stat*", "*statat*", "statx", "access", "faccessat*", "readlink*"),
    *("rename*", "link", "linkat", "symlink*", "unlink*", "mkdir*", "rmdir", "mknod*", "getdents*", "chdir", "fchdir"),
    *("*chmod*", "*chown*", "truncate*", "ftruncate*", "fsync", "fdatasync", "mount", "umount*", "pivot_root"),
)
_NETWORK_CALLS = (
    *("socket", "socketpair", "bind", "listen", "accept*", "connect", "shutdown", "getsockopt", "setsockopt"),
    *("sendto", "recvfrom", "sendmsg", "recvmsg", "sendmmsg*", "recvmmsg*", "getpeername", "getsockname"),
)
_EXEC_CALLS = ("execve*", "clone*", "fork", "vfork", "exit_group", "wait4", "waitid", "kill", "tkill", "tgkill")


@dataclass(frozen=True)
class Profile:
    """EVENTS beside those that name processes, and SYSCALLS (patterns of names), all or of those the ones that fail."""

    events: tuple[EventRequest, ...] = ()
    syscalls: tuple[str, ...] = ()
    errors_only: bool = False


def _optional(*patterns: str) -> tuple[EventRequest, ...]:
    return tuple(EventRequest(pattern, is_optional=True) for pattern in patterns)


PROFILES = {
    "errors": Profile(syscalls=("*",), errors_only=True),
    "syscalls": Profile(syscalls=("*",)),
    "files": Profile(syscalls=_FILE_CALLS),
    "network": Profile(
        _optional(
            *("sock:inet_sock_set_state", "sock:sock_rcvqueue_full", "sock:sock_exceed_buf_limit"),
            *("tcp:tcp_retransmit_skb", "tcp:tcp_send_reset", "tcp:tcp_receive_reset", "tcp:tcp_destroy_sock"),
        ),
        _NETWORK_CALLS,
    ),
    "sched": Profile(
        _optional(
            *("sched:sched_switch", "sched:sched_waking", "sched:sched_wakeup", "sched:sched_wakeup_new"),
            *("sched:sched_migrate_task", "sched:sched_process_exit"),
        )
    ),
    "exec": Profile(
        _optional(
            "sched:sched_process_fork", "sched:sched_process_exit", "signal:signal_generate", "signal:signal_deliver"
        ),
        _EXEC_CALLS,
    ),
    # What the page cache and the kernel's own objects grow by: no tracer of system calls can see it.
    "memory": Profile(
        (
            *_optional(
                *("filemap:mm_filemap_add_to_page_cache", "filemap:mm_filemap_delete_from_page_cache"),
                *(
                    "exceptions:page_fault_user",
                    "vmscan:mm_vmscan_direct_reclaim_*",
                    "vmscan:mm_vmscan_memcg_reclaim_*",
                ),
                "oom:mark_victim",
            ),
            EventRequest(
                "kmem:kmem_cache_alloc",
                filter='name == "dentry" || name ~ "*inode_cache"',
                is_optional=True,
                needed_field="name",
            ),
        ),
        ("mmap", "mmap2", "munmap", "mremap", "brk", "madvise"),
    ),
    "startup": Profile(
        _optional("sched:sched_process_fork", "sched:sched_process_exit"),
        (
            "open",
            "openat",
            "openat2",
            "execve*",
            "access",
            "faccessat*",
            "readlink*",
            "*stat",
            "*statat*",
            "statx",
            "connect",
        ),
    ),
}
