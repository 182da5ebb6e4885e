# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fill the tree of an image from archives and folders that need not be trusted.

/usr is folded into the root. The tree holds only folders and regular files until all sources are unpacked: symlinks are
remembered and made at the end, so no source can lead an unpacked file out of the tree. Devices and pipes are left out.
Setuid and setgid bits are dropped, and all files belong to the builder, whatever an archive says.
"""

from __future__ import annotations

import gzip
import lzma
import os
import posixpath
import re
import stat
import tarfile
import zlib
from tarfile import (  # type: ignore[attr-defined]  # the first is not in the types
    EOFHeaderError,
    HeaderError,
    ReadError,
    TarFile,
)
from typing import IO, cast

from ansible_collections.crashcart.fleet.plugins.module_utils.image import cpio
from ansible_collections.crashcart.fleet.plugins.module_utils.image.errors import BuildError

# No tool image comes near these limits. A small archive may be made to unpack to more.
_MAX_BYTES = 16 << 30
_MAX_FILES = 1_000_000
_MAX_PLACE = 3000  # PATH_MAX is 4096, and the path of the tree goes before
_MAX_DEPTH = 200  # Python removes a tree by recursion
_MAX_HEADER = 1 << 20
_CHUNK = 1 << 20
# tarfile and the decompressors raise these, in one version or another, for a damaged archive or for other data.
_DAMAGE = (
    *(tarfile.TarError, EOFError, ValueError, ArithmeticError, RecursionError),
    *(zlib.error, lzma.LZMAError, gzip.BadGzipFile),
)
# The builder itself puts files into these folders.
_OWN_FOLDERS = ("bin", "etc", "lib", "libexec", "sbin", "share")

# These folders are of no use in a container, and make up half of the size.
_LEFT_OUT = (
    "boot",
    "dev",
    "etc/cron.d",
    "etc/cron.daily",
    "etc/init.d",
    "lib/systemd/system",
    "lib/systemd/user",
    "proc",
    "run",
    "share/bash-completion",
    "share/bug",
    "share/doc",
    "share/doc-base",
    "share/gtk-doc",
    "share/info",
    "share/lintian",
    "share/locale",
    "share/man",
    "sys",
    "tmp",
    "var",
)


def fold(path: str) -> str:
    """Return the place in the tree of the absolute PATH of a package, without a leading slash and without /usr."""
    path = posixpath.normpath(path).lstrip("/")
    return "" if path == "usr" else path[4:] if path.startswith("usr/") else path


# glibc's tables for the world's older encodings are larger than all of coreutils.
_RARE_ENCODING = re.compile(r"lib/[^/]+/gconv/(?!gconv-modules|UTF-|UNICODE|ISO8859-1\.|ISO8859-15|CP1252)")


def _is_left_out(place: str) -> bool:
    is_below = any(place == folder or place.startswith(folder + "/") for folder in _LEFT_OUT)
    return is_below or _RARE_ENCODING.match(place) is not None


_HEADER_TYPES = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


class _Member(tarfile.TarInfo):
    """A member of an archive that has to be complete. tarfile by itself takes a damaged or missing header for the archive's end."""

    @classmethod
    def fromtarfile(cls, tarfile: TarFile) -> _Member:
        try:
            return super().fromtarfile(tarfile)
        except EOFHeaderError:  # the blocks of zeros that end an archive
            raise
        except HeaderError as error:
            raise ReadError(str(error)) from error

    # tarfile calls it for each header once that is read, and says that classes like this one may change it. Its type stubs lack it.
    def _proc_member(self, tarfile: TarFile) -> tarfile.TarInfo:
        if self.type in _HEADER_TYPES and self.size > _MAX_HEADER:
            raise ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(tarfile)  # type: ignore[misc,no-any-return]


def is_archive(path: str) -> bool:
    """Return True if the file PATH begins like a tar archive, compressed or not."""
    try:
        with tarfile.open(path, tarinfo=_Member):
            return True
    except _DAMAGE:
        return False
    except OSError as error:
        if error.errno is None:  # a decompressor raised it about the data
            return False
        raise


class Tree:
    """The tree of an image in the folder PATH, which the constructor makes. A later file replaces an earlier one, but never a folder.

    ORIGINS: place of each file and link → label of its source. DROPPED: "PLACE: REASON" of each file that cannot be in the tree.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        os.mkdir(path)
        os.chmod(path, 0o755)  # whatever the umask is: users other than root use the tools, too
        self._links: dict[str, str] = {}
        self.origins: dict[str, str] = {}
        self._folders = {""}
        self.dropped: list[str] = []
        self._bytes = 0
        # Two sources may have the same label, so each has a number. _sources: place → number of its source.
        self._source = 0
        self._sources: dict[str, int] = {}

    def add_archive(self, stream: IO[bytes], origin: str) -> None:
        """Unpack the tar archive STREAM of the source ORIGIN. Raises BuildError where it is damaged or too large, or a path leads out."""
        self._source += 1
        try:
            with tarfile.open(fileobj=stream, mode="r|*", errorlevel=2, tarinfo=_Member) as archive:
                for member in archive:
                    self._add_member(archive, member, origin)
        except _DAMAGE as error:
            raise BuildError(f"{origin} is damaged or no archive: {error}") from error
        except OSError as error:
            if error.errno is None:
                raise BuildError(f"{origin} is damaged: {error}") from error
            raise

    def add_cpio(self, stream: IO[bytes], origin: str) -> None:
        """Unpack the cpio archive STREAM (newc) of the source ORIGIN; raises BuildError if it is damaged or too large, or a path leads out."""
        self._source += 1
        # The names of one file follow each other, and the content comes with the last of them.
        first: dict[int, str] = {}
        try:
            for member in cpio.gen_members(stream):
                place = self._find_place(member.name, origin)
                if not place or _is_left_out(place):
                    continue
                if stat.S_ISREG(member.mode):
                    if member.links > 1 and member.inode in first and not member.size:
                        self._link_hard(place, first[member.inode], origin)
                        continue
                    if member.links > 1 and member.inode in first:
                        self._fill(first[member.inode], member.content, member.size, origin)
                        self._link_hard(place, first[member.inode], origin)
                        continue
                    self._write(place, member.mode, member.content, member.size, origin)
                    first[member.inode] = place
                elif stat.S_ISLNK(member.mode):
                    self._link(place, os.fsdecode(member.content.read(member.size)), origin)
                elif not stat.S_ISDIR(member.mode):
                    self.dropped.append(f"{place}: a device or a pipe")
        except _DAMAGE as error:
            raise BuildError(f"{origin} is damaged: {error}") from error

    def _add_member(self, archive: tarfile.TarFile, member: tarfile.TarInfo, origin: str) -> None:
        place = self._find_place(member.name, origin)
        if not place or _is_left_out(place):
            return
        if member.isreg():
            reader = cast("IO[bytes]", archive.extractfile(member))
            self._write(place, member.mode, reader, member.size, origin)
        elif member.issym():
            self._link(place, member.linkname, origin)
        elif member.islnk():
            self._link_hard(place, self._find_place(member.linkname, origin), origin)
        elif not member.isdir():
            self.dropped.append(f"{place}: a device or a pipe")

    def add_folder(self, folder: str, origin: str, place: str = "") -> None:
        """Copy the content of FOLDER, of the source ORIGIN, to PLACE. Symlinks in it are copied, not followed."""
        self._source += 1
        for top, folders, files in os.walk(folder, onerror=refuse_folder):
            folders.sort()
            for name in sorted([*files, *(name for name in folders if os.path.islink(os.path.join(top, name)))]):
                path = os.path.join(top, name)
                target = self._find_place(posixpath.join(place, os.path.relpath(path, folder)), origin)
                mode = os.lstat(path).st_mode
                if _is_left_out(target):
                    continue
                if stat.S_ISLNK(mode):
                    self._link(target, os.readlink(path), origin)
                elif stat.S_ISREG(mode):
                    self._copy(path, target, origin)
                else:
                    self.dropped.append(f"{target}: a device or a pipe")

    def add_file(self, path: str, place: str, origin: str, *, executable: bool = False) -> None:
        """Copy the file PATH, of the source ORIGIN, to PLACE. EXECUTABLE makes the copy executable for all users."""
        self._source += 1
        self._copy(path, place, origin, executable=executable)

    def _copy(self, path: str, place: str, origin: str, *, executable: bool = False) -> None:
        with open(path, "rb") as reader:
            status = os.fstat(reader.fileno())
            self._write(place, status.st_mode | (0o755 if executable else 0), reader, status.st_size, origin)

    def finish(self) -> None:
        """Make the symlinks. Call it once, when all sources have been added."""
        for place, aim in sorted(self._links.items()):
            path = os.path.join(self.path, place)
            if os.path.lexists(path):
                continue  # a folder goes before a link
            self._make_folder(posixpath.dirname(place), place)
            os.symlink(posixpath.relpath("/" + aim, posixpath.dirname("/" + place)), path)
        self._links.clear()
        for place in _OWN_FOLDERS:
            path = os.path.join(self.path, place)
            if os.path.lexists(path) and not os.path.isdir(path):
                os.unlink(path)
                self.dropped.append(f"{place}: it is no folder")

    @staticmethod
    def _find_place(name: str, origin: str) -> str:
        parts = name.split("/")
        if ".." in parts or "\0" in name:
            raise BuildError(f"{origin} holds a path that leads out of it: {name!r}")
        if len(os.fsencode(name)) > _MAX_PLACE or len(parts) > _MAX_DEPTH:
            raise BuildError(
                f"{origin} holds a path of more than {_MAX_PLACE} bytes or {_MAX_DEPTH} folders: {name[:60]!r}…"
            )
        return fold("/" + name)

    def _link(self, place: str, target: str, origin: str) -> None:
        if "\0" in target or not target:
            raise BuildError(f"the symlink {place} leads to {target!r}, which is no path")
        # PLACE is folded already: a relative target leads to the same file from either half of /usr.
        aim = fold(posixpath.join("/" + posixpath.dirname(place), target))
        if aim == place:
            return  # /bin/x → /usr/bin/x: once it is folded, the link would lead to itself
        if self._sources.get(place) == self._source and place not in self._links:
            return  # the source has a file at one of the two folded places and a link at the other: the file stays
        self._remove_file(place)
        self._links[place] = aim
        self._remember(place, origin)

    def _link_hard(self, place: str, aim: str, origin: str) -> None:
        """Make a hard link at PLACE to AIM, which has to be a regular file of this tree."""
        if aim in self._links:
            self._link(place, "/" + self._links[aim], origin)
            return
        source = os.path.join(self.path, aim)
        if not os.path.isfile(source):
            if _is_left_out(aim):
                self.dropped.append(f"{place}: a link to {aim}, which is left out")
                return
            raise BuildError(f"{origin} holds a hard link to a file that it does not hold: {place} → {aim}")
        if place != aim:
            self._prepare(place, origin)
            os.link(source, os.path.join(self.path, place))
            self._remember(place, origin)

    def _write(self, place: str, mode: int, reader: IO[bytes], size: int, origin: str) -> None:
        self._prepare(place, origin)
        with open(os.path.join(self.path, place), "xb") as writer:
            os.fchmod(writer.fileno(), mode & 0o755 | 0o600)
        self._fill(place, reader, size, origin)
        self._remember(place, origin)

    def _fill(self, place: str, reader: IO[bytes], size: int, origin: str) -> None:
        """Write the content of READER to the file at PLACE; SIZE is the number of bytes that the source has announced."""
        self._count(size, origin)
        copied = 0
        with open(os.path.join(self.path, place), "wb") as writer:
            while chunk := reader.read(_CHUNK):
                copied += writer.write(chunk)
                if copied > size:
                    self._count(len(chunk), origin)  # the file has grown while it was read

    def _count(self, size: int, origin: str) -> None:
        self._bytes += size
        if self._bytes > _MAX_BYTES or len(self.origins) > _MAX_FILES:
            raise BuildError(
                f"{origin} is too large: an image may have {_MAX_BYTES >> 30} GiB in {_MAX_FILES} files, unpacked"
            )

    def _remember(self, place: str, origin: str) -> None:
        self.origins[place] = origin
        self._sources[place] = self._source

    def _prepare(self, place: str, origin: str) -> None:
        """Make room for a new file at PLACE: make its folder and remove a file or link there."""
        self._make_folder(posixpath.dirname(place), origin)
        if place in self._folders:
            raise BuildError(f"{place} is a file in {origin} and a folder in another source")
        self._links.pop(place, None)
        self._remove_file(place)

    def _remove_file(self, place: str) -> None:
        try:
            os.unlink(os.path.join(self.path, place))
        except (FileNotFoundError, NotADirectoryError):
            pass  # nothing is there yet
        except IsADirectoryError:
            pass  # a folder goes before a link

    def _make_folder(self, place: str, origin: str) -> None:
        missing = []
        while place not in self._folders:
            missing.append(place)
            place = posixpath.dirname(place)
        for folder in reversed(missing):
            try:
                os.mkdir(os.path.join(self.path, folder))
                os.chmod(os.path.join(self.path, folder), 0o755)
            except FileExistsError as error:
                raise BuildError(f"{folder} is a folder in {origin} and a file in another source") from error
            self._links.pop(folder, None)
            self._folders.add(folder)


def refuse_folder(error: OSError) -> None:
    """Raise BuildError for ERROR. As os.walk's onerror this keeps os.walk from skipping folders that it may not read."""
    raise BuildError(f"{error.filename} cannot be read: {error.strerror}") from error
