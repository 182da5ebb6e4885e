# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Define the profiles: ready-made selections of events and system calls. Their cost is in docs/benchmarks.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.events import EventRequest
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.limits import RECORD_ONLY
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.syscall_classes import CLASSES
from ansible_collections.crashcart.fleet.plugins.module_utils.units import parse_bytes

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
# Frequent calls on descriptors that neither wait nor fail for a reason that anybody looks for.
_IDLE_DESCRIPTOR_CALLS = {
    *("_llseek", "arm_fadvise64_64", "cachestat", "fadvise64", "fadvise64_64", "fstat", "fstat64", "lseek", "oldfstat"),
    *("process_madvise", "timerfd_gettime", "timerfd_gettime64", "timerfd_settime", "timerfd_settime64"),
}
# Calls that wait for something without a descriptor, such as a lock in memory, a signal or a time.
_WAITING_CALLS = (
    *("futex*", "nanosleep", "clock_nanosleep*", "pause", "rt_sigtimedwait*", "rt_sigsuspend", "sigsuspend"),
    *("io_getevents", "io_pgetevents*", "io_submit", "msync", "sync"),
)
# Calls that are rare, and that a container may not be allowed, or that a limit may end.
_RARE_CALLS = (
    *("add_key", "adjtimex", "capset", "clock_adjtime*", "clock_settime*", "delete_module", "init_module", "ioperm"),
    *(
        "iopl",
        "ioprio_set",
        "kcmp",
        "kexec_load",
        "keyctl",
        "landlock_*",
        "mbind",
        "migrate_pages",
        "mlock*",
        "modify_ldt",
    ),
    *("move_pages", "mremap", "personality", "prctl", "prlimit64", "process_vm_*", "ptrace", "reboot", "request_key"),
    *("sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler", "seccomp", "set*id", "set*id32"),
    *("set_mempolicy*", "setdomainname", "setgroups*", "sethostname", "setpriority", "setrlimit", "settimeofday"),
    *("syslog", "unshare", "vhangup"),
)
# What a finding may need: what failed or waited, on what object, what a descriptor refers to, who was born and who died.
_DIAGNOSED_CALLS = (
    *("%file", "%network", "%process", "%ipc", *sorted(CLASSES["desc"] - _IDLE_DESCRIPTOR_CALLS)),
    *("close_range", *_WAITING_CALLS, *_RARE_CALLS),
)
_BUFFER_KB = 2048
_MIN_BUFFER_KB = 64
# The values of options that are left out, where the profile has no other ones.
_DEFAULTS: Mapping[str, Any] = {"mode": "ring", "paths": "false"}


@dataclass(frozen=True)
class Profile:
    """A ready-made selection of what to record.

    EVENTS: events beside those that name processes.
    SYSCALLS: names, patterns and classes of system calls.
    ERRORS_ONLY: True if only system calls that fail are recorded.
    DEFAULTS: values for options of ftrace_instance that the user leaves out.
    """

    events: tuple[EventRequest, ...] = ()
    syscalls: tuple[str, ...] = ()
    errors_only: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)


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
    "diagnose": Profile(
        _IO_URING
        + _optional(
            *("sock:inet_sock_set_state", "sched:sched_process_fork", "sched:sched_process_exit"),
            *("signal:signal_generate", "signal:signal_deliver", "oom:mark_victim"),
        ),
        _DIAGNOSED_CALLS,
        # The rate is that of a server with a hundred thousand calls a second, which pays a tenth of a processor for it.
        defaults={"mode": "record", "max_size": "256MiB", "max_rate": 200_000, "when_full": "stop", "paths": "auto"},
    ),
}


def complete(parameters: Mapping[str, Any], cpus: int) -> dict[str, Any]:
    """Return PARAMETERS of ftrace_instance with values for the options whose defaults depend on the profile; CPUS is the host's number.

    What a profile says for recordings does not apply to a ring that the user asks for.
    """
    profile = PROFILES[parameters["profile"]] if parameters["profile"] else Profile()
    defaults = {**_DEFAULTS, **profile.defaults}
    is_recorded = (parameters["mode"] or defaults["mode"]) == "record"
    found = dict(parameters)
    for name, value in defaults.items():
        if found[name] is None and (is_recorded or name not in RECORD_ONLY):
            found[name] = value
    if found["buffer_size"] is None:
        found["buffer_size"] = f"{_BUFFER_KB}KiB"
        if is_recorded and "max_size" in profile.defaults:
            # A recording has to have room for four times the buffers, which a host with many CPUs would exceed.
            most_kb = parse_bytes(found["max_size"], "max_size") // (4 * cpus) // 1024
            found["buffer_size"] = f"{max(_MIN_BUFFER_KB, min(_BUFFER_KB, most_kb))}KiB"
    return found
