# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The application that the demo diagnoses: like many others it hides the reason of a failure."""

from __future__ import annotations

import http.server
import socket

CONFIGURATION = "/etc/shop/database.conf"
DEFAULT_DATABASE = "127.0.0.1:5432"


def read_database_address() -> tuple[str, int]:
    """Return host and port of the database from the configuration, or the default address where the file cannot be read."""
    try:
        with open(CONFIGURATION, encoding="utf-8") as file:
            address = file.read().strip()
    except OSError:
        address = DEFAULT_DATABASE
    host, _colon, port = address.rpartition(":")
    return host, int(port)


class Shop(http.server.BaseHTTPRequestHandler):
    """The shop's web server."""

    def do_GET(self) -> None:
        """Answer with a welcome, or with an error where the database refuses a connection."""
        try:
            socket.create_connection(read_database_address()).close()
            status, text = 200, "Welcome\n"
        except OSError:
            status, text = 500, "Cannot connect to the database\n"
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_arguments: object) -> None:
        """Write no log, since nobody reads it."""


http.server.HTTPServer(("127.0.0.1", 8080), Shop).serve_forever()
