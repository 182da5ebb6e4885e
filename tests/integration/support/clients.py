# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask a server on this network's loopback device until killed: clients.py http|redis PORT. It prints a line after its first answers."""

from __future__ import annotations

import http.client
import itertools
import socket
import sys
import time

PAUSE_S = 0.002  # between requests: a load, and not a flood


def ask_http(port: int) -> None:
    """Ask on a connection that stays, and on one that is made anew."""
    kept = http.client.HTTPConnection("127.0.0.1", port)
    for number in itertools.count():
        new = http.client.HTTPConnection("127.0.0.1", port)
        for connection in (kept, new):
            connection.request("GET", "/")
            connection.getresponse().read()
            time.sleep(PAUSE_S)
        new.close()
        tell(number)


def ask_redis(port: int) -> None:
    """Set and get keys on a connection that stays, and on one that is made anew."""
    with socket.create_connection(("127.0.0.1", port)) as kept:
        for number in itertools.count():
            with socket.create_connection(("127.0.0.1", port)) as new:
                for connection in (kept, new):
                    connection.sendall(b"SET key%d value\r\nGET key%d\r\nINCR count\r\n" % (number % 100, number % 100))
                    connection.recv(4096)
                    time.sleep(PAUSE_S)
            tell(number)


def tell(number: int) -> None:
    """Print a line after the first round."""
    if number == 0:
        print("asking", flush=True)


if __name__ == "__main__":
    {"http": ask_http, "redis": ask_redis}[sys.argv[1]](int(sys.argv[2]))
