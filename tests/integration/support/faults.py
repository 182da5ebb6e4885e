# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers with faults: the programs of faults.c for three kinds of C library, what each container needs, and how it is started."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ansible_collections.crashcart.fleet.tools.make_container_image import make_image, write_archive
from support import host, images

LIBCS = ("glibc", "musl", "static")
LANGUAGES = ("python", "shell")  # whose programs use glibc, and make only the faults of FAULTS
LACKING = {"shell": ("forks",)}  # a shell that cannot fork tries again for half a minute, and ends
PIDS_LIMIT = 24
NOFILE_LIMIT = 64
TMPFS_BYTES = 65536
FILE_BYTES = 32768
MEMORY_BYTES = 32 << 20
_HERE = Path(__file__).parent
_COMPILERS = {"glibc": ("gcc",), "musl": ("musl-gcc",), "static": ("gcc", "-static")}
# The loader and the library that a dynamic program needs.
_PACKAGES = {
    "glibc": ["libc6"],
    "musl": ["musl"],
    "static": [],
    "python": ["python3-minimal"],
    "shell": ["bash", "coreutils", "libc-bin", "util-linux"],
}
_SCRIPTS = {"python": "faults_in_python.py", "shell": "faults.sh"}
_COMMANDS = {"python": ("/usr/bin/python3", "/opt/app/app"), "shell": ("/bin/bash", "/opt/app/app")}
_MACHINE_OFFSET = 18  # of e_machine in an ELF header, elf(5)
_MACHINES = {"x86_64": 183, "aarch64": 62}  # EM_AARCH64 and EM_X86_64: each is foreign to the other
UNREACHABLE = "192.0.2.0/24"  # RFC 5737: for documentation


@dataclass(frozen=True)
class Fault:
    """A container with one fault.

    OPTIONS: of `docker run`. IS_SILENT: True if packets to the addresses of 192.0.2.0/24 get no answer there, which they otherwise cannot
    be sent to.
    """

    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    is_silent: bool = False


_NAME_SERVER = ("--dns", "192.0.2.53")
_NOBODY = ("--user", "65534:65534")
FAULTS: Mapping[str, Fault] = {
    "missing_file": Fault(),
    "refused": Fault(),
    "denied": Fault(_NOBODY),
    "lock": Fault(),
    "leak": Fault(("--ulimit", "nofile=16384:16384")),
    "forks": Fault(("--pids-limit", str(PIDS_LIMIT))),
    "name_server": Fault(_NAME_SERVER, is_silent=True),
    "architecture": Fault(),
    "full": Fault(("--tmpfs", f"/var/spool/app:size={TMPFS_BYTES}")),
}
# Of the same kinds. The table of expected texts has them, too.
OTHERS: Mapping[str, Fault] = {
    "missing_folder": Fault(),
    "missing_socket": Fault(),
    "stale_socket": Fault(),
    "silent_peer": Fault(is_silent=True),
    "no_network": Fault(),
    "read_only": Fault(("--read-only",)),
    "not_permitted": Fault(("--cap-drop", "CHOWN")),
    "lock_of_a_file": Fault(),
    "lock_with_a_timeout": Fault(),
    "lock_tried_again": Fault(),
    "leak_of_sockets": Fault(("--ulimit", "nofile=16384:16384")),
    "descriptors_used_up": Fault(("--ulimit", f"nofile={NOFILE_LIMIT}:{NOFILE_LIMIT}")),
    "threads_used_up": Fault(("--pids-limit", str(PIDS_LIMIT))),
    "no_interpreter": Fault(),
    "carriage_return": Fault(),
    "not_executable": Fault(),
    "no_loader": Fault(),
    "file_too_large": Fault(("--ulimit", f"fsize={FILE_BYTES}:{FILE_BYTES}")),
    "crash": Fault(),
    "out_of_memory": Fault(("--memory", str(MEMORY_BYTES))),
    "pipe_that_nobody_reads": Fault(),
    "child_that_hangs": Fault(),
    "deadlock": Fault(),
    "name_server_soon": Fault(
        (*_NAME_SERVER, "--dns-option", "timeout:1", "--dns-option", "attempts:1"), is_silent=True
    ),
    "storm_of_forks": Fault(),
    "storm_of_closes": Fault(),
}
_TWENTY = [Fault()] * 19 + [Fault(environment={"APP_CONFIG": "/etc/app/staging.conf", "APP_PORT": "5433"})]


def make_images(prefix: str, kinds: Iterable[str] = LIBCS) -> None:
    """Make the images PREFIX/faults-KIND that the engine lacks; KINDS are of LIBCS and LANGUAGES."""
    images.install_packages("gcc", "libc6-dev", "musl-tools")
    for kind in kinds:
        tag = f"{prefix}/faults-{kind}"
        if host.run("docker", "image", "inspect", tag, check=False).returncode != 0:
            with tempfile.TemporaryDirectory() as folder:
                make_image(tag, packages=_PACKAGES[kind], files=_make_files(Path(folder), kind), shells=kind == "shell")


def write_image(archive: IO[bytes], libc: str) -> None:
    """Write the image for programs with LIBC, one of LIBCS, to ARCHIVE, for the `docker import` of another host."""
    images.install_packages("gcc", "libc6-dev", "musl-tools")
    with tempfile.TemporaryDirectory() as folder:
        write_archive(archive, packages=_PACKAGES[libc], files=_make_files(Path(folder), libc))


@contextmanager
def run_faults(prefix: str, kind: str, faults: Mapping[str, Fault]) -> Iterator[dict[str, str]]:
    """Start a container of the image PREFIX/faults-KIND for each of FAULTS that KIND has, and give their names by fault.

    They are removed at the end.
    """
    chosen = [name for name in faults if name not in LACKING.get(kind, ())]
    with run_containers(prefix, kind, [(name, name, faults[name]) for name in chosen]) as names:
        yield dict(zip(chosen, names))


@contextmanager
def run_twenty(prefix: str, kind: str) -> Iterator[list[str]]:
    """Start twenty containers of one image, the last of which is configured differently, and give their names."""
    with run_containers(
        prefix, kind, [(f"web{number:02}", "configured", fault) for number, fault in enumerate(_TWENTY, 1)]
    ) as names:
        yield names


@contextmanager
def run_containers(prefix: str, kind: str, wanted: Sequence[tuple[str, str, Fault]]) -> Iterator[list[str]]:
    """Start a container for each name, program of faults.c and fault in WANTED, and give their names."""
    names = [f"cc-{kind}-{name.replace('_', '-')}-{os.getpid()}" for name, _program, _fault in wanted]

    def start(name: str, program: str, fault: Fault) -> None:
        # Each program has an image of its own, as services have.
        image = f"{prefix}/faults-{kind}:{program}"
        host.docker("tag", f"{prefix}/faults-{kind}", image)
        environment = [part for key, value in fault.environment.items() for part in ("-e", f"{key}={value}")]
        options = ("--network", "none", *fault.options, *environment)
        command = (*_COMMANDS.get(kind, ("/opt/app/app",)), program)
        host.docker("run", "-d", "--name", name, *options, image, *command)
        if fault.is_silent:
            lose_packets(name)

    try:
        with ThreadPoolExecutor(4) as pool:
            # A list of the results raises the exception of a start that failed.
            list(pool.map(lambda name, parts: start(name, *parts[1:]), names, wanted))
        yield names
    finally:
        host.docker("rm", "-f", *names, check=False)


def lose_packets(name: str) -> None:
    """Give container NAME a route to 192.0.2.0/24 that ends nowhere: its loopback device has no such address, and drops the packets."""
    host.run("nsenter", "-t", str(host.find_pid(name)), "-n", "ip", "route", "add", UNREACHABLE, "dev", "lo")


def _make_files(folder: Path, kind: str) -> dict[str, str]:
    """Make the files of an image in FOLDER, and return them by their paths in the image."""
    texts = {
        "app.conf": "port = 5432\n",
        "staging.conf": "port = 5433\n",
        "secret.key": "secret\n",
        "data.lock": "",
        "script": "#!/usr/bin/python7\n",
        "edited": "#!/opt/app/app\r\n",
        "data": "not a program\n",
    }
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode())
    (folder / "secret.key").chmod(0o600)
    program = folder / "app"
    if kind in _SCRIPTS:
        shutil.copy(_HERE / _SCRIPTS[kind], program)
    else:
        # The linker warns of static programs that look names up.
        words = (*_COMPILERS[kind], "-O1", "-pthread", "-o", str(program), str(_HERE / "faults.c"))
        subprocess.run(words, check=True, capture_output=True)
    _make_programs(folder)
    for name in ("script", "edited", "worker", "foreign"):
        (folder / name).chmod(0o755)
    places = {
        "/opt/app": ("app", "script", "edited", "data", "worker", "foreign"),
        "/etc/app": ("app.conf", "staging.conf", "secret.key"),
        "/var/lib/app": ("data.lock",),
    }
    return {f"{place}/{name}": str(folder / name) for place, names in places.items() for name in names}


def _make_programs(folder: Path) -> None:
    """Make FOLDER/worker, a program for another architecture, and FOLDER/foreign, a program whose loader is not there."""
    foreign = folder / "foreign"
    subprocess.run(["gcc", "-x", "c", "-o", str(foreign), "-"], input=b"int main() { return 0; }", check=True)
    program = bytearray(foreign.read_bytes())
    foreign.write_bytes(program.replace(b"/ld-linux", b"/ld-other"))  # as long
    program[_MACHINE_OFFSET : _MACHINE_OFFSET + 2] = _MACHINES[os.uname().machine].to_bytes(2, "little")
    (folder / "worker").write_bytes(program)
