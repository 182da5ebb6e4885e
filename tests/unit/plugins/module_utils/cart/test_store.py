# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The store of images, in a folder of the test."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import threading
import time

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils import feature
from ansible_collections.crashcart.fleet.plugins.module_utils.architectures import find_architecture
from ansible_collections.crashcart.fleet.plugins.module_utils.cart import store
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.store import ImageError

OLD = b"old image " * 1000
NEW = b"new image " * 2000


def digest_of(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(name="place", autouse=True)
def make_place(tmp_path, monkeypatch):
    place = tmp_path / "images"
    monkeypatch.setattr(store, "STORE", str(place))
    return place


@pytest.fixture(name="push")
def make_push(tmp_path):
    def push(content, name="default", digest=None, **manifest):
        source = tmp_path / "source"
        source.write_bytes(content)
        return store.install_image(name, digest or digest_of(content), {"prefix": "/dev/x", **manifest}, str(source))

    return push


def put(place, name, digest, age_s=0, manifest="{}"):
    """An image as an earlier push has left it."""
    folder = place / name
    folder.mkdir(parents=True, exist_ok=True)
    image = folder / (digest + ".image")
    image.write_bytes(b"x")
    when = time.time() - age_s
    os.utime(str(image), (when, when))
    if manifest is not None:
        (folder / (digest + ".json")).write_text(manifest)


def list_files(place):
    return sorted(
        os.path.relpath(os.path.join(folder, name), str(place))
        for folder, _f, names in os.walk(str(place))
        for name in names
    )


@pytest.mark.parametrize("name", ["default", "a", "0", "debian-12_x.y", "A" * 64, "a..b"])
def test_names_that_do(name):
    assert store.check_name(name) is None


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "-rf", "_x", "a/b", "../a", "/a", "a b", "a\n", "A" * 65, "é", "a\0", "a:b", "a*"],
)
def test_names_that_do_not(name):
    with pytest.raises(ImageError, match="cannot be used"):
        store.check_name(name)
    with pytest.raises(ImageError, match="cannot be used"):
        store.get_image(name)


def test_an_image_is_installed_whole(place, push):
    image = push(NEW, tools=["strace"])
    digest = digest_of(NEW)
    assert image.path == str(place / "default" / (digest + ".image"))
    assert (place / "default" / (digest + ".image")).read_bytes() == NEW
    assert list_files(place) == [f"default/{digest}.image", f"default/{digest}.json"]
    for path in list_files(place):
        assert stat.S_IMODE(os.stat(str(place / path)).st_mode) == 0o644
    found = store.get_image("default")
    assert found == image
    assert found.manifest["tools"] == ["strace"]
    assert store.describe("default") == digest


def test_an_image_larger_than_one_chunk(push, monkeypatch):
    monkeypatch.setattr(store, "_CHUNK", 4096)
    content = bytes(range(256)) * 100
    with open(push(content).path, "rb") as file:
        assert file.read() == content


def test_a_wrong_digest_leaves_nothing(place, push):
    with pytest.raises(ImageError, match=digest_of(NEW)):
        push(NEW, digest=digest_of(OLD))
    assert list_files(place) == []
    assert store.list_names() == []
    assert store.find_image("default") is None


def test_a_wrong_digest_leaves_what_was_there(place, push):
    push(OLD)
    before = list_files(place)
    with pytest.raises(ImageError):
        push(NEW[:-1], digest=digest_of(NEW))
    assert list_files(place) == before
    assert store.get_image("default").digest == digest_of(OLD)


def test_a_wrong_digest_leaves_no_folder(push):
    with pytest.raises(ImageError):
        push(NEW, digest=digest_of(OLD))
    assert store.describe("default") is None


def test_a_missing_source_leaves_nothing(place, tmp_path):
    with pytest.raises(FileNotFoundError):
        store.install_image("default", digest_of(NEW), {}, str(tmp_path / "missing"))
    assert list_files(place) == []


def test_the_old_image_goes_when_the_new_one_is_there(place, push):
    push(OLD)
    push(NEW)
    digest = digest_of(NEW)
    assert list_files(place) == [f"default/{digest}.image", f"default/{digest}.json"]
    assert store.get_image("default").digest == digest


def test_the_same_image_again_and_another_manifest(push):
    push(NEW, tools=[])
    push(NEW, tools=["gdb"])
    assert store.get_image("default").manifest["tools"] == ["gdb"]
    assert store.describe("default") == digest_of(NEW)


def test_other_images_are_left_alone(push):
    push(OLD, name="one")
    push(NEW, name="two")
    assert store.list_names() == ["one", "two"]
    assert store.get_image("one").digest == digest_of(OLD)


def test_stray_files_are_removed(place, push):
    folder = place / "default"
    folder.mkdir(parents=True)
    for stray in (".crashcart-abc", "README", digest_of(OLD) + ".json", "x.image"):
        (folder / stray).write_bytes(b"stray")
    (folder / "link").symlink_to("/nonexistent")
    push(NEW)
    digest = digest_of(NEW)
    assert list_files(place) == [f"default/{digest}.image", f"default/{digest}.json"]


def test_a_half_image_is_never_found(place, push, tmp_path):
    push(OLD)
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    outcome = []
    thread = threading.Thread(target=lambda: outcome.append(store.install_image("default", digest_of(NEW), {}, pipe)))
    thread.start()
    with open(pipe, "wb") as writer:
        writer.write(NEW[: len(NEW) // 2])
        writer.flush()
        assert store.list_names() == ["default"]
        assert store.get_image("default").digest == digest_of(OLD)
        writer.write(NEW[len(NEW) // 2 :])
    thread.join(10)
    assert [image.digest for image in outcome] == [digest_of(NEW)]
    assert store.get_image("default").digest == digest_of(NEW)


def test_a_killed_push_leaves_no_image_and_the_next_one_cleans_up(place, push, tmp_path):
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    pid = os.fork()
    if pid == 0:
        try:
            store.install_image("default", digest_of(NEW), {}, pipe)
        finally:
            os._exit(0)
    with open(pipe, "wb") as writer:
        writer.write(NEW[:100])
        writer.flush()
        deadline = time.monotonic() + 10
        while not list_files(place) and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert len(list_files(place)) == 1  # what it had begun
    assert store.list_names() == []
    assert store.find_image("default") is None
    assert store.describe("default") == "incomplete"
    push(NEW)
    assert len(list_files(place)) == 2
    assert store.describe("default") == digest_of(NEW)


def test_the_newest_of_several_images_counts(place):
    first, second, third = ("1" * 64, "2" * 64, "3" * 64)
    put(place, "default", third, age_s=300)
    put(place, "default", first, age_s=100)
    put(place, "default", second, age_s=200)
    assert store._list_digests("default") == [third, second, first]
    assert store.find_image("default").digest == first
    assert store.describe("default") == "incomplete"


def test_only_digests_are_images(place):
    for name in ("A" * 64, "a" * 63, "a" * 65, "g" * 64, ".crashcart-x"):
        put(place, "default", name)
    assert store._list_digests("default") == []
    assert store.list_names() == []
    assert store.find_image("default") is None


def test_what_is_not_there(place):
    assert store.list_names() == []
    assert store.find_image("default") is None
    assert store.describe("default") is None
    with pytest.raises(ImageError, match="the host has none"):
        store.get_image("default")
    put(place, "other", "1" * 64)
    (place / "file").write_text("not a folder")
    with pytest.raises(ImageError, match="the host has: other"):
        store.get_image("default")
    assert store.find_image("file") is None


@pytest.mark.parametrize("manifest", [None, "", "{", "\0"])
def test_a_damaged_manifest_is_named_and_not_taken_for_none(place, manifest):
    put(place, "default", "1" * 64, manifest=manifest)
    assert store.list_names() == ["default"]
    with pytest.raises(ImageError, match="manifest of image 'default' cannot be read"):
        store.get_image("default")


def test_an_image_without_manifest_is_incomplete(place):
    put(place, "default", "1" * 64, manifest=None)
    assert store.describe("default") == "incomplete"


def test_removal_takes_everything_and_the_folder(place, push):
    push(NEW)
    put(place, "default", "1" * 64)
    (place / "default" / ".crashcart-x").write_text("stray")
    push(OLD, name="other")
    store.remove_image("default")
    assert store.list_names() == ["other"]
    assert not (place / "default").exists()


DIGEST = "ab" * 32


@pytest.mark.parametrize(
    ("below", "found"),
    [
        (f"default/{DIGEST}.image", ("default", DIGEST)),
        (f"default/{DIGEST}.image (deleted)", ("default", DIGEST)),
        (f"{DIGEST}.image", None),
        (f"a/b/{DIGEST}.image", None),
        (f"../images2/default/{DIGEST}.image", None),
    ],
)
def test_path_of_an_image(place, below, found):
    assert store.parse_path(f"{place}/{below}") == found


@pytest.mark.parametrize("path", ["", "/", "/tmp/x.img", f"default/{DIGEST}.image", " (deleted)"])
def test_path_outside_the_store(path):
    assert store.parse_path(path) is None


def test_a_stores_own_paths_are_understood(push):
    image = push(NEW)
    assert store.parse_path(image.path) == ("default", image.digest)


def make_manifest(**values):
    manifest = {
        "arch": find_architecture(),
        "format": "squashfs",
        "digest": DIGEST,
        "size": 4096,
        "prefix": "/dev/crashcart",
    }
    return {**manifest, **values}


@pytest.mark.parametrize("architecture", [None, "s390x", "", ["amd64"]])
def test_an_image_of_another_architecture_is_refused(architecture):
    with pytest.raises(ImageError, match=f"this host is {find_architecture()}"):
        store.check_manifest(make_manifest(arch=architecture))


def test_an_image_of_another_format_is_refused_and_the_right_one_passes():
    with pytest.raises(ImageError, match="'ntfs'"):
        store.check_manifest(make_manifest(format="ntfs"))
    assert store.check_manifest(make_manifest()) is None


def test_an_image_that_the_host_cannot_mount_is_refused(monkeypatch):
    missing = feature.Feature("erofs", False, "the kernel has no module for it (CONFIG_EROFS)")
    monkeypatch.setattr(feature, "check_filesystem", lambda name: missing)
    with pytest.raises(ImageError, match="cannot mount the image's format erofs: .*CONFIG_EROFS.*another format"):
        store.check_manifest(make_manifest(format="erofs"))


@pytest.mark.parametrize("prefix", ["/dev/crashcart", "/dev/crashcart-2", "/opt/tools/crashcart"])
def test_a_prefix_that_does(prefix):
    assert store.check_manifest_form(make_manifest(prefix=prefix)) is None


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"digest": None}, "sha256"),
        ({"digest": 5}, "sha256"),
        ({"digest": ""}, "sha256"),
        ({"digest": "../" * 21 + "x"}, "sha256"),
        ({"digest": DIGEST.upper()}, "sha256"),
        ({"digest": DIGEST + "\n"}, "sha256"),
        ({"size": None}, "no number"),
        ({"size": "4096"}, "no number"),
        ({"size": [1]}, "no number"),
        ({"prefix": None}, "cannot be used"),
        ({"prefix": 5}, "cannot be used"),
        ({"prefix": ""}, "cannot be used"),
        ({"prefix": "dev/crashcart"}, "cannot be used"),
        ({"prefix": "/crashcart"}, "cannot be used"),
        ({"prefix": "/dev"}, "cannot be used"),
        ({"prefix": "/dev/shm"}, "cannot be used"),
        ({"prefix": "/dev/crashcart/"}, "cannot be used"),
        ({"prefix": "/dev/../crashcart"}, "cannot be used"),
        ({"prefix": "/dev/crashcart/.."}, "cannot be used"),
        ({"prefix": "/dev/./crashcart"}, "cannot be used"),
    ],
)
def test_a_manifest_that_no_builder_wrote_is_refused(change, word):
    with pytest.raises(ImageError, match=word):
        store.check_manifest_form(make_manifest(**change))
    with pytest.raises(ImageError, match=word):
        store.check_manifest(make_manifest(**change))


@pytest.mark.parametrize("manifest", [None, [], "text", 5, {}])
def test_what_is_no_manifest_at_all_is_refused(manifest):
    with pytest.raises(ImageError):
        store.check_manifest_form(manifest)


def test_a_store_behind_a_link_is_known_by_both_paths(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.setattr(store, "STORE", str(tmp_path / "link"))
    for folder in ("real", "link"):
        assert store.parse_path(f"{tmp_path}/{folder}/default/{DIGEST}.image") == ("default", DIGEST)


def test_result_leaves_out_the_long_lists(push):
    image = push(NEW, arch="amd64", format="squashfs", size=len(NEW), tools=["a"], packages=["b"])
    assert image.as_result() == {
        "name": "default",
        "digest": digest_of(NEW),
        "path": image.path,
        "arch": "amd64",
        "format": "squashfs",
        "size": len(NEW),
        "prefix": "/dev/x",
    }
    with open(image.path[: -len(".image")] + ".json", encoding="utf-8") as file:
        assert json.load(file) == image.manifest
