# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Comparison of an image with a request."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from dataclasses import replace

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.architectures import find_architecture
from ansible_collections.crashcart.fleet.plugins.module_utils.image import builder
from ansible_collections.crashcart.fleet.plugins.module_utils.image.builder import Request
from ansible_collections.crashcart.fleet.plugins.module_utils.image.errors import BuildError
from ansible_collections.crashcart.fleet.plugins.module_utils.image.relocate import Relocation
from ansible_collections.crashcart.fleet.plugins.module_utils.image.sources import Component

REQUEST = Request(("bash", "strace"))
BASH = Component("deb", "bash", "5.2", "amd64", "sha256:1", 10)
STRACE = Component("deb", "strace", "6.1", "amd64", "sha256:2", 20)


class Plan:
    """A plan with a request and components."""

    def __init__(self, request=REQUEST, components=(BASH, STRACE)):
        self.request = request
        self.components = list(components)


def make_manifest(plan=None):
    """A manifest as it comes back from its file."""
    plan = plan or Plan()
    manifest = {"request": builder._describe(plan.request), "components": builder.list_components(plan), "size": 5}
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


def test_an_image_of_the_same_request_and_sources_is_current():
    assert builder.is_current(make_manifest(), Plan())


@pytest.mark.parametrize(
    "components",
    [
        [],
        [BASH],
        [STRACE, BASH],
        [BASH, replace(STRACE, version="6.2")],
        [BASH, replace(STRACE, hash="sha256:3")],
        [BASH, replace(STRACE, arch="arm64")],
    ],
)
def test_other_sources_make_another_image(components):
    assert not builder.is_current(make_manifest(), Plan(components=components))


@pytest.mark.parametrize(
    "request_",
    [
        Request(("bash",)),
        Request(("strace", "bash")),
        Request(("bash", "strace"), prefix="/opt/crashcart"),
        Request(("bash", "strace"), format="erofs"),
        Request(("bash", "strace"), arch="arm64"),
        Request(("bash", "strace"), release="trixie"),
        Request(("bash", "strace"), paths=("/x",)),
    ],
)
def test_another_request_makes_another_image(request_):
    assert not builder.is_same_request(make_manifest(), request_)
    assert not builder.is_current(make_manifest(), Plan(request_))


def test_where_a_file_lies_makes_no_other_image():
    manifest = make_manifest(Plan(Request(paths=("/here/tools.tar", "/x/folder"))))
    assert builder.is_same_request(manifest, Request(paths=("elsewhere/tools.tar", "/y/folder/")))
    assert not builder.is_same_request(manifest, Request(paths=("/here/other.tar", "/x/folder")))


def test_another_builder_makes_another_image(monkeypatch):
    manifest = make_manifest()
    monkeypatch.setattr(builder, "BUILDER_VERSION", builder.BUILDER_VERSION + 1)
    assert not builder.is_current(manifest, Plan())


def test_no_manifest_is_not_current():
    assert not builder.is_current(None, Plan(components=[]))
    assert not builder.is_same_request({}, REQUEST)


def make_plan(tmp_path, request):
    return builder.Plan(request, str(tmp_path / "cache"), str(tmp_path), docker_host=None, valid_s=0.0, offline=True)


def test_a_bad_name_stops_a_build_before_anything_is_made(tmp_path):
    with pytest.raises(BuildError, match="not the name"):
        make_plan(tmp_path, Request(("bash", "-oX=y")))
    assert list(tmp_path.iterdir()) == []


def test_nothing_makes_no_image(tmp_path):
    with pytest.raises(BuildError, match="nothing to make an image of"):
        make_plan(tmp_path, Request())


@pytest.mark.parametrize(
    ("request_", "found", "arch"),
    [
        (Request(arch="arm64"), {"arm64": 3}, "arm64"),
        (Request(paths=("x",)), {"arm64": 3}, "arm64"),
        (Request(paths=("x",)), {}, find_architecture()),
        (Request(("bash",)), {}, find_architecture()),
    ],
)
def test_the_architecture_of_an_image(request_, found, arch):
    assert builder._find_architecture(request_, make_relocation(found), None) == arch


def make_relocation(found, elsewhere=()):
    return Relocation([], Counter(found), Counter(elsewhere))


def test_where_no_programs_stand_in_folders_of_programs_others_say_the_architecture():
    assert (
        builder._find_architecture(Request(paths=("x",)), make_relocation({}, {"arm64": 2, "amd64": 1}), None)
        == "arm64"
    )
    # What a container image says of itself comes first.
    told = builder._find_architecture(Request(docker_image="x"), make_relocation({}, {"amd64": 1}), "arm64")
    assert told == "arm64"


@pytest.mark.parametrize(
    ("request_", "found", "wanted"),
    [
        (Request(arch="arm64"), {"amd64": 3}, "for arm64 and has .*3 for amd64"),
        (Request(paths=("x",)), {"arm64": 3, "amd64": 1}, "for arm64 and has .*1 for amd64"),
    ],
)
def test_programs_of_two_architectures_make_no_image(request_, found, wanted):
    with pytest.raises(BuildError, match=wanted):
        builder._find_architecture(request_, make_relocation(found), None)


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
    manifest = {**make_manifest(), "sealed": True}
    builder._write_settings(str(tmp_path), "/dev/crashcart", manifest)
    lines = (tmp_path / "etc" / "crashcart.env").read_text().splitlines()
    assert lines[1:] == [
        "LC_MESSAGES=C",
        "PATH=",
        "PYTHONDONTWRITEBYTECODE=1",
        "TERMINFO=/dev/crashcart/lib/terminfo",
    ]
    assert "export TERMINFO=/dev/crashcart/lib/terminfo\n" in (tmp_path / "etc" / "crashcart.bashrc").read_text()
    assert '"$1" --help' in (tmp_path / "etc" / "crashcart.bashrc").read_text()
    assert json.loads((tmp_path / "etc" / "crashcart.json").read_text()) == manifest


def test_the_mark_of_a_sealed_image_is_nobody_elses(tmp_path):
    mark = tmp_path / "etc" / "crashcart.sealed"
    builder._write_settings(str(tmp_path), "/dev/crashcart", {**make_manifest(), "sealed": True})
    assert mark.is_file()
    builder._write_settings(str(tmp_path), "/dev/crashcart", {**make_manifest(), "sealed": False})
    assert not mark.exists()
    mark.symlink_to("/etc/passwd")
    builder._write_settings(str(tmp_path), "/dev/crashcart", {**make_manifest(), "sealed": False})
    assert not mark.is_symlink()


def test_a_damaged_image_is_noticed_though_it_has_the_right_size(tmp_path):
    image = write(tmp_path, b"12345")
    manifest = {**make_manifest(), "digest": "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5"}
    assert builder.is_undamaged(manifest, image)
    write(tmp_path, b"12346")
    assert not builder.is_undamaged(manifest, image)


def test_an_image_cannot_hold_itself(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "link").symlink_to("root")
    for dest in ("root/image", "root/a/image", "link/image"):
        with pytest.raises(BuildError, match="give a dest elsewhere"):
            builder.check_dest(str(tmp_path / dest), [str(tmp_path / "root")])
    builder.check_dest(str(tmp_path / "root-image"), [str(tmp_path / "root")])


def test_what_a_killed_build_has_left_is_removed_and_what_another_works_in_is_not(tmp_path):
    (tmp_path / ".crashcart-build-dead" / "tree").mkdir(parents=True)
    with builder.open_work_folder(str(tmp_path)) as first, builder.open_work_folder(str(tmp_path)) as second:
        assert sorted(map(str, tmp_path.iterdir())) == sorted([first, second])
    assert list(tmp_path.iterdir()) == []
