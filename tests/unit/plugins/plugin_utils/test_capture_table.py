# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of captures at a run's end: a row for each container, what is wrong first, a bound, and where the files are."""

from __future__ import annotations

from ansible_collections.crashcart.fleet.plugins.plugin_utils.capture_table import MAX_ROWS, make_lines


def make(host, name, entries=10, **more):
    time = {"start": {"real_time_ns": 10**18}, "end": {"real_time_ns": 10**18 + 2_600_000_000}}
    manifest = {"inventory_hostname": host, "container": {"name": name}, "entries": entries, "lost": 0, "time": time}
    path = more.pop("path", f"/t/{host}/{name}/1.dat")
    return {"path": path, "manifest": {**manifest, "complete": True, **more}}


def test_one_capture():
    assert make_lines([make("web1", "api", 644)], "/t/report") == [
        "HOST  CONTAINER  EVENTS  LOST  SECONDS",
        "web1  api           644     0      2.6  complete",
        "capture: /t/web1/api/1.dat",
        "report: /t/report",
    ]


def test_what_is_wrong_comes_first_and_captures_of_a_container_are_one_row():
    lines = make_lines(
        [
            make("web1", "api", 1),
            make("web1", "api", 2),
            make("web2", "db", lost=7, complete=False, reasons=["7 events were lost"], stopped="its ttl is over"),
            make("web3", "idle", 0, path=None, time={"start": None, "end": None}),
        ]
    )
    assert lines == [
        "HOST  CONTAINER  EVENTS  LOST  SECONDS",
        "web2  db             10     7      2.6  7 events were lost; stopped: its ttl is over",
        "web3  idle            0     0        -  nothing was recorded",
        "web1  api             3     0      2.6  complete",
        "captures: 3 in /t, as HOST/CONTAINER/TIME.dat",
    ]


def test_the_table_is_short_and_safe_for_a_terminal():
    captures = [make(f"h{number:03}", "a\x1b[2Jb") for number in range(200)]
    lines = make_lines(captures)
    assert len(lines) == MAX_ROWS + 3
    assert lines[-2] == "  and 180 more containers, all complete"
    assert not any("\x1b" in line for line in lines)
    assert (
        "3 of them not complete" in make_lines([*captures, *(make(f"x{n}", "b", stopped="x") for n in range(23))])[-2]
    )


def test_nothing_is_told():
    assert make_lines([]) == ["Nothing came from any host: no trace there had anything to fetch."]


def test_a_manifest_of_another_form_is_no_error():
    odd = {"path": "/t/h/c/1.dat", "manifest": {"container": None, "entries": "x", "time": [], "reasons": 1}}
    assert make_lines([odd])[1] == "?     ?               0     0        -  it may not be complete"
