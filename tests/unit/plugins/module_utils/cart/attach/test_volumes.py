# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which folder of the host shows at a path in a container, by the two mount tables."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach import volumes
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.mounts import parse_mountinfo

HOST = (
    "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw",
    "23 22 0:20 / /srv rw shared:5 - tmpfs tmpfs rw",
    "24 22 8:1 /data /mnt/data rw shared:1 - ext4 /dev/sda1 rw",
    "25 22 0:21 / /private rw - tmpfs tmpfs rw",
)
ROOT = "600 500 0:50 / / rw - overlay overlay rw"
DEV = "601 600 0:51 / /dev rw - tmpfs tmpfs rw"


def find(path, *lines):
    return volumes.find_folder(list(parse_mountinfo((ROOT, DEV, *lines))), list(parse_mountinfo(HOST)), path)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("602 601 0:20 /tools /dev/crashcart rw master:5 - tmpfs tmpfs rw", "/srv/tools"),
        ("602 601 0:20 / /dev/crashcart rw master:5 - tmpfs tmpfs rw", "/srv"),
        ("602 601 8:1 /srv2/t /dev/crashcart rw master:1 - ext4 /dev/sda1 rw", "/srv2/t"),
        ("602 601 8:1 /data/t /dev/crashcart rw shared:9 master:1 - ext4 /dev/sda1 rw", "/data/t"),
        # Another peer group, a private volume, a volume elsewhere: nothing comes through.
        ("602 601 0:20 /tools /dev/crashcart rw master:6 - tmpfs tmpfs rw", None),
        ("602 601 0:20 /tools /dev/crashcart rw - tmpfs tmpfs rw", None),
        ("602 601 0:20 /tools /dev/crashcart2 rw master:5 - tmpfs tmpfs rw", None),
        ("602 600 0:20 /tools /opt rw master:5 - tmpfs tmpfs rw", None),
    ],
)
def test_a_volume(line, wanted):
    assert find("/dev/crashcart", line) == wanted


def test_a_volume_above_and_one_that_is_covered():
    above = "602 600 0:20 /tools /opt rw master:5 - tmpfs tmpfs rw"
    assert find("/opt/a/crashcart", above) == "/srv/tools/a/crashcart"
    cover = "603 602 0:60 / /opt/a rw - tmpfs tmpfs rw"
    assert find("/opt/a/crashcart", above, cover) is None
