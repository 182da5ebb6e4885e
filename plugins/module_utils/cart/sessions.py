# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands in containers, seen from the module: side by side, with the pipes to them, and the supervisor that starts them."""

from __future__ import annotations

import array
import errno
import json
import os
import selectors
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any, Iterator, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import command, supervisor
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.jobs import Job, Result
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.sinks import Sink
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import TIMEOUT_S
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import ProcessGone

_MAX_RUNNING = 32
_LAST_WORD_S = 1.0  # for a supervisor that had its time already
_LAST_READS = 32  # of 64 KiB: more than a pipe holds, so an end that somebody keeps writing to is left all the same


def run_jobs(jobs: Sequence[Job], sinks: Sequence[Mapping[str, Sink]], server: Server) -> list[Result]:
    """Run JOBS side by side (at most 32 at a time) by SERVER; their results in the same order.

    SINKS have for each job what takes its `stdout` and its `stderr`.
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


class Server:
    """The supervisor of a module's commands, a small process of its own. Use as a context manager."""

    def __enter__(self) -> Server:
        # It imports from where this module came from: a folder, or the archive that Ansible sent.
        folder = supervisor.__file__.rpartition("/ansible_collections/crashcart/fleet/")[0]
        code = f"import sys; sys.path.insert(0, sys.argv[1]); from {supervisor.__name__} import serve; serve(int(sys.argv[2]))"
        self._control, far_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with far_control, _open_read_only(sys.executable) as python:
            fd = far_control.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", code, folder, str(fd)],
                executable=f"/proc/self/fd/{python}",
                pass_fds=[fd, python],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # what kills the module's group must leave it time to end the commands
            )
        return self

    def __exit__(self, *exception: object) -> None:
        self._control.close()
        self._process.wait()

    def send(self, fds: Mapping[str, int], *, confined: bool) -> None:
        """Have a command started with the descriptors FDS."""
        message = json.dumps({"confined": confined, "names": list(fds)}).encode("ascii")
        self._control.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds.values()))])


@contextmanager
def _open_read_only(program: str) -> Iterator[int]:
    """A descriptor of PROGRAM by a read-only mount of its own.

    Processes that were started by it enter containers, and /proc/PID/exe is a way to the file: whoever may trace them there
    (CAP_SYS_PTRACE) must not be able to write to it.
    """
    fd = syscalls.open_tree(-1, os.path.realpath(program), syscalls.OPEN_TREE_CLONE)
    try:
        syscalls.mount_setattr(fd, syscalls.MOUNT_ATTR_RDONLY)
    except OSError as error:
        if error.errno != errno.ENOSYS:  # before Linux 5.12
            os.close(fd)
            raise
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def open_descriptors(job: Job) -> Iterator[dict[str, int]]:
    """What is needed to enter the container of JOB, and the order, by the names that command.py tells."""
    process = job.target.process
    with ExitStack() as stack:
        far = {"image": job.mount_fd, **{command.JOIN + name: fd for name, fd in job.groups.items()}}
        for name in job.command.namespaces:
            # The kernel refuses to enter the user namespace that one is in; time namespaces came with Linux 5.6.
            if name not in ("user", "time") or _has_own(job, name):
                far[name] = process.open(f"ns/{name}")
                stack.callback(os.close, far[name])
        if "mnt" in far:
            far["root"] = process.open("root", os.O_PATH | os.O_DIRECTORY)
            stack.callback(os.close, far["root"])
        far[command.FIRST_PROCESS] = syscalls.pidfd_open(process.pid)
        stack.callback(os.close, far[command.FIRST_PROCESS])
        process.read_start_ticks()  # raises when the pid was somebody else's by now
        far["order"] = _write_order(job)
        stack.callback(os.close, far["order"])
        yield far


def _has_own(job: Job, name: str) -> bool:
    try:
        return job.target.process.namespace(name) != os.readlink(f"/proc/self/ns/{name}")
    except FileNotFoundError:
        return False


def _write_order(job: Job) -> int:
    """A memory file with what has to be known beside the descriptors."""
    order = {
        "program": job.program,
        "argv": job.command.argv,
        "environment": job.environment,
        "chdir": job.command.chdir,
        "confined": job.command.confined,
        "rights": asdict(job.rights),
        "prefix": job.prefix,
        "first_process": job.target.process.pid,
    }
    fd = os.memfd_create("crashcart-order")
    with open(fd, "wb", closefd=False) as file:
        file.write(json.dumps(order).encode("ascii"))  # json.dump takes ten times as long
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


class _Session:
    """One command on its way, and the pipes to it."""

    def __init__(self, job: Job, sinks: Mapping[str, Sink], selector: selectors.BaseSelector, server: Server) -> None:
        self.job = job
        self._sinks = sinks
        container = job.target.container
        self.result = Result(container.name, container.id, start=time.time())
        self.is_done = False
        # The setup has a limit of its own: a container may serve its /dev from a process that hangs.
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
                os.fchown(far[name], self.job.rights.uid, self.job.rights.gid)  # for programs that open /dev/stdout
                self._outputs[reader] = name
                os.set_blocking(reader, False)
                self._selector.register(reader, selectors.EVENT_READ, self._read_output)
            self._channel, far_channel = socket.socketpair()
            stack.enter_context(far_channel)
            far[command.CHANNEL] = far_channel.fileno()
            self._selector.register(self._channel, selectors.EVENT_READ, self._read_status)
            server.send(far, confined=self.job.command.confined)

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
        """Take what the supervisor says; false when it is gone, or has said its last word."""
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
        """End the command if its time is over; 1 when this is the first look at the finished session."""
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
        """Take the last output, let go of the pipes, see the command to its end. Calling it again does nothing."""
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
        # It closes its end when nothing of the command is left.
        self._channel.settimeout(_LAST_WORD_S if self._is_ending else TIMEOUT_S)
        try:
            while self._read_status(self._channel):
                pass
        except OSError:  # its time is over
            pass
        self._channel.close()
        self._channel = None
