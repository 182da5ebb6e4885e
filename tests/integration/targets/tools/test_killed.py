# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""kill -9 of attach, detach, exec, push and cleanup at every system call: the next call, or a cleanup, brings what was asked for."""

from __future__ import annotations

import json
import os
import shutil
import stat

import pytest
from support import host, images, serving
from support.killing import kill_everywhere
from support.records import find_record

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import store
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach import expiry, expiry_watchdog
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute import scratch
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.command_options import (
    CommandOptions,
    parse_command,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.server import Server
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.image_mounts import ImageFinder
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import boot

# Sweeps over what another one has met for the most part have a third of the moments, others in each run.
SAMPLE = 3
FEW = 10  # a function that makes fewer calls than that has not done what it is tested for


@pytest.fixture
def record(container):
    """A running container."""
    return find_record(container())


def attach(record, method="fsmount", ttl_s=None):
    return serving.attach([record], method, ttl_s)


def detach(record):
    return serving.detach([record])


def count_mounts(record):
    return host.read_container_mounts(record.name).count(" /dev/crashcart ")


def is_clean(record):
    return (
        count_mounts(record) == 0
        and not os.path.exists(f"/proc/{record.pid}/root/dev/crashcart")
        and not ImageFinder().loop_devices
    )


def test_attach_by_mknod(record):
    def check(_moment):
        check_attach(record, "mknod")

    assert kill_everywhere(lambda: attach(record, "mknod"), check, step=SAMPLE) > FEW


def check_attach(record, method="fsmount"):
    """After a killed attach the next one does what was asked for, and a detach takes all of it away."""
    assert count_mounts(record) <= 1
    attach(record, method)
    assert count_mounts(record) == 1
    assert os.listdir(f"/proc/{record.pid}/root/dev/crashcart/bin")
    detach(record)
    host.wait_until(lambda: is_clean(record))


def test_detach_after_a_killed_attach_leaves_nothing(record):
    """Without an attach between: an empty folder, say, has to go too."""

    def check(_moment):
        detach(record)
        host.wait_until(lambda: is_clean(record))

    assert kill_everywhere(lambda: attach(record), check) > FEW


def test_detach(record):
    attach(record)

    def check(_moment):
        detach(record)
        host.wait_until(lambda: is_clean(record))
        attach(record)

    assert kill_everywhere(lambda: detach(record), check) > FEW
    host.wait_until(lambda: is_clean(record))


@pytest.fixture
def other_expiry(container):
    """Of another container something that ends in ten minutes; after the test nothing does, and nobody watches."""
    yield expiry.Expiry(find_record(container()), "/dev/other", boot.read_clock() + 600)
    expiry.drop(expiry.list_expiries())
    host.wait_until(lambda: expiry.find_watchdog() is None)


def test_attach_for_a_time(record, other_expiry):
    """A mounted image has an end, or nothing is mounted yet. The watchdog runs for another attachment."""
    expiry.write([other_expiry])
    expiry_watchdog.ensure_watchdog()

    def check(_moment):
        places = {one.place for one in expiry.list_expiries()}
        assert count_mounts(record) == 0 or (record.id, "/dev/crashcart") in places
        check_attach(record)
        expiry.drop([one for one in expiry.list_expiries() if one.place != other_expiry.place])
        assert expiry.find_watchdog() is not None

    assert kill_everywhere(lambda: attach(record, ttl_s=600), check, step=SAMPLE) > FEW


def test_starting_the_watchdog(other_expiry):
    def settle():
        expiry.write([other_expiry])
        expiry_watchdog.ensure_watchdog()

    def check(_moment):
        expiry_watchdog.ensure_watchdog()
        assert (expiry.find_watchdog() is not None) == bool(expiry.list_expiries())
        expiry.drop([other_expiry])
        host.wait_until(lambda: expiry.find_watchdog() is None)

    assert kill_everywhere(settle, check, own_calls=True) > FEW


@pytest.mark.parametrize(
    ("rights", "own_calls", "step"),
    # With the rights of tools there is a look at every process of the host, at which nothing is made.
    [("container", True, 1), ("tools", True, 17), ("host", True, SAMPLE), ("tools", False, 23), ("host", False, 23)],
    ids=["container", "tools", "host", "tools, its other processes", "host, its other processes"],
)
def test_exec(record, own_calls, step, rights):
    command = parse_command(CommandOptions(argv=["bash", "-c", "sleep 0.01"], rights=rights))
    mounts = host.read_container_mounts(record.name)

    def execute():
        with Server() as server:
            serving.execute([record], command, server)

    def check(_moment):
        host.wait_until(lambda: is_clean(record) and len(host.list_commands(record.name)) == 1)
        assert host.read_container_mounts(record.name) == mounts
        assert host.read_state(record.pid) == "S", "its first process was left stopped"

    assert kill_everywhere(execute, check, own_calls=own_calls, step=step) > FEW
    execute()


@pytest.fixture(scope="module")
def small_images(tmp_path_factory):
    """Two small images with their manifests."""
    folder = tmp_path_factory.mktemp("images")
    found = []
    for name, packages in (("one", []), ("two", ["less"])):
        path = folder / f"{name}.squashfs"
        images.build(path, sets=["minimal"], packages=packages)
        found.append((str(path), json.loads(path.with_suffix(".squashfs.json").read_text())))
    return found


@pytest.mark.parametrize("replaced", [False, True])
def test_push(small_images, replaced):
    name = "killed"
    first, second = small_images

    def push(image=second):
        path, manifest = image
        return store.install_image(name, manifest["digest"], manifest, path)

    def check(_moment):
        found = store.find_image(name)
        assert found is None or found.digest in (first[1]["digest"], second[1]["digest"])
        assert push().digest == store.describe(name) == second[1]["digest"]
        assert len(os.listdir(f"{store.STORE}/{name}")) == 2
        store.remove_image(name)
        if replaced:
            push(first)

    try:
        if replaced:
            push(first)
        assert kill_everywhere(push, check) > FEW
    finally:
        shutil.rmtree(f"{store.STORE}/{name}", ignore_errors=True)


def test_removing_an_image(small_images):
    name = "killed"
    path, manifest = small_images[0]

    def check(_moment):
        if store.describe(name) is not None:
            store.remove_image(name)
        assert store.find_image(name) is None
        assert not os.path.exists(f"{store.STORE}/{name}")
        store.install_image(name, manifest["digest"], manifest, path)

    store.install_image(name, manifest["digest"], manifest, path)
    try:
        assert kill_everywhere(lambda: store.remove_image(name), check) > 3
    finally:
        shutil.rmtree(f"{store.STORE}/{name}", ignore_errors=True)


def test_a_connections_scratch():
    """The next command of the connection has its folder; then the last one, or another connection, leaves nothing."""

    def check(moment):
        fd = os.open(scratch.FOLDER, os.O_RDONLY) if os.path.exists(scratch.FOLDER) else -1
        if moment % 2:
            check_scratch()
        scratch.remove("killed")
        assert scratch.list_mounts() == []
        if fd >= 0:
            assert os.listdir(fd) == []
            os.close(fd)

    assert kill_everywhere(lambda: scratch.open_scratch("killed", 5, 6), check) > FEW
    scratch.remove("killed")  # the folder of the last round, which was not killed


def check_scratch():
    """In a process of its own, since the lock lasts as long as that."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            found = os.stat(scratch.open_scratch("killed", 5, 6))
            assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (5, 6, 0o700)
            assert len(scratch.list_mounts()) == 1
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def test_a_removal_of_a_connections_scratch():
    def prepare_and_remove():
        scratch.open_scratch("killed", 5, 6)
        scratch.remove("killed")

    def check(_moment):
        scratch.remove("killed")
        assert scratch.list_mounts() == []
        assert not os.path.exists(f"{scratch.FOLDER}/killed")

    assert kill_everywhere(prepare_and_remove, check, step=SAMPLE) > FEW
