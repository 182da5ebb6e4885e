# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Segments that arrive on the controller: what a broken transfer brought is kept, and the next one begins behind it.

A transfer is one file with the segments, or the ends of them, one after the other. All that the host says of it is
checked: names lead nowhere, and the sha256 of every segment has to be right.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from typing import Any, BinaryIO

from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_missing, open_private

_FOLDER = ".crashcart-parts"
_NAME = re.compile(r"crashcart-[\w.-]+\.\d{20}\Z", re.ASCII)
_TRANSFER = "transfer"
_BLOCK = 1 << 20


class ArrivalError(ValueError):
    """What arrived is not what the host says."""


class Arrivals:
    """The parts of segments below FOLDER, the captures' folder of one host."""

    def __init__(self, folder: str) -> None:
        self._folder = os.path.join(folder, _FOLDER)

    def list_parts(self) -> dict[str, int]:
        """Names of segments that a broken transfer has left here, and the bytes there are."""
        with suppress(FileNotFoundError, NotADirectoryError):
            names = [name for name in os.listdir(self._folder) if _NAME.match(name)]
            return {name: os.stat(os.path.join(self._folder, name)).st_size for name in names}
        return {}

    def find_broken(self) -> str:
        """The path on the host of the transfer that broke; '' for none."""
        with suppress(FileNotFoundError), open(os.path.join(self._folder, _TRANSFER), encoding="utf-8") as file:
            return file.read()
        return ""

    def take(self, transfer: dict[str, Any], path: str) -> list[str]:
        """Put what is in the file PATH of TRANSFER, which may have broken, with the parts; the segments that are whole, as paths.

        Raises ArrivalError where a segment is not what the host says; what is wrong is removed, and comes again.
        """
        make_missing(self._folder)
        with open(os.path.join(self._folder, _TRANSFER), "w", encoding="utf-8", opener=open_private) as text:
            text.write(str(transfer["path"]))
        wanted = {check_name(segment["name"]): segment for segment in transfer["segments"]}
        for name in set(self.list_parts()) - set(wanted):
            os.unlink(self.find_path(name))  # somebody else has fetched it
        whole = []
        with open(path, "rb") as file:
            for name, segment in wanted.items():
                part = self.find_path(name)
                with open(part, "ab", opener=open_private) as to:
                    here, size = to.tell(), int(segment["size"])
                    if here == segment["start"]:
                        _copy(file, to, size - here)
                    is_whole = to.tell() == size
                if here != segment["start"]:
                    os.unlink(part)
                    raise ArrivalError(f"a segment goes on at byte {segment['start']}, and {here} are here")
                if is_whole:
                    digest = _hash(part)
                    if digest != segment["sha256"]:
                        os.unlink(part)
                        raise ArrivalError(
                            f"the sha256 of what arrived is {digest}, where the host says {segment['sha256']}"
                        )
                    whole.append(part)
        return whole

    def find_path(self, name: str) -> str:
        """Where the part of the segment NAME is."""
        return os.path.join(self._folder, check_name(name))

    def clean(self) -> None:
        """Remove the folder, where no part is left in it."""
        if not self.list_parts():
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self._folder, _TRANSFER))
            with suppress(OSError):
                os.rmdir(self._folder)


def check_name(name: Any) -> str:
    """NAME, where it is that of a segment; raises ArrivalError."""
    if not isinstance(name, str) or not _NAME.match(name):
        raise ArrivalError(f"{name!r} is no name of a segment")
    return name


def _copy(source: BinaryIO, to: BinaryIO, count: int) -> None:
    while count > 0:
        block = source.read(min(count, _BLOCK))
        if not block:
            return
        to.write(block)
        count -= len(block)


def _hash(path: str) -> str:
    whole = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            whole.update(block)
    return whole.hexdigest()
