# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Resolve and download Debian packages by apt's own solver in an apt root of our own.

The machine's sources and keys are read; its lists, its cache and its package state are neither read nor
written, so this needs no root and takes no lock. The closure is complete: the private root has nothing installed.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from dataclasses import dataclass
from urllib.parse import unquote

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError

_PACKAGE_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]*[a-z0-9+.](=[A-Za-z0-9.+~:-]*[A-Za-z0-9.+~:])?\Z")
_URI_LINE = re.compile(r"'(?P<uri>[^']+)' (?P<file>\S+) (?P<size>\d+) (?P<hash>\S*)\s*\Z")


class BuildError(FleetError):
    """An image cannot be built; the text says why."""


@dataclass(frozen=True)
class Package:
    """A package file in the cache. HASH is apt's, as ALGORITHM:HEX; SIZE is in bytes."""

    name: str
    version: str
    arch: str
    path: str
    hash: str
    size: int


def check_package_names(names: list[str]) -> None:
    """Raise BuildError unless all NAMES look like Debian package names (with =VERSION where wanted)."""
    for name in names:
        if not _PACKAGE_NAME.match(name):
            raise BuildError(f"{name!r} is not the name of a Debian package")


def parse_uris(text: str, archives: str) -> list[Package]:
    """Packages from what `apt-get --print-uris install` prints, their files expected in folder ARCHIVES."""
    packages = []
    for line in text.splitlines():
        match = _URI_LINE.match(line)
        if match:
            name, version, arch = match["file"][: -len(".deb")].split("_")
            path = os.path.join(archives, match["file"])
            packages.append(Package(name, unquote(version), arch, path, match["hash"], int(match["size"])))
    return sorted(packages, key=lambda package: package.name)


class PrivateApt:
    """An apt root at FOLDER, made when missing."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._archives = os.path.join(folder, "cache", "archives")
        for path in ("state/lists/partial", "cache/archives/partial"):
            os.makedirs(os.path.join(folder, path), mode=0o755, exist_ok=True)
        with open(os.path.join(folder, "state", "status"), "a", encoding="ascii"):
            pass  # an empty file: nothing is installed here

    def _run(self, *arguments: str) -> str:
        options = {
            "Dir::State": os.path.join(self._folder, "state"),
            "Dir::State::status": os.path.join(self._folder, "state", "status"),
            "Dir::Cache": os.path.join(self._folder, "cache"),
            "APT::Sandbox::User": "",
            "APT::Install-Recommends": "false",
            "APT::Get::Assume-Yes": "true",
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
        }
        command = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items()), *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, env={**os.environ, "LC_ALL": "C"}
        )
        if done.returncode != 0:
            raise BuildError(f"apt-get {arguments[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def update(self, valid_s: float) -> None:
        """Fetch the lists of packages unless they were fetched less than VALID_S seconds ago."""
        stamp = os.path.join(self._folder, "state", "updated")
        try:
            if time.time() - os.stat(stamp).st_mtime < valid_s:
                return
        except FileNotFoundError:
            pass
        self._run("update")
        with open(stamp, "w", encoding="ascii"):
            pass

    def resolve(self, names: list[str]) -> list[Package]:
        """The whole dependency closure of NAMES."""
        # A package that is in the cache already would not be printed: for this question the cache is elsewhere.
        nowhere = os.path.join(self._folder, "empty")
        os.makedirs(os.path.join(nowhere, "partial"), exist_ok=True)
        text = self._run(f"-oDir::Cache::archives={nowhere}", "--print-uris", "install", "--", *names)
        packages = parse_uris(text, self._archives)
        if not packages:
            raise BuildError("apt-get names no package to download; see which sources the machine has in /etc/apt")
        return packages

    def download(self, names: list[str], packages: list[Package]) -> None:
        """Fetch the files of PACKAGES, the closure of NAMES, that are not in the cache; apt verifies them."""
        if all(_is_whole(package) for package in packages):
            return
        self._run("--download-only", "install", "--", *names)
        missing = [package.name for package in packages if not _is_whole(package)]
        if missing:
            raise BuildError(f"apt-get did not download: {', '.join(missing)}")


def _is_whole(package: Package) -> bool:
    try:
        return os.stat(package.path).st_size == package.size
    except FileNotFoundError:
        return False
