# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a second Docker engine, whose containers' root is an unprivileged user on the host (userns-remap)."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from ansible_collections.crashcart.fleet.tools import busybox_archive, make_container_image
from support import host
from support.accounts import make_account

_ENGINE = os.path.join(os.path.dirname(make_container_image.__file__), "engine.sh")
_USER = "cc-test-remap"


@contextmanager
def run_remapped(name: str) -> Iterator[str]:
    """Run a container NAME in an engine of its own and give the engine's value for DOCKER_HOST."""
    # The containers' root could not enter pytest's folder.
    folder = tempfile.mkdtemp(prefix="crashcart-remapped-")
    os.chmod(folder, 0o711)
    try:
        with make_account(_USER, "--no-create-home"):
            url = host.run(_ENGINE, "start", f"{folder}/engine", "--userns-remap", _USER).stdout.strip()
            try:
                archive = busybox_archive.make_archive()
                tag = "crashcart-test/busybox"
                docker = ["docker", "-H", url]
                subprocess.run([*docker, "import", "-", tag], input=archive, check=True, stdout=subprocess.DEVNULL)
                host.run(*docker, "run", "-d", "--name", name, "--network", "none", tag, "/bin/sleep", "100000")
                yield url
            finally:
                host.run(_ENGINE, "stop", f"{folder}/engine")
    finally:
        shutil.rmtree(folder)
