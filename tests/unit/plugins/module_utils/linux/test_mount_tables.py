# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long mount tables are waited for, by a pipe through which one comes slowly."""

from __future__ import annotations

import os
import threading
import time

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import mount_tables

LINE = b"700 612 0:3 / /m rw - tmpfs none rw\n"
PART_S = 0.02


@pytest.fixture
def bounds(monkeypatch):
    """0.05 s for any table, 0.4 s for one, 0.5 s for all that are not prompt."""
    for name, seconds in (("PROMPT_S", 0.05), ("EACH_S", 0.4), ("TOTAL_S", 0.5)):
        monkeypatch.setattr(mount_tables, name, seconds)
    return mount_tables.Patience()


def read(patience, count):
    """A table of COUNT lines, each of which takes PART_S, as PATIENCE reads it; how long that takes."""
    reader, writer = os.pipe()

    def show():
        with os.fdopen(writer, "wb", buffering=0) as file:
            for _number in range(count):
                time.sleep(PART_S)
                try:
                    file.write(LINE)
                except BrokenPipeError:
                    return

    thread = threading.Thread(target=show)
    thread.start()
    start = time.monotonic()
    try:
        return patience.read(reader), time.monotonic() - start
    finally:
        os.close(reader)
        thread.join()


def test_a_slow_table_is_read_to_its_end(bounds):
    assert read(bounds, 10)[0] == LINE * 10


def test_one_that_takes_too_long_is_given_up(bounds):
    with pytest.raises(mount_tables.TableTooLong, match=r"over \d+ mounts"):
        read(bounds, 100)


@pytest.mark.sweep
def test_many_do_not_add_up_and_prompt_ones_are_read_all_the_same(bounds):
    start = time.monotonic()
    for _number in range(10):
        with pytest.raises(mount_tables.TableTooLong):
            read(bounds, 50)
    # Of the ten the first had its 0.4 s, the next what was left, and the others 0.05 s.
    assert time.monotonic() - start < 10 * 0.4
    assert read(bounds, 1)[0] == LINE
    with pytest.raises(mount_tables.TableTooLong):
        read(bounds, 10)


@pytest.mark.sweep
def test_patience_comes_back(bounds, monkeypatch):
    with pytest.raises(mount_tables.TableTooLong):
        read(bounds, 50)
    with pytest.raises(mount_tables.TableTooLong):
        read(bounds, 50)
    monkeypatch.setattr(mount_tables, "_RENEWED_S", 0.1)
    time.sleep(0.1)
    assert read(bounds, 10)[0] == LINE * 10
