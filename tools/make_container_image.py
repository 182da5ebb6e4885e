# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make container images from Debian packages or single files, where no registry can be reached.

Usage: make_container_image.py TAG [--package NAME]… [--file PATH_IN_IMAGE=PATH]… [--cmd WORD…]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
from contextlib import closing
from typing import IO

from ansible_collections.crashcart.fleet.plugins.module_utils.architectures import find_architecture
from ansible_collections.crashcart.fleet.plugins.module_utils.image.apt import PrivateApt, Repository

_SHELLS = ("bash", "dash", "sh", "rbash", "busybox")
_LISTS_VALID_S = 3600.0
CACHE = os.path.expanduser("~/.cache/crashcart")


def make_image(
    tag: str,
    *,
    packages: list[str] | None = None,
    files: dict[str, str] | None = None,
    cmd: list[str] | None = None,
    shells: bool = False,
) -> None:
    """Import an image TAG into the engine of DOCKER_HOST, with what write_archive puts into it. CMD is the image's command."""
    change = ["--change", "CMD [" + ", ".join(f'"{word}"' for word in cmd) + "]"] if cmd else []
    with tempfile.TemporaryFile() as archive:
        write_archive(archive, packages=packages, files=files, shells=shells)
        archive.seek(0)
        subprocess.run(["docker", "import", *change, "-", tag], stdin=archive, stdout=subprocess.DEVNULL, check=True)


def write_archive(
    archive: IO[bytes], *, packages: list[str] | None = None, files: dict[str, str] | None = None, shells: bool = False
) -> None:
    """Write a tar file with PACKAGES, their dependencies and FILES to ARCHIVE, as `docker import` takes it.

    FILES maps paths in the image to files of this machine. Shells are left out unless SHELLS is set.
    Raises ValueError where a path in FILES leads through a symlink.
    """
    with tempfile.TemporaryDirectory() as tree:
        if packages:
            _unpack(packages, tree)
            if not shells:
                _remove_shells(tree)
        for target, source in (files or {}).items():
            path = os.path.join(tree, target.lstrip("/"))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            # A package may have a link there, such as /usr/lib/ssl/openssl.cnf, which leads to a file of this machine.
            if os.path.realpath(path) != os.path.join(os.path.realpath(tree), target.lstrip("/")):
                raise ValueError(f"{target} leads through a symlink: name the file that it leads to")
            shutil.copy(source, path)
        words = ["tar", "-C", tree, "--owner=0", "--group=0", "-cf", "-", "."]
        subprocess.run(words, stdout=archive, check=True)


def _unpack(packages: list[str], tree: str) -> None:
    with closing(PrivateApt(CACHE, Repository(find_architecture()))) as apt:
        apt.update(_LISTS_VALID_S)
        closure = apt.resolve(packages)
        apt.download(packages, closure, offline=False)
        for package in closure:
            subprocess.run(["dpkg-deb", "-x", package.path, tree], check=True)


def _remove_shells(tree: str) -> None:
    for folder in ("bin", "usr/bin"):
        for name in _SHELLS:
            path = os.path.join(tree, folder, name)
            if os.path.lexists(path):
                os.unlink(path)


def main() -> None:
    """Make the image that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tag")
    parser.add_argument("--package", action="append", default=[])
    parser.add_argument("--file", action="append", default=[])
    parser.add_argument("--cmd", nargs=argparse.REMAINDER, default=[])
    arguments = parser.parse_args()
    files = dict(pair.split("=", 1) for pair in arguments.file)
    make_image(arguments.tag, packages=arguments.package, files=files, cmd=arguments.cmd)


if __name__ == "__main__":
    main()
