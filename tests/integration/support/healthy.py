# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers of healthy servers from Debian packages, idle or under load."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.crashcart.fleet.tools.make_container_image import make_image
from support import host, images

_CLIENTS = Path(__file__).with_name("clients.py")
_POSTGRESQL = "/usr/lib/postgresql/15/bin"
# The tables and the indices of pgbench would take longer to fill than to ask.
_PGBENCH = (f"{_POSTGRESQL}/pgbench", "-h", "127.0.0.1", "-U", "postgres", "postgres")


@dataclass(frozen=True)
class Server:
    """A server in a container.

    IMAGE: its name without prefix. COMMAND: () for the image's own. OPTIONS: of `docker run`. PORT: of 127.0.0.1, where it listens.
    CLIENT: what asks it, see clients.py; pgbench.
    """

    image: str
    port: int
    client: str
    command: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


SERVERS: Mapping[str, Server] = {
    "nginx": Server("nginx", 8080, "http"),
    "redis": Server("redis", 6379, "redis"),
    "postgresql": Server(
        "postgresql", 5432, "pgbench", options=("--user", "999:999", "--tmpfs", "/data:uid=999,gid=999,mode=0700")
    ),
    "python": Server(
        "python",
        8000,
        "http",
        ("/usr/bin/python3", "-m", "http.server", "8000", "--bind", "127.0.0.1", "--directory", "/etc"),
    ),
    "node": Server("node", 3000, "http"),
}


def make_images(prefix: str) -> None:
    """Make the images of SERVERS that the engine lacks."""
    images.make(prefix, "nginx", "redis", "python")
    for name, maker in _MAKERS.items():
        tag = f"{prefix}/{name}"
        if host.run("docker", "image", "inspect", tag, check=False).returncode != 0:
            with tempfile.TemporaryDirectory() as folder:
                maker(tag, Path(folder))


@contextmanager
def run_servers(prefix: str) -> Iterator[dict[str, str]]:
    """Start a container of each of SERVERS, wait until they listen, and give their names. They are removed at the end."""
    with ExitStack() as stack:
        names = {kind: f"cc-{kind}-{os.getpid()}" for kind in SERVERS}
        for kind, server in SERVERS.items():
            stack.callback(host.docker, "rm", "-f", names[kind], check=False)
            host.docker(
                *("run", "-d", "--name", names[kind], "--network", "none", *server.options),
                *(f"{prefix}/{server.image}", *server.command),
            )
        for kind, server in SERVERS.items():
            host.wait_until(lambda name=names[kind], port=server.port: _listens(name, port), 60)
        yield names


@contextmanager
def load(prefix: str, names: Mapping[str, str]) -> Iterator[None]:
    """Ask all servers, whose containers have NAMES, from outside of the containers until the context ends."""
    with ExitStack() as stack:
        for kind, server in SERVERS.items():
            if server.client == "pgbench":
                _start_pgbench(stack, prefix, names[kind])
                continue
            words = ("nsenter", "-t", str(host.find_pid(names[kind])), "-n", sys.executable, str(_CLIENTS))
            client = stack.enter_context(
                host.start(*words, server.client, str(server.port), stdout=subprocess.PIPE, text=True)
            )
            assert client.stdout is not None
            assert client.stdout.readline() == "asking\n", kind
        yield


def _start_pgbench(stack: ExitStack, prefix: str, server: str) -> None:
    """Fill tables of the database in container SERVER, and ask it, from a container with the same network."""
    client = f"{server}-client"
    run = ("--network", f"container:{server}", "--entrypoint", _PGBENCH[0], f"{prefix}/postgresql", *_PGBENCH[1:])
    host.docker("run", "--rm", *run, "--initialize", "--quiet")
    stack.callback(host.docker, "rm", "-f", client, check=False)
    host.docker("run", "-d", "--name", client, *run, "--client", "2", "--rate", "200", "--time", "100000")


def _listens(name: str, port: int) -> bool:
    """Return True if container NAME listens at PORT of 127.0.0.1, by proc(5)'s net/tcp."""
    lines = Path(f"/proc/{host.find_pid(name)}/net/tcp").read_text(encoding="ascii").splitlines()
    return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in lines[1:])


def _make_postgresql(tag: str, folder: Path) -> None:
    texts = {
        "passwd": "root:x:0:0::/:/bin/sh\npostgres:x:999:999::/data:/bin/sh\n",
        "group": "root:x:0:\npostgres:x:999:\n",
        "start": f"""#!/bin/sh
export LC_ALL=C
{_POSTGRESQL}/initdb --auth=trust --username=postgres /data/main >/data/log
exec {_POSTGRESQL}/postgres -D /data/main -k /tmp -h 127.0.0.1
""",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="ascii")
    (folder / "start").chmod(0o755)
    files = {"/etc/passwd": "passwd", "/etc/group": "group", "/start": "start"}
    make_image(
        tag,
        packages=["postgresql-15", "bash", "coreutils", "dash"],
        files={place: str(folder / name) for place, name in files.items()},
        cmd=["/start"],
        shells=True,
    )


def _make_node(tag: str, folder: Path) -> None:
    script = folder / "server.js"
    script.write_text(
        "require('http').createServer((request, response) => response.end('ok')).listen(3000, '127.0.0.1');\n",
        encoding="ascii",
    )
    make_image(tag, packages=["nodejs"], files={"/server.js": str(script)}, cmd=["/usr/bin/node", "/server.js"])


_MAKERS: Mapping[str, Callable[[str, Path], None]] = {"postgresql": _make_postgresql, "node": _make_node}
