# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find what the controller lacks for a playbook, and name the commands that install it."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Iterable

from ansible_collections.crashcart.fleet.plugins.plugin_utils.terminal import NoTerminalError, open_terminal

_OF_REPORTS = {"numba": "numba", "numpy": "numpy"}
# Need → Python's modules and their packages, as in requirements.txt.
_MODULES = {
    "report": _OF_REPORTS,
    "report_packages": _OF_REPORTS,
    "build": {"elftools": "pyelftools"},
    "cron": {"cronsim": "cronsim"},
}
# Need → programs and their Debian packages, as in meta/ee-bindep.txt.
_PROGRAMS = {
    "build": {
        "apt-get": "apt",
        "dpkg-deb": "dpkg",
        "mksquashfs": "squashfs-tools",
        "patchelf": "patchelf",
    }
}


def find_missing(needs: Iterable[str], dest: str) -> list[str]:
    """Return a sentence with the next step for each thing that this machine lacks for NEEDS.

    These are report, report_packages, build, cron and terminal; others are ignored. DEST is the folder for a report and its captures, which
    report_packages does not look at.
    """
    needs = tuple(needs)
    found = []
    if "report" in needs:
        obstacle = find_obstacle(find_place(dest))
        found += [f"the captures cannot go to {dest}: {obstacle}; choose another crashcart_dest"] if obstacle else []
    if "terminal" in needs:
        found += _find_no_terminal()
    return found + find_missing_packages(needs)


def find_missing_packages(needs: Iterable[str]) -> list[str]:
    """Return a sentence for Python's packages, and one for Debian's, that this machine lacks for NEEDS, with the command that installs them."""
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    modules, programs, found = [], [], []
    for need in needs:
        modules += [
            package for module, package in _MODULES.get(need, {}).items() if importlib.util.find_spec(module) is None
        ]
        programs += [
            package for program, package in _PROGRAMS.get(need, {}).items() if shutil.which(program, path=path) is None
        ]
    if modules:
        command = shlex.join([sys.executable, "-m", "pip", "install", *modules])
        found.append(f"the controller's Python lacks {', '.join(modules)}: {command}")
    if programs:
        found.append(f"the controller lacks {', '.join(programs)}: {shlex.join(['apt-get', 'install', *programs])}")
    return found


def find_place(folder: str) -> str:
    """Return the path of FOLDER, or of the deepest of the folders above it that is there."""
    place = os.path.abspath(os.path.expanduser(folder))
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    return place


def find_obstacle(place: str) -> str | None:
    """Return the reason why nothing can be made in the folder PLACE, which is there, without trying it; None if there is none."""
    if not os.path.isdir(place):
        return f"{place} is no folder"
    # os.access calls /proc writable for root, but nobody can make a file there.
    if not os.access(place, os.W_OK | os.X_OK) or f"{place}/".startswith("/proc/"):
        return f"{place} is not writable here"
    return None


def _find_no_terminal() -> list[str]:
    try:
        os.close(open_terminal(os.getppid()))
    except NoTerminalError as error:
        return [f"{error}; crashcart.fleet.attach prints a line that gives a shell at any terminal"]
    return []
