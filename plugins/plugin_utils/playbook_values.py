# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check the values that a user has set for the variables of the collection's playbooks, as far as this needs no host.

Each task checks its own options. But the tasks at the end of a playbook come after the trace, and those of a schedule when nobody looks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.calls.arguments import ARGUMENTS
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch.arguments import FORMAT_ARGUMENTS
from ansible_collections.crashcart.fleet.plugins.module_utils.units import parse_bytes, parse_seconds
from ansible_collections.crashcart.fleet.plugins.plugin_utils import report_runner
from ansible_collections.crashcart.fleet.plugins.plugin_utils.playbook_variables import PREFIX

_OF_REPORT = ("formats", "min_latency", "fail_on")
_SPECIFICATION: dict[str, dict[str, Any]] = {
    **ARGUMENTS,
    **FORMAT_ARGUMENTS,
    **{name: report_runner.ARGUMENTS[name] for name in _OF_REPORT},
    "seconds": {"type": "float"},
    "host_timeout": {"type": "int"},
}


def find_wrong(variables: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each of VARIABLES for a trace or its report whose value no task would take, whatever the host.

    A value that is a template still is not looked at.
    """
    found = []
    for name, about in _SPECIFICATION.items():
        value = variables.get(PREFIX + name)
        if value is None or "{{" in str(value):
            continue
        result = ArgumentSpecValidator({name: about}).validate({name: value})
        if result.error_messages:
            found.append(f"{PREFIX}{name}: {'; '.join(result.error_messages)}")
        elif name in _PARSERS:
            try:
                _PARSERS[name](result.validated_parameters[name], name)
            except FleetError as error:  # its text begins with the name
                found.append(f"{PREFIX}{error}")
    return found


def _choose(words: list[str], _name: str) -> None:
    # It imports numpy, which few playbooks need here.
    from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.choice import Choice

    Choice(words)


_PARSERS: dict[str, Callable[[Any, str], object]] = {
    **dict.fromkeys(("buffer_size", "max_size", "min_free", "rotate_size"), parse_bytes),
    **dict.fromkeys(("ttl", "max_age", "rotate_time", "min_latency"), parse_seconds),
    "fail_on": _choose,
}
