# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Orders to the recorder: files that are written whole, and a lock that tells whether somebody follows them."""

from __future__ import annotations

import os
import time

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import targets
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import orders
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.limits import Limits
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.orders import Order
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import locks

CONTAINER = Container("a" * 64, "api", "running", 5, "image", {"a": "b"})
LIMITS = Limits(ttl_s=5.0, max_rate=3)


@pytest.fixture(autouse=True)
def run(tmp_path, monkeypatch):
    for module in (orders, targets):
        monkeypatch.setattr(module, "RUN", str(tmp_path))
    monkeypatch.setattr(orders, "FOLDER", str(tmp_path / "recorder"))
    monkeypatch.setattr(orders, "RECORDER_LOCK", str(tmp_path / "locks" / "recorder"))
    return tmp_path


def make_order(name="crashcart-1", **options):
    return Order(name, "/tracing", 7, CONTAINER, LIMITS, orders.find_deadline(LIMITS), **options)


def test_an_order_is_read_as_it_was_written():
    order = make_order(run="/somewhere")
    assert orders.list_orders() == []
    orders.write_order(order)
    assert orders.read_order(order.name) == order
    assert orders.list_orders() == [order]
    assert order.expires == pytest.approx(time.time() + 5, abs=1)
    assert os.stat(orders.FOLDER).st_mode & 0o077 == 0


def test_what_nobody_of_us_has_written_is_passed_over():
    os.makedirs(orders.FOLDER)
    for name, text in (("a", "{}"), ("b", "no json"), ("c", "[]"), (".d", "{}")):
        with open(os.path.join(orders.FOLDER, name), "w", encoding="ascii") as file:
            file.write(text)
    assert orders.list_orders() == []


def test_an_order_that_was_refused_is_followed_no_more():
    order = make_order()
    orders.write_order(order)
    orders.refuse(order, "why")
    assert orders.list_orders() == []
    assert orders.read_order(order.name).error == "why"
    # Not one that somebody has changed meanwhile.
    again = make_order()
    orders.write_order(again)
    orders.refuse(order, "why")
    assert orders.list_orders() == [again]


def test_only_the_order_of_that_recording_is_dropped():
    order = make_order(run="/new")
    orders.write_order(order)
    assert not orders.drop_order(order.name, "/old")
    assert orders.drop_order(order.name, "/new")
    assert not orders.drop_order(order.name)


def test_a_lock_tells_who_looks_after_a_trace(monkeypatch):
    order = make_order()
    assert not orders.is_taken(order.name)
    with locks.lock(orders.RECORDER_LOCK, 1) as recorder, locks.lock(orders.find_lock(order.name), 1) as own:
        locks.tell_holder(recorder)
        assert orders.is_taken(order.name)
        assert orders.find_recorder() == os.getpid()
        monkeypatch.setattr(orders, "_END_S", 0.05)
        with pytest.raises(FleetError, match="does not let go of crashcart-1"):
            orders.withdraw(order.name)
        locks.tell_holder(own)
        orders.place(order)
    assert orders.read_order(order.name) == order
    assert orders.withdraw(order.name)
    assert not orders.withdraw(order.name)


def test_an_order_that_nobody_takes_on_is_dropped(monkeypatch):
    monkeypatch.setattr(orders, "_TAKE_S", 0.05)
    with locks.lock(orders.RECORDER_LOCK, 1) as recorder:
        locks.tell_holder(recorder)
        with pytest.raises(FleetError, match="does not take on crashcart-1"):
            orders.place(make_order())
    assert orders.list_orders() == []
