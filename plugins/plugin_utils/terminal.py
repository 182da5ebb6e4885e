# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a command at the terminal that Ansible was started at.

A task runs in a process that has no terminal, in a session of its own. So the command gets a new terminal, and this module copies
the data between that terminal and the user's. Sources: pty(7), tty_ioctl(4), PEP 475.
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

_LOOK_S = 0.5  # interval of reading the size of the user's window: this process gets no SIGWINCH
_SIZE = 65536


class NoTerminalError(Exception):
    """An Ansible that was not started at a terminal; the text names the next step."""


def open_terminal(pid: int) -> int:
    """Open the terminal that is the stdin of process PID and return its descriptor. Raises NoTerminalError where stdin is no terminal."""
    try:
        fd = os.open(f"/proc/{pid}/fd/0", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise NoTerminalError(f"Ansible's input cannot be opened ({error.strerror}): start it at a terminal") from error
    if not os.isatty(fd):
        os.close(fd)
        raise NoTerminalError("Ansible's input is no terminal: start it at one")
    return fd


def run_at(terminal_fd: int, argv: Sequence[str]) -> int:
    """Run ARGV at the terminal TERMINAL_FD and return its exit code.

    The code is 128 + n where signal n has ended the program, and 127 where there is no such program.
    """
    child, master_fd = pty.fork()
    if child == 0:
        with suppress(OSError):
            os.execvp(argv[0], list(argv))
        os._exit(127)
    before = termios.tcgetattr(terminal_fd)
    try:
        tty.setraw(terminal_fd)
        if not _copy(terminal_fd, master_fd):
            os.kill(child, signal.SIGHUP)  # the user has closed the window
    finally:
        with suppress(termios.error):
            termios.tcsetattr(terminal_fd, termios.TCSAFLUSH, before)
        os.close(master_fd)
        _pid, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _copy(terminal_fd: int, master_fd: int) -> bool:
    """Copy in both directions until one side ends. Return True if that is the command at MASTER_FD, False for the user's terminal."""
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
        if error.errno == errno.EIO:  # no process has the other end open any more
            return b""
        raise


def _copy_size(terminal_fd: int, master_fd: int, known: bytes) -> bytes:
    size = fcntl.ioctl(terminal_fd, termios.TIOCGWINSZ, bytes(8))
    if size != known:
        fcntl.ioctl(master_fd, termios.TIOCSWINSZ, size)
    return size
