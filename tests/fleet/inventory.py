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
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import fleet
import guest


def list_groups() -> dict[str, Any]:
    """Return the groups of an inventory in the form of Ansible's YAML inventories, which has the hosts' variables in `fleet`."""
    common = {
        "ansible_host": "127.0.0.1",
        "ansible_user": guest.USER,
        "ansible_ssh_common_args": f"-o UserKnownHostsFile={fleet.FOLDER / 'known_hosts'} -o GlobalKnownHostsFile=/dev/null",
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    hosts = {
        host.name: {"ansible_port": host.port, "ansible_ssh_private_key_file": str(host.base / "key")}
        for host in fleet.list_hosts()
    }
    names = list(hosts)
    return {
        "fleet": {"hosts": hosts, "vars": common},
        "canary": {"hosts": dict.fromkeys(names[:1])},
        "rest": {"hosts": dict.fromkeys(names[1:])},
    }


def main() -> None:
    """Print the inventory as JSON, in the form that Ansible wants of a program."""
    groups = list_groups()
    variables = groups["fleet"]["hosts"]
    listed = {name: {**group, "hosts": list(group["hosts"])} for name, group in groups.items()}
    print(json.dumps({"_meta": {"hostvars": variables}, **listed}))


if __name__ == "__main__":
    main()
