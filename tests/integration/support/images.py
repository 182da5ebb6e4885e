# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The container images that tests run: made here, since no registry can be asked."""

from __future__ import annotations

import os
import subprocess

from ansible_collections.crashcart.fleet.tools.busybox_archive import find_busybox, make_archive
from ansible_collections.crashcart.fleet.tools.make_container_image import make_image
from support import host

WORKLOAD = os.path.join(os.path.dirname(__file__), "workload.py")


def make_all(prefix: str) -> None:
    """Make the images PREFIX/NAME that the engine does not have: busybox, static, python, redis, nginx."""
    makers = {
        "busybox": _make_busybox,
        "static": _make_static,
        "python": _make_python,
        "redis": _make_redis,
        "nginx": _make_nginx,
    }
    for name, maker in makers.items():
        tag = f"{prefix}/{name}"
        if host.run("docker", "image", "inspect", tag, check=False).returncode != 0:
            maker(tag)


def _make_busybox(tag: str) -> None:
    """A small system with a shell."""
    subprocess.run(
        ["docker", "import", "--change", 'CMD ["/bin/sleep", "100000"]', "-", tag],
        input=make_archive(),
        capture_output=True,
        check=True,
    )


def _make_static(tag: str) -> None:
    """Nothing but one static program."""
    make_image(tag, files={"/sleep": find_busybox()}, cmd=["/sleep", "100000"])


def _make_python(tag: str) -> None:
    """Python and no shell, with the workload of exactly known system calls."""
    make_image(tag, packages=["python3"], files={"/workload.py": WORKLOAD}, cmd=["/usr/bin/python3", "/workload.py"])


def _make_redis(tag: str) -> None:
    make_image(tag, packages=["redis-server"], cmd=["/usr/bin/redis-server", "--port", "6379"])


def _make_nginx(tag: str) -> None:
    here = os.path.dirname(__file__)
    files = {"/nginx.conf": f"{here}/nginx.conf", "/etc/passwd": f"{here}/passwd", "/etc/group": f"{here}/group"}
    make_image(tag, packages=["nginx-light"], files=files, cmd=["/usr/sbin/nginx", "-c", "/nginx.conf"])
