# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Describe a trace to the compiled pass: where the fields of its events are, and what its system calls do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Callable, Collection, Iterator, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.call_paths import find_family, list_fields
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled import codes
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.state import State
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.formats import EventFormat, Field
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.trace_dat import TraceFileError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.path_calls import FAMILIES, FAMILY_OF_CALL
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.profiles import (
    IO_URING_CREATE,
    IO_URING_REQUESTS,
)

_OWN = "syscalls:sys_"
_NO_NUMBER = -2
_NUMBER = "__syscall_nr"
_EXIT_OF_EXEC = "syscalls:sys_exit_execve"
_FAMILY_NUMBERS = {name: number for number, name in enumerate(FAMILIES)}
_EBADF, _EFAULT = 9, 14
_OWN_ERRORS = {"fcntl": _EBADF, "fcntl64": _EBADF, "times": _EFAULT}
_EXECS = frozenset({"execve", "execveat"})
FORKS = frozenset({"clone", "clone3", "fork", "vfork"})
_ACTIONS = {
    codes.OPEN: ("open", "openat", "openat2", "creat", "open_by_handle_at"),
    codes.CLOSE: ("close",),
    codes.CLOSE_RANGE: ("close_range",),
    codes.END_PROCESS: ("exit_group",),
    codes.SOCKET: ("socket",),
    codes.CONNECT: ("connect",),
    codes.ACCEPT: ("accept", "accept4"),
    codes.DUP: ("dup",),
    codes.DUP_TO: ("dup2", "dup3"),
    codes.FCNTL: ("fcntl", "fcntl64"),
    codes.PIPE: ("pipe", "pipe2", "socketpair"),
    codes.MAKE: (
        *(
            "epoll_create",
            "epoll_create1",
            "eventfd",
            "eventfd2",
            "timerfd_create",
            "signalfd",
            "signalfd4",
            "memfd_create",
        ),
        *(
            "inotify_init",
            "inotify_init1",
            "fanotify_init",
            "userfaultfd",
            "perf_event_open",
            "io_uring_setup",
            "pidfd_open",
        ),
        *("fsopen", "fsmount", "open_tree", "bpf", "memfd_secret", "landlock_create_ruleset"),
    ),
    codes.TRANSFER: (
        *("read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev", "preadv2", "pwritev2"),
        *("sendto", "recvfrom", "sendmsg", "recvmsg", "sendmmsg", "recvmmsg", "sendfile", "sendfile64", "splice"),
    ),
    codes.WAIT: (
        *("poll", "ppoll", "select", "pselect6", "_newselect", "epoll_wait", "epoll_pwait", "epoll_pwait2"),
        *("ppoll_time64", "pselect6_time64"),
    ),
}
_ACTION_OF = {call: action for action, calls in _ACTIONS.items() for call in calls}
# The position of the argument that is a descriptor, where it is not the first.
_FD_POSITIONS = {
    **{
        name: 0 for names in (_ACTIONS[codes.TRANSFER], _ACTIONS[codes.ACCEPT], _ACTIONS[codes.FCNTL]) for name in names
    },
    **dict.fromkeys(
        (
            *("close", "dup", "dup2", "dup3", "connect", "bind", "listen", "shutdown", "getsockname", "getpeername"),
            *(
                "setsockopt",
                "getsockopt",
                "fstat",
                "lseek",
                "_llseek",
                "ioctl",
                "flock",
                "fsync",
                "fdatasync",
                "ftruncate",
            ),
            *(
                "ftruncate64",
                "fchmod",
                "fchown",
                "fchdir",
                "fallocate",
                "getdents",
                "getdents64",
                "epoll_wait",
                "epoll_pwait",
            ),
            *(
                "epoll_pwait2",
                "epoll_ctl",
                "syncfs",
                "fstatfs",
                "fstatfs64",
                "fadvise64",
                "readahead",
                "sync_file_range",
            ),
            *(
                "fstat64",
                "copy_file_range",
                "tee",
                "vmsplice",
                "io_uring_enter",
                "fgetxattr",
                "fsetxattr",
                "flistxattr",
            ),
            *("fremovexattr", "timerfd_settime", "timerfd_gettime", "inotify_add_watch", "execveat_"),
        ),
        0,
    ),
    "mmap": 4,
    "mmap2": 4,
}

_O_CLOEXEC = 0x80000  # SOCK_CLOEXEC, EFD_CLOEXEC and others, too, on nearly all architectures
# The position of the argument, and the bits in it, that let an exec close the new descriptor; -1 if every descriptor of the call is such.
_CLOEXEC = {
    **dict.fromkeys(("epoll_create1", "inotify_init1", "userfaultfd", "memfd_secret"), (0, _O_CLOEXEC)),
    **dict.fromkeys(("open", "socket", "eventfd2", "timerfd_create"), (1, _O_CLOEXEC)),
    **dict.fromkeys(("openat", "open_by_handle_at", "dup3", "open_tree"), (2, _O_CLOEXEC)),
    **dict.fromkeys(("accept4", "signalfd4"), (3, _O_CLOEXEC)),
    **dict.fromkeys(("memfd_create", "fsopen", "fsmount"), (1, 1)),
    "fanotify_init": (0, 1),
    "perf_event_open": (4, 8),
    # The flags of openat2 are in memory; nearly all programs that call it set O_CLOEXEC.
    **dict.fromkeys(("openat2", "io_uring_setup", "pidfd_open", "bpf", "landlock_create_ruleset"), (-1, _O_CLOEXEC)),
}


def fill_events(state: State, formats: Mapping[str, EventFormat], word_size: int, selection: Selection) -> None:
    """Fill the table of events in STATE from FORMATS, the event formats by system:name. WORD_SIZE is the recording kernel's, in bytes.

    SELECTION says which events of the system `syscalls` were asked for; the pass takes no call from the others.
    """
    rows = 1  # row 0 is for events that the pass only counts
    for name, known in formats.items():
        row = [codes.OTHER_EVENT, 0, -1, 0, 0, 0, 0, 0]
        found = _describe(name, known, word_size)
        if found and (
            found[0] not in (codes.OWN_ENTER, codes.OWN_EXIT) or selection.has_event(name) or name == _EXIT_OF_EXEC
        ):
            kind, fields, places = found
            if kind == codes.OWN_EXIT and not selection.has_event(name):
                kind = codes.EXEC_EXIT
            needed = max((field.offset + max(field.size, 0) for field in fields), default=0)
            row[0], row[7] = kind, needed
            row += places
        family = find_family(known)
        if family is not None and len(state.events) > rows:
            texts = list_fields(known)[:3]
            row[1], row[2] = len(texts), family
            row[3 : 3 + len(texts)] = [text.offset for text in texts]
            row[6] = sum(text.is_relative << index for index, text in enumerate(texts))
            if row[0] == codes.OTHER_EVENT:
                row[0] = codes.PATH
        if row[0] != codes.OTHER_EVENT and rows < len(state.events) and known.id < state.event_rows.size:
            state.events[rows, : len(row)] = row
            state.event_rows[known.id] = rows
            rows += 1


def _describe(name: str, known: EventFormat, word_size: int) -> tuple[int, list[Field], list[int]] | None:
    """Return the kind of event KNOWN, called NAME, the fields that have to be in a record, and their places; None for other events."""
    if name == "raw_syscalls:sys_enter":
        number, arguments = known.field("id"), known.fields.get("args")
        offset, size = (arguments.offset, arguments.size) if arguments else (0, 0)
        places = [number.offset, number.size, offset, min(6, size // word_size), word_size]
        return codes.RAW_ENTER, [number, *([arguments] if arguments else [])], places
    if name == "raw_syscalls:sys_exit":
        number, result = known.field("id"), known.field("ret")
        return codes.RAW_EXIT, [number, result], [number.offset, number.size, result.offset, result.size, 0]
    if name.startswith(_OWN) and _NUMBER in known.fields:
        return _describe_own(name, known, word_size)
    describe = _OTHERS.get(name)
    try:
        return describe(known.fields) if describe else None
    except KeyError as error:
        if name in _NEEDED:
            raise TraceFileError(f"event {name} of the trace has no field {error.args[0]!r}") from error
        return None


def _reach(field: Field, size: int) -> Field:
    """Return FIELD with at least SIZE bytes: so many are read, and have to be in the record, whatever the format says."""
    return replace(field, size=max(field.size, size))


def _describe_own(name: str, known: EventFormat, word_size: int) -> tuple[int, list[Field], list[int]] | None:
    number = known.fields[_NUMBER]
    if name.startswith(f"{_OWN}enter_"):
        first = number.offset + max(number.size, word_size)
        arguments = [
            field
            for field in known.fields.values()
            if not field.is_dynamic and field.size == word_size and field.offset >= first
        ][:6]
        # The arguments are read one behind the other, wherever the format says that they are.
        needed = [number, *arguments, _reach(number, first - number.offset + len(arguments) * word_size)]
        return codes.OWN_ENTER, needed, [number.offset, number.size, first, len(arguments), word_size]
    if "ret" not in known.fields:
        return None
    result = known.fields["ret"]
    is_exec = codes.IS_EXEC_EXIT if name == _EXIT_OF_EXEC else 0
    return codes.OWN_EXIT, [number, result], [number.offset, number.size, result.offset, result.size, is_exec]


def _place_text(field: Field) -> list[int]:
    """Return offset and size of a name. The sizes 0 and -1 mean that a word there says where it is, from the record's start or its end."""
    return [field.offset, -int(field.is_relative) if field.is_dynamic else field.size]


_Fields = Mapping[str, Field]
# Events without which no thread has its right name. A kernel may lack fields of the others.
_NEEDED = ("task:task_newtask", "task:task_rename")


def _describe_birth(fields: _Fields) -> tuple[int, list[Field], list[int]]:
    pid, name, flags = fields["pid"], fields["comm"], fields["clone_flags"]
    return codes.BIRTH, [_reach(pid, 4), name, flags], [pid.offset, *_place_text(name), flags.offset, flags.size]


def _describe_rename(fields: _Fields) -> tuple[int, list[Field], list[int]]:
    # Some kernels have no field `pid` here: a thread may rename only itself, or a thread of its process.
    pid, old, new = fields.get("pid"), fields.get("oldcomm"), fields["newcomm"]
    places = [pid.offset if pid else -1, *(_place_text(old) if old else (-1, 0)), *_place_text(new)]
    return codes.RENAME, [field for field in (pid and _reach(pid, 4), old, new) if field], places


def _describe_exec(fields: _Fields) -> tuple[int, list[Field], list[int]]:
    path, pid, old = fields["filename"], fields["pid"], fields["old_pid"]
    return (
        codes.EXEC,
        [_reach(field, 4) for field in (path, pid, old)],
        [path.offset, pid.offset, old.offset, int(path.is_relative)],
    )


def _describe_exit(_fields: _Fields) -> tuple[int, list[Field], list[int]]:
    return codes.THREAD_EXIT, [], []


def _describe_state(fields: _Fields) -> tuple[int, list[Field], list[int]]:
    names = ("oldstate", "newstate", "family", "protocol", "dport", "daddr", "daddr_v6")
    old, new, family, protocol, port, narrow, wide = (fields[name] for name in names)
    places = [
        old.offset,
        new.offset,
        family.offset,
        protocol.offset,
        protocol.size,
        port.offset,
        narrow.offset,
        wide.offset,
    ]
    needed = [_reach(old, 4), _reach(new, 4), _reach(family, 2), protocol, _reach(port, 2), _reach(narrow, 4)]
    return codes.SOCKET_STATE, [*needed, _reach(wide, 16)], places


def _describe_signal(fields: _Fields) -> tuple[int, list[Field], list[int]]:
    number, handler = fields["sig"], fields["sa_handler"]
    return codes.SIGNAL, [_reach(number, 4), handler], [number.offset, handler.offset, handler.size]


def _describe_victim(fields: _Fields) -> tuple[int, list[Field], list[int]]:
    return codes.OOM, [_reach(fields["pid"], 4)], [fields["pid"].offset]


def _describe_function(fields: _Fields) -> tuple[int, list[Field], list[int]]:
    address = fields["ip"] if "ip" in fields else fields["func"]
    return codes.FUNCTION, [address], [address.offset, address.size]


def _describe_request(fields: _Fields) -> tuple[int, list[Field], list[int]]:
    operation, name = fields["opcode"], fields.get("op_str")
    places = [operation.offset, operation.size]
    if name is None or not name.is_dynamic:
        return codes.RING_REQUEST, [operation], [*places, -1, 0]
    return codes.RING_REQUEST, [operation, _reach(name, 4)], [*places, name.offset, int(name.is_relative)]


def _describe_ring(fields: _Fields) -> tuple[int, list[Field], list[int]]:
    return codes.RING_CREATE, [_reach(fields["flags"], 4)], [fields["flags"].offset]


_OTHERS: dict[str, Callable[[_Fields], tuple[int, list[Field], list[int]]]] = {
    "task:task_newtask": _describe_birth,
    "task:task_rename": _describe_rename,
    "sched:sched_process_exec": _describe_exec,
    "sched:sched_process_exit": _describe_exit,
    "sock:inet_sock_set_state": _describe_state,
    "signal:signal_deliver": _describe_signal,
    "oom:mark_victim": _describe_victim,
    **dict.fromkeys(
        ("ftrace:function", "ftrace:funcgraph_entry", "ftrace:funcgraph_retaddr_entry"), _describe_function
    ),
    **dict.fromkeys(IO_URING_REQUESTS, _describe_request),
    IO_URING_CREATE: _describe_ring,
}


class Selection:
    """The system calls whose ends a trace records, from its formats, the requested trace, and the names of calls by number."""

    def __init__(
        self,
        formats: Mapping[str, EventFormat],
        names: Mapping[int, str],
        specification: Mapping[str, Any] | None,
        earlier_syscalls: Collection[Mapping[str, Any]] = (),
    ) -> None:
        wanted = specification or {}
        self._asked = None if specification is None else wanted.get("events") or ()
        is_raw = wanted.get("syscalls") is not None if "syscalls" in wanted else "raw_syscalls:sys_enter" in formats
        self._is_whole = is_raw and not wanted.get("errors_only")
        self._names = names
        self._own = {end: frozenset(self._gen_own(formats, end)) for end in ("enter", "exit")}
        self._selected = self._list_selected([wanted.get("syscalls") or {}, *earlier_syscalls])

    def has_event(self, name: str) -> bool:
        """Return True if the event NAME (system:name) was asked for, and not only recorded to find programs and paths."""
        return self._asked is None or name in self._asked

    def _gen_own(self, formats: Mapping[str, EventFormat], end: str) -> Iterator[str]:
        for name in formats:
            if name.startswith(f"{_OWN}{end}_") and self.has_event(name):
                yield name[len(_OWN) + len(end) + 1 :]

    def _list_selected(self, selections: Collection[Mapping[str, Any]]) -> frozenset[int] | None:
        numbers: set[int] = set()
        for selection in selections:
            native, compat = selection.get("native") or [], selection.get("compat") or []
            if not native and not compat:
                return None
            numbers.update(native)
            numbers.update(number + codes.COMPAT for number in compat)
        return frozenset(numbers)

    @property
    def numbers(self) -> frozenset[int]:
        """Return the numbers of the calls that were selected one by one, with COMPAT added for 32-bit programs."""
        return self._selected or frozenset()

    def is_recorded(self, name: str, end: str) -> bool:
        """Return True if the END (enter or exit) of the call NAME is recorded."""
        return self._is_whole or name in self._own[end]

    def is_selected(self, number: int, name: str) -> bool:
        """Return True if the call NUMBER, called NAME, was asked for.

        The kernel's filter compares numbers only: it also lets calls of the other architecture pass that have the same numbers.
        """
        if self._selected is None:
            return True
        return number in self._selected or name in self._own["enter"] or name in self._own["exit"]


def fill_calls(state: State, names: Mapping[int, str], selection: Selection) -> None:
    """Fill the table of calls in STATE; NAMES has the names of system calls by number, with COMPAT added for 32-bit programs."""
    state.calls[:] = _describe_call(_NO_NUMBER, "", selection)  # most numbers have no name, and all these are alike
    for number in {*names, *selection.numbers}:
        row = number if number < codes.MAX_NUMBER else number - codes.COMPAT + codes.MAX_NUMBER
        if 0 <= row < codes.MAX_NUMBER or (codes.MAX_NUMBER <= row < 2 * codes.MAX_NUMBER and number >= codes.COMPAT):
            state.calls[row] = _describe_call(number, names.get(number, ""), selection)


def _describe_call(number: int, name: str, selection: Selection) -> tuple[int, ...]:
    """Return the row of the table of calls for the call NUMBER, called NAME; '' for a number without a name."""
    family = FAMILY_OF_CALL.get(name)
    columns = {
        codes.FAMILY: _FAMILY_NUMBERS[family] if family else -1,
        codes.ACTION: _ACTION_OF.get(name, codes.NO_ACTION),
        codes.FD_ARGUMENT: _FD_POSITIONS.get(name, -1),
        codes.HAS_ENTRY: selection.is_recorded(name, "enter"),
        codes.HAS_EXIT: selection.is_recorded(name, "exit"),
        codes.IS_SELECTED: selection.is_selected(number, name),
        codes.IS_EXEC: name in _EXECS,
        codes.IS_CLONE: name in FORKS,
        codes.OWN_ERROR: _OWN_ERRORS.get(name, 0),
        codes.CLOEXEC_ARGUMENT: _CLOEXEC.get(name, (-1, 0))[0],
        codes.CLOEXEC_BITS: _CLOEXEC.get(name, (-1, 0))[1],
    }
    return tuple(columns[column] for column in range(codes.CALL_COLUMNS))
