# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Call getppid for SECONDS on each SIGUSR1, RATE times a second at most, and print the number of calls. This runs in a container.

Usage: workload_storm.py SECONDS RATE
"""

from __future__ import annotations

import os
import signal
import sys
import time

PIECE = 200  # calls in one burst, which small buffers have to hold

seconds, rate = float(sys.argv[1]), int(sys.argv[2])
call = os.getppid
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
print("ready", flush=True)
while True:
    signal.sigwait({signal.SIGUSR1})
    count, begun = 0, time.monotonic()
    while time.monotonic() - begun < seconds:
        for _number in range(PIECE):
            call()
        count += PIECE
        pause_s = begun + count / rate - time.monotonic()
        if pause_s > 0.001:
            time.sleep(pause_s)
    print("calls", count, time.monotonic() - begun, flush=True)
