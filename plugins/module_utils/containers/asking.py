# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Questions to programs and users of the host, within bounds of time and bytes; no process that was started for them is left.

A question to a user runs as that user, below a supervisor that runs as root. A process that leaves its parent there becomes the supervisor's
child, and the supervisor kills its children round after round until none is left. The user can neither signal the supervisor nor look into
the process that asks, although that was forked from this one.
"""

from __future__ import annotations

import json
import math
import os
import pwd
import resource
import select
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Callable, NoReturn, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import ContainerError
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.trust import MAX_BYTES
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import processes, syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.bounded import close_all_but
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import mask

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
RUNTIME_FOLDERS = "/run/user"
_ENGINE_S = 60.0  # an engine on a busy host is slow
_AT_ONCE = 32
_END_S = 1.5  # for ending the processes that a question started
_MAX_TEXT = 400
_MAX_MEMORY = 1 << 29
_NOGROUP = 65534
# The exceptions of code that reads an untrusted document as if it had the right form.
WRONG_FORM = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, MemoryError, OverflowError)


class Unanswered(ContainerError):
    """A question without an answer, or with none within its bounds."""


@dataclass(frozen=True)
class Account:
    """A user of the host; NAME is '' for a number without an account."""

    uid: int
    gid: int
    name: str
    home: str

    @property
    def label(self) -> str:
        """Return the user for people: name and number."""
        return f"user {self.name} ({self.uid})" if self.name else f"user {self.uid}"

    def become(self) -> None:
        """Become this user for good; a user without an account has no supplementary groups."""
        os.setgroups(os.getgrouplist(self.name, self.gid) if self.name else [])
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)

    def make_environment(self) -> dict[str, str]:
        """Return the environment for the user's programs, with nothing of this process's own."""
        return {
            **_ENVIRONMENT,
            "HOME": self.home,
            "USER": self.name,
            "XDG_RUNTIME_DIR": f"{RUNTIME_FOLDERS}/{self.uid}",
        }

    def make_command(self, command: Sequence[str]) -> list[str]:
        """Return the command by which the host's root runs COMMAND as this user."""
        user = ["-u", self.name] if self.name else [f"--uid={self.uid}"]
        setting = f"XDG_RUNTIME_DIR={RUNTIME_FOLDERS}/{self.uid}"
        return ["runuser", *user, "--", "env", setting, *command]


_ENVIRONMENT = {"PATH": PATH, "LANG": "C"}


def find_account(uid: int) -> Account:
    """Return the account of UID; a number without an account gets no name, the group nogroup and the home '/'."""
    try:
        found = pwd.getpwuid(uid)
    except (KeyError, OverflowError):
        return Account(uid, _NOGROUP, "", "/")
    return Account(uid, found.pw_gid, found.pw_name, found.pw_dir)


@dataclass(frozen=True)
class Done:
    """The end of a program: its exit code and its output."""

    returncode: int
    stdout: bytes
    stderr: str


def read_engine_timeout() -> float:
    """Return how many seconds an engine of root's may take for one answer: DOCKER_TIMEOUT of the environment, or 60.

    Raises ContainerError when the variable holds no positive number.
    """
    text = os.environ.get("DOCKER_TIMEOUT") or str(_ENGINE_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise ContainerError(f"DOCKER_TIMEOUT={text} is not a number of seconds: set one such as 120, or unset it")
    return seconds


def run(
    command: Sequence[str], until: float, environment: dict[str, str] | None = None, max_bytes: int = MAX_BYTES
) -> Done:
    """Run COMMAND to its end and return its output.

    Raises Unanswered when UNTIL (time.monotonic) is reached or the output has more than MAX_BYTES, and OSError where COMMAND cannot be started.
    Processes that COMMAND has started end with it, unless they are in a session of their own.
    """
    texts: dict[int, list[bytes]] = {}
    with subprocess.Popen(
        list(command),
        env=environment or {**_ENVIRONMENT, "HOME": "/root"},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            out, err = (stream.fileno() for stream in (process.stdout, process.stderr) if stream is not None)
            texts = {out: [], err: []}
            _read_both(texts, until, max_bytes, command[0])
            _await_end(process.pid, until, command[0])
        finally:
            # The leader has not been reaped yet, so its number still means this group.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return Done(process.returncode, b"".join(texts[out]), clean_text(b"".join(texts[err]).decode("utf-8", "replace")))


def _read_both(texts: dict[int, list[bytes]], until: float, max_bytes: int, name: str) -> None:
    poll = select.poll()
    for fd in texts:
        poll.register(fd, select.POLLIN)
    left, count = max_bytes, len(texts)
    while count:
        remaining = until - time.monotonic()
        if remaining <= 0:
            raise Unanswered(f"{name} does not answer in time")
        for fd, _event in poll.poll(remaining * 1000):
            part = os.read(fd, 1 << 16)
            if not part:
                poll.unregister(fd)
                count -= 1
            texts[fd].append(part)
            left -= len(part)
            if left < 0:
                raise Unanswered(f"{name} answers more than {max_bytes} bytes")


def _await_end(pid: int, until: float, name: str) -> None:
    """Wait until the child PID has ended, without reaping it."""
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > until:
            raise Unanswered(f"{name} does not end in time")
        time.sleep(0.002)


def clean_text(text: str) -> str:
    """Return an untrusted TEXT for a message: short, in one line, without control characters."""
    line = mask(" ".join(text.split()))
    return line if len(line) <= _MAX_TEXT else line[:_MAX_TEXT] + "…"


def parse_json(text: bytes) -> Any:
    """Return the document that TEXT holds; raises one of WRONG_FORM where it holds none."""
    return json.loads(text.decode("utf-8", "replace"))


@dataclass(frozen=True)
class Question:
    """A question to a user of the host.

    ACCOUNT: the user. FUNCTION: called with UNTIL (time.monotonic) as that user; its result, which JSON has to be able to hold, is the answer.
    """

    account: Account
    function: Callable[[float], Any]


@dataclass
class _Asked:
    """A question under way: the pid of its supervisor, and the bytes that came from it."""

    index: int
    pid: int
    fd: int
    data: bytearray


def ask_users(questions: Sequence[Question], seconds: float) -> list[Any]:
    """Return the answers to QUESTIONS, all asked side by side, in SECONDS for all; an Unanswered stands for a missing answer."""
    until = time.monotonic() + seconds
    answers: list[Any] = [Unanswered("no time was left") for _question in questions]
    waiting = list(range(len(questions)))[::-1]
    active: dict[int, _Asked] = {}
    poll = select.poll()
    started: list[int] = []
    while (waiting or active) and time.monotonic() < until:
        while waiting and len(active) < _AT_ONCE:
            asked = _start(questions[waiting[-1]], waiting.pop(), until - _END_S)
            active[asked.fd] = asked
            started.append(asked.pid)
            answers[asked.index] = Unanswered("no answer in time")
            poll.register(asked.fd, select.POLLIN)
        for fd, _event in poll.poll(max(0.0, until - time.monotonic()) * 1000):
            asked = active[fd]
            part = os.read(fd, 1 << 16)
            asked.data += part
            if part and len(asked.data) <= MAX_BYTES:
                continue
            poll.unregister(fd)
            os.close(fd)
            del active[fd]
            answers[asked.index] = _parse_answer(bytes(asked.data))
    for fd in active:
        os.close(fd)
    _reap(started, until)
    return answers


def _parse_answer(data: bytes) -> Any:
    if len(data) > MAX_BYTES:
        return Unanswered(f"the answer has more than {MAX_BYTES} bytes")
    try:
        answer = parse_json(data)
        return Unanswered(clean_text(answer["error"])) if "error" in answer else answer["answer"]
    except WRONG_FORM:
        return Unanswered("the process that asked was killed")


def _reap(pids: list[int], until: float) -> None:
    """Wait for the supervisors PIDS, which end by themselves; kill one that hangs in the kernel, and wait no longer for it."""
    for pid in pids:
        with suppress(ChildProcessError):  # where SIGCHLD is ignored, the kernel has reaped it
            while os.waitpid(pid, os.WNOHANG) == (0, 0):
                if time.monotonic() > until + _END_S:
                    os.kill(pid, signal.SIGKILL)
                    break
                time.sleep(0.002)


def _start(question: Question, index: int, until: float) -> _Asked:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _supervise(question, writer, until)
    os.close(writer)
    return _Asked(index, pid, reader, bytearray())


def _supervise(question: Question, writer: int, until: float) -> NoReturn:
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            if writer != fd:
                os.dup2(null, fd)
        close_all_but({0, 1, 2, writer})
        syscalls.set_child_subreaper()
        worker = os.fork()
        if worker == 0:
            _work(question, writer, until)
        os.close(writer)
        poll = select.poll()
        poll.register(syscalls.pidfd_open(worker), select.POLLIN)
        poll.poll(max(0.0, until - time.monotonic()) * 1000)
    finally:
        with suppress(BaseException):
            processes.end_children(_END_S / 2)
        os._exit(0)


def _work(question: Question, writer: int, until: float) -> NoReturn:
    try:
        try:
            with suppress(OSError):
                syscalls.join_new_session_keyring()  # the user must not get root's keys
            _confine()
            question.account.become()
            syscalls.set_undumpable()
            text = json.dumps({"answer": question.function(until)})
        except ContainerError as error:
            text = json.dumps({"error": str(error)})
        except BaseException as error:
            text = json.dumps({"error": f"{type(error).__name__}: {error}"})
        data = text.encode("utf-8", "replace")
        while data:
            data = data[os.write(writer, data[: 1 << 16]) :]
    finally:
        os._exit(0)


def _confine() -> None:
    """Limit each process that the user starts here to a gigabyte of memory, and let the kernel kill it first where memory is short."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = 2 * _MAX_MEMORY if hard == resource.RLIM_INFINITY else min(2 * _MAX_MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")


def limit_memory() -> None:
    """Limit this process to half a gigabyte beside what it has: an untrusted document may be made to grow when it is parsed."""
    with open("/proc/self/statm", encoding="ascii") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    _soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = size + _MAX_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
