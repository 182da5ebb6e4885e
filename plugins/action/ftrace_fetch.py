# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's half of ftrace_fetch: bring home what the host has staged, verify it, and make trace.dat files of it."""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from contextlib import ExitStack, suppress
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import NUMPY_IMPORT_ERROR
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import outbox
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import compression
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_missing, open_private
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape, escape_lines
from ansible_collections.crashcart.fleet.plugins.plugin_utils.arrivals import ArrivalError, Arrivals, check_name
from ansible_collections.crashcart.fleet.plugins.plugin_utils.captures import (
    assemble,
    describe,
    has_never_started,
    make_file_name,
)
from ansible_collections.crashcart.fleet.plugins.plugin_utils.progress import tell_transfer
from ansible_collections.crashcart.fleet.plugins.plugin_utils.transfer import uncompressed

_TRANSFER_ERRORS = (OSError, ValueError, KeyError, TypeError, OverflowError, AnsibleError, FleetError, ImportError)
_TRANSFER = re.compile(re.escape(outbox.FOLDER) + r"/transfer-[0-9a-f]{16}\Z")


class ActionModule(ActionBase):
    _supports_async = False
    _supports_check_mode = True

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the task."""
        super().run(tmp, task_vars)
        variables = task_vars or {}
        arguments = dict(self._task.args)
        if arguments.get("format") == "text" and NUMPY_IMPORT_ERROR:
            raise AnsibleActionFail(
                "format: text needs numpy on the controller: install python3-numpy, or use format: dat"
            )
        if not arguments.get("dest"):
            raise AnsibleActionFail("dest is missing: name the folder of this controller that the captures go to")
        host = str(variables.get("inventory_hostname", "localhost"))
        folder = os.path.join(os.path.expanduser(str(arguments["dest"])), make_file_name(host))
        made: list[str] = []
        if not self._task.check_mode:
            made = _make_folder(folder)
            # Whom the transfer runs as: it needs no become, and no reading of the whole file into memory.
            arguments["_owned"] = self._make_tmp_path()
        arguments["_methods"] = compression.list_available()
        result = self._fetch_parts(arguments, folder, host, task_vars)
        if result.get("failed"):
            for path in made:
                with suppress(OSError):  # something was fetched before
                    os.rmdir(path)
        self._remove_tmp_path(self._connection._shell.tmpdir)
        return result

    def _fetch_parts(
        self, arguments: dict[str, Any], folder: str, host: str, task_vars: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Fetch by ARGUMENTS what there is: where the host has no room for all of it at once, one part after the other."""
        captures: list[dict[str, Any]] = []
        arrivals = Arrivals(folder)
        changed = False
        warnings: list[str] = []
        while True:
            arguments["_parts"] = arrivals.list_parts()
            arguments["_broken"] = arrivals.find_broken()
            arguments["_stamps"] = _list_stamps(folder)
            result: dict[str, Any] = self._execute_module(
                module_name="crashcart.fleet.ftrace_fetch", module_args=arguments, task_vars=task_vars
            )
            transfer = result.pop("transfer", None)
            if transfer is not None:
                captures += self._fetch(transfer, folder, host, arrivals)
            # A task that failed may have drained some of the instances before.
            captures += [{"path": None, "manifest": manifest} for manifest in result.pop("empty", [])]
            changed |= bool(result.get("changed"))
            warnings += result.get("warnings", [])
            # One that brought nothing home has made no room either.
            if not result.pop("more", False) or transfer is None:
                break
        captures.sort(
            key=lambda one: one["manifest"]["container"]["name"]
        )  # of one container they are in the order of time
        lines = [describe(one["path"], one["manifest"]) for one in captures]
        warnings += [
            line for line, one in zip(lines, captures) if one["path"] is None and has_never_started(one["manifest"])
        ]
        return {
            **result,
            "changed": changed,
            "warnings": list(dict.fromkeys(warnings)),
            "lines": lines,
            "captures": captures,
        }

    def _fetch(self, transfer: dict[str, Any], folder: str, host: str, arrivals: Arrivals) -> list[dict[str, Any]]:
        """Bring TRANSFER home, make captures of what is in it, and let the host forget it."""
        kept = f"they are kept on the host in {outbox.FOLDER}, and the next fetch brings them"
        with ExitStack() as undo:
            # Whatever ends it: the task's time is over, or the user has had enough.
            undo.callback(self._display.warning, f"{host}: the captures could not be brought home; {kept}")
            try:
                size = sum(int(one["size"]) - int(one["start"]) for one in transfer["segments"])
                tell_transfer(f"ftrace_fetch: bringing the captures of {host} home", size)
                whole = self._bring_home(transfer, folder, arrivals)
                captures, damaged = self._assemble(whole, folder, host)
            except _TRANSFER_ERRORS as error:
                undo.pop_all()
                raise AnsibleActionFail(escape(f"the captures could not be brought home ({error}); {kept}")) from error
            undo.pop_all()
        self._acknowledge(transfer)
        for path in whole:
            with suppress(FileNotFoundError):
                os.unlink(path)
        arrivals.clean()
        if damaged:
            lines = [describe(one["path"], one["manifest"]) for one in captures]
            raise AnsibleActionFail(f"{'; '.join(damaged)}", result={"lines": lines, "captures": captures})
        return captures

    def _bring_home(self, transfer: dict[str, Any], folder: str, arrivals: Arrivals) -> list[str]:
        """The paths of the segments of TRANSFER, all of them."""
        if not _TRANSFER.match(str(transfer["path"])):
            raise ArrivalError(f"{transfer['path']!r} is no transfer")
        with tempfile.TemporaryDirectory(prefix=".crashcart-", dir=folder) as work:
            local = os.path.join(work, "transfer")
            try:
                with uncompressed(self._connection):
                    self._connection.fetch_file(transfer["path"], local)
            finally:
                # What has arrived stays, also of a transfer that broke, and the next fetch goes on behind it.
                open(local, "ab", opener=open_private).close()
                whole = arrivals.take(transfer, local)
        if len(whole) != len(transfer["segments"]):
            raise ArrivalError("the transfer is cut short")
        return whole

    def _assemble(self, whole: list[str], folder: str, host: str) -> tuple[list[dict[str, Any]], list[str]]:
        """Captures of the segments WHOLE, and what is to be said of those that cannot be read: as they are, they are at home, too."""
        captures: list[dict[str, Any]] = []
        damaged = []
        version = int(self._task.args.get("dat_version", 7))
        with_text = self._task.args.get("format") == "text"
        for path in whole:
            try:
                target, manifest = assemble(path, folder, host, version=version, with_text=with_text)
                captures.append({"path": target, "manifest": manifest})
            except FleetError as error:
                aside = os.path.join(folder, os.path.basename(path) + ".segment")
                os.rename(path, aside)
                damaged.append(f"a capture is damaged ({error}); it is in {aside} as it came")
        return captures, damaged

    def _acknowledge(self, transfer: dict[str, Any]) -> None:
        """Have the host remove what is home now, or keep it for others. Where it does not hear it, the next fetch says it again."""
        names = [check_name(segment["name"]) for segment in transfer["segments"] if segment["state"] == outbox.NEW]
        others = [check_name(segment["name"]) for segment in transfer["segments"] if segment["state"] == outbox.KEPT]
        paths = [os.path.join(outbox.FOLDER, name) for name in names]
        commands = [["rm", "-f", transfer["path"]]]
        if boolean(self._task.args.get("consume", True)):
            commands[0] += [f"{path}.{outbox.NEW}" for path in paths]
            commands[0] += [f"{outbox.FOLDER}/{name}.{outbox.KEPT}" for name in others]
        else:
            commands += [["mv", "-f", f"{path}.{outbox.NEW}", f"{path}.{outbox.KEPT}"] for path in paths]
        done = self._low_level_execute_command("; ".join(map(shlex.join, commands)))
        if done["rc"] != 0:
            self._display.warning(escape_lines(f"the host still has captures that are home: {done['stderr']}"))


def _make_folder(folder: str) -> list[str]:
    """Make FOLDER, and see that it can be written; what of its path had to be made, the innermost first."""
    missing = []
    place = folder
    while not os.path.lexists(place):
        missing.append(place)
        place = os.path.dirname(place) or "."
    try:
        make_missing(folder)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise AnsibleActionFail(
            f"dest: {folder} cannot be written: {error.strerror}; what was recorded stays on the host"
        ) from error
    return missing


def _list_stamps(folder: str) -> list[str]:
    """Names of the newest captures below FOLDER, of each container as many as a host keeps."""
    stamps: set[str] = set()
    for _folder, _folders, names in os.walk(folder):
        found = sorted(name[: -len(".dat")] for name in names if name.endswith(".dat"))
        stamps.update(found[-outbox.MAX_KEPT_CAPTURES :])
    return sorted(stamps)
