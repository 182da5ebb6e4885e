# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks between real processes."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import threading
import time

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.linux.locks import (
    LockTimeout,
    find_holder,
    lock,
    tell_holder,
)


class Holder:
    """A child process that holds the lock of PATH until it is told to let go, or killed."""

    def __init__(self, path):
        held, self._say_held = os.pipe()
        self._wait_release, self._release = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._release)
                with lock(path, 5.0):
                    os.write(self._say_held, b"h")
                    os.read(self._wait_release, 1)
            finally:
                os._exit(0)
        os.close(self._say_held)
        os.close(self._wait_release)
        assert os.read(held, 1) == b"h"
        os.close(held)

    def release(self):
        os.close(self._release)
        os.waitpid(self.pid, 0)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._release)


def is_locked(path):
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@pytest.fixture(name="path")
def make_path(tmp_path):
    return str(tmp_path / "locks" / "container-0123456789ab")


def test_file_and_folder_are_for_their_owner_only(path):
    with lock(path, 1.0):
        assert is_locked(path)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
    assert not is_locked(path)


def test_another_process_keeps_us_out_until_the_time_is_over(path):
    holder = Holder(path)
    try:
        start = time.monotonic()
        with pytest.raises(LockTimeout, match="lslocks") as caught, lock(path, 0.1):
            pytest.fail("two hold the same lock")
        assert 0.1 <= time.monotonic() - start < 5
        assert path in str(caught.value)
    finally:
        holder.release()
    with lock(path, 1.0):
        assert is_locked(path)


def test_locks_of_different_names_do_not_meet(path):
    holder = Holder(path)
    try:
        with lock(path + "-other", 0.1):
            assert is_locked(path)
    finally:
        holder.release()


def test_the_kernel_drops_the_lock_of_a_killed_process(path):
    Holder(path).kill()
    with lock(path, 0.5):
        assert is_locked(path)


def test_an_error_inside_drops_the_lock_and_passes_through(path):
    with pytest.raises(KeyError), lock(path, 1.0):
        raise KeyError("x")
    assert not is_locked(path)


def test_a_lock_whose_file_was_cleaned_away_is_taken_again(path):
    # Whoever waits for the lock of a file that a cleanup removes must not end up with the lock of the removed
    # file: the next process would make the file anew and hold that one.
    holder = Holder(path)
    outcome = []

    def take():
        with lock(path, 5.0):
            outcome.append(os.path.exists(path) and is_locked(path))

    waiter = threading.Thread(target=take)
    waiter.start()
    time.sleep(0.05)
    os.unlink(path)
    os.rmdir(os.path.dirname(path))
    holder.release()
    waiter.join(10)
    assert outcome == [True]


def test_a_symlink_in_place_of_the_file_is_refused(path, tmp_path):
    os.mkdir(os.path.dirname(path))
    os.symlink(str(tmp_path / "victim"), path)
    with pytest.raises(OSError) as caught, lock(path, 0.1):
        pytest.fail("a symlink was followed")
    assert caught.value.errno == errno.ELOOP
    assert not os.path.lexists(str(tmp_path / "victim"))


@pytest.mark.sweep
def test_many_processes_one_at_a_time(path, tmp_path):
    counter = tmp_path / "counter"
    counter.write_text("0")
    pids = []
    for _child in range(4):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for _round in range(25):
                    with lock(path, 30.0):
                        value = int(counter.read_text())
                        time.sleep(0.0002)
                        counter.write_text(str(value + 1))
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0, 0]
    assert counter.read_text() == "100"


def test_the_holder_is_told_for_as_long_as_it_holds(tmp_path):
    path = str(tmp_path / "lock")
    assert find_holder(path) is None
    with lock(path, 1) as fd:
        assert find_holder(path) == 0
        tell_holder(fd)
        assert find_holder(path) == os.getpid()
    assert find_holder(path) is None
    # Whoever looks keeps nobody from taking it.
    with lock(path, 0.1):
        assert find_holder(path) == os.getpid()


def test_a_folder_that_a_cleanup_has_taken_is_not_made_again(tmp_path):
    path = tmp_path / "locks" / "one"
    with pytest.raises(FileNotFoundError), lock(str(path), 0.0, may_make_folder=False):
        pass
    assert list(tmp_path.iterdir()) == []
    for _round in range(2):
        with lock(str(path), 0.0):
            pass
        with lock(str(path), 0.0, may_make_folder=False):
            pass
