# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The terminal that Ansible was started at, lent to a command.

A task runs in a process that has no terminal, in a session of its own. So the command has a terminal made for it, and what passes through
that one and the user's is copied. Sources: pty(7), tty_ioctl(4), PEP 475.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import select
import signal
import termios
import tty
from collections.abc import Sequence
from contextlib import suppress

_LOOK_S = 0.5  # how often the size of the user's window is looked at: no signal tells of it
_SIZE = 65536


class NoTerminalError(Exception):
    """Ansible was not started at a terminal; the text says so, and what to do."""


def open_terminal(pid: int) -> int:
    """A descriptor of the terminal that process PID has as its input. Raises NoTerminalError where it has none."""
    try:
        fd = os.open(f"/proc/{pid}/fd/0", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise NoTerminalError(f"Ansible's input cannot be opened ({error.strerror}): start it at a terminal") from error
    if not os.isatty(fd):
        os.close(fd)
        raise NoTerminalError("Ansible's input is no terminal: start it at one")
    return fd


def run_at(terminal_fd: int, argv: Sequence[str]) -> int:
    """Run ARGV at the terminal TERMINAL_FD until it ends; its exit code, 128 + n where signal n ended it, 127 where there is no such program."""
    child, master_fd = pty.fork()
    if child == 0:
        with suppress(OSError):
            os.execvp(argv[0], list(argv))
        os._exit(127)
    before = termios.tcgetattr(terminal_fd)
    try:
        tty.setraw(terminal_fd)
        if not _copy(terminal_fd, master_fd):
            os.kill(child, signal.SIGHUP)  # the user's window is closed
    finally:
        with suppress(termios.error):
            termios.tcsetattr(terminal_fd, termios.TCSAFLUSH, before)
        os.close(master_fd)
        _pid, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _copy(terminal_fd: int, master_fd: int) -> bool:
    """Copy both ways until the command at MASTER_FD has ended; False where it was the user's terminal that went."""
    size = b""
    while True:
        size = _copy_size(terminal_fd, master_fd, size)
        ready, _writable, _failed = select.select([terminal_fd, master_fd], [], [], _LOOK_S)
        for source, target in ((master_fd, terminal_fd), (terminal_fd, master_fd)):
            if source in ready:
                data = _read(source)
                if not data:
                    return source == master_fd
                while data:
                    data = data[os.write(target, data) :]


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, _SIZE)
    except OSError as error:
        if error.errno == errno.EIO:  # nobody has the other end any more
            return b""
        raise


def _copy_size(terminal_fd: int, master_fd: int, known: bytes) -> bytes:
    size = fcntl.ioctl(terminal_fd, termios.TIOCGWINSZ, bytes(8))
    if size != known:
        fcntl.ioctl(master_fd, termios.TIOCSWINSZ, size)
    return size
