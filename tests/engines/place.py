# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a release of Debian as a host that Ansible reaches by ssh, with the release's engines: containerd, Docker, and Podman with runc.

The hosts share this machine's kernel. Their files are in memory, but for the keys and logs, which are in build/engines of the checkout.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fleet
import golden
import keeper
import machine
import releases

FOLDER = fleet.ROOT / "build" / "engines"
IMAGE = golden.IMAGE
_START_S = 60
_END_S = 60
# Containers have no network, as an engine with a bridge needs this machine's. The engines' own network namespace keeps them from
# changing what another engine here has made.
_FIRST = """\
#!/bin/sh
hostname {name}
mkdir -p /run/sshd /run/lock /var/lib/docker
/usr/sbin/sshd -D -e -f /etc/ssh/place >/var/log/sshd 2>&1 &
unshare --net sh -c '
    ip link set lo up
    containerd >/var/log/containerd 2>&1 &
    until [ -S /run/containerd/containerd.sock ]; do sleep 0.1; done
    exec dockerd --containerd /run/containerd/containerd.sock >/var/log/dockerd 2>&1' &
wait
"""
_DOCKER = {"bridge": "none", "iptables": False, "ip6tables": False}
# Docker keeps its images itself, or leaves that to containerd, as later versions do where they are installed anew.
_STORES: dict[str, dict[str, object]] = {
    "bookworm": {"storage-driver": "overlay2"},
    "trixie": {"storage-driver": "overlay2"},
    "sid": {"features": {"containerd-snapshotter": True}},
}
_FILES = {
    # Root may not raise its limits on the machines of these tests, and crun refuses control groups of both versions.
    "etc/containers/containers.conf": """\
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
netns = "none"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
""",
    "etc/containers/storage.conf": """\
[storage]
driver = "vfs"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"
""",
    "etc/environment": f"DOCKER_TIMEOUT={round(machine.seconds(60))}\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/ssh/place": """\
ListenAddress 127.0.0.1
HostKey /etc/ssh/place_key
PasswordAuthentication no
UsePAM no
UseDNS no
MaxStartups 100
Subsystem sftp internal-sftp
""",
}


class Place:
    """A running host with the engines of a release. Commands are run there by ssh, as root."""

    def __init__(self, name: str, folder: Path, port: int) -> None:
        self.name = name
        self.port = port
        self.folder = folder
        self._host_key = (folder / "files/etc/ssh/place_key.pub").read_text()
        (folder / "known_hosts").write_text(golden.describe_host_key(port, self._host_key))

    def run(self, command: str, stdin: bytes = b"", limit_s: float = 120) -> str:
        """Run the shell command COMMAND there and return its output. Raises machine.MachineError when it fails or takes LIMIT_S."""
        shell = golden.Shell(self.folder, "root", self.port, self._host_key, fleet.make_socket_folder())
        return shell.run(command, stdin, limit_s)

    def make_ssh_command(self) -> list[str]:
        """Return the ssh command for a root shell there."""
        shell = golden.Shell(self.folder, "root", self.port, self._host_key)
        return shell.make_command(str(self.folder / "known_hosts"))

    def make_variables(self) -> dict[str, object]:
        """Return the variables by which Ansible reaches the host."""
        return {
            "ansible_host": "127.0.0.1",
            "ansible_port": self.port,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.folder / "key"),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={self.folder}/known_hosts -o GlobalKnownHostsFile=/dev/null",
            "ansible_python_interpreter": "/usr/bin/python3",
        }


@contextmanager
def start(release: str) -> Iterator[Place]:
    """Run a host of RELEASE until the context ends, with the image IMAGE in its Docker and Podman. Raises machine.MachineError."""
    archive = releases.prepare(release)
    folder = FOLDER / release
    shutil.rmtree(folder, ignore_errors=True)
    port = machine.find_free_port()
    _write_files(folder, release, port)
    process = subprocess.Popen([sys.executable, keeper.__file__, str(folder), str(archive)], stdin=subprocess.PIPE)
    assert process.stdin is not None
    try:
        place = Place(release, folder, port)
        _wait(process, place)
        yield place
    finally:
        process.stdin.close()
        process.wait(machine.seconds(_END_S))


def _write_files(folder: Path, name: str, port: int) -> None:
    files = folder / "files"
    (folder / "root").mkdir(parents=True)
    own = {
        "etc/hostname": f"{name}\n",
        "first": _FIRST.replace("{name}", name),
        "etc/docker/daemon.json": json.dumps({**_DOCKER, **_STORES[name]}),
    }
    for path, text in {**_FILES, **own}.items():
        (files / path).parent.mkdir(parents=True, exist_ok=True)
        (files / path).write_text(text)
    (files / "first").chmod(0o755)
    with open(files / "etc/ssh/place", "a", encoding="ascii") as file:
        file.write(f"Port {port}\n")
    for path in (folder / "key", files / "etc/ssh/place_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", path], check=True)
    keys = files / "root/.ssh/authorized_keys"
    keys.parent.mkdir(parents=True, mode=0o700)
    (files / "root").chmod(0o700)
    shutil.copy(folder / "key.pub", keys)


def _wait(process: subprocess.Popen[bytes], place: Place) -> None:
    """Wait until all engines of PLACE answer."""
    archive = golden.busybox_archive.make_archive()
    deadline = time.monotonic() + machine.seconds(_START_S)
    while not machine.has_banner(place.port):
        if process.poll() is not None or time.monotonic() > deadline:
            raise machine.MachineError(f"{place.name} does not start: {(place.folder / 'log').read_text()}")
        time.sleep(0.1)
    place.run(
        "for try in $(seq 600); do docker version >/dev/null 2>&1 && exit; sleep 0.1; done; cat /var/log/dockerd; exit 1"
    )
    place.run(f"docker import - {IMAGE}", archive)
    place.run(f"podman import - {IMAGE}", archive)
    place.run(f"docker save {IMAGE} | ctr -n {keeper.NAMESPACE} images import -")
