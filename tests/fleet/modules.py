# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the collection's modules on a guest without Ansible, for tests of the modules alone."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any, Protocol

import ansible
import fleet
import processes
from support import fetching
from support.host import ModuleFailed

_PLACE = "/run/modules"
_SUPPORT = fleet.ROOT / "tests/integration/support"


class Host(Protocol):
    """A host that ssh reaches: a guest of the fleet, or a host with engines of another release."""

    name: str

    def run(self, command: str, stdin: bytes = b"") -> str:
        """Run the shell command COMMAND there as root and return its output."""

    def make_ssh_command(self) -> list[str]:
        """Return the ssh command for a root shell there."""


class ModuleServer:
    """A process on HOST that runs modules, one at a time. Use as a context manager."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> ModuleServer:
        self._host.run(f"mkdir -p {_PLACE} && tar -xz -C {_PLACE}", _pack())
        command = (
            f"cd {_PLACE} && exec env DOCKER_TIMEOUT=600 python3 -m support.module_server"  # emulated engines are slow
        )
        self._process = processes.start([*self._host.make_ssh_command(), command], stdin=subprocess.PIPE)
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._process is not None
        processes.end(self._process)

    def call(self, module: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Run MODULE with ARGUMENTS and return its result. Raises ModuleFailed when it fails."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps([module, arguments]) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        assert line, process.communicate()
        result: dict[str, Any] = json.loads(line)
        if result.get("failed"):
            raise ModuleFailed(result)
        return result

    def fetch(self, dest: Path, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        """Run ftrace_fetch with ARGUMENTS and return the captures, whose files are below DEST."""

        def call(module: str, **options: Any) -> dict[str, Any]:
            return self.call(module, options)

        def take(paths: list[str]) -> bytes:
            return base64.b64decode(self._host.run(f"base64 {paths[0]} && rm {' '.join(paths)}"))

        return fetching.fetch(call, take, dest, self._host.name, **arguments)


def _pack() -> bytes:
    """Return an archive of Ansible's library for targets, the collection's modules and the module server."""
    top = Path(ansible.__file__).parent
    places = {
        "ansible/module_utils": top / "module_utils",
        "ansible_collections/crashcart/fleet/plugins/modules": fleet.ROOT / "plugins/modules",
        "ansible_collections/crashcart/fleet/plugins/module_utils": fleet.ROOT / "plugins/module_utils",
        **{f"support/{name}.py": _SUPPORT / f"{name}.py" for name in ("__init__", "host", "module_server", "speed")},
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for name, path in places.items():
            archive.add(path, name, filter=lambda member: None if "__pycache__" in member.name else member)
        archive.addfile(
            tarfile.TarInfo("ansible/__init__.py")
        )  # the controller's file would import packages of the controller
    return buffer.getvalue()
