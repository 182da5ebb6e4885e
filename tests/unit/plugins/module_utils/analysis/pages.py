# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Traces made by hand: the kernel's texts of formats, and records, events and pages as its ring buffer writes them.

A Machine packs them as machines of either byte order and word size do. The functions of this module are those of the machine of most tests.

Source: the kernel's ring_buffer.c and the files events/header_event and events/header_page.
"""

from __future__ import annotations

import struct
import sys

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import compression, trace_dat

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
# The formats of a kernel with words of four bytes, where they differ.
_NARROW = {
    SYS_ENTER: (("offset:8;\tsize:8", "offset:8;\tsize:4"), ("offset:16;\tsize:48", "offset:12;\tsize:24")),
    SYS_EXIT: (("offset:8;\tsize:8", "offset:8;\tsize:4"), ("offset:16;\tsize:8", "offset:12;\tsize:4")),
    TASK_NEWTASK: (
        ("u64 clone_flags;\toffset:32;\tsize:8", "unsigned long clone_flags;\toffset:28;\tsize:4"),
        ("offset:40", "offset:32"),
    ),
    SYS_EXIT_EXECVE: (("offset:16;\tsize:8", "offset:12;\tsize:4"),),
}
CLONE_THREAD = 0x10000
# As small as a trace.dat may have them, so that tests see many.
PAGE_SIZE = 512


class Machine:
    """A machine whose bytes are in ORDER, little or big, and whose kernel has words of WORD bytes and pages of PAGE_SIZE bytes."""

    def __init__(self, order: str = sys.byteorder, word: int = 8, page_size: int = PAGE_SIZE) -> None:
        self.order, self.word, self.page_size = order, word, page_size
        self.header_size = 8 + word
        self.header_page = (
            "\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n"
            f"\tfield: local_t commit;\toffset:8;\tsize:{word};\tsigned:1;\n"
            "\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;\n"
            f"\tfield: char data;\toffset:{self.header_size};\tsize:{page_size - self.header_size};\tsigned:1;\n"
        ).encode()

    def pack(self, code, *values):
        """VALUES as this machine has them in memory, without gaps; L and l mean words."""
        code = code.replace("L", "Q" if self.word == 8 else "I").replace("l", "q" if self.word == 8 else "i")
        return struct.pack(("<" if self.order == "little" else ">") + code, *values)

    def unpack(self, code, data, place=0):
        return struct.unpack_from(("<" if self.order == "little" else ">") + code, data, place)

    def describe(self, text):
        """TEXT, one of the formats above, as this machine's kernel has it."""
        for wide, narrow in _NARROW.get(text, ()) if self.word == 4 else ():
            assert wide in text
            text = text.replace(wide, narrow)
        return text

    def make_path_format(self, name, number, *fields, kind="__data_loc"):
        """The format of an event with texts, each of FIELDS one, after a word of something else."""
        first = 8 + self.word
        lines = [
            f"\tfield:{kind} char[] {field};\toffset:{first + 4 * index};\tsize:4;\tsigned:1;\n"
            for index, field in enumerate(fields)
        ]
        pointer = f"\tfield:unsigned long __probe_ip;\toffset:8;\tsize:{self.word};\tsigned:0;\n"
        return (f"name: {name}\nID: {number}\n" + _COMMON + pointer + "".join(lines) + 'print fmt: "(%lx)"\n').encode()

    def make_record(self, number, tid, payload=b""):
        return self.pack("HBBi", number, 0, 0, tid) + payload

    def make_enter(self, tid, syscall, arguments=None):
        words = b"\xaa" * 6 * self.word if arguments is None else self.pack("6L", *arguments)
        return self.make_record(443, tid, self.pack("l", syscall) + words)

    def make_exit(self, tid, syscall, result):
        return self.make_record(442, tid, self.pack("ll", syscall, result))

    def make_newtask(self, parent, tid, name, flags=0):
        gap = "4x" if self.word == 8 else ""
        return self.make_record(205, parent, self.pack(f"i16s{gap}Lh6x", tid, name, flags, 0))

    def make_rename(self, tid, old, new):
        return self.make_record(204, tid, self.pack("i16s16sh2x", tid, old, new, 0))

    def make_rename_without_pid(self, tid, old, new):
        return self.make_record(204, tid, self.pack("16s16sh2x", old, new, 0))

    def make_exec(self, tid, path, old=None):
        place = self.place_text(20, len(path) + 1)
        return self.make_record(365, tid, place + self.pack("ii", tid, old or tid) + path + b"\0")

    def place_text(self, offset, size):
        """The word of a field that says where a text is."""
        return self.pack("I", size << 16 | offset)

    def make_paths(self, number, tid, *texts, relative=False):
        """An event of a format of make_path_format; RELATIVE as its kind is __rel_loc."""
        first = 8 + self.word
        place = first + 4 * len(texts)
        words = b""
        for index, text in enumerate(texts):
            words += self.place_text(place - (first + 4 * index + 4 if relative else 0), len(text) + 1)
            place += len(text) + 1
        return self.make_record(number, tid, bytes(self.word) + words + b"".join(text + b"\0" for text in texts))

    def make_exit_of_exec(self, tid):
        return self.make_record(877, tid, self.pack("i4xq" if self.word == 8 else "ii", 59, 0))

    def _header(self, kind, delta):
        return self.pack("I", kind | delta << 5 if self.order == "little" else kind << 27 | delta)

    def pack_event(self, data, delta=0):
        """An event whose length stands in its header, in words; at most 28 words fit there."""
        words = -(-len(data) // 4)
        assert 1 <= words <= 28
        return self._header(words, delta) + data.ljust(words * 4, b"\0")

    def pack_long_event(self, data, delta=0):
        """An event whose length stands in a word of its own, which counts itself."""
        return self._header(0, delta) + self.pack("I", len(data) + 4) + data.ljust(-(-len(data) // 4) * 4, b"\0")

    def pack_padding(self, length, delta):
        """LENGTH bytes in all: the rest of a page where DELTA is 0, else an event that was discarded."""
        return self._header(29, delta) + self.pack("I", length - 4) + b"\xdd" * (length - 8)

    def pack_time_extend(self, delta):
        return self._header(30, delta & ((1 << 27) - 1)) + self.pack("I", delta >> 27)

    def pack_time_stamp(self, time):
        return self._header(31, time & ((1 << 27) - 1)) + self.pack("I", time >> 27 & 0xFFFFFFFF)

    def pack_page(self, time, events, commit=None, size=None):
        """A page of SIZE bytes that begins at TIME; COMMIT stands in for the number of bytes that the events take."""
        body = b"".join(events)
        size = size or self.page_size
        room = size - self.header_size
        assert len(body) <= room
        return self.pack("QL", time, len(body) if commit is None else commit) + body.ljust(room, b"\0")

    def make_formats(self, rename_format=TASK_RENAME):
        """The formats of the kernel's own events by system."""
        formats = {
            "raw_syscalls": [SYS_ENTER, SYS_EXIT],
            "task": [rename_format, TASK_NEWTASK],
            "sched": [SCHED_PROCESS_EXEC],
            "syscalls": [SYS_EXIT_EXECVE],
        }
        return {system: [self.describe(text).encode() for text in texts] for system, texts in formats.items()}

    def pack_trace(self, cpus, rename_format=TASK_RENAME, cmdlines=b"", more_formats=None, **about):
        """A trace.dat of the pages of CPUS, a list of pages for each; MORE_FORMATS has formats by system, ABOUT more of the head."""
        about = {"header_page": b"" if self.word == 8 else self.header_page, **about}
        head = trace_dat.Head(
            page_size=self.page_size,
            header_event=b"",
            ftrace_formats=[],
            event_formats={**self.make_formats(rename_format), **(more_formats or {})},
            cmdlines=cmdlines,
            order=self.order,
            word_size=self.word,
            **about,
        )
        contents = [b"".join(pages) for pages in cpus]
        if head.compression != compression.NONE:
            compress = compression.make_compressor(head.compression)
            contents = [
                trace_dat.pack_count(1, self.order) + trace_dat.pack_chunk(compress(plain), len(plain), self.order)
                if plain
                else b""
                for plain in contents
            ]
        return trace_dat.pack_head(head, [len(content) for content in contents]) + b"".join(contents)

    def decode_slowly(self, page):
        """Return the events of one PAGE, decoded with nothing but struct; every read is checked against the page's own end."""
        time, commit = self.unpack("QQ" if self.word == 8 else "QI", page)
        end = min(self.header_size + (commit & 0xFFFFF), len(page))
        place = self.header_size
        events = []
        while place + 4 <= end:
            header = self.unpack("I", page, place)[0]
            kind, delta = (header & 31, header >> 5) if self.order == "little" else (header >> 27, header & 0x7FFFFFF)
            word = self.unpack("I", page, place + 4)[0] if place + 8 <= end else 0
            if kind == 29:
                if delta == 0 or place + 4 + word > end:
                    break
                time += delta
                place += (4 + word + 3) & ~3
                continue
            if kind in (30, 31):
                if place + 8 > end:
                    break
                value = (word << 27) + delta
                time = time + value if kind == 30 else value | (time & (31 << 59))
                place += 8
                continue
            start, length = (place + 8, word - 4) if kind == 0 else (place + 4, kind * 4)
            if length < 8 or start + length > end:
                break
            time += delta
            number, _flags, _count, tid = self.unpack("HBBi", page, start)
            stamp = time & ((1 << 64) - 1)
            stamp = stamp - (1 << 64) if stamp >> 63 else stamp
            events.append((min(max(stamp, 0), LAST_TIME), number, tid, page[start : start + length]))
            place = (start + length + 3) & ~3
        return events


LAST_TIME = (1 << 62) - 1
"""No time is later: on damaged pages clocks are anywhere."""
HERE = Machine()
make_path_format, make_paths, make_record = HERE.make_path_format, HERE.make_paths, HERE.make_record
make_enter, make_exit, make_newtask = HERE.make_enter, HERE.make_exit, HERE.make_newtask
make_rename, make_rename_without_pid = HERE.make_rename, HERE.make_rename_without_pid
make_exec, make_exit_of_exec = HERE.make_exec, HERE.make_exit_of_exec
pack_event, pack_long_event, pack_padding = HERE.pack_event, HERE.pack_long_event, HERE.pack_padding
pack_time_extend, pack_time_stamp, pack_page = HERE.pack_time_extend, HERE.pack_time_stamp, HERE.pack_page
pack_trace, make_formats, decode_slowly = HERE.pack_trace, HERE.make_formats, HERE.decode_slowly
