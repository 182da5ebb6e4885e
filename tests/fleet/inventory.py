#!/usr/bin/env python
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Print an inventory for Ansible with the hosts of the fleet that `make fleet-up` has started.

All hosts are in the group `fleet`, the first one also in `canary` and the others in `rest`, as for the rollout of a change. Ansible
logs in as an unprivileged user who may use sudo.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import fleet
import guest


def main() -> None:
    """Print the inventory as JSON."""
    hosts = fleet.list_hosts()
    variables = {
        host.name: {"ansible_port": host.port, "ansible_ssh_private_key_file": str(host.base / "key")} for host in hosts
    }
    known_hosts = f"-o UserKnownHostsFile={fleet.FOLDER / 'known_hosts'} -o GlobalKnownHostsFile=/dev/null"
    common = {
        "ansible_host": "127.0.0.1",
        "ansible_user": guest.USER,
        "ansible_ssh_common_args": known_hosts,
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    names = list(variables)
    groups = {
        "fleet": {"hosts": names, "vars": common},
        "canary": {"hosts": names[:1]},
        "rest": {"hosts": names[1:]},
    }
    print(json.dumps({"_meta": {"hostvars": variables}, **groups}))


if __name__ == "__main__":
    main()
