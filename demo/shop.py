# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The patient of the demo: a web application that swallows what went wrong, as so many do."""

from __future__ import annotations

import http.server
import socket

CONFIGURATION = "/etc/shop/database.conf"
DEFAULT_DATABASE = "127.0.0.1:5432"


def read_database_address() -> tuple[str, int]:
    try:
        with open(CONFIGURATION, encoding="utf-8") as file:
            address = file.read().strip()
    except OSError:
        address = DEFAULT_DATABASE
    host, _colon, port = address.rpartition(":")
    return host, int(port)


class Shop(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        try:
            socket.create_connection(read_database_address()).close()
            status, text = 200, "Welcome\n"
        except OSError:
            status, text = 500, "Cannot connect to the database\n"
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_arguments: object) -> None:
        """Say nothing: nobody reads these logs."""


http.server.HTTPServer(("127.0.0.1", 8080), Shop).serve_forever()
