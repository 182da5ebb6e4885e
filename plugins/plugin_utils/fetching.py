# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's half of a fetch: transfer the segments that the host has staged, verify them, and make trace.dat files."""

from __future__ import annotations

import base64
import os
import re
import shlex
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

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
from ansible_collections.crashcart.fleet.plugins.plugin_utils.controller_needs import find_missing_packages
from ansible_collections.crashcart.fleet.plugins.plugin_utils.progress import tell_transfer
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store.database import list_removed
from ansible_collections.crashcart.fleet.plugins.plugin_utils.transfer import uncompressed

_TRANSFER_ERRORS = (OSError, ValueError, KeyError, TypeError, OverflowError, AnsibleError, FleetError, ImportError)
_TRANSFER = re.compile(re.escape(outbox.FOLDER) + r"/transfer-[0-9a-f]{16}\Z")


class FetchingAction(ActionBase):
    """An action whose module stages captures on the host. MODULE is the module's name."""

    module: str
    _supports_async = False
    _supports_check_mode = True

    def bring(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """Run the module with ARGUMENTS, and bring all captures that it offers into the host's folder below `dest`.

        Returns the module's result with `captures` and their `lines`.
        """
        host = str((task_vars or {}).get("inventory_hostname", "localhost"))
        folder = os.path.join(os.path.expanduser(str(arguments["dest"])), make_file_name(host))
        made: list[str] = []
        if not self._task.check_mode:
            made = _make_folder(folder)
        arguments["_methods"] = compression.list_available()
        result = self._fetch_parts(arguments, folder, host, task_vars)
        if result.get("failed"):
            for path in made:
                with suppress(OSError):  # it holds files that were fetched before the failure
                    os.rmdir(path)
        self._remove_tmp_path(self._connection._shell.tmpdir)
        return result

    def check(self, arguments: dict[str, Any]) -> None:
        """Raise AnsibleActionFail where ARGUMENTS name no folder of this controller, or it lacks what they ask for."""
        missing = find_missing_packages(["report"]) if arguments.get("format") == "text" else []
        if missing:
            raise AnsibleActionFail(f"format: text cannot be written: {'; '.join(missing)}; or use format: dat")
        if not arguments.get("dest"):
            raise AnsibleActionFail("dest is missing: name the folder of this controller that the captures go to")

    def call(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """Return the result of the module on the host for ARGUMENTS."""
        result: dict[str, Any] = self._execute_module(
            module_name=f"crashcart.fleet.{self.module}", module_args=arguments, task_vars=task_vars
        )
        return result

    def list_next(self, _result: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of the next call, after one with ARGUMENTS and _RESULT, which had no room for all captures."""
        return arguments

    def join(self, _earlier: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
        """Return what the _EARLIER result and the RESULT of the next call say together."""
        return result

    def _fetch_parts(
        self, arguments: dict[str, Any], folder: str, host: str, task_vars: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Fetch all captures by ARGUMENTS, in several transfers where the host has no room for all of them at once."""
        captures: list[dict[str, Any]] = []
        arrivals = Arrivals(folder)
        changed = False
        warnings: list[str] = []
        result: dict[str, Any] = {}
        while True:
            arguments["_parts"] = arrivals.list_parts()
            arguments["_broken"] = arrivals.find_broken()
            # What stays on the host must not come again because it was removed here.
            is_kept = not boolean(self._task.args.get("consume", True))
            removed = list_removed(*os.path.split(folder)) if is_kept else []
            arguments["_stamps"] = _list_stamps(folder, removed)
            found = self.call(arguments, task_vars)
            transfer = found.pop("transfer", None)
            if transfer is not None:
                captures += self._fetch(transfer, folder, host, arrivals)
            # A task that has failed may still have drained some of the instances.
            captures += [
                {"path": None, "manifest": {**manifest, "inventory_hostname": host}}
                for manifest in found.pop("empty", [])
            ]
            changed |= bool(found.get("changed"))
            warnings += found.get("warnings", [])
            has_more = found.pop("more", False)
            result = self.join(result, found) if result else found
            # Without a transfer the host has no more room than before, and the next call would find the same.
            if not has_more or transfer is None:
                break
            arguments = self.list_next(found, arguments)
        # The sort is stable: the captures of one container stay in the order of time.
        captures.sort(key=lambda capture: capture["manifest"]["container"]["name"])
        lines = [describe(capture["path"], capture["manifest"]) for capture in captures]
        warnings += [
            line
            for line, capture in zip(lines, captures)
            if capture["path"] is None and has_never_started(capture["manifest"])
        ]
        return {
            **result,
            "changed": changed,
            "warnings": list(dict.fromkeys(warnings)),
            "lines": lines,
            "captures": captures,
        }

    def _fetch(self, transfer: dict[str, Any], folder: str, host: str, arrivals: Arrivals) -> list[dict[str, Any]]:
        """Fetch TRANSFER, make captures of its segments, tell the host that it may forget them, and return the captures."""
        kept = f"they are kept on the host in {outbox.FOLDER}, and the next fetch brings them"
        with ExitStack() as undo:
            # This warning also comes where Ansible ends the task: at its timeout, or when the user interrupts it.
            undo.callback(self._display.warning, f"{host}: the captures did not reach the controller; {kept}")
            try:
                size = sum(int(segment["size"]) - int(segment["start"]) for segment in transfer["segments"])
                tell_transfer(f"{self.module}: transferring the captures of {host}", size)
                whole = self._fetch_segments(transfer, folder, arrivals)
                captures, damaged = self._assemble(whole, folder, host)
            except _TRANSFER_ERRORS as error:
                undo.pop_all()
                raise AnsibleActionFail(
                    escape(f"the captures did not reach the controller ({error}); {kept}")
                ) from error
            undo.pop_all()
        self._acknowledge(transfer)
        for path in whole:
            with suppress(FileNotFoundError):
                os.unlink(path)
        arrivals.clean()
        if damaged:
            lines = [describe(capture["path"], capture["manifest"]) for capture in captures]
            raise AnsibleActionFail(f"{'; '.join(damaged)}", result={"lines": lines, "captures": captures})
        return captures

    def _fetch_segments(self, transfer: dict[str, Any], folder: str, arrivals: Arrivals) -> list[str]:
        """Fetch the file of TRANSFER and return the paths of its segments. Raise ArrivalError unless all of them are complete."""
        if not _TRANSFER.match(str(transfer["path"])):
            raise ArrivalError(f"{transfer['path']!r} is no transfer")
        with tempfile.TemporaryDirectory(prefix=".crashcart-", dir=folder) as work:
            local = os.path.join(work, "transfer")
            try:
                if "content" in transfer:
                    with open(local, "wb", opener=open_private) as file:
                        file.write(base64.b64decode(transfer["content"], validate=True))
                else:
                    self._give_to_login(transfer["path"])
                    with uncompressed(self._connection):
                        self._connection.fetch_file(transfer["path"], local)
            finally:
                # The bytes of a broken transfer stay here, too, and the next fetch continues after them.
                open(local, "ab", opener=open_private).close()
                whole = arrivals.take(transfer, local)
        if len(whole) != len(transfer["segments"]):
            raise ArrivalError("the transfer is cut short")
        return whole

    def _give_to_login(self, path: str) -> None:
        """Make PATH the login user's. Then the connection reads it without become, and nothing has to hold all of it in memory."""
        folder = self._connection._shell.tmpdir or self._make_tmp_path()  # which the login user makes
        command = f'chown "$(stat -c %u:%g {shlex.quote(folder)})" {shlex.quote(path)}'
        done = self._low_level_execute_command(command)
        if done["rc"] != 0:
            raise ArrivalError(f"{path} cannot be given to the login user: {done['stderr'].strip()}")

    def _assemble(self, whole: list[str], folder: str, host: str) -> tuple[list[dict[str, Any]], list[str]]:
        """Make captures of the segments WHOLE, and return them and a sentence for each damaged segment, which is kept as it came."""
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
        """Let the host remove the segments of TRANSFER, or keep them for other controllers. If that fails, the next fetch does it."""
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
            self._display.warning(
                escape_lines(
                    f"the host could not remove captures that were fetched; the next fetch does: {done['stderr']}"
                )
            )


def _make_folder(folder: str) -> list[str]:
    """Make FOLDER, check that it can be written, and return the folders that had to be made, the innermost first."""
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


def _list_stamps(folder: str, removed: Iterable[str]) -> list[str]:
    """Return the stamps of the newest captures below FOLDER, for each container as many as a host keeps; REMOVED are paths of further ones."""
    found: dict[str, list[str]] = {}
    for path in removed:
        found.setdefault(os.path.basename(os.path.dirname(path)), []).append(os.path.basename(path))
    for place, _folders, names in os.walk(folder):
        found.setdefault(os.path.basename(place), []).extend(names)
    stamps: set[str] = set()
    for names in found.values():
        of_captures = sorted({name[: -len(".dat")] for name in names if name.endswith(".dat")})
        stamps.update(of_captures[-outbox.MAX_KEPT_CAPTURES :])
    return sorted(stamps)
