# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Objects: equal ones have one number, and what there is no room for counts as others. Paths: several of one call, and relative texts."""

from __future__ import annotations

import struct

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.calls import gen_calls
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled import codes
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.compiled.scripts import (
    FORMATS,
    GROUP,
    MANIFEST,
    NUMBERS,
    Script,
    list_cells,
)

OPENAT, RENAME = 1501, 1502


def open_many(count, failed=-2):
    script = Script()
    for index in range(count):
        script.open(5, b"/%d" % index, failed)
    return script


def test_equal_objects_have_one_number():
    script = Script()
    for tid in (5, 6, 5):
        script.open(tid, b"/a", 3)
        script.open(tid, b"/ab", 4)
    # Text of another kind.
    manifest = {
        "first_tasks": [{"tid": 5, "tgid": 5, "container_tid": 1, "comm": "x"}],
        "descriptors": {"first": [{"pid": 5, "fd": 3, "target": "/a"}]},
    }
    objects = script.tables(manifest).objects
    assert objects == [("", ""), ("", ""), ("path", "/a"), ("path", "/a"), ("path", "/ab")]


def test_many_objects():
    script = open_many(3000)
    for index in range(2999, -1, -1):
        script.open(6, b"/%d" % index, -2)
    tables = script.tables()
    assert [text for _kind, text in tables.objects[2:]] == [f"/{index}" for index in range(3000)]
    found = {(row[0], row[3]): row[4] for row in list_cells(tables)}
    assert (len(tables.cells.count), set(found.values())) == (6000, {1})


@pytest.mark.parametrize("full", ["objects", "arena"])
def test_what_there_is_no_room_for_counts_as_others(full):
    def prepare(state):
        if full == "objects":
            state.scalars[codes.OBJECTS] = len(state.objects) - 3
        else:
            state.scalars[codes.ARENA] = len(state.arena) - 6

    script = open_many(5)
    script.open(5, b"/1", -2)
    tables = script.tables(prepare=prepare)
    found = {row[3]: row[4] for row in list_cells(tables)}
    assert found == {"/0": 1, "/1": 2, "/2": 1, "": 2}
    assert set(tables.cells.object.tolist()) == {
        codes.OTHER_OBJECTS,
        *range(len(tables.objects) - 3, len(tables.objects)),
    }
    assert sum(tables.cells.count.tolist()) == 6


def test_a_descriptor_of_other_objects():
    def prepare(state):
        state.scalars[codes.OBJECTS] = len(state.objects)

    script = open_many(1, failed=3)
    script.call(5, "read", 3, result=1)
    script.call(5, "accept", 3, result=4)
    script.call(5, "read", 4, result=1)
    found = [(row[1], row[3]) for row in list_cells(script.tables(prepare=prepare))]
    assert found == [(NUMBERS[name], "") for name in ("openat", "read", "accept")]


def test_a_path_that_the_kernel_could_not_read_is_none():
    script = Script()
    script.open(5, b"", 3)
    script.open(5, b"/a", 3)
    assert [call.path for call in script.calls()] == [None, "/a"]


def test_paths_of_one_call_are_joined():
    script = Script()
    script.rename(5, b"/old", b"/new")
    script.rename(5, b"", b"/new")
    script.rename(5, b"/old", b"")
    # A path is of the next call of its family in its thread.
    script.add(pages.make_paths(RENAME, 5, b"/a", b"/b"))
    script.open(6, b"/six", 3)
    script.call(5, "read", 3)
    script.exit(5, "rename", -2)
    assert [call.path for call in script.calls()] == ["/old -> /new", " -> /new", "/old -> ", "/six", None, "/a -> /b"]


def test_a_joined_path_is_cut_at_a_zero_and_at_the_end_of_its_record():
    for words, path in (
        (struct.pack("HHHH", 24, 3, 27, 9), "/x -> /y"),
        (struct.pack("HHHH", 24, 2, 24, 3), "/x -> /x"),
        (struct.pack("HHHH", 24, 3, 60, 3), "/x -> "),
        (struct.pack("HHHH", 24, 0, 27, 0xFFFF), " -> /y"),
        (struct.pack("HHHH", 24, 1, 27, 2), "/ -> /y"),
        (struct.pack("HHHH", 24, 3, 0xFFFF, 0xFFFF), "/x -> "),
    ):
        script = Script()
        script.add(pages.make_record(RENAME, 5, bytes(8) + words + b"/x\0/y\0"))
        script.exit(5, "rename", -2)
        assert [call.path for call in script.calls()] == [path]


def test_a_record_that_ends_before_its_words_has_no_path():
    for size in (0, 8, 11, 12):
        script = Script()
        script.add(pages.make_record(RENAME, 5, b"\1" * size))
        script.exit(5, "rename", -2)
        assert [call.path for call in script.calls()] == [" -> "]


def make_relative(number, tid, before, text):
    """A record whose word, behind BEFORE bytes, says how far behind the word TEXT is."""
    return pages.make_record(number, tid, bytes(before) + struct.pack("HH", 2, len(text) + 1) + b"??" + text + b"\0")


def list_paths(script, kind):
    """The paths of the calls in SCRIPT, where all paths are fields of KIND."""
    formats = [
        pages.make_path_format("path_openat", OPENAT, "path", kind=kind),
        pages.make_path_format("path_rename", RENAME, "path", "path2", kind=kind),
    ]
    return [call.path for call in gen_calls(script.trace(more_formats={**FORMATS, GROUP: formats}), MANIFEST)]


def test_a_text_whose_place_counts_from_the_field():
    script = Script()
    script.add(make_relative(OPENAT, 5, 8, b"/relative"))
    script.exit(5, "openat", -2)
    assert list_paths(script, "__rel_loc") == ["/relative"]


def test_each_of_two_texts_counts_from_its_own_field():
    script = Script()
    script.add(pages.make_paths(RENAME, 5, b"/old", b"/new", relative=True))
    script.exit(5, "rename", -2)
    assert list_paths(script, "__rel_loc") == ["/old -> /new"]
    assert list_paths(script, "__data_loc") != ["/old -> /new"]


@pytest.mark.parametrize("kind", ["__data_loc", "__rel_loc"])
def test_names_of_threads_whose_place_is_in_a_word(kind):
    is_relative = kind == "__rel_loc"
    fixed = (b"char comm[16];\toffset:12;\tsize:16", b"%s char[] comm;\toffset:12;\tsize:4" % kind.encode())
    birth = pages.make_formats()["task"][1].replace(*fixed)
    payload = struct.pack("iI12xQh6x", 6, 6 << 16 | 48 - 16 * is_relative, 0, 0) + b"child\0"
    script = Script()
    script.add(pages.make_record(205, 5, payload))
    script.call(6, "getpid")
    formats = {**FORMATS, "task": [pages.make_formats()["task"][0], birth]}
    assert [call.program for call in gen_calls(script.trace(more_formats=formats), MANIFEST)] == ["child"]


def test_the_path_of_an_exec_whose_place_counts_from_the_field():
    relative = FORMATS["sched"][0].replace(b"__data_loc", b"__rel_loc")
    record = pages.make_record(365, 5, struct.pack("HHii", 8, 9, 5, 5) + b"/bin/new\0")
    script = Script()
    script.add(record)
    script.call(5, "getpid")
    names = []
    for own in (relative, FORMATS["sched"][0]):
        trace = script.trace(more_formats={**FORMATS, "sched": [own]})
        names += [call.program for call in gen_calls(trace, {})]
    assert names[0] == "new" != names[1]
