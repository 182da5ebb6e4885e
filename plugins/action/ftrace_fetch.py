# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's half of ftrace_fetch: bring the staged captures home, verify them, and put them together as trace.dat."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import zlib
from datetime import datetime, timezone
from typing import Any, BinaryIO

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase

from ansible_collections.crashcart.fleet.plugins.plugin_utils.transfer import uncompressed

_CHUNK = 1 << 20
_ONLY_IN_FILE = ("tasks", "first_tasks", "syscalls", "compat_syscalls")
_TRANSFER_ERRORS = (OSError, zlib.error, ValueError, KeyError, TypeError, OverflowError, AnsibleError)
_UNFIT = re.compile(r"[^A-Za-z0-9_.-]")


class ActionModule(ActionBase):
    _supports_async = False
    _supports_check_mode = True

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the task."""
        super().run(tmp, task_vars)
        variables = task_vars or {}
        arguments = dict(self._task.args)
        stage = None
        host = str(variables.get("inventory_hostname", "localhost"))
        folder = os.path.join(os.path.expanduser(str(arguments.get("dest", "."))), make_file_name(host))
        if not self._task.check_mode:
            try:
                os.makedirs(folder, exist_ok=True)
                tempfile.TemporaryFile(dir=folder).close()
            except OSError as error:
                raise AnsibleActionFail(f"dest: {folder} cannot be written: {error.strerror}") from error
            # The login user's folder: the transfer needs no become, and no reading of the whole file into memory.
            stage = self._connection._shell.join_path(self._make_tmp_path(), "captures")
            arguments["_stage"] = stage
        result: dict[str, Any] = self._execute_module(
            module_name="crashcart.fleet.ftrace_fetch", module_args=arguments, task_vars=task_vars
        )
        # A task that failed may have drained some of the instances before.
        if stage is not None and result.get("captures"):
            try:
                self._bring_home(result["captures"], stage, folder, host)
            except BaseException as error:
                # The events are gone from the kernel: what is staged is the only copy, so nobody may clean it up.
                self._connection._shell.tmpdir = None
                kept = f"they are kept on the host in {stage}, as zlib streams"
                if not isinstance(error, _TRANSFER_ERRORS):  # the task's time is over, or the user has had enough
                    self._display.warning(f"{host}: the captures could not be brought home; {kept}")
                    raise
                raise AnsibleActionFail(f"the captures could not be brought home ({error}); {kept}") from error
        self._remove_tmp_path(self._connection._shell.tmpdir)
        return result

    def _bring_home(self, captures: list[dict[str, Any]], stage: str, folder: str, host: str) -> None:
        filled = [capture for capture in captures if capture["manifest"]["pages"]]
        for capture in captures:
            capture["path"] = None
        if filled:
            with tempfile.TemporaryDirectory(prefix=".crashcart-", dir=folder) as work:
                staged = os.path.join(work, "captures")
                with uncompressed(self._connection):
                    self._connection.fetch_file(stage, staged)
                with open(staged, "rb") as file:
                    for capture in filled:
                        capture["manifest"]["inventory_hostname"] = host
                        capture["path"] = _assemble(capture, file, folder, work)
        for capture in captures:
            del capture["pages"], capture["head"]
            # These are in the manifest's file; in a result they would only be in the way.
            capture["manifest"] = {
                name: value for name, value in capture["manifest"].items() if name not in _ONLY_IN_FILE
            }


def make_file_name(text: str) -> str:
    """TEXT as the name of one file: nothing in it can lead to another folder."""
    name = _UNFIT.sub("_", text)
    return name if name.strip(".") else "_" + name


def _assemble(capture: dict[str, Any], staged: BinaryIO, folder: str, work: str) -> str:
    """Write head and pages of CAPTURE as one trace.dat and its manifest beside it; the path of the trace."""
    manifest = capture["manifest"]
    temporary = os.path.join(work, "trace.dat")
    whole = hashlib.sha256()
    with open(temporary, "wb") as file:
        for part in ("head", "pages"):
            _copy_part(capture[part], staged, file, whole)
        manifest["size"] = file.tell()
    manifest["sha256"] = whole.hexdigest()
    target = os.path.join(folder, make_file_name(manifest["container"]["name"]))
    os.makedirs(target, exist_ok=True)
    stamp = datetime.fromtimestamp(manifest["fetched"], timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
    path = os.path.join(target, stamp + ".dat")
    manifest_file = os.path.join(work, "manifest.json")
    with open(manifest_file, "w", encoding="utf-8") as file_:
        json.dump(manifest, file_, indent=1)
    os.rename(temporary, path)
    os.rename(manifest_file, os.path.join(target, stamp + ".json"))
    return path


def _copy_part(part: dict[str, Any], staged: BinaryIO, file: BinaryIO, whole: Any) -> None:
    """Decompress PART of STAGED into FILE, as a stream, and verify it."""
    own = hashlib.sha256()
    staged.seek(part["offset"])
    left = int(part["size"])
    decompressor = zlib.decompressobj()
    while left > 0:
        chunk = staged.read(min(left, _CHUNK))
        if not chunk:
            raise ValueError("the staged file is cut short")
        left -= len(chunk)
        # Bounded pieces: a hostile host must not fill the controller's memory with a few bytes.
        while chunk:
            if decompressor.eof:
                raise ValueError("a part is longer than its zlib stream")
            data = decompressor.decompress(chunk, _CHUNK)
            chunk = decompressor.unconsumed_tail
            for consumer in (own, whole):
                consumer.update(data)
            file.write(data)
    data = decompressor.flush()
    for consumer in (own, whole):
        consumer.update(data)
    file.write(data)
    if not decompressor.eof:
        raise ValueError("a part is shorter than its zlib stream")
    if own.hexdigest() != part["sha256"]:
        raise ValueError(f"the sha256 of what arrived is {own.hexdigest()}, where the host says {part['sha256']}")
