# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Folders stand for control groups here: inotify tells of both in the same way."""

from __future__ import annotations

import os
import subprocess
import threading

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rules import new_groups
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rules.new_groups import GroupWatcher
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups

ID = "3f4e" * 16


@pytest.fixture
def watch(tmp_path):
    (tmp_path / "old" / "below").mkdir(parents=True)
    watcher = GroupWatcher(str(tmp_path))
    yield watcher
    watcher.close()


@pytest.mark.parametrize(
    "name, found",
    [
        (ID, ID),
        (f"docker-{ID}.scope", ID),
        (f"libpod-{ID}.scope", ID),
        (f"libpod-conmon-{ID}.scope", None),
        (f"crio-conmon-{ID}", None),
        (f"docker/{ID}", ID),
        (f"libpod_parent/libpod-{ID}", ID),
        (f"libpod_parent/{ID}", None),  # a pod's
        (f"machine.slice/machine-libpod_pod_{ID}.slice", None),
        (ID + "0", None),
        ("web", None),
    ],
)
def test_an_engines_id_is_found_in_a_groups_name(name, found):
    assert new_groups.find_engine_id(f"/sys/fs/cgroup/{name}") == found


def test_what_is_there_already_is_not_new(watch):
    assert list(watch.read()) == []


def test_a_group_is_told_when_it_comes_and_when_it_goes(watch, tmp_path):
    path = tmp_path / "old" / "below" / "new"
    path.mkdir()
    assert list(watch.read()) == [(str(path), True)]
    path.rmdir()
    assert list(watch.read()) == [(str(path), False)]


def test_groups_below_a_parent_that_did_not_exist_are_told(watch, tmp_path):
    path = tmp_path / "parent" / "slice" / ID
    path.mkdir(parents=True)
    found = {group for group, is_there in watch.read() if is_there}
    assert found == {str(tmp_path / "parent"), str(tmp_path / "parent" / "slice"), str(path)}


def test_after_too_many_at_once_containers_that_ran_before_are_not_new(tmp_path):
    old = tmp_path / "docker" / ID
    old.mkdir(parents=True)
    watcher = GroupWatcher(str(tmp_path))
    (tmp_path / "docker" / ("ab" * 32)).mkdir()
    list(watcher.read())
    (tmp_path / "docker" / ("cd" * 32)).mkdir()
    found = list(watcher._watch(str(tmp_path)))  # as after a queue that was full
    assert found == [str(tmp_path / "docker" / ("cd" * 32))]
    old.rmdir()
    (tmp_path / "other").mkdir()  # takes the number of the folder that is gone
    old.mkdir()
    assert str(old) in list(watcher._watch(str(tmp_path)))
    watcher.close()


def test_groups_that_come_while_it_looks_are_not_missed(watch, tmp_path):
    def make():
        for number in range(300):
            (tmp_path / f"a{number}" / "b" / "c").mkdir(parents=True)

    thread = threading.Thread(target=make)
    thread.start()
    found = set()
    while thread.is_alive():
        found |= {group for group, _is_there in watch.read()}
    thread.join()
    found |= {group for group, _is_there in watch.read()}
    assert {f"{tmp_path}/a{number}/b/c" for number in range(300)} <= found


def test_what_a_container_makes_within_its_group_is_its_own(watch, tmp_path):
    path = tmp_path / "old" / ID
    path.mkdir()
    list(watch.read())
    (path / "init.scope").mkdir()
    assert list(watch.read()) == []


def test_groups_of_users_are_not_watched(watch, tmp_path):
    for name in ("user@0.service", "user@1000.service"):
        (tmp_path / "old" / name).mkdir()
        list(watch.read())
        (tmp_path / "old" / name / "app").mkdir()
    assert [group for group, _is_there in watch.read()] == []
    (tmp_path / "old" / "user@0.service" / "app" / "b").mkdir()
    (tmp_path / "old" / "user@1000.service" / "app" / "b").mkdir()
    assert [group for group, _is_there in watch.read()] == [str(tmp_path / "old" / "user@0.service" / "app" / "b")]


def test_a_group_that_was_found_to_be_a_containers_is_watched_no_more(watch, tmp_path):
    path = tmp_path / "old" / "web"
    path.mkdir()
    list(watch.read())
    watch.forget_below(str(path))
    (path / "inner").mkdir()
    assert [group for group, is_there in watch.read() if is_there] == []


def test_a_containers_group_that_is_gone_already_is_counted(watch, tmp_path):
    for name in (ID, "web"):
        (tmp_path / "old" / name).mkdir()
        (tmp_path / "old" / name).rmdir()
    assert [group for group, is_there in watch.read() if is_there] == []
    assert watch.missed == 1


def test_containers_below_a_pods_group_are_seen(watch, tmp_path):
    pod = tmp_path / "old" / f"machine-libpod_pod_{ID}.slice"
    (pod / f"libpod-{ID}.scope").mkdir(parents=True)
    assert str(pod / f"libpod-{ID}.scope") in {group for group, _is_there in watch.read()}


@pytest.fixture
def deep(watch, tmp_path):
    """Make groups below each other, as deep as whoever may make groups can."""
    here = os.open(tmp_path / "old", os.O_RDONLY)
    for _level in range(1200):
        os.mkdir("a", dir_fd=here)
        below = os.open("a", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    yield
    # Python's own ways to remove folders call themselves for each level, as pytest's do.
    subprocess.run(["rm", "-r", tmp_path / "old" / "a"], check=True)


def test_groups_as_deep_as_a_path_is_long_end_nothing(deep, watch, tmp_path):
    assert len(list(watch.read())) > 20
    again = GroupWatcher(str(tmp_path))
    assert list(again.read()) == []
    again.close()
    assert sum(1 for _folder in cgroups.gen_below(str(tmp_path))) < 100


def test_a_file_is_no_group(watch, tmp_path):
    (tmp_path / "file").write_text("")
    assert [group for group, is_there in watch.read() if is_there] == []
    assert watch.troubles == []
    assert os.path.exists(tmp_path / "file")


@pytest.mark.parametrize(
    "path, is_within",
    [
        ("/docker/" + "ab" * 32, True),
        ("/system.slice/docker-" + "ab" * 32 + ".scope/init", True),
        ("/machine.slice/libpod-conmon-" + "ab" * 32 + ".scope", False),
        ("/system.slice/containerd.service", False),
        ("/", False),
    ],
)
def test_a_process_is_in_a_container_by_its_groups(path, is_within):
    text = f"3:cpu,cpuacct:/\n0::{path}\n".encode()
    assert new_groups.is_within_container(text) == is_within
