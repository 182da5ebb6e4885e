# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Open the sources of an image: package files, archives, folders, programs, file systems, container images and containers.

Each source has a hash of its content before it is unpacked, so that a build recognizes an image that is there already.
All sources are unpacked as data: nothing of them is run.
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
    """A source of an image, as its manifest describes it."""

    kind: str  # deb, rpm, archive, folder, program, file system, container or container image
    name: str
    version: str  # "" where the kind has none
    arch: str  # "" where the kind has none
    hash: str  # ALGORITHM:HEX
    size: int  # bytes
    uri: str = ""  # of a package in a repository
    source: str = ""  # the source package, or the author of a container image

    @property
    def label(self) -> str:
        """The component's name and version, for messages."""
        return f"{self.name} {self.version}".strip()


class Source(Protocol):
    """A source that can be unpacked into a tree."""

    @property
    def component(self) -> Component:
        """The description of the source."""

    def add_to(self, tree: Tree) -> None:
        """Unpack the source into TREE. Raises BuildError where the source is damaged or not allowed."""


def open_path(path: str) -> Source:
    """Return the source at PATH: a folder, a .deb, a .rpm, a tar archive, a program, or an ext2, ext3 or ext4 file system.

    Raises BuildError where PATH is none of these or cannot be read.
    """
    path = os.path.abspath(path)  # no absolute path looks like an option to the commands that get it
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
    # A tar archive begins with a name. A file system begins with zeros, which tarfile takes for an empty archive.
    if magic.strip(b"\0") and is_archive(path):
        return _Archive(Component("archive", name, "", "", known, size), path)
    if is_filesystem(path):
        _check_filesystem(path, size)
        return FilesystemImage(Component("file system", name, "", "", known, size), path)
    raise BuildError(f"{path} is no folder, no .deb, no .rpm, no tar archive and no program")


def is_filesystem(path: str) -> bool:
    """Return True if the file PATH has the magic number of an ext2, ext3 or ext4 superblock."""
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
    """Return the .deb at PATH as a source that COMPONENT describes."""
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
    """Start COMMAND and give its output as a stream. Raises BuildError about WHAT when COMMAND fails.

    Raises BuildError, too, where a package that COMMAND needs is not installed.
    """
    # The messages go to a file: they are read only after COMMAND has ended, and would fill a pipe until then.
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
            undo.callback(process.kill)  # this does nothing to a process that has ended
            try:
                yield output
                while output.read(_CHUNK):
                    pass  # without a reader for the padding after the archive's end COMMAND would fail or hang
                failed = process.wait() != 0
            except BuildError as error:
                if _has_failed(process):
                    raise explain() from error  # COMMAND's failure is the reason why its output is damaged
                raise
        if failed:
            raise explain()


def _has_failed(process: subprocess.Popen[bytes]) -> bool:
    """Return True if PROCESS ends by itself with an error within two seconds, else kill it where it still runs."""
    try:
        return process.wait(_LAST_WORDS_S) > 0
    except subprocess.TimeoutExpired:
        process.kill()
        return False


@dataclass(frozen=True)
class _Streamed:
    """A package file that COMMAND turns into a tar or cpio archive."""

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
    """A program that goes to bin, or a file of the Nix store that stays at its place."""

    component: Component
    path: str
    place: str

    def add_to(self, tree: Tree) -> None:
        tree.add_file(self.path, self.place, self.component.label, executable=self.place.startswith("bin/"))


@dataclass(frozen=True)
class FilesystemImage:
    """A ready-made tool image, such as one of Oracle's crashcart, that is used as it is."""

    component: Component
    path: str

    def add_to(self, tree: Tree) -> None:  # noqa: ARG002
        """Raise BuildError, since a file system cannot be one of several sources."""
        raise BuildError(f"{self.path} is a whole file system, which is used as it is: name no other source beside it")

    def find_architecture(self) -> str | None:
        """Return the architecture of the first ELF file in bin and sbin by Debian's name, or None where neither has one."""
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
        """Return the names of the programs in bin and sbin, each with the name of the image."""
        names = {name for folder in ("bin", "sbin") for name in self._list_names(folder)}
        return dict.fromkeys(sorted(names), self.component.name)

    def _list_names(self, folder: str) -> list[str]:
        # debugfs prints a line /inode/mode/uid/gid/name/size/ for each entry.
        lines = _run(["debugfs", "-R", f"ls -p /{folder}", self.path], self.path).splitlines()
        entries = [line.split("/") for line in lines]
        return [fields[5] for fields in entries if len(fields) > 5 and fields[5] not in (".", "..")]


class _Folder:
    """A folder that stands for the root of a file system, or a package of the Nix store that stays at its place."""

    def __init__(self, path: str) -> None:
        self._path = path
        digest, size = _hash_folder(path)
        self.component = Component("folder", os.path.basename(os.path.normpath(path)), "", "", f"sha256:{digest}", size)

    def add_to(self, tree: Tree) -> None:
        path = os.path.normpath(self._path)
        place = path.lstrip("/") if os.path.dirname(path) == _STORE else ""
        tree.add_folder(path, self.component.label, place)


def _hash_folder(path: str) -> tuple[str, int]:
    """Return a hash of all names, modes, links and contents below PATH, and the size of the contents in bytes."""
    digest, size = hashlib.sha256(), 0
    for folder, folders, files in os.walk(path, onerror=refuse_folder):
        folders.sort()
        for name in sorted([*files, *folders]):
            entry = os.path.join(folder, name)
            status = os.lstat(entry)
            content = b""
            if stat.S_ISLNK(status.st_mode):
                content = os.fsencode(os.readlink(entry))
            elif stat.S_ISREG(status.st_mode):
                size += status.st_size
                with open(entry, "rb") as file:
                    content = hashlib.file_digest(file, "sha256").digest()
            for part in (os.fsencode(os.path.relpath(entry, path)), b"%o" % status.st_mode, content):
                digest.update(b"%d:" % len(part) + part)
    return digest.hexdigest(), size


class _Chunks(io.RawIOBase):
    """A readable file that consists of CHUNKS."""

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
    """A container image of an engine, which the engine's hash identifies."""

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
        # The hash stands for the image, since the name may belong to another image by now.
        with self._engine.export_image(self.component.hash) as chunks:
            tree.add_archive(io.BufferedReader(_Chunks(chunks), _CHUNK), self.component.label)


class _ContainerFiles:
    """The files of a container as they are now, kept as a tar archive in FOLDER."""

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
    """Return the container image NAME of the Docker engine at DOCKER_HOST (None: the default one) as a source."""
    return _ContainerImage(DockerEngine(docker_host), name)


def open_container(name: str, docker_host: str | None, folder: str) -> Source:
    """Return the files of the container NAME as a source, and keep them in FOLDER until they are unpacked."""
    engine = DockerEngine(docker_host)
    # The engine accepts any beginning of an id, which may be the name of another container. So the name is resolved here.
    container = select_one(name, engine.list_containers(), running_only=False, any_owner=True)
    return _ContainerFiles(engine, name, container.id, folder)
