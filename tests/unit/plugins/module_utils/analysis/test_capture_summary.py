# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Summaries of captures, and texts of them that a terminal may be shown."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis import capture_summary, report_files
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.plugin_utils import report_process
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages, reports

EVIL = "\x1b]0;owned\x07\x1b[2J\r\n\x9b31m\u202eevil\x00\u200b"


def make_row(name="web", syscall="read", **values):
    return {
        "name": name,
        "pids": [5],
        "process_count": 1,
        "container_pid": 1,
        "syscall": syscall,
        "calls": 3,
        "errors": {"ENOENT": 2, "EPERM": 1},
        "measured": 3,
        "total_ns": 4500000,
        "p99_ns": 2500,
        "failures": 3,
        "interrupted": {},
        "denied": {},
        "paths": [],
        **values,
    }


def make_capture(*programs, **values):
    return {
        "capture": "web1/api/x.dat",
        "buffer": None,
        "host": "web1",
        "container": "api",
        "container_id": "0" * 64,
        "complete": True,
        "lost": 0,
        "start": "2026-11-21T23:15:00.000+00:00",
        "duration_s": 1.5,
        "events": 42,
        "event_counts": {"raw_syscalls:sys_exit": 42},
        "functions": {},
        "io_uring": {"recorded": True, "requests": {}, "polled": False},
        "min_latency_ns": 0,
        "programs": list(programs),
        "processes": [],
        "errors": {},
        **values,
    }


def format_one(*programs, **values):
    return reports.format_summary({"captures": [make_capture(*programs, **values)], "skipped": []})


def is_harmless(text):
    return all(character.isprintable() for line in text.split("\n") for character in line)


def test_a_table():
    lines = format_one(
        make_row(),
        make_row("a longer name", "openat", pids=[7, 8], process_count=2, errors={}, measured=0, p99_ns=None),
    ).split("\n")
    assert lines[0] == "api on web1: 42 events in 1.500 s from 2026-11-21T23:15:00.000+00:00, complete"
    assert lines[1].split() == ["PROCESS", "PID", "SYSCALL", "CALLS", "TOTAL", "ms", "P99", "us", "ERRORS"]
    assert lines[2].split() == ["web", "5", "read", "3", "4.500", "2.5", "ENOENT", "2,", "EPERM", "1"]
    assert lines[3].split() == ["a", "longer", "name", "2", "of", "them", "openat", "3", "-", "-", "-"]
    columns = {line.index(word) for line, word in zip(lines[1:4], ("SYSCALL", "read", "openat"))}
    assert len(columns) == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"complete": True}, ", complete"),
        ({"complete": None, "lost": None}, "loss unknown"),
        ({"complete": False, "lost": 17}, "INCOMPLETE: 17 events lost"),
    ],
)
def test_losses_are_said_first(values, words):
    assert format_one(make_row(), **values).split("\n", maxsplit=1)[0].endswith(words)


def test_what_is_unknown():
    text = format_one(host=None, container=None, start=None)
    assert text.startswith("web1/api/x.dat on an unknown host: 42 events in 1.500 s from ?, ")
    assert "no system call was recorded" in text


@pytest.mark.parametrize("place", ["container", "host", "capture"])
def test_a_terminal_obeys_nothing_in_a_headline(place):
    values = {"container": None, place: EVIL} if place == "capture" else {place: EVIL}
    text = format_one(make_row(), **values)
    assert is_harmless(text)
    assert "evil" in text
    assert "?]0;owned??[2J???31m?evil??" in text


@pytest.mark.parametrize("place", ["name", "syscall"])
def test_a_terminal_obeys_nothing_in_a_row(place):
    text = format_one(make_row(**{place: EVIL}))
    assert is_harmless(text)
    assert len(text.split("\n")) == 4
    assert "?]0;owned??[2J???31m?evil??" in text


def test_a_terminal_obeys_nothing_in_a_number():
    assert is_harmless(format_one(make_row(), complete=False, lost=EVIL))


def test_letters_of_all_languages_stay():
    assert "größe 日本" in format_one(make_row(name="größe 日本"))


def test_what_was_denied_or_interrupted_stands_beside_errors():
    row = make_row(errors={"EPERM": 2}, interrupted={"ERESTARTSYS": 4}, denied={"EPERM": 1, "SIGSYS": 3})
    assert format_one(row).splitlines()[2].endswith("  EPERM 2, ERESTARTSYS 4, denied EPERM 1, denied SIGSYS 3")
    assert format_one(make_row(errors={})).splitlines()[2].endswith("  -")


@pytest.mark.parametrize(
    ("rings", "line"),
    [
        (
            {"recorded": True, "requests": {"READ": 5, "\x1b": 1}, "polled": False},
            "io_uring, no system calls: READ 5, ? 1",
        ),
        (
            {"recorded": True, "requests": {}, "polled": True},
            "io_uring: the kernel polls for requests (SQPOLL); those could",
        ),
        (
            {"recorded": False, "requests": {}, "polled": False},
            "io_uring: requests were not recorded and could not be seen",
        ),
        ({"recorded": True, "requests": {}, "polled": False}, None),
    ],
)
def test_what_is_known_of_requests_by_io_uring(rings, line):
    text = format_one(make_row(), io_uring=rings)
    assert line in text if line else "io_uring" not in text
    # Where no calls were recorded there is nothing that could be missing.
    assert rings["recorded"] or "io_uring" not in format_one(io_uring=rings)


def test_forty_rows_are_shown():
    text = format_one(*(make_row(name=f"p{number}") for number in range(40)))
    assert "p39" in text
    assert "more rows" not in text


def test_of_more_rows_the_number_is_said():
    text = format_one(*(make_row(name=f"p{number}") for number in range(43)))
    assert "p39" in text
    assert "p40" not in text
    assert "and 3 more rows in summary.json" in text


def write_capture(folder, name="20261121T231500.000000Z", manifest=None, data=None):
    folder.mkdir(parents=True, exist_ok=True)
    if data is None:
        events = [
            (10**9, pages.make_enter(5, 257)),
            (10**9 + 2000, pages.make_exit(5, 257, -2)),
            (3 * 10**9, pages.make_exit(6, 0, -11)),
        ]
        made = [pages.pack_page(time, [pages.pack_event(record)]) for time, record in events]
        data = pages.pack_trace([made], cmdlines=b"5 \x1b[2Jweb\n")
    (folder / (name + ".dat")).write_bytes(data)
    if manifest is not None:
        (folder / (name + ".json")).write_text(json.dumps(manifest))
    return str(folder / (name + ".dat"))


MANIFEST = {
    "inventory_hostname": "web1",
    "host": "ip-10-0-0-1",
    "container": {"id": "0" * 64, "name": "api"},
    "complete": False,
    "lost": 3,
    "clock_offset_ns": 1790000000 * 10**9,
    "tasks": [],
    "syscalls": {"257": "openat", "0": "read"},
}


def test_a_capture_is_summarized(tmp_path):
    write_capture(tmp_path / "web1" / "api", manifest=MANIFEST)
    summary = reports.summarize(str(tmp_path))
    (one,) = summary["captures"]
    assert one["capture"] == "web1/api/20261121T231500.000000Z.dat"
    assert (one["host"], one["container"], one["complete"], one["lost"]) == ("web1", "api", False, 3)
    assert one["start"] == "2026-09-21T14:13:21.000+00:00"
    assert one["duration_s"] == pytest.approx(2.0)
    assert one["events"] == 3
    assert one["errors"] == {"ENOENT": 1, "EAGAIN": 1}
    assert [(row["syscall"], row["failures"], row["total_ns"]) for row in one["programs"]] == [
        ("openat", 1, 2000),
        ("read", 1, 0),
    ]
    assert is_harmless(reports.format_summary(summary))
    json.dumps(summary)


@pytest.mark.parametrize(
    ("entries", "version", "reasons"),
    [
        (3, 2, []),
        (4, 2, ["the file holds 3 events, and the kernel counted 4"]),
        (4, None, []),  # of before manifests had a version: what waited when the fetch began
    ],
)
def test_a_file_that_holds_other_events_than_were_counted_is_not_complete(tmp_path, entries, version, reasons):
    manifest = {**MANIFEST, "complete": True, "lost": 0, "reasons": [], "entries": entries, "version": version}
    write_capture(tmp_path, manifest={name: value for name, value in manifest.items() if value is not None})
    (one,) = reports.summarize(str(tmp_path))["captures"]
    assert (one["complete"], one["reasons"]) == (not reasons, reasons)


@pytest.mark.parametrize(("entries", "is_whole"), [(5, True), (6, False)])
def test_of_a_file_that_holds_other_events_than_were_counted_nothing_is_inferred(tmp_path, entries, is_whole):
    events = [
        (10**9, pages.make_enter(5, 0)),
        (10**9 + 1000, pages.make_exit(5, 0, 1)),
        (2 * 10**9, pages.make_exit(5, 257, 0)),  # what seccomp answers has no entry
        (3 * 10**9, pages.make_exit(5, 0x41DA, 0)),
        (3 * 10**9 + 1000, pages.make_exit(77, 257, 0)),  # a thread that nobody knows
    ]
    made = [pages.pack_page(time, [pages.pack_event(record)]) for time, record in events]
    manifest = {**MANIFEST, "complete": True, "lost": 0, "reasons": [], "entries": entries, "version": 2}
    write_capture(tmp_path, manifest=manifest, data=pages.pack_trace([made], cmdlines=b"5 web\n"))
    (one,) = reports.summarize(str(tmp_path))["captures"]
    rows = {(row["name"], row["syscall"]): row["denied"] for row in one["programs"]}
    whole = {
        ("web", "read"): {},
        ("web", "openat"): {"no error": 1},
        ("web", "syscall_0x41da"): {"no error": 1},
        ("?", "openat"): {},
    }
    assert rows == (whole if is_whole else {("web", "read"): {}, ("web", "openat"): {}})


def test_a_capture_without_a_manifest(tmp_path):
    summary = reports.summarize(write_capture(tmp_path))
    (one,) = summary["captures"]
    assert (one["host"], one["container"], one["complete"], one["start"]) == (None, None, None, None)
    assert [row["syscall"] for row in one["programs"]] == ["syscall_0x101", "syscall_0x0"]
    assert "loss unknown" in reports.format_summary(summary)


@pytest.mark.parametrize(
    "change",
    [
        {"container": None},
        {"container": "api"},
        {"container": {"name": 5}},
        {"clock_offset_ns": "soon"},
        {"clock_offset_ns": 10**40},
        {"tasks": [{}]},
        {"tasks": 5},
        {"descriptors": {"first": [5], "last": None}},
        {"waits": []},
        {"resource_limits": {"first": {"group": 5}}},
        {"syscalls": {"x": "y"}},
        {"syscalls": []},
        {"complete": []},
    ],
)
def test_a_manifest_with_odd_values_gives_a_report_or_the_one_error(tmp_path, change):
    path = write_capture(tmp_path, manifest={**MANIFEST, **change})
    try:
        reports.format_summary(reports.summarize(path))
    except FleetError:
        pass


def test_captures_of_a_folder_in_order(tmp_path):
    paths = [write_capture(tmp_path / host / "api", name) for host in ("b", "a") for name in ("2", "1")]
    (tmp_path / "a" / "api" / "notes.txt").write_text("x")
    found = reports.summarize(str(tmp_path))["captures"]
    assert [one["capture"] for one in found] == ["a/api/1.dat", "a/api/2.dat", "b/api/1.dat", "b/api/2.dat"]
    assert reports.summarize(paths[0])["captures"][0]["capture"] == "2.dat"


def test_no_captures(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    summary = reports.summarize(str(tmp_path))
    assert summary == {"captures": [], "skipped": []}
    assert reports.format_summary(summary) == "No capture: there is nothing to report on.\n"
    for check_mode in (True, False):
        assert reports.write(summary, str(tmp_path / "x"), ["json", "text"], check_mode=check_mode) == (False, {})
    assert not (tmp_path / "x").exists()
    with pytest.raises(FleetError, match="there is no capture"):
        reports.summarize(str(tmp_path / "nonesuch"))


def test_only_the_captures_that_are_named_are_summarized(tmp_path):
    for name in ("old", "api", "db"):
        write_capture(tmp_path / name, manifest=MANIFEST)
    stamp = "20261121T231500.000000Z.dat"
    paths = [str(tmp_path / name / stamp) for name in ("api", "db", "gone", "api")]
    skipped = []
    summary = {
        "captures": list(capture_summary.gen_captures(dict.fromkeys(paths), str(tmp_path), skipped)),
        "skipped": skipped,
    }
    assert [one["capture"] for one in summary["captures"]] == [f"api/{stamp}", f"db/{stamp}"]
    assert summary["skipped"] == [
        {"path": f"gone/{stamp}", "reason": "it is not there", "next_step": "fetch it again, or leave it out"}
    ]
    assert list(capture_summary.gen_captures([], str(tmp_path), [])) == []


def test_a_report_is_written_once(tmp_path):
    dest = tmp_path / "reports"
    summary = {"captures": [make_capture(make_row())], "skipped": []}
    changed, files = reports.write(summary, str(dest), ["json", "text"], check_mode=True)
    assert changed
    assert not dest.exists()
    assert reports.write(summary, str(dest), ["json", "text"]) == (True, files)
    assert json.loads((dest / "summary.json").read_text()) == summary
    assert (dest / "summary.txt").read_text() == reports.format_summary(summary)
    assert sorted(path.name for path in dest.iterdir()) == ["summary.json", "summary.txt"]
    assert reports.write(summary, str(dest), ["json", "text"])[0] is False
    (dest / "summary.txt").write_bytes(b"\xff")
    assert reports.write(summary, str(dest), ["json", "text"], check_mode=True)[0] is True
    assert reports.write(summary, str(dest), ["json"]) == (False, {"json": files["json"]})


def test_a_report_that_is_not_finished_leaves_no_trace(tmp_path):
    summary = {"captures": [make_capture(make_row())], "skipped": []}
    reports.write(summary, str(tmp_path), ["json"])
    with pytest.raises(KeyError), report_files.ReportWriter(
        str(tmp_path), ["json", "text"], check_mode=False
    ) as writer:
        writer.add(make_capture())
        writer.add({})
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


@pytest.mark.parametrize(("captures", "skipped"), [(0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 2)])
def test_what_is_written_piece_by_piece_is_one_document(tmp_path, captures, skipped):
    summary = {
        "captures": [make_capture(make_row())] * captures,
        "skipped": [{"path": "x.dat", "reason": "cut", "next_step": "fetch"}] * skipped,
    }
    reports.write(summary, str(tmp_path), ["json", "text"])
    assert (tmp_path / "summary.json").read_text() == json.dumps(summary, indent=1) + "\n"
    text = (tmp_path / "summary.txt").read_text()
    assert text.count("api on web1: ") == captures
    assert text.count("Skipped: x.dat: cut; fetch\n") == skipped
    assert text.endswith("\n") and not text.endswith("\n\n")


def make_page(folder, captures, skipped=(), formats=("text",)):
    """The page of a report of CAPTURES."""
    with report_files.ReportWriter(str(folder), list(formats), check_mode=False) as writer:
        for one in captures:
            writer.add(one)
        writer.finish(list(skipped))
        return writer.lines


def test_a_short_report_is_its_page(tmp_path):
    captures = [make_capture(make_row())] * 2
    skipped = [{"path": "x.dat", "reason": "cut", "next_step": "fetch"}]
    page = make_page(tmp_path, captures, skipped)
    assert page == (tmp_path / "summary.txt").read_text().splitlines()
    assert page[-2:] == ["", "Skipped: x.dat: cut; fetch"]


def test_many_captures_share_a_page(tmp_path):
    """Each has its line and its first rows, and what is incomplete is said; the rest is in the file."""
    rows = [make_row(syscall=f"call{number}") for number in range(12)]
    rows[0]["paths"] = [
        {"path": "/seldom", "calls": 1, "errors": {"ENOENT": 1}},
        {"path": "/of\x1bten", "calls": 9, "errors": {"ENOENT": 9}},
    ]
    captures = [make_capture(*rows) for _number in range(8)]
    captures[3].update(complete=False, reasons=["7 events were lost"])
    skipped = [{"path": "x.dat", "reason": "cut", "next_step": "fetch"}]
    page = make_page(tmp_path, captures, skipped)
    assert len(page) <= 28
    titles = [line for line in page if " on web1: " in line]
    assert len(titles) == 8
    assert all(line.endswith("(10 more rows)") for line in titles)
    assert [index for index, line in enumerate(titles) if "INCOMPLETE: 7 events were lost" in line] == [3]
    assert [sum(f" call{number} " in line for line in page) for number in range(3)] == [8, 8, 0]
    assert sum(": '/of?ten'" in line for line in page) == 8
    assert page[-2:] == [
        "Skipped: x.dat: cut; fetch",
        f"This is the beginning; all of it is in {tmp_path}/summary.txt",
    ]
    assert "formats=text" in make_page(tmp_path, captures, formats=["json"])[-1]
    one = make_page(tmp_path, [make_capture(*(rows * 8))])
    assert len(one) <= 61


def test_a_page_is_bounded(tmp_path):
    page = make_page(tmp_path, [make_capture(make_row())] * 700)
    assert len(page) == 1 + 2 * 500 + 2
    assert page[-2] == "and 200 more captures"


def make_crowd(processes, calls_each=14, name=b"true"):
    """A trace of so many processes of one name, each of which makes so many different calls; the last one's fail."""
    made = []
    for process in range(processes):
        tid = 1000 + process
        records = [pages.make_newtask(999, tid, name % process if b"%" in name else name)]
        for call in range(calls_each):
            records += [
                pages.make_enter(tid, call),
                pages.make_exit(tid, call, -2 if process == processes - 1 else 0),
            ]
        for place, record in enumerate(records):
            made.append(pages.pack_page((process * 1000 + place + 1) * 1000, [pages.pack_event(record)]))
    return pages.pack_trace([made])


@pytest.mark.sweep
def test_memory_is_that_of_one_capture(tmp_path):
    data = make_crowd(20)
    peaks = []
    for count in (1, 1, 6):  # the first one imports
        for number in range(count):
            write_capture(tmp_path / "traces", str(number), data=data)
        request = {"src": str(tmp_path / "traces"), "dest": str(tmp_path / "report"), "formats": ["json", "text"]}
        tracemalloc.start()
        try:
            result = report_process.make_report(request)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert [len(one["processes"]) for one in json.loads(Path(result["files"]["json"]).read_text())["captures"]] == [
        280
    ] * 6
    assert len(result["summary"]["captures"]) == 6 and result["warnings"] == []
    assert peaks[2] < peaks[1] * 1.5  # all rows of six captures would be six times as much


@pytest.mark.sweep
def test_many_short_processes_of_one_program_share_rows(tmp_path):
    write_capture(tmp_path, data=make_crowd(200))
    (one,) = reports.summarize(str(tmp_path))["captures"]
    rows = one["processes"]
    assert len(rows) <= 1000
    assert sum(row["calls"] for row in rows) == sum(row["calls"] for row in one["programs"]) == 200 * 14
    assert sum(row["total_ns"] for row in rows) == sum(row["total_ns"] for row in one["programs"]) == 200 * 14 * 1000
    # The one that has failed has its own, whenever it came.
    assert [(row["pids"], row["failures"]) for row in rows[:14]] == [([1199], 1)] * 14
    shared = [row for row in rows if row["process_count"] > 1]
    assert len(shared) == 14
    assert {row["name"] for row in shared} == {"true"}
    assert [len(row["pids"]) for row in shared] == [100] * 14
    counts = {row["process_count"] for row in shared}
    assert counts == {200 - (len(rows) - 14) // 14}
    assert "200 of them" in reports.format_summary({"captures": [one], "skipped": []})


@pytest.mark.sweep
def test_few_processes_have_rows_of_their_own(tmp_path):
    write_capture(tmp_path, data=make_crowd(71))
    (one,) = reports.summarize(str(tmp_path))["captures"]
    assert len(one["processes"]) == 71 * 14
    assert all(row["process_count"] == 1 for row in one["processes"])


@pytest.mark.sweep
def test_names_and_calls_without_number_are_bounded(tmp_path):
    write_capture(tmp_path, data=make_crowd(1200, 2, b"t%d"))
    (one,) = reports.summarize(str(tmp_path))["captures"]
    for rows in (one["processes"], one["programs"]):
        assert len(rows) <= 1000
        assert sum(row["calls"] for row in rows) == 2400
        assert {row["syscall"] for row in rows if row["name"] == "(other programs)"} == {
            "syscall_0x0",
            "syscall_0x1",
        }
        assert rows[0]["name"] == "t1199"
    write_capture(tmp_path, data=make_crowd(1, 1500))
    (one,) = reports.summarize(str(tmp_path))["captures"]
    for rows in (one["processes"], one["programs"]):
        assert len(rows) <= 1000
        assert sum(row["calls"] for row in rows) == 1500
        assert [row["compat"] for row in rows if row["syscall"] == "(other calls)"] == [False]


@pytest.mark.sweep
def test_who_makes_calls_up_takes_the_place_of_no_other(tmp_path):
    tid, made = 7000, []
    for call in range(1100):
        records = [pages.make_enter(tid, 10000 + call), pages.make_exit(tid, 10000 + call, -38)]
        for place, record in enumerate(records):
            made.append(pages.pack_page((call * 2 + place + 1) * 1000, [pages.pack_event(record)]))
    for place, record in enumerate([pages.make_enter(5, 257), pages.make_exit(5, 257, -2)]):
        made.append(pages.pack_page(10**9 + place * 1000, [pages.pack_event(record)]))
    write_capture(tmp_path, data=pages.pack_trace([made], cmdlines=b"5 web\n7000 evil\n"))
    (one,) = reports.summarize(str(tmp_path))["captures"]
    for rows in (one["processes"], one["programs"]):
        assert len(rows) <= 1000
        assert [(row["name"], row["pids"]) for row in rows if row["syscall"] == "syscall_0x101"] == [("web", [5])]
        assert sum(row["failures"] for row in rows) == 1101
