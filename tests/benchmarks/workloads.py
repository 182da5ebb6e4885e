# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run workloads that tracers slow down, and print the microseconds of one round of each as JSON.

Usage: workloads.py PART; PART is the fraction of the full number of rounds. This program runs in containers and on hosts, and needs
only Python's standard library.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable

_null = os.open(os.devnull, os.O_WRONLY)
_here, _there = socket.socketpair()


def _write() -> None:
    os.write(_null, b"x")


def _look_at_files() -> None:
    os.stat("/etc")
    os.close(os.open("/etc", os.O_RDONLY))


def _talk() -> None:
    _here.send(b"x")
    _there.recv(1)


def _fork() -> None:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)


WORKLOADS: dict[str, tuple[Callable[[], None], int]] = {
    "write one byte": (_write, 200_000),
    "stat, open, close": (_look_at_files, 50_000),
    "send and receive": (_talk, 50_000),
    "fork and wait": (_fork, 400),
}


def main() -> None:
    """Run all workloads and print their times."""
    taken = {}
    for name, (function, full) in WORKLOADS.items():
        count = max(1, int(full * float(sys.argv[1])))
        start = time.perf_counter()
        for _number in range(count):
            function()
        taken[name] = (time.perf_counter() - start) / count * 1e6
    print(json.dumps(taken))


if __name__ == "__main__":
    main()
