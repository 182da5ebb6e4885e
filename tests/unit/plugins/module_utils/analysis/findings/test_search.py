# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""All rules look at all captures; a rule that fails costs the others nothing, and the number of findings is bounded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, ValidationError

from ansible_collections.crashcart.fleet.plugins.module_utils import errors
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings import (
    document,
    registry,
    search,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture import Capture
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import Finding, Thing
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rule import Rule
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.findings.captures import (
    Call,
    make_capture,
)

TOP = Path(errors.__file__).parents[2]
SCHEMA = json.loads((TOP / "docs/findings.schema.json").read_text(encoding="utf-8"))


def make_document(looking):
    """Return findings.json of the search LOOKING, as it is read again."""
    findings = looking.finish()
    found = document.make_document(findings, looking.captures, looking.dropped, looking.problems)
    return json.loads(document.format_document(found))


def test_findings_of_several_captures_become_one_document():
    looking = search.Search()
    for host in ("web1", "web2", "web3"):
        looking.add(
            make_capture(Call("openat", "/etc/x\udcff", "EACCES", count=2), Call("openat", "/etc/y"), host=host)
        )
    found = make_document(looking)
    Draft202012Validator.check_schema(SCHEMA)
    Draft202012Validator(SCHEMA).validate(found)
    (entry,) = found["findings"]
    assert (entry["count"], entry["hosts"], entry["rule"], entry["error"]) == (6, 3, "failures", "EACCES")
    assert entry["statement"] == "web could not open /etc/x\\udcff: permission denied (EACCES), 6 of 6 times"
    assert (entry["first"], entry["container_pids"]) == ("2026-11-21T23:15:00.000+00:00", [711])
    assert (found["captures"], found["dropped"], found["problems"]) == (3, 0, [])


def test_programs_of_one_name_are_others_in_another_image():
    def count_findings(call, *images):
        looking = search.Search()
        for number, image in enumerate(images):
            looking.add(make_capture(replace(call, count=30), container=f"api{number}", image=image))
        return len(looking.finish())

    unnamed = Call("openat", error="EACCES", first=1.0, last=9.0)
    assert (count_findings(unnamed, "web:1", "web:1"), count_findings(unnamed, "web:1", "db:1")) == (1, 2)
    assert count_findings(unnamed, None, None) == 1
    # What is about a path, or a peer, is the same whoever says it.
    assert count_findings(replace(unnamed, object="/etc/x"), "web:1", "db:1") == 1


def test_no_findings_are_a_document():
    found = make_document(search.Search())
    Draft202012Validator(SCHEMA).validate(found)
    assert found["findings"] == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda found: found.update(more=1),
        lambda found: found.update(version=2),
        lambda found: found["findings"][0].pop("next"),
        lambda found: found["findings"][0].update(severity=101),
        lambda found: found["findings"][0].update(confidence="sure"),
        lambda found: found["findings"][0].update(where=["web1"]),
        lambda found: found["findings"][0]["object"].update(more=1),
    ],
)
def test_another_form_is_not_the_published_one(damage):
    looking = search.Search()
    looking.add(make_capture(Call("openat", "/etc/x", "EACCES")))
    found = make_document(looking)
    damage(found)
    with pytest.raises(ValidationError):
        Draft202012Validator(SCHEMA).validate(found)


def test_each_key_is_explained_and_no_other_is_allowed():
    objects, keys = [SCHEMA], 0
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
    assert keys > 25


def find_three(capture):
    for number in range(3):
        yield Finding("three", "{object}", number, "true", object=Thing("path", f"{capture.file}{number}"))


def fail(_captures):
    yield Finding("broken", "before it fails", 50, "true")
    raise ValueError("\x1b[2J")


def test_a_rule_that_fails_is_named_and_the_others_look(tmp_path):
    looking = search.Search([Rule("broken", "", find=fail, find_across=fail), Rule("three", "", find=find_three)])
    looking.add(make_capture())
    looking.add(make_capture(host="web2"))
    assert [finding.severity for finding in looking.finish()] == [2, 2, 1, 1, 0, 0]
    first, _second, across = looking.problems
    assert first == "rule broken could not look at web1/api/x.dat: ValueError: \\x1b[2J"
    assert "all captures" in across


def test_tables_that_make_no_sense_are_a_problem_and_no_crash():
    broken = make_capture(Call("openat", "/etc/x", "EACCES"))
    broken.tables.cells.task[0] = 99
    looking = search.Search()
    looking.add(broken)
    assert looking.finish() == [] and looking.problems


def test_the_number_of_findings_is_bounded_and_what_is_left_out_counted(monkeypatch):
    monkeypatch.setattr(search, "_MAX_OF_RULE", 2)
    monkeypatch.setattr(search, "_MAX_KEYS", 5)
    monkeypatch.setattr(search, "MAX_KEPT", 4)
    looking = search.Search([Rule("three", "", find=find_three)])
    for number in range(4):
        looking.add(Capture(f"x{number}", make_capture().tables, {}))
    assert [finding.severity for finding in looking.finish()] == [2, 2, 2, 1]
    assert looking.dropped == 4 + 3 + 1


def test_rules_have_the_names_of_their_files_and_titles():
    folder = Path(registry.__file__).parent / "rules"
    assert sorted(rule.name for rule in registry.RULES) == sorted(path.stem for path in folder.glob("*.py"))
    for rule in registry.RULES:
        assert rule.title and (rule.find or rule.find_across)


def test_retries_of_what_is_told_already_are_left_out():
    thing = Thing("peer", "192.0.2.1:5432 (tcp)")
    told = Finding("connections", "refused", 80, "true", error="ECONNREFUSED", object=thing)
    retold = Finding("storms", "tries", 55, "true", error="ECONNREFUSED", object=thing)
    other = replace(retold, object=Thing("peer", "192.0.2.2:80 (tcp)"))
    forks = Finding("storms", "forks", 60, "true")

    def find(_capture):
        yield from (told, retold, other, forks)

    looking = search.Search([Rule("all", "", find=find)])
    looking.add(make_capture())
    assert [finding.template for finding in looking.finish()] == ["refused", "forks", "tries"]
    assert looking.dropped == 0
