# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the controller itself has to have for a playbook, and the command that installs what is missing."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Iterable

# Python's modules and who brings them, as in requirements.txt; programs and Debian's packages of them, as in meta/ee-bindep.txt.
_MODULES = {"report": {"numpy": "numpy"}, "build": {"elftools": "pyelftools"}}
_PROGRAMS = {
    "build": {
        "apt-get": "apt",
        "dpkg-deb": "dpkg",
        "mksquashfs": "squashfs-tools",
        "patchelf": "patchelf",
    }
}


def find_missing(needs: Iterable[str]) -> list[str]:
    """What this machine lacks for NEEDS (report, build), in words with the command that installs it; nothing for other needs."""
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    modules, programs = [], []
    for need in needs:
        modules += [name for one, name in _MODULES.get(need, {}).items() if importlib.util.find_spec(one) is None]
        programs += [name for one, name in _PROGRAMS.get(need, {}).items() if shutil.which(one, path=path) is None]
    found = []
    if modules:
        command = shlex.join([sys.executable, "-m", "pip", "install", *modules])
        found.append(f"the controller's Python lacks {', '.join(modules)}: {command}")
    if programs:
        found.append(f"the controller lacks {', '.join(programs)}: {shlex.join(['apt-get', 'install', *programs])}")
    return found
