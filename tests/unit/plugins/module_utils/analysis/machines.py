# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Captures of machines of both byte orders, word sizes and several page sizes: one of a short story, and one of random events."""

from __future__ import annotations

import random

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import compression
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages

KINDS = [(order, word) for order in ("little", "big") for word in (4, 8)]
MACHINES = [pages.Machine(order, word, size) for order, word in KINDS for size in (512, 4096)]
MACHINES += [pages.Machine("big", 8, 16384), pages.Machine("little", 4, 65536)]
PEERS_MACHINES = [machine for machine in MACHINES if machine.page_size >= 4096]
"""Those whose captures trace-cmd can read, too."""


def make_story(machine):
    """Pages of two CPUs of MACHINE: a program that forks, execs, and opens files."""
    path = [
        (1000, machine.make_enter(5, 257, [(1 << 8 * machine.word) - 100, 4096, 0, 0, 0, 0])),
        (1010, machine.make_paths(1501, 5, b"/etc/passwd")),
        (3000, machine.make_exit(5, 257, -2)),
        (3010, machine.make_newtask(5, 6, b"web")),
        (3020, machine.make_rename(6, b"web", b"worker")),
        (3030, machine.make_exec(6, b"/usr/bin/worker")),
        (3040, machine.make_exit_of_exec(6)),
    ]
    others = [(4000, machine.make_enter(6, 3, [9, 0, 0, 0, 0, 0])), (4000 + (1 << 28), machine.make_exit(6, 3, -9))]
    cpus = []
    for events in (path, others):
        packed, before = [], events[0][0]
        for time, record in events:
            wide = [machine.pack_time_extend(time - before)] if time - before >= 1 << 27 else []
            packed += [*wide, machine.pack_event(record, 0 if wide else time - before)]
            before = time
        half = len(packed) // 2 if len(packed) > 3 else len(packed)
        made = [machine.pack_page(events[0][0], packed[:half])]
        if packed[half:]:
            made.append(machine.pack_page(events[half - 1][0], packed[half:]))
        cpus.append(made)
    return cpus


def pack_story(machine, version=7, method=compression.NONE):
    formats = {"crashcart_0123456789ab_5d41402a": [machine.make_path_format("path_openat", 1501, "path")]}
    about = {"more_formats": formats, "version": version, "compression": method, "header_page": machine.header_page}
    return machine.pack_trace(make_story(machine), cmdlines=b"5 web\n", **about)


def name_machine(machine):
    return f"{machine.order}-{8 * machine.word}-{machine.page_size}"


def gen_random_records(machine, source):
    """Records of MACHINE of all formats that pack_random names, without an end."""
    while True:
        tid = source.choice([5, 6, 7, 1 << 21])
        text = bytes(source.choices(b"abcdefgh/._-", k=source.randrange(1, 30)))
        yield source.choice(
            [
                lambda tid=tid: machine.make_enter(
                    tid, source.randrange(400), [source.getrandbits(8 * machine.word)] * 6
                ),
                lambda tid=tid: machine.make_exit(tid, source.randrange(400), source.randrange(-4095, 1 << 30)),
                lambda tid=tid: machine.make_newtask(
                    tid, source.randrange(100, 1 << 22), b"child", source.getrandbits(31)
                ),
                lambda text=text: machine.make_exec(1 << 21, text, source.randrange(8, 1 << 20)),
                lambda tid=tid, text=text: machine.make_paths(1501, tid, text),
                lambda tid=tid, text=text: machine.make_paths(1502, tid, text, b"second", relative=True),
            ]
        )()


def make_random_events(machine, seed, count=300):
    """Random events on three CPUs of MACHINE: a list of pairs of time and record for each."""
    source = random.Random(seed)
    cpus, records = [], gen_random_records(machine, source)
    for _cpu in range(3):
        time, events = source.randrange(1 << 40), []
        for _event in range(count // 3):
            time += source.choice([0, source.randrange(1 << 20), source.randrange(1 << 34)])
            events.append((time, next(records)))
        cpus.append(events)
    return cpus


def make_formats(machine):
    """The formats of all records of gen_random_records by system."""
    return {
        **machine.make_formats(),
        "crashcart_0123456789ab_5d41402a": [
            machine.make_path_format("path_openat", 1501, "path"),
            machine.make_path_format("path_rename", 1502, "old", "new", kind="__rel_loc"),
        ],
    }


def pack_random(machine, seed):
    """A capture of random events of MACHINE, in all forms that the ring buffer has for lengths and times."""
    source = random.Random(seed)
    cpus = []
    for events in make_random_events(machine, seed):
        made, packed, used, first, last = [], [], 0, 0, 0
        for time, record in events:
            is_long = len(record) > 112 or source.random() < 0.2
            pack = machine.pack_long_event if is_long else machine.pack_event
            delta = time - last if packed else 0
            parts = [machine.pack_time_extend(delta), pack(record)] if delta >= 1 << 27 else [pack(record, delta)]
            if used + sum(map(len, parts)) > machine.page_size - machine.header_size:
                made.append(machine.pack_page(first, packed))
                packed, used, parts = [], 0, [pack(record)]
            first = first if packed else time
            packed += parts
            used += sum(map(len, parts))
            last = time
        cpus.append([*made, machine.pack_page(first, packed)])
    return machine.pack_trace(
        cpus,
        cmdlines=b"5 web\n6 worker\n",
        more_formats=make_formats(machine),
        header_page=machine.header_page,
        version=7,
    )
