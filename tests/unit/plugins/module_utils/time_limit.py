# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A limit on the time that a test of hostile input may take."""

from __future__ import annotations

import contextlib
import signal


@contextlib.contextmanager
def limit(seconds=120):
    """Fails what does not end in time, instead of hanging with it."""

    def fail(_signal, _frame):
        raise AssertionError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
