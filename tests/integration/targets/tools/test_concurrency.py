# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several operators at once on the same container."""

from __future__ import annotations

import multiprocessing
import os
import traceback

import pytest
from support import host, serving
from support.records import find_record

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.command_options import (
    CommandOptions,
    parse_command,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.server import Server

ROUNDS = 50
COMMAND = parse_command(CommandOptions(argv=["true"]))


def execute(record):
    with Server() as server:
        (result,) = serving.execute([record], COMMAND, server)
    if result["rc"] != 0:
        raise AssertionError(result)


DO = {
    "attach": lambda record: serving.attach([record]),
    "attach for a time": lambda record: serving.attach([record], ttl_s=60),
    "detach": lambda record: serving.detach([record]),
    "exec": execute,
}


def _operate(record, states, barrier, failures):
    """One operator: does STATES over and over, in step with the others; puts what goes wrong into FAILURES."""
    for number in range(ROUNDS):
        barrier.wait(60)
        try:
            DO[states[number % len(states)]](record)
        except BaseException:
            failures.put(traceback.format_exc())
        barrier.wait(60)


@pytest.mark.parametrize(
    "operators",
    [
        [["attach"], ["attach"], ["attach", "detach"]],
        [["attach"], ["detach"]],
        [["attach", "detach"], ["detach", "attach"], ["attach for a time", "detach"], ["exec"]],
    ],
    ids=["three attach", "attach against detach", "all against all"],
)
def test_operators_do_not_disturb_each_other(container, operators):
    name = container()
    record = find_record(name)
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(len(operators))
    failures = context.SimpleQueue()
    processes = [context.Process(target=_operate, args=(record, states, barrier, failures)) for states in operators]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * len(processes)
    assert failures.empty(), failures.get()
    assert host.read_container_mounts(name).count(" /dev/crashcart ") <= 1
    assert len(host.list_loop_devices()) <= 1
    host.call_module("crashcart_attach", containers=[name], state="detached")
    assert not os.path.exists(f"/proc/{record.pid}/root/dev/crashcart")
    host.wait_until_empty(host.list_loop_devices)
