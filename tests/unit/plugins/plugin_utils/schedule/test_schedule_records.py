# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records of runs, and the times at which a schedule was due."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from ansible_collections.crashcart.fleet.plugins.plugin_utils.schedule import due, outcome
from ansible_collections.crashcart.fleet.plugins.plugin_utils.schedule.outcome import Host, Run
from ansible_collections.crashcart.fleet.plugins.plugin_utils.schedule.plan import Plan

METRICS = """\
# HELP crashcart_schedule_last_run_timestamp_seconds When the last run began.
# TYPE crashcart_schedule_last_run_timestamp_seconds gauge
crashcart_schedule_last_run_timestamp_seconds{schedule="nightly"} 1790000000.5
# HELP crashcart_schedule_last_run_duration_seconds How long the last run took.
# TYPE crashcart_schedule_last_run_duration_seconds gauge
crashcart_schedule_last_run_duration_seconds{schedule="nightly"} 60
# HELP crashcart_schedule_last_run_status Exit status of the last run: 0 success, 1 failure, 3 hosts missing.
# TYPE crashcart_schedule_last_run_status gauge
crashcart_schedule_last_run_status{schedule="nightly"} 3
# HELP crashcart_schedule_last_success_timestamp_seconds When a run without missing hosts last ended.
# TYPE crashcart_schedule_last_success_timestamp_seconds gauge
crashcart_schedule_last_success_timestamp_seconds{schedule="nightly"} 1789990000
# HELP crashcart_schedule_missed_runs_total Runs that were due and did not begin.
# TYPE crashcart_schedule_missed_runs_total counter
crashcart_schedule_missed_runs_total{schedule="nightly"} 7
# HELP crashcart_schedule_last_run_hosts Hosts of the last run.
# TYPE crashcart_schedule_last_run_hosts gauge
crashcart_schedule_last_run_hosts{schedule="nightly",state="ok"} 2
crashcart_schedule_last_run_hosts{schedule="nightly",state="failed"} 0
crashcart_schedule_last_run_hosts{schedule="nightly",state="unreachable"} 1
"""
HOSTS = {"a": Host("ok"), "b": Host("unreachable", "no route"), "c": Host("ok")}


def make_run():
    run = Run("nightly", "nightly-1", 1790000000.5, hosts=HOSTS, missed_total=7, last_success=1789990000.0)
    run.end(*outcome.judge(HOSTS, ""), 1790000060.5)
    return run


def test_metrics_are_in_the_form_that_prometheus_reads(tmp_path):
    outcome.write_metrics(make_run(), str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["crashcart_schedule_nightly.prom"]
    assert next(tmp_path.iterdir()).read_text() == METRICS


def test_a_record_that_cannot_be_read_is_none(tmp_path):
    assert outcome.read_record(str(tmp_path)) == {}
    for text in ("", "[1]", "{"):
        (tmp_path / outcome.RECORD).write_text(text)
        assert outcome.read_record(str(tmp_path)) == {}
    outcome.write_record(make_run(), str(tmp_path))
    assert outcome.read_record(str(tmp_path))["hosts"]["b"] == {"state": "unreachable", "message": "no route"}


def at(text):
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp()


# As systemd 252 prints it, and as versions after it do.
OF_252 = """\
  Original form: hourly
Normalized form: *-*-* *:00:00
    Next elapse: Sun 2026-03-01 10:00:00 UTC
       From now: 8 months 2 days ago
       Iter. #2: Sun 2026-03-01 11:00:00 UTC
       From now: 8 months 2 days ago
"""
LATER = """\
  Original form: hourly
Normalized form: *-*-* *:00:00
    Next elapse: Sun 2026-03-01 11:00:00 CET
       (in UTC): Sun 2026-03-01 10:00:00 UTC
       From now: 8 months ago
   Iteration #2: Sun 2026-03-01 12:00:00 CET
       (in UTC): Sun 2026-03-01 11:00:00 UTC
       From now: 8 months ago
"""


@pytest.mark.parametrize(
    "text", [OF_252, OF_252.replace("Iter.", "Iteration"), LATER, LATER.replace("Iteration", "Iter.")]
)
def test_times_of_systemd_are_read_from_each_version_in_each_time_zone(text):
    assert due.parse_times(text) == [at("2026-03-01 10:00"), at("2026-03-01 11:00")]


def test_an_expression_of_systemd_that_is_never_due_has_no_times():
    assert due.parse_times("Normalized form: 2020-01-01 00:00:00\n    Next elapse: never\n") == []


@pytest.mark.parametrize(
    ("fields", "after", "until", "times"),
    [
        ("*/15 * * * *", "2026-03-01 10:00:05", "2026-03-01 10:45:00", ["10:15", "10:30", "10:45"]),
        ("0 3 * * 1", "2026-03-01 10:00", "2026-03-02 03:00", ["03:00"]),
        ("0 3 * * 1", "2026-03-01 10:00", "2026-03-02 02:59", []),
    ],
)
def test_times_of_cron(fields, after, until, times, monkeypatch):
    monkeypatch.setattr(due, "find_time_zone", lambda: timezone.utc)
    found = due.list_due(Plan("x", "", ("x",), "", "", cron=fields), at(after), at(until))
    assert [datetime.fromtimestamp(time, timezone.utc).strftime("%H:%M") for time in found] == times


def test_a_week_of_minutes_is_listed(monkeypatch):
    monkeypatch.setattr(due, "find_time_zone", lambda: timezone.utc)
    found = due.list_due(Plan("x", "", ("x",), "", "", cron="* * * * *"), at("2026-03-01"), at("2026-03-08"))
    assert len(found) == 7 * 1440 and found[-1] == at("2026-03-08")


def test_of_a_host_in_two_parts_of_a_run_the_worse_state_counts():
    hosts = {"a": Host("ok"), "b": Host("failed", "first"), "c": Host("unreachable", "gone")}
    outcome.merge(hosts, {"a": Host("failed", "then"), "b": Host("failed", "then"), "c": Host("ok"), "d": Host("ok")})
    assert hosts == {
        "a": Host("failed", "then"),
        "b": Host("failed", "first"),
        "c": Host("unreachable", "gone"),
        "d": Host("ok"),
    }
