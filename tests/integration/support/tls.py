# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Serve the tests' engine over TLS, with certificates of a private CA and a server that forwards to the engine's socket."""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from support import host


def make_certificates(folder: Path) -> None:
    """Make ca.pem, cert.pem and key.pem in FOLDER in the form that `docker` takes. The certificate is for server and client."""
    folder.mkdir()
    new = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1")
    ca = ("-keyout", f"{folder}/ca-key.pem", "-out", f"{folder}/ca.pem", "-subj", "/CN=tests")
    host.run(*new, *ca)
    signing = ("-CA", f"{folder}/ca.pem", "-CAkey", f"{folder}/ca-key.pem")
    request = ("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1")
    host.run(*request, "-keyout", f"{folder}/key.pem", "-out", f"{folder}/request.pem")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    sign = ("openssl", "x509", "-req", "-in", f"{folder}/request.pem", "-days", "1", "-CAcreateserial")
    host.run(*sign, *signing, "-extfile", f"{folder}/names", "-out", f"{folder}/cert.pem")


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve the engine of DOCKER_HOST over TLS to clients with a certificate of FOLDER's CA, and give the URL."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(folder / "ca.pem"))
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    path = os.environ["DOCKER_HOST"][len("unix://") :]
    loop = asyncio.new_event_loop()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine_reader, engine_writer = await asyncio.open_unix_connection(path)
        await asyncio.gather(_copy(reader, engine_writer), _copy(engine_reader, writer))

    server = loop.run_until_complete(asyncio.start_server(pass_on, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while part := await reader.read(1 << 16):
            writer.write(part)
            await writer.drain()
    writer.close()
