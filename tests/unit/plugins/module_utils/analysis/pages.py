# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Traces made by hand: the kernel's texts of formats, and records, events and pages as its ring buffer writes them.

Source: the kernel's ring_buffer.c and the files events/header_event and events/header_page.
"""

from __future__ import annotations

import struct

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import trace_dat

_COMMON = """\
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

"""
SYS_ENTER = (
    "name: sys_enter\nID: 443\n"
    + _COMMON
    + "\tfield:long id;\toffset:8;\tsize:8;\tsigned:1;\n"
    + "\tfield:unsigned long args[6];\toffset:16;\tsize:48;\tsigned:0;\n\n"
    + 'print fmt: "NR %ld (%lx, %lx, %lx, %lx, %lx, %lx)", REC->id, REC->args[0], REC->args[1], REC->args[2]\n'
)
SYS_EXIT = (
    "name: sys_exit\nID: 442\n"
    + _COMMON
    + "\tfield:long id;\toffset:8;\tsize:8;\tsigned:1;\n"
    + "\tfield:long ret;\toffset:16;\tsize:8;\tsigned:1;\n\n"
    + 'print fmt: "NR %ld = %ld", REC->id, REC->ret\n'
)
TASK_RENAME = (
    "name: task_rename\nID: 204\n"
    + _COMMON
    + "\tfield:pid_t pid;\toffset:8;\tsize:4;\tsigned:1;\n"
    + "\tfield:char oldcomm[16];\toffset:12;\tsize:16;\tsigned:0;\n"
    + "\tfield:char newcomm[16];\toffset:28;\tsize:16;\tsigned:0;\n"
    + "\tfield:short oom_score_adj;\toffset:44;\tsize:2;\tsigned:1;\n\n"
    + 'print fmt: "pid=%d oldcomm=%s newcomm=%s oom_score_adj=%hd", REC->pid, REC->oldcomm, REC->newcomm\n'
)
# Newer kernels have dropped the field pid.
TASK_RENAME_WITHOUT_PID = (
    "name: task_rename\nID: 204\n"
    + _COMMON
    + "\tfield:char oldcomm[16];\toffset:8;\tsize:16;\tsigned:0;\n"
    + "\tfield:char newcomm[16];\toffset:24;\tsize:16;\tsigned:0;\n"
    + "\tfield:short oom_score_adj;\toffset:40;\tsize:2;\tsigned:1;\n\n"
    + 'print fmt: "oldcomm=%s newcomm=%s oom_score_adj=%hd", REC->oldcomm, REC->newcomm, REC->oom_score_adj\n'
)
TASK_NEWTASK = (
    "name: task_newtask\nID: 205\n"
    + _COMMON
    + "\tfield:pid_t pid;\toffset:8;\tsize:4;\tsigned:1;\n"
    + "\tfield:char comm[16];\toffset:12;\tsize:16;\tsigned:0;\n"
    + "\tfield:u64 clone_flags;\toffset:32;\tsize:8;\tsigned:0;\n"
    + "\tfield:short oom_score_adj;\toffset:40;\tsize:2;\tsigned:1;\n\n"
    + 'print fmt: "pid=%d comm=%s clone_flags=%llx oom_score_adj=%hd", REC->pid, REC->comm, REC->clone_flags\n'
)
SCHED_PROCESS_EXEC = (
    "name: sched_process_exec\nID: 365\n"
    + _COMMON
    + "\tfield:__data_loc char[] filename;\toffset:8;\tsize:4;\tsigned:0;\n"
    + "\tfield:pid_t pid;\toffset:12;\tsize:4;\tsigned:1;\n"
    + "\tfield:pid_t old_pid;\toffset:16;\tsize:4;\tsigned:1;\n\n"
    + 'print fmt: "filename=%s pid=%d old_pid=%d", __get_str(filename), REC->pid, REC->old_pid\n'
)
SYS_EXIT_EXECVE = (
    "name: sys_exit_execve\nID: 877\n"
    + _COMMON
    + "\tfield:int __syscall_nr;\toffset:8;\tsize:4;\tsigned:1;\n"
    + "\tfield:long ret;\toffset:16;\tsize:8;\tsigned:1;\n\n"
    + 'print fmt: "0x%lx", REC->ret\n'
)


def make_path_format(name, number, *fields):
    """The format of an event with texts, each of FIELDS one, after eight bytes of something else."""
    lines = [
        f"\tfield:__data_loc char[] {field};\toffset:{16 + 4 * index};\tsize:4;\tsigned:1;\n"
        for index, field in enumerate(fields)
    ]
    pointer = "\tfield:unsigned long __probe_ip;\toffset:8;\tsize:8;\tsigned:0;\n"
    return (f"name: {name}\nID: {number}\n" + _COMMON + pointer + "".join(lines) + 'print fmt: "(%lx)"\n').encode()


CLONE_THREAD = 0x10000
# As small as a trace.dat may have them, so that tests see many.
PAGE_SIZE = 512


def make_record(number, tid, payload=b""):
    return struct.pack("HBBi", number, 0, 0, tid) + payload


def make_enter(tid, syscall):
    return make_record(443, tid, struct.pack("q", syscall) + b"\xaa" * 48)


def make_exit(tid, syscall, result):
    return make_record(442, tid, struct.pack("qq", syscall, result))


def make_newtask(parent, tid, name, flags=0):
    return make_record(205, parent, struct.pack("i16s4xQh6x", tid, name, flags, 0))


def make_rename(tid, old, new):
    return make_record(204, tid, struct.pack("i16s16sh2x", tid, old, new, 0))


def make_rename_without_pid(tid, old, new):
    return make_record(204, tid, struct.pack("16s16sh2x", old, new, 0))


def make_exec(tid, path):
    return make_record(365, tid, struct.pack("HHii", 20, len(path) + 1, tid, tid) + path + b"\0")


def make_paths(number, tid, *texts):
    """An event of a format of make_path_format."""
    place = 16 + 4 * len(texts)
    words = b""
    for text in texts:
        words += struct.pack("HH", place, len(text) + 1)
        place += len(text) + 1
    return make_record(number, tid, bytes(8) + words + b"".join(text + b"\0" for text in texts))


def make_exit_of_exec(tid):
    return make_record(877, tid, struct.pack("i4xq", 59, 0))


def _header(kind, delta):
    return struct.pack("I", kind | delta << 5)


def pack_event(data, delta=0):
    """An event whose length stands in its header, in words; at most 28 words fit there."""
    words = -(-len(data) // 4)
    assert 1 <= words <= 28
    return _header(words, delta) + data.ljust(words * 4, b"\0")


def pack_long_event(data, delta=0):
    """An event whose length stands in a word of its own, which counts itself."""
    return _header(0, delta) + struct.pack("I", len(data) + 4) + data.ljust(-(-len(data) // 4) * 4, b"\0")


def pack_padding(length, delta):
    """LENGTH bytes in all: the rest of a page where DELTA is 0, else an event that was discarded."""
    return _header(29, delta) + struct.pack("I", length - 4) + b"\xdd" * (length - 8)


def pack_time_extend(delta):
    return _header(30, delta & ((1 << 27) - 1)) + struct.pack("I", delta >> 27)


def pack_time_stamp(time):
    return _header(31, time & ((1 << 27) - 1)) + struct.pack("I", time >> 27 & 0xFFFFFFFF)


def pack_page(time, events, commit=None, size=PAGE_SIZE):
    """A page that begins at TIME; COMMIT stands in for the number of bytes that the events take."""
    body = b"".join(events)
    assert len(body) <= size - 16
    return struct.pack("QQ", time, len(body) if commit is None else commit) + body.ljust(size - 16, b"\0")


def pack_trace(cpus, rename_format=TASK_RENAME, cmdlines=b"", more_formats=None):
    """A trace.dat of the pages of CPUS, a list of pages for each; MORE_FORMATS has formats by system."""
    head = trace_dat.Head(
        page_size=PAGE_SIZE,
        header_page=b"",
        header_event=b"",
        ftrace_formats=[],
        event_formats={
            "raw_syscalls": [SYS_ENTER.encode(), SYS_EXIT.encode()],
            "task": [rename_format.encode(), TASK_NEWTASK.encode()],
            "sched": [SCHED_PROCESS_EXEC.encode()],
            "syscalls": [SYS_EXIT_EXECVE.encode()],
            **(more_formats or {}),
        },
        cmdlines=cmdlines,
    )
    contents = [b"".join(pages) for pages in cpus]
    return trace_dat.pack_head(head, [len(content) for content in contents]) + b"".join(contents)
