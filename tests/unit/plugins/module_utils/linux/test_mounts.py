# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mount tables as text, the real one of this process, and paths that must not lead out of a folder."""

from __future__ import annotations

import errno
import fcntl
import os

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import mounts

# The example of proc(5), and lines as kernels write them for containers.
EXAMPLE = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue"
OVERLAY = (
    "612 541 0:52 / / rw,relatime shared:301 master:7 - overlay overlay"
    " rw,lowerdir=/var/lib/docker/overlay2/l/A:/var/lib/docker/overlay2/l/B,workdir=/work"
)
LOOP = "700 612 7:3 / /dev/crashcart ro,nosuid,nodev - squashfs /dev/loop3 ro,errors=continue"


def parse_one(line):
    (mount,) = mounts.parse_mountinfo([line])
    return mount


def test_all_fields_of_a_line():
    assert parse_one(EXAMPLE) == mounts.Mount(
        mount_id=36,
        parent_id=35,
        device="98:0",
        root="/mnt1",
        mount_point="/mnt2",
        options="rw,noatime",
        peer_group=0,
        master=1,
        filesystem="ext3",
        source="/dev/root",
    )


def test_lines_stay_in_order_and_may_end_with_a_newline():
    points = [mount.mount_point for mount in mounts.parse_mountinfo([OVERLAY + "\n", LOOP + "\n", EXAMPLE + "\n"])]
    assert points == ["/", "/dev/crashcart", "/mnt2"]


@pytest.mark.parametrize(
    ("optional", "groups"),
    [
        ("", (0, 0)),
        ("shared:1 ", (1, 0)),
        ("shared:1 master:2 ", (1, 2)),
        ("master:2 propagate_from:3 ", (0, 2)),
        ("master:2 shared:9 ", (9, 2)),
        ("unbindable ", (0, 0)),
        ("some_future:tag another ", (0, 0)),
    ],
)
def test_any_number_of_optional_fields(optional, groups):
    mount = parse_one(f"700 612 7:3 / /dev/crashcart ro {optional}- squashfs /dev/loop3 ro")
    assert ((mount.peer_group, mount.master), mount.filesystem, mount.source) == (groups, "squashfs", "/dev/loop3")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"/mnt/a\040b", "/mnt/a b"),
        (r"/mnt/a\011b\012c", "/mnt/a\tb\nc"),
        (r"/mnt/a\134b", "/mnt/a\\b"),
        # What follows an escaped backslash is no escape itself.
        (r"/mnt/\134040", "/mnt/\\040"),
        (r"/mnt/a\043b", "/mnt/a#b"),
        (r"/mnt/\04", r"/mnt/\04"),
        (r"/mnt/\089", r"/mnt/\089"),
        (r"/mnt/x\040-\040squashfs", "/mnt/x - squashfs"),
    ],
)
def test_octal_escapes(written, meant):
    line = f"700 612 7:3 {written} {written} ro shared:1 - squashfs {written} ro"
    mount = parse_one(line)
    assert (mount.root, mount.mount_point, mount.source) == (meant, meant, meant)
    assert mount.filesystem == "squashfs"


def test_a_source_that_is_a_dash_is_no_separator():
    mount = parse_one("40 35 0:30 / /mnt rw - tmpfs - rw")
    assert (mount.filesystem, mount.source) == ("tmpfs", "-")


def test_options_that_are_a_dash_are_no_separator():
    mount = parse_one("40 35 0:30 / - - - tmpfs none rw")
    assert (mount.mount_point, mount.options, mount.filesystem) == ("-", "-", "tmpfs")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "\n",
        " ",
        "-",
        "- - - - - - -",
        "36 35 98:0 / /mnt rw",
        "36 35 98:0 / /mnt rw shared:1",
        "36 35 98:0 / /m rw - ext3",
    ],
)
def test_a_damaged_line_is_passed_over_and_the_next_is_read(line):
    found = list(mounts.parse_mountinfo([line, EXAMPLE]))
    assert [mount.mount_id for mount in found] == [36]


def test_a_line_cut_short_anywhere_gives_the_mount_or_nothing():
    needed = OVERLAY.index(" - overlay o") + len(" - overlay o")
    for length in range(len(OVERLAY)):
        found = list(mounts.parse_mountinfo([OVERLAY[:length]]))
        assert [mount.mount_point for mount in found] == (["/"] if length >= needed - 1 else [])


@pytest.mark.parametrize("line", ["x" + EXAMPLE, EXAMPLE.replace("35", "")])
def test_a_line_with_a_damaged_number_is_passed_over(line):
    assert [mount.mount_id for mount in mounts.parse_mountinfo([line, OVERLAY])] == [612]


def test_the_real_table_of_this_process():
    found = mounts.read_mounts()
    with open("/proc/self/mountinfo", "rb") as file:
        assert len(found) == len(file.read().splitlines())
    assert len({mount.mount_id for mount in found}) == len(found)
    assert "/" in {mount.mount_point for mount in found}
    assert {mount.filesystem for mount in found if mount.mount_point == "/proc"} >= {"proc"}
    assert mounts.read_mounts(os.getpid()) == found


def test_the_table_of_a_process_that_has_ended():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(OSError):
        mounts.read_mounts(pid)


def test_names_of_a_loop_device():
    device = mounts.LoopDevice(12, "7:12", "/var/lib/crashcart/images/default/x.squashfs (deleted)")
    assert (device.device, device.path) == ("7:12", "/dev/loop12")


@pytest.fixture(name="root")
def make_root(tmp_path):
    (tmp_path / "outside").write_text("secret")
    root = tmp_path / "root"
    (root / "dir" / "sub").mkdir(parents=True)
    (root / "file").write_text("top")
    (root / "dir" / "file").write_text("inside")
    (root / "link").symlink_to("file")
    (root / "dirlink").symlink_to("dir")
    (root / "out").symlink_to("../outside")
    (root / "absolute").symlink_to(str(tmp_path / "outside"))
    fd = os.open(str(root), os.O_PATH | os.O_DIRECTORY)
    try:
        os.close(mounts.open_beneath(fd, "", os.O_RDONLY))
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.ENOSYS, errno.EPERM):
            pytest.skip("this kernel or its sandbox has no openat2")
        raise
    yield fd
    os.close(fd)


def read_beneath(root, path):
    fd = mounts.open_beneath(root, path, os.O_RDONLY)
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("file", b"top"),
        ("/file", b"top"),
        ("dir/file", b"inside"),
        ("/dir/file", b"inside"),
        ("//dir//file", b"inside"),
        ("dir/../file", b"top"),
    ],
)
def test_paths_beneath_are_opened(root, path, content):
    assert read_beneath(root, path) == content


@pytest.mark.parametrize("path", ["", "/", ".", "//"])
def test_the_root_itself(root, path):
    fd = mounts.open_beneath(root, path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert sorted(os.listdir(fd)) == ["absolute", "dir", "dirlink", "file", "link", "out"]
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("link", errno.ELOOP),
        ("dirlink/file", errno.ELOOP),
        ("out", errno.ELOOP),
        ("absolute", errno.ELOOP),
        ("dir/../out", errno.ELOOP),
        ("..", errno.EXDEV),
        ("../outside", errno.EXDEV),
        ("dir/../../outside", errno.EXDEV),
        ("dir/sub/../../../root/file", errno.EXDEV),
        ("missing", errno.ENOENT),
        ("file/x", errno.ENOTDIR),
    ],
)
def test_no_link_and_no_dots_lead_out(root, path, number):
    with pytest.raises(OSError) as caught:
        read_beneath(root, path)
    assert caught.value.errno == number


def test_the_kernels_own_links_are_not_followed(root):
    fd = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError) as caught:
            read_beneath(fd, f"fd/{root}/file")
    finally:
        os.close(fd)
    assert caught.value.errno == errno.ELOOP


def test_a_descriptor_is_not_inherited_by_programs(root):
    fd = mounts.open_beneath(root, "file", os.O_RDONLY)
    try:
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    finally:
        os.close(fd)


@pytest.fixture
def old_kernel(monkeypatch):
    """A kernel without openat2."""

    def refuse(*_arguments):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(mounts.syscalls, "openat2", refuse)


@pytest.mark.parametrize("is_old", [False, True])
def test_open_beneath_follows_nothing(tmp_path, request, is_old):
    if is_old:
        request.getfixturevalue("old_kernel")
    (tmp_path / "folder/below").mkdir(parents=True)
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "folder/up").symlink_to("/")
    root_fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    try:
        for path, same in (("folder/below", "folder/below"), ("/folder/", "folder"), ("/", ".")):
            fd = mounts.open_beneath(root_fd, path, os.O_RDONLY | os.O_DIRECTORY)
            assert os.fstat(fd).st_ino == os.stat(tmp_path / same).st_ino
            os.close(fd)
        for path, wanted in (
            ("link/below", {errno.ELOOP}),
            ("folder/up/etc", {errno.ELOOP}),
            ("link", {errno.ELOOP, errno.ENOTDIR}),
            ("folder/../..", {errno.EXDEV}),
            ("nonesuch/x", {errno.ENOENT}),
        ):
            with pytest.raises(OSError) as failure:
                mounts.open_beneath(root_fd, path, os.O_RDONLY | os.O_DIRECTORY)
            assert failure.value.errno in wanted, path
    finally:
        os.close(root_fd)
