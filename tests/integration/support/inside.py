# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run Ansible's tasks in a container of this machine by the connection plugin, without ssh."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support import host


def run_task(
    folder: Path, container: str, module: str, arguments: Any, **variables: Any
) -> subprocess.CompletedProcess[str]:
    """Run MODULE with ARGUMENTS in CONTAINER and return the ended process. FOLDER gets an inventory with VARIABLES."""
    settings = {
        "ansible_host": "localhost",
        "ansible_cart_python": sys.executable,
        "ansible_connection": "crashcart.fleet.cart",
        "ansible_cart_container": container,
        "ansible_cart_docker_host": os.environ["DOCKER_HOST"],
        "ansible_python_interpreter": "/dev/crashcart/bin/python3",
        **variables,
    }
    hosts = folder / "inside.json"
    hosts.write_text(json.dumps({"all": {"hosts": {"inside": settings}}}))
    words = ["-a", json.dumps(arguments)] if arguments else []
    return host.run("ansible", "inside", "-i", str(hosts), "-m", module, *words)
