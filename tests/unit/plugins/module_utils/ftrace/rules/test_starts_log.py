# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rules import starts_log
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rules.starts_log import StartsLog


def write(folder, *lines):
    folder.mkdir()
    log = StartsLog()
    log.begin(str(folder))
    for line in lines:
        line(log)
    log.close()
    return str(folder)


def test_segments_are_read_as_one(tmp_path):
    first = write(
        tmp_path / "1",
        lambda log: log.write_threads(1, 10, {6, 5}),
        lambda log: log.write_threads(1, 11, set()),
        lambda log: log.write(1, verdict="", container=None),
    )
    second = write(tmp_path / "2", lambda log: log.write(1, verdict="traced"), lambda log: log.write(2, ended=3.5))
    found = starts_log.read([first, second])
    assert found[1].threads == [(10, 5), (10, 6)]
    assert found[1].about == {"verdict": "traced", "container": None}
    assert found[2].about == {"ended": 3.5}


def test_a_line_that_was_cut_short_is_passed_over(tmp_path):
    folder = write(
        tmp_path / "1", lambda log: log.write(1, verdict="traced"), lambda log: log.write(2, verdict="traced")
    )
    path = tmp_path / "1" / starts_log.NAME
    path.write_bytes(path.read_bytes()[:-9])
    assert starts_log.read([folder]).keys() == {1}
    # A full disk has room again later.
    log = StartsLog()
    log.begin(folder)
    log.write(3, verdict="traced")
    log.close()
    assert starts_log.read([folder]).keys() == {1, 3}


def test_one_that_was_traced_long_enough_stays_so(tmp_path):
    first = write(tmp_path / "1", lambda log: log.write(1, verdict=starts_log.OVER, stopped="long enough"))
    second = write(tmp_path / "2", lambda log: log.write(1, verdict=starts_log.UNMEANT))
    assert starts_log.read([first, second])[1].about == {"verdict": starts_log.OVER, "stopped": "long enough"}
    assert starts_log.read([second])[1].about == {"verdict": starts_log.UNMEANT}


def test_a_segment_without_a_log_has_no_containers(tmp_path):
    assert starts_log.read([str(tmp_path)]) == {}


def test_without_a_segment_nothing_is_written():
    log = StartsLog()
    log.write(1, verdict="traced")
    log.close()
