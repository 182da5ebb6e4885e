# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Resolve and download Debian packages by apt's own solver in a private apt root.

apt reads the machine's sources, keys and proxies. It does not read the machine's lists, cache, package state, preferences and
hooks, so this module needs neither root nor one of apt's locks. The closure lacks only packages that maintainer scripts alone use.
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
# Packages depend on these for their maintainer scripts alone, which are never run. A user who wants one has to name it.
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
# The machine's settings may name hooks that run when lists are fetched, and a default release: neither is meant for the private root.
_SETTINGS = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Default-Release;
"""
_LOCK_S = 900.0
_LOCK_RETRY_S = 0.2
# These releases have no suites for updates.
_ROLLING = ("sid", "unstable", "experimental", "devel")
_COMPONENTS = {"Debian": "main", "Ubuntu": "main universe"}
_KEYRINGS = {
    "Debian": "/usr/share/keyrings/debian-archive-keyring.gpg",
    "Ubuntu": "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
}


@dataclass(frozen=True)
class Package:
    """A package file in the cache."""

    name: str
    version: str
    arch: str  # Debian's name
    path: str
    hash: str  # apt's, as ALGORITHM:HEX
    size: int  # bytes
    uri: str = ""


@dataclass(frozen=True)
class Repository:
    """The origin of packages: the machine's own sources, or a release of Debian or Ubuntu."""

    arch: str
    release: str | None = None  # None: the machine's own sources
    mirror: str | None = None  # None: the machine's own mirrors


def check_package_names(names: list[str]) -> None:
    """Raise BuildError unless all NAMES look like names of Debian packages, with or without =VERSION."""
    for name in names:
        if not _PACKAGE_NAME.match(name):
            raise BuildError(f"{name!r} is not the name of a Debian package")


def check_repository(repository: Repository) -> None:
    """Raise BuildError unless the release and the mirror of REPOSITORY can stand in a line of sources."""
    if repository.release is not None and not _RELEASE.match(repository.release):
        raise BuildError(f"release {repository.release!r} is not the name of a release, such as bookworm")
    if repository.mirror is not None and not _MIRROR.match(repository.mirror):
        raise BuildError(
            f"mirror {repository.mirror!r} is not the address of a mirror, such as http://deb.debian.org/debian"
        )
    if repository.mirror is not None and repository.release is None:
        raise BuildError("a mirror needs a release: give release, too, such as bookworm")


def parse_uris(text: str, archives: str, local: Collection[str] = ()) -> list[Package]:
    """Return the packages in TEXT, the output of `apt-get --print-uris install`, sorted by name.

    Their files are expected in the folder ARCHIVES. Packages whose files are at the paths LOCAL are left out.
    Raises BuildError for a package without a hash.
    """
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
    """An apt root for REPOSITORY in FOLDER, which is made when it is missing. All roots in FOLDER share the package files.

    One build at a time holds FOLDER, until it calls `close`; others wait, where apt's own locks would make them fail.
    The constructor raises BuildError where FOLDER cannot be used, or when the wait takes longer than 15 minutes.
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
        """Release the folder for other builds. Calling it again does nothing."""
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
            # apt names unresolved dependencies on stdout and the failure itself on stderr.
            text = "\n".join(part for part in (done.stdout.strip(), done.stderr.strip()) if part)
            raise BuildError(f"{program} {arguments[0]} failed: {text}")
        return done.stdout

    def _write_sources(self) -> str:
        """Return the path of the private list of sources, or "" where the machine's sources are used."""
        repository = self._repository
        if repository.release is None:
            return ""
        path = os.path.join(self._folder, "sources.list")
        with open(path, "w", encoding="ascii") as file:
            file.writelines(_list_sources(repository))
        return path

    def update(self, valid_s: float) -> None:
        """Fetch the lists of packages unless they were fetched less than VALID_S seconds ago. Raises BuildError when that fails."""
        stamp = os.path.join(self._folder, "state", "updated")
        try:
            if time.time() - os.stat(stamp).st_mtime < valid_s:
                return
        except FileNotFoundError:
            pass
        try:
            # By default apt reports success when the mirror is gone and old lists are there.
            self._run("update", **{"APT::Update::Error-Mode": "any"})
        except BuildError as error:
            raise BuildError(
                f"{error}; check release, mirror and network, or build from what the cache has with offline=true"
            ) from error
        with open(stamp, "w", encoding="ascii"):
            pass

    def has(self, name: str) -> bool:
        """Return True if the repository has a package called NAME."""
        return name in self._run("pkgnames", name, program="apt-cache").split()

    def resolve(self, names: list[str]) -> list[Package]:
        """Return the dependency closure of NAMES, which are names of packages or absolute paths of package files.

        The package files themselves are left out. Raises BuildError when apt cannot resolve NAMES.
        """
        self._write_status(names)
        # apt does not print packages whose files are in its cache. So this call gets an empty cache.
        nowhere = os.path.join(self._folder, "empty")
        os.makedirs(os.path.join(nowhere, "partial"), exist_ok=True)
        try:
            text = self._run("--print-uris", "install", "--", *names, **{"Dir::Cache::archives": nowhere})
        except BuildError as error:
            raise BuildError(f"{error}; check the names, and whether the release has these packages") from error
        return parse_uris(text, self._archives, [name for name in names if name.startswith("/")])

    def _write_status(self, names: list[str]) -> None:
        """Write dpkg's status file: only packages that maintainer scripts alone use count as installed."""
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
        """Fetch the files of PACKAGES, the closure of NAMES, that are not in the cache.

        All files are verified by size and hash. Raises BuildError when one is missing afterwards, or is missing and OFFLINE is set.
        """
        broken = [package for package in packages if not _is_whole(package)]
        if not broken:
            return
        if not offline:
            for package in broken:
                if os.path.exists(package.path):
                    os.unlink(package.path)  # apt would accept it by its size alone
            self._run("--download-only", "install", "--", *names)
        missing = [package.name for package in packages if not _is_whole(package)]
        if missing:
            how = "are not in the cache, and offline=true forbids to fetch them" if offline else "were not downloaded"
            raise BuildError(f"these packages {how}: {', '.join(missing)}")


def _list_sources(repository: Repository) -> list[str]:
    """Return the lines of a list of sources: the mirror's one suite, or, without a mirror, the machine's mirrors with updates."""
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
    """Return the mirrors of the machine's apt, each with its vendor."""
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
        # apt does not know the origin until the machine's lists have been fetched.
        vendor = origin or next((name for name in _KEYRINGS if f"/{name.lower()}" in uri), "")
        if vendor in _KEYRINGS:
            found[uri] = vendor
    return list(found.items())


def _wait_for_lock(path: str) -> int:
    """Lock the file PATH and return the descriptor that holds the lock."""
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
