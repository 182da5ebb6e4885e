# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's policy for the start hook: which profiles there are, what each records, and what it may cost at most.

The file has the options of ftrace_instance for each profile, complete and checked when the policy was written.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from typing import Any, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.names import HOOK_POLICY, HOOK_PROGRAM

_HEAD_BYTES = 1024
_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}\Z")  # also the name of a CDI device, and a part of a runtime's name


def check_name(name: str) -> None:
    """Raise FleetError unless NAME can be the name of a profile."""
    if not _NAME.match(name):
        raise FleetError(
            f"profile {name!r}: a profile has a name of small letters, digits and '-', which begins with a letter, of at most 31 characters"
        )


def make_text(profiles: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the text of the policy with PROFILES, name → complete options."""
    return json.dumps({"profiles": profiles}, indent=1, sort_keys=True) + "\n"


def read() -> dict[str, Any]:
    """Return the profiles of the host's policy, name → complete options; raises FleetError where there is none that can be read."""
    try:
        with open(HOOK_POLICY, encoding="utf-8") as file:
            found = json.load(file)["profiles"]
        if isinstance(found, dict):
            return found
    except OSError as error:
        raise FleetError(f"{HOOK_POLICY} cannot be read ({error.strerror}): run the role start_hook") from error
    except (ValueError, KeyError, TypeError):
        pass
    raise FleetError(f"{HOOK_POLICY} is damaged: run the role start_hook")


def check_program() -> None:
    """Raise FleetError where the hook's program is not there, or the Python that runs it: then no container is traced, and none is told of."""
    try:
        with open(HOOK_PROGRAM, "rb") as file:
            words = [shlex.split(line.decode("ascii", "replace")) for line in file.readlines(_HEAD_BYTES)[:3]]
    except (OSError, ValueError) as error:
        raise FleetError(f"{HOOK_PROGRAM} cannot be read ({error}): run the role start_hook") from error
    python = next((line[0] for line in words if "-IS" in line), "")
    if not os.access(python, os.X_OK):
        raise FleetError(f"{HOOK_PROGRAM} needs {python}, which is not there: run the role start_hook again")


def exists() -> bool:
    """Return True if the host has a policy."""
    return os.path.lexists(HOOK_POLICY)
