# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a private sshd on 127.0.0.1 with its own keys, and make an inventory that uses it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from support.accounts import make_account
from support.speed import seconds

USER = "crashcart-test"


@contextmanager
def serve(
    folder: Path, password: str | None = None, environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Path]:
    """Run sshd until the context ends, and give the path of an inventory with the hosts as_root and as_user.

    With PASSWORD the user's sudo asks for it. Every session gets the variables in ENVIRONMENT; sudo keeps DOCKER_HOST.
    """
    folder.mkdir(exist_ok=True)
    os.chmod(folder, 0o755)
    for parent in folder.parents[:3]:
        os.chmod(parent, os.stat(parent).st_mode | 0o055)
    for name in ("host_key", "login_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    shutil.copy(folder / "login_key.pub", folder / "authorized_keys")
    os.chmod(folder / "authorized_keys", 0o644)
    with _user(password), socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        (folder / "config").write_text(_configuration(folder, port, environment))
        os.makedirs("/run/sshd", exist_ok=True)
        with subprocess.Popen(
            ["/usr/sbin/sshd", "-D", "-e", "-f", folder / "config"], stderr=subprocess.DEVNULL
        ) as process:
            _wait_for_banner(port)
            try:
                yield _write_inventory(folder, port)
            finally:
                process.terminate()


@contextmanager
def _user(password: str | None) -> Iterator[None]:
    """Make an unprivileged user who may use sudo, with PASSWORD if there is one, until the context ends."""
    rule = Path("/etc/sudoers.d/crashcart-test")
    options = ("--create-home", "--shell", "/bin/bash", "--password", "*")
    with make_account(USER, *options):
        if password is not None:
            subprocess.run(["chpasswd"], input=f"{USER}:{password}\n", text=True, check=True)
        rule.write_text(
            f"{USER} ALL=(ALL) {'' if password else 'NOPASSWD: '}ALL\nDefaults:{USER} env_keep += DOCKER_HOST\n"
        )
        os.chmod(rule, 0o440)
        try:
            yield
        finally:
            rule.unlink()


def _configuration(folder: Path, port: int, environment: Mapping[str, str]) -> str:
    return f"""\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
PidFile {folder}/pid
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
MaxStartups 100
Subsystem sftp internal-sftp
""" + "".join(f"SetEnv {name}={value}\n" for name, value in environment.items())


def _wait_for_banner(port: int) -> None:
    deadline = time.monotonic() + seconds(20)
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                if connection.recv(4) == b"SSH-":
                    return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("sshd does not answer")


def _write_inventory(folder: Path, port: int) -> Path:
    key = (folder / "host_key.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {key[0]} {key[1]}\n")
    inventory = folder / "inventory.yml"
    inventory.write_text(f"""\
all:
  vars:
    ansible_host: 127.0.0.1
    ansible_port: {port}
    ansible_ssh_private_key_file: {folder}/login_key
    ansible_ssh_common_args: -o UserKnownHostsFile={folder}/known_hosts
    ansible_python_interpreter: {_find_interpreter()}
    crashcart_docker_host: {os.environ.get("DOCKER_HOST", "")}
  hosts:
    as_root:
      ansible_user: root
    as_user:
      ansible_user: {USER}
""")
    return inventory


def _find_interpreter() -> str:
    """Return the path of the distribution's Python if it has the Docker SDK, as on a real host, else of this Python."""
    for path in ("/usr/bin/python3", sys.executable):
        if subprocess.run([path, "-c", "import docker, jmespath"], capture_output=True, check=False).returncode == 0:
            return path
    raise AssertionError("no Python with the Docker SDK: install python3-docker and python3-jmespath")
