# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Change the configuration of Docker's daemon, and leave all else in it as it was."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from typing import Any, Callable, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.hook import wiring
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.installed import files
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.installed.files import File


class DaemonFile:
    """The configuration of a Docker daemon in the JSON file PATH, as it is now, of which everything but our runtimes is kept as it is.

    Others may change it at any time: read it just before a change. Raises FleetError where it cannot be understood.
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
    def ours(self) -> dict[str, Any]:
        """Return name → description of our runtimes in the file."""
        return {name: about for name, about in self.runtimes.items() if wiring.is_ours(name)}

    @property
    def _others(self) -> dict[str, Any]:
        return {name: about for name, about in self.runtimes.items() if not wiring.is_ours(name)}

    @property
    def is_known(self) -> bool:
        """Return True if a change of ours of the file is not taken back yet."""
        return self.path in _recall()

    @property
    def default_runtime(self) -> str:
        """Return the name of the runtime that the file makes the default; '' for none."""
        return str(self._content.get("default-runtime", ""))

    def write(self, ours: Mapping[str, Any], pid_file: str) -> None:
        """Write the file with OURS in place of our runtimes that it has. Remember what was there before, and the daemon's PID_FILE."""
        text = self._make_text({**self._content, "runtimes": {**self._others, **ours}})
        known = _recall().get(self.path)
        if known is None:
            before = None if self._present is None else base64.b64encode(self._present).decode("ascii")
            known = {"before": before, "written": []}
        elif not self._is_as_written(known):
            # By somebody else: the text from before is not what belongs there.
            known = {"is_changed": True, "written": []}
        self._remember({**known, "pid_file": pid_file}, text)
        files.write(File(self.path, text, self._find_mode()))

    def take_back(self, reload: Callable[[], Any]) -> None:
        """Take our runtimes out of the file, and have the daemon read it by RELOAD.

        If nobody else has changed the file since our first change, it is what it was before that, byte for byte.
        """
        known = _recall().get(self.path)
        is_ours = known is not None and "is_changed" not in known and self._is_as_written(known)
        others = {name: value for name, value in self._content.items() if name != "runtimes"}
        # A daemon that reads a file without runtimes keeps those that it has.
        text = self._make_text({**others, "runtimes": self._others})
        if known is not None:
            self._remember(known, text)  # if the reload fails
        files.write(File(self.path, text, self._find_mode()))
        reload()
        if files.read(self.path) != text:
            pass  # somebody has changed it meanwhile
        elif is_ours and known:
            self._put(None if known["before"] is None else base64.b64decode(known["before"]))
        elif "runtimes" not in self._content:
            self._put(self._present)
        elif not self._others:
            self._put(self._make_text(others))
        files.remember(daemon={path: about for path, about in _recall().items() if path != self.path})

    def _put(self, text: bytes | None) -> None:
        """Make TEXT the content of the file; with None remove it."""
        if text is None:
            files.remove(self.path)
        else:
            files.replace(File(self.path, text, self._find_mode()))

    def _remember(self, known: Mapping[str, Any], text: bytes) -> None:
        """Remember what is KNOWN of the file, and that TEXT is about to be written: after a kill it may be that or what was written before."""
        written = [*known["written"][-1:], _digest(text)]
        files.remember(daemon={**_recall(), self.path: {**known, "written": written}})

    def _is_as_written(self, known: Mapping[str, Any]) -> bool:
        before = known.get("before")
        return _digest(self._present or b"") in known["written"] or (
            before is not None and base64.b64decode(before) == self._present  # a kill before our first change
        )

    def _make_text(self, content: dict[str, Any]) -> bytes:
        return json.dumps(content, indent=_find_indent(self._present)).encode("ascii") + b"\n"

    def _find_mode(self) -> int:
        return 0o644 if self._present is None else os.stat(self.path).st_mode & 0o7777


def find_files(config: str, pid_file: str) -> tuple[str, str]:
    """Return the configuration and the pid file of the daemon that has our runtimes; CONFIG and PID_FILE where no other ones are remembered."""
    known = _recall()
    if not known or os.path.realpath(config) in known:
        return config, pid_file
    path, about = next(iter(known.items()))
    return path, about.get("pid_file", pid_file)


def _recall() -> dict[str, Any]:
    """Return path → what is remembered of the configurations that we have changed."""
    return dict(files.recall().get("daemon", {}))


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _find_indent(text: bytes | None) -> int | str:
    """Return the indent of the JSON document TEXT, as its author has it."""
    for line in (text or b"").decode("utf-8", "replace").splitlines()[1:]:
        blank = line[: len(line) - len(line.lstrip())]
        if blank:
            return blank
    return 2
