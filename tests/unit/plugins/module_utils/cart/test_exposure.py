# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Exposed files in a mount table, and wishes that cannot be met."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import exposure
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.exposure import Exposure
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import ContainerError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.mounts import parse_mountinfo

TABLE = """\
100 99 0:50 / / rw - overlay overlay rw
101 100 0:51 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k
102 101 0:60 / /dev/crashcart-trace ro,nosuid,nodev - tmpfs crashcart-0123456789ab rw,size=4k
103 102 0:12 /instances/crashcart-0123456789ab/trace /dev/crashcart-trace/trace ro,nosuid,nodev - tracefs tracefs rw
104 102 0:12 /instances/crashcart-0123456789ab/trace_marker /dev/crashcart-trace/trace_marker rw - tracefs tracefs rw
105 100 0:61 / /mnt rw - tmpfs crashcart-images rw
106 100 0:62 /below /opt rw - tmpfs crashcart-0123456789ab rw
107 100 7:0 / /srv ro - squashfs crashcart-0123456789ab rw
108 100 0:63 / /a\\040folder ro - tmpfs crashcart-ffffffffffff-second rw
109 108 0:12 /x /a\\040folder/other ro - tracefs tracefs rw
"""


def test_what_is_exposed_is_read_from_the_mount_table():
    assert exposure.find_exposures(list(parse_mountinfo(TABLE.splitlines()))) == [
        Exposure("crashcart-0123456789ab", "/dev/crashcart-trace", ("trace", "trace_marker"), "0:60"),
        Exposure("crashcart-ffffffffffff-second", "/a folder", (), "0:63"),
    ]


def test_the_order_of_files_makes_no_difference_and_all_else_does():
    one = Exposure("crashcart-0123456789ab", "/x", ("trace", "trace_marker"), "0:60")
    assert one.is_as(Exposure("crashcart-0123456789ab", "/x", ("trace_marker", "trace")))
    assert not one.is_as(Exposure("crashcart-0123456789ab", "/y", ("trace", "trace_marker")))
    assert not one.is_as(Exposure("crashcart-0123456789ac", "/x", ("trace", "trace_marker")))
    assert not one.is_as(Exposure("crashcart-0123456789ab", "/x", ("trace",)))


def test_nothing_but_the_marker_can_be_written():
    assert {name for name, mode in exposure.FILES.items() if mode & 0o222} == {"trace_marker"}
    assert all(mode & 0o077 == 0 for mode in exposure.FILES.values())


@pytest.mark.parametrize(
    ("path", "wanted"),
    [("/dev/x", "/dev/x"), ("/dev//x/", "/dev/x"), ("/a/../b", "/b"), ("/sys/kernel/tracing", "/sys/kernel/tracing")],
)
def test_folders(path, wanted):
    assert exposure.check_wish(path, ["trace", "trace"]) == (wanted, ("trace",))


@pytest.mark.parametrize("path", ["", "x", "./x", "/", "//", "/dev", "/x/../dev", "/proc/", "/sys/.", "/a\0b"])
def test_folders_that_are_none(path):
    with pytest.raises(ContainerError, match="no folder to show files in"):
        exposure.check_wish(path, ["trace"])


@pytest.mark.parametrize("files", [[], ["tracing_on"], ["trace", "../tracing_on"], ["events"]])
def test_files_that_are_never_shown(files):
    with pytest.raises(ContainerError, match="files are some of trace, trace_pipe, trace_marker"):
        exposure.check_wish("/x", files)
