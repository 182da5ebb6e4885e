# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""crashcart_build: sources of all kinds, formats, architectures, and what goes wrong."""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time

import pytest
from support import host, images
from support.images import build

IMAGES = "crashcart-test"
TOOLS = os.path.join(os.path.dirname(__file__), "..", "..", "..", "..", "tools")
CACHE = os.path.expanduser("~/.cache/crashcart")


def install(*packages):
    subprocess.run([os.path.join(TOOLS, "install_packages.sh"), *packages], check=True)


@pytest.fixture
def run_in(container):
    """run_in(IMAGE FILE, *ARGV, …): what a command of that image gives in a container that has nothing else."""

    def run(path, *argv, kind="static", **options):
        host.ad_hoc("localhost", "crashcart_image", {"src": str(path), "name": "built"})
        name = container(kind)
        return host.call_module("crashcart_exec", containers=[name], argv=list(argv), image="built", **options)[
            "results"
        ][0]

    yield run
    host.wait_until(lambda: not host.list_loop_devices())
    host.call_module("crashcart_image", name="built", state="absent")


@pytest.mark.parametrize("kind", ["squashfs", "erofs", "ext4"])
def test_formats_are_reproducible_and_work(tmp_path, run_in, container, kind):
    install("erofs-utils")
    digests = set()
    # Python's compiled library is a part of it; once is enough.
    packages = ["bash", "file", *(["python3-minimal"] if kind == "squashfs" else [])]
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
        time.sleep(1.1)  # times of files would differ
    assert len(digests) == 1
    assert image["format"] == kind
    result = run_in(tmp_path / "a" / "image", "bash", "-c", "file /dev/crashcart/bin/bash")
    assert "ELF 64-bit" in result["stdout"]
    name = container("busybox")
    host.call_module("crashcart_attach", containers=[name], image="built")
    assert f" - {kind} " in next(
        line for line in host.read_container_mounts(name).splitlines() if " /dev/crashcart " in line
    )
    assert host.docker("exec", name, "/dev/crashcart/bin/bash", "-c", "echo $BASH_VERSION").startswith("5.")
    host.call_module("crashcart_attach", containers=[name], state="detached")


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


def test_local_packages_folders_archives_and_programs(tmp_path, run_in):
    install("libarchive-tools", "rpm")
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
    assert image["arch"] == host.call_module("crashcart_info")["host"]["arch"]
    with pytest.raises(host.ModuleFailed, match="has no image 'nonesuch'"):
        build(tmp_path / "other", docker_image="nonesuch")


def test_the_files_of_a_container_become_a_tool_image(tmp_path, run_in, container):
    name = container("busybox", "/bin/sh", "-c", "echo mine >/etc/mine; exec /bin/sleep 1000")
    host.wait_until(lambda: host.docker("diff", name))
    build(tmp_path / "image", docker_container=name)
    assert run_in(tmp_path / "image", "busybox", "cat", "/dev/crashcart/etc/mine")["stdout"] == "mine\n"
    with pytest.raises(host.ModuleFailed, match="has no container 'nonesuch'"):
        build(tmp_path / "other", docker_container="nonesuch")


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
    """As `nix-store -qR` would list it: each package in a folder of its own, with whole paths between them."""
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
    """As Oracle's crashcart built them: ext3, with programs for /dev/crashcart."""
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
    install("qemu-user-static")
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


def test_another_prefix(tmp_path):
    packages = ["busybox-static", "bash"]
    build(tmp_path / "image", packages=packages, prefix="/opt/crashcart-tools", format="squashfs")
    with pytest.raises(host.ModuleFailed, match="prefix '/dev/tools' does not do"):
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
        time.sleep(1.1)
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
        process.communicate(timeout=60)
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
        host.parse_result(*process.communicate(timeout=120))
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
    install("libarchive-tools")
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(host.ModuleFailed, match=f"{tmp_path}/x (is no folder|cannot be|is a damaged rpm)"):
        build(tmp_path / "image", paths=[str(tmp_path / "x")])
    assert os.listdir(tmp_path) == ["x"]


def test_a_build_says_how_far_it_is(tmp_path):
    command = ["ansible", "localhost", "-m", "crashcart.fleet.crashcart_build"]
    arguments = json.dumps({"dest": str(tmp_path / "image"), "packages": ["busybox-static"], "cache": CACHE})
    plain = host.run(*command, "-a", arguments).stdout
    assert "crashcart_build: packing squashfs" in plain
    assert "unpacking busybox-static" not in plain
    os.unlink(tmp_path / "image")
    assert "unpacking busybox-static" in host.run(*command, "-a", arguments, "-vv").stdout
