# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where probes sit in programs, here in this very process's: it is its own container."""

from __future__ import annotations

import os
import re
from contextlib import ExitStack

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import Target
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.probes import ProbeRequest, ProbeSet
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.setup import probe_places
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import mounts
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import Process
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import TraceError

WEB = Container("0123456789ab" + "c" * 52, "web", "running", os.getpid(), "image", {})


def find_library():
    """The C library of this process."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return next(
            match[1] for match in (re.search(r" (/\S*(?:libc\.so|ld-musl)\S*)$", line) for line in maps) if match
        )


LIBC = find_library()


def bind(*requests):
    """The definitions that REQUESTS come to, and the files that they name."""
    with ExitStack() as stack, Process(os.getpid()) as process:
        found = probe_places.bind(Target(WEB, process), requests, stack)
        links = [re.match(r"/proc/self/fd/(\d+):", one.rest) for one in found.definitions]
        return found, [os.readlink(f"/proc/self/fd/{match[1]}") if match else "" for match in links]


def probe(name="opening", symbol="open", **more):
    return ProbeRequest(name, "uprobe", **{"binaries": (LIBC,), "symbol": symbol, **more})


def test_none_are_none():
    assert bind() == (ProbeSet(), [])


def test_a_definition_names_the_very_file():
    found, links = bind(probe(arguments=(("path", "+0(%di):ustring"),)), ProbeRequest("k", "kprobe", "vfs_read"))
    assert links == [os.path.realpath(LIBC), ""]
    assert re.fullmatch(r"/proc/self/fd/\d+:0x[0-9a-f]+ path=\+0\(%di\):ustring", found.definitions[0].rest)
    status = os.stat(LIBC)
    assert found.definitions[0].identity.startswith(f"{status.st_dev}:{status.st_ino}:0x")
    assert set(found.list_events()) == {f"{found.group}:opening", f"{found.group}:k"}
    assert found.group.startswith("crashcart_0123456789ab_")


def test_whatever_the_descriptor_the_group_is_the_same(tmp_path):
    first = bind(probe())[0].group
    with open(tmp_path / "other", "w", encoding="ascii"):
        assert bind(probe())[0].group == first
    assert bind(probe(symbol="close"))[0].group != first


def test_another_file_of_the_same_content_is_another_place(tmp_path):
    path = tmp_path / "library"
    groups = set()
    for _number in range(2):
        with open(LIBC, "rb") as source, open(tmp_path / "new", "wb") as copy:
            copy.write(source.read())
        os.rename(tmp_path / "new", path)
        with open(path, "rb"):  # or its number would be the next one's
            groups.add(bind(probe(binaries=(str(path),)))[0].group)
            os.link(path, tmp_path / f"kept{len(groups)}")
    assert len(groups) == 2


def test_the_first_library_that_there_is(tmp_path):
    _found, links = bind(probe(binaries=(str(tmp_path / "nonesuch"), LIBC)))
    assert links == [os.path.realpath(LIBC)]


def test_of_optional_ones_those_that_there_are_and_each_place_once():
    found, _links = bind(
        *(probe(name, name, is_optional=True) for name in ("open", "open64", "nonesuch")), probe("own", "open")
    )
    names = [one.name for one in found.definitions]
    assert (names[0], names[-1]) == ("open", "own")
    assert "nonesuch" not in names


def test_when_no_optional_one_is_there_it_is_said(tmp_path):
    (tmp_path / "text").write_text("#!/bin/sh")
    with pytest.raises(TraceError, match="container web has none of /nonesuch/libc with functions that take paths"):
        bind(probe(binaries=("/nonesuch/libc",), is_optional=True))
    with pytest.raises(TraceError, match="text' of container web: it is no ELF file"):
        bind(probe(binaries=(str(tmp_path / "text"),), is_optional=True))


def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TraceError, match="pipe' of container web: it is no regular file but a pipe"):
        bind(probe(binaries=(str(tmp_path / "pipe"),)))


@pytest.mark.parametrize(
    ("group", "is_short"),
    [
        ({}, False),
        ({"memory.max": 1 << 25, "memory.events.oom_kill": 0}, False),
        ({"memory.max": 1 << 25, "memory.current": 1 << 25}, False),
        ({"memory.max": None, "memory.events.oom_kill": 3}, False),  # the host ran out of it
        ({"memory.max": 1 << 25, "memory.events.oom_kill": 3}, True),
    ],
)
def test_a_container_that_ran_out_of_memory_has_none_for_probes(group, is_short):
    if not is_short:
        probe_places.check_memory("web", group)
        return
    with pytest.raises(TraceError, match=r"container web ran out of memory 3 times"):
        probe_places.check_memory("web", group)


TABLE = """\
1 0 0:30 / / rw - overlay overlay rw
2 1 0:31 / /dev rw - tmpfs tmpfs rw
3 1 0:32 / /lib rw - fuse hostile rw
4 1 0:33 / /srv rw - fuse.sshfs hostile rw
5 1 0:34 / /sys/fs/fuse/connections rw - fusectl fusectl rw
"""


@pytest.mark.parametrize(
    ("minor", "is_served"),
    [(30, False), (31, False), (32, True), (33, True), (34, False), (99, True)],
)
def test_what_a_process_serves(minor, is_served):
    found = list(mounts.parse_mountinfo(TABLE.splitlines()))
    assert probe_places.is_served(found, os.makedev(0, minor)) == is_served
    without = [one for one in found if not one.filesystem.startswith("fuse")]
    assert not probe_places.is_served(without, os.makedev(0, minor))


def test_a_root_that_a_process_serves_is_the_runtimes():
    found = list(mounts.parse_mountinfo(["1 0 0:30 / / rw - fuse.fuse-overlayfs fuse-overlayfs rw"]))
    assert not probe_places.is_served(found, os.makedev(0, 30))
    assert not probe_places.is_served(found, os.makedev(0, 99))


def test_nothing_stays_open():
    before = os.listdir("/proc/self/fd")
    bind(probe())
    with pytest.raises(TraceError, match="no function 'nonesuch'"):
        bind(probe(symbol="nonesuch"))
    assert os.listdir("/proc/self/fd") == before
