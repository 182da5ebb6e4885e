# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands in containers, seen from the module: one supervisor each, side by side, and the pipes to them."""

from __future__ import annotations

import gc
import json
import os
import selectors
import signal
import socket
import time
from typing import Any, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import supervisor
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.jobs import Job, Result
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import TIMEOUT_S
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import ProcessGone

MAX_OUTPUT_BYTES = 4 << 20
_MAX_RUNNING = 32
_LAST_READS = 32  # of 64 KiB: more than a pipe holds, so an end that somebody keeps writing to is left all the same


def run_jobs(jobs: Sequence[Job]) -> list[Result]:
    """Run JOBS side by side (at most 32 at a time); their results in the same order."""
    gc.collect()
    gc.freeze()  # less memory to copy for the forks
    waiting = list(jobs)
    sessions: list[_Session] = []
    running = 0
    with selectors.DefaultSelector() as selector:
        try:
            while waiting or running:
                while waiting and running < _MAX_RUNNING:
                    sessions.append(_Session(waiting.pop(0), selector))
                    running += 1
                # Before the wait: a session that could not even start has nothing to wait for.
                for session in sessions:
                    running -= session.check()
                if running:
                    for key, _events in selector.select(_find_pause(sessions)):
                        key.data(key.fileobj)
        finally:
            for session in sessions:
                session.end()
    return [session.result for session in sessions]


def _find_pause(sessions: Sequence[_Session]) -> float | None:
    deadlines = [session.deadline for session in sessions if session.deadline is not None and not session.is_done]
    return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None


def _fork_into(pid_namespace_fd: int) -> int:
    """Fork a child that stands in another pid namespace; the caller stays in its own."""
    own_fd = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(pid_namespace_fd, syscalls.CLONE_NEWPID)
        pid = -1
        try:
            pid = os.fork()
        finally:
            if pid != 0:  # the child cannot go back, and need not
                syscalls.setns(own_fd, syscalls.CLONE_NEWPID)
        return pid
    finally:
        os.close(own_fd)


class _Session:
    """One command on its way: its supervisor, and the pipes to it."""

    def __init__(self, job: Job, selector: selectors.BaseSelector) -> None:
        self.job = job
        container = job.target.container
        self.result = Result(container.name, container.id, start=time.time())
        self.is_done = False
        self._selector = selector
        self._status = b""
        self._stdin = memoryview(job.command.stdin or b"")
        self._is_ending = False
        self._is_counted = False
        # The setup has a limit of its own: a container may serve its /dev from a process that hangs.
        self.deadline: float | None = time.monotonic() + TIMEOUT_S
        self._is_ready = False
        self._open_fds: set[int] = set()
        self._stdin_writer = self._pid = 0
        try:
            self._start()
        except (OSError, ProcessGone) as error:
            # One container that is just ending must not take the commands of the others with it.
            self._finish(f"cannot enter the container, it may have just ended: {error}")

    def _start(self) -> None:
        pid_namespace_fd = self.job.target.process.open("ns/pid")
        stdin_reader, self._stdin_writer = os.pipe2(os.O_CLOEXEC)
        self._stdout, stdout_writer = os.pipe2(os.O_CLOEXEC)
        self._stderr, stderr_writer = os.pipe2(os.O_CLOEXEC)
        self._channel, far_channel = socket.socketpair()
        self._pid = _fork_into(pid_namespace_fd)
        if self._pid == 0:
            supervisor.supervise(self.job, (stdin_reader, stdout_writer, stderr_writer), far_channel.fileno())
        far_channel.close()
        for fd in (pid_namespace_fd, stdin_reader, stdout_writer, stderr_writer):
            os.close(fd)
        self._open_fds = {self._stdout, self._stderr}
        for fd in self._open_fds:
            os.set_blocking(fd, False)
            self._selector.register(fd, selectors.EVENT_READ, self._read_output)
        self._selector.register(self._channel, selectors.EVENT_READ, self._read_status)
        if self._stdin:
            os.set_blocking(self._stdin_writer, False)
            self._selector.register(self._stdin_writer, selectors.EVENT_WRITE, self._write_stdin)
        else:
            self._close_stdin()

    def _write_stdin(self, _fd: Any) -> None:
        try:
            self._stdin = self._stdin[os.write(self._stdin_writer, self._stdin) :]
        except BrokenPipeError:
            self._stdin = self._stdin[len(self._stdin) :]
        if not self._stdin:
            self._selector.unregister(self._stdin_writer)
            self._close_stdin()

    def _close_stdin(self) -> None:
        if self._stdin_writer > 0:
            os.close(self._stdin_writer)
            self._stdin_writer = 0

    def _read_output(self, fd: Any) -> bool:
        """Take what FD has; whether there may be more."""
        try:
            part = os.read(fd, 65536)
        except BlockingIOError:
            return False
        if not part:
            self._selector.unregister(fd)
            self._open_fds.remove(fd)
            os.close(fd)
            return False
        name = "stdout" if fd == self._stdout else "stderr"
        have = getattr(self.result, name)
        if len(have) + len(part) > MAX_OUTPUT_BYTES:
            setattr(self.result, name + "_truncated", True)
        setattr(self.result, name, have + part[: max(0, MAX_OUTPUT_BYTES - len(have))])
        return True

    def _read_status(self, _channel: Any) -> None:
        part = self._channel.recv(65536)
        *lines, self._status = (self._status + part).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "ready" in message:
                self._is_ready = True
                timeout_s = self.job.command.timeout_s
                if not self._is_ending:
                    self.deadline = None if timeout_s is None else time.monotonic() + timeout_s
            elif "error" in message:
                self._finish(message["error"])
            else:
                self.result.rc = message["rc"]
                self._finish()
        if not part:
            self._finish("the command was killed with its supervisor: the container ended, or somebody in it did that")

    def _finish(self, error: str = "") -> None:
        if not self.is_done:
            self.result.error = self.result.error or error
            self.result.end = time.time()
            self.is_done = True

    def check(self) -> int:
        """End the command if its time is over; 1 when this is the first look at the finished session."""
        if not self.is_done and self.deadline is not None and time.monotonic() >= self.deadline:
            if self._is_ending:
                self._finish("its processes do not end on SIGKILL")
            else:
                self._is_ending = True
                self.result.timed_out = self._is_ready
                if not self._is_ready:
                    self.result.error = f"entering the container took more than {TIMEOUT_S:g} s"
                os.kill(self._pid, supervisor.END_SIGNAL)
                self.deadline = time.monotonic() + TIMEOUT_S
        if self.is_done and not self._is_counted:
            self.end()
            self._is_counted = True
            return 1
        return 0

    def end(self) -> None:
        """Take the last output, let go of the pipes, see the supervisor to its end."""
        if not self._pid:
            return
        for fd in list(self._open_fds):
            for _read in range(_LAST_READS):
                if not self._read_output(fd):
                    break
        for fd in self._open_fds:
            self._selector.unregister(fd)
            os.close(fd)
        if self._stdin_writer > 0 and self._stdin:
            self._selector.unregister(self._stdin_writer)
        self._close_stdin()
        self._selector.unregister(self._channel)
        os.kill(self._pid, supervisor.END_SIGNAL)
        self._channel.close()
        deadline = time.monotonic() + TIMEOUT_S
        while os.waitpid(self._pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)
                break
            time.sleep(0.0005)
        self._pid = 0
