# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the plan of a schedule, which the role `schedule` has written: what is run, on which hosts, when, and how long at most."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.units import parse_seconds

FILE = "plan.json"
"""The name of a plan in its schedule's folder, as the role calls it."""
_HOST_TIMEOUT_S = 600.0
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,40}\Z")
"""Names of schedules. Units, files and metrics are called by them."""


@dataclass(frozen=True)
class Plan:
    """A schedule called NAME.

    COMMAND: path of ansible-playbook. PLAYBOOKS: what it runs, in this order. INVENTORY, LIMIT, FORKS: its options of these names.
    VARIABLES: extra variables of the playbooks. DEFAULTS: variables that give way to the inventory's. ENVIRONMENT: variables of the process.
    STORE: the folder of the captures. STATE: the folder of the records and the lock. TEXTFILE: node_exporter's folder, '' for none.
    CALENDAR: systemd's calendar expression; '' where CRON, the five fields of crontab(5), says when.
    TIME_LIMIT: the time, such as 1h, after which a run is ended. OFFSET: the time at most that a run begins late, on each machine another.
    """

    name: str
    command: str
    playbooks: tuple[str, ...]
    store: str
    state: str
    inventory: tuple[str, ...] = ()
    limit: str = ""
    forks: int = 5
    variables: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    textfile: str = ""
    calendar: str = ""
    cron: str = ""
    time_limit: str = "1h"
    offset: str = "0"

    @property
    def time_limit_s(self) -> float:
        """TIME_LIMIT in seconds. Raises FleetError when it is no time."""
        return parse_seconds(self.time_limit, "crashcart_time_limit") or 0.0

    @property
    def offset_s(self) -> float:
        """OFFSET in seconds. Raises FleetError when it is no time."""
        return 0.0 if self.offset.strip() == "0" else parse_seconds(self.offset, "crashcart_offset") or 0.0

    @property
    def given(self) -> dict[str, Any]:
        """All variables that the playbooks get from the schedule, by which those of the inventory may be replaced where they are DEFAULTS."""
        return {**self.all_defaults, **self.variables}

    @property
    def all_defaults(self) -> dict[str, Any]:
        """DEFAULTS, and how many seconds a task may take on one host: a host that hangs must not take the time of all others."""
        return {"crashcart_host_timeout": max(1, int(min(_HOST_TIMEOUT_S, self.time_limit_s / 4))), **self.defaults}


def read_plan(path: str) -> Plan:
    """Return the plan in the file PATH, or in the standard input for '-'. Raises FleetError where there is none that the role writes."""
    next_step = "write it again by ansible-playbook crashcart.fleet.schedule"
    try:
        document = json.loads(sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8"))
        document.update({name: tuple(document.get(name, ())) for name in ("playbooks", "inventory")})
        plan = Plan(**document)
    except OSError as error:
        raise FleetError(f"the schedule's plan {path} cannot be read: {error.strerror}; {next_step}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise FleetError(f"{path} is no plan of a schedule ({error}); {next_step}") from error
    if not NAME.match(plan.name) or not plan.playbooks:
        raise FleetError(f"{path} is no plan of a schedule: it has no name or no playbook; {next_step}")
    return plan
