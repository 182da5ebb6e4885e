# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's half of crashcart_image: send the image unless the host has it, then run the module that stores it."""

from __future__ import annotations

import os
import re
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.crashcart.fleet.plugins.module_utils.architectures import name_architecture
from ansible_collections.crashcart.fleet.plugins.module_utils.cart import store
from ansible_collections.crashcart.fleet.plugins.module_utils.image.builder import manifest_path, read_manifest
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape_lines
from ansible_collections.crashcart.fleet.plugins.plugin_utils.progress import tell_transfer
from ansible_collections.crashcart.fleet.plugins.plugin_utils.transfer import uncompressed


class ActionModule(ActionBase):
    """The action crashcart_image."""

    _supports_async = False
    _supports_check_mode = True

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send the image if the host's store lacks it, run the module where it has something to do, and return the result."""
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        if arguments.get("state", "present") == "present" and "src" in arguments:
            if not arguments["src"]:
                raise AnsibleActionFail("src is empty: give the path of an image that crashcart_build has made")
            source = self._find_needle("files", os.path.expanduser(self._choose(arguments["src"])))
            arguments["src"] = source
            manifest = read_manifest(source)
            if manifest is None:
                raise AnsibleActionFail(
                    f"{manifest_path(source)} is missing or does not belong to the image beside it: build the image with crashcart_build"
                )
            try:
                store.check_manifest_form(manifest)
            except store.ImageError as error:
                raise AnsibleActionFail(f"{manifest_path(source)}: {error}") from error
            # The manifest is long, with its tools and packages, and the host needs it once. So it travels with the module's arguments.
            arguments["_manifest"] = manifest
            image = store.StoredImage(str(arguments.get("name", "default")), str(manifest["digest"]), manifest)
            try:
                store.check_name(image.name)
            except store.ImageError as error:
                raise AnsibleActionFail(str(error)) from error
            folder = self._look(image)
            # Other arguments may be wrong, so the module has to check them.
            if folder is None and not set(self._task.args) - {"src", "name", "state"}:
                states = {image.name: image.digest}
                return {"changed": False, "image": image.as_result(), "diff": {"before": states, "after": states}}
            if folder:
                host = (task_vars or {}).get("inventory_hostname", "the host")
                tell_transfer(f"crashcart_image: pushing image {image.name} to {host}", os.path.getsize(source))
                arguments["_staged"] = self._send(source, folder)
        try:
            return self._execute_module(  # type: ignore[no-any-return]
                module_name="crashcart.fleet.crashcart_image", module_args=arguments, task_vars=task_vars
            )
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)

    def _choose(self, source: Any) -> str:
        """Return SOURCE, a path, or, where SOURCE maps architectures to paths, the path for the host."""
        if not isinstance(source, dict):
            return str(source)
        machine = str(self._low_level_execute_command("uname -m", sudoable=False)["stdout"]).strip()
        architecture = name_architecture(machine)
        if architecture not in source:
            raise AnsibleActionFail(
                f"the host is {architecture}, and src has images for {', '.join(map(str, source))} only: build one with"
                f" arch={architecture}"
            )
        return str(source[architecture])

    def _look(self, image: store.StoredImage) -> str | None:
        """Return None if the host's store has IMAGE, which it has verified then.

        Otherwise make a temporary folder of the login user on the host and return its path, or return "" in check mode.
        """
        quote = self._connection._shell.quote
        manifest = quote(image.manifest_path)
        others = quote(os.path.dirname(image.path))
        # The store's folder has to hold the image and its manifest only: with files of a killed push the image is pushed again.
        command = f"if test -f {quote(image.path)} && test -f {manifest} && test $(ls -A {others} | wc -l) = 2; then echo there"
        if not self._task.check_mode:
            # One command does both, since over ssh each command costs a round trip. mktemp replaces the Xs by random letters.
            home, slash, rest = self.get_shell_option("remote_tmp", default="~/.ansible/tmp").partition("/")
            tmp = home + quote(slash + rest) if re.fullmatch(r"~[\w.-]*", home) else quote(home + slash + rest)
            command += f"; else umask 77 && mkdir -p {tmp} && mktemp -d {tmp}/crashcart-tmp-XXXXXXXXXX"
        found = self._low_level_execute_command(command + "; fi", sudoable=False)
        answer = found["stdout"].strip().rpartition("\n")[2]
        if found["rc"] != 0 or (answer and answer != "there" and not answer.startswith("/")):
            raise AnsibleActionFail(
                escape_lines(f"the host has no place for the image in remote_tmp: {found['stderr'] or answer}")
            )
        if answer == "there":
            return None
        if answer:
            self._connection._shell.tmpdir = answer
            self._cleanup_remote_tmp = True
        return str(answer)

    def _send(self, source: str, folder: str) -> str:
        """Copy SOURCE into FOLDER on the host and return its path there."""
        target: str = self._connection._shell.join_path(folder, "image")
        with uncompressed(self._connection):
            self._connection.put_file(source, target)
        return target
