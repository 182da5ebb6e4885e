# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The programs of faults.c that every container of the table needs, as Python programs make these faults. This file runs in containers."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

CONFIG = "/etc/app/app.conf"
LOCK = "/var/lib/app/data.lock"
SPOOL = "/var/spool/app/queue"


def read(path: str) -> None:
    """Read the file PATH."""
    with open(path, encoding="ascii") as file:
        file.read()


def dial(host: str, port: int) -> None:
    """Connect to HOST, by name or number, and hang up."""
    with socket.create_connection((host, port)):
        pass


def lock() -> None:
    """Have a child hold the lock, and wait for it."""
    if os.fork() == 0:
        with open(LOCK, "r+", encoding="ascii") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            time.sleep(1e6)
    time.sleep(1)
    with open(LOCK, "r+", encoding="ascii") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)


def fork() -> None:
    """Leave one more child behind."""
    if os.fork() == 0:
        time.sleep(1e6)


def append() -> None:
    """Write more to the queue."""
    with open(SPOOL, "ab", buffering=0) as file:
        file.write(bytes(16384))


def serve() -> None:
    """Accept connections at the two ports of a database."""
    for port in (5432, 5433):
        server = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=lambda server=server: [server.accept()[0].close() for _turn in iter(int, 1)]).start()


def work() -> None:
    """Read the configuration, and ask the database."""
    read(os.environ.get("APP_CONFIG", CONFIG))
    dial("127.0.0.1", int(os.environ.get("APP_PORT", "5432")))


KEPT = []
PROGRAMS = {
    "missing_file": lambda: read("/etc/app/settings.conf"),
    "refused": lambda: dial("127.0.0.1", 5432),
    "denied": lambda: read("/etc/app/secret.key"),
    "lock": lock,
    "leak": lambda: KEPT.append(open(CONFIG, encoding="ascii")),
    "forks": fork,
    "name_server": lambda: dial("db.internal.example", 5432),
    "architecture": lambda: subprocess.run(["/opt/app/worker"], check=False),
    "full": append,
    "configured": work,
}

if __name__ == "__main__":
    if sys.argv[1] == "configured":
        serve()
    while True:
        with suppress(OSError):
            PROGRAMS[sys.argv[1]]()
        time.sleep(0.1)
