# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a virtual machine in QEMU's software emulation, with a control socket and a port for ssh.

The files of a machine are in its folder: overlay.qcow2, pid, qmp.sock, console.log. Every wait has a limit, and the process has a
maximum lifetime, so that a killed test run leaves no machine running for ever.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import processes

sys.path.append(str(Path(__file__).resolve().parents[1] / "integration"))

from support.speed import seconds

QEMU = "qemu-system-x86_64"
MEMORY_MIB = 1024
LIFETIME_S = 3 * 3600
_KERNEL_LINE = "console=ttyS0 quiet mitigations=off nokaslr audit=0 nowatchdog tsc=reliable random.trust_cpu=on panic=1 net.ifnames=0"
# The processor is a plain one, since the instructions of later ones take longer in emulation. These arguments are part of the snapshot's
# key, since only the same machine can load a state.
ARGUMENTS = (
    "-M q35,hpet=off,smbus=off,sata=off,usb=off,vmport=off,memory-backend=ram0 "
    f"-accel tcg,thread=multi,tb-size=256 -cpu qemu64 -smp 1 -m {MEMORY_MIB} -nodefaults -display none -vga none -no-user-config "
    "-device virtio-blk-pci,drive=disk -device virtio-rng-pci"
).split()


class MachineError(Exception):
    """A machine that has failed, or has not done its task in time; the text names the machine."""


@dataclass(frozen=True)
class Machine:
    """A virtual machine."""

    folder: Path  # the machine's files
    base: Path  # the folder of the kernel and the initial ramdisk

    @property
    def name(self) -> str:
        """The name of the machine, which is its folder's."""
        return self.folder.name

    def create_disk(self, backing: Path) -> None:
        """Make the machine's disk, a copy on write of BACKING, whose path is absolute or relative to the folder."""
        self.folder.mkdir(parents=True)
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", backing]
        subprocess.run([*command, self.folder / "overlay.qcow2"], check=True)

    def start(
        self, port: int, memory: Path | None = None, *, is_shared: bool = False, is_incoming: bool = False
    ) -> None:
        """Start the machine, with ssh at 127.0.0.1:PORT. Raises MachineError where it does not start.

        MEMORY is a file for its memory: with IS_SHARED its own, else a snapshot's, which is copied on write. IS_INCOMING lets it wait
        for `load`. A machine with IS_SHARED is a golden guest that is being made: it ends with the calling thread. Others go on.
        """
        kind, more = "ram", ""
        if memory is not None:
            kind, more = "file", f",mem-path={memory},share={'on' if is_shared else 'off'}"
        backend = f"memory-backend-{kind},id=ram0,size={MEMORY_MIB}M{more}"
        command = [
            "timeout",
            "--kill-after=60",
            str(LIFETIME_S),
            *processes.bind([QEMU]),
            *ARGUMENTS,
            *("-name", self.name, "-object", backend),
            *("-kernel", self.base / "vmlinuz", "-initrd", self.base / "initrd", "-append", _KERNEL_LINE),
            *(
                "-drive",
                f"if=none,id=disk,format=qcow2,cache=unsafe,discard=unmap,file={self.folder / 'overlay.qcow2'}",
            ),
            *("-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"),
            *("-device", f"virtio-net-pci,netdev=net,romfile=,mac={make_mac(self.folder)}"),
            *("-serial", f"file:{self.folder / 'console.log'}", "-qmp", "unix:qmp.sock,server=on,wait=off"),
            *("-pidfile", self.folder / "pid"),
            *(("-incoming", "defer") if is_incoming else ()),
        ]
        (self.folder / "qmp.sock").unlink(missing_ok=True)
        (self.folder / "pid").unlink(missing_ok=True)
        with open(self.folder / "qemu.log", "wb") as log:
            # In a session of its own the machine does not get the terminal's interrupts. The relative path of its socket is short enough.
            subprocess.Popen(
                processes.bind(command) if is_shared else command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.wait(lambda: (self.folder / "pid").exists() and self._listens(), 20, "start")

    def _listens(self) -> bool:
        """Return True if the control socket accepts connections. The socket's file is there a moment before."""
        try:
            with self._connect(20):
                return True
        except (FileNotFoundError, ConnectionRefusedError):
            return False

    def _connect(self, limit_s: float) -> socket.socket:
        folder_fd = os.open(self.folder, os.O_PATH | os.O_DIRECTORY)
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(limit_s)
            connection.connect(f"/proc/self/fd/{folder_fd}/qmp.sock")  # the socket's own path may be too long
        except BaseException:
            connection.close()
            raise
        finally:
            os.close(folder_fd)
        return connection

    def find_pid(self) -> int | None:
        """Return the pid of the machine's process, or None where it does not run, even if another process has its number by now."""
        try:
            pid = int((self.folder / "pid").read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if os.fsencode(self.folder / "pid") in command else None

    def wait(self, condition: Any, limit_s: float, what: str) -> None:
        """Wait until CONDITION() is true. Raises MachineError, with the end of the console, after LIMIT_S seconds of a usual machine."""
        limit_s = seconds(limit_s)
        deadline = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > deadline:
                raise MachineError(
                    f"{self.name} did not {what} within {limit_s:g} s; it last said:\n{self._read_end()}"
                )
            time.sleep(0.05)

    def _read_end(self) -> str:
        lines = []
        for name in ("qemu.log", "console.log"):
            path = self.folder / name
            lines += path.read_text(errors="replace").splitlines()[-10:] if path.exists() else []
        return "\n".join(lines)

    def call(self, command: str, **arguments: Any) -> Any:
        """Return the answer to a QMP command (QEMU Machine Protocol). Raises MachineError when the command fails."""
        return self.call_all([(command, arguments)])[0]

    def call_all(self, commands: list[tuple[str, dict[str, Any]]], limit_s: float = 60) -> list[Any]:
        """Return the answers to several QMP commands in one connection. Raises MachineError when one of them fails."""
        try:
            with self._connect(limit_s) as connection, connection.makefile("rw") as file:
                file.readline()
                return [
                    self._ask(file, command, arguments) for command, arguments in [("qmp_capabilities", {}), *commands]
                ][1:]
        except OSError as error:
            raise MachineError(f"{self.name} does not answer ({error}):\n{self._read_end()}") from error

    def _ask(self, file: Any, command: str, arguments: dict[str, Any]) -> Any:
        file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        file.flush()
        while True:
            answer = json.loads(file.readline() or '{"error": "it has ended"}')
            if "error" in answer:
                raise MachineError(f"{self.name}: {command}: {answer['error']}")
            if "return" in answer:
                return answer["return"]

    def save(self, path: Path) -> None:
        """Stop the machine and write its state to PATH, without its memory, which is a shared file."""
        self.call_all(
            [
                ("stop", {}),
                ("migrate-set-capabilities", {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}),
                ("migrate", {"uri": f"exec:cat > {path}"}),
            ]
        )
        self._wait_for_migration()

    def load(self, path: Path) -> None:
        """Load the state in PATH and let the machine run."""
        self.call_all(
            [
                ("migrate-set-capabilities", {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}),
                ("migrate-incoming", {"uri": f"exec:cat {path}"}),
            ]
        )
        self._wait_for_migration()
        self.call("cont")

    def _wait_for_migration(self) -> None:
        def is_done() -> bool:
            status = self.call("query-migrate").get("status")
            if status == "failed":
                raise MachineError(f"{self.name}: its state cannot be moved:\n{self._read_end()}")
            return bool(status == "completed")

        self.wait(is_done, 60, "move its state")

    def cut_power(self) -> None:
        """Kill the machine. Data that it has not written to its disk is lost."""
        pid = self.find_pid()
        if pid is None:
            return
        pid_fd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pid_fd, signal.SIGKILL)
            # The wait is for the process's end: its command line disappears before its locks on the disk.
            if not select.select([pid_fd], [], [], 20)[0]:
                raise MachineError(f"{self.name} did not end on SIGKILL")
        finally:
            os.close(pid_fd)


def make_mac(folder: Path) -> str:
    """Return a MAC address for the machine in FOLDER, always the same, from QEMU's range."""
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()
    return ":".join(["52:54:00", *(digest[start : start + 2] for start in (0, 2, 4))])


def find_free_port() -> int:
    """Return a port of 127.0.0.1 that no process listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def has_banner(port: int) -> bool:
    """Return True if an ssh server greets at PORT. The forwarded port accepts connections long before the server runs."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.settimeout(2)
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False
