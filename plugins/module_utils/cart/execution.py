# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a command of a tool image in running containers, and change nothing there.

Each command runs in the container's pid, network, ipc and uts namespaces and in a private copy of its mount
namespace. In that copy a small tmpfs covers the folder that the image goes into (/dev), with everything that stood
there bound into it again, and the image beside. The container's own processes see none of it, and it is gone with
the last process of the command, however that ends. Commands in one container cannot disturb each other, nor can a
detach disturb them.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import select
import selectors
import shlex
import signal
import socket
import stat
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Iterator, NoReturn, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import store
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attachments import (
    Attachment,
    create_mount,
    find_attachments,
    find_loop_devices,
    open_image,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container, check_running
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import TIMEOUT_S, Target, open_targets
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import mounts, syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.namespaces import (
    MountNamespace,
    close_all_but,
    enter_mount_namespace,
    open_mount_namespace,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import kill_in_mount_namespaces, read_all

MAX_OUTPUT_BYTES = 4 << 20
_MAX_RUNNING = 32
_REAP_S = 1.0
_NAMESPACES = {
    "net": syscalls.CLONE_NEWNET,
    "ipc": syscalls.CLONE_NEWIPC,
    "uts": syscalls.CLONE_NEWUTS,
    "pid": syscalls.CLONE_NEWPID,
}
_ENVIRONMENT_FILE = "etc/crashcart.env"


class ExecutionError(FleetError):
    """A command could not be started; the text says in which container and why."""


@dataclass(frozen=True)
class User:
    """Whom a command runs as, in numbers."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()


@dataclass(frozen=True)
class Command:
    """What to run: TIMEOUT_S None waits for ever; ENV goes on top of the image's own."""

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    stdin: bytes | None = None
    chdir: str = "/"
    timeout_s: float | None = None


@dataclass(frozen=True)
class Job:
    """A command for one container: MOUNT_FD is a detached mount of the image for PREFIX."""

    target: Target
    command: Command
    user: User
    mount_fd: int
    prefix: str


@dataclass
class Result:
    """How a command ended: RC is 128 + n after signal n; times are seconds since the epoch."""

    container: str
    id: str
    rc: int = -1
    stdout: bytes = b""
    stderr: bytes = b""
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    timed_out: bool = False
    start: float = 0.0
    end: float = 0.0
    error: str = ""


def parse_environment(text: str) -> dict[str, str]:
    """Variables from an image's environment file: lines of NAME=VALUE, '#' begins a comment line."""
    variables = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            variables[name.strip()] = value
    return variables


def read_environment(mount_fd: int, prefix: str) -> dict[str, str]:
    """The variables that the image behind MOUNT_FD wants its tools to have, beside a plain base."""
    variables = {
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PATH": f"{prefix}/bin:{prefix}/sbin",
        "TERM": "dumb",
    }
    try:
        fd = mounts.open_beneath(mount_fd, _ENVIRONMENT_FILE, os.O_RDONLY)
    except FileNotFoundError:
        return variables
    try:
        variables.update(parse_environment(read_all(fd).decode("utf-8")))
    finally:
        os.close(fd)
    return variables


def find_program(name: str, mount_fd: int, prefix: str) -> str:
    """The path to run for NAME: a path is taken as it is; a bare name is looked for in the image only.

    The container's own programs are never found by a bare name: they would run with the host's privileges.
    """
    if "/" in name:
        return name
    for folder in ("bin", "sbin"):
        try:
            os.stat(f"{folder}/{name}", dir_fd=mount_fd, follow_symlinks=False)
        except FileNotFoundError:
            continue
        return f"{prefix}/{folder}/{name}"
    raise ExecutionError(
        f"the image has no program called {name!r}: add its package to the image,"
        " or give the whole path of a program in the container"
    )


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
                for key, _events in selector.select(_find_pause(sessions)):
                    key.data(key.fileobj)
                for session in sessions:
                    running -= session.check()
        finally:
            for session in sessions:
                session.end()
            kill_namespaces({session.namespace for session in sessions if session.namespace})
            for session in sessions:
                session.close()
    return [session.result for session in sessions]


def _find_pause(sessions: Sequence[_Session]) -> float | None:
    deadlines = [session.deadline for session in sessions if session.deadline is not None and not session.is_done]
    return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None


def kill_namespaces(namespaces: set[str], spare: int = 0) -> None:
    """End every process in the private mount NAMESPACES but SPARE: also those that left their parent's session."""
    deadline = time.monotonic() + TIMEOUT_S
    while namespaces and kill_in_mount_namespaces(namespaces, signal.SIGKILL, spare):
        if time.monotonic() > deadline:
            raise ExecutionError("processes of a command do not end on SIGKILL")
        time.sleep(0.001)


class _Session:
    """One command on its way: a helper process that enters the container, and the pipes to it."""

    def __init__(self, job: Job, selector: selectors.BaseSelector) -> None:
        self.job = job
        container = job.target.container
        self.result = Result(container.name, container.id, start=time.time())
        self.namespace = ""
        self.is_done = False
        self._selector = selector
        self._namespace_fd = -1
        self._status = b""
        self._stdin = memoryview(job.command.stdin or b"")
        # The setup has a limit of its own: a container may serve its /dev from a process that hangs.
        self.deadline: float | None = time.monotonic() + TIMEOUT_S
        self._start_helper()

    def _start_helper(self) -> None:
        stdin_reader, self._stdin_writer = os.pipe2(os.O_CLOEXEC)
        self._stdout, stdout_writer = os.pipe2(os.O_CLOEXEC)
        self._stderr, stderr_writer = os.pipe2(os.O_CLOEXEC)
        self._channel, child_channel = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            _help(self.job, (stdin_reader, stdout_writer, stderr_writer), child_channel.fileno())
        child_channel.close()
        for fd in (stdin_reader, stdout_writer, stderr_writer):
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
        if self._stdin_writer >= 0:
            os.close(self._stdin_writer)
            self._stdin_writer = -1

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
        self._status += part
        *lines, self._status = self._status.split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "ready" in message:
                self._take_namespace()
            elif "rc" in message:
                self.result.rc = message["rc"]
                self._finish()
            else:
                self.result.error = message["error"]
                self._finish()
        if not part and not self.is_done:
            self.result.error = "the helper was killed"
            self._finish()

    def _take_namespace(self) -> None:
        """Hold the command's mount namespace, by which all its processes are known; then let it start."""
        self._namespace_fd = os.open(f"/proc/{self._pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        self.namespace = os.readlink(f"/proc/self/fd/{self._namespace_fd}")
        timeout_s = self.job.command.timeout_s
        self.deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._channel.send(b"g")

    def check(self) -> int:
        """End the command if its time is over; 1 when this is the first look at the finished session."""
        if not self.is_done and self.deadline is not None and time.monotonic() >= self.deadline:
            if self.namespace:
                self.result.timed_out = True
                self.result.rc = 128 + signal.SIGKILL
                # The helper goes last: it takes the command's end from the kernel, else a zombie stays in the container.
                kill_namespaces({self.namespace}, spare=self._pid)
                select.select([self._channel], [], [], _REAP_S)
            else:
                self.result.error = f"entering the container took more than {TIMEOUT_S:g} s"
            self._finish()
        if self.is_done and self._pid:
            self.end()
            return 1
        return 0

    def _finish(self) -> None:
        self.result.end = time.time()
        self.is_done = True

    def end(self) -> None:
        """Take the last output, let go of the pipes, reap the helper."""
        if not self._pid:
            return
        for fd in list(self._open_fds):
            while self._read_output(fd):
                continue
        for fd in self._open_fds:
            self._selector.unregister(fd)
            os.close(fd)
        if self._stdin_writer >= 0 and self._stdin:
            self._selector.unregister(self._stdin_writer)
        self._close_stdin()
        self._selector.unregister(self._channel)
        self._channel.close()
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._pid = 0

    def close(self) -> None:
        """Let go of the mount namespace; only then may its number be used again."""
        if self._namespace_fd >= 0:
            os.close(self._namespace_fd)
            self._namespace_fd = -1


def _help(job: Job, stdio: tuple[int, int, int], channel: int) -> NoReturn:
    """The helper: enter the container, build the private view, start the command, say how it ended."""
    try:
        syscalls.set_parent_death_signal(signal.SIGKILL)
        os.setsid()
        for wanted, fd in enumerate(stdio):
            os.dup2(fd, wanted)
        kinds = [(job.target.process.open(f"ns/{name}"), kind) for name, kind in _NAMESPACES.items()]
        namespace = open_mount_namespace(job.target.process)
        fds = {fd for fd, _kind in kinds} | {namespace.namespace_fd, namespace.root_fd, job.mount_fd, channel}
        environment = {**read_environment(job.mount_fd, job.prefix), **job.command.env}
        program = find_program(job.command.argv[0], job.mount_fd, job.prefix)
        close_all_but(fds | {0, 1, 2})
        for fd, kind in kinds:
            syscalls.setns(fd, kind)
        _enter_private_copy(namespace, job.mount_fd, job.prefix)
        os.write(channel, b'{"ready": 1}\n')
        if os.read(channel, 1) == b"g":
            _run(job, program, environment, channel)
    except BaseException as error:
        _say(channel, {"error": str(error)})
    finally:
        os._exit(1)


def _run(job: Job, program: str, environment: dict[str, str], channel: int) -> None:
    pid = os.fork()  # the child is the first that stands in the container's pid namespace
    if pid == 0:
        try:
            _execute(job, program, environment)
        except BaseException as error:
            _say(channel, {"error": f"cannot run {program}: {error}"})
        finally:
            os._exit(127)
    for fd in (0, 1, 2):
        os.close(fd)
    _pid, status = os.waitpid(pid, 0)
    _say(channel, {"rc": 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)})


def _execute(job: Job, program: str, environment: dict[str, str]) -> NoReturn:
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores these, and a command would inherit that
    os.chdir(job.command.chdir)
    if (job.user.uid, job.user.gid) != (0, 0) or job.user.groups:
        os.setgroups(job.user.groups)
        os.setresgid(job.user.gid, job.user.gid, job.user.gid)
        os.setresuid(job.user.uid, job.user.uid, job.user.uid)
    syscalls.set_parent_death_signal(signal.SIGKILL)
    os.execve(program, job.command.argv, environment)


def _say(channel: int, message: dict[str, Any]) -> None:
    os.write(channel, json.dumps(message).encode("ascii") + b"\n")


def _enter_private_copy(namespace: MountNamespace, mount_fd: int, prefix: str) -> None:
    """Stand in a private copy of NAMESPACE with the image of MOUNT_FD at PREFIX."""
    enter_mount_namespace(namespace)
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount_make_private("/")
    parent, name = os.path.split(prefix)
    root_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    parent_fd = mounts.open_beneath(root_fd, parent, os.O_RDONLY | os.O_DIRECTORY)
    cover_fd = mounts.mount_create("tmpfs", None, syscalls.MOUNT_ATTR_NOSUID, mode="0755", size="1m")
    syscalls.move_mount(cover_fd, parent_fd)
    for entry in os.listdir(parent_fd):
        if entry != name:
            _bind_again(parent_fd, entry, cover_fd)
    os.mkdir(name, 0o755, dir_fd=cover_fd)
    image_fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=cover_fd)
    syscalls.move_mount(mount_fd, image_fd)


def _bind_again(parent_fd: int, entry: str, cover_fd: int) -> None:
    """Show ENTRY of the covered folder in the tmpfs that covers it."""
    try:
        mode = os.stat(entry, dir_fd=parent_fd, follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):
            os.symlink(os.readlink(entry, dir_fd=parent_fd), entry, dir_fd=cover_fd)
            return
        flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE | syscalls.AT_SYMLINK_NOFOLLOW
        tree_fd = syscalls.open_tree(parent_fd, entry, flags)
    except FileNotFoundError:
        return  # the container removed it meanwhile
    if stat.S_ISDIR(mode):
        os.mkdir(entry, 0o755, dir_fd=cover_fd)
    else:
        os.close(os.open(entry, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=cover_fd))
    try:
        place_fd = os.open(entry, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=cover_fd)
        syscalls.move_mount(tree_fd, place_fd)
        os.close(place_fd)
    except OSError as error:
        if error.errno != errno.ENOTDIR:  # a file became a folder meanwhile: leave it out
            raise
    os.close(tree_fd)


def find_user(spec: str, root_fd: int) -> User:
    """Whom SPEC means in the container at ROOT_FD: a name of its /etc/passwd, or numbers as UID or UID:GID."""
    uid, colon, gid = spec.partition(":")
    if uid.isdigit() and (gid.isdigit() or not colon):
        return User(int(uid), int(gid) if colon else int(uid))
    for line in _read_lines(root_fd, "etc/passwd"):
        fields = line.split(":")
        if len(fields) >= 4 and fields[0] == spec and fields[2].isdigit() and fields[3].isdigit():
            return User(int(fields[2]), int(fields[3]), _find_groups(spec, root_fd))
    raise ExecutionError(f"no user is called {spec!r} in its /etc/passwd; give numbers as UID or UID:GID")


def _find_groups(name: str, root_fd: int) -> tuple[int, ...]:
    groups = []
    for line in _read_lines(root_fd, "etc/group"):
        fields = line.split(":")
        if len(fields) == 4 and fields[2].isdigit() and name in fields[3].split(","):
            groups.append(int(fields[2]))
    return tuple(groups)


def _read_lines(root_fd: int, path: str) -> list[str]:
    """Lines of a small file of the container; its symlinks lead nowhere outside, and a pipe cannot block us."""
    resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
    try:
        fd = syscalls.openat2(root_fd, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, resolve)
    except OSError:
        return []
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return []
        return os.read(fd, 1 << 20).decode("utf-8", "replace").split("\n")
    finally:
        os.close(fd)


def parse_command(
    *,
    argv: list[str] | None,
    cmd: str | None,
    env: dict[str, Any],
    stdin: str | None,
    chdir: str,
    timeout_s: float | None,
) -> Command:
    """A Command from a module's options."""
    try:
        words = argv if argv is not None else shlex.split(cmd or "")
    except ValueError as error:
        raise ExecutionError(f"cmd {cmd!r} cannot be split into words: {error}") from error
    texts = [*words, *map(str, env), *map(str, env.values()), chdir]
    if not words or not words[0]:
        raise ExecutionError("the command is empty: give a program's name first")
    if any("\0" in text for text in texts) or any("=" in name or not name for name in env):
        raise ExecutionError(
            "a command, a folder or a variable holds a NUL character, or a variable's name is empty or holds '='"
        )
    return Command(
        argv=tuple(words),
        env={name: str(value) for name, value in env.items()},
        stdin=None if stdin is None else stdin.encode("utf-8"),
        chdir=chdir,
        timeout_s=timeout_s,
    )


def execute(
    containers: Sequence[Container], command: Command, user: str | None, image_name: str | None, *, check_mode: bool
) -> list[dict[str, Any]]:
    """Run COMMAND in each of CONTAINERS; what modules return of it. In check mode nothing is run."""
    for container in containers:
        check_running(container)
    with ExitStack() as stack:
        targets = stack.enter_context(open_targets(containers))
        users = [_find_user_in(target, user) for target in targets]
        sources = _find_sources(targets, image_name)
        if check_mode:
            return []
        jobs = []
        for target, identity, source in zip(targets, users, sources):
            device_path = stack.enter_context(_hold(source))
            mount_fd = create_mount(device_path)
            stack.callback(os.close, mount_fd)
            prefix = source.prefix if isinstance(source, store.StoredImage) else source.path
            jobs.append(Job(target, command, identity, mount_fd, prefix))
        results = run_jobs(jobs)
    return _report(results, command)


def _find_user_in(target: Target, user: str | None) -> User:
    if user is None:
        return User()
    root_fd = target.process.open("root", os.O_PATH | os.O_DIRECTORY)
    try:
        return find_user(user, root_fd)
    except ExecutionError as error:
        raise ExecutionError(f"container {target.container.name}: {error}") from error
    finally:
        os.close(root_fd)


def _find_sources(targets: Sequence[Target], image_name: str | None) -> list[store.StoredImage | Attachment]:
    """For each target the image to mount: the attached one, or the one of the store called IMAGE_NAME."""
    sources: list[store.StoredImage | Attachment] = []
    loop_devices = find_loop_devices()
    image: store.StoredImage | None = None
    for target in targets:
        attached = [one for one in find_attachments(target, loop_devices) if image_name in (None, one.image)]
        if attached:
            sources.append(attached[-1])
            continue
        if image is None:
            image = store.get_image(image_name or "default")
            store.check_manifest(image.manifest)
        sources.append(image)
    return sources


@contextmanager
def _hold(source: store.StoredImage | Attachment) -> Iterator[str]:
    """The path of the loop device of SOURCE, kept bound for the context."""
    if isinstance(source, store.StoredImage):
        with open_image(source) as device:
            yield device.path
        return
    path = f"/dev/loop{source.device.partition(':')[2]}"
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if source.device not in find_loop_devices():
            raise ExecutionError(f"container {source.container.name}: the image was just detached; try again")
        yield path
    finally:
        os.close(fd)


def _report(results: Sequence[Result], command: Command) -> list[dict[str, Any]]:
    reports = []
    for result in results:
        report = {name: value for name, value in vars(result).items() if name != "error"}
        for name in ("stdout", "stderr"):
            report[name] = report[name].decode("utf-8", "replace")
            report[name + "_lines"] = report[name].splitlines()
        if result.error:
            report["msg"] = result.error
        reports.append(report)
    failures = [f"container {result.container}: {result.error}" for result in results if result.error]
    late = [result.container for result in results if result.timed_out]
    if late:
        failures.append(f"killed after {command.timeout_s:g} s in: {', '.join(late)}")
    if failures:
        raise ExecutionError("; ".join(failures), results=reports)
    return reports
