# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""List what the arguments of system calls are: one kind for each argument. Pure.

A kind is TABLE| for flags of a table of uapi.py, TABLE= for one of its values, or one of these, which arguments.py shows:

- fd, dirfd (a descriptor, or AT_FDCWD), path, ptr, sig, mode, dev, bitset, and open_flags, mmap_flags, clone_flags, socket_type, futex_op,
- int (32 bits, signed, so -1 is a user or a process, too), uint (32 bits), and words: long (signed), size, hex,
- protocol (after a family and a type), level, option (after a level), pages (of a file), - (not shown).

A path may be shown as a text. All other addresses in the process are ptr.
Sources: the kernel's include/linux/syscalls.h, and the calls' man pages.
"""

from __future__ import annotations

from typing import Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.names.tables import (
    WORDS_OF_32_BITS,
    find_machine,
    get_table,
    name_value,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.names.uapi_differences import DIFFERENCES

Kinds = Sequence[str]

_CALLS = """
open: path open_flags mode
openat: dirfd path open_flags mode
openat2: dirfd path ptr size
creat: path mode
close dup fsync fdatasync fchdir syncfs: fd
close_range: uint uint close_range|
dup2: fd fd
dup3: fd fd open|
read write: fd ptr size
getdents getdents64: fd ptr uint
pread64 pwrite64: fd ptr size long
readv writev: fd ptr int
preadv pwritev: fd ptr int long
preadv2 pwritev2: fd ptr int long - rwf|
lseek: fd long seek=
_llseek: fd uint uint ptr seek=
sendfile: fd fd ptr size
splice: fd ptr fd ptr size splice|
tee: fd fd size splice|
vmsplice: fd ptr size splice|
copy_file_range: fd ptr fd ptr size hex
stat lstat statfs utime utimes: path ptr
fstat fstatfs: fd ptr
newfstatat fstatat: dirfd path ptr at|
statx: dirfd path at| statx| ptr
access: path access|
faccessat: dirfd path access|
faccessat2: dirfd path access| at_access|
chmod: path mode
fchmod: fd mode
fchmodat: dirfd path mode
fchmodat2: dirfd path mode at|
chown lchown: path int int
fchown: fd int int
fchownat: dirfd path int int at|
utimensat: dirfd path ptr at|
truncate: path long
ftruncate: fd long
fallocate: fd fallocate| long long
fadvise64: fd long size fadvise=
sync_file_range: fd long long sync_range|
flock: fd flock|
fcntl: fd fcntl= hex
ioctl: fd ioctl= ptr
mkdir: path mode
mkdirat: dirfd path mode
rmdir unlink chdir chroot swapoff acct: path
unlinkat: dirfd path at_unlink|
rename link symlink pivot_root: path path
renameat: dirfd path dirfd path
renameat2: dirfd path dirfd path rename|
linkat: dirfd path dirfd path at|
symlinkat: path dirfd path
readlink: path ptr size
readlinkat: dirfd path ptr size
mknod: path mode dev
mknodat: dirfd path mode dev
getcwd: ptr size
umask: mode
getxattr lgetxattr: path ptr ptr size
fgetxattr: fd ptr ptr size
setxattr lsetxattr: path ptr ptr size xattr|
fsetxattr: fd ptr ptr size xattr|
listxattr llistxattr: path ptr size
flistxattr: fd ptr size
removexattr lremovexattr: path ptr
fremovexattr: fd ptr
mount: ptr path ptr mount| ptr
umount2: path umount|
umount: path
inotify_init sync pause fork vfork:
inotify_init1: inotify_init|
inotify_add_watch: fd path inotify|
inotify_rm_watch: fd int
memfd_create: ptr memfd|
name_to_handle_at: dirfd path ptr ptr at|
open_by_handle_at: fd ptr open_flags
pipe: ptr
pipe2: ptr open|
socket: family= socket_type protocol
socketpair: family= socket_type protocol ptr
socketcall: socketcall= ptr
bind connect: fd ptr int
accept getsockname getpeername: fd ptr ptr
accept4: fd ptr ptr socket_flag|
listen: fd int
sendto: fd ptr size msg| ptr int
recvfrom: fd ptr size msg| ptr ptr
send recv: fd ptr size msg|
sendmsg recvmsg: fd ptr msg|
sendmmsg: fd ptr uint msg|
recvmmsg: fd ptr uint msg| ptr
shutdown: fd shutdown=
setsockopt: fd level option ptr int
getsockopt: fd level option ptr ptr
poll: ptr uint int
ppoll: ptr uint ptr ptr size
select _newselect: int ptr ptr ptr ptr
pselect6: int ptr ptr ptr ptr ptr
epoll_create: int
epoll_create1: epoll_create|
epoll_ctl: fd epoll_ctl= fd ptr
epoll_wait: fd ptr int int
epoll_pwait: fd ptr int int ptr size
epoll_pwait2: fd ptr int ptr ptr size
eventfd: uint
eventfd2: uint eventfd|
signalfd: fd ptr size
signalfd4: fd ptr size signalfd|
timerfd_create: clock= timerfd|
timerfd_settime: fd timerfd_set| ptr ptr
timerfd_gettime: fd ptr
brk set_tid_address: ptr
mmap: ptr size prot| mmap_flags fd hex
mmap2: ptr size prot| mmap_flags fd pages
munmap mlock munlock: ptr size
mlock2: ptr size hex
mlockall: mlock|
munlockall getpid gettid getppid getpgrp getuid geteuid getgid getegid setsid sched_yield:
rt_sigreturn sigreturn restart_syscall vhangup:
mprotect: ptr size prot|
pkey_mprotect: ptr size prot| int
mremap: ptr size size mremap| ptr
msync: ptr size msync|
madvise: ptr size madvise=
process_madvise: fd ptr size madvise= hex
mincore: ptr size ptr
execve: path ptr ptr
execveat: dirfd path ptr ptr at|
clone: clone_flags ptr ptr ptr hex
clone3: ptr size
exit exit_group: int
wait4: int ptr wait| ptr
waitpid: int ptr wait|
waitid: waitid_type= int ptr waitid| ptr
unshare: clone|
setns: fd clone|
kill: int sig
tkill: int sig
tgkill: int int sig
rt_sigqueueinfo: int sig ptr
rt_tgsigqueueinfo: int int sig ptr
pidfd_open: int pidfd|
pidfd_send_signal: fd sig ptr hex
pidfd_getfd: fd int hex
rt_sigaction: sig ptr ptr size
sigaction: sig ptr ptr
rt_sigprocmask: sigmask= ptr ptr size
sigprocmask: sigmask= ptr ptr
rt_sigpending rt_sigsuspend: ptr size
rt_sigtimedwait: ptr ptr ptr size
sigaltstack: ptr ptr
prctl: prctl= hex hex hex hex
arch_prctl: hex hex
getpgid getsid: int
setpgid: int int
setuid setgid setfsuid setfsgid: int
setreuid setregid: int int
setresuid setresgid: int int int
getresuid getresgid: ptr ptr ptr
setgroups getgroups: int ptr
capget capset: ptr ptr
getrlimit setrlimit ugetrlimit: rlimit= ptr
prlimit64: int rlimit= ptr ptr
getrusage: rusage= ptr
getpriority: priority= int
setpriority: priority= int int
sched_setaffinity sched_getaffinity: int size ptr
sched_setscheduler: int sched= ptr
sched_getscheduler: int
sched_getparam sched_setparam sched_rr_get_interval: int ptr
sched_get_priority_max sched_get_priority_min: sched=
sched_setattr: int ptr hex
sched_getattr: int ptr uint hex
nanosleep gettimeofday settimeofday: ptr ptr
clock_gettime clock_settime clock_getres clock_adjtime: clock= ptr
clock_nanosleep: clock= timer| ptr ptr
time times uname sysinfo adjtimex: ptr
alarm: uint
setitimer: itimer= ptr ptr
getitimer: itimer= ptr
timer_create: clock= ptr ptr
timer_settime: int timer| ptr ptr
timer_gettime: int ptr
timer_delete timer_getoverrun: int
futex: ptr futex_op hex hex hex hex
set_robust_list: ptr size
get_robust_list: int ptr ptr
rseq: ptr uint hex hex
membarrier: membarrier= membarrier_flag| int
getrandom: ptr size getrandom|
getcpu: ptr ptr ptr
ptrace: ptrace= int ptr ptr
process_vm_readv process_vm_writev: int ptr size ptr size hex
seccomp: seccomp= hex ptr
bpf: bpf= ptr uint
keyctl: keyctl= hex hex hex hex
io_setup: uint ptr
io_destroy: hex
io_submit: hex long ptr
io_getevents: hex long long ptr ptr
io_uring_setup: uint ptr
io_uring_enter: fd uint uint io_uring_enter| ptr size
io_uring_register: fd io_uring_register= ptr uint
setdomainname sethostname: ptr int
init_module: ptr size ptr
finit_module: fd ptr hex
delete_module: ptr open|
"""
SIGNATURES = {
    call: tuple(kinds.split())
    for calls, _colon, kinds in (line.partition(":") for line in _CALLS.strip().split("\n"))
    for call in calls.split()
}
# Calls whose arguments are others on some architectures.
_DIFFERENT: dict[tuple[str, str], Kinds] = {
    ("i686", "mmap"): ("ptr",),
    ("i686", "select"): ("ptr",),
    ("s390x", "clone"): ("ptr", "clone_flags", "ptr", "ptr", "hex"),
}
# Offsets of 64 bits are two words there, so these calls end before the first of them, or show the words as they are.
_DIFFERENT_IN_32_BITS: dict[str, Kinds] = {
    "pread64": ("fd", "ptr", "size", "hex", "hex", "hex"),
    "pwrite64": ("fd", "ptr", "size", "hex", "hex", "hex"),
    "truncate64": ("path", "hex", "hex", "hex"),
    "ftruncate64": ("fd", "hex", "hex", "hex"),
    "fallocate": ("fd", "fallocate|", "hex", "hex", "hex", "hex"),
    "fadvise64_64": ("fd", "hex", "hex", "hex", "hex", "hex"),
    "fadvise64": ("fd", "hex", "hex", "hex", "hex"),
    "sync_file_range": ("fd", "hex", "hex", "hex", "hex", "hex"),
    "statfs64": ("path", "size", "ptr"),
    "fstatfs64": ("fd", "size", "ptr"),
}
# What follows the command in calls whose arguments depend on it.
_FCNTL: dict[str, Kinds] = {
    **dict.fromkeys(("F_GETFD", "F_GETFL", "F_GETOWN", "F_GETSIG", "F_GETLEASE", "F_GETPIPE_SZ", "F_GET_SEALS"), ()),
    **dict.fromkeys(("F_DUPFD", "F_DUPFD_CLOEXEC", "F_SETOWN", "F_SETPIPE_SZ"), ("int",)),
    "F_SETFD": ("descriptor|",),
    "F_SETFL": ("open_flags",),
    "F_SETSIG": ("sig",),
    "F_SETLEASE": ("lease=",),
    "F_NOTIFY": ("notify|",),
    "F_ADD_SEALS": ("seals|",),
}
_FUTEX: dict[str, Kinds] = {
    "FUTEX_WAIT": ("uint", "ptr"),
    "FUTEX_WAKE": ("uint",),
    "FUTEX_REQUEUE": ("uint", "uint", "ptr"),
    "FUTEX_CMP_REQUEUE": ("uint", "uint", "ptr", "uint"),
    "FUTEX_WAKE_OP": ("uint", "uint", "ptr", "hex"),
    "FUTEX_LOCK_PI": ("-", "ptr"),
    "FUTEX_LOCK_PI2": ("-", "ptr"),
    "FUTEX_UNLOCK_PI": (),
    "FUTEX_TRYLOCK_PI": (),
    "FUTEX_WAIT_BITSET": ("uint", "ptr", "-", "bitset"),
    "FUTEX_WAKE_BITSET": ("uint", "-", "-", "bitset"),
    "FUTEX_WAIT_REQUEUE_PI": ("uint", "ptr", "ptr"),
    "FUTEX_CMP_REQUEUE_PI": ("uint", "uint", "ptr", "uint"),
}
_PRCTL: dict[str, Kinds] = {
    **dict.fromkeys(("PR_GET_DUMPABLE", "PR_GET_KEEPCAPS", "PR_GET_SECCOMP", "PR_GET_SECUREBITS"), ()),
    **dict.fromkeys(("PR_SET_DUMPABLE", "PR_SET_KEEPCAPS", "PR_SET_CHILD_SUBREAPER", "PR_SET_TIMERSLACK"), ("uint",)),
    **dict.fromkeys(("PR_SET_NAME", "PR_GET_NAME", "PR_GET_PDEATHSIG", "PR_GET_CHILD_SUBREAPER"), ("ptr",)),
    **dict.fromkeys(("PR_CAPBSET_READ", "PR_CAPBSET_DROP"), ("capability=",)),
    "PR_SET_NO_NEW_PRIVS": ("uint", "hex", "hex", "hex"),
    "PR_SET_PDEATHSIG": ("sig",),
    "PR_SET_SECCOMP": ("seccomp_mode=", "ptr"),
}
_PTRACE: dict[str, Kinds] = {
    "PTRACE_TRACEME": (),
    **dict.fromkeys(("PTRACE_ATTACH", "PTRACE_KILL", "PTRACE_INTERRUPT", "PTRACE_LISTEN"), ("int",)),
    **dict.fromkeys(("PTRACE_CONT", "PTRACE_SYSCALL", "PTRACE_SINGLESTEP", "PTRACE_DETACH"), ("int", "ptr", "sig")),
    **dict.fromkeys(("PTRACE_SEIZE", "PTRACE_SETOPTIONS"), ("int", "ptr", "ptrace_option|")),
}
_SECCOMP: dict[str, Kinds] = {"SECCOMP_SET_MODE_FILTER": ("seccomp_filter|", "ptr")}
# By call: the position of the command, its table, and what follows commands; after other commands that the table names, the last.
_BY_COMMAND: dict[str, tuple[int, str, Mapping[str, Kinds], Kinds]] = {
    "fcntl": (1, "fcntl", _FCNTL, ("ptr",)),
    "futex": (1, "futex", _FUTEX, ("hex", "hex", "hex", "hex")),
    "prctl": (0, "prctl", _PRCTL, ("hex", "hex", "hex", "hex")),
    "ptrace": (0, "ptrace", _PTRACE, ("int", "ptr", "ptr")),
    "seccomp": (0, "seccomp", _SECCOMP, ("hex", "ptr")),
}
# By call whose last argument the kernel reads only with some flags: their position, table and names, and the bits of a value
# that has to be one of them; 0 where one of them has to be set. open(2), mknod(2), mremap(2).
_LAST: dict[str, tuple[int, str, Sequence[str], int]] = {
    "open": (1, "open", ("O_CREAT", "O_TMPFILE"), 0),
    "openat": (2, "open", ("O_CREAT", "O_TMPFILE"), 0),
    "mknod": (1, "file_type", ("S_IFCHR", "S_IFBLK"), 0o170000),
    "mknodat": (2, "file_type", ("S_IFCHR", "S_IFBLK"), 0o170000),
    "mremap": (3, "mremap", ("MREMAP_FIXED", "MREMAP_DONTUNMAP"), 0),
}
_FUTEX_PRIVATE, _FUTEX_CLOCK = 0x80, 0x100


def find_kinds(call: str, words: Sequence[int], arch: str) -> Kinds | None:
    """Return the kinds of the arguments of CALL, whose values are WORDS, on ARCH; None when the call is not listed.

    A trace may call a call by the kernel's own name (newstat), and 32-bit programs make calls with names of their own (stat64).
    """
    machine = find_machine(arch)
    if machine in WORDS_OF_32_BITS and call in _DIFFERENT_IN_32_BITS:
        return _DIFFERENT_IN_32_BITS[call]
    if (machine, call) in _DIFFERENT:
        return _DIFFERENT[machine, call]
    name = _find_name(call)
    if name is None:
        return None
    if name == "clone" and machine in DIFFERENCES:  # clone(2): many architectures have the last two the other way round
        return ("clone_flags", "ptr", "ptr", "hex", "ptr")
    if name in _BY_COMMAND:
        return _follow_command(name, words, arch)
    kinds = SIGNATURES[name]
    return kinds if name not in _LAST or len(words) < len(kinds) or _has_last(name, words, arch) else kinds[:-1]


def _find_name(call: str) -> str | None:
    """Return the name in SIGNATURES for CALL; None when it has none."""
    names = [call, call[3:] if call.startswith("new") else call]
    names += [call[: -len(suffix)] for suffix in ("_time64", "64", "32") if call.endswith(suffix)]
    return next((name for name in names if name in SIGNATURES), None)


def _follow_command(name: str, words: Sequence[int], arch: str) -> Kinds:
    """Return the kinds of the arguments of the call NAME, one of _BY_COMMAND, with the values WORDS."""
    position, table, by_command, others = _BY_COMMAND[name]
    kinds = SIGNATURES[name]
    if len(words) <= position:
        return kinds
    value = words[position] & 0xFFFFFFFF
    if name == "futex":
        value &= ~(_FUTEX_PRIVATE | _FUTEX_CLOCK)
    command = name_value(value, get_table(table, arch))
    rest = kinds[position + 1 :] if command is None else by_command.get(command, others)
    return (*kinds[: position + 1], *rest)


def _has_last(name: str, words: Sequence[int], arch: str) -> bool:
    """Return True if the flags in WORDS, the arguments of the call NAME, make the kernel read the last argument."""
    position, table, flags, mask = _LAST[name]
    values = get_table(table, arch)
    value = words[position] & (mask or 0xFFFFFFFF)
    return any(value == values[flag] if mask else value & values[flag] == values[flag] for flag in flags)
