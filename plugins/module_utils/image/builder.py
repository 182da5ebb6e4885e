# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build an image file and its manifest from sources. This needs neither root nor a mount, and runs nothing of the sources."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.architectures import find_architecture
from ansible_collections.crashcart.fleet.plugins.module_utils.image import (
    bytecode,
    elf,
    filesystems,
    relocate,
    sources,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.image.apt import (
    Package,
    PrivateApt,
    Repository,
    check_package_names,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.image.errors import BuildError
from ansible_collections.crashcart.fleet.plugins.module_utils.image.sealing import seal
from ansible_collections.crashcart.fleet.plugins.module_utils.image.sources import Component, Source
from ansible_collections.crashcart.fleet.plugins.module_utils.image.tree import Tree

# This goes up whenever the same sources would give a different image.
BUILDER_VERSION = 10
_WORK = ".crashcart-build-"

_BASHRC = """\
# Read by interactive shells that are started with the tools of this image, which are not for the container's settings.
unset {unset}
{exports}
export PATH={path}:$PATH
PS1='[crashcart] \\u@\\h:\\w\\$ '
# There are no manuals: a program tells of itself.
man() {{
    [ $# -gt 0 ] || {{ echo 'man PROGRAM shows what PROGRAM --help says' >&2; return 1; }}
    while [ $# -gt 1 ]; do shift; done
    "$1" --help 2>&1 | less -F
}}
"""
_SEALED = "The tools of this image load code from the image only.\n"


@dataclass(frozen=True)
class Request:
    """A user's request for an image: its sources and its form."""

    packages: tuple[str, ...] = ()  # names of Debian packages
    optional: tuple[str, ...] = ()  # packages that a release may lack
    paths: tuple[str, ...] = ()  # files and folders of this machine
    docker_image: str | None = None
    docker_container: str | None = None
    prefix: str = "/dev/crashcart"  # the path that the tools work at
    format: str = "squashfs"  # a key of filesystems.PROGRAMS
    arch: str | None = None  # None: this machine's, or, without packages, that of the sources
    release: str | None = None  # None: the machine's own sources
    mirror: str | None = None  # None: the machine's own mirrors


def manifest_path(image: str) -> str:
    """Return the path of the manifest of the image file IMAGE."""
    return image + ".json"


def read_manifest(image: str) -> dict[str, Any] | None:
    """Return the manifest beside IMAGE, or None unless both files are there and the image has the size in its manifest."""
    try:
        with open(manifest_path(image), encoding="utf-8") as file:
            manifest: dict[str, Any] = json.load(file)
        return manifest if os.stat(image).st_size == manifest["size"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_same_request(manifest: dict[str, Any] | None, request: Request) -> bool:
    """Return True if this version of the builder made the image with MANIFEST for the same REQUEST."""
    return manifest is not None and manifest.get("request") == _describe(request)


def _describe(request: Request) -> dict[str, Any]:
    # The image holds this description, so the folder of a local file must not change it.
    names = [os.path.basename(os.path.normpath(path)) for path in request.paths]
    return json.loads(json.dumps({**asdict(request), "paths": names, "builder": BUILDER_VERSION}))  # type: ignore[no-any-return]


class Plan:
    """The sources that REQUEST comes to now, each with a hash. FOLDER keeps temporary files until they are unpacked.

    Lists of packages that are younger than VALID_S seconds are used as they are. OFFLINE forbids to fetch anything.
    The constructor raises BuildError where a source cannot be read or resolved, and where REQUEST names none.
    """

    def __init__(
        self, request: Request, cache: str, folder: str, *, docker_host: str | None, valid_s: float, offline: bool
    ) -> None:
        check_package_names(list(request.packages))
        self.request = request
        self._offline = offline
        self._apt: PrivateApt | None = None
        self._packages: list[Package] = []
        self._local: list[Source] = [sources.open_path(path) for path in request.paths]
        if request.docker_image:
            self._local.append(sources.open_container_image(request.docker_image, docker_host))
        if request.docker_container:
            self._local.append(sources.open_container(request.docker_container, docker_host, folder))
        # apt resolves the dependencies of local packages, too.
        debs = [
            os.path.abspath(path) for path, source in zip(request.paths, self._local) if source.component.kind == "deb"
        ]
        self._names = [*request.packages, *request.optional, *debs]
        if self._names:
            _check_programs({"apt-get": "apt", "dpkg-deb": "dpkg"})
            arch = request.arch or find_architecture()
            self._apt = PrivateApt(cache, Repository(arch, request.release, request.mirror))
            if not offline:
                self._apt.update(valid_s)
            self._names = [name for name in self._names if name not in request.optional or self._apt.has(name)]
            # The repository may have the same package as a local file: the file wins.
            local = {source.component.name for source in self._local if source.component.kind == "deb"}
            self._packages = [package for package in self._apt.resolve(self._names) if package.name not in local]
        if not self._packages and not self._local:
            raise BuildError(
                "there is nothing to make an image of: name packages, paths, docker_image or docker_container"
            )

    @property
    def ready_made(self) -> sources.FilesystemImage | None:
        """The ready-made image where it is the only source, else None."""
        first = self._local[0] if len(self._local) == 1 and not self._names else None
        return first if isinstance(first, sources.FilesystemImage) else None

    @property
    def components(self) -> list[Component]:
        """The components of the image, in the order in which they are unpacked."""
        return [*map(_describe_package, self._packages), *(source.component for source in self._local)]

    def fill(self, tree: Tree, tell: Callable[[str], None]) -> None:
        """Fetch the package files that the cache lacks, unpack all sources into TREE, and close the plan.

        TELL gets a line for each step and a line that begins with a blank for each source. Raises BuildError when a step fails.
        """
        if self._apt is not None:
            tell(f"fetching what the cache lacks of {len(self._packages)} packages")
            self._apt.download(self._names, self._packages, offline=self._offline)
        packages = [sources.open_package(_describe_package(package), package.path) for package in self._packages]
        tell(f"unpacking {len(packages) + len(self._local)} sources")
        for source in [*packages, *self._local]:
            tell(f" unpacking {source.component.label}")
            source.add_to(tree)
        self.close()

    def close(self) -> None:
        """Release the cache for other builds. Calling it again does nothing."""
        if self._apt is not None:
            self._apt.close()

    def find_architecture(self) -> str | None:
        """Return the architecture of the plan's container image, or None where the plan has no such image."""
        components = [source.component for source in self._local]
        return next((component.arch for component in components if component.kind == "container image"), None)


def _describe_package(package: Package) -> Component:
    return Component(
        "deb", package.name, package.version, package.arch, package.hash.lower(), package.size, uri=package.uri
    )


def is_current(manifest: dict[str, Any] | None, plan: Plan) -> bool:
    """Return True if a build by PLAN would make the image with MANIFEST again."""
    return (
        is_same_request(manifest, plan.request)
        and manifest is not None
        and manifest.get("components") == list_components(plan)
    )


def is_undamaged(manifest: dict[str, Any], image: str) -> bool:
    """Return True if the content of the file IMAGE has the hash in its MANIFEST."""
    return _find_digest(image) == manifest.get("digest")


def _find_digest(image: str) -> str:
    with open(image, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_dest(dest: str, paths: Sequence[str]) -> None:
    """Raise BuildError where DEST is a folder or lies in one of the folders PATHS, since the image would then hold itself."""
    if os.path.isdir(dest):
        raise BuildError(f"dest {dest} is a folder: give the path of a file")
    real = os.path.realpath(dest)
    for path in paths:
        if os.path.isdir(path) and os.path.commonpath([real, os.path.realpath(path)]) == os.path.realpath(path):
            raise BuildError(f"dest {dest} is in {path}, which goes into the image: give a dest elsewhere")


def list_components(plan: Plan) -> list[dict[str, Any]]:
    """Return the components of PLAN in the form that a manifest holds."""
    return [asdict(component) for component in plan.components]


def build(plan: Plan, dest: str, tell: Callable[[str], None]) -> dict[str, Any]:
    """Make the image file DEST by PLAN, write its manifest beside it, and return the manifest.

    TELL gets a line for each step and a line that begins with a blank for each source. DEST changes only when the image is complete.
    Raises BuildError when a step fails.
    """
    made = plan.ready_made
    os.umask(0o022)  # users other than the builder have to be able to read the files of the image
    folder = os.path.dirname(os.path.abspath(dest))
    os.makedirs(folder, exist_ok=True)
    with open_work_folder(folder) as work:
        image = os.path.join(work, "image")
        if made is not None:
            tell(f"copying {made.component.label}")
            shutil.copyfile(made.path, image)
            arch = plan.request.arch or made.find_architecture()
            if arch is None:
                raise BuildError(f"{made.path} does not say what its programs are for: give arch")
            manifest = _describe_image(plan, "ext4", arch, made.list_tools())
        else:
            manifest = _make_image(plan, work, image, tell)
        manifest["size"] = os.stat(image).st_size
        manifest["digest"] = _find_digest(image)
        _publish(image, manifest, work, dest)
    return manifest


@contextmanager
def open_work_folder(folder: str) -> Iterator[str]:
    """Make a temporary folder in FOLDER and hold a lock on it, and first remove the folders of builds that were killed."""
    for name in os.listdir(folder):
        if name.startswith(_WORK):
            with suppress(OSError):  # another build works there, or has just ended
                stale = _lock_folder(os.path.join(folder, name), fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(os.path.join(folder, name))
                os.close(stale)
    with tempfile.TemporaryDirectory(prefix=_WORK, dir=folder) as work:
        lock = _lock_folder(work, fcntl.LOCK_EX)
        try:
            yield work
        finally:
            os.close(lock)


def _lock_folder(path: str, operation: int) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with ExitStack() as undo:
        undo.callback(os.close, fd)
        fcntl.flock(fd, operation)
        undo.pop_all()
    return fd


def _make_image(plan: Plan, work: str, image: str, tell: Callable[[str], None]) -> dict[str, Any]:
    """Make the file IMAGE in the folder WORK, and return its manifest without the file's size and hash."""
    request = plan.request
    program, package = filesystems.PROGRAMS[request.format]
    _check_programs({program: package, "patchelf": "patchelf"})
    tree = Tree(os.path.join(work, "tree"))
    plan.fill(tree, tell)
    tree.finish()
    relocate.link_store_programs(tree.path)
    relocate.add_alternatives(tree.path)
    relocate.add_certificates(tree.path)
    relocate.configure_apt(tree.path, request.prefix)
    tell(f"relocating programs to {request.prefix}")
    relocation = relocate.relocate_programs(tree.path, request.prefix)
    relocate.wrap_privilege_droppers(tree.path, request.prefix)
    tell("sealing")
    absolute = [problem["path"] for problem in relocation.problems if problem["reason"].endswith(elf.BY_WHOLE_PATH)]
    unsealed = seal.seal(tree.path, request.prefix, absolute)
    manifest = _describe_image(
        plan,
        request.format,
        _find_architecture(request, relocation, plan.find_architecture()),
        relocate.list_tools(tree.path, tree.origins),
    )
    manifest.update(
        {
            "problems": relocation.problems,
            "left_out": sorted(tree.dropped),
            "sealed": not unsealed,
            "unsealed": unsealed,
        }
    )
    _write_settings(tree.path, request.prefix, manifest)
    trouble = bytecode.compile_library(tree.path, request.prefix)
    if trouble:
        tell(trouble)
    tell(f"packing {request.format}")
    filesystems.make(tree.path, image, request.format)
    return manifest


def _describe_image(plan: Plan, kind: str, arch: str, tools: dict[str, str]) -> dict[str, Any]:
    return {
        "request": _describe(plan.request),
        "prefix": plan.request.prefix,
        "format": kind,
        "arch": arch,
        "tools": tools,
        "components": list_components(plan),
        "problems": [],
        "left_out": [],
        # A ready-made image is never sealed. _make_image replaces these two values.
        "sealed": False,
        "unsealed": [{"path": "", "reason": "the image was made by somebody else"}],
    }


def _check_programs(needed: dict[str, str]) -> None:
    missing = [package for program, package in needed.items() if shutil.which(program) is None]
    if missing:
        raise BuildError(f"to build images this machine needs the packages: {', '.join(missing)}")


def _find_architecture(request: Request, relocation: relocate.Relocation, told: str | None) -> str:
    """Return the architecture of the image, TOLD by a container image; raise BuildError where programs have another one."""
    found = relocation.architectures
    wanted = request.arch or (find_architecture() if request.packages else told)
    wanted = wanted or _find_most(found) or _find_most(relocation.elsewhere) or find_architecture()
    others = {arch: count for arch, count in found.items() if arch != wanted}
    if others:
        counts = ", ".join(f"{count} for {arch}" for arch, count in sorted(others.items()))
        raise BuildError(
            f"the image is for {wanted} and has programs of another architecture ({counts}): give arch, and sources of one architecture"
        )
    return wanted


def _find_most(counts: Counter[str]) -> str | None:
    return counts.most_common(1)[0][0] if counts else None


def _write_settings(tree: str, prefix: str, manifest: dict[str, Any]) -> None:
    variables = relocate.list_environment(tree, prefix)
    lines = [f"{name}={value}" for name, value in sorted(variables.items())]
    exports = "\n".join(f"export {line}" for line in lines if not line.startswith("PATH="))
    texts = {
        "crashcart.env": "# Variables that the tools of this image need.\n" + "\n".join(lines) + "\n",
        "crashcart.bashrc": _BASHRC.format(
            unset=" ".join(relocate.FOREIGN_VARIABLES), exports=exports, path=variables["PATH"]
        ),
        "crashcart.json": json.dumps(manifest, indent=1, sort_keys=True) + "\n",
    }
    os.makedirs(os.path.join(tree, "etc"), exist_ok=True)
    mark = os.path.join(tree, seal.MARK)
    if os.path.lexists(mark):
        os.unlink(mark)  # the mark of a source says nothing about this image
    if manifest["sealed"]:
        texts[os.path.basename(mark)] = _SEALED
    for name, text in texts.items():
        with open(os.path.join(tree, "etc", name), "w", encoding="utf-8") as file:
            file.write(text)


def _publish(image: str, manifest: dict[str, Any], work: str, dest: str) -> None:
    """Put image and manifest into place. Between the two renames the image has no manifest, and never a wrong one."""
    text = os.path.join(work, "manifest")
    with open(text, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1, sort_keys=True)
    for path in (image, text):
        os.chmod(path, 0o644)
    # Two builds of the same file may end at the same moment.
    lock = _lock_folder(os.path.dirname(os.path.abspath(dest)), fcntl.LOCK_EX)
    try:
        if os.path.lexists(manifest_path(dest)):
            os.unlink(manifest_path(dest))
        os.rename(image, dest)
        os.rename(text, manifest_path(dest))
    finally:
        os.close(lock)
