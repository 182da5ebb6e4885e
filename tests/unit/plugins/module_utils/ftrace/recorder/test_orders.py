# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Orders to the recorder: files that are written whole, and a lock that tells whether somebody follows them."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import targets
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import client, orders
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.orders import Order
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.limits import Limits
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import locks

CONTAINER = Container("a" * 64, "api", "running", 5, "image", {"a": "b"})
LIMITS = Limits(ttl_s=5.0, max_rate=3)


@pytest.fixture(autouse=True)
def run(tmp_path, monkeypatch):
    for module in (orders, targets):
        monkeypatch.setattr(module, "LOCKS", str(tmp_path / "locks"))
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
    orders.write_order(order)
    assert not orders.is_taken(order.name)
    with locks.lock(orders.RECORDER_LOCK, 1) as recorder, locks.lock(orders.find_lock(order.name), 1):
        locks.tell_holder(recorder)
        assert orders.is_taken(order.name)
        assert orders.find_recorder() == os.getpid()
        monkeypatch.setattr(client, "_END_S", 0.05)
        with pytest.raises(FleetError, match="does not let go of crashcart-1"):
            client.withdraw(order.name)
    assert not client.withdraw(order.name)


def test_since_when_an_instance_is_watched_outlives_a_change_of_its_order():
    orders.write_order(make_order())
    orders.note_watched("crashcart-1")
    orders.write_order(make_order(group="/another"))
    present = orders.read_order("crashcart-1")
    assert (present.group, present.watched is None) == ("/another", False)
    orders.note_ended("crashcart-1", "its ttl is over")
    present = orders.read_order("crashcart-1")
    assert (present.ended, present.expires) == ("its ttl is over", None)
    # Another instance of that name is another matter.
    orders.write_order(replace(make_order(), inode=8))
    assert orders.read_order("crashcart-1").watched is None


def test_nobody_has_watched_for_an_order_of_before_traces_were_watched():
    orders.write_order(make_order())
    path = os.path.join(orders.FOLDER, "crashcart-1")
    with open(path, encoding="utf-8") as file:
        record = json.load(file)
    del record["watched"], record["ended"]
    with open(path, "w", encoding="utf-8") as file:
        json.dump(record, file)
    # As after a recorder that was killed: it was watched at some time, and now is not.
    assert orders.read_order("crashcart-1").watched == 0.0


def test_an_order_that_nobody_takes_on_is_dropped(monkeypatch):
    """A recorder that does not listen, and whose process is not one that may be ended."""
    monkeypatch.setattr(client, "_START_S", 0.05)
    monkeypatch.setattr(client, "_replace_older", lambda pid: None)
    with locks.lock(orders.RECORDER_LOCK, 1) as recorder:
        locks.tell_holder(recorder)
        with pytest.raises(FleetError, match="does not answer"):
            client.Change("crashcart-1").place(make_order())
    assert orders.list_orders() == []
