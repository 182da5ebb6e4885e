# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the golden guest: it is booted once, warmed up, and saved with its memory, so that its clones start within seconds.

The golden guest is in the user's cache, in a folder that is named by the hash of all its sources.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import busybox_archive
import guest
import machine
from machine import seconds

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "crashcart" / "fleet"
IMAGE = "crashcart-test/busybox"
TREE = "/srv/busybox"  # the same files, for runtimes without images
# Each guest runs these containers, which end without delay. In the second one a process called cat fails every two seconds. Failures
# without a pause would take an emulated processor's time.
CONTAINERS = {
    "shop-db": "while true; do sleep 60; done",
    "shop-web": "while true; do cat /nonesuch; sleep 2; done",
}
_PACKAGES = ("qemu-system-x86", "qemu-utils", "mmdebstrap", "cpio", "busybox-static", "e2fsprogs", "openssh-client")
_BOOT_S = 300
_SIZES = "sizes.json"
_WARMTH = f"""\
set -e
systemctl start docker
podman run --rm --network none {IMAGE} true
rm -rf /run/libpod  # as on a host where Podman was not used since the boot, so that modules do not ask Podman
sudo -u {guest.USER} sudo true
# This loads into the page cache what modules import.
python3 -c 'import docker, jmespath, zipfile, ctypes, hashlib, json, selectors, subprocess, tempfile, platform, syslog, zlib'
systemctl is-system-running --wait >/dev/null || systemctl list-units --failed
sync
"""


def install_packages() -> None:
    """Install the Debian packages that the fleet needs."""
    subprocess.run([TOOLS / "install_packages.sh", *_PACKAGES], check=True)


def prepare(release: str = guest.RELEASE) -> Path:
    """Return the folder of the golden guest of RELEASE, and make the guest first where the cache lacks it."""
    install_packages()
    return keep(CACHE, f"{release}-{_find_key(release)}", lambda folder: _make(folder, release))


def keep(cache: Path, key: str, make: Callable[[Path], object]) -> Path:
    """Return the folder KEY in CACHE. Where it is missing or damaged, MAKE(folder) fills it first, and other processes wait."""
    folder = cache / key
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for stale in cache.glob("new-*"):  # a killed run has left it, since nobody else can hold the lock now
            machine.Machine(stale / "golden", stale).cut_power()
            shutil.rmtree(stale)
        if folder.exists() and not _is_whole(folder):
            print(f"{folder} is damaged and is built anew", file=sys.stderr)
            shutil.rmtree(folder)
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=cache, prefix="new-") as new:
                make(Path(new))
                _write_sizes(Path(new))
                os.rename(new, folder)
                os.mkdir(new)  # for the context to remove
    return folder


def _write_sizes(folder: Path) -> None:
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    (folder / _SIZES).write_text(json.dumps(sizes))


def _is_whole(folder: Path) -> bool:
    """Return True if all files of the golden guest in FOLDER have the sizes that they were made with."""
    try:
        sizes: dict[str, int] = json.loads((folder / _SIZES).read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _find_key(release: str) -> str:
    sources = [Path(module.__file__) for module in (guest, machine, busybox_archive)]
    parts = [path.read_text() for path in (Path(__file__), *sources)]
    version = subprocess.run([machine.QEMU, "--version"], capture_output=True, text=True, check=True).stdout
    return hashlib.sha256("\0".join([*parts, version, *guest.list_sources(release)]).encode()).hexdigest()[:16]


def _make(folder: Path, release: str) -> None:
    start = time.monotonic()

    def tell(what: str) -> None:
        print(f"{time.monotonic() - start:5.0f} s  {what}", file=sys.stderr)

    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "fleet", "-f", folder / "key"], check=True)
    tell(f"building a guest from the packages of Debian {release}")
    guest.build(folder, (folder / "key.pub").read_text(), release)
    golden = machine.Machine(folder / "golden", folder)
    try:
        tell("booting it")
        golden.create_disk(Path("../disk.qcow2"))
        port = machine.find_free_port()
        golden.start(port, folder / "golden" / "memory", is_shared=True)
        golden.wait(lambda: machine.has_banner(port), _BOOT_S, "greet by ssh")
        tell("warming it")
        shell = Shell(folder, "root", port, (folder / "host_key.pub").read_text())
        archive = busybox_archive.make_archive()
        shell.run(
            f'systemctl start docker && docker import --change \'CMD ["/bin/sleep", "100000"]\' - {IMAGE}', archive
        )
        shell.run(f"mkdir -p {TREE}/usr && tar -x -C {TREE} && chmod 755 {TREE}", archive)
        shell.run(f"podman import --change CMD=/bin/sleep,100000 - {IMAGE}", archive)
        shell.run("sh", _WARMTH.encode())
        for name, loop in CONTAINERS.items():
            shell.run(f"docker run -d --name {name} --stop-signal KILL --network none {IMAGE} sh -c '{loop}'")
        shell.run(f"docker exec {next(iter(CONTAINERS))} true && sync")
        tell("saving it")
        golden.save(folder / "state")
    finally:
        golden.cut_power()
    tell("done")


class Shell:
    """A way to run commands by ssh as USER of the guest at PORT that has the public HOST_KEY. FOLDER holds the key for the login.

    With SHARED, a folder for a socket, commands share a session: a handshake takes an emulated guest half a second.
    """

    def __init__(self, folder: Path, user: str, port: int, host_key: str, shared: str | None = None) -> None:
        self._folder = folder
        self._shared = shared
        self._user = user
        self._port = port
        self._host_key = host_key

    def make_command(self, known_hosts: str) -> list[str]:
        """Return the words of the ssh command without the remote command. KNOWN_HOSTS is the path of a file with this guest's key."""
        options = ("-o", f"UserKnownHostsFile={known_hosts}", "-o", "StrictHostKeyChecking=yes", "-o", "LogLevel=ERROR")
        key = str(self._folder / "key")
        return ["ssh", "-F", "none", "-i", key, *options, "-p", str(self._port), f"{self._user}@127.0.0.1"]

    def run(self, command: str, stdin: bytes = b"", limit_s: float = 300) -> str:
        """Run COMMAND on the guest and return its output. Raises MachineError when it fails or takes LIMIT_S seconds of a usual machine."""
        limit_s = seconds(limit_s)
        with tempfile.NamedTemporaryFile("w") as known_hosts:
            known_hosts.write(describe_host_key(self._port, self._host_key))
            known_hosts.flush()
            share = ("-o", "ControlMaster=auto", "-o", "ControlPersist=60", "-o", f"ControlPath={self._shared}/%C")
            try:
                done = subprocess.run(
                    [*self.make_command(known_hosts.name), *(share if self._shared else ()), command],
                    input=stdin,
                    capture_output=True,
                    check=False,
                    timeout=limit_s,
                )
            except subprocess.TimeoutExpired as error:
                raise machine.MachineError(f"port {self._port}: {command} took more than {limit_s:g} s") from error
        if done.returncode != 0:
            raise machine.MachineError(
                f"port {self._port}: {command}: rc {done.returncode}\n{(done.stdout + done.stderr).decode(errors='replace')}"
            )
        return done.stdout.decode()


def describe_host_key(port: int, host_key: str) -> str:
    """Return the line of a known_hosts file for the guest at PORT."""
    return f"[127.0.0.1]:{port} {' '.join(host_key.split()[:2])}\n"
