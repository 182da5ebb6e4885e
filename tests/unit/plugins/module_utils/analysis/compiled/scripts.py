# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scripts of what threads do, as traces for the compiled pass."""

from __future__ import annotations

import io
import struct

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.calls import gen_calls
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled import codes
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.capture_pass import CapturePass
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.results import make_tables
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages

NUMBERS = {
    "read": 0,
    "write": 1,
    "open": 2,
    "close": 3,
    "poll": 7,
    "pipe": 22,
    "dup": 32,
    "dup2": 33,
    "getpid": 39,
    "socket": 41,
    "connect": 42,
    "accept": 43,
    "clone": 56,
    "execve": 59,
    "fcntl": 72,
    "rename": 82,
    "creat": 85,
    "exit_group": 231,
    "openat": 257,
    "accept4": 288,
    "eventfd2": 290,
    "epoll_create1": 291,
    "dup3": 292,
    "memfd_create": 319,
    "bpf": 321,
    "pidfd_open": 434,
    "close_range": 436,
    "openat2": 437,
}
MANIFEST = {"syscalls": {str(number): name for name, number in NUMBERS.items()}, "arch": "x86_64", "complete": True}
GROUP = "crashcart_0123456789ab_5d41402a"
_OPENAT, _RENAME = 1501, 1502
_STATE = (
    *(
        "skaddr u64 8 8",
        "oldstate int 16 4",
        "newstate int 20 4",
        "sport u16 24 2",
        "dport u16 26 2",
        "family u16 28 2",
    ),
    *("protocol u16 30 2", "saddr u8[4] 32 4", "daddr u8[4] 36 4", "saddr_v6 u8[16] 40 16", "daddr_v6 u8[16] 56 16"),
)


def make_format(name, number, *fields):
    """The format of an event with FIELDS, each 'name type offset size'."""
    lines = []
    for field in fields:
        own, kind, offset, size = field.split()
        base, _bracket, count = kind.partition("[")
        lines.append(
            f"\tfield:{base} {own}{'[' + count if count else ''};\toffset:{offset};\tsize:{size};\tsigned:1;\n"
        )
    head = (
        pages.TASK_NEWTASK.replace("task_newtask", name).replace("205", str(number)).partition("\tfield:pid_t pid")[0]
    )
    return (head + "".join(lines) + 'print fmt: "x"\n').encode()


FORMATS = {
    GROUP: [
        pages.make_path_format("path_openat", _OPENAT, "path"),
        pages.make_path_format("path_rename", _RENAME, "path", "path2"),
    ],
    "sock": [make_format("inet_sock_set_state", 1601, *_STATE)],
    "signal": [make_format("signal_deliver", 1602, "sig int 8 4", "sa_handler u64 24 8")],
    "oom": [make_format("mark_victim", 1603, "pid int 8 4")],
    "sched": [
        pages.SCHED_PROCESS_EXEC.encode(),
        make_format("sched_process_exit", 1604, "comm char[16] 8 16", "pid int 24 4"),
    ],
}
TCP_ESTABLISHED, TCP_SYN_SENT, TCP_CLOSE = 1, 2, 7
AT_FDCWD = -100


class Script:
    """Events of threads on some CPUs, 10 ns apart unless a time is given."""

    def __init__(self):
        self.now, self.events = 1000, []

    def add(self, record, cpu=0, time=None):
        self.now = self.now + 10 if time is None else time
        self.events.append((self.now, cpu, record))

    def enter(self, tid, name, *arguments, **where):
        words = [word - (1 << 64) if word >> 63 > 0 else word for word in (*arguments, *[0] * (6 - len(arguments)))]
        self.add(pages.make_record(443, tid, struct.pack("q6q", NUMBERS.get(name, name), *words)), **where)

    def exit(self, tid, name, result=0, **where):
        self.add(pages.make_exit(tid, NUMBERS.get(name, name), result), **where)

    def call(self, tid, name, *arguments, result=0):
        self.enter(tid, name, *arguments)
        self.exit(tid, name, result)

    def open(self, tid, path, fd, name="openat", arguments=(AT_FDCWD, 0x7F0000080000, 0)):
        """An open of PATH, by default with a pointer that has the bit of O_CLOEXEC in it."""
        self.enter(tid, name, *arguments)
        self.add(pages.make_paths(_OPENAT, tid, path))
        self.exit(tid, name, fd)

    def rename(self, tid, old, new, result=0):
        self.enter(tid, "rename")
        self.add(pages.make_paths(_RENAME, tid, old, new))
        self.exit(tid, "rename", result)

    def fork(self, tid, child, flags=0, name=b"x", **where):
        self.add(pages.make_newtask(tid, child, name, flags), **where)

    def execute(self, tid, path=b"/bin/new", old=None):
        """An exec, by the thread OLD, with the exit that every exec has."""
        self.add(pages.make_record(365, tid, struct.pack("HHii", 20, len(path) + 1, tid, old or tid) + path + b"\0"))
        self.add(pages.make_exit_of_exec(tid))

    def leave(self, tid, **where):
        self.add(pages.make_record(1604, tid, struct.pack("16sii", b"x", tid, 120)), **where)

    def change_state(self, tid, old, new, address, port, family=2, protocol=6):
        narrow, wide = (address, bytes(16)) if len(address) == 4 else (bytes(4), address)
        fields = struct.pack("QiiHHHH4s4s16s16s", 1, old, new, 0, port, family, protocol, b"", narrow, b"", wide)
        self.add(pages.make_record(1601, tid, fields))

    def connect(self, tid, fd, address, port, result=0, **about):
        self.enter(tid, "connect", fd)
        self.change_state(tid, TCP_CLOSE, TCP_SYN_SENT, address, port, **about)
        self.exit(tid, "connect", result)

    def deliver(self, tid, number, handler=0):
        self.add(pages.make_record(1602, tid, struct.pack("i12xq", number, handler)))

    def mark_victim(self, tid, victim):
        self.add(pages.make_record(1603, tid, struct.pack("i4x", victim)))

    def trace(self, **about):
        cpus = [[] for _cpu in range(1 + max((cpu for _time, cpu, _record in self.events), default=0))]
        for time, cpu, record in self.events:
            cpus[cpu].append((time, record))
        about = {"more_formats": FORMATS, **about}
        return Trace(io.BytesIO(pages.pack_trace([pack_pages(events) for events in cpus], **about)))

    def run(self, manifest=None, cmdlines=b"", prepare=None, **about):
        """The finished pass; PREPARE may change its state before."""
        made = CapturePass(self.trace(cmdlines=cmdlines), {**MANIFEST, **(manifest or {})}, **about)
        if prepare:
            prepare(made.state)
        made.run()
        return made

    def tables(self, manifest=None, **about):
        made = self.run(manifest, **about)
        return make_tables(made.state, made.names, {**MANIFEST, **(manifest or {})})

    def calls(self, manifest=None, cmdlines=b""):
        return list(gen_calls(self.trace(cmdlines=cmdlines), {**MANIFEST, **(manifest or {})}))


def pack_pages(events, most=6):
    """Pages of EVENTS, each (time, record), sorted by time, MOST of them in a page."""
    made, held, first, before = [], [], 0, 0
    for time, record in events:
        is_far = held and time - before >= 1 << 27
        if held and (len(held) == most or is_far or sum(map(len, held)) + len(record) + 8 > pages.PAGE_SIZE - 16):
            made.append(pages.pack_page(first, held))
            held = []
        if not held:
            first = before = time
        held.append(pages.pack_event(record, time - before))
        before = time
    return [*made, pages.pack_page(first, held)] if held else made


def list_cells(tables):
    """Name of the thread, number, outcome, object's text and count of each cell."""
    cells = tables.cells
    return [
        (tables.tasks.name[task], number, outcome, tables.objects[thing][1], count)
        for task, number, outcome, thing, count in zip(
            *(column.tolist() for column in (cells.task, cells.number, cells.outcome, cells.object, cells.count))
        )
    ]


def error_of(outcome):
    return outcome & codes.ERRNO_MASK
