# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that systemd runs when the host starts: it begins the standing rules that the host keeps."""

from __future__ import annotations

import sys

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError, tell_any
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.boot.begin import begin
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import client
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rule import read_at_boot
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import tracefs


def main() -> None:
    """Begin all rules, say on stderr which cannot begin, and raise SystemExit: with a true value if there is one."""
    failures = []
    try:
        root = tracefs.find_tracefs()
        client.refuse_other_version()
        for name, options in read_at_boot().items():
            try:
                begin(options, root)
            except Exception as error:  # pylint: disable=broad-exception-caught # one rule costs no other
                failures.append(f"rule {name}: {tell_any(error)}")
    except FleetError as error:
        failures.append(str(error))
    sys.stderr.write("".join(f"{failure}\n" for failure in failures))
    raise SystemExit(bool(failures))
