# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which captures retention chooses, and that nothing else of the store is removed."""

from __future__ import annotations

import os
import random
from dataclasses import replace

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store.records import make_record
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store.removal import remove_captures
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store.retention import (
    Limits,
    choose,
    find_clock_problem,
    parse_limits,
)
from ansible_collections.crashcart.fleet.tests.unit.plugins.plugin_utils.store.stores import (
    DAY,
    HOUR,
    NOW,
    Clock,
    list_paths,
    make_manifest,
    open_store,
    write_capture,
)

EVERY = {"keep_age": "1d", "keep_count": "1", "keep_size": "1B", "keep_total": "1B"}


def make(name, days, *, added=None, host="web1", container="api", size=100):
    """A record of a capture that ended DAYS ago and came ADDED days ago, which is at its end where nothing is said."""
    end = int(NOW - days * DAY)
    manifest = make_manifest(host, container, end - HOUR, end)
    record = make_record(f"{host}/{container}/{name}.dat", manifest, size, NOW)
    return record.came("run", int(NOW - (days if added is None else added) * DAY))


def names(chosen):
    return [path.rpartition("/")[2][:-4] for path in chosen]


def limit(**options):
    return parse_limits({f"keep_{name}": value for name, value in options.items()})


def test_containers_of_one_name_of_two_engines_or_users_are_two():
    def make_of(name, days, **about):
        manifest = make_manifest(end=int(NOW - days * DAY))
        manifest["container"].update(about)
        return make_record(f"web1/api/{name}.dat", manifest, 100, NOW).came("run", int(NOW - days * DAY))

    records = [make_of("docker", 9), make_of("old", 5, owner_uid=1000, runtime="podman")]
    records += [
        make_of("user", 3, owner_uid=1000, runtime="podman"),
        make_of("other", 4, owner_uid=1001, runtime="podman"),
    ]
    assert names(choose(records, limit(count="1"), NOW)) == ["old"]
    assert names(choose([make("one", 9), make("two", 5)], limit(count="1"), NOW)) == ["one"]


def test_without_limits_nothing_is_chosen():
    records = [make(str(number), number * 100) for number in range(9)]
    assert choose(records, parse_limits({}), NOW) == {} and not parse_limits({"keep_free": "1GiB"}).are_set
    assert choose([], limit(age="1d", total="1B"), NOW) == {}


def test_what_is_older_than_the_limit_is_chosen_the_oldest_first():
    records = [make("b", 15), make("a", 20), make("d", 3), make("c", 13.9)]
    assert choose(records, limit(age="14d"), NOW) == {
        "web1/api/a.dat": "keep_age=14d",
        "web1/api/b.dat": "keep_age=14d",
    }


@pytest.mark.parametrize("options", [*({name: value} for name, value in EVERY.items()), EVERY])
def test_each_container_keeps_its_newest_whatever_the_limits_are(options):
    records = [
        *(make(str(number), 100 + number) for number in range(5)),
        make("only", 3000, host="web2"),
        make("other", 2000, container="db", size=10**12),
    ]
    chosen = choose(records, parse_limits(options), NOW)
    assert set(names(chosen)) <= {"1", "2", "3", "4"}
    assert choose([record for record in records if record.path not in chosen], parse_limits(EVERY), NOW).keys() == {
        record.path for record in records[1:5] if record.path not in chosen
    }


@pytest.mark.parametrize("options", [*({name: value} for name, value in EVERY.items()), EVERY])
def test_nothing_that_came_less_than_a_day_ago_is_chosen(options):
    records = [
        make("old", 900, added=0.99),
        make("older", 950, added=0),
        make("ahead", 950, added=-5),
        make("newest", 0.1),
        make("may", 900, added=1.01),
    ]
    assert set(names(choose(records, parse_limits(options), NOW))) <= {"may"}
    assert names(choose(records, parse_limits(EVERY), NOW)) == ["may"]


def test_an_age_is_counted_from_the_end_but_no_later_than_when_it_came():
    ahead = make("ahead", -400, added=20)  # its host's clock was a year ahead
    behind = make("behind", 20000, added=2)
    newest = make("newest", 0.5)
    assert names(choose([ahead, behind, newest], limit(age="14d"), NOW)) == ["behind", "ahead"]
    # The one that came last is the newest, whatever later time the other one claims.
    assert names(choose([ahead, make("came", 10)], limit(count=1), NOW)) == ["ahead"]


def test_two_captures_almost_a_week_apart():
    week = 7 - 1 / 86400
    records = [make("first", 2 + week), make("second", 2)]
    assert choose(records, limit(age="9d"), NOW) == {}
    assert names(choose(records, limit(age="8d"), NOW)) == ["first"]
    # An hour later the first one is past nine days.
    assert names(choose(records, limit(age="9d"), NOW + HOUR)) == ["first"]
    assert names(choose([*records, make("third", 2 + week, container="db")], limit(age="7d"), NOW)) == ["first"]


def test_a_host_with_a_hundred_captures_beside_one_with_one():
    many = [make(f"{number:03}", 2 + number) for number in range(100)]
    one = make("one", 500, host="web2")
    assert names(choose([*many, one], limit(count=10), NOW)) == [f"{number:03}" for number in range(99, 9, -1)]
    assert names(choose([*many, one], limit(size="1kB"), NOW)) == [f"{number:03}" for number in range(99, 9, -1)]
    chosen = choose([*many, one], limit(total="1100B"), NOW)
    assert names(chosen) == [f"{number:03}" for number in range(99, 9, -1)] and set(chosen.values()) == {
        "keep_total=1100B"
    }
    assert choose([*many, one], limit(age="1d"), NOW).keys() == {record.path for record in many[1:]}


def test_each_limit_looks_at_what_the_others_leave():
    records = [make(str(number), 10 * number + 2, size=100) for number in range(6)]
    chosen = choose(records, limit(age="45d", count=4, size="350B", total="250B"), NOW)
    assert [why.partition("=")[0] for why in chosen.values()] == ["keep_age", "keep_count", "keep_size", "keep_total"]
    assert names(chosen) == ["5", "4", "3", "2"]


def test_any_store_keeps_the_rules():
    source = random.Random(7)
    for _round in range(300):
        records = [
            make(
                str(number),
                source.uniform(-3, 60),
                added=source.choice([0.5, 2, 30]),
                host=source.choice("ab"),
                container=source.choice("xy"),
                size=source.randrange(1000),
            )
            for number in range(source.randrange(25))
        ]
        options = {name: value for name, value in EVERY.items() if source.random() < 0.5}
        options.update({"keep_age": source.choice(["5d", "40d"])} if "keep_age" in options else {})
        chosen = choose(records, parse_limits(options), NOW)
        groups = {(record.host, record.container): [] for record in records}
        for record in records:
            groups[record.host, record.container].append(record)
            assert record.path not in chosen or NOW - record.added_ns >= DAY
        for group in groups.values():
            newest = max(group, key=lambda record: (record.aged_from_ns, record.added_ns, record.path))
            assert newest.path not in chosen
        assert choose(reversed(records), parse_limits(options), NOW) == chosen


@pytest.mark.parametrize(
    ("now", "times", "latest", "words"),
    [
        (0, [], 0, None),
        (30 * DAY, [], 0, None),
        (HOUR, [0], 0, None),
        (25 * HOUR, [0], 0, "may have jumped"),
        (25 * HOUR, [0, HOUR], 0, None),
        (26 * HOUR, [0, HOUR], 0, "may have jumped"),
        (21 * DAY, [0, 7 * DAY], 0, None),
        (22 * DAY, [0, 7 * DAY], 0, "the last run was 15.0 days ago"),
        (13 * DAY, [0, 7 * DAY], 0, None),
        (26 * HOUR, [9 * DAY, HOUR], 0, "may have jumped"),
        (7 * DAY - 1, [0, 7 * DAY], 0, "which is before 1970-01-08T00:00:00Z"),
        (HOUR, [0], 2 * HOUR, "which is before 1970-01-01T02:00:00Z"),
    ],
)
def test_a_clock_that_was_set_back_or_has_jumped(now, times, latest, words):
    problem = find_clock_problem(now, times, latest)
    assert problem is None if words is None else (words in problem and "nothing is removed this time" in problem)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep_age": "soon"}, "keep_age: 'soon' is not a time"),
        ({"keep_age": "14"}, "keep_age: '14' is less than a day, and nothing that came within a day is removed"),
        ({"keep_count": "0"}, "keep_count: '0' is not a number of captures"),
        ({"keep_count": "-3"}, "keep_count: "),
        ({"keep_count": "1" * 30}, "keep_count: "),
        ({"keep_size": "5"}, "keep_size: '5' is not a size"),
        ({"keep_total": "0B"}, "keep_total: '0B' would keep nothing"),
        ({"keep_free": "much"}, "keep_free: 'much' is not a size"),
    ],
)
def test_a_limit_that_is_none_is_an_error(options, words):
    with pytest.raises(FleetError, match=words):
        parse_limits(options)


def test_limits_are_what_they_say():
    limits = parse_limits(
        {"keep_age": "14d", "keep_count": 100, "keep_size": "2GiB", "keep_total": "50GiB", "path": "x"}
    )
    assert limits == Limits(14 * DAY, 100, 2 << 30, 50 << 30, None, limits.texts)
    assert limits.explain("keep_count") == "keep_count=100"


def test_files_are_removed_with_their_empty_folders_and_no_others(tmp_path):
    path = write_capture(tmp_path, "a", text="events")
    other = write_capture(tmp_path, "b", host="web2", text="events")
    (other.parent / "note").write_text("mine")
    (tmp_path / "report").mkdir()
    with open_store(tmp_path) as catalogue:
        catalogue.sync()
        reasons = {"web1/api/a.dat": "why", "web2/api/b.dat": "why"}
        catalogue.plan_removal(reasons)
        assert remove_captures(catalogue, reasons, NOW) == (reasons, {})
        assert catalogue.list_there() == []
        assert catalogue.sync().gone == []
    assert not path.parent.parent.exists() and os.listdir(other.parent) == ["note"] and (tmp_path / "report").exists()


def test_no_link_leads_out_of_the_store(tmp_path):
    store, outside = tmp_path / "store", tmp_path / "outside"
    path = write_capture(store, "a")
    write_capture(store, "b", host="web2")
    kept = write_capture(outside, "a")
    with open_store(store) as catalogue:
        catalogue.sync()
        path.parent.parent.rename(store / "moved")
        (store / "web1").symlink_to(outside / "web1")
        reasons = dict.fromkeys(["web1/api/a.dat", "web2/api/b.dat", "../outside/web1/api/a.dat"], "why")
        removed, problems = remove_captures(catalogue, reasons, NOW)
    assert list(removed) == ["web2/api/b.dat"] and kept.exists() and kept.with_suffix(".json").exists()
    assert set(problems) == {"web1/api/a.dat", "../outside/web1/api/a.dat"}


def test_a_file_that_cannot_be_removed_is_named_and_the_others_go(tmp_path):
    path = write_capture(tmp_path, "a")
    odd = write_capture(tmp_path, "b")
    other = write_capture(tmp_path, "c")
    with open_store(tmp_path) as catalogue:
        catalogue.sync()
        path.unlink()
        path.mkdir()
        odd.with_suffix(".json").unlink()
        odd.with_suffix(".json").mkdir()
        reasons = {f"web1/api/{name}.dat": "why" for name in "abc"}
        catalogue.plan_removal(reasons)
        removed, problems = remove_captures(catalogue, reasons, NOW)
        assert list_paths(catalogue) == ["web1/api/a.dat"]
    assert list(removed) == ["web1/api/b.dat", "web1/api/c.dat"] and not other.exists() and not odd.exists()
    assert list(problems) == ["web1/api/a.dat", "web1/api/b.dat"]
    assert "a.dat is no regular file" in problems["web1/api/a.dat"] and path.with_suffix(".json").exists()


def test_a_removal_that_was_killed_is_finished(tmp_path):
    path = write_capture(tmp_path, "a", text="events")
    other = write_capture(tmp_path, "b")
    with open_store(tmp_path) as catalogue:
        catalogue.sync()
        catalogue.plan_removal({"web1/api/a.dat": "keep_age=1d", "web1/api/b.dat": "keep_age=1d"})
        path.unlink()  # the kill comes here
    with open_store(tmp_path, Clock(NOW + HOUR)) as catalogue:
        found = catalogue.sync()
        assert found.unfinished == {"web1/api/a.dat": "keep_age=1d"} and found.gone == [] and found.added == []
        (record,) = catalogue.list_there()
        assert (record.path, record.added_ns) == ("web1/api/b.dat", NOW)
        remove_captures(catalogue, found.unfinished, found.now_ns)
    assert sorted(os.listdir(other.parent)) == ["b.dat", "b.json"]


def test_a_record_is_what_choose_needs():
    record = make("a", 3)
    assert record.aged_from_ns == NOW - 3 * DAY and replace(record, added_ns=5).aged_from_ns == 5
