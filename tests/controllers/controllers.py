# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make controllers: virtual environments with other versions of ansible-core, and of Python, than development has.

They are in build/controllers of the checkout, and are kept there. A Python that this machine lacks comes from Debian's unstable release.
Its root folder is entered in a mount namespace with the checkout, the home folder, /tmp and the kernel's file systems at their usual places.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import fleet
import guest
import releases

FOLDER = fleet.ROOT / "build" / "controllers"
# What unit tests use of a machine, beside git, which some ask for the checkout's files.
_PACKAGES = (
    "busybox-static",
    "ca-certificates",
    "git",
    "libseccomp2",
    "openssh-client",
    "patchelf",
    "python3",
    "strace",
)
_SHARED = ("/dev", "/proc", "/run", "/sys", "/tmp", str(Path.home()), str(fleet.ROOT))
# What is mounted here goes with its last process.
_ENTER = """\
set -e
root=$1
shift
mount --bind "$root" "$root"  # `unshare --mount` wants a mount at its root
for folder in $SHARED; do mkdir -p "$root$folder"; mount --rbind "$folder" "$root$folder"; done
exec chroot "$root" env -C "$FOLDER" "$@"
"""


@dataclass(frozen=True)
class Pair:
    """A version of ansible-core, as `2.21`, and a version of Python that it runs on."""

    core: str
    python: str
    is_candidate: bool = False  # its releases are candidates yet

    def __str__(self) -> str:
        return f"core{self.core}-python{self.python}"


class Controller:
    """A virtual environment with the versions of PAIR. The constructor makes it where it is missing."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self._environment = FOLDER / str(pair)
        self._root = None if shutil.which(f"python{pair.python}") else _unpack_root()
        if not (self._environment / "ready").exists():
            shutil.rmtree(self._environment, ignore_errors=True)
            self._make()
            (self._environment / "ready").touch()

    @property
    def can_install(self) -> bool:
        """True if pip runs in the environment, as ansible-test wants."""
        return self._root is None

    def _make(self) -> None:
        environment = self._environment
        packages = environment / "lib" / f"python{self.pair.python}" / "site-packages"
        python = f"python{self.pair.python}"
        self._execute(python, "-m", "venv", *(() if self.can_install else ("--without-pip",)), environment)
        if self.can_install:
            command = [environment / "bin" / "python", "-m", "pip", "install"]
        else:
            # Only this environment's pip knows this machine's sources of packages. It asks its own Python what a package may require.
            command = [sys.executable, "-m", "pip", "install", "--target", packages, "--ignore-requires-python"]
            command += ["--only-binary", ":all:", "--python-version", self.pair.python]
        for path in ("requirements.txt", "tests/unit/requirements.txt"):
            command += ["-r", fleet.ROOT / path]
        core = f"ansible-core~={self.pair.core}.0{'rc1' if self.pair.is_candidate else ''}"
        subprocess.run([*command, "--quiet", "--disable-pip-version-check", "pytest", "PyYAML", core], check=True)
        for script in () if self.can_install else (packages / "bin").glob("ansible*"):
            lines = script.read_text(encoding="utf-8").splitlines(keepends=True)
            script.write_text("".join([f"#!{environment}/bin/python\n", *lines[1:]]), encoding="utf-8")
            shutil.move(script, environment / "bin")

    def run(self, *words: str | Path, folder: Path, environment: Mapping[str, str] = MappingProxyType({})) -> str:
        """Run this environment's Python with WORDS in FOLDER, and return what it prints. Raises AssertionError when it fails."""
        return self._execute(self._environment / "bin" / "python", *words, folder=folder, environment=environment)

    def play(self, program: str, *words: str | Path, folder: Path, environment: Mapping[str, str]) -> str:
        """Run `ansible` or `ansible-PROGRAM` with WORDS in FOLDER, and return what it prints. Raises AssertionError when it fails."""
        return self.run("-m", "ansible", program, *words, folder=folder, environment=environment)

    def _execute(
        self, *words: str | Path, folder: Path = fleet.ROOT, environment: Mapping[str, str] = MappingProxyType({})
    ) -> str:
        path = os.pathsep.join([str(self._environment / "bin"), os.environ["PATH"], "/usr/sbin", "/sbin"])
        variables = {**os.environ, "PATH": path, "PYTHONPATH": str(FOLDER.parent), **environment}
        command: Sequence[str | Path] = words
        if self._root is not None:
            variables.update(SHARED=" ".join(_SHARED), FOLDER=str(folder))
            enter = ("unshare", "--mount", "--propagation", "slave", "sh", "-c", _ENTER, "sh")
            command = (*enter, self._root, *words)
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run(command, **output, text=True, check=False, cwd=folder, env=variables)
        assert done.returncode == 0, f"{' '.join(map(str, words))}: rc {done.returncode}\n{done.stdout}"
        return done.stdout


def _unpack_root() -> Path:
    """Return the root folder of Debian's unstable release."""
    archive = releases.prepare(guest.UNSTABLE, _PACKAGES)
    root = FOLDER / archive.parent.name
    if not (root / "unpacked").exists():
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        guest.run("tar", "-x", "-C", root, "-f", archive)
        shutil.copy("/etc/passwd", root / "etc/passwd")
        (root / "unpacked").touch()
    return root
