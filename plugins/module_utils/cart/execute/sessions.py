# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands in containers from the module's side: they run side by side, and the module serves their pipes."""

from __future__ import annotations

import json
import os
import selectors
import socket
import time
from contextlib import ExitStack
from typing import Any, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute import command
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.jobs import Job, Result
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.server import Server, open_descriptors
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.sinks import Sink
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import TIMEOUT_S
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import ProcessGone

_MAX_RUNNING = 32
_LAST_REPORT_S = 1.0  # for a supervisor that was asked to end before
_LAST_READS = 32  # of 64 KiB each: more than a pipe holds, and a bound where a process keeps writing


def run_jobs(jobs: Sequence[Job], sinks: Sequence[Mapping[str, Sink]], server: Server) -> list[Result]:
    """Run JOBS by SERVER, at most 32 side by side, and return their results in the same order.

    SINKS have, for each job, the sinks of its `stdout` and its `stderr`.
    """
    waiting = list(zip(jobs, sinks))
    sessions: list[_Session] = []
    running = 0
    with selectors.DefaultSelector() as selector:
        try:
            while waiting or running:
                while waiting and running < _MAX_RUNNING:
                    sessions.append(_Session(*waiting.pop(0), selector, server))
                    running += 1
                # Before the wait, as nothing would wake it for a session that could not start.
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


class _Session:
    """A command on its way, and the pipes to it."""

    def __init__(self, job: Job, sinks: Mapping[str, Sink], selector: selectors.BaseSelector, server: Server) -> None:
        self.job = job
        self._sinks = sinks
        container = job.target.container
        self.result = Result(container.name, container.id, rights=job.command.rights, start=time.time())
        self.is_done = False
        # The setup has a limit of its own, as a container may serve its /dev by a process that hangs.
        self.deadline: float | None = time.monotonic() + TIMEOUT_S
        self._selector = selector
        self._status = b""
        self._stdin = memoryview(job.command.stdin or b"")
        self._is_ready = self._is_ending = self._is_counted = False
        self._outputs: dict[int, str] = {}  # stdout and stderr, by the pipes they come through
        self._stdin_writer = -1
        self._channel: socket.socket | None = None
        try:
            self._start(server)
        except (OSError, ProcessGone) as error:
            # A container that is just ending must not end the commands in the others.
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
                os.fchown(far[name], self.job.rights.uid, self.job.rights.gid)  # for programs that open /dev/stdout
                self._outputs[reader] = name
                os.set_blocking(reader, False)
                self._selector.register(reader, selectors.EVENT_READ, self._read_output)
            self._channel, far_channel = socket.socketpair()
            stack.enter_context(far_channel)
            far[command.CHANNEL] = far_channel.fileno()
            self._selector.register(self._channel, selectors.EVENT_READ, self._read_status)
            server.send(far)

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
        """Read once from FD; return True if it may have more."""
        try:
            part = os.read(fd, 65536)
        except BlockingIOError:
            return False
        name = self._outputs[fd]
        if not part:
            self._close_output(fd)
            return False
        try:
            self._sinks[name].write(part)
        except OSError as error:
            self._finish(f"its {name} cannot be kept: {error.strerror}")
            self._close_output(fd)
            return False
        return True

    def _close_output(self, fd: int) -> None:
        self._selector.unregister(fd)
        del self._outputs[fd]
        os.close(fd)

    def _read_status(self, channel: Any) -> bool:
        """Read messages of the supervisor; return False when it has closed its end."""
        part = channel.recv(65536)
        *lines, self._status = (self._status + part).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "ready" in message:
                self._is_ready = True
                timeout_s = self.job.command.timeout_s
                if not self._is_ending:
                    self.deadline = None if timeout_s is None else time.monotonic() + timeout_s
            elif not self.is_done:
                self.result.rc = message.get("rc", -1)
                self._finish(message.get("error", ""))
        if not part:
            self._finish("the supervisor of the command was killed")
        return bool(part)

    def _finish(self, error: str = "") -> None:
        if not self.is_done:
            self.result.error = self.result.error or error
            self.result.end = time.time()
            self.is_done = True

    def check(self) -> int:
        """End the command if its time is over; return 1 at the first call for the finished session, otherwise 0."""
        if not self.is_done and self.deadline is not None and time.monotonic() >= self.deadline:
            if self._is_ending:
                self._finish("it cannot be killed: it waits in the kernel, or its control group is frozen")
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

    def end(self) -> None:
        """Read the remaining output, close the pipes, and wait until the command has ended; a second call does nothing."""
        for fd in list(self._outputs):
            for _read in range(_LAST_READS):
                if not self._read_output(fd):
                    break
        for fd in list(self._outputs):
            self._close_output(fd)
        for name, sink in self._sinks.items():
            setattr(self.result, f"{name}_size", sink.size)
            setattr(self.result, f"{name}_truncated", sink.is_truncated)
        self._close_stdin()
        if self._channel is None:
            return
        self._selector.unregister(self._channel)
        self._ask_to_end()
        # The supervisor closes its end when no process of the command is left.
        self._channel.settimeout(_LAST_REPORT_S if self._is_ending else TIMEOUT_S)
        try:
            while self._read_status(self._channel):
                pass
        except OSError:  # its time is over
            pass
        self._channel.close()
        self._channel = None
