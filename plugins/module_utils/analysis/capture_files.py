# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find captures in a folder, and read their manifests. Without numpy."""

from __future__ import annotations

import json
import os
import re
import stat
from typing import Any, BinaryIO

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.manifest_form import is_sound
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.trace_dat import TraceFileError

_CAPTURE = re.compile(r".\.dat(\.[0-9]+)?\Z")  # trace-cmd split numbers the files that it writes
_UNFINISHED = ".crashcart-"  # prefix of folders of a fetch that runs, or was interrupted
_MAX_MANIFEST = 64 << 20  # bytes; the documents of a segment have the same bound
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


class CaptureError(FleetError):
    """The file at PATH cannot go into a report, for REASON; NEXT_STEP is the advice to the user."""

    def __init__(self, path: str, reason: str, next_step: str) -> None:
        super().__init__(f"{path}: {reason}; {next_step}")
        self.path, self.reason, self.next_step = path, reason, next_step


def explain_error(path: str, error: Exception) -> CaptureError:
    """Return the CaptureError for ERROR, an exception that opening or reading the file at PATH has raised."""
    if isinstance(error, CaptureError):
        return error
    if isinstance(error, TraceFileError):
        return CaptureError(path, str(error), error.next_step)
    if isinstance(error, FileNotFoundError) and os.path.islink(path):
        return CaptureError(
            path, f"a link to {os.readlink(path)}, which is not there", "bring that back, or remove the link"
        )
    if isinstance(error, FileNotFoundError):
        return CaptureError(path, "it is not there", "fetch it again, or leave it out")
    if isinstance(error, OSError):
        return CaptureError(
            path, f"it cannot be read: {error.strerror or error}", "let this user read it, or remove it"
        )
    reason = f"it is damaged ({type(error).__name__}: {str(error)[:200]})"
    return CaptureError(path, reason, "fetch or record it again, or remove it")


def list_captures(folder: str) -> tuple[list[str], list[CaptureError]]:
    """Return the paths of the trace.dat files below FOLDER, sorted, and an error for each folder that cannot be read."""
    captures: list[str] = []
    unread: list[CaptureError] = []
    for place, folders, names in os.walk(
        folder, onerror=lambda error: unread.append(explain_error(error.filename, error))
    ):
        folders[:] = [name for name in folders if not name.startswith(_UNFINISHED)]
        captures += [os.path.join(place, name) for name in names if _CAPTURE.search(name)]
    return sorted(captures), unread


def find_manifest(capture: str) -> str:
    """Return the path of the manifest of CAPTURE, which need not exist."""
    return os.path.splitext(capture)[0] + ".json"


def read_manifest(path: str) -> dict[str, Any]:
    """Return the manifest at PATH; {} when it does not exist, as for a trace that trace-cmd recorded.

    Raises CaptureError when it cannot be read, or is no manifest.
    """
    if not os.path.lexists(path):
        return {}
    remove = "fetch again, or remove it to do without"
    try:
        with open_regular(path) as file:
            text = file.read(_MAX_MANIFEST + 1)
        manifest: dict[str, Any] | None = json.loads(text) if len(text) <= _MAX_MANIFEST else None
    except (ValueError, RecursionError) as error:
        raise CaptureError(path, f"the manifest is damaged: {str(error)[:200]}", remove) from error
    except OSError as error:
        raise explain_error(path, error) from error
    if manifest is None or not is_sound(manifest):
        raise CaptureError(path, "it is no manifest that ftrace_fetch writes", remove)
    return manifest


def open_regular(path: str) -> BinaryIO:
    """Open PATH for reading if it is a regular file, else raise CaptureError: a pipe would keep us waiting, and a device never ends."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY))
    kind = stat.S_IFMT(os.fstat(file.fileno()).st_mode)
    if kind != stat.S_IFREG:
        file.close()
        raise CaptureError(
            path, f"no regular file but {_KINDS.get(kind, 'a device')}", "move it elsewhere, or remove it"
        )
    return file
