# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Resolve and download Debian packages by apt's own solver in an apt root of our own.

Of the machine's apt its sources, keys and proxies are read; its lists, its cache, its package state, its preferences and its
hooks are not, so this needs no root and no lock of apt's. The closure is complete but for what only maintainer scripts use.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import subprocess
import time
from dataclasses import dataclass
from typing import Collection
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
# What a machine's settings may have run when lists were fetched, which is not for us.
_SETTINGS = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Default-Release;
"""
_LOCK_S = 900.0
_LOCK_RETRY_S = 0.2
# Releases that have no suites of updates beside them.
_ROLLING = ("sid", "unstable", "experimental", "devel")
_COMPONENTS = {"Debian": "main", "Ubuntu": "main universe"}
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


def parse_uris(text: str, archives: str, local: Collection[str] = ()) -> list[Package]:
    """Packages from what `apt-get --print-uris install` prints, their files expected in folder ARCHIVES, without those that were
    named by their paths, LOCAL."""
    packages = []
    for line in text.splitlines():
        match = _URI_LINE.match(line)
        if match:
            if match["uri"].startswith("file:") and unquote(match["uri"][len("file:") :]) in local:
                continue
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
    """An apt root for REPOSITORY in FOLDER, made when missing. Package files are shared by all roots of FOLDER.

    One build at a time has the folder, until it is closed: apt's own locks would make the others fail.
    """

    def __init__(self, folder: str, repository: Repository) -> None:
        check_repository(repository)
        self._repository = repository
        key = hashlib.sha256(json.dumps(vars(repository), sort_keys=True).encode()).hexdigest()[:16]
        self._folder = os.path.join(folder, "apt", key)
        self._archives = os.path.join(folder, "archives")
        try:
            for path in (os.path.join(self._folder, "state/lists/partial"), os.path.join(self._archives, "partial")):
                os.makedirs(path, mode=0o755, exist_ok=True)
            self._lock = _wait_for_lock(os.path.join(folder, "lock"))
        except OSError as error:
            raise BuildError(f"cache {folder} cannot be used ({error.strerror}): give another one") from error
        self._settings = os.path.join(self._folder, "apt.conf")
        with open(self._settings, "w", encoding="ascii") as file:
            file.write(_SETTINGS)

    def close(self) -> None:
        """Let other builds have the folder. Calling it again does nothing."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

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
            "APT::Get::AllowUnauthenticated": "false",
            "Acquire::AllowInsecureRepositories": "false",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "APT::Get::Assume-Yes": "true",
            "Acquire::ForceHash": "SHA256",
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
            **options,
        }
        sources = self._write_sources()
        if sources:
            settings.update({"Dir::Etc::SourceList": sources, "Dir::Etc::SourceParts": "/dev/null"})
        command = [
            program,
            "-q",
            f"-c={self._settings}",
            *(f"-o{name}={value}" for name, value in settings.items()),
            *arguments,
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, env={**os.environ, "LC_ALL": "C"}
        )
        if done.returncode != 0:
            # What cannot be resolved stands on stdout, that it cannot on stderr.
            text = "\n".join(part for part in (done.stdout.strip(), done.stderr.strip()) if part)
            raise BuildError(f"{program} {arguments[0]} failed: {text}")
        return done.stdout

    def _write_sources(self) -> str:
        """The path of a list of sources of our own; "" where the machine's are used."""
        repository = self._repository
        if repository.release is None:
            return ""
        path = os.path.join(self._folder, "sources.list")
        with open(path, "w", encoding="ascii") as file:
            file.writelines(_list_sources(repository))
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
            raise BuildError(
                f"{error}; check release, mirror and network, or build from what the cache has with offline=true"
            ) from error
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
        try:
            text = self._run("--print-uris", "install", "--", *names, **{"Dir::Cache::archives": nowhere})
        except BuildError as error:
            raise BuildError(f"{error}; check the names, and whether the release has these packages") from error
        return parse_uris(text, self._archives, [name for name in names if name.startswith("/")])

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


def _list_sources(repository: Repository) -> list[str]:
    """Lines of a list of sources: with a mirror its one suite; without, also the updates, from the mirrors that the machine has."""
    release = str(repository.release)
    mirrors = _find_mirrors()
    mirror = repository.mirror or next((uri for uri, _vendor in mirrors if "security" not in uri), "")
    if not mirror:
        raise BuildError("this machine's apt knows no mirror of Debian or Ubuntu: give mirror, too")
    vendor = dict(mirrors).get(mirror) or ("Ubuntu" if "ubuntu" in mirror.lower() else "Debian")
    suites = [(mirror, release)]
    if repository.mirror is None and release not in _ROLLING:
        security = next((uri for uri, _vendor in mirrors if "security" in uri), mirror if vendor == "Ubuntu" else "")
        suites.append((mirror, f"{release}-updates"))
        if security:
            suites.append((security, f"{release}-security"))
    keyring = f"[signed-by={_KEYRINGS[vendor]}] " if os.path.exists(_KEYRINGS[vendor]) else ""
    return [f"deb {keyring}{uri} {suite} {_COMPONENTS[vendor]}\n" for uri, suite in suites]


def _find_mirrors() -> list[tuple[str, str]]:
    """The mirrors that the machine's apt has, each with its vendor."""
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    found = {}
    for line in done.stdout.splitlines():
        uri, _space, origin = line.partition(" ")
        # Until the lists were fetched apt does not know the origin.
        vendor = origin or next((one for one in _KEYRINGS if f"/{one.lower()}" in uri), "")
        if vendor in _KEYRINGS:
            found[uri] = vendor
    return list(found.items())


def _wait_for_lock(path: str) -> int:
    """The descriptor that holds the lock of file PATH."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                os.close(fd)
                raise BuildError(
                    f"other builds have had the cache {os.path.dirname(path)} for {_LOCK_S:g} s: give this one another cache"
                ) from error
            time.sleep(_LOCK_RETRY_S)


def _is_whole(package: Package) -> bool:
    algorithm, _colon, wanted = package.hash.partition(":")
    try:
        with open(package.path, "rb") as file:
            if os.fstat(file.fileno()).st_size != package.size:
                return False
            return hashlib.file_digest(file, algorithm.lower()).hexdigest() == wanted
    except FileNotFoundError:
        return False
