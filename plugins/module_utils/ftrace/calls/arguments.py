# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options that say what a trace records, with their types. The doc fragments traces and probes document them."""

from __future__ import annotations

from typing import Any, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import exposure
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request import paths, probes, profiles, tracers

ARGUMENTS: dict[str, dict[str, Any]] = {
    "existing": {"type": "str", "choices": ["change", "refuse"], "default": "change"},
    "profile": {"type": "str", "choices": list(profiles.PROFILES)},
    "syscalls": {"type": "list", "elements": "str", "default": []},
    "compat": {"type": "bool", "default": True},
    "errors_only": {"type": "bool", "default": False},
    "events": {"type": "list", "elements": "raw", "default": []},
    "tracer": {"type": "str", "choices": list(tracers.OPTIONS), "default": "nop"},
    "functions": {"type": "list", "elements": "str", "default": []},
    "notrace": {"type": "list", "elements": "str", "default": []},
    "buffer_size": {"type": "str"},
    "mode": {"type": "str", "choices": ["ring", "record"]},
    "ttl": {"type": "str"},
    "max_rate": {"type": "int"},
    "max_loss": {"type": "int"},
    "max_size": {"type": "str"},
    "max_age": {"type": "str"},
    "rotate_size": {"type": "str"},
    "rotate_time": {"type": "str"},
    "when_full": {"type": "str", "choices": ["stop", "rotate"]},
    "min_free": {"type": "str"},
    "clock": {"type": "str", "choices": ["mono", "mono_raw", "boot", "global", "local"], "default": "mono"},
    "follow_exec": {"type": "bool", "default": True},
    "follow_tools": {"type": "bool", "default": False},
    "follow_restarts": {"type": "bool"},
    "probes": {"type": "list", "elements": "dict", "default": [], "options": probes.ARGUMENTS},
    "paths": {"type": "str", "choices": list(paths.WISHES)},
    "paths_by": {"type": "str", "choices": ["auto", *paths.WAYS], "default": "auto"},
    "expose": {
        "type": "dict",
        "options": {
            "path": {"type": "str", "default": "/dev/crashcart-trace"},
            "files": {
                "type": "list",
                "elements": "str",
                "choices": list(exposure.FILES),
                "default": ["trace", "trace_marker"],
            },
        },
    },
}
# Those that each of several rules can have, where a module is given a list of rules.
_OF_RULES = "profile syscalls events errors_only paths buffer_size max_size min_free max_rate max_loss"
OF_RULES = {name: ARGUMENTS[name] for name in _OF_RULES.split()}
# What a rule has no choice of, and selects by other means.
_FIXED = {"mode": "record", "query": None, "docker_host": None}


def fill_for_rule(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of ftrace_instance for ENTRY of a list of rules, which has some of them and a `name`; others get their defaults."""
    defaults = {name: about.get("default") for name, about in ARGUMENTS.items()}
    return {**defaults, **{name: value for name, value in entry.items() if name != "name"}, **_FIXED}
