# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The programs of an image: their paths, and the variables that they need."""

from __future__ import annotations

import os
import posixpath

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.jobs import ExecutionError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import mounts
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import read_all

_ENVIRONMENT_FILE = "etc/crashcart.env"
_MAX_LINKS = 40  # as many as the kernel follows


def encode(text: str) -> bytes:
    """Return TEXT in UTF-8, the encoding of names in images and containers, whatever the host's locale is."""
    return text.encode("utf-8", "surrogateescape")


def decode(name: bytes) -> str:
    """Return the text from which encode makes NAME."""
    return name.decode("utf-8", "surrogateescape")


def parse_environment(text: str) -> dict[str, str]:
    """Return the variables in an image's environment file, which has lines of NAME=VALUE; '#' begins a comment line."""
    variables = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and name.strip() and not line.startswith("#"):
            variables[name.strip()] = value
    return variables


def read_environment(mount_fd: int, prefix: str) -> dict[str, str]:
    """Return the variables for tools of the image of MOUNT_FD at PREFIX: a plain base and the image's own; HOME is not among them."""
    variables = {
        "LANG": "C.UTF-8",
        "PATH": f"{prefix}/bin:{prefix}/sbin",
        "TERM": "dumb",
    }
    try:
        fd = mounts.open_beneath(mount_fd, _ENVIRONMENT_FILE, os.O_RDONLY)
    except FileNotFoundError:
        return variables
    try:
        variables.update(parse_environment(read_all(fd).decode("utf-8")))
    finally:
        os.close(fd)
    return variables


def is_in_image(program: str, mount_fd: int, prefix: str) -> bool:
    """Return True if the path PROGRAM is in the image of MOUNT_FD at PREFIX, and no symbolic link on it leads out of the image."""
    if not program.startswith("/"):
        return False  # it depends on the command's current folder
    waiting, place, links = program.split("/"), "", 0
    while waiting:
        name, *waiting = waiting
        if name in ("", "."):
            continue
        place = posixpath.dirname(place) if name == ".." else f"{place.rstrip('/')}/{name}"
        if not place.startswith(prefix + "/"):
            if not (prefix + "/").startswith(place.rstrip("/") + "/"):
                return False
            continue
        try:
            aim = decode(os.readlink(encode(place[len(prefix) + 1 :]), dir_fd=mount_fd))
        except OSError:
            continue  # no link, or not there at all
        links += 1
        if links > _MAX_LINKS:
            return False
        place = "" if aim.startswith("/") else posixpath.dirname(place)
        waiting = [*aim.split("/"), *waiting]
    return place.startswith(prefix + "/")


def find_program(name: str, mount_fd: int, prefix: str, search: str) -> str:
    """Return the path to run for NAME: a path as it is, a bare name from those folders of SEARCH that are in the image.

    A bare name never means a program of the container. Raises ExecutionError where the image has no program NAME.
    """
    if "/" in name:
        return name
    for folder in search.split(":"):
        if not folder.startswith(prefix + "/"):
            continue
        try:
            os.stat(encode(f"{folder[len(prefix) + 1 :]}/{name}"), dir_fd=mount_fd, follow_symlinks=False)
        except FileNotFoundError:
            continue
        return f"{folder}/{name}"
    raise ExecutionError(
        f"the image has no program called {name!r}: add its package to the image,"
        " or give the whole path of a program in the container"
    )
