# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sinks for the output of commands: memory with a bound, or files of the host."""

from __future__ import annotations

import os
import re
from contextlib import suppress

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.jobs import ExecutionError, Output
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_missing

STREAMS = ("stdout", "stderr")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")
_MAX_NAME = 64


class Sink:
    """A sink for bytes: memory, or the file FD with the path PATH; bytes beyond BOUND are counted and dropped."""

    def __init__(self, bound: int | None, fd: int = -1, path: str = "") -> None:
        self.size = 0
        self.path = path
        self._bound = bound
        self._fd = fd
        self._parts: list[bytes] = []

    @property
    def is_truncated(self) -> bool:
        """Return True if bytes were dropped."""
        return self._bound is not None and self.size > self._bound

    def write(self, part: bytes) -> None:
        """Keep PART, up to the bound; raises OSError where the file cannot be written."""
        kept = part if self._bound is None else part[: max(0, self._bound - self.size)]
        self.size += len(part)
        if self._fd < 0:
            self._parts.append(kept)
            return
        while kept:
            kept = kept[os.write(self._fd, kept) :]

    def read(self) -> bytes:
        """Return the bytes that are kept in memory."""
        return b"".join(self._parts)

    def close(self) -> None:
        """Close the file; raises OSError where that reports a failed write."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def name_file(container: Container, stream: str) -> str:
    """Return a safe name for the file for STREAM of CONTAINER, whose name may be any text."""
    plain = _UNSAFE.sub("_", container.name)[:_MAX_NAME].lstrip(".-")
    return f"{plain or 'container'}-{container.short_id}.{stream}"


def open_sinks(containers: list[Container], output: Output) -> list[dict[str, Sink]]:
    """Return for each of CONTAINERS the sinks of its streams, by name.

    Files are always new; raises ExecutionError, and makes no file, where one exists already or cannot be made.
    """
    if output.dest is None:
        return [{stream: Sink(output.bound) for stream in STREAMS} for _container in containers]
    make_missing(output.dest)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    sinks: list[dict[str, Sink]] = []
    made: list[Sink] = []
    try:
        for container in containers:
            for stream in STREAMS:
                path = os.path.join(output.dest, name_file(container, stream))
                made.append(Sink(output.bound, os.open(path, flags, 0o600), path))
            sinks.append(dict(zip(STREAMS, made[-len(STREAMS) :])))
    except OSError as error:
        for sink in made:
            sink.close()
            with suppress(OSError):
                os.unlink(sink.path)
        hint = ": give a folder without one" if isinstance(error, FileExistsError) else ""
        raise ExecutionError(f"dest: {error.filename}: {error.strerror}{hint}") from error
    return sinks
