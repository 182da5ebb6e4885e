# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turn unpacked Debian packages into a tree that works at another prefix, wherever that is mounted.

/usr is folded into the root of the tree. Programs get the tree's own loader as interpreter and the tree's
library folders as RPATH (not RUNPATH: RPATH also serves the libraries of libraries, and goes before a foreign
LD_LIBRARY_PATH). Symlinks become relative, scripts get interpreters of the tree. No maintainer script is run.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.image.apt import BuildError
from ansible_collections.crashcart.fleet.plugins.module_utils.image.tool_sets import ALTERNATIVES

ELFTOOLS_IMPORT_ERROR: str | None = None
try:
    from elftools.common.exceptions import ELFError
    from elftools.elf.dynamic import DynamicSection
    from elftools.elf.elffile import ELFFile
except ImportError:
    ELFTOOLS_IMPORT_ERROR = traceback.format_exc()

# Of no use in a container, and half of the size.
_LEFT_OUT = (
    "share/bash-completion",
    "share/bug",
    "share/doc",
    "share/doc-base",
    "share/info",
    "share/lintian",
    "share/locale",
    "share/man",
    "var",
    "lib/systemd",
    "etc/init.d",
    "etc/cron.d",
    "etc/cron.daily",
)
_PROGRAM_FOLDERS = ("bin", "sbin")
_PRIVILEGE_DROPPERS = ("tcpdump",)
_WRAPPER = """\
#!{prefix}/bin/sh
export LD_PRELOAD={library} NSS_WRAPPER_PASSWD={prefix}/etc/crashcart.passwd NSS_WRAPPER_GROUP={prefix}/etc/crashcart.group
exec {prefix}/libexec/crashcart/{name} "$@"
"""


@dataclass(frozen=True)
class _Elf:
    path: str
    interpreter: str
    run_path: str


def fold(path: str) -> str:
    """The place in the tree, without a leading slash, of the absolute PATH of a package."""
    path = os.path.normpath(path).lstrip("/")
    return "" if path == "usr" else path[4:] if path.startswith("usr/") else path


def fold_tree(source: str, tree: str) -> None:
    """Move all files of SOURCE (packages unpacked over each other) to their places in TREE."""
    for folder, folders, files in os.walk(source):
        place = "/" + os.path.relpath(folder, source)
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in sorted(files) + sorted(links):
            path = os.path.join(folder, name)
            target = fold(os.path.join(place, name))
            if _is_left_out(target):
                continue
            destination = os.path.join(tree, target)
            os.makedirs(os.path.dirname(destination), exist_ok=True)
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                _move_link(path, place, target, destination)
            elif stat.S_ISREG(mode):
                os.chmod(path, stat.S_IMODE(mode) & 0o755 | 0o600)  # setuid and setgid are dropped
                os.rename(path, destination)
    for folder, _folders, _files in os.walk(tree):
        os.chmod(folder, 0o755)  # whatever the caller's umask: others than root use the tools, too


def _is_left_out(target: str) -> bool:
    return any(target == prefix or target.startswith(prefix + "/") for prefix in _LEFT_OUT)


def _move_link(path: str, place: str, target: str, destination: str) -> None:
    aim = fold(os.path.join(place, os.readlink(path)))
    if aim == target or os.path.lexists(destination):
        return  # /bin/x → /usr/bin/x: folded, it is x itself
    os.symlink(os.path.relpath("/" + aim, os.path.dirname("/" + target)), destination)


def add_alternatives(tree: str) -> None:
    """Link the well-known names of programs that maintainer scripts would have linked."""
    for name, program in ALTERNATIVES.items():
        link = os.path.join(tree, "bin", name)
        if not os.path.exists(link) and os.path.exists(os.path.join(tree, "bin", program)):
            if os.path.islink(link):
                os.unlink(link)
            os.symlink(program, link)


def add_certificates(tree: str) -> None:
    """Gather the certificate authorities of ca-certificates in one file, as its maintainer script would."""
    source = os.path.join(tree, "share/ca-certificates")
    parts = []
    for folder, _folders, files in os.walk(source):
        for name in files:
            with open(os.path.join(folder, name), "rb") as file:
                parts.append((name, file.read()))
    if parts:
        folder = os.path.join(tree, "etc/ssl/certs")
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "ca-certificates.crt"), "wb") as bundle:
            bundle.writelines(content for _name, content in sorted(parts))


def wrap_privilege_droppers(tree: str, prefix: str) -> None:
    """Let programs that give up root for a user of their own find one: a container has no such user.

    Debian's tcpdump cannot be told not to. Here it finds its user in a passwd file of the image, and is root by another name.
    """
    wrappers = [
        os.path.join(folder, name)
        for folder, _folders, files in os.walk(os.path.join(tree, "lib"))
        for name in files
        if name.startswith("libnss_wrapper.so")
    ]
    if not wrappers:
        return
    library = f"{prefix}/{os.path.relpath(wrappers[0], tree)}"
    for name in _PRIVILEGE_DROPPERS:
        program = os.path.join(tree, "bin", name)
        if not os.path.exists(program):
            continue
        os.makedirs(os.path.join(tree, "libexec/crashcart"), exist_ok=True)
        os.rename(program, os.path.join(tree, "libexec/crashcart", name))
        _write(program, _WRAPPER.format(prefix=prefix, library=library, name=name), 0o755)
        _write(
            os.path.join(tree, "etc/crashcart.passwd"),
            f"root:x:0:0:root:/:/bin/sh\n{name}:x:0:0:{name}:/:/bin/sh\n",
            0o644,
        )
        _write(os.path.join(tree, "etc/crashcart.group"), f"root:x:0:\n{name}:x:0:\n", 0o644)


def _write(path: str, text: str, mode: int) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, mode)


def list_environment(tree: str, prefix: str) -> dict[str, str]:
    """The variables by which programs find data that they look for at a path fixed when they were compiled."""
    candidates = {
        "CURL_CA_BUNDLE": "etc/ssl/certs/ca-certificates.crt",
        "MAGIC": "lib/file/magic.mgc",
        "LOCPATH": "lib/locale",
        "SSL_CERT_FILE": "etc/ssl/certs/ca-certificates.crt",
        "TERMINFO": "lib/terminfo",
    }
    variables = {
        name: f"{prefix}/{path}" for name, path in candidates.items() if os.path.exists(os.path.join(tree, path))
    }
    variables["PYTHONDONTWRITEBYTECODE"] = "1"
    gconv = [folder for folder, _folders, files in os.walk(os.path.join(tree, "lib")) if "gconv-modules" in files]
    if gconv:
        variables["GCONV_PATH"] = f"{prefix}/{os.path.relpath(gconv[0], tree)}"
    return variables


def list_tools(tree: str) -> list[str]:
    """Names of the programs in TREE."""
    return sorted({name for folder in _PROGRAM_FOLDERS for name in _list(os.path.join(tree, folder))})


def _list(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []


def relocate_programs(tree: str, prefix: str) -> int:
    """Patch every ELF file and script of TREE to work at PREFIX; how many ELF files were patched."""
    library_folders: set[str] = set()
    # One entry for each file, whatever number of names it has: patchelf writes in place.
    elves: dict[int, _Elf] = {}
    for path in _gen_files(tree):
        with open(path, "rb") as file:
            magic = file.read(4)
        if magic == b"\x7fELF":
            elf = _read_elf(path)
            if elf is not None:
                elves[os.stat(path).st_ino] = elf
            if ".so" in os.path.basename(path):
                folder = os.path.relpath(os.path.dirname(path), tree)
                # Folders of plug-ins are opened by full path; only the common ones are searched.
                if folder == "lib" or (folder.startswith("lib/") and folder.count("/") == 1 and "-linux-" in folder):
                    library_folders.add(folder)
        elif magic[:2] == b"#!":
            _patch_script(path, prefix)
    search = [f"{prefix}/{folder}" for folder in sorted(library_folders, reverse=True)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(lambda elf: _patch_elf(elf, prefix, search), elves.values()))


def _gen_files(tree: str) -> Iterator[str]:
    for folder, _folders, files in os.walk(tree):
        for name in files:
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                yield path


def _read_elf(path: str) -> _Elf | None:
    """What of a dynamic ELF file has to be patched; None for objects, static programs and broken files."""
    with open(path, "rb") as file:
        try:
            elf = ELFFile(file)
            if elf.header.e_type not in ("ET_EXEC", "ET_DYN"):
                return None
            interpreter = ""
            run_path = ""
            for segment in elf.iter_segments():
                if segment.header.p_type == "PT_INTERP":
                    interpreter = segment.get_interp_name()
            section = elf.get_section_by_name(".dynamic")
            if isinstance(section, DynamicSection):
                for tag in section.iter_tags():
                    if tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH"):
                        run_path = tag.rpath if tag.entry.d_tag == "DT_RPATH" else tag.runpath
            return _Elf(path, interpreter, run_path)
        except ELFError:
            return None


def _patch_elf(elf: _Elf, prefix: str, search: list[str]) -> bool:
    if not elf.interpreter and not elf.run_path:
        return False  # a library is found, and finds its own, by the RPATH of the program that loads it
    own = [part if part.startswith("$") else f"{prefix}/{fold(part)}" for part in elf.run_path.split(":") if part]
    command = ["patchelf", "--force-rpath", "--set-rpath", ":".join([*own, *search])]
    if elf.interpreter:
        command += ["--set-interpreter", f"{prefix}/{fold(elf.interpreter)}"]
    done = subprocess.run([*command, elf.path], capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        raise BuildError(f"patchelf cannot patch {os.path.basename(elf.path)}: {done.stderr.strip()}")
    return True


def _patch_script(path: str, prefix: str) -> None:
    with open(path, "rb") as file:
        content = file.read()
    line, newline, rest = content.partition(b"\n")
    words = line[2:].split()
    if not words or not words[0].startswith(b"/") or words[0].startswith(os.fsencode(prefix) + b"/"):
        return
    program = os.fsencode(fold(os.fsdecode(words[0])))
    program = program[len(b"local/") :] if program.startswith(b"local/") else program
    arguments = words[1:]
    if program == b"bin/env" and arguments and not arguments[0].startswith(b"-") and b"=" not in arguments[0]:
        # The interpreter itself: env would look for it in the container's PATH.
        program, *arguments = b"bin/" + os.path.basename(arguments[0]), *arguments[1:]
    shebang = b" ".join([b"#!" + os.fsencode(prefix) + b"/" + program, *arguments])
    mode = os.stat(path).st_mode
    with open(path, "wb") as file:
        file.write(shebang + newline + rest)
    os.chmod(path, stat.S_IMODE(mode))


def find_missing_programs() -> list[str]:
    """Debian packages that a build needs and that this machine lacks."""
    needed = {"apt-get": "apt", "dpkg-deb": "dpkg", "mksquashfs": "squashfs-tools", "patchelf": "patchelf"}
    return [package for program, package in needed.items() if shutil.which(program) is None]
