# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Users as a container describes them that may be hostile."""

from __future__ import annotations

import contextlib
import os

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import users
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import ContainerError
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.users import User, find_users
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.time_limit import limit


@contextlib.contextmanager
def open_folder(path):
    fd = os.open(str(path), os.O_PATH | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/app:/bin/sh\nnobody:x:65534:65534:::\n"
GROUP = "root:x:0:\nwheel:x:10:root,app\nlog:x:20:apple,app2\nvideo:x:44:app\n"


@pytest.fixture(name="root")
def make_root(tmp_path):
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "passwd").write_text(PASSWD)
    (root / "etc" / "group").write_text(GROUP)
    return root


def find(root, spec):
    with open_folder(root) as fd, limit():
        return users.find_user(spec, fd)


@pytest.mark.parametrize(
    ("spec", "user"),
    [
        ("app", User(1000, 1001, (1001, 10, 44), "/app")),
        ("nobody", User(65534, 65534, (65534,), "/")),
        ("root", User(0, 0, (0, 10), "/root")),
        # A number is as good as the name of its entry, and without one has the group 0.
        ("1000", User(1000, 1001, (1001, 10, 44), "/app")),
        ("0", User(0, 0, (0, 10), "/root")),
        ("4242", User(4242, 0, (0,), "/")),
        # A group that is named is the only one.
        ("1000:7", User(1000, 7, (7,), "/app")),
        ("0:0", User(0, 0, (0,), "/root")),
        ("app:wheel", User(1000, 10, (10,), "/app")),
        ("app:0", User(1000, 0, (0,), "/app")),
        ("4242:video", User(4242, 44, (44,), "/")),
    ],
)
def test_user(root, spec, user):
    assert find(root, spec) == user


@pytest.mark.parametrize("spec", ["", "missing", "APP", "app:", "1000:", ":5", ":", "-1", "a\0", "*", "missing:wheel"])
def test_what_is_no_user(root, spec):
    with pytest.raises(ContainerError, match="no user is called"):
        find(root, spec)


@pytest.mark.parametrize("spec", ["app:missing", "1:-1", "1:2:3", "0:WHEEL", "app:wheel:"])
def test_what_is_no_group(root, spec):
    with pytest.raises(ContainerError, match="no group is called"):
        find(root, spec)


def test_a_number_is_no_name(root):
    (root / "etc" / "passwd").write_text("1000:x:5:6::/five:\n" + PASSWD)
    (root / "etc" / "group").write_text("10:x:5:\n" + GROUP)
    assert find(root, "1000:10") == User(1000, 10, (10,), "/app")


def test_numbers_need_no_files(tmp_path):
    assert find(tmp_path, "5:6") == User(5, 6, (6,))
    assert find(tmp_path, "5") == User(5, 0, (0,))
    with pytest.raises(ContainerError):
        find(tmp_path, "app")


def test_numbers_with_a_group_do_where_the_files_cannot_be_read(root):
    os.mkfifo(replace_passwd(root))
    with open_folder(root) as fd, limit():
        assert find_users("5:6", [fd]) == [User(5, 6, (6,))]
        (refused,) = find_users("5", [fd])
        assert "give numbers as UID:GID" in str(refused)


def test_homes(root, tmp_path):
    with open_folder(root) as fd, open_folder(tmp_path) as other, limit():
        assert users.find_homes([1000, 0, 7, 1000], [fd, fd, fd, other]) == ["/app", "/root", "/", "/"]


@pytest.mark.parametrize(
    ("field", "home"), [("", "/"), ("/a b", "/a b"), ("\0/x", "/"), ("/\udcff", "/\udcff"), ("/é", "/é")]
)
def test_a_home_is_any_text_that_a_variable_can_hold(root, field, home):
    (root / "etc" / "passwd").write_bytes(f"app:x:5:6::{field}:/bin/sh\n".encode("utf-8", "surrogateescape"))
    with open_folder(root) as fd, limit():
        assert find_users("app", [fd])[0].home == users.find_homes([5], [fd])[0] == home


def replace_passwd(root):
    (root / "etc" / "passwd").unlink()
    return str(root / "etc" / "passwd")


def test_a_pipe_in_place_of_the_file_does_not_block(root):
    os.mkfifo(replace_passwd(root))
    with pytest.raises(ContainerError):
        find(root, "app")


def test_a_pipe_with_a_writer_is_not_read_either(root):
    path = replace_passwd(root)
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR)
    try:
        os.write(fd, PASSWD.encode())
        with pytest.raises(ContainerError):
            find(root, "app")
    finally:
        os.close(fd)


def test_a_folder_in_place_of_the_file(root):
    os.mkdir(replace_passwd(root))
    with pytest.raises(ContainerError):
        find(root, "app")


@pytest.mark.parametrize("up", ["", "../../../../../../../../../.."])
def test_a_link_out_of_the_root_leads_nowhere(root, tmp_path, up):
    outside = tmp_path / "outside"
    outside.write_text("spy:x:7:7:::\n")
    os.symlink(up + str(outside), replace_passwd(root))
    assert os.path.exists(str(root / "etc" / "passwd"))  # by the host's eyes
    with pytest.raises(ContainerError):
        find(root, "spy")


def test_a_link_is_followed_as_the_container_would(root):
    (root / "usr").mkdir()
    os.rename(str(root / "etc" / "passwd"), str(root / "usr" / "passwd"))
    (root / "etc" / "passwd").symlink_to("/usr/passwd")
    assert find(root, "app").uid == 1000
    os.rename(str(root / "etc"), str(root / "real"))
    (root / "etc").symlink_to("../../real")  # the root's parent is the root
    assert find(root, "app").uid == 1000


def test_the_kernels_own_links_are_not_followed(root):
    os.symlink("/proc/self/root/etc/passwd", replace_passwd(root))
    with pytest.raises(ContainerError):
        find(root, "daemon")


def test_root_is_root_where_no_file_says_so(root):
    os.unlink(str(root / "etc" / "passwd"))
    with open_folder(root) as fd:
        assert find_users("root", [fd, fd]) == [User(0, 0, (0,))] * 2
        assert isinstance(find_users("daemon", [fd])[0], ContainerError)


def test_a_link_to_itself(root):
    os.symlink("passwd", replace_passwd(root))
    with pytest.raises(ContainerError):
        find(root, "app")


def test_of_a_huge_file_only_the_beginning_is_read(root):
    path = str(root / "etc" / "passwd")
    with open(path, "a", encoding="ascii") as file:
        file.truncate(1 << 36)  # sparse: to read it all would take minutes and all memory
    assert find(root, "app").uid == 1000
    with open(path, "w", encoding="ascii") as file:
        file.write("#" * (2 << 20) + "\nlate:x:5:5:::\n")
    with pytest.raises(ContainerError):
        find(root, "late")


@pytest.mark.parametrize(
    "line",
    [
        b"app",
        b"app:",
        b"app:x:1000",
        b"app:x::1000:::",
        b"app:x:-1:0:::",
        b"app:x:0x0:0:::",
        b"app:x: 0:0:::",
        b"app\0:x:1:1",
        b"\xff\xfe",
    ],
)
def test_a_damaged_line_is_passed_over(root, line):
    (root / "etc" / "passwd").write_bytes(line + b"\n")
    with pytest.raises(ContainerError):
        find(root, "app")
    (root / "etc" / "passwd").write_bytes(line + b"\n" + PASSWD.encode())
    assert find(root, "app").uid == 1000


def test_the_first_line_of_a_name_counts(root):
    (root / "etc" / "passwd").write_text("app:x:5:6:::\n" + PASSWD)
    assert find(root, "app").uid == 5


def test_damaged_groups_are_passed_over(root):
    (root / "etc" / "group").write_bytes(b"\xff\nx:x:abc:app\nshort:x:9\nlong:x:9:app:more\ngood:x:3:app\n")
    assert find(root, "app").groups == (1001, 3)
    (root / "etc" / "group").unlink()
    assert find(root, "app").groups == (1001,)


# 4294967295 is -1 to setresuid(2), which then changes nothing: the command would stay root.
BAD_NUMBERS = [
    "4294967295",
    "4294967296",
    "\u00b2",
    "\u0663",
    "-1",
    "",
    "9" * 5000,  # int() takes no more than 4300 digits
]


@pytest.mark.parametrize("number", BAD_NUMBERS)
@pytest.mark.parametrize("fields", ["app:x:{}:5", "app:x:5:{}"])
def test_a_number_that_is_no_user_is_refused(root, number, fields):
    (root / "etc" / "passwd").write_text(fields.format(number) + ":::\n", encoding="utf-8")
    with pytest.raises(ContainerError):
        find(root, "app")


@pytest.mark.parametrize("number", BAD_NUMBERS)
@pytest.mark.parametrize("spec", ["{}", "{}:5", "5:{}"])
def test_a_number_that_is_no_user_is_refused_as_an_option(root, number, spec):
    with pytest.raises(ContainerError):
        find(root, spec.format(number))


def test_the_highest_number_of_a_user(root):
    assert find(root, "4294967294:4294967294") == User(4294967294, 4294967294, (4294967294,))


def test_a_number_that_is_no_group_is_passed_over(root):
    (root / "etc" / "group").write_text("odd:x:\u00b2:app\nbad:x:4294967295:app\ngood:x:3:app\n", encoding="utf-8")
    assert find(root, "app").groups == (1001, 3)
