# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Receive segments on the controller. The parts that a broken transfer has brought stay, and the next transfer continues after them.

A transfer is one file with the segments, or their remaining bytes, one after the other. The controller checks what the host
says about it: a name cannot lead to another folder, and the sha256 of every segment has to be right.
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
    """A transfer that does not match the host's description of it."""


class Arrivals:
    """The received parts of segments below FOLDER, the folder of one host's captures."""

    def __init__(self, folder: str) -> None:
        self._folder = os.path.join(folder, _FOLDER)

    def list_parts(self) -> dict[str, int]:
        """Return the names of the segments that a broken transfer has left here, each with the number of its bytes."""
        with suppress(FileNotFoundError, NotADirectoryError):
            names = [name for name in os.listdir(self._folder) if _NAME.match(name)]
            return {name: os.stat(os.path.join(self._folder, name)).st_size for name in names}
        return {}

    def find_broken(self) -> str:
        """Return the path on the host of the transfer that broke last, or '' for none."""
        with suppress(FileNotFoundError), open(os.path.join(self._folder, _TRANSFER), encoding="utf-8") as file:
            return file.read()
        return ""

    def take(self, transfer: dict[str, Any], path: str) -> list[str]:
        """Append the content of the file PATH, which TRANSFER describes, to the parts, and return the paths of the complete segments.

        The transfer may have broken. Raises ArrivalError where a segment does not match TRANSFER, and removes the segment first,
        so that the next fetch brings it again.
        """
        make_missing(self._folder)
        with open(os.path.join(self._folder, _TRANSFER), "w", encoding="utf-8", opener=open_private) as text:
            text.write(str(transfer["path"]))
        wanted = {check_name(segment["name"]): segment for segment in transfer["segments"]}
        for name in set(self.list_parts()) - set(wanted):
            os.unlink(self.find_path(name))  # another controller has fetched it
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
        """Return the path of the part of the segment NAME. Raises ArrivalError where NAME is not the name of a segment."""
        return os.path.join(self._folder, check_name(name))

    def clean(self) -> None:
        """Remove the folder of the parts if no part is left in it."""
        if not self.list_parts():
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self._folder, _TRANSFER))
            with suppress(OSError):
                os.rmdir(self._folder)


def check_name(name: Any) -> str:
    """Return NAME. Raises ArrivalError where NAME is not the name of a segment."""
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
