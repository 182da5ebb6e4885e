# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a fleet of hosts for tests: Debian guests with their own kernels, engines and sshd, cloned from a golden guest of each release.

Usage: fleet.py up [N [RELEASE…]] | ping | ssh HOST [COMMAND…] | down | clean
The hosts are called host1, host2, …, and their files are in build/fleet of the checkout. Without RELEASE the third host has another release
than the others.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import golden
import machine
from machine import seconds

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "fleet"
INVENTORY = Path(__file__).with_name("inventory.py")
RELEASES = ("bookworm", "bookworm", "trixie")  # of host1, host2, …; the last one is that of all further hosts
_START_S = 60
_PING_S = 60
# All clones begin as the same host. Clock, names, ids, random state and ssh keys are changed before a test uses a clone.
_PERSONALIZE = """\
set -e
date -u -s @{now} >/dev/null
head -c 512 >/dev/urandom
python3 -c 'import fcntl; fcntl.ioctl(open("/dev/urandom", "wb"), 0x5207)'  # RNDRESEEDCRNG
hostname {name}
echo {name} >/etc/hostname
echo 127.0.0.1 localhost {name} >/etc/hosts
echo {machine_id} >/etc/machine-id
# All clones come from one boot. Programs that tell hosts apart by the boot id get another one to read.
echo {boot_id} >/run/boot_id
mount --bind /run/boot_id /proc/sys/kernel/random/boot_id
# The kernel lets a user namespace mount proc only where a proc is mounted that nothing covers.
mkdir /run/proc
mount -t proc proc /run/proc
# The guest announces its new address to the network.
sysctl -q -w net.ipv4.conf.eth0.arp_notify=1
ip link set eth0 address {mac}
rm /etc/ssh/ssh_host_*
ssh-keygen -q -t ed25519 -N '' -C {name} -f /etc/ssh/ssh_host_ed25519_key
kill -HUP $(cat /run/sshd.pid)
# logind and Podman have noted the boot id, and would not go on with another.
systemctl try-restart systemd-logind
rm -rf /run/libpod /run/containers/storage
cat /etc/ssh/ssh_host_ed25519_key.pub
"""


class Host:
    """A guest of the fleet."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._record = FOLDER / name / "host.json"
        record = json.loads(self._record.read_text()) if self._record.exists() else {}
        self.base = Path(record.get("base", ""))
        self.port = int(record.get("port", 0))
        self.host_key = str(record.get("host_key", ""))
        self.machine = machine.Machine(FOLDER / name, self.base)

    @property
    def is_running(self) -> bool:
        """True if the guest's machine runs and the guest was made ready."""
        return bool(self.host_key) and self.machine.find_pid() is not None

    def clone(self, base: Path) -> None:
        """Start the guest as a clone of the golden guest in BASE, with an identity of its own."""
        self.machine.cut_power()  # an interrupted start may have left it running
        self.base = base
        self.port = machine.find_free_port()
        self.machine = machine.Machine(FOLDER / self.name, base)
        shutil.rmtree(self.machine.folder, ignore_errors=True)
        self.machine.create_disk(base / "golden" / "overlay.qcow2")
        self.machine.start(self.port, base / "golden" / "memory", is_incoming=True)
        self.machine.load(base / "state")
        self.machine.wait(lambda: machine.has_banner(self.port), _START_S, "greet by ssh")
        command = _PERSONALIZE.format(
            now=f"{time.time():.3f}",
            name=self.name,
            machine_id=uuid.uuid4().hex,
            boot_id=uuid.uuid4(),
            mac=machine.make_mac(self.machine.folder),
        )
        shell = golden.Shell(base, "root", self.port, (base / "host_key.pub").read_text())
        self.host_key = shell.run(command, secrets.token_bytes(512), _START_S).strip()
        record = {"base": str(base), "port": self.port, "host_key": self.host_key}
        self._record.write_text(json.dumps(record))
        self.wait_until_up(_START_S)

    def boot(self) -> None:
        """Boot the guest from its own disk, as after a power cut."""
        self.machine.start(self.port)

    def wait_until_up(self, limit_s: float = 300) -> None:
        """Wait until a login works. A greeting alone is not enough, since sshd may greet and then start again."""

        def lets_in() -> bool:
            try:
                self.run("true", limit_s=20)
            except machine.MachineError:
                return False
            return True

        self.machine.wait(lambda: machine.has_banner(self.port) and lets_in(), limit_s, "let anybody in by ssh")

    def run(self, command: str, stdin: bytes = b"", user: str = "root", limit_s: float = 300) -> str:
        """Run COMMAND on the guest as USER and return its output. Raises MachineError when it fails or takes more than LIMIT_S."""
        return golden.Shell(self.base, user, self.port, self.host_key, make_socket_folder()).run(
            command, stdin, limit_s
        )

    def make_ssh_command(self) -> list[str]:
        """Return the ssh command for a root shell on the guest."""
        shell = golden.Shell(self.base, "root", self.port, self.host_key)
        return shell.make_command(str(FOLDER / "known_hosts"))

    def shut_off(self) -> None:
        """End the guest and remove its files."""
        self.machine.cut_power()
        shutil.rmtree(self.machine.folder, ignore_errors=True)


@functools.cache
def make_socket_folder() -> str:
    """Make a folder for the sockets of shared ssh sessions of this process. FOLDER would not do: paths of sockets must be short."""
    folder = tempfile.mkdtemp(prefix="crashcart-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def list_hosts() -> list[Host]:
    """Return the existing hosts, running or not."""
    names = sorted(path.name for path in FOLDER.glob("host*")) if FOLDER.exists() else []
    return [Host(name) for name in names]


def up(count: int, releases: Sequence[str] = RELEASES) -> list[Host]:
    """Start those of host1 to hostCOUNT that do not run, and return all of them. When one fails, end those that this call has started.

    RELEASES of Debian are those of the hosts in turn, and the last one is that of all further hosts.
    """
    if count < 1:
        raise machine.MachineError(f"{count} guests are none: give a number from 1 on, as in make fleet-up N=3")
    chosen = [releases[min(number, len(releases) - 1)] for number in range(count)]
    bases = {release: golden.prepare(release) for release in dict.fromkeys(chosen)}
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with open(FOLDER.parent / "fleet.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = {Host(f"host{number}"): bases[release] for number, release in enumerate(chosen, 1)}
        new = {host: base for host, base in wanted.items() if not (host.is_running and host.base == base)}
        try:
            with ThreadPoolExecutor(count) as pool:
                list(pool.map(Host.clone, new, new.values()))
            write_known_hosts()
        except BaseException:
            for host in new:
                host.shut_off()
            raise
    return list(wanted)


def write_known_hosts() -> None:
    """Write the file by which ssh and Ansible know the keys of the fleet's hosts."""
    lines = [golden.describe_host_key(host.port, host.host_key) for host in list_hosts()]
    (FOLDER / "known_hosts").write_text("".join(lines))


def down() -> None:
    """End all hosts and remove their files."""
    for host in list_hosts():
        host.shut_off()
    shutil.rmtree(FOLDER, ignore_errors=True)


def ping() -> int:
    """Ping all hosts by Ansible, which prints a line for each, and return its exit code. Raises MachineError where none runs."""
    if not any(host.is_running for host in list_hosts()):
        raise machine.MachineError("no guest runs: start some with make fleet-up")
    environment = {**os.environ, "ANSIBLE_CALLBACK_RESULT_FORMAT": "json", "ANSIBLE_CALLBACK_FORMAT_PRETTY": "false"}
    command = ["ansible", "fleet", "-i", str(INVENTORY), "-m", "ansible.builtin.ping"]
    try:
        return subprocess.run(command, check=False, cwd=ROOT, env=environment, timeout=seconds(_PING_S)).returncode
    except subprocess.TimeoutExpired as error:
        raise machine.MachineError(
            f"a guest has not answered within {seconds(_PING_S):g} s: end it with make fleet-down"
        ) from error


def start_containers(host: Host, names: Iterable[str] = tuple(golden.CONTAINERS)) -> None:
    """Start the engine and the containers called NAMES on HOST after a boot."""
    host.run(f"systemctl start docker && docker start {' '.join(names)}")


def main(arguments: list[str]) -> int:
    """Run the command that ARGUMENTS name and return the exit code."""
    command, *rest = arguments or ["help"]
    if command == "up":
        start = time.monotonic()
        count = rest[0] if rest else "3"
        if not count.lstrip("-").isdigit():
            raise machine.MachineError(f"{count!r} is no number of guests: give one as in make fleet-up N=3")
        hosts = up(int(count), rest[1:] or RELEASES)
        for host in hosts:
            print(f"{host.name}  127.0.0.1:{host.port}  {time.monotonic() - start:.1f} s")
    elif command == "ping":
        return ping()
    elif command == "ssh" and rest:
        host = Host(rest[0])
        if not host.is_running:
            print(
                f"{rest[0]} does not run; running: {' '.join(h.name for h in list_hosts() if h.is_running) or 'none'}"
            )
            return 1
        os.execvp("ssh", [*host.make_ssh_command(), *rest[1:]])
    elif command == "down":
        down()
    elif command == "clean":
        down()
        shutil.rmtree(golden.CACHE, ignore_errors=True)
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)  # an interrupted start ends the guests that it has started
    try:
        sys.exit(main(sys.argv[1:]))
    except (machine.MachineError, RuntimeError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
