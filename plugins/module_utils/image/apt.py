# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Resolve and download Debian packages by apt's own solver in an apt root of our own.

The machine's sources and keys are read; its lists, its cache and its package state are neither read nor
written, so this needs no root and takes no lock. The closure is complete but for what only maintainer scripts use.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import time
from dataclasses import dataclass
from urllib.parse import unquote

from ansible_collections.crashcart.fleet.plugins.module_utils.image.errors import BuildError

_PACKAGE_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]*[a-z0-9+.](=[A-Za-z0-9.+~:-]*[A-Za-z0-9.+~:])?\Z")
_RELEASE = re.compile(r"[a-z][a-z0-9.-]*\Z")
_MIRROR = re.compile(r"(https?|file)://?[A-Za-z0-9._~:/%+-]+\Z")
_URI_LINE = re.compile(r"'(?P<uri>[^']+)' (?P<file>\S+) (?P<size>\d+) (?P<hash>\S*)\s*\Z")
# What packages depend on for their maintainer scripts alone, which are never run. Who wants one of these names it.
_FOR_SCRIPTS = (
    "adduser",
    "debconf",
    "dpkg",
    "init-system-helpers",
    "sensible-utils",
    "ucf",
    "usr-is-merged",
    "usrmerge",
)
_KEYRINGS = {
    "Debian": "/usr/share/keyrings/debian-archive-keyring.gpg",
    "Ubuntu": "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
}


@dataclass(frozen=True)
class Package:
    """A package file in the cache. HASH is apt's, as ALGORITHM:HEX; SIZE is in bytes."""

    name: str
    version: str
    arch: str
    path: str
    hash: str
    size: int
    uri: str = ""


@dataclass(frozen=True)
class Repository:
    """Where packages come from. Without RELEASE and MIRROR: from the machine's own sources."""

    arch: str
    release: str | None = None
    mirror: str | None = None


def check_package_names(names: list[str]) -> None:
    """Raise BuildError unless all NAMES look like Debian package names (with =VERSION where wanted)."""
    for name in names:
        if not _PACKAGE_NAME.match(name):
            raise BuildError(f"{name!r} is not the name of a Debian package")


def check_repository(repository: Repository) -> None:
    """Raise BuildError unless release and mirror can stand in a line of sources."""
    if repository.release is not None and not _RELEASE.match(repository.release):
        raise BuildError(f"release {repository.release!r} is not the name of a release, such as bookworm")
    if repository.mirror is not None and not _MIRROR.match(repository.mirror):
        raise BuildError(
            f"mirror {repository.mirror!r} is not the address of a mirror, such as http://deb.debian.org/debian"
        )
    if repository.mirror is not None and repository.release is None:
        raise BuildError("a mirror needs a release: give release, too, such as bookworm")


def parse_uris(text: str, archives: str) -> list[Package]:
    """Packages from what `apt-get --print-uris install` prints, their files expected in folder ARCHIVES."""
    packages = []
    for line in text.splitlines():
        match = _URI_LINE.match(line)
        if match:
            name, version, arch = match["file"][: -len(".deb")].split("_")
            path = os.path.join(archives, match["file"])
            if not match["hash"]:
                raise BuildError(
                    f"the repository has no hash of {match['file']}: a package that cannot be verified is not used"
                )
            package = Package(name, unquote(version), arch, path, match["hash"], int(match["size"]), match["uri"])
            packages.append(package)
    return sorted(packages, key=lambda package: package.name)


class PrivateApt:
    """An apt root for REPOSITORY in FOLDER, made when missing. Package files are shared by all roots of FOLDER."""

    def __init__(self, folder: str, repository: Repository) -> None:
        check_repository(repository)
        self._repository = repository
        key = hashlib.sha256(json.dumps(vars(repository), sort_keys=True).encode()).hexdigest()[:16]
        self._folder = os.path.join(folder, "apt", key)
        self._archives = os.path.join(folder, "archives")
        for path in (os.path.join(self._folder, "state/lists/partial"), os.path.join(self._archives, "partial")):
            os.makedirs(path, mode=0o755, exist_ok=True)

    def _run(self, *arguments: str, program: str = "apt-get", **options: str) -> str:
        settings = {
            "Dir::State": os.path.join(self._folder, "state"),
            "Dir::State::status": os.path.join(self._folder, "state", "status"),
            "Dir::Cache": os.path.join(self._folder, "cache"),
            "Dir::Cache::archives": self._archives,
            "APT::Architecture": self._repository.arch,
            "APT::Architectures": self._repository.arch,
            "APT::Sandbox::User": "",
            "APT::Install-Recommends": "false",
            "APT::Get::Assume-Yes": "true",
            "Acquire::ForceHash": "SHA256",
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
            **options,
        }
        sources = self._write_sources()
        if sources:
            settings.update({"Dir::Etc::SourceList": sources, "Dir::Etc::SourceParts": "/dev/null"})
        command = [program, "-qq", *(f"-o{name}={value}" for name, value in settings.items()), *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, env={**os.environ, "LC_ALL": "C"}
        )
        if done.returncode != 0:
            raise BuildError(f"{program} {arguments[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def _write_sources(self) -> str:
        """The path of a list of sources of our own; "" where the machine's are used."""
        repository = self._repository
        if repository.release is None:
            return ""
        mirror, keyring = repository.mirror or _find_mirror(), ""
        for vendor, path in _KEYRINGS.items():
            if vendor.lower() in mirror and os.path.exists(path):
                keyring = f"[signed-by={path}] "
        path = os.path.join(self._folder, "sources.list")
        with open(path, "w", encoding="ascii") as file:
            file.write(f"deb {keyring}{mirror} {repository.release} main\n")
        return path

    def update(self, valid_s: float) -> None:
        """Fetch the lists of packages unless they were fetched less than VALID_S seconds ago."""
        stamp = os.path.join(self._folder, "state", "updated")
        try:
            if time.time() - os.stat(stamp).st_mtime < valid_s:
                return
        except FileNotFoundError:
            pass
        try:
            # apt by itself calls it a success when lists that it has are old and the mirror is gone.
            self._run("update", **{"APT::Update::Error-Mode": "any"})
        except BuildError as error:
            raise BuildError(f"{error}; a build from what the cache has: offline=true") from error
        with open(stamp, "w", encoding="ascii"):
            pass

    def has(self, name: str) -> bool:
        """Whether the repository has a package called NAME."""
        return name in self._run("pkgnames", name, program="apt-cache").split()

    def resolve(self, names: list[str]) -> list[Package]:
        """The dependency closure of NAMES (of packages, or paths of package files, which are left out of the answer)."""
        self._write_status(names)
        # A package that is in the cache already would not be printed: for this question the cache is elsewhere.
        nowhere = os.path.join(self._folder, "empty")
        os.makedirs(os.path.join(nowhere, "partial"), exist_ok=True)
        text = self._run("--print-uris", "install", "--", *names, **{"Dir::Cache::archives": nowhere})
        return parse_uris(text, self._archives)

    def _write_status(self, names: list[str]) -> None:
        """What counts as installed: nothing but what only maintainer scripts use."""
        wanted = {name.partition("=")[0] for name in names}
        entries = [
            f"Package: {name}\nStatus: install ok installed\nVersion: 9999\nArchitecture: {self._repository.arch}\n"
            "Multi-Arch: foreign\nMaintainer: nobody\nDescription: not needed\n"
            for name in _FOR_SCRIPTS
            if name not in wanted
        ]
        with open(os.path.join(self._folder, "state", "status"), "w", encoding="ascii") as file:
            file.write("\n".join(entries))

    def download(self, names: list[str], packages: list[Package], *, offline: bool) -> None:
        """Fetch the files of PACKAGES, the closure of NAMES, that are not in the cache; all are verified."""
        broken = [package for package in packages if not _is_whole(package)]
        if not broken:
            return
        if not offline:
            for package in broken:
                if os.path.exists(package.path):
                    os.unlink(package.path)  # apt would be content with its size
            self._run("--download-only", "install", "--", *names)
        missing = [package.name for package in packages if not _is_whole(package)]
        if missing:
            how = "are not in the cache, and offline=true forbids to fetch them" if offline else "were not downloaded"
            raise BuildError(f"these packages {how}: {', '.join(missing)}")


def _find_mirror() -> str:
    """The mirror that the machine's apt has for its distribution."""
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    for line in done.stdout.splitlines():
        uri, _space, origin = line.partition(" ")
        if origin in _KEYRINGS and "security" not in uri:
            return uri
    raise BuildError("this machine's apt knows no mirror of Debian or Ubuntu: give mirror, too")


def _is_whole(package: Package) -> bool:
    algorithm, _colon, wanted = package.hash.partition(":")
    try:
        with open(package.path, "rb") as file:
            if os.fstat(file.fileno()).st_size != package.size:
                return False
            return hashlib.file_digest(file, algorithm.lower()).hexdigest() == wanted
    except FileNotFoundError:
        return False
