# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Findings of several captures become one whose statement stays true, and the worst one comes first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import (
    MAX_EVIDENCE,
    MAX_PIDS,
    Evidence,
    Finding,
    Number,
    Place,
    Thing,
    describe,
    merge,
)

FINDING = Finding(
    rule="failures",
    template="{program} cannot {call} {object}: {error}, {often}, waited up to {longest} for {what}",
    severity=40,
    next="true",
    program="web",
    call="openat",
    error="ENOENT",
    object=Thing("path", "/etc/x"),
    words={"what": "{count}"},
    numbers={"longest": Number(1.5e6, "max", "ns"), "bytes": Number(2048, "sum", "bytes"), "least": Number(3, "min")},
    container_pids=(1, 7),
    where=(Place("web1", "api"),),
    count=3,
    of=4,
    first="2026-11-21T23:15:00.000+00:00",
    last="2026-11-21T23:15:09.000+00:00",
    evidence=(Evidence("web1/x.dat", "2026-11-21T23:15:00.000+00:00"),),
)
OTHER = replace(
    FINDING,
    numbers={"longest": Number(2.5e9, "max", "ns"), "bytes": Number(1024, "sum", "bytes"), "least": Number(2, "min")},
    container_pids=(7, 9),
    where=(Place("web2", "api"),),
    count=5,
    of=5,
    first="2026-11-21T23:14:00.000+00:00",
    last="2026-11-21T23:14:09.000+00:00",
    evidence=(Evidence("web2/x.dat", None),),
    confidence="inferred",
    missing="7 events were lost",
)


def test_a_statement_is_made_of_its_parts_and_texts_are_no_templates():
    assert FINDING.statement == ("web cannot openat /etc/x: ENOENT, 3 of 4 times, waited up to 1.5 ms for {count}")
    assert replace(FINDING, template="{nonesuch} {bytes} {of}", of=None).statement == "{nonesuch} 2.0 KiB 3"
    assert replace(FINDING, object=Thing("path", "{count}")).statement.startswith("web cannot openat {count}: ")
    assert [replace(FINDING, of=None, count=count).often for count in (1, 2)] == ["once", "2 times"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(1484200, "1484200"), (1048576.0, "1048576"), (7, "7"), (1600.0, "1600"), (0.333333, "0.333"), (12.25, "12.2")],
)
def test_a_number_has_no_exponent(value, text):
    assert str(Number(value)) == text


def test_equal_findings_become_one_that_is_true_of_both():
    assert FINDING.key == OTHER.key
    found = merge(FINDING, OTHER)
    assert found == merge(OTHER, FINDING)
    assert found.statement.endswith("ENOENT, 8 of 9 times, waited up to 2.5 s for {count}")
    assert (str(found.numbers["bytes"]), str(found.numbers["least"])) == ("3.0 KiB", "2")
    assert (found.count, found.of, found.container_pids) == (8, 9, (1, 7, 9))
    assert found.where == (Place("web1", "api"), Place("web2", "api"))
    assert (found.first, found.last) == (OTHER.first, FINDING.last)
    assert (found.confidence, found.missing) == ("inferred", "7 events were lost")
    assert merge(FINDING, replace(OTHER, of=None)).of is None
    assert merge(FINDING, replace(OTHER, first=None)).first == FINDING.first
    assert merge(replace(FINDING, first=None), replace(OTHER, first=None)).first is None


def test_losses_of_several_captures_stay_a_short_text():
    found = replace(FINDING, missing="3 events were lost")
    for _capture in range(3):
        found = merge(found, OTHER)
    assert found.missing in (f"{count} events were lost; more in other captures" for count in (3, 7))


@pytest.mark.parametrize(
    "change",
    [
        {"rule": "waits"},
        {"program": "db"},
        {"image": "shop/db"},
        {"call": "open"},
        {"error": "EACCES"},
        {"object": None},
        {"object": Thing("peer", "/etc/x")},
        {"words": {"what": "more"}},
        {"template": "{program} fails"},
    ],
)
def test_findings_about_something_else_have_other_keys(change):
    assert replace(FINDING, **change).key != FINDING.key


def test_lists_of_a_merged_finding_are_bounded_and_evidence_is_of_many_files():
    found = FINDING
    for number in range(100):
        moments = tuple(Evidence(f"web{number}/x.dat", f"2026-11-21T23:15:0{second}.000+00:00") for second in range(5))
        found = merge(
            found,
            replace(FINDING, container_pids=(number,), where=(Place(f"web{number}", "api"),), evidence=moments),
        )
    assert len(found.container_pids) == MAX_PIDS and len(found.where) == 100
    assert len({moment.file for moment in found.evidence}) == len(found.evidence) == MAX_EVIDENCE
    entry = describe(found)
    assert (len(entry["where"]), entry["containers"], entry["hosts"], entry["count"]) == (20, 100, 100, 303)


def test_the_worst_finding_comes_first():
    severe = replace(FINDING, severity=80, program="a")
    wide = replace(FINDING, where=(Place("web1", "api"), Place("web1", "db")), program="b")
    frequent = replace(FINDING, count=1000, program="c")
    findings = [frequent, FINDING, wide, severe]
    for _turn in range(2):
        findings.reverse()
        assert sorted(findings, key=lambda finding: finding.rank) == [severe, wide, frequent, FINDING]


def test_an_entry_has_no_lone_surrogates():
    assert describe(replace(FINDING, object=Thing("path", "/\udcff")))["object"]["text"] == "/\\udcff"
