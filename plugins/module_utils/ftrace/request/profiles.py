# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ready answers to what people want to know of a container, as events and system calls. Their cost is in docs/benchmarks.md."""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.events import EventRequest
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.syscall_classes import CLASSES

# What is asked for through io_uring is no system call. Its events: for each request (they have been renamed), and for each ring that is made.
IO_URING_REQUESTS = ("io_uring:io_uring_submit_req", "io_uring:io_uring_submit_sqe")
IO_URING_CREATE = "io_uring:io_uring_create"
# Beside calls that name files those that change what a descriptor's file is; %desc has reads and writes, too, which are most of all calls.
_FILE_CALLS = (
    *("%file", "fchdir", "fchmod", "fchown*", "ftruncate*", "fallocate", "fsync", "fdatasync", "*getdents*", "fstat*"),
    *("fsetxattr", "fgetxattr", "flistxattr", "fremovexattr", "open_by_handle_at", "fsmount"),
)
# 32-bit programs' numbers of these are those of write, poll and pread64 of others, which would be recorded all the time. Ends are events.
_PROCESS_CALLS = tuple(sorted(CLASSES["process"] - {"exit", "waitpid"}))
_MEMORY_CALLS = tuple(sorted(CLASSES["memory"] - {"break"}))


@dataclass(frozen=True)
class Profile:
    """EVENTS beside those that name processes, and SYSCALLS (patterns of names), all or of those the ones that fail."""

    events: tuple[EventRequest, ...] = ()
    syscalls: tuple[str, ...] = ()
    errors_only: bool = False


def _optional(*patterns: str) -> tuple[EventRequest, ...]:
    return tuple(EventRequest(pattern, is_optional=True) for pattern in patterns)


_IO_URING = _optional(*IO_URING_REQUESTS, IO_URING_CREATE)
PROFILES = {
    "errors": Profile(_IO_URING, syscalls=("*",), errors_only=True),
    "syscalls": Profile(_IO_URING, syscalls=("*",)),
    "files": Profile(_IO_URING, syscalls=_FILE_CALLS),
    "network": Profile(
        _IO_URING
        + _optional(
            *("sock:inet_sock_set_state", "sock:sock_rcvqueue_full", "sock:sock_exceed_buf_limit"),
            *("tcp:tcp_retransmit_skb", "tcp:tcp_send_reset", "tcp:tcp_receive_reset", "tcp:tcp_destroy_sock"),
        ),
        ("%network",),
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
        _PROCESS_CALLS,
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
        _MEMORY_CALLS,
    ),
    "startup": Profile(
        _IO_URING + _optional("sched:sched_process_fork", "sched:sched_process_exit"),
        ("%file", "connect"),
    ),
}
