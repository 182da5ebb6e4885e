# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Have standing rules begin when the host starts, or not any more: their options, the program that begins them, and a unit of systemd.

At each moment whatever systemd may find leads to a program that is there: the program comes first and goes last.
"""

from __future__ import annotations

import json
import os
import subprocess
from functools import partial
from typing import Any, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.boot import begin, program
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.calls import arguments
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.installed import archive, files
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.installed.files import File
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.installed.steps import (
    Step,
    plan_removal,
    plan_write,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rule import read_at_boot
from ansible_collections.crashcart.fleet.plugins.module_utils.names import (
    BOOT_PROGRAM,
    BOOT_RULES,
    BOOT_UNIT,
    BOOT_UNIT_FILE,
)

_SYSTEMD = "/run/systemd/system"  # is there while systemd runs: sd_booted(3)
_LINK = f"/etc/systemd/system/multi-user.target.wants/{BOOT_UNIT}"
_LIMIT_S = 60
_UNIT = f"""\
# Made by the role crashcart.fleet.standing_rules, which also removes it.
[Unit]
Description=Standing rules of crashcart.fleet, which trace containers from their first instruction
ConditionPathExists={BOOT_RULES}
RequiresMountsFor=/sys/kernel/tracing
After=local-fs.target
Before=docker.service containerd.service crio.service podman-restart.service

[Service]
Type=oneshot
RemainAfterExit=yes
# A host whose trace hangs starts its containers all the same.
TimeoutStartSec=90
ExecStart={BOOT_PROGRAM}

[Install]
WantedBy=multi-user.target
"""


def complete_rules(entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return name → options of ftrace_instance of the rules ENTRIES; raises FleetError for an empty or a second equal name, or no rule."""
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        name = entry["name"].strip()
        if not name:
            raise FleetError("a rule has an empty name: give each rule a name of its own")
        if name in found:
            raise FleetError(f"rule {name} is there twice: give each rule a name of its own")
        found[name] = {**arguments.fill_for_rule(entry), "rule": name}
    if not found:
        raise FleetError("rules is empty: give at least one rule, or state=absent")
    return found


def plan_presence(wanted: Mapping[str, Mapping[str, Any]], root: str | None) -> list[Step]:
    """Return the steps after which the rules WANTED, and no earlier ones, run and begin with the host.

    ROOT is the tracefs; None where it is not mounted yet, which leaves their options unchecked. Raises FleetError where no systemd runs, or
    for a rule that cannot be on this host.
    """
    if not os.path.isdir(_SYSTEMD):
        raise FleetError(
            "no systemd runs here, by which rules begin when the host starts: use ftrace_instance with state=awaiting, which lasts until then"
        )
    content, end = archive.make(program.__name__)
    text = json.dumps({"rules": wanted}, indent=1, sort_keys=True) + "\n"
    dropped = read_kept().keys() - wanted.keys()
    unit = plan_write(File(BOOT_UNIT_FILE, _UNIT.encode("ascii")))
    is_linked = os.path.islink(_LINK) and os.readlink(_LINK) == BOOT_UNIT_FILE
    return [
        plan_write(File(BOOT_PROGRAM, content, 0o755, end)),
        plan_write(File(BOOT_RULES, text.encode("utf-8"), 0o600)),
        Step("", bool(dropped), partial(begin.end, dropped)),
        unit,
        Step(_LINK, not is_linked, partial(files.link, _LINK, BOOT_UNIT_FILE)),
        Step("", unit.is_needed or not is_linked, _reload),
        *(_plan_begin(name, options, root) for name, options in wanted.items()),
    ]


def _plan_begin(name: str, options: Mapping[str, Any], root: str | None) -> Step:
    try:
        is_needed = root is None or begin.begin(options, root, check_mode=True)
    except FleetError as error:
        raise FleetError(f"rule {name}: {error}") from error
    return Step(f"rule {name}", is_needed, partial(begin.begin, options, root or ""))


def plan_absence() -> list[Step]:
    """Return the steps that end all rules that begin with the host, and take away everything of them; what they have recorded stays."""
    unit, link = plan_removal(BOOT_UNIT_FILE), Step(_LINK, os.path.islink(_LINK), partial(files.remove, _LINK))
    names = read_kept()
    steps = [
        link,
        unit,
        Step("", unit.is_needed or link.is_needed, _reload),
        Step("", bool(names), partial(begin.end, names)),
        plan_removal(BOOT_RULES),
        plan_removal(BOOT_PROGRAM),
    ]
    return [*steps, Step("", any(step.is_needed for step in steps) or files.has_memory(), files.remove_folders)]


def read_kept() -> dict[str, Any]:
    """Return the rules that begin with the host; none where their list is damaged, which is written anew or removed."""
    try:
        return read_at_boot()
    except FleetError:
        return {}


def _reload() -> None:
    """Have systemd read its units again; do nothing where none runs. Raises FleetError if it cannot."""
    if not os.path.isdir(_SYSTEMD):
        return
    try:
        done = subprocess.run(
            ["systemctl", "daemon-reload"], capture_output=True, text=True, check=False, timeout=_LIMIT_S
        )
        why = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        why = str(error)
    if why:
        raise FleetError(
            f"systemd does not read its units again ({why}): run systemctl daemon-reload, and this task again"
        )
