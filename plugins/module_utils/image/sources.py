# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an image is made of besides packages of a repository: local package files, archives, folders, programs, container images.

Each source says what it is before it is unpacked, by a hash of its content, so that an image that is there already is
recognized. All are unpacked as data: nothing of them is run.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, Any, Iterator, Protocol, cast

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.docker_engine import DockerEngine
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.selection import select_one
from ansible_collections.crashcart.fleet.plugins.module_utils.image import elf, rpm
from ansible_collections.crashcart.fleet.plugins.module_utils.image.errors import BuildError
from ansible_collections.crashcart.fleet.plugins.module_utils.image.tree import Tree, is_archive, refuse_folder

_CHUNK = 1 << 20
_LAST_WORDS_S = 2.0
_STORE = "/nix/store"
_DEB, _RPM = b"!<arch>\n", b"\xed\xab\xee\xdb"
_ELF, _SCRIPT = b"\x7fELF", b"#!"


@dataclass(frozen=True)
class Component:
    """What went into an image. KIND: deb, rpm, archive, folder, program or container image; HASH as ALGORITHM:HEX."""

    kind: str
    name: str
    version: str
    arch: str
    hash: str
    size: int
    uri: str = ""
    source: str = ""

    @property
    def label(self) -> str:
        """How it is called where it stands among others."""
        return f"{self.name} {self.version}".strip()


class Source(Protocol):
    """Something that can be unpacked into a tree."""

    @property
    def component(self) -> Component:
        """What it is."""

    def add_to(self, tree: Tree) -> None:
        """Unpack it."""


def open_path(path: str) -> Source:
    """The source that PATH is: a folder, a .deb, a .rpm, a tar archive, or a program."""
    path = os.path.abspath(path)  # for the commands that get it no name looks like an option
    try:
        if stat.S_ISDIR(os.stat(path).st_mode):
            return _Folder(path)
        with open(path, "rb") as file:
            magic = file.read(8)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256")
            size = file.tell()
    except OSError as error:
        raise BuildError(f"{path} cannot be read: {error.strerror}") from error
    name, known = os.path.basename(path), f"sha256:{digest.hexdigest()}"
    if magic == _DEB:
        return _open_deb(path, known, size)
    if magic[:4] == _RPM:
        command = ["bsdtar", "--format=newc", "-cf", "-", f"@{path}"]
        return _Streamed(_describe_rpm(path, known, size), path, command, is_cpio=True)
    is_stored = os.path.dirname(path) == _STORE
    if is_stored or magic[:4] == _ELF or magic[:2] == _SCRIPT:
        place = path.lstrip("/") if is_stored else f"bin/{name}"
        return _Program(Component("program", name, "", "", known, size), path, place)
    # An archive begins with a name; to tarfile zeros are an empty one, and a file system begins with zeros.
    if magic.strip(b"\0") and is_archive(path):
        return _Archive(Component("archive", name, "", "", known, size), path)
    if is_filesystem(path):
        _check_filesystem(path, size)
        return FilesystemImage(Component("file system", name, "", "", known, size), path)
    raise BuildError(f"{path} is no folder, no .deb, no .rpm, no tar archive and no program")


def is_filesystem(path: str) -> bool:
    """Whether the file PATH holds an ext2, ext3 or ext4 file system, by the magic number of its superblock."""
    with open(path, "rb") as file:
        file.seek(1080)
        return file.read(2) == b"\x53\xef"


def _check_filesystem(path: str, size: int) -> None:
    """Raise BuildError unless the file system in the file PATH of SIZE bytes is whole and clean."""
    with open(path, "rb") as file:
        file.seek(1024)
        blocks, exponent = struct.unpack_from("<4xI16xI", file.read(28))
    wanted = blocks << (10 + exponent) if exponent < 7 else 0
    if not 0 < wanted <= size:
        raise BuildError(f"{path} is damaged: it begins like a file system of {wanted} bytes and has {size}")
    done = _try(["e2fsck", "-fn", path])
    if done.returncode != 0:
        raise BuildError(
            f"{path} holds a file system with errors, see what e2fsck -f {path} says: {done.stderr.strip()}"
        )


def _open_deb(path: str, known: str, size: int) -> Source:
    fields = _read_deb_fields(path)
    component = Component(
        "deb", fields["Package"], fields["Version"], fields["Architecture"], known, size, source=fields["Source"]
    )
    return open_package(component, path)


def open_package(component: Component, path: str) -> Source:
    """The source that a .deb at PATH is, of which all is known already."""
    return _Streamed(component, path, ["dpkg-deb", "--fsys-tarfile", path])


def _read_deb_fields(path: str) -> dict[str, str]:
    names = ("Package", "Version", "Architecture", "Source")
    text = _run(["dpkg-deb", "-f", path, *names], path)
    pairs = (line.partition(": ") for line in text.splitlines())
    return {**dict.fromkeys(names, ""), **{name: value for name, _colon, value in pairs if name in names}}


def _describe_rpm(path: str, known: str, size: int) -> Component:
    try:
        with open(path, "rb") as file:
            facts = rpm.read_facts(file)
    except ValueError as error:
        raise BuildError(f"{path} is a damaged rpm: {error}") from error
    version = f"{facts['version']}-{facts['release']}"
    return Component("rpm", facts["name"], version, facts["arch"], known, size, source=facts["source"])


def _run(command: list[str], what: str) -> str:
    done = _try(command)
    if done.returncode != 0:
        raise BuildError(f"{what} cannot be read: {done.stderr.strip()}")
    return done.stdout


def _try(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError as error:
        raise _explain_missing(command[0]) from error


def _explain_missing(program: str) -> BuildError:
    packages = {"bsdtar": "libarchive-tools", "dpkg-deb": "dpkg", "debugfs": "e2fsprogs", "e2fsck": "e2fsprogs"}
    return BuildError(f"to read this kind of file this machine needs the package {packages[program]}")


@contextmanager
def stream(command: list[str], what: str) -> Iterator[IO[bytes]]:
    """What COMMAND writes, as a stream; raises BuildError when it fails in the end."""
    # A file for its messages: nobody reads them before its end, and they may be many.
    with tempfile.TemporaryFile() as messages:
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages)
        except FileNotFoundError as error:
            raise _explain_missing(command[0]) from error

        def explain() -> BuildError:
            messages.seek(0)
            text = messages.read(65536).decode("utf-8", "replace").strip()
            return BuildError(f"{what} cannot be unpacked: {text}")

        output = cast("IO[bytes]", process.stdout)
        with process, ExitStack() as undo:
            undo.callback(process.kill)  # which does nothing to one that has ended
            try:
                yield output
                while output.read(_CHUNK):
                    pass  # padding after the end of the archive, which its writer wants to be rid of
                failed = process.wait() != 0
            except BuildError as error:
                if _has_failed(process):
                    raise explain() from error  # which is why what it wrote is no archive
                raise
        if failed:
            raise explain()


def _has_failed(process: subprocess.Popen[bytes]) -> bool:
    """Whether PROCESS has ended badly by itself; it has ended in any case."""
    try:
        return process.wait(_LAST_WORDS_S) > 0
    except subprocess.TimeoutExpired:
        process.kill()
        return False


@dataclass(frozen=True)
class _Streamed:
    """A package file that COMMAND turns into an archive of tar, or of cpio."""

    component: Component
    path: str
    command: list[str]
    is_cpio: bool = False

    def add_to(self, tree: Tree) -> None:
        with stream(self.command, self.path) as archive:
            add = tree.add_cpio if self.is_cpio else tree.add_archive
            add(archive, self.component.label)


@dataclass(frozen=True)
class _Archive:
    component: Component
    path: str

    def add_to(self, tree: Tree) -> None:
        with open(self.path, "rb") as file:
            tree.add_archive(file, self.component.label)


@dataclass(frozen=True)
class _Program:
    """One program, which goes to bin, or a file of the store of Nix, which stays at its place."""

    component: Component
    path: str
    place: str

    def add_to(self, tree: Tree) -> None:
        tree.add_file(self.path, self.place, self.component.label, executable=self.place.startswith("bin/"))


@dataclass(frozen=True)
class FilesystemImage:
    """A tool image that somebody else has made (as Oracle's crashcart did), which is used as it is."""

    component: Component
    path: str

    def add_to(self, tree: Tree) -> None:  # noqa: ARG002
        """It is no source among others."""
        raise BuildError(f"{self.path} is a whole file system, which is used as it is: name no other source beside it")

    def find_architecture(self) -> str | None:
        """The architecture of its programs, by the first one that says it."""
        for folder in ("bin", "sbin"):
            for name in self._list_names(folder):
                command = ["debugfs", "-R", f"cat /{folder}/{name}", self.path]
                with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
                    head = cast("IO[bytes]", process.stdout).read(20)
                    process.kill()
                if head[:4] == _ELF and len(head) == 20:
                    return elf.find_architecture(head)
        return None

    def list_tools(self) -> dict[str, str]:
        """Names of its programs, as crashcart_build gives them."""
        names = {name for folder in ("bin", "sbin") for name in self._list_names(folder)}
        return dict.fromkeys(sorted(names), self.component.name)

    def _list_names(self, folder: str) -> list[str]:
        # Lines of /inode/mode/uid/gid/name/size/ for each entry.
        lines = _run(["debugfs", "-R", f"ls -p /{folder}", self.path], self.path).splitlines()
        fields = [line.split("/") for line in lines]
        return [one[5] for one in fields if len(one) > 5 and one[5] not in (".", "..")]


class _Folder:
    """A folder that stands for the root of a file system, or a package in the store of Nix, which stays at its place."""

    def __init__(self, path: str) -> None:
        self._path = path
        digest, size = _hash_folder(path)
        self.component = Component("folder", os.path.basename(os.path.normpath(path)), "", "", f"sha256:{digest}", size)

    def add_to(self, tree: Tree) -> None:
        path = os.path.normpath(self._path)
        place = path.lstrip("/") if os.path.dirname(path) == _STORE else ""
        tree.add_folder(path, self.component.label, place)


def _hash_folder(path: str) -> tuple[str, int]:
    """A hash of all names, modes, links and contents below PATH, and the size of the contents in bytes."""
    digest, size = hashlib.sha256(), 0
    for folder, folders, files in os.walk(path, onerror=refuse_folder):
        folders.sort()
        for name in sorted([*files, *folders]):
            one = os.path.join(folder, name)
            status = os.lstat(one)
            content = b""
            if stat.S_ISLNK(status.st_mode):
                content = os.fsencode(os.readlink(one))
            elif stat.S_ISREG(status.st_mode):
                size += status.st_size
                with open(one, "rb") as file:
                    content = hashlib.file_digest(file, "sha256").digest()
            for part in (os.fsencode(os.path.relpath(one, path)), b"%o" % status.st_mode, content):
                digest.update(b"%d:" % len(part) + part)
    return digest.hexdigest(), size


class _Chunks(io.RawIOBase):
    """A readable file of CHUNKS, which also goes to HASHER."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            try:
                self._rest = next(self._chunks)
            except StopIteration:
                return 0
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


class _ContainerImage:
    """A container image of an engine; its own hash names its content."""

    def __init__(self, engine: DockerEngine, name: str) -> None:
        self._engine = engine
        found = engine.find_image(name)
        self.component = Component(
            "container image",
            name,
            "",
            found["Architecture"],
            found["Id"],
            found["Size"],
            source=found.get("Author") or "",
        )

    def add_to(self, tree: Tree) -> None:
        # By its hash: the name may lead to another image by now.
        with self._engine.export_image(self.component.hash) as chunks:
            tree.add_archive(io.BufferedReader(_Chunks(chunks), _CHUNK), self.component.label)


class _ContainerFiles:
    """The files of a container as they are now, in FOLDER until they are unpacked."""

    def __init__(self, engine: DockerEngine, name: str, container_id: str, folder: str) -> None:
        self._path = os.path.join(folder, f"container-{len(os.listdir(folder))}.tar")
        digest, size = hashlib.sha256(), 0
        with engine.export_container(container_id) as chunks, open(self._path, "wb") as file:
            for chunk in chunks:
                digest.update(chunk)
                size += file.write(chunk)
        self.component = Component("container", name, "", "", f"sha256:{digest.hexdigest()}", size)

    def add_to(self, tree: Tree) -> None:
        with open(self._path, "rb") as file:
            tree.add_archive(file, self.component.label)


def open_container_image(name: str, docker_host: str | None) -> Source:
    """The source that the image NAME is."""
    return _ContainerImage(DockerEngine(docker_host), name)


def open_container(name: str, docker_host: str | None, folder: str) -> Source:
    """The source that the files of container NAME are; they are kept in FOLDER meanwhile."""
    engine = DockerEngine(docker_host)
    # The engine takes any beginning of an id, which may read like the name of another container.
    container = select_one(name, engine.list_containers(), running_only=False, any_owner=True)
    return _ContainerFiles(engine, name, container.id, folder)
