# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder to mount on: found, made, removed; in a plain folder, with the rights of whoever runs the tests, in a child as always."""

from __future__ import annotations

import errno
import os
import pickle
import stat
import subprocess

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach import mounting
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container, ContainerGoneError
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import Target
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import mounts
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import Process

NAME = "crashcart"
OUR_MODE = 0o111


@pytest.fixture
def parent(tmp_path):
    folder = tmp_path / "dev"
    folder.mkdir()
    return folder


def run(parent, function, *arguments, **options):
    """FUNCTION with a descriptor of PARENT, in a child: it changes its umask, its folder and whom files are made by."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.umask(0o077)
            fd = os.open(str(parent), os.O_RDONLY | os.O_DIRECTORY)
            try:
                outcome = function(*arguments, parent_fd=fd, name=NAME, **options)
            except OSError as error:
                outcome = error
            with os.fdopen(writer, "wb") as file:
                pickle.dump(outcome, file)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        outcome = pickle.load(file)
    os.waitpid(child, 0)
    if isinstance(outcome, OSError):
        raise outcome
    return outcome


def attach(parent, mount_on, devices=frozenset()):
    return run(
        parent,
        lambda parent_fd, name: mounting.attach(mount_on, parent_fd, name, devices),
    )


def refuse(_fd):
    raise OSError(errno.EPERM, "no mount here")


def put(place):
    """Return a function that plays a mount: it makes a file in the folder of a descriptor, and adds the descriptor to PLACE."""

    def mount_on(fd):
        os.chmod(f"/proc/self/fd/{fd}", 0o700)
        os.close(os.open("mounted", os.O_CREAT | os.O_WRONLY, dir_fd=os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)))
        place.append(fd)

    return mount_on


def test_a_folder_to_mount_on_is_made_with_a_mode_that_tells_whose_it_is(parent):
    modes = []

    def look(fd):
        modes.append(stat.S_IMODE(os.fstat(fd).st_mode))
        assert modes == [OUR_MODE]

    attach(parent, look)
    assert stat.S_IMODE(os.stat(parent / NAME).st_mode) == OUR_MODE
    assert os.stat(parent / NAME).st_uid == os.stat(parent).st_uid


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes folders for others")
def test_a_folder_belongs_to_whom_the_one_above_it_does(parent):
    os.chown(parent, 12345, 54321)
    attach(parent, lambda _fd: None)
    found = os.stat(parent / NAME)
    assert (found.st_uid, found.st_gid) == (12345, 54321)
    assert run(parent, mounting.is_our_folder)
    os.chown(parent / NAME, 0, 0)
    assert not run(parent, mounting.is_our_folder)


def test_what_is_mounted_is_mounted_on_that_very_folder(parent):
    (parent / NAME).mkdir(0o755)
    attach(parent, put([]))
    assert [path.name for path in (parent / NAME).iterdir()] == ["mounted"]


@pytest.mark.parametrize("is_there", [False, True])
def test_where_nothing_can_be_mounted_only_what_was_made_goes_again(parent, is_there):
    if is_there:
        (parent / NAME).mkdir(0o755)
    with pytest.raises(OSError, match="no mount here"):
        attach(parent, refuse)
    assert (parent / NAME).exists() is is_there


def make_full(place):
    place.mkdir()
    (place / "file").write_text("x")


def describe(place):
    """All that there is to say of PLACE, but for who has looked at it last."""
    found = os.lstat(place)
    return found.st_mode, found.st_ino, found.st_mtime_ns, found.st_ctime_ns


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_full, "the directory there is not empty"),
        (lambda place: place.write_text("x"), "what stands there is not a directory"),
        (lambda place: place.symlink_to("/tmp"), "what stands there is not a directory"),
        (lambda place: place.symlink_to("nonesuch"), "what stands there is not a directory"),
    ],
)
def test_what_is_no_empty_folder_is_left_alone(parent, make, reason):
    make(parent / NAME)
    before = describe(parent / NAME)
    for call in (
        lambda: run(parent, mounting.find_folder),
        lambda: run(parent, mounting.foresee, host_devices=frozenset()),
        lambda: attach(parent, refuse),
    ):
        with pytest.raises(OSError, match=reason) as raised:
            call()
        assert raised.value.errno == errno.EEXIST
    run(parent, mounting.remove_our_folder)
    assert describe(parent / NAME) == before


def test_a_look_ahead_makes_nothing(parent):
    run(parent, mounting.foresee, host_devices=frozenset())
    assert list(parent.iterdir()) == []
    assert run(parent, mounting.find_folder) is False
    (parent / NAME).mkdir()
    run(parent, mounting.foresee, host_devices=frozenset())
    assert run(parent, mounting.find_folder) is True


def test_only_a_folder_of_our_mode_is_ours(parent):
    assert not run(parent, mounting.is_our_folder)
    place = parent / NAME
    place.mkdir()
    for mode in (0o110, 0o755, 0o1111, OUR_MODE):
        place.chmod(mode)
        run(parent, mounting.remove_our_folder)
        assert place.exists() is (mode != OUR_MODE)
    place.write_text("x")
    place.chmod(OUR_MODE)
    assert not run(parent, mounting.is_our_folder)
    place.unlink()
    (parent / "other").mkdir()
    (parent / "other").chmod(OUR_MODE)
    place.symlink_to("other")
    assert not run(parent, mounting.is_our_folder)


def test_of_our_folders_one_that_is_in_use_stays(parent):
    make_full(parent / NAME)
    (parent / NAME).chmod(OUR_MODE)
    run(parent, mounting.remove_our_folder)
    assert (parent / NAME / "file").exists()


def test_what_is_not_there_need_not_be_removed(parent):
    run(parent, mounting.remove_folder)
    (parent / NAME).write_text("x")
    run(parent, mounting.remove_folder)
    assert (parent / NAME).exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="nobody keeps root from it")
def test_a_folder_that_cannot_be_removed_is_an_error(parent):
    (parent / NAME).mkdir(OUR_MODE)
    parent.chmod(0o500)
    with pytest.raises(PermissionError):
        run(parent, mounting.remove_folder)
    parent.chmod(0o700)


def test_nothing_is_unmounted_that_is_not_ours(parent):
    (parent / NAME).mkdir()
    device = os.stat(parent).st_dev
    run(parent, mounting.detach, 0, {device}, lazy=False)
    with pytest.raises(OSError, match="something that is not ours is mounted over the tools") as raised:
        run(parent, mounting.detach, 1, {device + 1}, lazy=False)
    assert raised.value.errno == errno.EPERM
    (parent / "other").mkdir()
    (parent / NAME).rmdir()
    (parent / NAME).symlink_to("other")
    with pytest.raises(OSError):  # what no mount is on; a link is not followed to one
        run(parent, mounting.detach, 1, {device}, lazy=True)


TABLE = """\
1 0 0:30 / / rw - overlay overlay rw
2 1 0:31 / /dev rw - tmpfs tmpfs rw
3 1 8:1 /srv/data /data rw - ext4 /dev/sda1 rw
4 3 8:1 /srv/data/deep /data/a rw - ext4 /dev/sda1 rw
"""


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/dev/crashcart", ("0:31", "/crashcart")),
        ("/devices", ("0:30", "/devices")),
        ("/opt/x/y", ("0:30", "/opt/x/y")),
        ("/data/tools", ("8:1", "/srv/data/tools")),
        ("/data/a/tools", ("8:1", "/srv/data/deep/tools")),
        ("/data/ab", ("8:1", "/srv/data/ab")),
    ],
)
def test_the_place_of_a_folder_is_that_of_the_innermost_mount(path, place):
    assert mounting._find_place(list(mounts.parse_mountinfo(TABLE.splitlines())), path) == place


def hold(*pids):
    """Targets of processes PIDS."""
    return [Target(Container(str(pid) * 8, f"c{pid}", "running", pid, "", {}), Process(pid)) for pid in pids]


@pytest.fixture
def child():
    """A process that sleeps."""
    with subprocess.Popen(["sleep", "600"]) as started:
        yield started
        started.kill()


def test_of_containers_that_share_a_folder_the_last_one_removes_it(tmp_path, child):
    assert mounting.find_removable([], "/dev/crashcart") == []
    path = str(tmp_path / NAME)
    targets = hold(os.getpid(), child.pid)
    assert mounting.find_removable(targets, path) == [False, True]
    assert mounting.find_removable(targets[:1], path) == [True]
    child.kill()
    child.wait()
    # Of one that has ended nobody knows; the other one is the last then.
    assert mounting.find_removable(targets, path) == [True, False]
    for target in targets:
        target.process.close()


def test_a_container_that_has_ended_is_told_by_its_name(child):
    (target,) = hold(child.pid)
    child.kill()
    child.wait()
    with pytest.raises(ContainerGoneError, match=f"container c{child.pid} has just ended"):
        mounting.run_in_target(target, "/dev/crashcart", lambda *_arguments: None, "attach to")
    assert mounting.find_folders([target], "/dev/crashcart") == []
    target.process.close()


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.EROFS, "start it with a tmpfs or an empty directory there, or use crashcart_exec"),
        (errno.ELOOP, "a symbolic link stands in the way, and none is followed"),
        (errno.ENOENT, "there is no folder to mount in"),
        (errno.EBUSY, r"the tools are in use by no process that can be seen \(a mount inside it\?\); end them"),
        (errno.EACCES, "Permission denied$"),
    ],
)
def test_what_cannot_be_done_is_told_with_the_next_step(number, text):
    (target,) = hold(os.getpid())
    error = OSError(number, os.strerror(number))
    with target.process, pytest.raises(Exception, match=f"cannot attach to container c{os.getpid()} at /x/y: .*{text}"):
        raise mounting._judge(error, target, "/x/y", "attach to")
