# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""crashcart_build: sources of all kinds, formats, architectures, and what goes wrong."""

from __future__ import annotations

import glob
import json
import os
import shutil
import tarfile

import pytest
from support import host, images
from support.images import build, install_packages

IMAGES = "crashcart-test"
CACHE = os.path.expanduser("~/.cache/crashcart")


@pytest.fixture
def run_in(container):
    """run_in(IMAGE FILE, *ARGV, …): what a command of that image gives in a container that has nothing else."""

    def run(path, *argv, kind="static", **options):
        images.install(path, "built")
        name = container(kind)
        return host.execute(containers=[name], argv=list(argv), image="built", **options)[0]

    yield run
    host.wait_until_empty(host.list_loop_devices)
    host.call_module("crashcart_image", name="built", state="absent")


@pytest.mark.parametrize("kind", ["squashfs", "erofs", "ext4"])
def test_formats_work(tmp_path, run_in, container, kind):
    install_packages("erofs-utils")
    image = build(tmp_path / "image", packages=["bash", "file"], format=kind)
    assert image["format"] == kind
    result = run_in(tmp_path / "image", "bash", "-c", "file /dev/crashcart/bin/bash")
    assert "ELF 64-bit" in result["stdout"]
    name = container("busybox")
    host.call_module("crashcart_attach", containers=[name], image="built")
    assert f" - {kind} " in next(
        line for line in host.read_container_mounts(name).splitlines() if " /dev/crashcart " in line
    )
    assert host.docker("exec", name, "/dev/crashcart/bin/bash", "-c", "echo $BASH_VERSION").startswith("5.")
    host.call_module("crashcart_attach", containers=[name], state="detached")


def test_local_packages_folders_archives_and_programs(tmp_path, run_in):
    install_packages("libarchive-tools", "rpm")
    os.chdir(tmp_path)
    host.run("apt-get", "download", "hello")
    (tmp_path / "root/usr/share/data").mkdir(parents=True)
    (tmp_path / "root/usr/share/data/text").write_text("from a folder\n")
    (tmp_path / "root/etc").mkdir()
    (tmp_path / "root/etc/link").symlink_to("/usr/share/data/text")
    with tarfile.open(tmp_path / "tools.tar.gz", "w:gz") as archive:
        archive.add("/bin/busybox", "usr/local/bin/fromtar")
    script = tmp_path / "fromscript"
    script.write_text("#!/usr/bin/env bash\ncat /dev/crashcart/etc/link\n")
    spec = tmp_path / "spec"
    spec.write_text(
        "Name: fromrpm\nVersion: 2.5\nRelease: 7\nSummary: x\nLicense: x\nBuildArch: noarch\n%description\n%install\n"
        "mkdir -p %{buildroot}/usr/bin\nprintf '#!/bin/bash\\necho rpm\\n' >%{buildroot}/usr/bin/fromrpm\n"
        "chmod 755 %{buildroot}/usr/bin/fromrpm\nln %{buildroot}/usr/bin/fromrpm %{buildroot}/usr/bin/alsofromrpm\n"
        "%files\n/usr/bin/fromrpm\n/usr/bin/alsofromrpm\n"
    )
    host.run("rpmbuild", "-bb", "--define", f"_topdir {tmp_path}/rpm", str(spec))
    (rpm,) = glob.glob(f"{tmp_path}/rpm/RPMS/noarch/*.rpm")
    paths = [
        *glob.glob(f"{tmp_path}/hello_*.deb"),
        str(tmp_path / "root"),
        str(tmp_path / "tools.tar.gz"),
        str(script),
        rpm,
    ]
    image = build(tmp_path / "image", packages=["bash", "coreutils"], paths=paths)
    assert image["tools"]["fromrpm"] == "fromrpm 2.5-7"
    assert image["tools"]["hello"].startswith("hello 2.")
    for name, wanted in (
        ("hello", "Hello, world!"),
        ("fromscript", "from a folder"),
        ("fromrpm", "rpm"),
        ("alsofromrpm", "rpm"),
    ):
        assert run_in(tmp_path / "image", name)["stdout"].strip() == wanted
    assert "fromtar: applet not found" in run_in(tmp_path / "image", "fromtar")["stderr"]
    manifest = json.loads((tmp_path / "image.json").read_text())
    kinds = [one["kind"] for one in manifest["components"]]
    assert kinds[-5:] == ["deb", "folder", "archive", "program", "rpm"]
    assert "libc6" in [one["name"] for one in manifest["components"]]
    (tmp_path / "root/usr/share/data/text").write_text("changed\n")
    changed = {"packages": ["bash", "coreutils"], "paths": paths, "format": "ext4", "cache": CACHE}
    assert host.call_module("crashcart_build", dest=str(tmp_path / "image"), **changed)["changed"]


def test_a_package_that_no_repository_has(tmp_path, run_in):
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "usr/bin").mkdir(parents=True)
    (tree / "usr/bin/ours").write_text("#!/bin/bash\necho ours\n")
    (tree / "usr/bin/ours").chmod(0o755)
    control = "Package: ours\nVersion: 1:2.0~x+y-1\nArchitecture: all\nMaintainer: x\nDepends: {}\nDescription: x\n"
    (tree / "DEBIAN/control").write_text(control.format("bash"))
    host.run("dpkg-deb", "--build", str(tree), str(tmp_path / "plain.deb"))
    image = build(tmp_path / "image", paths=[str(tmp_path / "plain.deb")])
    assert image["tools"]["ours"] == "ours 1:2.0~x+y-1"
    assert run_in(tmp_path / "image", "ours")["stdout"] == "ours\n"
    (tree / "DEBIAN/control").write_text(control.format("nonesuch"))
    host.run("dpkg-deb", "--build", str(tree), str(tmp_path / "other.deb"))
    with pytest.raises(host.ModuleFailed, match="(?s)ours : Depends: nonesuch .*check the names"):
        build(tmp_path / "other", paths=[str(tmp_path / "other.deb")])


def test_the_readmes_packages_start(tmp_path, run_in):
    """nmap's library of linear algebra is one that maintainer scripts choose among several."""
    image = build(tmp_path / "image", packages=["nmap", "redis-tools"])
    assert not [one for one in image["problems"] if one["path"].startswith("bin/")]
    assert "Nmap version" in run_in(tmp_path / "image", "nmap", "--version")["stdout"]
    assert "redis-cli" in run_in(tmp_path / "image", "redis-cli", "--version")["stdout"]


def test_a_container_image_becomes_a_tool_image(tmp_path, run_in):
    before = host.docker("ps", "-aq"), host.docker("volume", "ls", "-q")
    image = build(tmp_path / "image", docker_image=f"{IMAGES}/python")
    with_volume = f"{IMAGES}/with-volume"
    host.run("sh", "-c", f"tar -C /bin -c busybox | docker import --change 'VOLUME /data' - {with_volume}")
    try:
        build(tmp_path / "small", docker_image=with_volume)
    finally:
        host.docker("rmi", with_volume)
    assert (host.docker("ps", "-aq"), host.docker("volume", "ls", "-q")) == before
    result = run_in(tmp_path / "image", "python3", "-c", "import json, ssl; print(json.dumps([ssl.OPENSSL_VERSION]))")
    assert "OpenSSL" in result["stdout"], result
    again = {"docker_image": f"{IMAGES}/python", "format": "ext4"}
    assert not host.call_module("crashcart_build", dest=str(tmp_path / "image"), **again)["changed"]
    assert image["arch"] == host.call_module("crashcart_info", gather=["host"])["host"]["arch"]
    with pytest.raises(host.ModuleFailed, match="has no image 'nonesuch'"):
        build(tmp_path / "other", docker_image="nonesuch")


def test_the_files_of_a_container_become_a_tool_image(tmp_path, run_in, container):
    name = container("busybox", "/bin/sh", "-c", "echo mine >/etc/mine; exec /bin/sleep 1000")
    host.wait_until(lambda: host.docker("diff", name))
    build(tmp_path / "image", docker_container=name)
    assert run_in(tmp_path / "image", "busybox", "cat", "/dev/crashcart/etc/mine")["stdout"] == "mine\n"
    with pytest.raises(host.ModuleFailed, match="no container is called 'nonesuch'"):
        build(tmp_path / "other", docker_container="nonesuch")
    # Which the engine itself would take.
    digits = host.docker("inspect", "-f", "{{.Id}}", name)[:11]
    with pytest.raises(host.ModuleFailed, match=f"no container is called '{digits}'; it begins the id of {name}"):
        build(tmp_path / "other", docker_container=digits)
    digits = host.docker("image", "inspect", "-f", "{{.Id}}", f"{IMAGES}/busybox")[len("sha256:") :][:11]
    with pytest.raises(host.ModuleFailed, match=f"has no image called '{digits}', but one whose id begins so"):
        build(tmp_path / "other", docker_image=digits)
    host.docker("tag", f"{IMAGES}/busybox", digits)
    try:
        build(tmp_path / "other", docker_image=digits)
    finally:
        host.docker("rmi", f"{digits}:latest")


def test_programs_of_musl(tmp_path, run_in):
    images.compile_with_musl(str(tmp_path))
    build(tmp_path / "image", packages=["musl"], paths=[str(tmp_path / "wait")])
    with pytest.raises(host.ModuleFailed, match="killed after 1 s"):
        run_in(tmp_path / "image", "wait", timeout="1s")
    assert (
        run_in(tmp_path / "image", "/dev/crashcart/lib/ld-musl-x86_64.so.1", "--list", "/dev/crashcart/bin/wait")[
            "stdout"
        ].count("/dev/crashcart/lib/")
        >= 1
    )


def test_a_nix_closure(tmp_path, run_in):
    """The image takes the list of `nix-store -qR`: each package in a folder of its own, with whole paths between them."""
    store = "/nix/store"
    if os.path.exists(store):
        pytest.fail(f"{store} is there: this test makes and removes it")
    os.makedirs(f"{store}/aaa-loader/lib")
    os.makedirs(f"{store}/bbb-tool/bin")
    try:
        for name in ("ld-linux-x86-64.so.2", "libc.so.6"):
            shutil.copy(os.path.realpath(f"/lib/x86_64-linux-gnu/{name}"), f"{store}/aaa-loader/lib/{name}")
        shutil.copy("/usr/bin/env", f"{store}/bbb-tool/bin/nixenv")
        host.run(
            *("patchelf", "--set-interpreter", f"{store}/aaa-loader/lib/ld-linux-x86-64.so.2"),
            *("--set-rpath", f"{store}/aaa-loader/lib", f"{store}/bbb-tool/bin/nixenv"),
        )
        image = build(tmp_path / "image", paths=[f"{store}/aaa-loader", f"{store}/bbb-tool"])
    finally:
        shutil.rmtree("/nix")
    # The library that was taken for this is of Debian, and names a loader of Debian.
    assert {one["path"] for one in image["problems"]} <= {"nix/store/aaa-loader/lib/libc.so.6"}
    assert "X=1" in run_in(tmp_path / "image", "nixenv", "-i", "X=1")["stdout"]


def test_an_image_that_somebody_else_has_made_is_used_as_it_is(tmp_path, run_in):
    """Oracle's crashcart built such images: ext3, with programs for /dev/crashcart."""
    (tmp_path / "tree/bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", tmp_path / "tree/bin/busybox")
    made = tmp_path / "crashcart.img"
    host.run("mke2fs", "-q", "-t", "ext3", "-d", str(tmp_path / "tree"), str(made), "16M")
    image = build(tmp_path / "image", paths=[str(made)])
    assert (image["format"], list(image["tools"])) == ("ext4", ["busybox"])
    assert (tmp_path / "image").read_bytes() == made.read_bytes()
    assert run_in(tmp_path / "image", "busybox", "echo", "theirs")["stdout"] == "theirs\n"
    (tmp_path / "cut.img").write_bytes(made.read_bytes()[: 8 << 20])
    with pytest.raises(host.ModuleFailed, match="cut.img is damaged: it begins like a file system of 16777216 bytes"):
        build(tmp_path / "other", paths=[str(tmp_path / "cut.img")])
    with pytest.raises(host.ModuleFailed, match="whole file system.*no other source"):
        build(tmp_path / "other", paths=[str(made), "/bin/busybox"])


def test_another_architecture_is_built_and_runs_there(tmp_path, container):
    install_packages("qemu-user-static")
    image = build(tmp_path / "image", packages=["bash", "strace"], arch="arm64", format="squashfs")
    assert (image["arch"], image["problems"]) == ("arm64", [])
    with pytest.raises(host.ModuleFailed, match="the image is for arm64 and this host is amd64"):
        host.ad_hoc("localhost", "crashcart_image", {"src": str(tmp_path / "image"), "name": "built"})
    own = tmp_path / "own"
    digest = build(own, sets=["minimal"])["digest"]
    try:
        chosen = {"src": {"arm64": str(tmp_path / "image"), "amd64": str(own)}, "name": "built"}
        assert host.ad_hoc("localhost", "crashcart_image", chosen)["image"]["digest"] == digest
        assert not host.ad_hoc("localhost", "crashcart_image", chosen)["changed"]
        with pytest.raises(host.ModuleFailed, match="the host is amd64, and src has images for arm64 only"):
            host.ad_hoc("localhost", "crashcart_image", {"src": {"arm64": str(own)}, "name": "built"})
    finally:
        host.call_module("crashcart_image", name="built", state="absent")
    host.run("unsquashfs", "-q", "-n", "-d", str(tmp_path / "tree"), str(tmp_path / "image"))
    mounts = ("-v", f"{tmp_path}/tree:/dev/crashcart:ro", "-v", "/usr/bin/qemu-aarch64-static:/qemu:ro")
    name = container("static", options=("--network", "none", *mounts))
    told = host.docker("exec", name, "/qemu", "/dev/crashcart/bin/bash", "-c", "echo $MACHTYPE")
    assert told.startswith("aarch64-")
    assert "strace -- version" in host.docker("exec", name, "/qemu", "/dev/crashcart/bin/strace", "--version")


def test_another_release(tmp_path, run_in):
    build(tmp_path / "image", packages=["bash"], release="trixie")
    assert run_in(tmp_path / "image", "bash", "-c", "echo $BASH_VERSION")["stdout"] >= "5.2.3"


def test_a_build_says_how_far_it_is(tmp_path):
    command = ["ansible", "localhost", "-m", "crashcart.fleet.crashcart_build"]
    arguments = json.dumps({"dest": str(tmp_path / "image"), "packages": ["busybox-static"], "cache": CACHE})
    plain = host.run(*command, "-a", arguments).stdout
    assert "crashcart_build: packing squashfs" in plain
    assert "unpacking busybox-static" not in plain
    os.unlink(tmp_path / "image")
    assert "unpacking busybox-static" in host.run(*command, "-a", arguments, "-vv").stdout
