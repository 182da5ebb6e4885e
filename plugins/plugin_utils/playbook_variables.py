# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The variables of the collection's playbooks, and what is wrong with those that somebody has set."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

PREFIX = "crashcart_"
SELECTION = ("containers", "labels", "query")
# All that any of the playbooks knows, without the prefix: group_vars are shared.
NAMES = frozenset(
    (
        *SELECTION,
        *("allow_empty", "docker_host", "hosts", "serial", "dest"),
        # install, attach, detach, exec
        *("image", "image_src", "method", "ttl", "busy", "busy_timeout"),
        *("command", "argv", "env", "stdin", "chdir", "user", "timeout", "rights", "trust_container", "confined"),
        *("capabilities", "namespaces", "max_output", "output"),
        # trace, start, stop, collect, report
        *(
            "seconds",
            "existing",
            "profile",
            "syscalls",
            "compat",
            "errors_only",
            "events",
            "tracer",
            "functions",
            "notrace",
        ),
        *("buffer_size", "mode", "max_rate", "max_loss", "max_size", "max_age", "rotate_size", "rotate_time"),
        *("when_full", "min_free", "clock", "follow_exec", "follow_tools", "follow_restarts", "probes", "paths"),
        *("paths_by", "expose", "format", "dat_version", "consume", "min_latency", "formats", "src"),
    )
)
_DROPPED = "_raw_params"  # what Ansible calls words of an option -e that are no assignment


def find_unknown(variables: Iterable[str]) -> list[str]:
    """What is wrong with the names of VARIABLES that begin as the playbooks' do, each in words, with the nearest known name."""
    found = []
    for name in sorted(variables):
        if name.startswith(PREFIX) and name[len(PREFIX) :] not in NAMES:
            near = difflib.get_close_matches(name[len(PREFIX) :], sorted(NAMES), 1)
            hint = f": {PREFIX}{near[0]} may be meant" if near else f"; variables are {', '.join(sorted(NAMES))}"
            found.append(f"no playbook has a variable {name}{hint}")
    return found


def find_dropped(variables: Mapping[str, Any]) -> list[str]:
    """What Ansible has dropped of an option -e among VARIABLES, in words."""
    words = str(variables.get(_DROPPED) or "").strip()
    if not words:
        return []
    return [
        f"Ansible takes -e apart at blanks, and {words!r} is left over: put a value with blanks into quotes of its own, as in"
        f''' -e "{PREFIX}command='ss -tnp'"'''
    ]


def find_missing(variables: Mapping[str, Any], needs: Iterable[str]) -> list[str]:
    """What of NEEDS (containers, command) VARIABLES do not say, in words."""
    found = []
    if "containers" in needs and not any(is_set(variables, one) for one in SELECTION):
        found.append(
            f"nothing says which containers: give -e {PREFIX}containers=NAME, a list, or a glob ('*' means all that run);"
            f" {PREFIX}labels and {PREFIX}query select, too"
        )
    if "command" in needs and not any(is_set(variables, one) for one in ("command", "argv")):
        found.append(f'''nothing says what to run: give -e "{PREFIX}command='ss -tnp'", or {PREFIX}argv, a list''')
    return found


def is_set(variables: Mapping[str, Any], name: str) -> bool:
    """Whether VARIABLES have the playbooks' variable NAME."""
    return variables.get(PREFIX + name) is not None
