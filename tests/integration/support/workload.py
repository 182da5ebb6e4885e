# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make exactly 300 openat (100 of them fail), 50 connect (all fail) and 200 write on each SIGUSR1. This program runs in a container."""

from __future__ import annotations

import os
import signal
import socket
import sys

OPENS, MISSING, CONNECTS, WRITES = 300, 100, 50, 200

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
null = os.open("/dev/null", os.O_WRONLY)
print("ready", flush=True)
while True:
    signal.sigwait({signal.SIGUSR1})
    for number in range(OPENS):
        try:
            os.close(os.open("/dev/null" if number >= MISSING else f"/nonesuch/{number}", os.O_RDONLY))
        except FileNotFoundError:
            continue
    for _number in range(CONNECTS):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect_ex("/nonesuch.sock")
    for _number in range(WRITES - 1):
        os.write(null, b"x")
    # The last write goes to the container's log and tells tests that the round is complete.
    sys.stdout.write("done\n")
    sys.stdout.flush()
