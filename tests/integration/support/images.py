# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the container images that tests run, since no registry can be reached."""

from __future__ import annotations

import os
import subprocess
import tempfile
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.image.builder import read_manifest
from ansible_collections.crashcart.fleet.tools import make_container_image
from ansible_collections.crashcart.fleet.tools.busybox_archive import find_busybox, make_archive
from ansible_collections.crashcart.fleet.tools.make_container_image import make_image
from support import host

WORKLOAD = os.path.join(os.path.dirname(__file__), "workload.py")


def make(prefix: str, *names: str) -> None:
    """Make those images PREFIX/NAME that the engine lacks. NAMES: busybox, static, python, redis, nginx, debian or musl."""
    makers = {
        "busybox": _make_busybox,
        "static": _make_static,
        "python": _make_python,
        "redis": _make_redis,
        "nginx": _make_nginx,
        "debian": _make_debian,
        "musl": _make_musl,
    }
    for name in names:
        tag = f"{prefix}/{name}"
        if host.run("docker", "image", "inspect", tag, check=False).returncode != 0:
            makers[name](tag)


def _make_busybox(tag: str) -> None:
    """Make a small system with a shell."""
    subprocess.run(
        ["docker", "import", "--change", 'CMD ["/bin/sleep", "100000"]', "-", tag],
        input=make_archive(),
        capture_output=True,
        check=True,
    )


def _make_static(tag: str) -> None:
    """Make an image with one static program and nothing else."""
    make_image(tag, files={"/sleep": find_busybox()}, cmd=["/sleep", "100000"])


def _make_python(tag: str) -> None:
    """Make an image with Python, without a shell, and with a workload of exactly known system calls."""
    make_image(tag, packages=["python3"], files={"/workload.py": WORKLOAD}, cmd=["/usr/bin/python3", "/workload.py"])


def _make_redis(tag: str) -> None:
    make_image(tag, packages=["redis-server"], cmd=["/usr/bin/redis-server", "--port", "6379"])


def _make_nginx(tag: str) -> None:
    here = os.path.dirname(__file__)
    files = {"/nginx.conf": f"{here}/nginx.conf", "/etc/passwd": f"{here}/passwd", "/etc/group": f"{here}/group"}
    make_image(tag, packages=["nginx-light"], files=files, cmd=["/usr/sbin/nginx", "-c", "/nginx.conf"])


def _make_debian(tag: str) -> None:
    """Make an image with some of Debian's essential packages and their shell."""
    packages = ["base-files", "bash", "coreutils", "libc-bin"]
    make_image(tag, packages=packages, cmd=["/bin/sleep", "100000"], shells=True)


def _make_musl(tag: str) -> None:
    """Make an image with a dynamic program and musl's loader and library."""
    with tempfile.TemporaryDirectory() as folder:
        compile_with_musl(folder)
        make_image(tag, packages=["musl"], files={"/bin/wait": f"{folder}/wait"}, cmd=["/bin/wait"])


def compile_with_musl(folder: str) -> None:
    """Make FOLDER/wait, a dynamic program that uses musl, prints "musl" and waits."""
    install_packages("musl-tools")
    source = os.path.join(folder, "wait.c")
    with open(source, "w", encoding="ascii") as file:
        file.write(
            '#include <stdio.h>\n#include <unistd.h>\nint main() { puts("musl"); fflush(stdout); return pause(); }\n'
        )
    subprocess.run(["musl-gcc", "-o", os.path.join(folder, "wait"), source], check=True)


def install_packages(*names: str) -> None:
    """Install those of the Debian packages NAMES that are missing."""
    tool = os.path.join(os.path.dirname(make_container_image.__file__), "install_packages.sh")
    subprocess.run([tool, *names], check=True)


def build(path: os.PathLike[str], **options: Any) -> dict[str, Any]:
    """Build the tool image PATH by OPTIONS and return its manifest. The default format is ext4, which needs no time to compress."""
    wish = {"cache": os.path.expanduser("~/.cache/crashcart"), "format": "ext4", **options}
    image: dict[str, Any] = host.call_module("crashcart_build", dest=str(path), **wish)["image"]
    return image


def install(path: os.PathLike[str] | str, name: str) -> None:
    """Put the tool image PATH into this host's store as NAME, as a push does but without Ansible, which takes seconds."""
    host.call_module("crashcart_image", src=str(path), name=name, _manifest=read_manifest(str(path)), _staged=str(path))
