# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's half of crashcart_image: send the image, unless the host has it, then let the module take it in."""

from __future__ import annotations

import os
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import store
from ansible_collections.crashcart.fleet.plugins.module_utils.image.builder import manifest_path, read_manifest
from ansible_collections.crashcart.fleet.plugins.plugin_utils.transfer import uncompressed


class ActionModule(ActionBase):
    _supports_async = False
    _supports_check_mode = True

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the task."""
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        if arguments.get("state", "present") == "present" and arguments.get("src"):
            source = self._find_needle("files", os.path.expanduser(str(arguments["src"])))
            manifest = read_manifest(source)
            if manifest is None:
                raise AnsibleActionFail(
                    f"{manifest_path(source)} is missing or does not belong to the image beside it: build the image with crashcart_build"
                )
            try:
                store.check_manifest_form(manifest)
            except store.ImageError as error:
                raise AnsibleActionFail(f"{manifest_path(source)}: {error}") from error
            # Tools and packages are many and the host needs them once; they go along with the image.
            arguments["_manifest"] = manifest
            name = str(arguments.get("name", "default"))
            if not self._task.check_mode and not self._has_image(name, str(manifest["digest"])):
                arguments["_staged"] = self._send(source)
        try:
            return self._execute_module(  # type: ignore[no-any-return]
                module_name="crashcart.fleet.crashcart_image", module_args=arguments, task_vars=task_vars
            )
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)

    def _has_image(self, name: str, digest: str) -> bool:
        """Whether the host's store has the image: a hint that saves the transfer; the module decides."""
        if not store.NAME_PATTERN.match(name):
            return True  # nothing is sent; the module says what is wrong
        path = store.StoredImage(name, digest, {}).path
        quote = self._connection._shell.quote
        manifest = quote(path[: -len(store.SUFFIX)] + ".json")
        others = quote(path.rpartition("/")[0])
        # The image with its manifest and nothing else: what a killed push has left is pushed again.
        test = f"test -f {quote(path)} && test -f {manifest} && test $(ls {others} | wc -l) = 2"
        found = self._low_level_execute_command(test, sudoable=False)
        return bool(found["rc"] == 0)

    def _send(self, source: str) -> str:
        """Copy SOURCE to a folder of the login user on the host; its path there."""
        folder = self._make_tmp_path()
        target: str = self._connection._shell.join_path(folder, "image")
        with uncompressed(self._connection):
            self._connection.put_file(source, target)
        return target
