# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether an image is what was asked for."""

from __future__ import annotations

import json
import os
import stat
import sys

import pytest

if sys.version_info < (3, 11):
    pytest.skip("the controller runs Python 3.11 or newer", allow_module_level=True)
pytest.importorskip("elftools")

from ansible_collections.crashcart.fleet.plugins.module_utils.image import builder
from ansible_collections.crashcart.fleet.plugins.module_utils.image.apt import BuildError, Package
from ansible_collections.crashcart.fleet.plugins.module_utils.image.builder import Request

REQUEST = Request(("bash", "strace"))
BASH = Package("bash", "5.2", "amd64", "/cache/bash.deb", "SHA256:1", 10)
STRACE = Package("strace", "6.1", "amd64", "/cache/strace.deb", "SHA256:2", 20)


def make_manifest(request=REQUEST, packages=(BASH, STRACE)):
    """A manifest as it comes back from its file."""
    manifest = {"request": builder._describe(request), "packages": builder._list(list(packages)), "size": 5}
    return json.loads(json.dumps(manifest))


def write(tmp_path, content=b"12345", manifest=None):
    image = tmp_path / "image.squashfs"
    image.write_bytes(content)
    (tmp_path / "image.squashfs.json").write_text(json.dumps(make_manifest()) if manifest is None else manifest)
    return str(image)


def test_the_manifest_lies_beside_the_image(tmp_path):
    assert builder.read_manifest(write(tmp_path)) == make_manifest()


@pytest.mark.parametrize("content", [b"", b"1234", b"123456"])
def test_a_manifest_of_an_image_of_another_size_does_not_count(tmp_path, content):
    assert builder.read_manifest(write(tmp_path, content)) is None


@pytest.mark.parametrize("manifest", ["", "{", "{}", '{"size": "5"}', '{"size": null}', "\0"])
def test_a_damaged_manifest_does_not_count(tmp_path, manifest):
    assert builder.read_manifest(write(tmp_path, manifest=manifest)) is None


@pytest.mark.parametrize("manifest", ["[]", "5", "null", '"size"'])
def test_a_manifest_that_is_no_object_does_not_count(tmp_path, manifest):
    assert builder.read_manifest(write(tmp_path, manifest=manifest)) is None


def test_half_of_the_two_files_does_not_count(tmp_path):
    image = write(tmp_path)
    os.unlink(image)
    assert builder.read_manifest(image) is None
    image = write(tmp_path)
    os.unlink(image + ".json")
    assert builder.read_manifest(image) is None


def test_an_image_of_the_same_request_and_packages_is_current():
    assert builder.is_current(make_manifest(), REQUEST, [BASH, STRACE])


@pytest.mark.parametrize(
    "packages",
    [
        [],
        [BASH],
        [STRACE, BASH],
        [BASH, Package("strace", "6.2", "amd64", "/cache/strace.deb", "SHA256:2", 20)],
        [BASH, Package("strace", "6.1", "amd64", "/cache/strace.deb", "SHA256:3", 20)],
        [BASH, Package("strace", "6.1", "arm64", "/cache/strace.deb", "SHA256:2", 20)],
    ],
)
def test_other_packages_make_another_image(packages):
    assert not builder.is_current(make_manifest(), REQUEST, packages)


def test_where_packages_lie_makes_no_other_image():
    moved = Package("bash", "5.2", "amd64", "/elsewhere/bash.deb", "SHA256:1", 10)
    assert builder.is_current(make_manifest(), REQUEST, [moved, STRACE])


@pytest.mark.parametrize(
    "request_",
    [
        Request(("bash",)),
        Request(("strace", "bash")),
        Request(("bash", "strace"), prefix="/opt/x"),
        Request((), format="erofs"),
    ],
)
def test_another_request_makes_another_image(request_):
    assert not builder.is_same_request(make_manifest(), request_)
    assert not builder.is_current(make_manifest(), request_, [BASH, STRACE])


def test_another_builder_makes_another_image(monkeypatch):
    manifest = make_manifest()
    monkeypatch.setattr(builder, "BUILDER_VERSION", builder.BUILDER_VERSION + 1)
    assert not builder.is_current(manifest, REQUEST, [BASH, STRACE])


def test_no_manifest_is_not_current():
    assert not builder.is_current(None, REQUEST, [])
    assert not builder.is_same_request({}, REQUEST)


def test_a_bad_name_stops_a_build_before_anything_is_made(tmp_path):
    with pytest.raises(BuildError, match="not the name"):
        builder.resolve(Request(("bash", "-oX=y")), str(tmp_path / "cache"), 0.0)
    assert list(tmp_path.iterdir()) == []


def test_an_image_is_published_with_its_manifest(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    dest = write(tmp_path, b"old")
    image = work / "image"
    image.write_bytes(b"12345")
    image.chmod(0o600)
    builder._publish(str(image), make_manifest(), str(work), dest)
    assert builder.read_manifest(dest) == make_manifest()
    for path in (dest, builder.manifest_path(dest)):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o644
    assert list(work.iterdir()) == []


def test_settings_of_a_tree_are_what_a_command_reads(tmp_path):
    (tmp_path / "lib" / "terminfo").mkdir(parents=True)
    builder._write_settings(str(tmp_path), "/dev/crashcart", make_manifest())
    lines = (tmp_path / "etc" / "crashcart.env").read_text().splitlines()
    assert lines[1:] == ["PYTHONDONTWRITEBYTECODE=1", "TERMINFO=/dev/crashcart/lib/terminfo"]
    assert "export TERMINFO=/dev/crashcart/lib/terminfo\n" in (tmp_path / "etc" / "crashcart.bashrc").read_text()
    assert json.loads((tmp_path / "etc" / "crashcart.json").read_text()) == make_manifest()


def test_digest_of_a_file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert builder._hash(str(path)) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
