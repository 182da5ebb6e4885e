# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line that gives a person an interactive shell with the attached tools."""

from __future__ import annotations

import shlex
from typing import Iterable

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import store
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach.attachments import Attachment
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.host import Host


def shell_line(attachment: Attachment, host: Host) -> str:
    """Return the line for the host's terminal that starts an interactive shell with the tools of ATTACHMENT."""
    settings = f"{attachment.path}/etc/crashcart.bashrc"
    # LD_*: the container's own settings of the loader would take effect before the shell reads ours.
    # HISTFILE: otherwise bash writes its history into the home of the container's user.
    variables = ["LD_LIBRARY_PATH=", "LD_PRELOAD=", "HISTFILE="]
    shell = [f"{attachment.path}/bin/bash", "--rcfile", settings, "-i"]
    if "bash" not in _list_tools(attachment):
        variables.append(f"ENV={settings}")
        shell = [f"{attachment.path}/bin/sh", "-i"]
    return shlex.join(host.list_shell_words(attachment.container, variables, shell))


def _list_tools(attachment: Attachment) -> Iterable[str]:
    """Return the names of the attached image's tools, or those that most images have where the store has replaced the image."""
    image = store.find_image(attachment.image)
    if image is None or image.digest != attachment.digest:
        return ("bash",)
    return image.manifest.get("tools") or ("bash",)
