# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""crashcart_build and crashcart_image: from packages to the host's store."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest
from support import host

STORE = "/var/lib/crashcart/images"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small image of its own, built by the module."""
    path = tmp_path_factory.mktemp("images") / "small.squashfs"
    built = host.call_module("crashcart_build", dest=str(path), packages=["busybox-static"], cache="~/.cache/crashcart")
    assert built["changed"]
    return path


@pytest.fixture
def copied(small, tmp_path):
    """A copy of it to damage."""
    for suffix in ("", ".json"):
        shutil.copy(f"{small}{suffix}", f"{tmp_path}/image.squashfs{suffix}")
    yield tmp_path / "image.squashfs"
    host.call_module("crashcart_image", name="small", state="absent")


def push(path, name="small", *options, **more):
    return host.ad_hoc("localhost", "crashcart_image", {"src": str(path), "name": name, **more}, *options)


def list_store(name="small"):
    folder = os.path.join(STORE, name)
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def identify(path):
    """Return values of file PATH that change when it is written, but not when it is read, as a build does to know that the file is whole."""
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def test_a_second_build_changes_nothing(small):
    before = identify(small)
    again = host.call_module(
        "crashcart_build", dest=str(small), packages=["busybox-static"], cache="~/.cache/crashcart"
    )
    assert not again["changed"]
    assert identify(small) == before
    predicted = host.call_module("crashcart_build", dest=str(small), packages=["bash"], check_mode=True)
    assert predicted["changed"]
    assert identify(small) == before


def test_a_build_needs_no_root_and_leaves_setuid_out(small, tmp_path):
    listing = host.run("unsquashfs", "-lls", str(small)).stdout
    assert "bin/busybox" in listing
    assert not [line for line in listing.splitlines() if "s" in line.split()[0][1:] and line[0] == "-"]
    manifest = json.loads((small.parent / "small.squashfs.json").read_text())
    assert [one["name"] for one in manifest["components"]] == ["busybox-static"]
    assert manifest["size"] == small.stat().st_size


@pytest.mark.parametrize(
    ("packages", "wanted"),
    [(["nonesuch-package"], "nonesuch-package"), (["-o=Dpkg::Options"], "not the name of a Debian package")],
)
def test_a_package_that_does_not_exist_is_named(tmp_path, packages, wanted):
    with pytest.raises(host.ModuleFailed, match=wanted):
        host.call_module("crashcart_build", dest=str(tmp_path / "x"), packages=packages, cache="~/.cache/crashcart")
    assert os.listdir(tmp_path) == []


def test_push_twice_and_remove_twice(copied):
    first = push(copied)
    second = push(copied)
    assert (first["changed"], second["changed"]) == (True, False)
    assert first["image"] == second["image"]
    # Where nothing is left to do the module is spared, but not where it has to judge the arguments.
    with pytest.raises(host.ModuleFailed, match="Unsupported parameters.*colour"):
        host.ad_hoc("localhost", "crashcart_image", {"src": str(copied), "name": "small", "colour": "red"})
    assert len(list_store()) == 2
    assert host.call_module("crashcart_image", name="small", state="absent")["changed"]
    assert not host.call_module("crashcart_image", name="small", state="absent")["changed"]
    assert list_store() == []


def test_check_mode_and_diff(copied):
    before = host.read_host_state()
    predicted = push(copied, "small", "--check")
    assert predicted["changed"]
    manifest = json.loads(open(f"{copied}.json", encoding="utf-8").read())
    shown = host.call_module(
        "crashcart_image", src=str(copied), name="small", _manifest=manifest, check_mode=True, diff=True
    )
    assert shown["diff"] == {"before": {"small": None}, "after": {"small": manifest["digest"]}}
    assert host.read_host_state() == before
    push(copied)
    before = host.read_host_state()
    assert not push(copied, "small", "--check")["changed"]
    assert host.call_module("crashcart_image", name="small", state="absent", check_mode=True)["changed"]
    assert host.read_host_state() == before


@pytest.mark.parametrize("damage", ["changed byte", "cut short", "no manifest", "wrong architecture", "wrong format"])
def test_a_bad_image_is_named_and_nothing_is_left(copied, damage):
    manifest_path = f"{copied}.json"
    manifest = json.loads(open(manifest_path, encoding="utf-8").read())
    if damage == "changed byte":
        with open(copied, "r+b") as file:
            file.seek(5000)
            byte = file.read(1)
            file.seek(5000)
            file.write(bytes([byte[0] ^ 1]))
        wanted = "sha256"
    elif damage == "cut short":
        os.truncate(copied, 5000)
        wanted = "does not belong to the image"
    elif damage == "no manifest":
        os.unlink(manifest_path)
        wanted = "is missing"
    else:
        manifest.update({"arch": "riscv64"} if damage == "wrong architecture" else {"format": "ext3"})
        with open(manifest_path, "w", encoding="utf-8") as file:
            json.dump(manifest, file)
        wanted = "for riscv64 and this host is" if damage == "wrong architecture" else "ext3"
    with pytest.raises(host.ModuleFailed, match=wanted):
        push(copied)
    assert list_store() in ([], None)
    assert "small" not in [one["name"] for one in host.call_module("crashcart_info", gather=["images"])["images"]]


def test_a_hostile_name_is_refused(copied):
    before = host.read_host_state()
    with pytest.raises(host.ModuleFailed, match="image name"):
        push(copied, "../x")
    for name in ("../x", "a/b", "", ".hidden", "a b", "x" * 65):
        with pytest.raises(host.ModuleFailed, match="image name"):
            host.call_module("crashcart_image", name=name, state="absent")
    assert host.read_host_state() == before


def test_absent_refuses_while_attached_and_names_the_container(copied, container):
    name = container()
    push(copied)
    host.call_module("crashcart_attach", containers=[name], image="small")
    with pytest.raises(host.ModuleFailed, match=f"in use: container {name} at /dev/crashcart"):
        host.call_module("crashcart_image", name="small", state="absent")
    assert len(list_store()) == 2
    assert host.call_module("crashcart_image", name="small", state="absent", force=True)["changed"]
    assert host.docker("exec", name, "/dev/crashcart/bin/busybox", "echo", "still there") == "still there"
    assert host.call_module("crashcart_attach", containers=[name], state="detached")["changed"]
    host.wait_until_empty(host.list_loop_devices)


def test_a_new_image_replaces_the_old_one_under_those_who_use_it(copied, container, tmp_path):
    name = container()
    push(copied)
    host.call_module("crashcart_attach", containers=[name], image="small")
    other = tmp_path / "other.squashfs"
    host.call_module(
        "crashcart_build", dest=str(other), packages=["busybox-static", "ncurses-base"], cache="~/.cache/crashcart"
    )
    assert push(other)["changed"]
    assert len(list_store()) == 2
    assert host.docker("exec", name, "/dev/crashcart/bin/busybox", "echo", "old") == "old"
    with pytest.raises(host.ModuleFailed, match="another image"):
        host.call_module("crashcart_attach", containers=[name], image="small")
    host.call_module("crashcart_attach", containers=[name], state="detached")
    assert host.call_module("crashcart_attach", containers=[name], image="small")["changed"]


def test_two_pushes_at_once(copied):
    command = ["ansible", "localhost", "-m", "crashcart.fleet.crashcart_image", "-a", f"src={copied} name=small"]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _n in range(3)
    ]
    for process in processes:
        output, _none = process.communicate(timeout=host.seconds(60))
        assert process.returncode == 0, output
    assert len(list_store()) == 2


def test_what_lies_beside_an_image_is_cleared_away_once(copied):
    push(copied)
    wanted = list_store()
    for stray in (f"{'0' * 64}.json", ".crashcart-half", "folder/file"):
        path = os.path.join(STORE, "small", stray)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="ascii") as file:
            file.write("half a file")
        assert push(copied)["changed"], stray
        assert list_store() == wanted
    assert not push(copied)["changed"]
    os.makedirs(os.path.join(STORE, "small", "folder"))
    assert host.call_module("crashcart_image", name="small", state="absent")["changed"]
    assert list_store() == []


def test_what_a_killed_push_left_is_mended(copied):
    push(copied)
    digest_file = next(name for name in list_store() if name.endswith(".image"))
    with open(os.path.join(STORE, "small", ".crashcart-half"), "w", encoding="ascii") as file:
        file.write("half an image")
    os.unlink(os.path.join(STORE, "small", digest_file))
    assert push(copied)["changed"]
    assert digest_file in list_store()
    assert len(list_store()) == 2
