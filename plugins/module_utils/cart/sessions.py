# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands in containers, seen from the module: one supervisor each, side by side, and the pipes to them."""

from __future__ import annotations

import array
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import supervisor
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.jobs import Job, Result
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import TIMEOUT_S
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import (
    Process,
    ProcessGone,
    read_pids,
)

MAX_OUTPUT_BYTES = 4 << 20
_MAX_RUNNING = 32
_LAST_WORD_S = 1.0  # for a supervisor that had its time already
_KILL_S = 0.01  # between two rounds of killing
_LAST_READS = 32  # of 64 KiB: more than a pipe holds, so an end that somebody keeps writing to is left all the same


def run_jobs(jobs: Sequence[Job], server: Server) -> list[Result]:
    """Run JOBS side by side (at most 32 at a time) by SERVER; their results in the same order."""
    waiting = list(jobs)
    sessions: list[_Session] = []
    running = 0
    with selectors.DefaultSelector() as selector:
        try:
            while waiting or running:
                while waiting and running < _MAX_RUNNING:
                    sessions.append(_Session(waiting.pop(0), selector, server))
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


def _kill_all_in(namespace: str) -> None:
    """Kill all processes in the private mount NAMESPACE of a command, whose supervisor somebody in the container has killed."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        found = False
        for pid in read_pids():
            with suppress(ProcessGone, PermissionError), Process(pid) as process:
                if process.namespace("mnt") == namespace:
                    process.kill(signal.SIGKILL)
                    found = True
        if not found:
            return
        time.sleep(_KILL_S)


class Server:
    """The small process that forks the supervisors. Use as a context manager."""

    def __enter__(self) -> Server:
        # It imports from where this module came from: a folder, or the archive that Ansible sent.
        folder = supervisor.__file__.rpartition("/ansible_collections/crashcart/fleet/")[0]
        code = f"import sys; sys.path.insert(0, sys.argv[1]); from {supervisor.__name__} import serve; serve(int(sys.argv[2]))"
        self._control, far_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with far_control:
            fd = far_control.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", code, folder, str(fd)],
                pass_fds=[fd],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        return self

    def __exit__(self, *exception: object) -> None:
        self._control.close()
        self._process.wait()

    def send(self, fds: Sequence[int]) -> None:
        """Have a supervisor started with FDS, which are supervisor.DESCRIPTORS."""
        self._control.sendmsg([b"+"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


@contextmanager
def open_descriptors(job: Job) -> Iterator[dict[str, int]]:
    """What a supervisor needs to enter the container of JOB, and the order, by their names in supervisor.DESCRIPTORS."""
    process = job.target.process
    with ExitStack() as stack:
        far = {"image": job.mount_fd}
        for name in ("pid", "net", "ipc", "uts", "mnt"):
            far[name] = process.open(f"ns/{name}")
            stack.callback(os.close, far[name])
        far["root"] = process.open("root", os.O_PATH | os.O_DIRECTORY)
        stack.callback(os.close, far["root"])
        far["order"] = _write_order(job)
        stack.callback(os.close, far["order"])
        yield far


def _write_order(job: Job) -> int:
    """A memory file with what the supervisor has to know beside the descriptors."""
    order = {
        "program": job.program,
        "argv": job.command.argv,
        "environment": job.environment,
        "chdir": job.command.chdir,
        "user": (job.user.uid, job.user.gid, job.user.groups),
        "prefix": job.prefix,
    }
    fd = os.memfd_create("crashcart-order")
    with open(fd, "wb", closefd=False) as file:
        file.write(json.dumps(order).encode("ascii"))  # json.dump takes ten times as long
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


class _Session:
    """One command on its way: its supervisor, and the pipes to it."""

    def __init__(self, job: Job, selector: selectors.BaseSelector, server: Server) -> None:
        self.job = job
        container = job.target.container
        self.result = Result(container.name, container.id, start=time.time())
        self.is_done = False
        # The setup has a limit of its own: a container may serve its /dev from a process that hangs.
        self.deadline: float | None = time.monotonic() + TIMEOUT_S
        self._selector = selector
        self._status = b""
        self._stdin = memoryview(job.command.stdin or b"")
        self._is_ready = self._is_ending = self._is_counted = self._is_reaped = False
        self._namespace = ""
        self._supervisor: Process | None = None
        self._outputs: dict[int, str] = {}  # the attributes of the result, by the pipes they come through
        self._stdin_writer = -1
        self._channel: socket.socket | None = None
        try:
            self._start(server)
        except (OSError, ProcessGone) as error:
            # One container that is just ending must not take the commands of the others with it.
            self._finish(f"cannot enter the container, it may have just ended: {error}")

    def _start(self, server: Server) -> None:
        with ExitStack() as stack:
            far = stack.enter_context(open_descriptors(self.job))
            far["stdin"], self._stdin_writer = os.pipe2(os.O_CLOEXEC)
            stack.callback(os.close, far["stdin"])
            os.set_blocking(self._stdin_writer, False)
            self._selector.register(self._stdin_writer, selectors.EVENT_WRITE, self._write_stdin)
            for name in ("stdout", "stderr"):
                reader, far[name] = os.pipe2(os.O_CLOEXEC)
                stack.callback(os.close, far[name])
                self._outputs[reader] = name
                os.set_blocking(reader, False)
                self._selector.register(reader, selectors.EVENT_READ, self._read_output)
            self._channel, far_channel = socket.socketpair()
            stack.enter_context(far_channel)
            far["channel"] = far_channel.fileno()
            self._selector.register(self._channel, selectors.EVENT_READ, self._read_status)
            server.send([far[name] for name in supervisor.DESCRIPTORS if name in far])

    def _write_stdin(self, _fd: Any) -> None:
        try:
            self._stdin = self._stdin[os.write(self._stdin_writer, self._stdin) :]
        except BrokenPipeError:
            self._stdin = self._stdin[len(self._stdin) :]
        if not self._stdin:
            self._close_stdin()

    def _close_stdin(self) -> None:
        if self._stdin_writer >= 0:
            self._selector.unregister(self._stdin_writer)
            os.close(self._stdin_writer)
            self._stdin_writer = -1

    def _read_output(self, fd: Any) -> bool:
        """Take what FD has; whether there may be more."""
        try:
            part = os.read(fd, 65536)
        except BlockingIOError:
            return False
        name = self._outputs[fd]
        if not part:
            self._close_output(fd)
            return False
        have = getattr(self.result, name)
        if len(have) + len(part) > MAX_OUTPUT_BYTES:
            setattr(self.result, name + "_truncated", True)
        setattr(self.result, name, have + part[: max(0, MAX_OUTPUT_BYTES - len(have))])
        return True

    def _close_output(self, fd: int) -> None:
        self._selector.unregister(fd)
        del self._outputs[fd]
        os.close(fd)

    def _read_status(self, channel: Any) -> bool:
        """Take what the supervisor and the command's first steps say; false when they are gone."""
        part = channel.recv(65536)
        *lines, self._status = (self._status + part).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "pid" in message:
                with suppress(ProcessGone):
                    self._supervisor = Process(message["pid"])
            elif "ready" in message:
                self._is_ready = True
                self._namespace = message["ready"]
                timeout_s = self.job.command.timeout_s
                if not self._is_ending:
                    self.deadline = None if timeout_s is None else time.monotonic() + timeout_s
            else:
                self._is_reaped = self._is_reaped or "rc" in message
                if not self.is_done:
                    self.result.rc = message.get("rc", -1)
                    self._finish(message.get("error", ""))
        if not part:
            self._finish("the command was killed with its supervisor: the container ended, or somebody in it did that")
        return bool(part)

    def _finish(self, error: str = "") -> None:
        if not self.is_done:
            self.result.error = self.result.error or error
            self.result.end = time.time()
            self.is_done = True

    def check(self) -> int:
        """End the command if its time is over; 1 when this is the first look at the finished session."""
        if not self.is_done and self.deadline is not None and time.monotonic() >= self.deadline:
            if self._is_ending:
                self._finish("its supervisor does not answer, as if somebody in the container had stopped it")
            else:
                self._is_ending = True
                self.result.timed_out = self._is_ready
                if not self._is_ready:
                    self.result.error = f"entering the container took more than {TIMEOUT_S:g} s"
                self._ask_to_end()
                self.deadline = time.monotonic() + TIMEOUT_S
        if self.is_done and not self._is_counted:
            self.end()
            self._is_counted = True
            return 1
        return 0

    def _ask_to_end(self) -> None:
        if self._channel is not None:
            self._channel.shutdown(socket.SHUT_WR)
        if self._supervisor is not None:
            self._supervisor.kill(signal.SIGCONT)  # the container's root may have stopped it

    def end(self) -> None:
        """Take the last output, let go of the pipes, see the supervisor to its end. Calling it again does nothing."""
        for fd in list(self._outputs):
            for _read in range(_LAST_READS):
                if not self._read_output(fd):
                    break
        for fd in list(self._outputs):
            self._close_output(fd)
        self._close_stdin()
        if self._channel is None:
            return
        self._selector.unregister(self._channel)
        self._ask_to_end()
        self._channel.settimeout(_LAST_WORD_S if self._is_ending and not self._is_reaped else TIMEOUT_S)
        try:
            while self._read_status(self._channel):
                pass
        except OSError:  # its time is over
            if self._supervisor is not None:
                self._supervisor.kill(signal.SIGKILL)
        self._channel.close()
        self._channel = None
        if self._supervisor is not None:
            self._supervisor.close()
        if not self._is_reaped and self._namespace:
            _kill_all_in(self._namespace)
