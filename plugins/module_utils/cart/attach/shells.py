# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The line that gives a person an interactive shell with the attached tools."""

from __future__ import annotations

import shlex
from typing import Iterable

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import store
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach.attachments import Attachment
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.host import Host


def shell_line(attachment: Attachment, host: Host) -> str:
    """The line for the host's terminal that gives an interactive shell."""
    settings = f"{attachment.path}/etc/crashcart.bashrc"
    # The container's own settings of its loader would hit the shell before it reads ours.
    # Without HISTFILE bash leaves what was typed in the home of the container's user.
    variables = ["LD_LIBRARY_PATH=", "LD_PRELOAD=", "HISTFILE="]
    shell = [f"{attachment.path}/bin/bash", "--rcfile", settings, "-i"]
    if "bash" not in _list_tools(attachment):
        variables.append(f"ENV={settings}")
        shell = [f"{attachment.path}/bin/sh", "-i"]
    return shlex.join(host.list_shell_words(attachment.container, variables, shell))


def _list_tools(attachment: Attachment) -> Iterable[str]:
    """Names of the attached image's tools; where the store has another one by now, those that most images have."""
    image = store.find_image(attachment.image)
    if image is None or image.digest != attachment.digest:
        return ("bash",)
    return image.manifest.get("tools") or ("bash",)
