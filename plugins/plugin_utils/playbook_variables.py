# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check the variables that a user has set for the collection's playbooks."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

PREFIX = "crashcart_"
SELECTION = ("containers", "labels", "query")
# The variables of all playbooks, without the prefix: group_vars are shared, so each playbook accepts those of the others.
NAMES = frozenset(
    (
        *SELECTION,
        *("allow_empty", "docker_host", "hosts", "serial", "dest"),
        # schedule, and what it gives to the playbooks that it runs
        *(
            "name",
            "state",
            "what",
            "on_calendar",
            "cron",
            "offset",
            "time_limit",
            "forks",
            "inventory",
            "limit",
            "run_as",
        ),
        *("textfile", "collect_all", "host_timeout"),
        # install, attach, detach, exec
        *("image", "image_src", "method", "ttl", "busy", "busy_timeout"),
        *("command", "argv", "env", "stdin", "chdir", "user", "timeout", "rights", "trust_container", "confined"),
        *("capabilities", "namespaces", "max_output", "output"),
        # trace, start, stop, collect, report
        *(
            "seconds",
            "wait_for_start",
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
        *("paths_by", "expose", "format", "dat_version", "consume", "min_latency", "formats", "fail_on", "src"),
        *("since", "until", "of_hosts", "runs"),
        # cleanup
        "force",
        # the store
        *("run", "keep_age", "keep_count", "keep_size", "keep_total", "keep_free"),
    )
)
# The variables that are lists. A text that begins with a bracket is meant to be a list, but Ansible has not parsed it.
LISTS = (
    "containers",
    "argv",
    "capabilities",
    "namespaces",
    "syscalls",
    "events",
    "functions",
    "notrace",
    "probes",
    "formats",
    "fail_on",
    "of_hosts",
    "runs",
)
# Prefix of a role's variables → their names after the prefix.
ROLES = {
    "trace_": NAMES
    | {
        "default_ttl",
        "ids",
        "all",
        "failures",
        "started",
        "stopped",
        "fetched",
        "removed",
        "report",
        "hosts",
        "phase",
        "limits",
        "stored",
    },
    "install_": frozenset(
        {
            *("image_src", "image_name", "docker_host", "packages", "package_names", "facts", "before", "after"),
            *("built_image", "missing", "reasons"),
        }
    ),
    "cleanup_": frozenset({"docker_host", "docker_config", "force", "before", "after"}),
}
CONTAINERS_GROUP = "crashcart_containers"  # of the inventory plugin
_DROPPED = "_raw_params"  # Ansible's name for the words of an option -e that are not assignments
_LIKE = 0.85  # from 0 to 1: the similarity of a name to the one that it is probably meant for


def find_unknown(variables: Mapping[str, Any]) -> list[str]:
    """Return a sentence, with the nearest known name, for each name in VARIABLES that is probably meant for a playbook and unknown.

    For a container of the inventory plugin return only a sentence that it cannot be a host of the playbooks.
    """
    if CONTAINERS_GROUP in (variables.get("group_names") or ()):
        return [
            "a container of the inventory is no host of the playbooks: name its host, and the container in crashcart_containers"
        ]
    found = []
    for name in sorted(variables):
        if name.startswith(PREFIX):
            if name[len(PREFIX) :] not in NAMES and not _is_result(variables[name]):
                found.append(f"no playbook has a variable {name}{_find_hint(name, PREFIX, NAMES)}")
        elif _is_misspelled(name):
            found.append(f"no playbook has a variable {name}: they begin with {PREFIX}")
        for prefix, known in ROLES.items():
            if name.startswith(prefix) and name[len(prefix) :] not in known:
                near = difflib.get_close_matches(name[len(prefix) :], sorted(known), 1, _LIKE)
                found += [f"no playbook has a variable {name}: {prefix}{near[0]} may be meant"] if near else []
    return found


def _find_hint(name: str, prefix: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name[len(prefix) :], sorted(known), 1)
    return f": {prefix}{near[0]} may be meant" if near else f"; after {prefix} they have {', '.join(sorted(known))}"


def _is_result(value: Any) -> bool:
    """Return True if VALUE is the registered result of a task, which may have any name."""
    return isinstance(value, Mapping) and "changed" in value and "failed" in value


def _is_misspelled(name: str) -> bool:
    """Return True if NAME begins with a word that is similar to the playbooks' prefix."""
    word, mark, _rest = name.replace("-", "_").partition("_")
    return bool(mark) and difflib.SequenceMatcher(None, word.lower(), PREFIX[:-1]).ratio() >= _LIKE


def find_misshapen(variables: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each of VARIABLES that holds a text in place of a list, or a list in place of a text."""
    found = []
    for name in LISTS:
        value = variables.get(PREFIX + name)
        if isinstance(value, str) and value.lstrip().startswith("["):
            found.append(
                f"{PREFIX}{name} is the text {value!r}, since -e NAME=VALUE makes texts: give"
                f""" -e '{{"{PREFIX}{name}": [...]}}', or names with commas between them"""
            )
    if isinstance(variables.get(f"{PREFIX}command"), (list, tuple)):
        found.append(f"{PREFIX}command is a list: that is what {PREFIX}argv is for")
    return found


def find_dropped(variables: Mapping[str, Any]) -> list[str]:
    """Return a sentence about the words of an option -e that Ansible has dropped, if VARIABLES hold such words."""
    words = str(variables.get(_DROPPED) or "").strip()
    if not words:
        return []
    return [
        f"Ansible splits -e at blanks, and {words!r} is left over: put a value with blanks into quotes of its own, as in"
        f''' -e "{PREFIX}command='ss -tnp'"'''
    ]


def find_missing(variables: Mapping[str, Any], needs: Iterable[str]) -> list[str]:
    """Return a sentence for each of NEEDS (containers, command) that no variable of VARIABLES meets. Other needs are ignored."""
    found = []
    if "containers" in needs and not any(is_set(variables, name) for name in SELECTION):
        found.append(
            f"nothing says which containers: give -e {PREFIX}containers=NAME, a list, or a glob ('*' means all that run);"
            f" {PREFIX}labels and {PREFIX}query select, too"
        )
    if "command" in needs and not any(is_set(variables, name) for name in ("command", "argv")):
        found.append(f'''nothing says what to run: give -e "{PREFIX}command='ss -tnp'", or {PREFIX}argv, a list''')
    return found


def is_set(variables: Mapping[str, Any], name: str) -> bool:
    """Return True if VARIABLES set the playbooks' variable NAME, which is without its prefix."""
    return variables.get(PREFIX + name) is not None
