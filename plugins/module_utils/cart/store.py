# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tool images on a host.

An image lies at STORE/NAME/SHA256.image with its manifest at STORE/NAME/SHA256.json. The digest is
part of the path: one rename puts a whole image into place, and no file can claim another digest than its own.
The manifest is written first, so every image has its manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils import feature
from ansible_collections.crashcart.fleet.plugins.module_utils.architectures import find_architecture
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import PUBLIC, make_folder
from ansible_collections.crashcart.fleet.plugins.module_utils.names import STATE

STORE = f"{STATE}/images"
SUFFIX = ".image"
FORMATS = ("squashfs", "erofs", "ext4")

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
PREFIX_PATTERN = re.compile(r"/[A-Za-z0-9_./-]+\Z")
DIGEST_PATTERN = re.compile(r"[0-9a-f]{64}\Z")
_CHUNK = 1 << 20


class ImageError(FleetError):
    """An image that is missing, damaged or of the wrong kind; the text names it and the next step."""


@dataclass(frozen=True)
class StoredImage:
    """An image in the store."""

    name: str
    digest: str
    manifest: dict[str, Any]

    @property
    def path(self) -> str:
        """Return the path of the image's file."""
        return os.path.join(STORE, self.name, self.digest + SUFFIX)

    @property
    def manifest_path(self) -> str:
        """Return the path of the image's manifest, beside its file."""
        return os.path.join(STORE, self.name, self.digest + ".json")

    @property
    def prefix(self) -> str:
        """Return the path at which the image's tools work."""
        return str(self.manifest["prefix"])

    @property
    def format(self) -> str:
        """Return the type of the image's file system."""
        return str(self.manifest["format"])

    def as_result(self) -> dict[str, Any]:
        """Return the fields that modules report of an image; tools and packages stay in the manifest."""
        known = {key: self.manifest.get(key) for key in ("arch", "format", "size", "prefix")}
        return {"name": self.name, "digest": self.digest, "path": self.path, **known}


def check_name(name: str) -> None:
    """Raise ImageError unless NAME can be the name of an image, which is also the name of its folder."""
    if not NAME_PATTERN.match(name):
        raise ImageError(
            f"image name {name!r} cannot be used: use up to 64 letters, digits, '.', '_' and '-', a letter or digit first"
        )


def list_names() -> list[str]:
    """Return the names of all images in the store."""
    try:
        return sorted(name for name in os.listdir(STORE) if _list_digests(name))
    except FileNotFoundError:
        return []


def find_image(name: str) -> StoredImage | None:
    """Return the image called NAME; None when the store has none.

    Raises ImageError where its manifest cannot be read.
    """
    digests = _list_digests(name)
    if not digests:
        return None
    manifest_path = os.path.join(STORE, name, digests[-1] + ".json")
    try:
        with open(manifest_path, encoding="utf-8") as file:
            return StoredImage(name, digests[-1], json.load(file))
    except (OSError, ValueError) as error:
        raise ImageError(
            f"the manifest of image {name!r} cannot be read ({error}): push the image again, or remove it with"
            " state=absent force=true"
        ) from error


def get_image(name: str) -> StoredImage:
    """Return the image called NAME; raises ImageError when the store has none."""
    check_name(name)
    image = find_image(name)
    if image is None:
        names = ", ".join(list_names())
        hint = f"the host has: {names}" if names else "the host has none"
        raise ImageError(f"no image is called {name!r} on the host ({hint}): push it with crashcart_image")
    return image


def _list_digests(name: str) -> list[str]:
    """Return the digests of the images under NAME, the newest last; a push that was interrupted may have left an older one."""
    folder = os.path.join(STORE, name)
    found = []
    try:
        for entry in os.scandir(folder):
            digest = entry.name[: -len(SUFFIX)]
            if entry.name.endswith(SUFFIX) and DIGEST_PATTERN.match(digest):
                try:
                    found.append((entry.stat(follow_symlinks=False).st_mtime_ns, digest))
                except FileNotFoundError:
                    continue  # a push has just replaced it
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [digest for _time, digest in sorted(found)]


def parse_path(path: str) -> tuple[str, str] | None:
    """Return name and digest from the path of an image file, which may have been removed; None for a path outside the store."""
    path = path[: -len(" (deleted)")] if path.endswith(" (deleted)") else path
    folder, file_name = os.path.split(path)
    # The kernel reports paths without symbolic links, which may be on the way to the store.
    if os.path.dirname(folder) not in (STORE, os.path.realpath(STORE)):
        return None
    return os.path.basename(folder), file_name.split(".", 1)[0]


def check_manifest_form(manifest: Any) -> None:
    """Raise ImageError unless MANIFEST has the form that a builder writes: it may come from anywhere."""
    if not isinstance(manifest, dict):
        raise ImageError("the image's manifest is no JSON object: build the image again")
    digest, size, prefix = (manifest.get(name) for name in ("digest", "size", "prefix"))
    if not isinstance(digest, str) or not DIGEST_PATTERN.match(digest):
        raise ImageError(f"the manifest's digest {digest!r} is no sha256: build the image again")
    if not isinstance(size, int):
        raise ImageError(f"the manifest's size {size!r} is no number: build the image again")
    check_prefix(prefix)


def check_prefix(prefix: Any) -> None:
    """Raise ImageError unless PREFIX is a path at which an image's tools may be mounted."""
    is_path = isinstance(prefix, str) and bool(PREFIX_PATTERN.match(prefix)) and os.path.normpath(prefix) == prefix
    if not is_path or os.path.dirname(str(prefix)) == "/" or not os.path.basename(str(prefix)).startswith("crashcart"):
        raise ImageError(
            f"prefix {prefix!r} cannot be used: it has to be an absolute path whose last part begins with crashcart, below a"
            " folder such as /dev"
        )


def check_manifest(manifest: dict[str, Any]) -> None:
    """Raise ImageError unless this host can use an image with MANIFEST."""
    check_manifest_form(manifest)
    architecture = find_architecture()
    if manifest.get("arch") != architecture:
        raise ImageError(
            f"the image is for {manifest.get('arch')} and this host is {architecture}:"
            f" build one on a machine (or with delegate_to) of that architecture"
        )
    kind = manifest.get("format")
    if kind not in FORMATS:
        raise ImageError(f"the image's format is {kind!r}, and only {', '.join(FORMATS)} are known here")
    filesystem = feature.check_filesystem(str(kind))
    if not filesystem.ok:
        raise ImageError(
            f"this host cannot mount the image's format {kind}: {filesystem.reason}; build the image with another format"
            " (the features that crashcart_info tells name those the host can mount)"
        )


def install_image(name: str, digest: str, manifest: dict[str, Any], source: str) -> StoredImage:
    """Copy the file SOURCE into the store as NAME, if its sha256 is DIGEST, and remove the previous image of that name.

    The copy is hashed while it is written, and renamed when it is complete and on the disk, so no partial image is ever found, not
    even after a power cut. Containers that have the previous image attached keep it until they detach.
    Raises ImageError where SOURCE has another digest.
    """
    folder = os.path.join(STORE, name)
    make_folder(folder, PUBLIC)
    image = StoredImage(name, digest, manifest)
    temporary_fd, temporary = tempfile.mkstemp(dir=folder, prefix=".crashcart-")
    with ExitStack() as undo:
        undo.callback(_remove_draft, temporary)
        with open(source, "rb") as reader, open(temporary_fd, "wb") as writer:
            found = _copy(reader, writer)
            if found != digest:
                raise ImageError(
                    f"the image arrived with sha256 {found} where its manifest says {digest}:"
                    " it was changed after it was built, or damaged on the way; build or copy it again"
                )
            os.fchmod(writer.fileno(), 0o644)
            os.fsync(writer.fileno())
        _write_manifest(folder, digest, manifest)
        os.rename(temporary, image.path)
        undo.pop_all()
    _sync_folder(folder)
    for other in _list_digests(name):
        if other != digest:
            _unlink(name, other)
    _remove_stray_files(folder, digest)
    return image


def _remove_draft(path: str) -> None:
    """Remove the file at PATH, and its folder if nothing else is in it."""
    os.unlink(path)
    folder = os.path.dirname(path)
    if not os.listdir(folder):
        os.rmdir(folder)


def _sync_folder(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _copy(reader: Any, writer: Any) -> str:
    digest = hashlib.sha256()
    while True:
        chunk = reader.read(_CHUNK)
        if not chunk:
            writer.flush()
            return digest.hexdigest()
        digest.update(chunk)
        writer.write(chunk)


def _write_manifest(folder: str, digest: str, manifest: dict[str, Any]) -> None:
    fd, temporary = tempfile.mkstemp(dir=folder, prefix=".crashcart-")
    with ExitStack() as undo:
        undo.callback(os.unlink, temporary)
        with open(fd, "w", encoding="utf-8") as file:
            json.dump(manifest, file)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        os.rename(temporary, os.path.join(folder, digest + ".json"))
        undo.pop_all()


def _remove_stray_files(folder: str, digest: str) -> None:
    """Remove the files that a killed push has left in FOLDER."""
    for name in os.listdir(folder):
        if name not in (digest + SUFFIX, digest + ".json"):
            _remove(os.path.join(folder, name))


def _remove(path: str) -> None:
    """Remove a file, or a folder that somebody has put in its place."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _unlink(name: str, digest: str) -> None:
    # The image goes first: a manifest without an image does no harm, an image without a manifest counts as damaged.
    for suffix in (SUFFIX, ".json"):
        try:
            os.unlink(os.path.join(STORE, name, digest + suffix))
        except FileNotFoundError:
            continue


def describe(name: str) -> str | None:
    """Return the digest of the one image under NAME, None for no image, and "incomplete" for files that a killed push or a user has left."""
    if not os.path.isdir(os.path.join(STORE, name)):
        return None
    digests = _list_digests(name)
    if len(digests) != 1 or set(os.listdir(os.path.join(STORE, name))) != {digests[0] + SUFFIX, digests[0] + ".json"}:
        return "incomplete"
    return digests[0]


def remove_image(name: str) -> None:
    """Remove every file of the image called NAME."""
    folder = os.path.join(STORE, name)
    for digest in _list_digests(name):
        _unlink(name, digest)
    for stray in os.listdir(folder):
        _remove(os.path.join(folder, stray))
    os.rmdir(folder)
