# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of others: those that are read, those that are refused by name, damaged ones, and a folder that has them all."""

from __future__ import annotations

import io
import json
import os
import random
import re
import resource
import struct
import sys

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.calls import gen_calls
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.text import write_text
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import compression, trace_dat
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import machines, pages, reports

CLOCKS = b"local global counter uptime perf [%s] mono_raw boot tai x86-tsc \n\0"
HEADER_PAGE = (
    b"\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n"
    b"\tfield: local_t commit;\toffset:8;\tsize:8;\tsigned:1;\n"
    b"\tfield: char data;\toffset:16;\tsize:4080;\tsigned:1;\n"
)
TSC2NSEC = 14


def make_head(version=7, method=compression.NONE, clock=b"mono", options=(), header_page=HEADER_PAGE):
    return trace_dat.Head(
        page_size=pages.PAGE_SIZE,
        header_page=header_page,
        header_event=b"",
        ftrace_formats=[],
        event_formats={"raw_syscalls": [pages.SYS_ENTER.encode(), pages.SYS_EXIT.encode()]},
        cmdlines=b"5 web\n",
        options=[(trace_dat.OPTION_TRACECLOCK, CLOCKS % clock), *options],
        version=version,
        compression=method,
    )


def make_page(time, tid=5, size=pages.PAGE_SIZE):
    """A call of openat that fails after 2000 units of time."""
    events = [
        pages.pack_event(pages.make_enter(tid, 257)),
        pages.pack_event(pages.make_exit(tid, 257, -2), 2000),
    ]
    return pages.pack_page(time, events, size=size)


def pack(head, cpus):
    """A trace.dat of HEAD; CPUS are the pages of each, which make one chunk where they are compressed."""
    compress = compression.make_compressor(head.compression)
    contents = []
    for made in cpus:
        plain = b"".join(made)
        if head.compression != compression.NONE and plain:
            contents.append(trace_dat.pack_count(1) + trace_dat.pack_chunk(compress(plain), len(plain)))
        else:
            contents.append(plain)
    return trace_dat.pack_head(head, list(map(len, contents))) + b"".join(contents)


GOOD = {
    "6": pack(make_head(6), [[make_page(1000)], [make_page(9000), make_page(20000)]]),
    "7": pack(make_head(7), [[make_page(1000)], [make_page(9000), make_page(20000)]]),
    **{
        method: pack(make_head(7, method), [[make_page(1000)], [make_page(9000), make_page(20000)]])
        for method in compression.list_available()
    },
}


def report_one(tmp_path, data, name="x.dat"):
    """Return the summary of a folder that holds one file, NAME, of DATA."""
    (tmp_path / name).write_bytes(data)
    return reports.summarize(str(tmp_path))


@pytest.mark.parametrize("kind", GOOD)
def test_good_ones(tmp_path, kind):
    summary = report_one(tmp_path, GOOD[kind])
    (one,) = summary["captures"]
    assert (one["events"], one["errors"], one["buffer"], summary["skipped"]) == (6, {"ENOENT": 3}, None, [])


def pack_buffers_6(cpus_of_buffers):
    """A trace.dat of version 6 as trace-cmd writes it: a buffer without a name that is empty, and BUFFERS (name → pages) behind it."""
    names = list(cpus_of_buffers)
    data = pack(
        make_head(6, options=[(3, struct.pack("Q", 0) + name.encode() + b"\0") for name in [names[0], *names]]),
        [[], []],
    )
    for number, name in enumerate(names):
        # The option that comes first, with the first one's name, is left without a place, as trace-cmd split does.
        option = [place for place in range(len(data)) if data.startswith(bytes(8) + name.encode() + b"\0", place)][-1]
        data = data[:option] + struct.pack("Q", len(data)) + data[option + 8 :]
        table, clock = b"flyrecord\0", b"[boot]"
        start = len(data) + 512
        contents = [b"".join(made) for made in cpus_of_buffers[name]]
        offset = start
        for content in contents:
            table += struct.pack("QQ", offset, len(content))
            offset += len(content)
        data = (data + table + struct.pack("Q", len(clock)) + clock).ljust(start, b"\0") + b"".join(contents)
        assert number < 2
    return data


def test_every_buffer_is_reported(tmp_path):
    data = pack_buffers_6(
        {"one": [[make_page(1000)], []], "two": [[make_page(1000)], [make_page(9000), make_page(20000)]]}
    )
    summary = report_one(tmp_path, data)
    assert [(one["capture"], one["buffer"], one["events"]) for one in summary["captures"]] == [
        ("x.dat", "one", 2),
        ("x.dat", "two", 6),
    ]
    assert "x.dat, buffer two on an unknown host: 6 events" in reports.format_summary(summary)


@pytest.mark.parametrize(
    ("clock", "options", "duration_ns"),
    [
        (b"local", (), 2000),
        (b"boot", (), 2000),
        (b"perf", (), 2000),
        (b"uptime", (), 2000 * 10**7),
        (b"x86-tsc", [(TSC2NSEC, struct.pack("IIQ", 3 << 20, 21, 0))], 3000),
        (b"tsc2nsec", [(TSC2NSEC, struct.pack("IIQ", 1 << 31, 32, 0))], 1000),
    ],
)
@pytest.mark.parametrize("version", [6, 7])
def test_times_are_in_nanoseconds(tmp_path, clock, options, duration_ns, version):
    head = make_head(version, clock=clock, options=options)
    (one,) = report_one(tmp_path, pack(head, [[make_page(5 << 30)]]))["captures"]
    assert [row["total_ns"] for row in one["processes"]] == [duration_ns]
    assert one["duration_s"] == pytest.approx(duration_ns / 1e9)


def swap(data, place, value):
    return data[:place] + value + data[place + len(value) :]


NARROW = HEADER_PAGE.replace(b"size:8;\tsigned:1", b"size:2;\tsigned:1")
STATISTICS = b"CPU: 0\nentries: 3\noldest event ts:%s\nnow ts: %s\nread events: 0\n\0"
OTHER = (trace_dat.OPTION_CPUSTAT, b"\nBuffer: other\n\n\0")
IN_SECONDS = (trace_dat.OPTION_CPUSTAT, STATISTICS % (b"   189.491412", b"   190.396822"))
IN_TICKS = (trace_dat.OPTION_CPUSTAT, STATISTICS % (b" 3", b"2731"))


@pytest.mark.parametrize("options", [[IN_SECONDS], [IN_SECONDS, OTHER, IN_TICKS], [OTHER, IN_TICKS]])
def test_statistics_of_the_kernel_that_agree_or_are_of_others(tmp_path, options):
    (one,) = report_one(tmp_path, pack(make_head(options=options), [[make_page(1000)]]))["captures"]
    assert one["events"] == 2


REFUSED = {
    "clock is not 'mono', as the file says": pack(
        make_head(options=[IN_TICKS, OTHER, IN_SECONDS]), [[make_page(1000)]]
    ),
    "a section of it lies behind": swap(GOOD["7"], 12, b"\1" if sys.byteorder == "little" else b"\0"),
    "no byte order": swap(GOOD["7"], 12, b"\2"),
    "kernel with words of 2 bytes": pack(make_head(header_page=NARROW), [[make_page(1000)]]),
    "kernel with words of 5 bytes": swap(pack(make_head(header_page=b""), [[make_page(1000)]]), 13, b"\5"),
    "clock 'counter' does not": pack(make_head(clock=b"counter"), [[make_page(1000)]]),
    "clock 'x86-tsc' does not": pack(make_head(6, clock=b"x86-tsc"), [[make_page(1000)]]),
    "latency tracer's text": GOOD["6"].replace(b"flyrecord\0", b"latency  \0"),
    "version 6 or 7": swap(GOOD["7"], 10, b"8"),
    "compressed by 'lz4'": GOOD["7"].replace(b"none\0\0", b"lz4\0\0\0"),
    "no trace.dat": b"RIFF" * 100,
    "is empty": b"",
    "cut short": GOOD["7"][:-1],
    "behind the end": swap(GOOD["7"], GOOD["7"].index(b"none\0\0") + 6, b"\xff" * 8),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_not_read_is_named_with_reason_and_next_step(tmp_path, reason):
    summary = report_one(tmp_path, REFUSED[reason])
    (skipped,) = summary["skipped"]
    assert (summary["captures"], skipped["path"]) == ([], "x.dat")
    assert reason in skipped["reason"]
    assert skipped["next_step"]
    with pytest.raises(FleetError, match=f"x.dat: .*{reason}.*; {skipped['next_step']}"):
        reports.summarize(str(tmp_path / "x.dat"))


def test_the_word_of_a_32_bit_trace_cmd_on_a_64_bit_kernel_is_not_the_kernels(tmp_path):
    (one,) = report_one(tmp_path, swap(GOOD["7"], 13, b"\4"))["captures"]
    assert one["events"] == 6


KINDS = [(6, compression.NONE), (7, compression.NONE), *((7, method) for method in compression.list_available())]
TABLES = {"syscalls": {"56": "clone", "59": "execve", "257": "openat", "3": "close"}, "complete": True}


@pytest.mark.parametrize("machine", machines.MACHINES, ids=machines.name_machine)
@pytest.mark.parametrize(("version", "method"), KINDS)
def test_machines_of_all_kinds(tmp_path, machine, version, method):
    (tmp_path / "x.json").write_text(json.dumps(TABLES))
    (one,) = report_one(tmp_path, machines.pack_story(machine, version, method))["captures"]
    assert one["events"] == 9
    rows = [
        (
            row["name"],
            row["pids"],
            row["syscall"],
            row["errors"],
            row["total_ns"],
            [use["path"] for use in row["paths"]],
        )
        for row in one["processes"]
    ]
    assert sorted(rows) == [
        ("web", [5], "openat", {"ENOENT": 1}, 2000, ["/etc/passwd"]),
        ("worker", [6], "close", {"EBADF": 1}, 1 << 28, []),
        ("worker", [6], "execve", {}, 0, []),
    ]


@pytest.mark.parametrize("machine", machines.MACHINES, ids=machines.name_machine)
def test_calls_of_machines_of_all_kinds_have_their_arguments(machine):
    found = list(gen_calls(Trace(io.BytesIO(machines.pack_story(machine))), TABLES))
    word = (1 << 32) - 100 if machine.word == 4 else -100
    assert [(call.call, call.arguments, call.result, call.path) for call in found] == [
        ("openat", (word, 4096, 0, 0, 0, 0), -2, "/etc/passwd"),
        ("execve", (), 0, None),
        ("close", (9, 0, 0, 0, 0, 0), -9, None),
    ]


@pytest.mark.parametrize("machine", machines.MACHINES, ids=machines.name_machine)
def test_the_text_of_machines_of_all_kinds_is_the_same(tmp_path, machine):
    texts = []
    for number, one in enumerate((machine, pages.HERE)):
        path = tmp_path / f"{number}.dat"
        path.write_bytes(machines.pack_story(one))
        about = {**TABLES, "container": {"name": "api"}, "inventory_hostname": "web1", "clock": "mono"}
        write_text(str(path), about, str(tmp_path / "text"))
        lines = (tmp_path / "text").read_text().splitlines()
        texts.append([re.sub(r"args=\(.*\)|clone_flags=\S+", "", line) for line in lines])
    assert texts[0] == texts[1]
    assert len(texts[0]) == 11


def fill(folder):
    """Good captures in FOLDER, and bad ones: their names, and a word of why."""
    nested = folder / "web1" / "api"
    nested.mkdir(parents=True)
    for place in (nested / "1.dat", nested / "2.dat.1", folder / "damaged_manifest.dat", folder / "unrelated.dat"):
        place.write_bytes(GOOD["7"])
    (folder / "package.json").write_text('{"name": "of something else"}')
    (folder / "notes.txt").write_text("not looked at")
    (folder / "damaged_manifest.json").write_bytes(b'{"container": "\xff')
    (folder / "unrelated.json").write_text('{"tasks": 5}')
    (folder / "cut.dat").write_bytes(GOOD["7"][:-100])
    (folder / "empty.dat").write_bytes(b"")
    (nested / "dangling.dat").symlink_to("nonesuch")
    (folder / "loop.dat").symlink_to("loop.dat")
    (folder / "foreign.dat").write_bytes(b"SQLite format 3\0" * 64)
    (folder / "device.dat").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.dat")
    return {
        "cut.dat": "cut short",
        "damaged_manifest.json": "damaged",
        "device.dat": "a device",
        "empty.dat": "empty",
        "foreign.dat": "no trace.dat",
        "loop.dat": "Too many levels of symbolic links",
        "pipe.dat": "a pipe",
        "unrelated.json": "no manifest",
        "web1/api/dangling.dat": "a link to nonesuch",
    }


def test_bad_files_are_named_once_and_the_others_are_reported(tmp_path):
    bad = fill(tmp_path)
    summary = reports.summarize(str(tmp_path))
    good = ["damaged_manifest.dat", "unrelated.dat", "web1/api/1.dat", "web1/api/2.dat.1"]
    assert [(one["capture"], one["events"]) for one in summary["captures"]] == [(name, 6) for name in good]
    found = {one["path"]: one["reason"] for one in summary["skipped"]}
    assert len(summary["skipped"]) == len(found)
    assert {path: reason for path, reason in found.items() if bad.get(path, "?") not in reason} == {}
    assert found.keys() == bad.keys()
    assert all(one["next_step"] for one in summary["skipped"])
    text = reports.format_summary(summary)
    for path in bad:
        assert text.count(f"Skipped: {path}: ") == 1
    json.dumps(summary)


def is_text(document):
    """Return True if DOCUMENT, as its readers get it, has no lone surrogates."""
    text = json.dumps(document, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode("utf-8") == text


def test_texts_of_a_manifest_that_are_no_text(tmp_path):
    (tmp_path / os.fsdecode(b"\xff.dat")).write_bytes(GOOD["7"])
    (tmp_path / os.fsdecode(b"\xff.json")).write_text(
        json.dumps(
            {
                "host": "\udc80",
                "container": {"id": "0", "name": "\ud800"},
                "tasks": [{"tid": 5, "tgid": 5, "comm": "\udfff", "container_tid": 1}],
            }
        )
    )
    (one,) = reports.summarize(str(tmp_path))["captures"]
    assert (one["capture"], one["host"], one["container"]) == (r"\udcff.dat", r"\udc80", r"\ud800")
    assert is_text(one)
    (one,) = reports.summarize(str(tmp_path / os.fsdecode(b"\xff.dat")))["captures"]
    assert one["capture"] == r"\udcff.dat"


def test_a_name_that_is_no_text(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff\n\x1b[2J.dat"
    with open(path, "wb") as file:
        file.write(b"foreign")
    summary = reports.summarize(str(tmp_path))
    text = reports.format_summary(summary)
    assert r"Skipped: \udcff??[2J.dat: the file is no trace.dat" in text
    reports.write(summary, str(tmp_path / "report"), ["json", "text"])
    assert json.loads((tmp_path / "report" / "summary.json").read_text()) == summary
    assert is_text(summary)
    assert (tmp_path / "report" / "summary.txt").read_text() == text


def test_what_a_fetch_is_about_to_make_is_not_looked_at(tmp_path):
    for folder in (".crashcart-x1y2", "web1/.crashcart-parts"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "trace.dat").write_bytes(GOOD["7"][:-5])
    assert reports.summarize(str(tmp_path)) == {"captures": [], "skipped": []}


DEEP = b"[" * 100000 + b"]" * 100000
MANIFESTS = {
    "deep": DEEP,
    "deep in a manifest": b'{"container": {"name": "api"}, "labels": ' + DEEP + b"}",
    "not UTF-8": b'{"host": "\xff\xfe"}',
    "cut": b'{"container": {"name": "a',
    "a thread of many digits": b'{"tasks": [{"tid": 1' + b"0" * 30 + b', "tgid": 1, "container_tid": 1, "comm": "x"}]}',
    "many digits": b'{"lost": ' + b"9" * 5000 + b"}",
    "no JSON": b"\0" * 4096,
    "too long": b" ",
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_damaged_manifest_is_named_and_its_trace_is_reported(tmp_path, kind):
    # Made here: a constant of this size would slow the forks of all other tests down.
    (tmp_path / "x.json").write_bytes(MANIFESTS[kind] * ((64 << 20) + 1 if kind == "too long" else 1))
    summary = report_one(tmp_path, GOOD["7"])
    assert [one["path"] for one in summary["skipped"]] == ["x.json"]
    assert [(one["events"], one["complete"]) for one in summary["captures"]] == [(6, None)]
    with pytest.raises(FleetError, match=r"x\.json: .*remove it"):
        reports.summarize(str(tmp_path / "x.dat"))


def gen_damaged(data, source, count):
    """DATA with a few bytes changed, cut, or with a part of it twice, COUNT times."""
    for number in range(count):
        damaged = bytearray(data)
        if number % 3 == 0:
            for _place in range(source.randrange(1, 9)):
                damaged[source.randrange(len(damaged))] = source.randrange(256)
        elif number % 3 == 1:
            del damaged[source.randrange(len(damaged)) :]
        else:
            start, end = sorted(source.randrange(len(damaged)) for _end in range(2))
            damaged[start:end] = damaged[source.randrange(len(damaged)) :][: end - start]
        yield bytes(damaged)


@pytest.mark.sweep
@pytest.mark.parametrize("kind", GOOD)
def test_a_damaged_trace_is_reported_or_named_whatever_the_damage(tmp_path, kind):
    source = random.Random(18)
    skipped = 0
    for damaged in gen_damaged(GOOD[kind], source, 400):
        summary = report_one(tmp_path, damaged)
        assert [one["path"] for one in summary["skipped"]] in ([], ["x.dat"])
        assert summary["captures"] or summary["skipped"]
        # That is said of files that the system does not let us read.
        assert not any(
            "cannot be read: " in one["reason"] for one in summary["skipped"] if "piece" not in one["reason"]
        )
        reports.format_summary(summary)
        skipped += len(summary["skipped"])
    assert skipped > 200


@pytest.mark.sweep
@pytest.mark.parametrize("kind", GOOD)
def test_a_trace_that_is_cut_anywhere_is_named(tmp_path, kind):
    data = GOOD[kind]
    source = random.Random(19)
    for length in sorted(source.sample(range(len(data)), 100)):
        (skipped,) = report_one(tmp_path, data[:length])["skipped"]
        assert skipped["path"] == "x.dat"


@pytest.mark.sweep
def test_a_damaged_manifest_of_ours_is_used_or_named_whatever_the_damage(tmp_path):
    manifest = {
        "container": {"id": "0" * 64, "name": "api"},
        "clock_offset_ns": 10**18,
        "complete": True,
        "lost": 0,
        "tasks": [{"tid": 5, "tgid": 5, "comm": "web", "container_tid": 1}],
        "syscalls": {"257": "openat"},
        "specification": {"syscalls": {"native": [257], "compat": [295]}},
    }
    source = random.Random(20)
    for damaged in gen_damaged(json.dumps(manifest).encode(), source, 400):
        (tmp_path / "x.json").write_bytes(damaged)
        summary = report_one(tmp_path, GOOD["7"])
        # One that is sound and says something else, such as a clock that is off by centuries, may be the trace's undoing.
        assert len(summary["skipped"]) <= 1
        assert {one["path"] for one in summary["skipped"]} <= {"x.json", "x.dat"}
        reports.format_summary(summary)


def make_bomb(chunks=24):
    """A trace.dat of some kilobytes that would become CHUNKS times 16 MiB of pages."""
    method = compression.list_available()[0]
    chunk = make_page(1000) * ((16 << 20) // pages.PAGE_SIZE)
    packed = compression.make_compressor(method)(chunk)
    content = trace_dat.pack_count(chunks) + trace_dat.pack_chunk(packed, len(chunk)) * chunks
    return trace_dat.pack_head(make_head(7, method), [len(content)]) + content


def count_headroom_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def test_a_few_bytes_do_not_become_many(tmp_path):
    bomb = make_bomb()
    before = count_headroom_mib()
    (skipped,) = report_one(tmp_path, bomb)["skipped"]
    assert "no kernel's pages compress so well" in skipped["reason"]
    assert count_headroom_mib() - before < 128


def make_lying_head(kind):
    """A trace.dat whose head says what cannot be."""
    data = GOOD["6"]
    table = data.index(b"flyrecord\0") + 10
    if kind == "pages that stand for several CPUs":
        return swap(data, table, data[table + 16 : table + 32])
    if kind == "pages at the end of the world":
        return swap(data, table, struct.pack("QQ", (1 << 63) - 512, 512))
    if kind == "pages of all bytes there are":
        return swap(data, table + 8, struct.pack("Q", (1 << 64) - 512))
    if kind == "CPUs":
        return swap(data, data.index(b"options  \0") - 4, struct.pack("I", 0xFFFFFFFF))
    if kind == "event systems":
        return swap(data, data.index(b"raw_syscalls\0") - 4, struct.pack("I", 0xFFFFFFFF))
    if kind == "event formats":
        return swap(data, data.index(b"raw_syscalls\0") + 13, struct.pack("I", 0xFFFFFFFF))
    if kind == "a format of 60 MiB":
        return swap(data, data.index(b"raw_syscalls\0") + 17, struct.pack("Q", 60 << 20))
    # A head of 63 MiB in a few kilobytes: sections that are as long as they may be, again and again.
    assert kind == "sections"
    method = compression.list_available()[0]
    option = struct.pack("=HI", 77, 58) + bytes(58)
    plain = option * ((60 << 20) // len(option)) + struct.pack("=HIQ", 0, 8, 0)
    packed = compression.make_compressor(method)(plain)
    start = GOOD[method][: GOOD[method].index(b"\0", 18) + 3]
    return (
        start
        + struct.pack("Q", len(start) + 8)
        + struct.pack("=HHIQ", 0, 1, 0, 0)
        + trace_dat.pack_chunk(packed, len(plain))
    )


LIES = [
    "pages that stand for several CPUs",
    "pages at the end of the world",
    "pages of all bytes there are",
    "CPUs",
    "event systems",
    "event formats",
    "a format of 60 MiB",
    "sections",
]


@pytest.mark.sweep
@pytest.mark.parametrize("kind", LIES)
def test_absurd_numbers_are_refused_before_they_are_believed(tmp_path, kind):
    data = make_lying_head(kind)
    before = count_headroom_mib()
    (skipped,) = report_one(tmp_path, data)["skipped"]
    assert "Error" not in skipped["reason"]
    assert count_headroom_mib() - before < 160
