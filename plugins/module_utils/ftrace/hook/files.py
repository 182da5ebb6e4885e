# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write and remove the start hook's files, some of them in folders of others, so that removal leaves these as they were."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from contextlib import ExitStack, suppress
from typing import Any, Callable

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.hook.wiring import File
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import PUBLIC, make_missing
from ansible_collections.crashcart.fleet.plugins.module_utils.names import HOOK_POLICY_FOLDER, HOOK_PROGRAM_FOLDER

_MEMORY = f"{HOOK_POLICY_FOLDER}/start-hook.before.json"


def read(path: str) -> bytes | None:
    """Return the content of the file PATH; None if there is none."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def is_there(file: File) -> bool:
    """Return True if FILE is on the host as it is to be."""
    found = read(file.path)
    if found is None or os.stat(file.path).st_mode & 0o7777 != file.mode:
        return False
    return found.endswith(file.end) if file.end else found == file.content


def write(file: File) -> None:
    """Write FILE, whole or not at all, and note the folders that had to be made for it; raises OSError."""
    made = make_missing(os.path.dirname(file.path), PUBLIC)
    if made:
        _remember(folders=[*_recall().get("folders", []), *made])
    _replace(file)


def _replace(file: File) -> None:
    folder, name = os.path.split(file.path)
    # No engine reads it: it ends neither with .json nor with .yaml.
    temporary = os.path.join(folder, f".{name}.crashcart")
    with suppress(FileNotFoundError):
        os.unlink(temporary)
    with ExitStack() as undo:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        undo.callback(os.unlink, temporary)
        with open(fd, "wb") as opened:
            opened.write(file.content)
            opened.flush()
            os.fchmod(fd, file.mode)
            with suppress(FileNotFoundError):
                before = os.stat(file.path)
                os.fchown(fd, before.st_uid, before.st_gid)
            os.fsync(fd)
        os.rename(temporary, file.path)
        undo.pop_all()


def remove(path: str) -> bool:
    """Remove the file PATH; return True if there was one."""
    try:
        os.unlink(path)
        return True
    except (FileNotFoundError, NotADirectoryError):
        return False


def remove_folders() -> None:
    """Remove the folders that were made for our files, if nothing else is in them, and forget what was before."""
    folders = _recall().get("folders", [])
    remove(_MEMORY)
    for folder in sorted({*folders, HOOK_POLICY_FOLDER, HOOK_PROGRAM_FOLDER}, key=len, reverse=True):
        with suppress(OSError):
            os.rmdir(folder)


def _recall() -> dict[str, Any]:
    with suppress(OSError, ValueError, TypeError), open(_MEMORY, encoding="ascii") as file:
        return dict(json.load(file))
    return {}


def _remember(**more: Any) -> None:
    made = make_missing(HOOK_POLICY_FOLDER, PUBLIC)
    known = {**_recall(), **more}
    known["folders"] = list(dict.fromkeys([*known.get("folders", []), *made]))
    _replace(File(_MEMORY, json.dumps(known).encode("ascii"), 0o600))


class DaemonFile:
    """The configuration of a Docker daemon in the JSON file PATH, of which everything but our runtimes is kept as it is.

    Raises FleetError where it cannot be understood.
    """

    def __init__(self, path: str) -> None:
        self.path = path = os.path.realpath(path)  # a link stays one
        self._present = read(path)
        try:
            self._content: dict[str, Any] = (
                {} if not (self._present or b"").strip() else json.loads(self._present or b"")
            )
            if not isinstance(self._content.get("runtimes", {}), dict):
                raise ValueError("runtimes is no object")
        except (ValueError, AttributeError) as error:
            raise FleetError(
                f"{path} is no configuration of Docker's daemon ({error}): mend it first; nothing was changed"
            ) from error

    @property
    def runtimes(self) -> dict[str, Any]:
        """Return name → description of the runtimes in the file."""
        return dict(self._content.get("runtimes", {}))

    @property
    def default_runtime(self) -> str:
        """Return the name of the runtime that the file makes the default; '' for none."""
        return str(self._content.get("default-runtime", ""))

    def write(self, runtimes: dict[str, Any]) -> None:
        """Write the file with RUNTIMES in place of those that it has, and remember what was there before."""
        text = self._make_text({**self._content, "runtimes": runtimes})
        daemons = _recall().get("daemon", {})
        known = daemons.get(self.path)
        if known is None:
            before = None if self._present is None else base64.b64encode(self._present).decode("ascii")
            known = {"before": before}
        elif not self._is_as_written(known):
            known = {"is_changed": True}  # by somebody else, so the text from before is not what belongs there
        _remember(daemon={**daemons, self.path: {**known, "written": _digest(text)}})
        write(File(self.path, text, self._find_mode()))

    def take_back(self, runtimes: dict[str, Any], reload: Callable[[], Any]) -> None:
        """Leave RUNTIMES in place of those that the file has, and have the daemon read it by RELOAD.

        If nobody else has changed the file since our first change, it is what it was before that, byte for byte.
        """
        if self._present is None:
            return  # whoever has removed it has removed our runtimes, too
        daemons = _recall().get("daemon", {})
        known = daemons.get(self.path)
        is_ours = known is not None and "is_changed" not in known and self._is_as_written(known)
        others = {name: value for name, value in self._content.items() if name != "runtimes"}
        # A daemon that reads a file without runtimes keeps those that it has.
        text = self._make_text({**others, "runtimes": runtimes})
        if is_ours:
            _remember(daemon={**daemons, self.path: {**known, "written": _digest(text)}})  # if the reload fails
        _replace(File(self.path, text, self._find_mode()))
        reload()
        if is_ours and known["before"] is None:
            remove(self.path)
        elif is_ours:
            _replace(File(self.path, base64.b64decode(known["before"]), self._find_mode()))
        elif not runtimes:
            _replace(File(self.path, self._make_text(others), self._find_mode()))

    def _is_as_written(self, known: dict[str, Any]) -> bool:
        before = known.get("before")
        return known["written"] == _digest(self._present or b"") or (
            before is not None and base64.b64decode(before) == self._present  # a kill before our first change
        )

    def _make_text(self, content: dict[str, Any]) -> bytes:
        return json.dumps(content, indent=_find_indent(self._present)).encode("ascii") + b"\n"

    def _find_mode(self) -> int:
        return 0o644 if self._present is None else os.stat(self.path).st_mode & 0o7777


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _find_indent(text: bytes | None) -> int | str:
    """Return the indent of the JSON document TEXT, as its author has it."""
    for line in (text or b"").decode("utf-8", "replace").splitlines()[1:]:
        blank = line[: len(line) - len(line.lstrip())]
        if blank:
            return blank
    return 2
