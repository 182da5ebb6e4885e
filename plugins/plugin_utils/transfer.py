# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Transfer files that are compressed already."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def uncompressed(connection: Any) -> Iterator[None]:
    """Let CONNECTION transfer files without ssh's compression, which Ansible asks for by default.

    Images and captures are compressed, so ssh's compression would only cost time (several times that of the transfer). It belongs to
    an ssh session, so the transfer gets a session of its own beside the shared one.
    """
    shared = connection.get_option("ssh_args") if connection.transport == "ssh" else ""
    if "-C" not in shlex.split(shared or ""):
        yield
        return
    connection.set_option("ssh_args", make_arguments(shared))
    try:
        yield
    finally:
        connection.set_option("ssh_args", shared)


def make_arguments(shared: str) -> str:
    """Return the ssh arguments SHARED without compression and without options that share a session."""
    kept: list[str] = []
    words = iter(shlex.split(shared))
    for word in words:
        if word == "-C":
            continue
        if word == "-o":
            option = next(words, "")
            if not option.startswith(("ControlMaster", "ControlPersist", "ControlPath")):
                kept += [word, option]
            continue
        if not word.startswith(("-oControlMaster", "-oControlPersist", "-oControlPath")):
            kept.append(word)
    return shlex.join([*kept, "-o", "Compression=no", "-o", "ControlPath=none"])
