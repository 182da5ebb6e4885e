# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import random

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import ring_pages
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rules import split, starts_log
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.pages import PAGE_SIZE

NEW_TASK = split.parse_new_task(pages.TASK_NEWTASK)


def sort(owners, all_pages, keep=lambda _owner: True):
    """Return owner → its pages, and the splitter, after sorting ALL_PAGES of one CPU."""
    splitter = split.Splitter(owners, NEW_TASK, PAGE_SIZE, keep)
    found = {}
    for page in all_pages:
        for owner, full in splitter.split(page):
            found.setdefault(owner, []).append(full)
    for owner, last in splitter.finish():
        found.setdefault(owner, []).append(last)
    return found, splitter


def decode(some):
    return [event for page in some for event in pages.decode_slowly(page)]


def make_owners(*entries):
    return split.find_owners([(0, tid, owner) for tid, owner in entries], [], PAGE_SIZE, NEW_TASK)


def test_the_kernels_description_of_a_new_task_is_read():
    assert (NEW_TASK.number, NEW_TASK.pid_offset, NEW_TASK.comm_offset) == (205, 8, 12)
    with pytest.raises(ValueError, match="another form"):
        split.parse_new_task(pages.TASK_RENAME_WITHOUT_PID)


def test_a_thread_belongs_to_the_container_of_the_thread_that_made_it():
    birth = pages.pack_page(
        100, [pages.pack_event(pages.make_newtask(5, 6, b"sh")), pages.pack_event(pages.make_newtask(6, 7, b"sh"), 5)]
    )
    owners = split.find_owners([(50, 5, 1)], [birth], PAGE_SIZE, NEW_TASK)
    assert [owners.find(200, tid) for tid in (5, 6, 7, 8)] == [1, 1, 1, None]


def test_births_on_other_cpus_count_in_the_order_of_time():
    later = pages.pack_page(200, [pages.pack_event(pages.make_newtask(6, 7, b"sh"))])
    earlier = pages.pack_page(100, [pages.pack_event(pages.make_newtask(5, 6, b"sh"))])
    owners = split.find_owners([(50, 5, 1)], [later, earlier], PAGE_SIZE, NEW_TASK)
    assert owners.find(300, 7) == 1


def test_what_a_runtime_has_made_is_of_the_container_to_which_it_was_added_later_and_from_its_birth():
    def birth(time_ns, maker, child):
        return pages.pack_page(time_ns, [pages.pack_event(pages.make_newtask(maker, child, b"runc"))])

    # The runtime 5 makes 6, whose child 7 becomes the container's program and makes 8 before it is seen in the group. 9 is a hook.
    births = [birth(100, 5, 6), birth(110, 6, 7), birth(120, 7, 8), birth(130, 5, 9)]
    roots = [(90, 5, starts_log.RUNTIMES), (200, 7, 3)]
    owners = split.find_owners(roots, births, PAGE_SIZE, NEW_TASK)
    assert [owners.find(150, tid) for tid in (5, 6, 7, 8, 9)] == [0, 0, 3, 3, 0]
    # The number 9 is used again, for a process of another container, which another runtime has made.
    births += [birth(300, 5, 9)]
    owners = split.find_owners([*roots, (400, 9, 4)], births, PAGE_SIZE, NEW_TASK)
    assert [owners.find(time, 9) for time in (150, 350, 450)] == [0, 4, 4]


def test_what_was_made_long_before_is_not_of_the_container_that_has_its_number_now():
    birth = pages.pack_page(100, [pages.pack_event(pages.make_newtask(5, 9, b"runc"))])
    later_ns = 3 * 3600 * 10**9
    owners = split.find_owners([(90, 5, starts_log.RUNTIMES), (later_ns, 9, 4)], [birth], PAGE_SIZE, NEW_TASK)
    assert [owners.find(time, 9) for time in (150, later_ns + 1)] == [0, 4]


def test_a_start_that_was_under_way_when_the_earlier_part_was_sorted_is_of_its_container_from_the_beginning():
    birth = pages.pack_page(1000, [pages.pack_event(pages.make_newtask(7, 8, b"sh"))])
    earlier = {5: starts_log.RUNTIMES, 6: 2, 7: starts_log.RUNTIMES}
    owners = split.find_owners([(2000, 7, 3)], [birth], PAGE_SIZE, NEW_TASK, earlier)
    assert [owners.find(1500, tid) for tid in (5, 6, 7, 8)] == [0, 2, 3, 3]


def test_a_number_that_is_used_again_belongs_to_the_next_container():
    owners = split.find_owners([(50, 5, 1), (500, 5, 2)], [], PAGE_SIZE, NEW_TASK)
    assert [owners.find(time, 5) for time in (10, 50, 499, 500, 900)] == [1, 1, 1, 2, 2]
    assert owners.list_last(1) == {5: 2}


def test_long_before_its_first_owner_a_number_is_nobodys():
    owners = split.find_owners([(5_000_000_000, 5, 1)], [], PAGE_SIZE, NEW_TASK)
    assert [owners.find(time, 5) for time in (4_000_000_000, 4_999_999_000)] == [None, 1]


def test_of_the_latest_threads_so_many_are_kept():
    owners = split.find_owners([(number, number, number) for number in range(1, 10)], [], PAGE_SIZE, NEW_TASK)
    assert owners.list_last(3) == {7: 7, 8: 8, 9: 9}


def test_events_are_sorted_with_their_times_and_bytes():
    events = [
        pages.pack_event(pages.make_enter(5, 1)),
        pages.pack_event(pages.make_enter(6, 2), 7),
        pages.pack_time_extend(1 << 40),
        pages.pack_event(pages.make_exit(5, 1, 0), 3),
        pages.pack_padding(16, 4),
        pages.pack_long_event(pages.make_exit(6, 2, -2), 9),
    ]
    page = pages.pack_page(1000, events)
    found, splitter = sort(make_owners((5, 1), (6, 2)), [page])
    whole = decode([page])
    assert decode(found[1]) == [event for event in whole if event[2] == 5]
    assert decode(found[2]) == [event for event in whole if event[2] == 6]
    assert (splitter.counts, splitter.strange) == ({1: 2, 2: 2}, 0)
    assert ring_pages.count_events(found[1][0], PAGE_SIZE) == 2


def test_absolute_time_stamps_are_understood():
    page = pages.pack_page(1 << 60, [pages.pack_time_stamp(12345), pages.pack_event(pages.make_enter(5, 1), 2)])
    found, _splitter = sort(make_owners((5, 1)), [page])
    assert decode(found[1]) == decode([page])


def test_events_of_nobody_are_counted_and_unmeant_ones_are_left_out():
    page = pages.pack_page(1000, [pages.pack_event(pages.make_enter(tid, 1)) for tid in (5, 6, 7)])
    found, splitter = sort(make_owners((5, 1), (6, 2)), [page], keep=lambda owner: owner == 2)
    assert found.keys() == {2}
    assert (splitter.counts, splitter.strange) == ({2: 1}, 1)


def test_what_the_runtime_makes_is_left_out_but_tells_whose_it_is():
    born = [
        pages.pack_event(pages.make_newtask(5, 6, name))
        for name in (b"runc:[2:INIT]", b"exe", b"5", b"crun", b"memfd:runc_clone")
    ]
    page = pages.pack_page(1000, [*born, pages.pack_event(pages.make_newtask(6, 7, b"sh"), 1)])
    owners = split.find_owners([(0, 5, 1)], [page], PAGE_SIZE, NEW_TASK)
    found, _splitter = sort(owners, [page])
    (event,) = decode(found[1])
    assert event[2] == 6
    assert owners.find(2000, 7) == 1


def test_a_page_after_a_loss_tells_every_container_of_it():
    first = pages.pack_page(1000, [pages.pack_event(pages.make_enter(tid, 1)) for tid in (5, 6)])
    body = [pages.pack_event(pages.make_enter(tid, 1)) for tid in (5, 6)]
    second = pages.pack_page(2000, body, commit=sum(map(len, body)) | ring_pages.MISSED_EVENTS)
    found, _splitter = sort(make_owners((5, 1), (6, 2)), [first, second])
    for owner in (1, 2):
        assert [ring_pages.read_loss(page) for page in found[owner]] == [(0, True), (0, False)]


def test_random_pages_give_each_event_to_its_owner_once():
    chance = random.Random(7)
    owners = make_owners(*((tid, tid % 3) for tid in range(1, 9)))
    for _round in range(50):
        some, clock = [], 1000
        for _page in range(chance.randint(1, 6)):
            events, size = [], 0
            while size < 300:
                delta = chance.choice((0, 1, 5, (1 << 27) - 1))
                record = pages.make_record(
                    443, chance.randint(1, 8), bytes(chance.choices(range(256), k=4 * chance.randint(0, 20)))
                )
                pack = chance.choice((pages.pack_event, pages.pack_long_event))
                events.append(pack(record, delta))
                if chance.random() < 0.1:
                    events.append(pages.pack_time_extend(chance.randint(1 << 27, 1 << 40)))
                size = sum(map(len, events))
            some.append(pages.pack_page(clock, events))
            clock = max(decode(some[-1:])[-1][0], clock) + chance.randint(0, 1 << 30)
        found, splitter = sort(owners, some)
        whole = decode(some)
        for owner in range(3):
            assert decode(found.get(owner, [])) == [event for event in whole if event[2] % 3 == owner]
        assert sum(splitter.counts.values()) == len(whole)


def test_damaged_pages_end_nothing():
    chance = random.Random(11)
    owners = make_owners((5, 1))
    for _round in range(300):
        page = bytearray(pages.pack_page(1000, [pages.pack_event(pages.make_enter(5, 1), 3) for _ in range(6)]))
        for _byte in range(8):
            page[chance.randrange(len(page))] = chance.randrange(256)
        found, _splitter = sort(owners, [bytes(page)])
        for some in found.values():
            decode(some)
