# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Define the profiles: ready-made selections of events and system calls. Their cost is in docs/benchmarks.md."""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.events import EventRequest
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.syscall_classes import CLASSES

# Requests through io_uring are no system calls, so their events are needed: one for each request (under its newer and its older name),
# and one for each ring that is made.
IO_URING_REQUESTS = ("io_uring:io_uring_submit_req", "io_uring:io_uring_submit_sqe")
IO_URING_CREATE = "io_uring:io_uring_create"
# Calls that name files, and calls that change the file of a descriptor. The class %desc would add reads and writes, which are most of all calls.
_FILE_CALLS = (
    *("%file", "fchdir", "fchmod", "fchown*", "ftruncate*", "fallocate", "fsync", "fdatasync", "*getdents*", "fstat*"),
    *("fsetxattr", "fgetxattr", "flistxattr", "fremovexattr", "open_by_handle_at", "fsmount"),
)
# The calls that are left out have, for 32-bit programs, the numbers of 64-bit programs' frequent calls (write, poll and pread64). Those
# would be recorded all the time. The end of a process is recorded as an event.
_PROCESS_CALLS = tuple(sorted(CLASSES["process"] - {"exit", "waitpid"}))
_MEMORY_CALLS = tuple(sorted(CLASSES["memory"] - {"break"}))


@dataclass(frozen=True)
class Profile:
    """A ready-made selection of what to record.

    EVENTS: events beside those that name processes.
    SYSCALLS: names, patterns and classes of system calls.
    ERRORS_ONLY: True if only system calls that fail are recorded.
    """

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
    # The growth of the page cache and of the kernel's own objects shows in no system call.
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
