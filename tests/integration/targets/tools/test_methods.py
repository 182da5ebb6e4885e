# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ways in which an image gets into containers, each on real ones."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import pytest
from support import host, images

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import mounts

BASH = ("/dev/crashcart/bin/bash", "-c", "echo $((40 + 2))")
# What Linux 5.1 does not have.
NEW_CALLS = "fsopen,fsconfig,fsmount,move_mount,open_tree,openat2,mount_setattr"


def attach(name, **options):
    (attachment,) = host.call_module("crashcart_attach", containers=[name], **options)["attachments"]
    return attachment


def detach(*names):
    return host.call_module("crashcart_attach", containers=list(names), state="detached")["changed"]


def list_devices(name):
    """Every device node in the files of container NAME."""
    return host.run("find", f"/proc/{host.find_pid(name)}/root/", "-xdev", "-type", "b").stdout


@pytest.mark.parametrize("method", ["fsmount", "mknod"])
def test_the_tools_are_there_and_no_device_is(container, method):
    name = container("static", options=("--network", "none", "--read-only", "--cap-drop", "ALL", "--user", "1000"))
    before = host.read_container_mounts(name)
    assert attach(name, method=method)["method"] == method
    assert host.docker("exec", name, *BASH) == "42"
    assert list_devices(name) == ""
    (line,) = [one for one in host.read_container_mounts(name).splitlines() if " /dev/crashcart " in one]
    assert {"ro", "nosuid", "nodev"} <= set(line.split()[5].split(","))
    (known,) = host.call_module("crashcart_info", gather=["attachments"], containers=[name])["attachments"]
    assert known["method"] == method
    assert not host.call_module("crashcart_attach", containers=[name])["changed"]
    assert detach(name)
    assert host.read_container_mounts(name) == before
    host.wait_until_empty(host.list_loop_devices)


def test_auto_takes_what_the_kernel_has_and_says_why(container):
    name = container()
    result = host.call_module("crashcart_attach", containers=[name])
    assert (result["attachments"][0]["method"], result["method_reason"][:10]) == ("fsmount", "the kernel")
    detach(name)
    refuse = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject={NEW_CALLS}:error=ENOSYS"]
    module = [sys.executable, "-m", f"{host.COLLECTION}.plugins.modules.crashcart_attach"]
    for state in ("attached", "detached"):
        arguments = {"containers": [name], "state": state, "_ansible_version": "2.19"}
        done = host.run(*refuse, *module, input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))
        result = host.parse_result(done.stdout, done.stderr)
        assert result["changed"]
        if state == "attached":
            assert result["attachments"][0]["method"] == "mknod"
            assert result["method_reason"] == "the kernel has no detached mounts (Linux 5.2)"
            assert host.docker("exec", name, *BASH) == "42"
    assert host.list_loop_devices() == []


def test_a_loop_device_of_two_steps_goes_by_itself_too(tmp_path, monkeypatch):
    """Before Linux 5.8 there is no call that does both; this kernel refuses the number just as well."""
    monkeypatch.setattr(mounts, "_LOOP_CONFIGURE", 0x4CFF)
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    image_fd = os.open(tmp_path / "file", os.O_RDONLY)
    fd, device = mounts.loop_open(image_fd)
    os.close(image_fd)
    sysfs = Path(f"/sys/block/loop{device.number}")
    assert (sysfs / "ro").read_text() == "1\n"
    assert (sysfs / "loop/autoclear").read_text() == "1\n"
    os.close(fd)
    host.wait_until(lambda: not (sysfs / "loop").exists())


@pytest.fixture
def volume():
    """A folder in a shared mount of the host, as / is on a host with systemd."""
    with tempfile.TemporaryDirectory() as folder:
        host.run("mount", "-t", "tmpfs", "tmpfs", folder)
        host.run("mount", "--make-shared", folder)
        path = Path(folder, "tools")
        path.mkdir()
        try:
            yield path
        finally:
            host.run("umount", "-l", folder)


def list_image_mounts():
    """Mounts of the default image on the host itself."""
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - squashfs " in line]


def with_volume(volume):
    return ("--network", "none", "-v", f"{volume}:/dev/crashcart:rslave")


def test_a_volume_brings_the_tools_to_all_who_have_it(container, volume):
    one, two = (container("busybox", options=with_volume(volume)) for _number in range(2))
    three = container()
    assert host.call_module("crashcart_attach", containers=[one], method="rslave", check_mode=True)["changed"]
    assert list_image_mounts() == []
    assert attach(one, method="rslave")["method"] == "rslave"
    assert {host.docker("exec", name, *BASH) for name in (one, two)} == {"42"}
    assert not host.call_module("crashcart_attach", containers=[two], method="rslave")["changed"]
    assert host.execute(containers=[two], argv=["true"])[0]["rc"] == 0
    with pytest.raises(host.ModuleFailed, match=f"{three} has no rslave volume at /dev/crashcart: start it with"):
        attach(three, method="rslave")
    assert detach(two)
    assert list_image_mounts() == []
    assert not detach(one)
    assert "image" not in host.read_container_mounts(one)
    host.wait_until_empty(host.list_loop_devices)


def test_a_volume_that_no_container_has_any_more_is_freed_with_everything(container, volume):
    name = container("busybox", options=with_volume(volume))
    attach(name, method="rslave")
    host.docker("kill", name)
    assert os.listdir(volume)
    assert host.call_module("crashcart_info", gather=["census"])["census"]["mounts"]
    for check_mode in (True, False):
        result = host.call_module(
            "crashcart_attach", state="detached", everything=True, check_mode=check_mode, diff=True
        )
        assert result["changed"]
        assert str(volume) in result["diff"]["before"]["left over"]
    assert os.listdir(volume) == []
    assert not host.call_module("crashcart_attach", state="detached", everything=True)["changed"]
    host.wait_until_empty(host.list_loop_devices)


def test_a_volume_with_something_in_it_is_not_covered(container, volume):
    (volume / "mine").write_text("")
    name = container("busybox", options=with_volume(volume))
    with pytest.raises(host.ModuleFailed, match=f"host's folder {volume}: it is not empty"):
        attach(name, method="rslave")
    assert os.listdir(volume) == ["mine"]
    assert host.list_loop_devices() == []


@pytest.fixture
def erofs_image(tmp_path):
    """The name of an EROFS image in the store."""
    path = tmp_path / "small.erofs"
    images.build(path, sets=["minimal"], packages=["bash", "coreutils"], format="erofs")
    images.install(path, "erofs")
    yield "erofs"
    host.call_module("crashcart_image", name="erofs", state="absent", force=True)


def test_an_erofs_image_needs_no_loop_device(container, erofs_image, tmp_path):
    names = [container() for _number in range(3)]
    before = {name: host.read_container_mounts(name) for name in names}
    host.call_module("crashcart_attach", containers=names[:2], image=erofs_image)
    assert {host.docker("exec", name, *BASH) for name in names[:2]} == {"42"}
    assert host.run("losetup", "-a").stdout == ""
    # One superblock, and so one page cache.
    assert len({os.stat(f"/proc/{host.find_pid(name)}/root/dev/crashcart").st_dev for name in names[:2]}) == 1
    for name in (names[0], names[2]):  # with it attached, and not
        done = host.call_module("crashcart_exec", containers=[name], image=erofs_image, argv=["true"])
        assert done["results"][0]["rc"] == 0
    known = host.call_module("crashcart_info", gather=["attachments"], containers=names)["attachments"]
    assert [(one["container"], one["image"], one["method"]) for one in known] == [
        (name, erofs_image, "fsmount") for name in names[1::-1]
    ]
    with pytest.raises(host.ModuleFailed, match=f"{erofs_image}.*{names[0]}"):
        host.call_module("crashcart_image", name=erofs_image, state="absent")
    # Replaced in the store, it stays with those who have it.
    path = tmp_path / "other.erofs"
    images.build(path, sets=["minimal"], format="erofs")
    images.install(path, erofs_image)
    assert {host.docker("exec", name, *BASH) for name in names[:2]} == {"42"}
    assert detach(*names)
    assert {name: host.read_container_mounts(name) for name in names} == before


def test_an_erofs_image_goes_by_a_loop_device_where_it_has_to(container, erofs_image):
    name = container()
    attach(name, image=erofs_image, method="mknod")
    assert host.docker("exec", name, *BASH) == "42"
    assert len(host.list_loop_devices()) == 1
    assert detach(name)
    host.wait_until_empty(host.list_loop_devices)


def test_a_mount_over_the_tools_in_a_volume_is_not_ours_to_unmount(container, volume):
    name = container("busybox", options=with_volume(volume))
    attach(name, method="rslave")
    host.run("mount", "-t", "tmpfs", "tmpfs", str(volume))
    try:
        with pytest.raises(host.ModuleFailed, match=f"mounted over the tools in the host's folder {volume}"):
            host.call_module("crashcart_attach", state="detached", everything=True)
        assert host.run("findmnt", "-n", "-o", "FSTYPE", str(volume)).stdout.splitlines()[-1] == "tmpfs"
    finally:
        host.run("umount", str(volume))
    assert host.call_module("crashcart_attach", state="detached", everything=True)["changed"]
    host.wait_until_empty(host.list_loop_devices)
