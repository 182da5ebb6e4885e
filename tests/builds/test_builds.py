# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""crashcart_build as far as no engine and no container is needed: the cache, reproducibility, and what goes wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import tarfile
import tempfile

import pytest
from support import host
from support.images import build, install_packages

CACHE = os.path.expanduser("~/.cache/crashcart")


@pytest.mark.parametrize("kind", ["squashfs", "erofs", "ext4"])
def test_formats_are_reproducible(tmp_path, kind):
    install_packages("erofs-utils")
    digests = set()
    # Python's compiled library is a part of it; once is enough.
    packages = ["bash", *(["python3-minimal"] if kind == "squashfs" else [])]
    for folder in ("a", "elsewhere/b"):
        (tmp_path / folder / "root/share/x").mkdir(parents=True)
        (tmp_path / folder / "root/share/y").symlink_to("x")
        (tmp_path / folder / "root/share/x/z").write_text("z")
        image = build(
            tmp_path / folder / "image",
            packages=packages,
            paths=[str(tmp_path / folder / "root")],
            format=kind,
        )
        digests.add(image["digest"])
        host.pause(1.1)  # times of files would differ
    assert len(digests) == 1


def test_an_image_may_be_built_by_nobody_special():
    """Without root the files of an ext4 image belong to root all the same."""
    code = (
        "import os, sys; assert os.geteuid() == 65534;"
        "from ansible_collections.crashcart.fleet.plugins.module_utils.image import builder;"
        "plan = builder.Plan(builder.Request(paths=('/bin/busybox',), format='ext4'), '/nonesuch', '/tmp', docker_host=None,"
        " valid_s=0.0, offline=True);"
        "builder.build(plan, sys.argv[1], lambda text: None)"
    )
    # Who may read this Python, wherever it is, but is not root.
    nobody = (
        "setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps +dac_read_search --ambient-caps +dac_read_search"
    )
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o777)
        host.run(*nobody.split(), shutil.which("python3"), "-c", code, f"{folder}/image")
        assert os.stat(f"{folder}/image").st_uid == 65534
        listing = host.run("debugfs", "-R", "stat /bin/busybox", f"{folder}/image").stdout
    assert re.search(r"User: +0 +Group: +0 ", listing)


def test_another_prefix(tmp_path):
    packages = ["busybox-static", "bash"]
    build(tmp_path / "image", packages=packages, prefix="/opt/crashcart-tools", format="squashfs")
    with pytest.raises(host.ModuleFailed, match="prefix '/dev/tools' cannot be used"):
        build(tmp_path / "image", packages=["bash"], prefix="/dev/tools")
    assert "/opt/crashcart-tools/lib" in host.run("unsquashfs", "-cat", str(tmp_path / "image"), "bin/bash").stdout


def test_an_offline_build_works_from_the_cache_and_a_damaged_cache_is_noticed(tmp_path):
    cache = tmp_path / "cache"
    first = build(tmp_path / "a", packages=["busybox-static"], cache=str(cache))
    os.environ["http_proxy"] = "http://127.0.0.1:1"
    try:
        again = build(tmp_path / "b", packages=["busybox-static"], cache=str(cache), offline=True)
        assert again["digest"] == first["digest"]
        with pytest.raises(
            host.ModuleFailed, match=r"not in the cache, and offline=true forbids to fetch them: .*zlib1g"
        ):
            build(tmp_path / "c", packages=["zlib1g"], cache=str(cache), offline=True)
        host.pause(1.1)
        with pytest.raises(host.ModuleFailed, match="(?s)apt-get update failed: .*offline=true"):
            build(tmp_path / "c", packages=["busybox-static"], cache=str(cache), cache_valid_time="1s")
    finally:
        del os.environ["http_proxy"]
    (path,) = cache.glob("archives/busybox-static*.deb")
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(host.ModuleFailed, match="not in the cache, and offline=true"):
        build(tmp_path / "c", packages=["busybox-static"], cache=str(cache), offline=True)
    assert build(tmp_path / "c", packages=["busybox-static"], cache=str(cache))["digest"] == first["digest"]
    assert sorted(os.listdir(tmp_path)) == ["a", "a.json", "b", "b.json", "c", "c.json", "cache"]


def test_a_mirror_that_is_gone_is_named(tmp_path):
    with pytest.raises(host.ModuleFailed, match="apt-get update failed: .*127.0.0.1"):
        build(
            tmp_path / "x",
            packages=["bash"],
            release="bookworm",
            mirror="http://127.0.0.1:1/debian",
            cache=str(tmp_path / "c"),
        )
    assert os.listdir(tmp_path) == ["c"]


INTERRUPTIONS = (
    *((step, signal.SIGINT) for step in ("fetching", "unpacking", "relocating", "packing")),
    ("relocating", signal.SIGTERM),
    ("packing", signal.SIGKILL),
)


def test_an_interrupted_build_leaves_nothing(tmp_path):
    dest = tmp_path / "out" / "image"
    what = {"packages": ["bash", "perl"], "cache": str(tmp_path / "cache")}
    for step, number in INTERRUPTIONS:
        progress = tmp_path / f"progress-{step}-{number}"
        process = host.start_module("crashcart_build", dest=str(dest), _progress=str(progress), **what)
        host.wait_until(lambda file=progress, word=step: file.exists() and word in file.read_text(), 60)
        process.send_signal(number)
        process.communicate(timeout=host.seconds(60))
        assert not dest.exists(), step
        left = os.listdir(dest.parent) if dest.parent.exists() else []
        assert left == [] or number == signal.SIGKILL, step
    # What a killed build could not tidy up the next one does, and what the cache has is whole.
    assert build(dest, **what)["size"] > 0
    assert sorted(os.listdir(dest.parent)) == ["image", "image.json"]


def test_a_damaged_image_is_built_anew(tmp_path):
    path = tmp_path / "image"
    digest = build(path, packages=["busybox-static"])["digest"]
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    wish = {"packages": ["busybox-static"], "format": "ext4", "cache": CACHE}
    again = host.call_module("crashcart_build", dest=str(path), **wish)
    assert (again["changed"], again["image"]["digest"]) == (True, digest)


def test_builds_side_by_side(tmp_path):
    """Of different images by one cache, and of one image: none fails, and each image fits its manifest."""
    cache = str(tmp_path / "cache")
    plans = [("a", "busybox-static", "bash"), ("b", "busybox-static", "file"), ("b", "file", "busybox-static")]
    processes = [
        host.start_module("crashcart_build", dest=str(tmp_path / name), packages=packages, cache=cache)
        for name, *packages in plans
    ]
    for process in processes:
        host.parse_result(*process.communicate(timeout=host.seconds(120)))
    for name in ("a", "b"):
        digest = json.loads((tmp_path / f"{name}.json").read_text())["digest"]
        assert host.run("sha256sum", str(tmp_path / name)).stdout.split()[0] == digest


def test_no_space_left(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    host.run("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place))
    try:
        with pytest.raises(host.ModuleFailed, match="[Nn]o space left"):
            build(place / "image", packages=["bash", "coreutils"], format="squashfs")
        assert os.listdir(place) == []
    finally:
        host.run("umount", str(place))


@pytest.mark.parametrize("name", ["../outside", "usr/../../outside"])
def test_a_malicious_archive_cannot_write_outside(tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "x").write_text("x")
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        archive.add(tmp_path / "x", "usr/bin/x")
        member = archive.gettarinfo(tmp_path / "x")
        member.name = name
        with open(tmp_path / "x", "rb") as file:
            archive.addfile(member, file)
    with pytest.raises(host.ModuleFailed, match="leads out of it"):
        build(tmp_path / "out" / "image", paths=[str(tmp_path / "bad.tar")])
    assert os.listdir(tmp_path / "out") == []
    assert sorted(os.listdir(tmp_path)) == ["bad.tar", "out", "x"]


@pytest.mark.parametrize("content", [b"", b"text\n", b"\xed\xab\xee\xdb damaged rpm", b"!<arch>\ndamaged deb"])
def test_what_is_no_source_is_named(tmp_path, content):
    install_packages("libarchive-tools")
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(host.ModuleFailed, match=f"{tmp_path}/x (is no folder|cannot be|is a damaged rpm)"):
        build(tmp_path / "image", paths=[str(tmp_path / "x")])
    assert os.listdir(tmp_path) == ["x"]
