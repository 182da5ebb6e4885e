# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A segment becomes a trace.dat of either version, a manifest and a text, or nothing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis import capture_summary
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings import search
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import (
    compression,
    trace_dat,
    trace_dat_reader,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.capture_file_writer import SegmentWriter
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.manifest import VERSION
from ansible_collections.crashcart.fleet.plugins.plugin_utils import captures

NAME = "crashcart-0123456789ab.01795302900250000000"
STAMP = "20261121T231500.250000Z"
SWITCH = """name: sys_exit
ID: 442
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:long id;\toffset:8;\tsize:8;\tsigned:1;
\tfield:long ret;\toffset:16;\tsize:8;\tsigned:1;

print fmt: "NR %ld = %ld", REC->id, REC->ret
"""
MARK = """name: print
ID: 5
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:unsigned long ip;\toffset:8;\tsize:8;\tsigned:0;
\tfield:char buf[];\toffset:16;\tsize:0;\tsigned:0;

print fmt: "%s", REC->buf
"""
HEAD = trace_dat.Head(
    4096, b"page", b"event", [MARK.encode()], {"raw_syscalls": [SWITCH.encode()]}, options=[(4, b"local [mono]\0")]
)
MANIFEST = {
    "container": {"name": "api"},
    "complete": True,
    "clock": "mono",
    "tasks": [{"tid": 4711, "tgid": 4711, "comm": "worker", "container_tid": 17}],
    "syscalls": {"1": "write"},
    "cmdlines": "4711 worker\n4712 other\n",
}


def pack_event(number, tid, data, delta):
    body = struct.pack("=HBBi", number, 0, 0, tid) + data
    return struct.pack("I", len(body) // 4 | delta << 5) + body


def make_page(time, events):
    body = b"".join(events)
    return (struct.pack("QQ", time, len(body)) + body).ljust(4096, b"\0")


def make_pages(count):
    """Pages of two CPUs; each has an exit of write by 4711 and one of an unknown call by 4712."""
    return {
        cpu: [
            make_page(
                10**9 * (number + 1) + cpu,
                [
                    pack_event(442, 4711, struct.pack("qq", 1, number), 100),
                    pack_event(442, 4712, struct.pack("qq", 9, -2), 100),
                ],
            )
            for number in range(count)
        ]
        for cpu in (0, 2)
    }


def write_segment(path, method, cpus, manifest=None, chunk_pages=3, head=HEAD):
    with open(path, "wb") as file:
        writer = SegmentWriter(file, method)
        writer.write_head(head)
        compress = writer.make_compressor()
        for cpu, pages in cpus.items():
            for start in range(0, len(pages), chunk_pages):
                data = b"".join(pages[start : start + chunk_pages])
                writer.write_chunk(cpu, compress(data), len(data))
        writer.write_document(MANIFEST if manifest is None else manifest)
    return str(path)


def assemble(path, tmp_path, version=7, with_text=False):
    return captures.assemble(path, str(tmp_path / "web1"), "web1", version=version, with_text=with_text)


@pytest.fixture(autouse=True)
def folder(tmp_path):
    (tmp_path / "web1").mkdir()


def list_files(path):
    return sorted(
        os.path.relpath(os.path.join(folder, name), path) for folder, _f, names in os.walk(path) for name in names
    )


def read_trace(path):
    with open(path, "rb") as file:
        trace = Trace(file)
        cpus = {
            place.cpu: b"".join(trace_dat_reader.gen_page_blocks(file, trace.head, place))
            for place in trace.head.cpus
            if place.size
        }
    return trace.head, cpus


@pytest.mark.parametrize("method", compression.list_available())
@pytest.mark.parametrize("version", [6, 7])
def test_every_version_from_every_compression(tmp_path, method, version):
    cpus = make_pages(10)
    path, manifest = assemble(write_segment(tmp_path / NAME, method, cpus), tmp_path, version)
    assert path == str(tmp_path / "web1" / "api" / f"{STAMP}.dat")
    head, found = read_trace(path)
    assert found == {cpu: b"".join(pages) for cpu, pages in cpus.items()}
    assert (head.version, head.cmdlines) == (version, b"4711 worker\n4712 other\n")
    assert (head.compression == "zstd") == (version == 7 and method == "zstd")
    with open(path, "rb") as file:
        content = file.read()
    with open(path[: -len(".dat")] + ".json", encoding="utf-8") as text:
        assert json.load(text) == manifest
    assert manifest["sha256"] == hashlib.sha256(content).hexdigest()
    assert (manifest["size"], manifest["pages"], manifest["inventory_hostname"]) == (len(content), 20, "web1")
    assert list_files(tmp_path / "web1") == [f"api/{STAMP}.dat", f"api/{STAMP}.json"]


def test_chunks_of_zstd_are_copied_as_they_are(tmp_path, monkeypatch):
    path = write_segment(tmp_path / NAME, compression.ZSTD, make_pages(10))
    monkeypatch.setattr(captures.Segment, "read_chunk", None)
    assemble(path, tmp_path)


def test_the_same_segment_again_gives_the_same_file(tmp_path):
    path = write_segment(tmp_path / NAME, compression.ZSTD, make_pages(10))
    first, second = assemble(path, tmp_path), assemble(path, tmp_path)
    assert first == second
    assert len(list_files(tmp_path / "web1")) == 2


def test_another_segment_of_the_time_overwrites_nothing(tmp_path):
    found = [
        assemble(write_segment(tmp_path / NAME, compression.ZSTD, make_pages(count)), tmp_path) for count in (10, 5, 10)
    ]
    assert [os.path.basename(path) for path, _manifest in found] == [f"{STAMP}.dat", f"{STAMP}-2.dat", f"{STAMP}.dat"]
    assert [manifest["pages"] for _path, manifest in found] == [20, 10, 20]
    assert len(list_files(tmp_path / "web1")) == 4


@pytest.mark.parametrize("version", [6, 7])
def test_a_segment_without_pages_is_a_capture_of_its_tables(tmp_path, version):
    times = {"first": 2 * 10**9, "last": 9 * 10**9}
    wait = {"tid": 4711, "number": 73, "args": [3, 2, 0, 0, 0, 0]}
    more = {
        "first_tasks": MANIFEST["tasks"],
        "syscalls": {"73": "flock"},
        "waits": {"first": [wait], "last": [wait], "time_ns": times, "left_out": {"first": 0, "last": 0}},
        "clock_offset_ns": 10**9,
    }
    path = write_segment(tmp_path / NAME, compression.ZLIB, {}, {**MANIFEST, **more})
    target, manifest = assemble(path, tmp_path, version=version, with_text=True)
    assert manifest["pages"] == 0
    looking = search.Search()
    (summary,) = capture_summary.gen_source(target, [], search=looking)
    assert (summary["events"], summary["duration_s"], summary["start"]) == (0, 7.0, "1970-01-01T00:00:02.000+00:00")
    (found,) = looking.finish()
    assert found.statement == "worker waits for a lock on a file (flock): for all 7 s of the trace"


def test_the_text_has_every_event_in_the_order_of_time(tmp_path):
    path = write_segment(tmp_path / NAME, compression.ZSTD, make_pages(500))
    target, _manifest = assemble(path, tmp_path, with_text=True)
    with open(target[: -len(".dat")] + ".txt", encoding="utf-8") as text:
        lines = text.read().splitlines()
    assert lines[0] == "# container api on web1, clock mono, complete"
    assert len(lines) == 2 + 500 * 2 * 2
    assert lines[2] == "          worker-4711        (17) [000]      1.000000100: sys_exit: id=1 (write) ret=0"
    assert lines[3] == "          worker-4711        (17) [002]      1.000000102: sys_exit: id=1 (write) ret=0"
    assert lines[4] == "           other-4712         (-) [000]      1.000000200: sys_exit: id=9 (?) ret=-2 (ENOENT)"
    times = [float(line.split("]")[1].split(":")[0]) for line in lines[2:]]
    assert times == sorted(times)


def test_a_hostile_marker_stays_on_its_line(tmp_path):
    mark = b"\x1b[2J evil\nline\r\n\0\0\0"
    mark += bytes(-len(mark) % 4)
    page = make_page(1, [pack_event(5, 4711, struct.pack("Q", 0) + mark, 1)])
    path = write_segment(tmp_path / NAME, compression.ZSTD, {0: [page]})
    target, _manifest = assemble(path, tmp_path, with_text=True)
    with open(target[: -len(".dat")] + ".txt", encoding="utf-8", newline="") as text:
        content = text.read()
    assert "buf=?[2J evil?line?" in content
    assert content.count("\n") == 3
    assert "\x1b" not in content


@pytest.mark.parametrize(
    ("number", "words", "shown"),
    [
        (1, (3, 0x7FFF0000, 1, 0, 0, -1), "id=1 (write) args=(3, 0x7fff0000, 1)"),
        (2, (0x7FFF0000, 0x80041, 0o640, 0, 0, 0), "id=2 (open) args=(0x7fff0000, O_WRONLY|O_CREAT|O_CLOEXEC, 0640)"),
        # What is not known stays a number.
        (999, (3, 0x7FFF0000, 1, 0, 0, -1), "id=999 (?) args=(0x3, 0x7fff0000, 0x1, 0, 0, 0xffffffffffffffff)"),
    ],
)
def test_arguments_of_a_call_have_names(tmp_path, number, words, shown):
    enter = SWITCH.replace("name: sys_exit\nID: 442", "name: sys_enter\nID: 443").replace(
        "\tfield:long ret;\toffset:16;\tsize:8;\tsigned:1;\n",
        "\tfield:unsigned long args[6];\toffset:16;\tsize:48;\tsigned:0;\n\tfield:u64 flags;\toffset:64;\tsize:8;\tsigned:0;\n",
    )
    head = replace(HEAD, event_formats={"raw_syscalls": [enter.encode()]})
    event = pack_event(443, 4711, struct.pack("q6qQ", number, *words, 1 << 63), 1)
    manifest = {**MANIFEST, "syscalls": {"1": "write", "2": "open"}, "arch": "x86_64"}
    path = write_segment(tmp_path / NAME, compression.ZSTD, {0: [make_page(1, [event])]}, manifest, head=head)
    target, _manifest = assemble(path, tmp_path, with_text=True)
    with open(target[: -len(".dat")] + ".txt", encoding="utf-8") as text:
        line = text.read().splitlines()[-1]
    assert line.endswith(f"sys_enter: {shown} flags=0x8000000000000000")


@pytest.mark.parametrize("name", ["../../../evil", "/etc", "..", "a\0b"])
def test_a_hostile_name_of_a_container_stays_in_the_folder(tmp_path, name):
    manifest = {**MANIFEST, "container": {"name": name}}
    path, _manifest = assemble(write_segment(tmp_path / NAME, "zlib", make_pages(1), manifest), tmp_path)
    assert os.path.dirname(os.path.dirname(path)) == str(tmp_path / "web1")


@pytest.mark.parametrize(
    "manifest",
    [
        {},
        {"container": None},
        {"container": {"name": 7}},
        {"container": []},
        {**MANIFEST, "tasks": [{"tid": "x"}]},
        {**MANIFEST, "syscalls": {"a": "b"}},
    ],
)
def test_a_manifest_that_no_host_writes(tmp_path, manifest):
    with pytest.raises(FleetError, match="not what a host writes"):
        assemble(write_segment(tmp_path / NAME, "zlib", make_pages(1), manifest), tmp_path)


@pytest.mark.sweep
def test_damage_anywhere_gives_a_trace_or_an_error_of_ours_and_leaves_nothing(tmp_path):
    path = write_segment(tmp_path / NAME, compression.ZSTD, make_pages(3))
    with open(path, "rb") as file:
        content = file.read()
    refused = 0
    for place in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[place] ^= 0x41
        with open(path, "wb") as file:
            file.write(damaged)
        try:
            target, _manifest = assemble(path, tmp_path, version=6)
        except FleetError:
            refused += 1
            assert list_files(tmp_path / "web1") == []
            continue
        os.unlink(target)
        os.unlink(target[: -len(".dat")] + ".json")
    assert refused > 50


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("web1", "web1"),
        ("web1.example.com", "web1.example.com"),
        ("a_b-c.d", "a_b-c.d"),
        ("../../etc/passwd", "_.._.._etc_passwd"),
        (".crashcart-parts", "_.crashcart-parts"),
        ("/etc", "_etc"),
        ("a/b\\c", "a_b_c"),
        ("..", "__"),
        (".", "_"),
        ("...", "___"),
        ("", "_"),
        ("a\0b\nc", "a_b_c"),
        ("größe", "gr__e"),
        ("[::1]:22", "___1__22"),
        ("\x1b[31m", "__31m"),
    ],
)
def test_file_name(text, name):
    assert captures.make_file_name(text) == name


def test_long_names_stay_apart():
    names = {captures.make_file_name("x" * length) for length in range(190, 400)}
    assert len(names) == 210
    assert max(map(len, names)) == 200
    assert captures.make_file_name("x" * 200) == "x" * 200


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("CON", "_CON"),
        ("nul", "_nul"),
        ("aux.txt", "_aux.txt"),
        ("Com1.a.b", "_Com1.a.b"),
        ("lpt9", "_lpt9"),
        ("prn.", "prn_"),
        ("web1..", "web1__"),
        ("web ", "web_"),
        ("a:b", "a_b"),
        ("console", "console"),
        ("com10", "com10"),
        ("my.con", "my.con"),
        ("v1.2", "v1.2"),
    ],
)
def test_a_file_name_is_one_on_windows_too(text, name):
    assert captures.make_file_name(text) == name


def test_no_file_name_leads_to_another_folder():
    source = random.Random(31)
    for _round in range(3000):
        text = "".join(source.choice("./\\a\0~\n-") for _index in range(source.randrange(8)))
        name = captures.make_file_name(text)
        assert os.path.normpath(os.path.join("/dest", name)) == "/dest/" + name


@pytest.mark.sweep
def test_a_few_bytes_that_become_many_do_not_fill_the_memory(tmp_path):
    import tracemalloc

    file = io.BytesIO()
    writer = SegmentWriter(file, "zlib")
    writer.write_head(HEAD)
    compress = writer.make_compressor()
    plain = bytes(4096 * 512)
    for _number in range(60):
        writer.write_chunk(0, compress(plain), len(plain))
    writer.write_document(MANIFEST)
    path = tmp_path / NAME
    path.write_bytes(file.getvalue())
    tracemalloc.start()
    assemble(str(path), tmp_path, version=6)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def write_bomb(path, manifest):
    """A segment of some kilobytes that would become 384 MiB."""
    method = compression.list_available()[0]
    with open(path, "wb") as file:
        writer = SegmentWriter(file, method)
        writer.write_head(HEAD)
        chunk = make_page(1, [pack_event(442, 1, struct.pack("qq", 1, 2), 3)]) * 4096
        packed = writer.make_compressor()(chunk)
        for _number in range(24):
            writer.write_chunk(0, packed, len(chunk))
        writer.write_document(manifest)
    return str(path)


@pytest.mark.parametrize("version", [6, 7])
@pytest.mark.parametrize(
    "claims", [{}, {"buffer_kb": str(1 << 40), "cpus": [{}] * 64}, {"mode": "record", "limits": {"max_bytes": 1 << 60}}]
)
def test_a_few_bytes_do_not_become_what_no_kernel_has_written_whatever_the_manifest_says(tmp_path, version, claims):
    path = write_bomb(tmp_path / NAME, {**MANIFEST, **claims})
    assert os.path.getsize(path) < 256 << 10
    with pytest.raises(FleetError, match="no kernel's pages compress so well"):
        assemble(path, tmp_path, version)
    assert list_files(tmp_path / "web1") == []


@pytest.mark.parametrize(
    ("claims", "most"),
    [
        ({"buffer_kb": "64", "cpus": [{}, {}]}, (16 + 2) * 2 * 4096),
        ({"mode": "ring", "buffer_kb": 64, "cpus": [{}]}, (16 + 2) * 4096),
        ({"mode": "record", "buffer_kb": "64", "cpus": [{}], "limits": {"max_bytes": 8192}}, (16 + 2 + 4) * 4096),
        # Of these nobody knows.
        ({"buffer_kb": "7 (expanded: 1408)", "cpus": [{}]}, None),
        ({"buffer_kb": "64"}, None),
        ({"cpus": [{}]}, None),
        ({"mode": "record", "buffer_kb": "64", "cpus": [{}], "limits": {}}, None),
        ({"mode": "record", "buffer_kb": "64", "cpus": [{}], "limits": 5}, None),
    ],
)
def test_a_trace_is_no_more_than_its_buffers_and_files_can_have_held(tmp_path, claims, most):
    pages = make_pages(2)[0] * ((most or 100 * 4096) // 4096 // 2)
    manifest = {**MANIFEST, **claims}
    path = write_segment(tmp_path / NAME, "zlib", {0: pages}, manifest)
    assert assemble(path, tmp_path, 6)[1]["pages"] == len(pages)
    os.unlink(path)
    path = write_segment(tmp_path / NAME, "zlib", {0: [*pages, pages[0]]}, manifest)
    if most is None:
        assemble(path, tmp_path, 6)
    else:
        with pytest.raises(FleetError, match=rf"more than its ring buffers and files can have held \({most}\)"):
            assemble(path, tmp_path, 6)


def nest(depth):
    value = 5
    for _level in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("depth", [300, 900])
def test_a_document_that_is_too_deep_is_damage(tmp_path, depth):
    path = write_segment(tmp_path / NAME, "zlib", make_pages(1), {**MANIFEST, "labels": nest(depth)})
    try:
        assemble(path, tmp_path)
    except FleetError:
        assert list_files(tmp_path / "web1") == []
    else:
        assert len(list_files(tmp_path / "web1")) == 2


def test_a_document_that_no_parser_takes_is_damage(tmp_path):
    deep = b'{"container": ' + b"[" * 200000 + b"]" * 200000 + b"}"
    path = tmp_path / NAME
    with open(path, "wb") as file:
        writer = SegmentWriter(file, "zlib")
        writer.write_head(HEAD)
        writer._write_packed(0xFFFFFFFF, deep)
    with pytest.raises(FleetError, match="document"):
        assemble(str(path), tmp_path)


def test_what_this_controller_refuses_is_no_damage(tmp_path):
    path = write_segment(tmp_path / NAME, "zlib", make_pages(1))
    (tmp_path / "web1" / "api").write_text("a file where the folder should be")
    with pytest.raises(OSError):
        assemble(path, tmp_path)
    assert list_files(tmp_path / "web1") == ["api"]


def test_what_makes_a_manifest_long_goes_into_the_trace(tmp_path):
    labels = {f"label{number}": "x" * 150 for number in range(40)}
    manifest = {
        **MANIFEST,
        "version": 2,
        "container": {"id": "0", "name": "api", "labels": labels},
        "events": {"a:b": ""},
    }
    path, told = assemble(write_segment(tmp_path / NAME, compression.ZLIB, make_pages(1), manifest), tmp_path)
    text = Path(path).with_suffix(".json").read_text()
    short = json.loads(text)
    assert len(text) <= 4096
    # It has the form of who has assembled it, whatever its host's version is.
    assert short["version"] == VERSION
    assert (short["in_trace"], short["events"]) == ({"container.labels": 40}, {"a:b": ""})
    assert (told["container"]["labels"], told["in_trace"], told["sha256"]) == (labels, {}, short["sha256"])
    with open(path, "rb") as file:
        whole = capture_summary.add_tables(short, Trace(file))
    assert (whole["container"]["labels"], whole["tasks"]) == (labels, MANIFEST["tasks"])


COMPLETE = {"container": {"name": "api"}, "complete": True, "reasons": [], "stopped": None, "entries": 7}


@pytest.mark.parametrize(
    ("path", "manifest", "line"),
    [
        ("t/api/x.dat", COMPLETE, "api: t/api/x.dat (7 events)"),
        (None, COMPLETE, "api: nothing was recorded"),
        (
            "x.dat",
            {**COMPLETE, "complete": False, "reasons": ["7 events were lost", "no room"], "stopped": "its ttl is over"},
            "api: x.dat (7 events) (incomplete: 7 events were lost; no room) (stopped: its ttl is over)",
        ),
        (None, {}, "an unknown container: nothing was recorded (incomplete: nobody knows why)"),
        (None, {**COMPLETE, "container": "x", "stopped": "a\nb\x1b[2J"}, r"(stopped: a\nb\x1b[2J)"),
    ],
)
def test_a_line_for_people_whatever_a_host_says(path, manifest, line):
    told = captures.describe(path, manifest)
    assert line in told
    assert told.isprintable()


@pytest.mark.parametrize(
    ("path", "has_run", "restarts", "is_told"),
    [(None, False, True, True), (None, True, True, False), (None, False, False, False), ("x.dat", False, True, False)],
)
def test_of_a_container_that_was_awaited_and_never_came_that_is_said(path, has_run, restarts, is_told):
    manifest = {**COMPLETE, "has_run": has_run, "followed": {"restarts": restarts}}
    assert ("it has not started since the trace awaits it: start it" in captures.describe(path, manifest)) == is_told
    assert not captures.has_never_started({**COMPLETE, "followed": {"restarts": True}})  # of an older version
