# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several operators at once on the traces of the same containers."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import traceback

from support import host

OPERATORS, ROUNDS = 8, 12
LOOP = ("busybox", "/bin/sh", "-c", "while /bin/true; do /bin/cat /nonesuch; /bin/sleep 0.05; done")
FORESEEN = "the selection matches no traced container"  # what an operator may be told because of another one


def _operate(number, names, failures):
    """One operator, who does what chance says; puts what goes wrong into FAILURES."""
    chance = random.Random(number)
    for _round in range(ROUNDS):
        chosen = chance.sample(names, chance.randint(1, len(names)))
        do = chance.choice(["ring", "ring", "record", "fetch", "fetch", "stopped", "absent", "info"])
        try:
            if do == "ring":
                clock = chance.choice(["mono", "boot"])
                host.call_module("ftrace_instance", containers=chosen, clock=clock, errors_only=chance.random() < 0.5)
            elif do == "record":
                host.call_module("ftrace_instance", containers=chosen, mode="record", min_free="1MiB", ttl="1m")
            elif do == "fetch":
                host.call_module("ftrace_fetch", dest="/nonesuch", containers=chosen)
            elif do == "info":
                host.call_module("ftrace_info", containers=chosen)
            else:
                host.call_module("ftrace_instance", containers=chosen, state=do)
        except host.ModuleFailed as failure:
            if FORESEEN not in str(failure):
                failures.put(f"{do} {chosen}: {failure}")
        except BaseException:
            failures.put(f"{do} {chosen}: {traceback.format_exc()}")


def test_operators_do_not_disturb_each_other(container):
    names = [container(*LOOP) for _number in range(3)]
    context = multiprocessing.get_context("fork")
    failures = context.Queue()
    processes = [context.Process(target=_operate, args=(number, names, failures)) for number in range(OPERATORS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    found = [failures.get() for _number in range(failures.qsize())]
    assert [process.exitcode for process in processes] == [0] * OPERATORS
    assert not found, "\n".join(found)
    # Each trace is whole, or not there.
    for name in names:
        host.call_module("ftrace_instance", containers=[name])
        assert not host.call_module("ftrace_instance", containers=[name])["changed"]
    host.call_module("ftrace_instance", state="absent", everything=True)
    shutil.rmtree("/var/lib/crashcart/captures")  # what nobody has brought home
    host.wait_until(lambda: host.call_module("crashcart_info", gather=["recorder"])["recorder"]["pid"] is None)
    assert host.list_instances() == []
