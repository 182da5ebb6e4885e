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

from ansible_collections.crashcart.fleet.plugins.plugin_utils.terminal import NoTerminalError, open_terminal

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


def find_missing(needs: Iterable[str], dest: str) -> list[str]:
    """What this machine lacks for NEEDS (report, build, terminal), in words with the next step; nothing for other needs.

    DEST is the folder that a report and its captures go to.
    """
    needs = tuple(needs)
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    modules, programs = [], []
    for need in needs:
        modules += [name for one, name in _MODULES.get(need, {}).items() if importlib.util.find_spec(one) is None]
        programs += [name for one, name in _PROGRAMS.get(need, {}).items() if shutil.which(one, path=path) is None]
    found = []
    if "report" in needs:
        found += _find_obstacle(dest)
    if "terminal" in needs:
        found += _find_no_terminal()
    if modules:
        command = shlex.join([sys.executable, "-m", "pip", "install", *modules])
        found.append(f"the controller's Python lacks {', '.join(modules)}: {command}")
    if programs:
        found.append(f"the controller lacks {', '.join(programs)}: {shlex.join(['apt-get', 'install', *programs])}")
    return found


def _find_obstacle(dest: str) -> list[str]:
    """Why folder DEST cannot be written, in words; nothing where it can, or can be made."""
    place = os.path.abspath(os.path.expanduser(dest))
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        return [f"the captures cannot go to {dest}: {place} is no folder; choose another crashcart_dest"]
    # To root /proc looks writable, and nothing can be made there.
    if not os.access(place, os.W_OK | os.X_OK) or f"{place}/".startswith("/proc/"):
        return [f"the captures cannot go to {dest}: {place} is not writable here; choose another crashcart_dest"]
    return []


def _find_no_terminal() -> list[str]:
    try:
        os.close(open_terminal(os.getppid()))
    except NoTerminalError as error:
        return [f"{error}; crashcart.fleet.attach prints a line that gives a shell at any terminal"]
    return []
