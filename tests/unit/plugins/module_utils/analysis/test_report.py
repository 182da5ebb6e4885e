# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Summaries of captures, and texts of them that a terminal may be shown."""

from __future__ import annotations

import json
import sys

import pytest

if sys.version_info < (3, 11):
    pytest.skip("the controller runs Python 3.11 or newer", allow_module_level=True)
pytest.importorskip("numpy")

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis import report
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages

EVIL = "\x1b]0;owned\x07\x1b[2J\r\n\x9b31m\u202eevil\x00\u200b"


def make_row(name="web", syscall="read", **values):
    return {
        "name": name,
        "pids": [5],
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
    return report.format_summary({"captures": [make_capture(*programs, **values)], "skipped": []})


def is_harmless(text):
    return all(character.isprintable() for line in text.split("\n") for character in line)


def test_a_table():
    lines = format_one(
        make_row(), make_row("a longer name", "openat", pids=[7, 8], errors={}, measured=0, p99_ns=None)
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
    summary = report.summarize_source(str(tmp_path))
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
    assert is_harmless(report.format_summary(summary))
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
    (one,) = report.summarize_source(str(tmp_path))["captures"]
    assert (one["complete"], one["reasons"]) == (not reasons, reasons)


def test_a_capture_without_a_manifest(tmp_path):
    summary = report.summarize_source(write_capture(tmp_path))
    (one,) = summary["captures"]
    assert (one["host"], one["container"], one["complete"], one["start"]) == (None, None, None, None)
    assert [row["syscall"] for row in one["programs"]] == ["syscall_0x101", "syscall_0x0"]
    assert "loss unknown" in report.format_summary(summary)


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
        {"syscalls": {"x": "y"}},
        {"syscalls": []},
        {"complete": []},
    ],
)
def test_a_manifest_with_odd_values_gives_a_report_or_the_one_error(tmp_path, change):
    path = write_capture(tmp_path, manifest={**MANIFEST, **change})
    try:
        report.format_summary(report.summarize_source(path))
    except FleetError:
        pass


def test_captures_of_a_folder_in_order(tmp_path):
    paths = [write_capture(tmp_path / host / "api", name) for host in ("b", "a") for name in ("2", "1")]
    (tmp_path / "a" / "api" / "notes.txt").write_text("x")
    found = report.summarize_source(str(tmp_path))["captures"]
    assert [one["capture"] for one in found] == ["a/api/1.dat", "a/api/2.dat", "b/api/1.dat", "b/api/2.dat"]
    assert report.summarize_source(paths[0])["captures"][0]["capture"] == "2.dat"


def test_no_captures(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    summary = report.summarize_source(str(tmp_path))
    assert summary == {"captures": [], "skipped": []}
    assert report.format_summary(summary) == "No capture: there is nothing to report on.\n"
    for check_mode in (True, False):
        assert report.write_report(summary, str(tmp_path / "x"), ["json", "text"], check_mode=check_mode) == (False, {})
    assert not (tmp_path / "x").exists()
    with pytest.raises(FleetError, match="there is no capture"):
        report.summarize_source(str(tmp_path / "nonesuch"))


def test_only_the_captures_that_are_named_are_summarized(tmp_path):
    for name in ("old", "api", "db"):
        write_capture(tmp_path / name, manifest=MANIFEST)
    stamp = "20261121T231500.000000Z.dat"
    paths = [str(tmp_path / name / stamp) for name in ("api", "db", "gone", "api")]
    summary = report.summarize_captures(paths, str(tmp_path))
    assert [one["capture"] for one in summary["captures"]] == [f"api/{stamp}", f"db/{stamp}"]
    assert summary["skipped"] == [
        {"path": f"gone/{stamp}", "reason": "it is not there", "next_step": "fetch it again, or leave it out"}
    ]
    assert report.summarize_captures([], str(tmp_path)) == {"captures": [], "skipped": []}


def test_a_report_is_written_once(tmp_path):
    dest = tmp_path / "reports"
    summary = {"captures": [make_capture(make_row())], "skipped": []}
    changed, files = report.write_report(summary, str(dest), ["json", "text"], check_mode=True)
    assert changed
    assert not dest.exists()
    assert report.write_report(summary, str(dest), ["json", "text"], check_mode=False) == (True, files)
    assert json.loads((dest / "summary.json").read_text()) == summary
    assert (dest / "summary.txt").read_text() == report.format_summary(summary)
    assert sorted(path.name for path in dest.iterdir()) == ["summary.json", "summary.txt"]
    assert report.write_report(summary, str(dest), ["json", "text"], check_mode=False)[0] is False
    (dest / "summary.txt").write_bytes(b"\xff")
    assert report.write_report(summary, str(dest), ["json", "text"], check_mode=True)[0] is True
    assert report.write_report(summary, str(dest), ["json"], check_mode=False) == (False, {"json": files["json"]})


def test_a_result_holds_the_text_as_lines_up_to_a_bound(monkeypatch):
    summary = {"captures": [make_capture(make_row())], "skipped": []}
    text = report.format_summary(summary)
    assert report.format_lines(summary) == text.splitlines()
    assert all("\n" not in line for line in report.format_lines(summary))
    monkeypatch.setattr(report, "_MAX_LINES", 2)
    assert report.format_lines(summary) == [
        *text.splitlines()[:2],
        f"and {len(text.splitlines()) - 2} more lines in summary.txt",
    ]
