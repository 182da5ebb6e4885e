# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Findings as lines: two each, bounded, safe for a terminal, and all of them within the first lines."""

from __future__ import annotations

from dataclasses import replace

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import Finding, Place, Thing
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.page import format_findings

FINDING = Finding(
    rule="failures",
    template="{program}: {call} {object} failed with {error}",
    severity=40,
    next="ansible-playbook crashcart.fleet.trace -l web1",
    program="web",
    call="openat",
    error="ENOENT",
    object=Thing("path", "/etc/x"),
    container_pids=(7,),
    where=(Place("web1", "api"),),
    count=3,
    first="2026-11-21T23:15:00.123+00:00",
)


def test_a_finding_is_two_lines():
    assert format_findings([FINDING], 0, 1) == [
        "1 finding in 1 capture, in 1 container on 1 host:",
        "1. web: openat /etc/x failed with ENOENT",
        "     web pid 7 · api on web1 · 3 times · since 2026-11-21T23:15:00Z"
        " · next: ansible-playbook crashcart.fleet.trace -l web1",
    ]


def test_doubt_loss_and_many_places_are_said():
    where = tuple(Place(f"web{number}", "api") for number in range(20))
    found = replace(
        FINDING,
        where=where,
        container_pids=tuple(range(1, 9)),
        confidence="inferred",
        missing="7 events were lost",
        first=None,
    )
    _title, statement, details = format_findings([found], 0, 20)
    assert statement.endswith("ENOENT (inferred)")
    assert "web pid 1, 2, 3 and 5 more · api on 20 hosts · 3 times · incomplete: 7 events were lost" in details
    bare = replace(FINDING, where=(Place("", ""),), container_pids=(), first=None)
    assert format_findings([bare], 0, 1)[2].startswith("     web · 3 times · next: ")


def test_no_finding_is_said():
    assert format_findings([], 0, 3) == ["No finding in 3 captures: no rule saw a failure that matters or a long wait."]


def test_twenty_findings_are_named_in_the_first_lines_and_the_rest_is_counted():
    findings = [replace(FINDING, object=Thing("path", f"/etc/{number:02}")) for number in range(23)]
    lines = format_findings(findings, 4, 9)
    assert len(lines) == 42 <= 45
    for number in range(20):
        assert f"{number + 1}. web: openat /etc/{number:02} failed" in lines[1 + 2 * number]
    assert lines[-1] == "3 more findings of lower rank are in findings.json; 4 that rank lowest are nowhere"
    assert format_findings(findings[:21], 0, 9)[-1] == "1 more finding of lower rank is in findings.json"
    assert format_findings(findings, 0, 9, is_written=False)[-1].startswith("3 more of lower rank: formats=json ")
    assert "of lower rank" not in format_findings(findings[:20], 0, 9)[-1]


def test_lines_are_bounded_and_show_no_terminal_what_it_obeys():
    evil = "/\x1b[2J\r\n\u202e" + "x" * 500
    found = replace(
        FINDING,
        object=Thing("path", evil),
        program=evil,
        where=(Place(evil, evil),),
        missing=evil,
        confidence="likely",
        next=f"ls {evil}",
    )
    for line in format_findings([found], 0, 1):
        assert line.isprintable() and len(line) <= 200
    assert format_findings([found], 0, 1)[1].endswith("… (likely)")
    assert format_findings([found], 0, 1)[2].endswith("next: see findings.json (formats=json)")


def test_a_command_is_never_cut():
    command = "ansible-playbook crashcart.fleet.exec " + "y" * 100
    found = replace(FINDING, next=command, missing="m" * 100)
    line = format_findings([found], 0, 1)[2]
    assert line.endswith(f"… · next: {command}") and len(line) <= 215
