# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tree of an image, filled from archives and folders that nobody needs to trust.

/usr is folded into the root. Until all sources are in, the tree holds folders and regular files only: symlinks are
remembered and made at the end, so nothing that is unpacked can be led out of the tree. Devices and pipes are left out,
setuid and setgid bits are dropped, and whatever the tar says, files belong to the builder.
"""

from __future__ import annotations

import os
import posixpath
import re
import shutil
import stat
import tarfile
from typing import IO, Any, Callable, cast

from ansible_collections.crashcart.fleet.plugins.module_utils.image.errors import BuildError

# Of no use in a container, and half of the size.
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
    """The place in the tree, without a leading slash, of the absolute PATH of a package."""
    path = posixpath.normpath(path).lstrip("/")
    return "" if path == "usr" else path[4:] if path.startswith("usr/") else path


# glibc's tables for the world's older encodings are larger than all of coreutils.
_RARE_ENCODING = re.compile(r"lib/[^/]+/gconv/(?!gconv-modules|UTF-|UNICODE|ISO8859-1\.|ISO8859-15|CP1252)")


def _is_left_out(place: str) -> bool:
    is_below = any(place == folder or place.startswith(folder + "/") for folder in _LEFT_OUT)
    return is_below or _RARE_ENCODING.match(place) is not None


class Tree:
    """The tree in folder PATH, which is made. What comes later replaces what came earlier, but never a folder."""

    def __init__(self, path: str) -> None:
        self.path = path
        os.mkdir(path)
        os.chmod(path, 0o755)  # whatever the caller's umask: others than root use the tools, too
        self._links: dict[str, str] = {}
        # Place of each file and link → the origin that it came with.
        self.origins: dict[str, str] = {}
        self._folders = {""}
        # What was left out though nobody asked for that, with the reason.
        self.dropped: list[str] = []

    def add_archive(self, stream: IO[bytes], origin: str) -> None:
        """Unpack a tar archive; ORIGIN names it in errors."""
        try:
            with tarfile.open(fileobj=stream, mode="r|*", errorlevel=2) as archive:
                for member in archive:
                    self._add_member(archive, member, origin)
        except (tarfile.TarError, EOFError, UnicodeError) as error:
            raise BuildError(f"{origin} is damaged or no archive: {error}") from error

    def _add_member(self, archive: tarfile.TarFile, member: tarfile.TarInfo, origin: str) -> None:
        place = self._find_place(member.name, origin)
        if not place or _is_left_out(place):
            return
        if member.isreg():
            reader = cast("IO[bytes]", archive.extractfile(member))
            self._write(place, member.mode, lambda writer: shutil.copyfileobj(reader, writer, 1 << 20), origin)
        elif member.issym():
            self._link(place, member.linkname, origin)
        elif member.islnk():
            self._link_hard(place, self._find_place(member.linkname, origin), origin)
        elif not member.isdir():
            self.dropped.append(f"{place}: a device or a pipe")

    def add_folder(self, folder: str, origin: str, place: str = "") -> None:
        """Copy what is in FOLDER to PLACE; its symlinks are not followed."""
        for top, folders, files in os.walk(folder):
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
                    self.add_file(path, target, origin)
                else:
                    self.dropped.append(f"{target}: a device or a pipe")

    def add_file(self, path: str, place: str, origin: str, *, executable: bool = False) -> None:
        """Copy the file PATH to PLACE."""
        with open(path, "rb") as reader:
            mode = os.fstat(reader.fileno()).st_mode | (0o755 if executable else 0)
            self._write(place, mode, lambda writer: shutil.copyfileobj(reader, writer, 1 << 20), origin)

    def finish(self) -> None:
        """Make the symlinks. Call it once, when all sources are in."""
        for place, aim in sorted(self._links.items()):
            path = os.path.join(self.path, place)
            if os.path.lexists(path):
                continue  # a folder, which wins
            self._make_folder(posixpath.dirname(place), place)
            os.symlink(posixpath.relpath("/" + aim, posixpath.dirname("/" + place)), path)
        self._links.clear()

    @staticmethod
    def _find_place(name: str, origin: str) -> str:
        parts = name.split("/")
        if ".." in parts or "\0" in name:
            raise BuildError(f"{origin} holds a path that leads out of it: {name!r}")
        return fold("/" + name)

    def _link(self, place: str, target: str, origin: str) -> None:
        if "\0" in target or not target:
            raise BuildError(f"the symlink {place} leads to {target!r}, which is no path")
        # Where the link itself stood before it was folded matters for relative targets; both halves of /usr come to the same.
        aim = fold(posixpath.join("/" + posixpath.dirname(place), target))
        if aim == place:
            return  # /bin/x → /usr/bin/x: folded, it is x itself
        if self.origins.get(place) == origin and place not in self._links:
            return  # the two places that were folded into one held the file and a link: the file it is
        self._remove_file(place)
        self._links[place] = aim
        self.origins[place] = origin

    def _link_hard(self, place: str, aim: str, origin: str) -> None:
        """A hard link may only lead to a regular file of this tree."""
        if aim in self._links:
            self._link(place, "/" + self._links[aim], origin)
            return
        source = os.path.join(self.path, aim)
        if not os.path.isfile(source):
            if _is_left_out(aim):
                self.dropped.append(f"{place}: a link to {aim}, which is left out")
                return
            raise BuildError(f"{origin} holds a hard link to what it does not hold: {place} → {aim}")
        if place != aim:
            self._prepare(place, origin)
            os.link(source, os.path.join(self.path, place))
            self.origins[place] = origin

    def _write(self, place: str, mode: int, fill: Callable[[IO[bytes]], Any], origin: str) -> None:
        self._prepare(place, origin)
        with open(os.path.join(self.path, place), "xb") as writer:
            fill(writer)
            os.fchmod(writer.fileno(), stat.S_IMODE(mode) & 0o755 | 0o600)
        self.origins[place] = origin

    def _prepare(self, place: str, origin: str) -> None:
        """See to it that a file can be made at PLACE."""
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
            pass  # a folder, which wins

    def _make_folder(self, place: str, origin: str) -> None:
        if place in self._folders:
            return
        self._make_folder(posixpath.dirname(place), origin)
        try:
            os.mkdir(os.path.join(self.path, place))
            os.chmod(os.path.join(self.path, place), 0o755)
        except FileExistsError as error:
            raise BuildError(f"{place} is a folder in {origin} and a file in another source") from error
        self._links.pop(place, None)
        self._folders.add(place)
