# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Good captures, small ones, which the fuzzer damages: events of every kind that the analysis reads, of both file versions."""

from __future__ import annotations

import copy
import json
import struct
from dataclasses import dataclass, field
from functools import lru_cache

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import compression, tables, trace_dat
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import machines, pages

SECOND = 10**9
_REAL_NS = 1795302898 * SECOND  # when the trace's clock began
_CLOCKS = b"local global counter uptime perf [mono] mono_raw boot tai x86-tsc \n\0"
_HEADER_PAGE = (
    b"\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n"
    b"\tfield: local_t commit;\toffset:8;\tsize:8;\tsigned:1;\n"
    b"\tfield: char data;\toffset:16;\tsize:4080;\tsigned:1;\n"
)
_CALLS = (
    "0:read 1:write 2:open 3:close 7:poll 15:rt_sigreturn 22:pipe 32:dup 33:dup2 35:nanosleep 39:getpid 41:socket "
    "42:connect 43:accept 56:clone 59:execve 61:wait4 72:fcntl 82:rename 100:times 202:futex 231:exit_group "
    "232:epoll_wait 257:openat 288:accept4 290:eventfd2 436:close_range"
)
NAMES = dict(pair.split(":") for pair in _CALLS.split())


def _make_format(name, number, *fields):
    """The text of a format; each of FIELDS is type and name in C, offset, size and 1 for a signed one."""
    lines = "".join(
        f"\tfield:{what};\toffset:{offset};\tsize:{size};\tsigned:{signed};\n" for what, offset, size, signed in fields
    )
    common = pages.SYS_ENTER.partition("format:\n")[2].partition("\n\n")[0]
    return f'name: {name}\nID: {number}\nformat:\n{common}\n\n{lines}\nprint fmt: "%d", REC->x\n'.encode()


_STATE, _SIGNAL, _VICTIM, _GONE, _REQUEST, _RING, _FUNCTION, _OPEN, _RENAME, _READ, _READ_EXIT = range(1000, 1011)
FORMATS = {
    "raw_syscalls": [pages.SYS_ENTER.encode(), pages.SYS_EXIT.encode()],
    "task": [pages.TASK_RENAME.encode(), pages.TASK_NEWTASK.encode()],
    "sched": [
        pages.SCHED_PROCESS_EXEC.encode(),
        _make_format("sched_process_exit", _GONE, ("char comm[16]", 8, 16, 0), ("pid_t pid", 24, 4, 1)),
    ],
    "syscalls": [
        pages.SYS_EXIT_EXECVE.encode(),
        _make_format(
            *("sys_enter_read", _READ, ("int __syscall_nr", 8, 4, 1)),
            *(("unsigned int fd", 16, 8, 0), ("char * buf", 24, 8, 0), ("size_t count", 32, 8, 0)),
        ),
        _make_format("sys_exit_read", _READ_EXIT, ("int __syscall_nr", 8, 4, 1), ("long ret", 16, 8, 1)),
    ],
    "sock": [
        _make_format(
            *("inet_sock_set_state", _STATE, ("const void * skaddr", 8, 8, 0), ("int oldstate", 16, 4, 1)),
            *(("int newstate", 20, 4, 1), ("__u16 sport", 24, 2, 0), ("__u16 dport", 26, 2, 0)),
            *(("__u16 family", 28, 2, 0), ("__u16 protocol", 30, 2, 0), ("__u8 saddr[4]", 32, 4, 0)),
            *(("__u8 daddr[4]", 36, 4, 0), ("__u8 saddr_v6[16]", 40, 16, 0), ("__u8 daddr_v6[16]", 56, 16, 0)),
        )
    ],
    "signal": [
        _make_format(
            *("signal_deliver", _SIGNAL, ("int sig", 8, 4, 1), ("int errno", 12, 4, 1), ("int code", 16, 4, 1)),
            *(("unsigned long sa_handler", 24, 8, 0), ("unsigned long sa_flags", 32, 8, 0)),
        )
    ],
    "oom": [_make_format("mark_victim", _VICTIM, ("int pid", 8, 4, 1))],
    "io_uring": [
        _make_format("io_uring_submit_req", _REQUEST, ("u8 opcode", 8, 1, 0), ("__data_loc char[] op_str", 12, 4, 0)),
        _make_format("io_uring_create", _RING, ("u32 flags", 8, 4, 0)),
    ],
    "crashcart_x": [
        pages.make_path_format("path_openat", _OPEN, "path"),
        pages.make_path_format("path_rename", _RENAME, "old", "new"),
    ],
}
FUNCTION_FORMAT = _make_format(
    "function", _FUNCTION, ("unsigned long ip", 8, 8, 0), ("unsigned long parent_ip", 16, 8, 0)
)
KALLSYMS = b"ffffffff81000000 T do_fork\nffffffff81000100 t vfs_read\t[ext4]\n"


@dataclass
class Sample:
    """A capture before it is packed. CPUS: for each CPU its events as pairs of time and record. MANIFEST, TABLES: documents."""

    version: int = 6
    method: str = compression.NONE
    page_size: int = pages.PAGE_SIZE
    header_page: bytes = _HEADER_PAGE
    formats: dict = field(default_factory=lambda: copy.deepcopy(FORMATS))
    ftrace_formats: list = field(default_factory=lambda: [FUNCTION_FORMAT])
    cpus: list = field(default_factory=list)
    manifest: dict = field(default_factory=dict)
    tables: dict = field(default_factory=dict)
    parts: dict = field(default_factory=dict)
    options: list = field(default_factory=list)
    machine: pages.Machine = pages.HERE

    def pack(self):
        """Return the bytes of the trace.dat."""
        head = trace_dat.Head(
            page_size=self.page_size,
            header_page=self.header_page,
            header_event=b"",
            ftrace_formats=self.ftrace_formats,
            event_formats=self.formats,
            kallsyms=KALLSYMS,
            cmdlines=b"5 web\n6 \x1b[2Jworker\n",
            options=[(trace_dat.OPTION_TRACECLOCK, _CLOCKS), tables.pack(self.tables, self.parts), *self.options],
            version=self.version,
            compression=self.method if self.version == 7 else compression.NONE,
            order=self.machine.order,
            word_size=self.machine.word,
        )
        compress = compression.make_compressor(head.compression)
        contents = [b"".join(_gen_pages(events, self.page_size, self.machine)) for events in self.cpus]
        if head.compression != compression.NONE:
            contents = [
                trace_dat.pack_count(1, head.order) + trace_dat.pack_chunk(compress(plain), len(plain), head.order)
                if plain
                else b""
                for plain in contents
            ]
        return trace_dat.pack_head(head, list(map(len, contents))) + b"".join(contents)


def _gen_pages(events, size, machine):
    """Yield pages of MACHINE with EVENTS, as many in each as fit there."""
    begin, made, used = 0, [], 0
    last = 0
    for time, record in events:
        delta = time - last if made else 0
        packed = [] if 0 <= delta < 1 << 27 else [machine.pack_time_stamp(time)]
        pack = machine.pack_event if 8 <= len(record) <= 112 else machine.pack_long_event
        packed.append(pack(record, 0 if packed else delta))
        if made and used + sum(map(len, packed)) > size - machine.header_size:
            yield machine.pack_page(begin & (1 << 64) - 1, made, size=size)
            made, used = [], 0
            packed = [pack(record, 0)]
        if sum(map(len, packed)) > size - machine.header_size:
            continue
        begin = begin if made else time
        made += packed
        used += sum(map(len, packed))
        last = time
    if made:
        yield machine.pack_page(begin & (1 << 64) - 1, made, size=size)


def make_call(tid, number, arguments, result, time, duration):
    """The entry and the exit of a call."""
    words = [word & (1 << 64) - 1 for word in (*arguments, *[0] * 6)][:6]
    enter = pages.make_record(443, tid, struct.pack("q6Q", number, *words))
    return [(time, enter), (time + duration, pages.make_exit(tid, number, result))]


def make_state(tid, family, port, address, old=7, new=2):
    """A TCP connection that begins."""
    wide = address.ljust(16, b"\0")
    return pages.make_record(
        _STATE,
        tid,
        struct.pack("QiiHHHH4s4s16s16s", 1, old, new, 0, port, family, 6, bytes(4), wide[:4], bytes(16), wide),
    )


def make_story(begin=SECOND):
    """The events of a program that does a bit of everything, on two CPUs."""
    one, two, at = [], [], begin
    for number, arguments, result in (
        *((257, (-100, 4096, 0o2000000), 3), (0, (3, 1, 100), 100), (3, (3,), 0), (41, (2, 1, 6), 4), (32, (4,), 5)),
        *((33, (4, 9), 9), (72, (4, 1030, 3), 10), (290, (), 11), (22, (), 0), (43, (4,), 12), (436, (9, 11), 0)),
        *((0, (12,), -512), (7, (1, 1, 5), 0), (2, (4096,), -2), (257, (-100,), -13), (202, (1, 0), -110)),
        *((39, (), -1), (15, (), 0), (100, (), -5), (72, (3, 9), -1), (1000, (), -38), (0x40000000 + 39, (), 5)),
    ):
        one += make_call(5, number, arguments, result, at, 1000)
        at += 10**7
    for place in range(20):
        one += make_call(5, 257, (-100, 4096), -2, at, 500 * place)
        at += 10**8
    one.insert(0, (begin - 50, pages.make_paths(_OPEN, 5, b"/etc/app.conf")))
    one.append((at, pages.make_paths(_RENAME, 5, b"/a", b"/b\xff")))
    one += make_call(5, 82, (1, 2), -18, at + 5, 10)
    one += [(at + 20, pages.make_record(_READ, 5, struct.pack("i4xQQQ", 0, 3, 1, 2)))]
    one += [(at + 21, pages.make_record(_READ_EXIT, 5, struct.pack("i4xq", 0, -5)))]
    at = begin + 10
    two += [(at, pages.make_newtask(5, 7, b"child")), (at + 1, pages.make_newtask(5, 6, b"thread", pages.CLONE_THREAD))]
    two += [(at + 2, pages.make_exit(7, 56, 0)), (at + 3, pages.make_rename(7, b"child", b"sh"))]
    two += [(at + 4, pages.make_enter(7, 59)), (at + 5, pages.make_exec(7, b"/bin/app\x1b[31m"))]
    two += [
        (at + 6, pages.make_exit_of_exec(7)),
        (at + 7, pages.make_exit(7, 59, 0)),
        (at + 8, pages.make_exit(7, 2, -1)),
    ]
    for place, (family, address) in enumerate(
        ((2, b"\x0a\0\0\1"), (10, bytes(15) + b"\1"), (10, bytes(10) + b"\xff\xff\x0a\0\0\1"))
    ):
        start = at + 100 + place * SECOND
        call = make_call(7, 42, (20 + place, 1), -111 if place else -115, start, 10**6)
        two += [call[0], (start + 5, make_state(7, family, 5432, address)), call[1]]
        two += make_call(7, 3, (20 + place,), 0, start + 2 * 10**6, 10)
    two += [(at + 4 * SECOND, pages.make_record(_SIGNAL, 7, struct.pack("iii4xQQ", 11, 0, 1, 0, 0)))]
    two += [(at + 4 * SECOND + 1, pages.make_record(_VICTIM, 6, struct.pack("i", 7)))]
    two += [(at + 4 * SECOND + 2, pages.make_record(_REQUEST, 6, struct.pack("B3xHH", 18, 16, 7) + b"OPENAT\0"))]
    two += [(at + 4 * SECOND + 3, pages.make_record(_RING, 6, struct.pack("I", 2)))]
    two += [(at + 4 * SECOND + 4, pages.make_record(_FUNCTION, 6, struct.pack("QQ", 0xFFFFFFFF81000000, 1)))]
    two += [(at + 4 * SECOND + 5, pages.make_enter(7, 231))]
    two += [(at + 4 * SECOND + 6, pages.make_record(_GONE, 7, struct.pack("16si", b"sh", 7)))]
    two += [(at + 5 * SECOND, pages.make_enter(6, 202)), (at + 6 * SECOND, pages.make_enter(5, 0))]
    return [one, two]


def _make_task(tid, tgid, comm):
    return {"tid": tid, "tgid": tgid, "comm": comm, "container_tid": tid - 4}


def make_tables(begin=SECOND):
    """The tables that a host puts into the trace.dat."""
    looks = {"first": _REAL_NS + begin, "last": _REAL_NS + begin + 10 * SECOND}
    times = {"time_ns": looks, "left_out": {"first": 1, "last": 0}}
    targets = (
        "/var/log/app.log",
        "tcp 10.0.0.1:80->10.0.0.2:5432",
        "pipe:[77]",
        "anon_inode:[eventpoll]",
        "udp6 ::1:53",
    )
    held = [{"pid": 5, "fd": fd + 3, "target": target} for fd, target in enumerate(targets)]
    wait = {"tid": 6, "number": 202, "args": [4096, 0, 2, 0, 0, 1]}
    limits = {
        "processes": [{"pid": 5, "nofile": 16, "nproc": 100, "open": 15}],
        "mounts": [
            {"path": "/data", "filesystem": "ext4", "size": 10**9, "free": 0, "files": 1000, "free_files": 0},
        ],
        "group": {
            "pids.max": 100,
            "pids.current": 99,
            "pids.events.max": 3,
            "memory.max": 10**8,
            "memory.current": 10**8,
        },
    }
    after = {**limits, "group": {**limits["group"], "pids.events.max": 9, "memory.events.oom_kill": 1}}
    return {
        "first_tasks": [_make_task(5, 5, "web"), _make_task(6, 5, "worker")],
        "tasks": [_make_task(5, 5, "web"), _make_task(6, 5, "worker"), _make_task(7, 7, "sh")],
        "syscalls": NAMES,
        "compat_syscalls": {"3": "read", "5": "open", "11": "execve"},
        "descriptors": {"first": held, "last": [*held, {"pid": 5, "fd": 90, "target": "pipe:[78]"}], **times},
        "waits": {"first": [wait], "last": [wait, {**wait, "tid": 5, "number": 0}], **times},
        "resource_limits": {"first": limits, "last": after, **times},
    }


def make_manifest(events):
    """The manifest of a capture of so many EVENTS."""
    return {
        "version": 1,
        "host": "web1",
        "arch": "x86_64",
        "container": {"id": "0" * 64, "name": "api", "image": "api:1", "labels": {"a": "b"}},
        "clock": "mono",
        "clock_offset_ns": _REAL_NS,
        "time": {"changed": {"real_time_ns": _REAL_NS, "offset_ns": _REAL_NS}},
        "specification": {
            "syscalls": {"native": [], "compat": []},
            "events": ["syscalls:sys_enter_read", "syscalls:sys_exit_read"],
            "io_uring": True,
        },
        "earlier_syscalls": [{"native": [257], "compat": [5]}],
        "complete": True,
        "reasons": [],
        "lost": 0,
        "entries": events,
    }


@lru_cache(maxsize=None)
def make_all():
    """Return good samples: of each file version and method of compression, with the tables in the trace or in the manifest."""
    methods = [(6, compression.NONE), (7, compression.NONE), *((7, method) for method in compression.list_available())]
    samples = []
    for place, (version, method) in enumerate(methods):
        cpus = make_story()
        whole = make_manifest(sum(map(len, cpus)))
        if place % 2:
            whole["entries"] += 1
            manifest, parts = {**whole, **make_tables()}, {}
            known = {}
        else:
            manifest, parts = tables.split(whole, 200)
            known = make_tables()
        samples.append(
            Sample(version, method, (512, 4096)[place == 3], cpus=cpus, manifest=manifest, tables=known, parts=parts)
        )
    for number, (order, word) in enumerate(machines.KINDS):
        machine = pages.Machine(order, word)
        cpus = machines.make_random_events(machine, number)
        version, method = methods[number % len(methods)]
        manifest = {**make_manifest(sum(map(len, cpus))), **make_tables()}
        about = {"header_page": machine.header_page, "formats": machines.make_formats(machine), "machine": machine}
        samples.append(Sample(version, method, cpus=cpus, manifest=manifest, **about))
    # Threads that waited all the time make a capture without events.
    still = {**make_manifest(0), **make_tables()}
    samples.append(Sample(7, compression.NONE, 4096, cpus=[[], []], manifest=still))
    return [json_safe(sample) for sample in samples]


def json_safe(sample):
    """Return SAMPLE with documents that share no parts, so that a change of one place changes no other."""
    for name in ("manifest", "tables", "parts"):
        setattr(sample, name, json.loads(json.dumps(getattr(sample, name))))
    return sample
