# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Control groups of all three layouts, from the texts of the kernel."""

from __future__ import annotations

import os

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.mounts import parse_mountinfo

ID = "4f" * 32

V1_CGROUP = f"""\
12:pids:/docker/{ID}
11:cpuset:/docker/{ID}
10:cpu,cpuacct:/docker/{ID}
4:memory:/docker/{ID}
1:name=systemd:/docker/{ID}
""".encode()
V1_MOUNTS = """\
25 24 0:22 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:9 - tmpfs tmpfs ro,mode=755
26 25 0:23 / /sys/fs/cgroup/systemd rw shared:10 - cgroup cgroup rw,xattr,name=systemd
31 25 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:15 - cgroup cgroup rw,cpu,cpuacct
33 25 0:30 / /sys/fs/cgroup/memory rw shared:17 - cgroup cgroup rw,memory
35 25 0:32 / /sys/fs/cgroup/pids rw shared:19 - cgroup cgroup rw,pids
"""
HYBRID_CGROUP = V1_CGROUP + b"0::/system.slice/containerd.service\n"
HYBRID_MOUNTS = V1_MOUNTS + "27 25 0:24 / /sys/fs/cgroup/unified rw shared:11 - cgroup2 cgroup2 rw,nsdelegate\n"
V2_CGROUP = f"0::/system.slice/docker-{ID}.scope\n".encode()
V2_MOUNTS = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def parse_mounts(text):
    return list(parse_mountinfo(text.splitlines()))


def find(cgroup, mounts):
    return cgroups.find_directory(cgroups.parse_cgroup(cgroup), parse_mounts(mounts))


def test_memberships_of_version_1():
    found = cgroups.parse_cgroup(V1_CGROUP)
    assert len(found) == 5
    assert found[0] == cgroups.Membership(("pids",), f"/docker/{ID}")
    assert found[2].controllers == ("cpu", "cpuacct")
    assert found[4].controllers == ("name=systemd",)


def test_memberships_of_version_2_have_no_controllers():
    assert cgroups.parse_cgroup(V2_CGROUP) == [cgroups.Membership((), f"/system.slice/docker-{ID}.scope")]


def test_a_path_may_hold_colons_and_any_bytes():
    (membership,) = cgroups.parse_cgroup(b"0::/a:b/\xff\xfe\n")
    assert os.fsencode(membership.path) == b"/a:b/\xff\xfe"


@pytest.mark.parametrize("text", [b"", b"\n", b"nonsense\n", b"0:\n"])
def test_lines_that_do_not_fit_are_passed_over(text):
    assert cgroups.parse_cgroup(text) == []


@pytest.mark.parametrize(
    ("mounts", "version"),
    [
        (V1_MOUNTS, "v1"),
        (HYBRID_MOUNTS, "hybrid"),
        (V2_MOUNTS, "v2"),
        ("", "none"),
        (V1_MOUNTS.splitlines()[0], "none"),
    ],
)
def test_layout_of_the_host(mounts, version):
    assert cgroups.find_version(parse_mounts(mounts)) == version


def test_directory_in_version_1():
    assert find(V1_CGROUP, V1_MOUNTS) == f"/sys/fs/cgroup/pids/docker/{ID}"


def test_directory_in_a_hybrid_layout_is_of_version_1():
    # The unified path is that of the runtime here: it would name strangers.
    assert find(HYBRID_CGROUP, HYBRID_MOUNTS) == f"/sys/fs/cgroup/pids/docker/{ID}"


def test_directory_in_version_2():
    assert find(V2_CGROUP, V2_MOUNTS) == f"/sys/fs/cgroup/system.slice/docker-{ID}.scope"


def test_the_next_controller_serves_where_one_is_not_mounted():
    mounts = "\n".join(line for line in V1_MOUNTS.splitlines() if "pids" not in line)
    assert find(V1_CGROUP, mounts) == f"/sys/fs/cgroup/memory/docker/{ID}"


def test_a_controller_that_shares_its_mount_is_found():
    cgroup = f"10:cpu,cpuacct:/docker/{ID}\n".encode()
    assert find(cgroup, V1_MOUNTS) == f"/sys/fs/cgroup/cpu,cpuacct/docker/{ID}"


def test_the_named_hierarchy_of_systemd_is_found():
    cgroup = f"1:name=systemd:/docker/{ID}\n".encode()
    assert find(cgroup, V1_MOUNTS) == f"/sys/fs/cgroup/systemd/docker/{ID}"


def test_the_root_group_is_nobodys():
    # Every process of the host would be a member.
    assert find(b"0::/\n", V2_MOUNTS) is None
    assert find(b"12:pids:/\n4:memory:/\n", V1_MOUNTS) is None


def test_version_1_at_its_root_gives_way_to_version_2():
    cgroup = b"12:pids:/\n0::/system.slice/docker-x.scope\n"
    assert find(cgroup, HYBRID_MOUNTS) == "/sys/fs/cgroup/unified/system.slice/docker-x.scope"


def test_a_mount_of_a_part_of_the_hierarchy_does_not_serve():
    part = "30 24 0:26 /system.slice /mnt/part rw - cgroup2 cgroup2 rw\n"
    assert find(V2_CGROUP, part) is None
    assert find(V2_CGROUP, part + V2_MOUNTS) == f"/sys/fs/cgroup/system.slice/docker-{ID}.scope"


def test_nothing_mounted():
    assert find(V2_CGROUP, "") is None
    assert find(V1_CGROUP, V2_MOUNTS) is None


def find_joins(wanted, own, mounts):
    joins = cgroups.gen_joins(cgroups.parse_cgroup(wanted), cgroups.parse_cgroup(own), parse_mounts(mounts))
    return {",".join(membership.controllers): path for membership, path in joins}


def test_every_hierarchy_of_version_1_is_joined_where_the_group_is_another():
    own = (
        b"12:pids:/\n11:cpuset:/\n10:cpu,cpuacct:/user.slice\n4:memory:/docker/" + ID.encode() + b"\n1:name=systemd:/\n"
    )
    assert find_joins(V1_CGROUP, own, V1_MOUNTS) == {
        "pids": f"/sys/fs/cgroup/pids/docker/{ID}/tasks",
        "cpuset": "",  # which is not mounted: the caller has to say so
        "cpu,cpuacct": f"/sys/fs/cgroup/cpu,cpuacct/docker/{ID}/tasks",
        "name=systemd": f"/sys/fs/cgroup/systemd/docker/{ID}/tasks",
    }


def test_a_hierarchy_that_only_tracks_and_is_not_mounted_is_left_alone():
    wanted = b"1:name=systemd:/machine.slice/box\n" + V2_CGROUP
    path = f"/sys/fs/cgroup/system.slice/docker-{ID}.scope/cgroup.procs"
    assert find_joins(wanted, b"1:name=systemd:/\n0::/user.slice\n", V2_MOUNTS) == {"": path}


def test_the_one_hierarchy_of_version_2_is_joined():
    path = f"/sys/fs/cgroup/system.slice/docker-{ID}.scope/cgroup.procs"
    assert find_joins(V2_CGROUP, b"0::/user.slice\n", V2_MOUNTS) == {"": path}


def test_a_hybrid_layout_is_joined_in_both():
    joins = find_joins(HYBRID_CGROUP, b"0::/\n", HYBRID_MOUNTS)
    assert joins[""] == "/sys/fs/cgroup/unified/system.slice/containerd.service/cgroup.procs"
    assert joins["memory"] == f"/sys/fs/cgroup/memory/docker/{ID}/tasks"


def test_nobody_joins_where_they_are():
    assert find_joins(V1_CGROUP, V1_CGROUP, V1_MOUNTS) == {}


def test_pids_of_a_group_and_of_those_below(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "threaded").mkdir()
    (tmp_path / "cgroup.procs").write_text("10\n11\n")
    (tmp_path / "a" / "cgroup.procs").write_text("")
    (tmp_path / "a" / "b" / "cgroup.procs").write_text("12\n")
    assert sorted(cgroups.gen_pids(str(tmp_path))) == [10, 11, 12]


def test_pids_of_a_group_that_went_away(tmp_path):
    assert list(cgroups.gen_pids(str(tmp_path / "gone"))) == []


@pytest.mark.parametrize("below", ["", "/container", "/init.scope/a"])
def test_a_container_has_the_groups_below_its_own(below, monkeypatch):
    monkeypatch.setattr(cgroups, "read_mounts", lambda *_arguments: parse_mounts(V2_MOUNTS))
    directory = cgroups.find_container_directory(f"0::/shop.slice/docker-{ID}.scope{below}\n".encode(), ID)
    assert directory.endswith(f"/shop.slice/docker-{ID}.scope")
    # A name that others may have, too, says nothing.
    assert cgroups.find_container_directory(b"0::/box/shop/box\n", "box").endswith("/box/shop/box")


def test_this_process_is_in_its_own_group():
    with open("/proc/self/cgroup", "rb") as file:
        directory = cgroups.find_container_directory(file.read())
    if directory is None or not os.path.isdir(directory):
        pytest.skip("this process stands in no group of its own here")
    assert os.getpid() in cgroups.gen_pids(directory)
