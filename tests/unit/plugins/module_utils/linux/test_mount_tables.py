# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mount tables are waited for in bounds, by tables that come slowly on a clock of the tests: no machine is too slow for that."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import mount_tables

LINE = b"700 612 0:3 / /m rw - tmpfs none rw\n"
PART_S = 0.02


class Kernel:
    """Tables whose every line takes PART_S of the clock `now_s` to read."""

    def __init__(self):
        self.now_s = 1000.0
        self._lines = 0

    def monotonic(self):
        return self.now_s

    def read(self, _fd, _size):
        self.now_s += PART_S
        self._lines -= 1
        return LINE if self._lines >= 0 else b""

    def show(self, count):
        """Return a table of COUNT lines as it is read, and the seconds that this takes; raise TableTooLong where it is given up."""
        self._lines = count
        start_s = self.now_s
        return self.patience.read(0), self.now_s - start_s


@pytest.fixture
def kernel(monkeypatch):
    """0.05 s for any table, 0.4 s for one, 0.5 s for all that are not prompt."""
    for name, seconds in (("PROMPT_S", 0.05), ("EACH_S", 0.4), ("TOTAL_S", 0.5)):
        monkeypatch.setattr(mount_tables, name, seconds)
    kernel = Kernel()
    monkeypatch.setattr(mount_tables, "time", kernel)
    monkeypatch.setattr(mount_tables, "os", kernel)
    kernel.patience = mount_tables.Patience()
    return kernel


def test_a_slow_table_is_read_to_its_end(kernel):
    assert kernel.show(10) == (LINE * 10, pytest.approx(11 * PART_S))


def test_one_that_takes_too_long_is_given_up(kernel):
    with pytest.raises(mount_tables.TableTooLong, match=r"over 2[01] mounts"):
        kernel.show(100)


def test_many_do_not_add_up_and_prompt_ones_are_read_all_the_same(kernel):
    start_s = kernel.now_s
    for _number in range(10):
        with pytest.raises(mount_tables.TableTooLong):
            kernel.show(50)
    # Of the ten the first had its 0.4 s, the next what was left, and the others 0.05 s.
    assert kernel.now_s - start_s < 0.4 + 0.3 + 8 * 0.1
    assert kernel.show(1)[0] == LINE
    with pytest.raises(mount_tables.TableTooLong):
        kernel.show(10)


def test_patience_comes_back(kernel):
    for _number in range(2):
        with pytest.raises(mount_tables.TableTooLong):
            kernel.show(50)
    with pytest.raises(mount_tables.TableTooLong):
        kernel.show(10)
    kernel.now_s += mount_tables._RENEWED_S
    assert kernel.show(10)[0] == LINE * 10
