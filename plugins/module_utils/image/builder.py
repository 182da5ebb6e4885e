# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From package names to an image file with its manifest beside it. Needs neither root nor a mount."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.image import relocate
from ansible_collections.crashcart.fleet.plugins.module_utils.image.apt import (
    BuildError,
    Package,
    PrivateApt,
    check_package_names,
)

# Goes up whenever the same packages would make another image.
BUILDER_VERSION = 1
# Seconds since the epoch, the first day of 1980; to some programs zero means that a file has no time.
_FILE_TIME = "315532800"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

_BASHRC = """\
# Read by interactive shells that are started with the tools of this image.
{exports}
export PATH={prefix}/bin:{prefix}/sbin:$PATH
PS1='[crashcart] \\u@\\h:\\w\\$ '
"""


@dataclass(frozen=True)
class Request:
    """What an image is made of; it decides the bytes of the result."""

    packages: tuple[str, ...]
    prefix: str = "/dev/crashcart"
    format: str = "squashfs"


def manifest_path(image: str) -> str:
    """Where the manifest of image file IMAGE lies."""
    return image + ".json"


def read_manifest(image: str) -> dict[str, Any] | None:
    """The manifest beside IMAGE, if both are there and the image has the size that the manifest says."""
    try:
        with open(manifest_path(image), encoding="utf-8") as file:
            manifest: dict[str, Any] = json.load(file)
        return manifest if os.stat(image).st_size == manifest["size"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_same_request(manifest: dict[str, Any] | None, request: Request) -> bool:
    """Whether an image with MANIFEST was asked for in the words of REQUEST, by this builder."""
    return manifest is not None and manifest.get("request") == _describe(request)


def _describe(request: Request) -> dict[str, Any]:
    return json.loads(json.dumps({**asdict(request), "builder": BUILDER_VERSION}))  # type: ignore[no-any-return]


def resolve(request: Request, cache: str, valid_s: float) -> tuple[PrivateApt, list[Package]]:
    """The packages that REQUEST comes to; lists younger than VALID_S seconds are used as they are."""
    names = list(request.packages)
    check_package_names(names)
    missing = relocate.find_missing_programs()
    if missing:
        raise BuildError(f"to build images this machine needs the packages: {', '.join(missing)}")
    apt = PrivateApt(cache)
    apt.update(valid_s)
    return apt, apt.resolve(names)


def is_current(manifest: dict[str, Any] | None, request: Request, packages: list[Package]) -> bool:
    """Whether the image with MANIFEST is what a build of REQUEST from PACKAGES would make."""
    return is_same_request(manifest, request) and manifest is not None and manifest["packages"] == _list(packages)


def _list(packages: list[Package]) -> list[dict[str, Any]]:
    return [
        {"name": one.name, "version": one.version, "arch": one.arch, "hash": one.hash, "size": one.size}
        for one in packages
    ]


def build(request: Request, apt: PrivateApt, packages: list[Package], dest: str) -> dict[str, Any]:
    """Make the image file DEST from PACKAGES, and its manifest beside it; the manifest comes back.

    Until the image is whole DEST is what it was before.
    """
    apt.download(list(request.packages), packages)
    os.umask(0o022)  # others than the builder have to be able to read what is in the image
    folder = os.path.dirname(os.path.abspath(dest))
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".crashcart-build-", dir=folder) as work:
        tree = os.path.join(work, "tree")
        os.mkdir(tree, 0o755)
        _unpack(packages, os.path.join(work, "packages"))
        relocate.fold_tree(os.path.join(work, "packages"), tree)
        relocate.add_alternatives(tree)
        relocate.add_certificates(tree)
        relocate.relocate_programs(tree, request.prefix)
        relocate.wrap_privilege_droppers(tree, request.prefix)
        manifest: dict[str, Any] = {
            "request": _describe(request),
            "prefix": request.prefix,
            "format": request.format,
            "arch": _ARCHITECTURES.get(platform.machine(), platform.machine()),
            "tools": relocate.list_tools(tree),
            "packages": _list(packages),
        }
        _write_settings(tree, request.prefix, manifest)
        image = os.path.join(work, "image")
        _make_squashfs(tree, image)
        manifest["size"] = os.stat(image).st_size
        manifest["digest"] = _hash(image)
        _publish(image, manifest, work, dest)
    return manifest


def _unpack(packages: list[Package], folder: str) -> None:
    os.mkdir(folder, 0o755)

    def unpack(package: Package) -> None:
        done = subprocess.run(
            ["dpkg-deb", "-x", package.path, folder], capture_output=True, text=True, errors="replace", check=False
        )
        if done.returncode != 0:
            raise BuildError(f"package {package.name} cannot be unpacked: {done.stderr.strip()}")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(unpack, packages))


def _write_settings(tree: str, prefix: str, manifest: dict[str, Any]) -> None:
    variables = relocate.list_environment(tree, prefix)
    lines = [f"{name}={value}" for name, value in sorted(variables.items())]
    exports = "\n".join(f"export {line}" for line in lines)
    texts = {
        "crashcart.env": "# Variables that the tools of this image need.\n" + "\n".join(lines) + "\n",
        "crashcart.bashrc": _BASHRC.format(exports=exports, prefix=prefix),
        "crashcart.json": json.dumps(manifest, indent=1, sort_keys=True) + "\n",
    }
    os.makedirs(os.path.join(tree, "etc"), exist_ok=True)
    for name, text in texts.items():
        with open(os.path.join(tree, "etc", name), "w", encoding="utf-8") as file:
            file.write(text)


def _make_squashfs(tree: str, image: str) -> None:
    # One owner and one time for everything, so that the bytes depend on the content alone.
    times = ["-all-time", _FILE_TIME, "-mkfs-time", _FILE_TIME]
    options = ["-noappend", "-all-root", "-no-xattrs", *times, "-no-progress", "-quiet"]
    command = ["mksquashfs", tree, image, "-comp", "zstd", "-Xcompression-level", "12", *options]
    environment = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=environment)
    if done.returncode != 0:
        raise BuildError(f"mksquashfs failed: {done.stderr.strip() or done.stdout.strip()}")


def _hash(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while True:
            chunk = file.read(1 << 20)
            if not chunk:
                return digest.hexdigest()
            digest.update(chunk)


def _publish(image: str, manifest: dict[str, Any], work: str, dest: str) -> None:
    """Put image and manifest into place; between the two renames there is an image without a manifest, never a false one."""
    text = os.path.join(work, "manifest")
    with open(text, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1, sort_keys=True)
    for path in (image, text):
        os.chmod(path, 0o644)
    if os.path.lexists(manifest_path(dest)):
        os.unlink(manifest_path(dest))
    os.rename(image, dest)
    os.rename(text, manifest_path(dest))
