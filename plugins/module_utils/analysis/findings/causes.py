# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell which rule a failed call belongs to, so that no failure is told twice, and which errors are no failures.

Sources: the calls' man pages, and what glibc, musl, ld.so, shells, Python, Node, Go and Java try when they start.
"""

from __future__ import annotations

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.layouts import FORKS
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture import Cell

PATH_CALLS = {
    **dict.fromkeys(("open", "openat", "openat2", "creat"), "open"),
    **dict.fromkeys(("stat", "lstat", "newfstatat", "statx", "stat64", "lstat64", "fstatat64"), "find"),
    **dict.fromkeys(("access", "faccessat", "faccessat2"), "find"),
    **dict.fromkeys(("readlink", "readlinkat"), "find"),
    **dict.fromkeys(("statfs", "statfs64"), "find"),
    **dict.fromkeys(("execve", "execveat"), "execute"),
    **dict.fromkeys(("unlink", "unlinkat", "rmdir"), "remove"),
    **dict.fromkeys(("mkdir", "mkdirat"), "make the folder"),
    **dict.fromkeys(("mknod", "mknodat"), "make the node"),
    **dict.fromkeys(("rename", "renameat", "renameat2"), "rename"),
    **dict.fromkeys(("link", "linkat", "symlink", "symlinkat"), "link"),
    **dict.fromkeys(("chmod", "fchmod", "fchmodat", "fchmodat2"), "change the mode of"),
    **dict.fromkeys(("chown", "fchown", "lchown", "fchownat"), "change the owner of"),
    **dict.fromkeys(("truncate", "ftruncate", "truncate64", "ftruncate64"), "truncate"),
    **dict.fromkeys(("chdir", "fchdir"), "change to the folder"),
    **dict.fromkeys(("utime", "utimes", "utimensat", "futimesat"), "change the times of"),
    **dict.fromkeys(("getdents", "getdents64"), "list"),
    **dict.fromkeys(("fsync", "fdatasync", "syncfs", "sync_file_range"), "sync"),
    "fallocate": "allocate room in",
    "inotify_add_watch": "watch",
    "swapon": "swap to",
    "mmap": "map",
}
"""What a call does with its object, in words."""
CHECKS = frozenset(name for name, verb in PATH_CALLS.items() if verb == "find") | {"unlink", "unlinkat", "rmdir"}
"""Calls that ask whether there is a file, or do not mind that there is none."""
EXECS = frozenset({"execve", "execveat"})
TRANSFERS = {
    **dict.fromkeys(("read", "readv", "pread64", "preadv", "preadv2", "recvfrom", "recvmsg", "recvmmsg"), "read from"),
    **dict.fromkeys(("write", "writev", "pwrite64", "pwritev", "pwritev2"), "write to"),
    **dict.fromkeys(("sendto", "sendmsg", "sendmmsg", "sendfile", "splice", "copy_file_range"), "write to"),
}
# Calls that need a capability, by its name.
_RIGHTS = {
    **dict.fromkeys(
        (
            *("mount", "umount2", "umount", "pivot_root", "setns", "unshare", "swapon", "swapoff", "sethostname"),
            *("setdomainname", "quotactl", "fsopen", "fsmount", "open_tree", "move_mount", "mount_setattr", "fspick"),
        ),
        "CAP_SYS_ADMIN",
    ),
    **dict.fromkeys(("init_module", "finit_module", "delete_module"), "CAP_SYS_MODULE"),
    **dict.fromkeys(("ptrace", "process_vm_readv", "process_vm_writev", "kcmp"), "CAP_SYS_PTRACE"),
    **dict.fromkeys(("iopl", "ioperm"), "CAP_SYS_RAWIO"),
    **dict.fromkeys(("settimeofday", "clock_settime", "adjtimex", "clock_adjtime", "stime"), "CAP_SYS_TIME"),
    **dict.fromkeys(("chown", "fchown", "lchown", "fchownat"), "CAP_CHOWN"),
    **dict.fromkeys(("mknod", "mknodat"), "CAP_MKNOD"),
    **dict.fromkeys(("setuid", "setreuid", "setresuid", "setfsuid"), "CAP_SETUID"),
    **dict.fromkeys(("setgid", "setregid", "setresgid", "setgroups", "setfsgid"), "CAP_SETGID"),
    **dict.fromkeys(("setpriority", "sched_setscheduler", "sched_setattr", "sched_setparam"), "CAP_SYS_NICE"),
    **dict.fromkeys(("setrlimit", "prlimit64"), "CAP_SYS_RESOURCE"),
    **dict.fromkeys(("mlock", "mlock2", "mlockall"), "CAP_IPC_LOCK"),
    **dict.fromkeys(("reboot", "kexec_load", "kexec_file_load"), "CAP_SYS_BOOT"),
    "capset": "CAP_SETPCAP",
    "chroot": "CAP_SYS_CHROOT",
    "bind": "CAP_NET_BIND_SERVICE",
    "socket": "CAP_NET_RAW",
    "syslog": "CAP_SYSLOG",
    "open_by_handle_at": "CAP_DAC_READ_SEARCH",
    "bpf": "CAP_BPF",
    "perf_event_open": "CAP_PERFMON",
}
# Programs try these, and do without them: memory policies, io_uring, newer calls than the kernel or the filter knows.
_PROBES = frozenset(
    (
        *(
            "get_mempolicy",
            "set_mempolicy",
            "mbind",
            "move_pages",
            "migrate_pages",
            "io_uring_setup",
            "io_uring_register",
        ),
        *("clone3", "openat2", "statx", "faccessat2", "fchmodat2", "close_range", "rseq", "userfaultfd", "membarrier"),
        *(
            "perf_event_open",
            "bpf",
            "pidfd_open",
            "pidfd_getfd",
            "pkey_alloc",
            "memfd_secret",
            "landlock_create_ruleset",
        ),
        *("keyctl", "add_key", "request_key", "personality", "name_to_handle_at", "sched_setattr", "process_madvise"),
        *(
            "epoll_pwait2",
            "futex_waitv",
            "set_robust_list",
            "cachestat",
            "mseal",
            "map_shadow_stack",
            "listmount",
            "statmount",
        ),
    )
)
# Errors that are answers, not failures: wait, under way, interrupted, no terminal, no child, no such ability.
_ANSWERS = frozenset(
    (
        *("EAGAIN", "EINPROGRESS", "EALREADY", "EISCONN", "EINTR", "ENOTTY", "ECHILD", "ENOSYS", "ESPIPE", "ENOTCONN"),
        *("ENODATA", "EOPNOTSUPP", "ENOTSUP", "ENOPROTOOPT", "EAFNOSUPPORT", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT"),
        *(
            "ECANCELED",
            "EXDEV",
            "ERANGE",
            "EOVERFLOW",
            "EINVAL",
            "EPIPE",
            "ECONNABORTED",
            "ENOTSOCK",
            "ESRCH",
            "ENOTEMPTY",
        ),
        *(
            "ETIMEDOUT",
            "ETIME",
            "ENOEXEC",
            "EDESTADDRREQ",
            "ENOTUNIQ",
            "EBADF",
            "EFAULT",
            "ENOMSG",
            "EPROTOTYPE",
            "EADDRNOTAVAIL",
        ),
    )
)
# Errors that mean nothing: calls, and their errors.
_QUIET_ROWS = (
    ("mkdir mkdirat", "EEXIST EISDIR"),
    ("kill tgkill tkill pidfd_send_signal", "ESRCH EPERM"),
    ("setpgid setsid getsid getpgid", "EACCES EPERM"),
    ("epoll_ctl epoll_ctl_old", "ENOENT EEXIST EPERM"),
    ("rmdir unlinkat unlink", "EBUSY ENOTEMPTY EEXIST EISDIR"),
    ("link linkat", "EPERM EMLINK"),
    ("readlink readlinkat", "ENOENT ENOTDIR"),
    ("setsockopt getsockopt", "EPERM EACCES ENOENT EDOM EBUSY ENODEV"),
    ("ioctl", "ENODEV ENXIO EIO EPERM EACCES EFAULT ENOENT EBUSY"),
    ("prctl arch_prctl", "EPERM EACCES ENXIO ENODEV"),
    ("getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr", "EPERM EACCES"),
    ("setxattr lsetxattr fsetxattr removexattr lremovexattr", "EPERM"),
    ("setpriority sched_setaffinity sched_getaffinity ioprio_set", "EPERM EACCES"),
    ("mremap msync mincore madvise munmap mprotect", "ENOMEM EACCES EPERM EIO"),
    ("prlimit64 setrlimit", "EPERM"),
    ("getcwd inotify_rm_watch", "ENOENT"),
)
_QUIET = {call: frozenset(errors.split()) for calls, errors in _QUIET_ROWS for call in calls.split()}
LIMIT_ERRORS = frozenset({"EMFILE", "ENFILE", "ENOSPC", "EDQUOT", "EFBIG", "ENOMEM", "ENOBUFS", "EUSERS", "ENOLCK"})
CONNECTION_ERRORS = frozenset(
    (
        *(
            "ECONNREFUSED",
            "EHOSTUNREACH",
            "ENETUNREACH",
            "ETIMEDOUT",
            "ECONNRESET",
            "EHOSTDOWN",
            "ENETDOWN",
            "ENETRESET",
        ),
        *("EADDRNOTAVAIL", "EPERM", "EACCES"),
    )
)


def find_rule(cell: Cell) -> str | None:
    """Return the name of the rule that the failure of CELL belongs to; None where it is no failure, or no rule's."""
    outcome, error = cell.outcome, cell.outcome.error
    if outcome.denied or outcome.not_connected:
        return "denied" if outcome.denied else "connections"
    if error is None or outcome.interrupted or outcome.unfinished:
        return None
    if _is_limit(cell.call, error):
        return "limits"
    if cell.call == "connect" or (cell.call in TRANSFERS and _is_remote(cell) and error in CONNECTION_ERRORS):
        # A UNIX server whose queue is full says EAGAIN.
        is_full = error == "EAGAIN" and cell.object is not None and cell.object.text.startswith("unix")
        return "connections" if error in CONNECTION_ERRORS | {"ENOENT"} or is_full else None
    is_refused = error in ("EPERM", "EACCES")
    is_answer = error in _ANSWERS and (cell.call, error) != ("bind", "EADDRNOTAVAIL")
    if error in _QUIET.get(cell.call, ()) or is_answer or (is_refused and cell.call in _PROBES):
        return None
    own = None if cell.call in EXECS else "failures"
    return "denied" if is_refused and find_right(cell) is not None else own


def is_probe(call: str) -> bool:
    """Return True if programs try CALL and do without it."""
    return call in _PROBES


def find_right(cell: Cell) -> str | None:
    """Return the name of the capability that the call of CELL needs beyond rights on files; None where it needs none, or is a probe."""
    return None if cell.call in _PROBES else _RIGHTS.get(cell.call)


def _is_remote(cell: Cell) -> bool:
    return cell.object is not None and cell.object.kind in ("peer", "socket")


def _is_limit(call: str, error: str) -> bool:
    if error == "EAGAIN":
        return call in FORKS or call in ("setuid", "setresuid", "execve")
    if error == "ENOMEM":
        return call in ("mmap", "brk", "mremap") or call not in _QUIET
    if error == "ENOBUFS":
        return call == "socket"
    if error == "EUSERS":
        return call == "unshare"
    return error in LIMIT_ERRORS
