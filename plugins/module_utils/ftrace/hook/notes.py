# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Note why the start hook could not trace a container: in the system's log, and in a file that modules read.

The hook imports this where a start is not a usual one, and its container waits for that, so it imports little.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_folder, open_private
from ansible_collections.crashcart.fleet.plugins.module_utils.names import HOOK_FOLDER

_FILE = f"{HOOK_FOLDER}/troubles"
_MAX_BYTES = 64 << 10
_MAX_TEXT = 500
_PAUSE_S = 10.0
_LOG = "/dev/log"
_DAEMONS_WARNING = 3 << 3 | 4  # facility and priority of syslog(3)


def tell(profile: str, container: str, why: str) -> None:
    """Note that CONTAINER (an id; '' for all) is not traced by PROFILE, and WHY. What cannot be noted is passed over."""
    why = why[:_MAX_TEXT]
    with suppress(OSError, FleetError):
        make_folder(HOOK_FOLDER)
        line = {"time": round(time.time(), 3), "profile": profile, "container": container, "why": why}
        with open(_FILE, "ab", buffering=0, opener=open_private) as file:
            file.write(json.dumps(line).encode("ascii") + b"\n")
            if os.fstat(file.fileno()).st_size > _MAX_BYTES:
                os.rename(_FILE, f"{_FILE}.old")
    whose = f"container {container}" if container else "all containers"
    _log(f"{whose} of {profile}: {why}")


def _log(text: str) -> None:
    """Send TEXT to the system's log. The C library's own function would wait for a log that hangs (syslog(3))."""
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as log:
        log.connect(_LOG)
        line = "".join(character if character.isprintable() else "?" for character in text)
        log.send(f"<{_DAEMONS_WARNING}>crashcart-start-hook[{os.getpid()}]: {line}".encode())


def read() -> list[dict[str, Any]]:
    """Return the latest notes, the oldest first, each with time (seconds since the epoch), profile, container and why."""
    found = []
    for path in (f"{_FILE}.old", _FILE):
        with suppress(OSError), open(path, encoding="ascii", errors="replace") as file:
            for line in file:
                with suppress(ValueError):  # a full disk has cut the line short
                    found.append(json.loads(line))
    return [note for note in found if isinstance(note, dict) and {"time", "profile", "container", "why"} <= set(note)]


def note_refusal(profile: str, why: str) -> None:
    """Note WHY no trace of PROFILE can begin just now, so that the next starts do not wait for it."""
    with suppress(OSError, FleetError):
        make_folder(HOOK_FOLDER)
        path = _find_refusal(profile)
        with open(f"{path}.part", "w", encoding="ascii", opener=open_private) as file:
            json.dump({"time": time.monotonic(), "why": why[:_MAX_TEXT]}, file)
        os.rename(f"{path}.part", path)


def forget_refusal(profile: str) -> None:
    """Forget what note_refusal has noted of PROFILE."""
    with suppress(OSError):
        os.unlink(_find_refusal(profile))


def find_refusal(profile: str) -> str | None:
    """Return why no trace of PROFILE could begin some seconds ago; None if one may begin."""
    with suppress(OSError, ValueError, KeyError, TypeError), open(_find_refusal(profile), encoding="ascii") as file:
        found = json.load(file)
        if 0 <= time.monotonic() - found["time"] < _PAUSE_S:
            return str(found["why"])
    return None


def _find_refusal(profile: str) -> str:
    return f"{HOOK_FOLDER}/refused-{profile}"
