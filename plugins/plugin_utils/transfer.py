# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""File transfers of what is compressed already."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def uncompressed(connection: Any) -> Iterator[None]:
    """Let CONNECTION transfer files without ssh's own compression, which Ansible asks for by default.

    Images and captures are compressed, so it would only cost time (several times that of the transfer). Compression belongs
    to an ssh session, so the transfer gets one of its own, beside the shared one.
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
    """The ssh arguments SHARED without compression and without the sharing of a session."""
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
