# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A report of the captures of a period, of hosts, containers and runs."""

from __future__ import annotations

import os

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store import selection
from ansible_collections.crashcart.fleet.tests.unit.plugins.plugin_utils.store.stores import (
    DAY,
    HOUR,
    NOW,
    SECOND,
    open_store,
    write_capture,
)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2h", NOW - 2 * HOUR),
        ("1d12h", NOW - 36 * HOUR),
        ("90", NOW - 90 * SECOND),
        ("2026-11-21", NOW - 23 * HOUR - 15 * 60 * SECOND),
        ("2026-11-21T23:15:00Z", NOW),
        (" 2026-11-21 23:15 ", NOW),
        ("2026-11-22T00:15:00+01:00", NOW),
        ("20261121T231500Z", NOW),
        ("2026-11-21T23:15:00.000001Z", NOW + 1000),
        ("0001-01-01T00:00:00Z", -62135596800 * SECOND),
    ],
)
def test_a_moment_is_a_time_ago_or_one_in_iso_8601(text, moment):
    assert selection.parse_moment(text, "since", NOW) == moment


@pytest.mark.parametrize("text", ["soon", "", "-2h", "2026-13-01", "2w", "yesterday", "1e99"])
def test_what_is_no_moment_is_an_error(text):
    with pytest.raises(FleetError, match="until: .* is no time: write for example 2h"):
        selection.parse_moment(text, "until", NOW)


def test_a_selection_says_what_it_is():
    assert selection.parse_selection({"src": "x", "hosts": [], "since": None}, NOW) is None
    found = selection.parse_selection({"since": "2h", "hosts": ["a", "b*"], "runs": ["r"]}, NOW)
    assert (found.since_ns, found.until_ns, found.hosts, found.containers) == (NOW - 2 * HOUR, None, ["a", "b*"], [])
    assert found.text == "since=2h hosts=a,b* runs=r"
    with pytest.raises(FleetError, match="since=1h is later than until=2h"):
        selection.parse_selection({"since": "1h", "until": "2h"}, NOW)


def choose(folder, *, check_mode=False, **arguments):
    warnings = []
    wanted = selection.parse_selection(arguments, NOW)
    paths = selection.select_captures(str(folder), wanted, warnings, check_mode=check_mode)
    return [os.path.relpath(path, folder) for path in paths], warnings


@pytest.mark.parametrize("check_mode", [False, True])
def test_captures_are_selected_after_a_look_at_the_files(tmp_path, check_mode):
    write_capture(tmp_path, "old", begin=NOW - 9 * DAY, end=NOW - 9 * DAY)
    write_capture(tmp_path, "new", host="web2")
    (tmp_path / "trace.dat").write_bytes(b"")
    for _again in range(2):
        paths, warnings = choose(tmp_path, since="2d", check_mode=check_mode)
        assert paths == ["web2/api/new.dat"]
        (warning,) = warnings
        assert warning.startswith("not selected: ") and "trace.dat: it has no manifest" in warning
    assert (tmp_path / "catalogue.sqlite").exists() is not check_mode
    assert choose(tmp_path, hosts=["web?"], check_mode=check_mode)[0] == ["web1/api/old.dat", "web2/api/new.dat"]


def test_runs_are_selected_from_a_store_that_nobody_may_write(tmp_path, monkeypatch):
    write_capture(tmp_path, "a")
    with open_store(tmp_path) as catalogue:
        catalogue.sync("run-1")
    write_capture(tmp_path, "b")
    before = (tmp_path / "catalogue.sqlite").read_bytes()
    monkeypatch.setattr(selection, "is_writable", lambda _folder: False)  # root may write anywhere
    assert choose(tmp_path, runs=["run-1"])[0] == ["web1/api/a.dat"]
    assert choose(tmp_path, containers=["api"])[0] == ["web1/api/a.dat", "web1/api/b.dat"]
    assert (tmp_path / "catalogue.sqlite").read_bytes() == before


def report(folder, **options):
    arguments = {"src": "s", "dest": "report", "formats": ["json"], "fail_on": [], "check_mode": False}
    return selection.report({**arguments, **options}, str(folder))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")


def test_a_report_of_nothing_says_so_and_does_not_fail(tmp_path, cache):
    write_capture(tmp_path / "s", "a", begin=NOW, end=NOW)
    result = report(tmp_path, hosts=["db*"])
    assert not result.get("failed") and not result["changed"] and not (tmp_path / "report").exists()
    assert result["lines"] == ["No capture in s matches hosts=db*: there is nothing to report on."]
    # A capture that matches is read, and this one is empty.
    result = report(tmp_path, hosts=["web*"])
    assert [one["path"] for one in result["summary"]["skipped"]] == ["web1/api/a.dat"]


def test_a_selection_has_a_folder_to_select_from(tmp_path, cache):
    for options in ({"src": None}, {"captures": ["s/a.dat"]}):
        with pytest.raises(FleetError, match="hosts=web1 selects captures of a folder: give src, and not captures"):
            report(tmp_path, hosts=["web1"], **options)
    assert report(tmp_path, hosts=["web1"])["msg"] == "there is no capture s"
    path = write_capture(tmp_path / "s", "a")
    result = report(tmp_path, hosts=["web1"], src=str(path))
    assert result["failed"] and "is one capture: hosts=web1 selects nothing" in result["warnings"][0]
