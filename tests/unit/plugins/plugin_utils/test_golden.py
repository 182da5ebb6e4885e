# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A capture's manifest and the summary of it, compared whole with files in tests/unit/golden, and with their published forms.

A change of a format fails here, with a diff. Where it is meant, make the files anew, look at what git shows, and see to docs/*.schema.json
and to the manifest's version:

    CRASHCART_WRITE_GOLDEN=1 pytest tests/unit/plugins/plugin_utils/test_golden.py
"""

from __future__ import annotations

import copy
import difflib
import functools
import hashlib
import json
import os
import struct
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, ValidationError

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis import syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import manifest
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.drain import CpuDrain
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import ring
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import compression, trace_dat
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.capture_file_writer import SegmentWriter
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import CpuStatistics
from ansible_collections.crashcart.fleet.plugins.plugin_utils import captures, report_process
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages

GOLDEN = Path(__file__).parents[2] / "golden"
SEGMENT = "crashcart-0123456789ab.01795302900250000000"
GROUP = "crashcart_0123456789ab_5d41402a"
OPENAT, REQUEST = 1501, 1601
REQUEST_FORMAT = b"""name: io_uring_submit_req
ID: 1601
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:u8 opcode;\toffset:8;\tsize:1;\tsigned:0;

print fmt: "opcode %d", REC->opcode
"""
FORMATS = {
    "raw_syscalls": [pages.SYS_ENTER.encode(), pages.SYS_EXIT.encode()],
    "task": [pages.TASK_RENAME.encode(), pages.TASK_NEWTASK.encode()],
    "sched": [pages.SCHED_PROCESS_EXEC.encode()],
    "syscalls": [pages.SYS_EXIT_EXECVE.encode()],
    "io_uring": [REQUEST_FORMAT],
    GROUP: [pages.make_path_format("path_openat", OPENAT, "path")],
}
SECOND = 10**9
# Two processes of one program, and one of another: calls with and without errors, with a path, one that a signal ended, one that seccomp
# answered, one that goes on, and a request by io_uring.
EVENTS = (
    (1.0, pages.make_newtask(4711, 4712, b"worker")),
    (1.1, pages.make_enter(4711, 257)),
    (1.1001, pages.make_paths(OPENAT, 4711, b"/etc/missing")),
    (1.1002, pages.make_exit(4711, 257, -2)),
    (1.2, pages.make_enter(4711, 0)),
    (1.45, pages.make_exit(4711, 0, 100)),
    (1.5, pages.make_enter(4712, 0)),
    (1.6, pages.make_exit(4712, 0, -512)),
    (1.7, pages.make_exit(4712, 257, -1)),
    (1.8, pages.make_record(REQUEST, 4711, struct.pack("B3x", 22))),
    (1.9, pages.make_enter(4720, 1)),
    (2.25, pages.make_enter(4711, 0)),
)
TASKS = [
    {"tid": 4711, "tgid": 4711, "comm": "worker", "container_tid": 1, "compat": False},
    {"tid": 4720, "tgid": 4720, "comm": "sh", "container_tid": 20, "compat": False},
]


@functools.lru_cache(maxsize=None)
def find_schema(name):
    """The file NAME stands in docs/, beside plugins/ in the checkout and in a built collection."""
    folder = next(path for path in Path(manifest.__file__).parents if (path / "docs" / name).exists())
    schema = json.loads((folder / "docs" / name).read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return schema


def read_clock(seconds):
    """A reading of the trace clock, SECONDS after it began."""
    return {
        "offset_ns": 1795302898 * SECOND,
        "uncertainty_ns": 250,
        "real_time_ns": 1795302898 * SECOND + round(seconds * SECOND),
    }


def make_pages(events):
    """The pages of two CPUs that EVENTS come to."""
    cpus = {0: b"", 1: b""}
    for time, record in events:
        tid = struct.unpack_from("i", record, 4)[0]
        cpus[tid == 4720] += pages.pack_page(round(time * SECOND), [pages.pack_event(record)])
    return cpus


def make_manifest(name):
    """Return the manifest that a host writes for the capture of container NAME."""
    labels = {"com.example.service": "shop", "com.example.stage": "production"}
    container = Container("0123456789ab" + "c" * 52, name, "running", 4711, "registry.example/shop:1", labels)
    return manifest.Manifest(
        host={
            "host": "ip-10-0-0-1",
            "kernel": "6.1.0-13-amd64",
            "arch": "x86_64",
            "boot_id": "8a1fd9e8-50a3-4d58-a3a9-3f2b1cf2a6a1",
        },
        container=manifest.describe_container(container),
        instance="crashcart-0123456789ab",
        mode="ring",
        clock="mono",
        buffer_kb="2048",
        events={"raw_syscalls:sys_enter": "", "raw_syscalls:sys_exit": "", f"{GROUP}:path_openat": ""},
        start=read_clock(0.5),
        changed=read_clock(0.5),
        end=read_clock(2.5),
        specification={"syscalls": {"native": [0, 1, 257], "compat": []}, "io_uring": True},
        earlier_syscalls=[],
        limits={"ttl_s": 600.0},
        followed={"exec": "descent", "tools": False, "restarts": False, "may_be_missed": None},
        has_run=True,
        tracing=True,
        stopped=None,
        fetched=1795302900.25,
    )


def make_loss(events, lost):
    """Return the loss of a capture of EVENTS events; LOST more were overwritten before they were read."""
    before = {0: CpuStatistics(events - 1, 0, 0, 500, 0, 0), 1: CpuStatistics(1, 0, 0, 500, 0, 0)}
    after = {0: CpuStatistics(0, lost, 0, 0, 0, events - 1), 1: CpuStatistics(0, 0, 0, 0, 0, 1)}
    return ring.summarize_loss(before, after, {0: CpuDrain(events - 1, lost=lost), 1: CpuDrain(1)})


def write_capture(folder, name="api", events=EVENTS, lost=0):
    """Bring the capture of container NAME home below FOLDER, as a fetch does, and return where its trace is."""
    segment = folder / SEGMENT
    with open(segment, "wb") as file:
        writer = SegmentWriter(file, compression.NONE)
        writer.write_head(
            trace_dat.Head(pages.PAGE_SIZE, b"", b"", [], FORMATS, options=[(trace_dat.OPTION_TRACECLOCK, b"[mono]\0")])
        )
        tables = manifest.Tables(
            TASKS, TASKS, "4711 worker\n4720 sh\n", {0: "read", 1: "write", 257: "openat"}, {5: "open"}
        )
        writer.write_document({**make_manifest(name).as_json(make_loss(len(events), lost)), **tables.as_json()})
        for cpu, content in make_pages(events).items():
            writer.write_chunk(cpu, content, len(content))
    home = folder / "traces" / "web1"
    home.mkdir(parents=True, exist_ok=True)
    return captures.assemble(str(segment), str(home), "web1", version=6, with_text=False)[0]


def report(source, folder):
    """Return the content of summary.json for SOURCE."""
    request = {"src": str(source), "dest": str(folder / "report"), "formats": ["json"]}
    files = report_process.make_report(request)["files"]
    return json.loads(Path(files["json"]).read_text(encoding="utf-8"))


def compare(name, found):
    """Fail, with a diff, where the golden file NAME is not FOUND."""
    path = GOLDEN / name
    text = json.dumps(found, indent=1) + "\n"
    if os.environ.get("CRASHCART_WRITE_GOLDEN") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    lines = path.read_text(encoding="utf-8").splitlines(True)
    diff = difflib.unified_diff(lines, text.splitlines(True), f"golden/{name}", "what is made now")
    assert lines == text.splitlines(True), "".join(diff)


@pytest.fixture
def capture(tmp_path):
    return Path(write_capture(tmp_path))


def read_manifest(capture):
    return json.loads(capture.with_suffix(".json").read_text(encoding="utf-8"))


def test_the_manifest_of_a_capture_is_the_golden_one(capture):
    found = read_manifest(capture)
    Draft202012Validator(find_schema("manifest.schema.json")).validate(found)
    data = capture.read_bytes()
    assert (found["size"], found["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    # These change with the library that compresses the tables.
    compare("manifest.json", {**found, "size": 0, "sha256": "0" * 64})


def test_the_summary_of_a_capture_is_the_golden_one(capture, tmp_path):
    write_capture(tmp_path, "db", EVENTS[-2:], 3)
    capture.with_name("torn.dat").write_bytes(b"\x17\x08\x44tracing")
    found = report(tmp_path / "traces", tmp_path)
    Draft202012Validator(find_schema("summary.schema.json")).validate(found)
    compare("summary.json", found)


def test_the_golden_files_have_the_published_form():
    for name in ("manifest", "summary"):
        golden = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
        Draft202012Validator(find_schema(f"{name}.schema.json")).validate(golden)


def write_rich_captures(folder):
    """Captures of what the golden one lacks: functions, many programs and calls, 32-bit programs, SIGSYS, and no manifest."""
    function = (
        b"name: function\nID: 1\nformat:\n"
        b"\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n"
        b"\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;\n"
        b"\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;\n"
        b"\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n"
        b"\tfield:unsigned long ip;\toffset:8;\tsize:8;\tsigned:0;\n"
        b"\tfield:unsigned long parent_ip;\toffset:16;\tsize:8;\tsigned:0;\n\n"
        b'print fmt: " %ps <-- %ps", (void *)REC->ip, (void *)REC->parent_ip\n'
    )
    records = [pages.make_record(1, 5, struct.pack("QQ", 0x1000, 0)), pages.make_exit(5, 257, 257)]
    for tid in range(100, 130):
        records += [pages.make_newtask(5, tid, b"p%d" % tid), pages.make_enter(tid, 5), pages.make_enter(tid, 0)]
        records += [pages.make_exit(tid, 0, -38), pages.make_enter(tid, tid), pages.make_exit(tid, tid, 0)]
    made = [pages.pack_page(number * 1000 + 1000, [pages.pack_event(one)]) for number, one in enumerate(records)]
    head = trace_dat.Head(pages.PAGE_SIZE, b"", b"", [function], FORMATS, cmdlines=b"5 web\n")
    data = trace_dat.pack_head(head, [len(made) * pages.PAGE_SIZE]) + b"".join(made)
    folder.mkdir()
    (folder / "bare.dat").write_bytes(data)
    (folder / "known.dat").write_bytes(data)
    known = {
        "version": 3,
        "host": "h",
        "container": {"id": "c" * 64, "name": "api"},
        "complete": True,
        "lost": 0,
        "reasons": [],
        "in_trace": {},
        "tasks": [{"tid": 5, "tgid": 5, "comm": "web", "container_tid": 1, "compat": True}],
        "first_tasks": [{"tid": 5, "tgid": 5, "comm": "web", "container_tid": 1, "compat": True}],
        "syscalls": {"0": "read", "257": "openat"},
        "compat_syscalls": {"257": "openat"},
    }
    (folder / "known.json").write_text(json.dumps(known))


def test_a_rich_summary_has_the_published_form(tmp_path, monkeypatch):
    monkeypatch.setattr(syscalls, "_MAX_ROWS", 12)
    write_rich_captures(tmp_path / "traces")
    found = report(tmp_path / "traces", tmp_path)
    Draft202012Validator(find_schema("summary.schema.json")).validate(found)
    bare, known = found["captures"]
    assert (bare["complete"], bare["lost"], bare["host"], bare["start"]) == (None, None, None, None)
    assert bare["functions"] == {"0x1000": 1}
    assert (known["complete"], known["host"], known["container"]) == (True, "h", "api")
    names = {row["name"] for row in bare["programs"]}
    assert 6 < len(bare["programs"]) <= 12 and "(other programs)" in names
    assert "(other calls)" in {row["syscall"] for row in bare["programs"]}
    assert any(row["failures"] for row in known["programs"])
    assert {row["compat"] for row in known["programs"]} == {True, False}


@pytest.mark.sweep
@pytest.mark.parametrize(
    "damage",
    [
        lambda summary: summary.update(more=1),
        lambda summary: summary.pop("skipped"),
        lambda summary: summary["skipped"][0].pop("next_step"),
        lambda summary: summary["captures"][0].pop("start"),
        lambda summary: summary["captures"][0].update(start=1795302900),
        lambda summary: summary["captures"][0].update(complete="yes"),
        lambda summary: summary["captures"][0]["io_uring"].update(more=1),
        lambda summary: summary["captures"][0]["errors"].update(ENOENT=0),
        lambda summary: summary["captures"][0]["programs"][0].pop("p99_ns"),
        lambda summary: summary["captures"][0]["programs"][0].update(more=1),
        lambda summary: summary["captures"][0]["processes"][0].update(pids=["5"]),
        lambda summary: summary["captures"][0]["processes"][0].update(paths=["/etc"]),
    ],
)
def test_another_form_of_a_summary_is_not_the_published_one(damage):
    damaged = copy.deepcopy(json.loads((GOLDEN / "summary.json").read_text(encoding="utf-8")))
    damage(damaged)
    with pytest.raises(ValidationError):
        Draft202012Validator(find_schema("summary.schema.json")).validate(damaged)


def test_each_key_of_a_summary_is_explained_and_no_other_is_allowed():
    objects = [find_schema("summary.schema.json")]
    keys = 0
    while objects:
        one = objects.pop()
        objects += [value for value in one.get("$defs", {}).values() if isinstance(value, dict)]
        properties = one.get("properties", {})
        if properties:
            assert one["additionalProperties"] is False and sorted(one["required"]) == sorted(properties)
        for name, about in properties.items():
            assert about["description"].endswith("."), name
            objects.append(about)
            keys += 1
    assert keys > 40
