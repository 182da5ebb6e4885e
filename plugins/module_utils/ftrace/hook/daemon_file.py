# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Change the configuration of Docker's daemon, and leave all else in it as it was."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from typing import Any, Callable

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.installed import files
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.installed.files import File


class DaemonFile:
    """The configuration of a Docker daemon in the JSON file PATH, of which everything but our runtimes is kept as it is.

    Raises FleetError where it cannot be understood.
    """

    def __init__(self, path: str) -> None:
        self.path = path = os.path.realpath(path)  # a link stays one
        self._present = files.read(path)
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
        daemons = files.recall().get("daemon", {})
        known = daemons.get(self.path)
        if known is None:
            before = None if self._present is None else base64.b64encode(self._present).decode("ascii")
            known = {"before": before}
        elif not self._is_as_written(known):
            known = {"is_changed": True}  # by somebody else, so the text from before is not what belongs there
        files.remember(daemon={**daemons, self.path: {**known, "written": _digest(text)}})
        files.write(File(self.path, text, self._find_mode()))

    def take_back(self, runtimes: dict[str, Any], reload: Callable[[], Any]) -> None:
        """Leave RUNTIMES in place of those that the file has, and have the daemon read it by RELOAD.

        If nobody else has changed the file since our first change, it is what it was before that, byte for byte.
        """
        if self._present is None:
            return  # whoever has removed it has removed our runtimes, too
        daemons = files.recall().get("daemon", {})
        known = daemons.get(self.path)
        is_ours = known is not None and "is_changed" not in known and self._is_as_written(known)
        others = {name: value for name, value in self._content.items() if name != "runtimes"}
        # A daemon that reads a file without runtimes keeps those that it has.
        text = self._make_text({**others, "runtimes": runtimes})
        if is_ours:
            files.remember(daemon={**daemons, self.path: {**known, "written": _digest(text)}})  # if the reload fails
        files.replace(File(self.path, text, self._find_mode()))
        reload()
        if is_ours and known["before"] is None:
            files.remove(self.path)
        elif is_ours:
            files.replace(File(self.path, base64.b64decode(known["before"]), self._find_mode()))
        elif not runtimes:
            files.replace(File(self.path, self._make_text(others), self._find_mode()))

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
