# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a release of Debian as a host of its own, with its engines and sshd, until stdin ends; then nothing of it is left.

Usage: keeper.py FOLDER ARCHIVE. ARCHIVE is unpacked into memory, and the files in FOLDER/files replace those of the same names. The program
in FOLDER/files/first runs there as the first process, in mount and UTS namespaces of its own. Process numbers are this machine's, since
the kernel's lists of processes to trace have these.

stdin ends with whoever has started this program, however that one ends. All processes of the place are descendants of this one, which is
their subreaper. So none of them can be missed.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)
_CGROUPS = Path("/sys/fs/cgroup")
_TRACEFS = Path("/sys/kernel/tracing")
_BEFORE = "before.json"
NAMESPACE = "cc-engines"  # of containerd
_CGROUP_PARENTS = (
    "docker",
    "libpod_parent",
    NAMESPACE,
)  # in which Docker, Podman and containerd make those of containers
# Everything is in a mount namespace, and goes with its last process. The old root is not reachable any more.
_ENTER = """\
set -e
mount -t tmpfs -o mode=755 "$1" "$1/root"
tar -x -C "$1/root" -f "$2"
cp -a "$1/files/." "$1/root/"
cd "$1/root"
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs -o mode=755 run run
mkdir -p run/old
pivot_root . run/old
umount -l /run/old
rmdir /run/old
exec /first </dev/null >/var/log/first 2>&1
"""


class Kernel:
    """Control groups, trace instances and probes that processes of a place leave in the kernel. What was there BEFORE them is not theirs."""

    def __init__(self, before: Mapping[str, Collection[str]]) -> None:
        self._before = before
        self._used: set[Path] = set()

    def note(self, pid: int) -> None:
        """Note the control groups of process PID as those of the place."""
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
                path = line.split(":", 2)[2].lstrip("/")
                self._used |= {top / path for top in _CGROUPS.iterdir() if path}

    def clean(self) -> None:
        """Remove what the place has left."""
        for instance in _list_instances():
            if str(instance) not in self._before["instances"]:
                with suppress(OSError):
                    instance.rmdir()
        for line in _read_probes():
            if line not in self._before["probes"]:
                with suppress(OSError), open(_TRACEFS / "dynamic_events", "a", encoding="ascii") as file:
                    file.write(f"-:{line.split()[0].partition(':')[2]}\n")
        parents = {top / name for top in _CGROUPS.iterdir() for name in _CGROUP_PARENTS}
        for folder in sorted(self._used | parents, key=lambda path: len(path.parts), reverse=True):
            for inner in (*sorted(folder.rglob("*/"), reverse=True), folder):
                if str(inner) not in self._before["cgroups"]:
                    with suppress(OSError):  # it is not there, or another engine uses it
                        inner.rmdir()


def look() -> dict[str, list[str]]:
    """Return what is in the kernel now, as Kernel wants it."""
    return {
        "instances": list(map(str, _list_instances())),
        "probes": _read_probes(),
        "cgroups": list(map(str, _CGROUPS.rglob("*/"))),
    }


def _list_instances() -> list[Path]:
    return list(_TRACEFS.glob("instances/crashcart*"))


def _read_probes() -> list[str]:
    try:
        return [line for line in (_TRACEFS / "dynamic_events").read_text().splitlines() if "crashcart" in line]
    except FileNotFoundError:
        return []


def list_descendants(pid: int) -> list[int]:
    """Return the processes that PID has started, those that these have started, and so on."""
    children = defaultdict(list)
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(") ")[2].split()[1])
            children[parent].append(int(folder.name))
    found, new = [], [pid]
    while new:
        new = [child for parent in new for child in children[parent]]
        found += new
    return found


def end_all(find: Callable[[], Iterable[int]], kernel: Kernel) -> None:
    """Kill the processes that FIND() gives and their descendants until there are none, and remove what they leave in KERNEL."""
    while True:
        left = {pid for root in find() for pid in (root, *list_descendants(root))} - {os.getpid()}
        for pid in left:
            kernel.note(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not left:
            break
        time.sleep(0.02)
    kernel.clean()


def clean(folder: Path) -> None:
    """End the place whose files are in FOLDER, and whose keeper was killed, and remove its files."""
    before = folder / _BEFORE
    if before.exists():
        end_all(lambda: _list_members(folder), Kernel(json.loads(before.read_text())))
    shutil.rmtree(folder)


def _list_members(folder: Path) -> list[int]:
    """Return the processes whose root folder is the memory of the place in FOLDER."""
    end = f" - tmpfs {folder} "
    found = []
    for mounts in Path("/proc").glob("[0-9]*/mountinfo"):
        with suppress(OSError):
            if any(line.split()[4] == "/" and end in line for line in mounts.read_text().splitlines()):
                found.append(int(mounts.parent.name))
    return found


def main() -> None:
    """Start the place, and end it when stdin ends."""
    folder, archive = map(Path, sys.argv[1:])
    # stdin ends with the tests, which may have more to do before. Ignored signals would be ignored by all processes of the place, too.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: None)
    ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0)
    before = look()
    (folder / _BEFORE).write_text(json.dumps(before))
    try:
        command = ["unshare", "--mount", "--uts", "--propagation", "private", "sh", "-c", _ENTER, "sh", folder, archive]
        with open(folder / "log", "wb") as log:
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        sys.stdin.read()
    finally:
        end_all(lambda: [os.getpid()], Kernel(before))
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
