# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the programs of a tree work at another prefix.

ELF files are patched (see elf), scripts get interpreters of the tree, and environment variables lead programs to their data.
No maintainer script is run: this module makes those of their links and files that tools need.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import stat
from collections import Counter
from dataclasses import dataclass, replace
from typing import Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.image import elf
from ansible_collections.crashcart.fleet.plugins.module_utils.image.tool_sets import ALTERNATIVES
from ansible_collections.crashcart.fleet.plugins.module_utils.image.tree import fold

_PROGRAM_FOLDERS = ("local/bin", "local/sbin", "bin", "sbin")
_STORE_PROGRAMS = re.compile(r"nix/store/[^/]+/bin\Z")
_MAX_LINE = 4096  # more than the kernel reads of a script's first line
# Text that a shell's settings can hold without quotes.
_PLAIN = re.compile(r"[A-Za-z0-9_./+@~-]+\Z")
_BUNDLE = "etc/ssl/certs/ca-certificates.crt"
_BUNDLES = (_BUNDLE, "etc/ssl/cert.pem", "etc/pki/tls/certs/ca-bundle.crt")
# Some programs look for data at a path that was fixed when they were compiled. Variable that leads them elsewhere → places of the data.
_DATA = {
    "APT_CONFIG": ("etc/crashcart.apt.conf",),
    "AWKLIBPATH": ("lib/*/gawk", "lib/gawk"),
    "AWKPATH": ("share/awk",),
    "CURL_CA_BUNDLE": _BUNDLES,
    "GCONV_PATH": ("lib/*/gconv", "lib/gconv"),
    "GIT_EXEC_PATH": ("lib/git-core", "libexec/git-core"),
    "GIT_SSL_CAINFO": _BUNDLES,
    "GIT_TEMPLATE_DIR": ("share/git-core/templates",),
    "GROFF_FONT_PATH": ("share/groff/[0-9]*/font",),
    "GROFF_TMAC_PATH": ("share/groff/[0-9]*/tmac",),
    "LOCPATH": ("lib/locale",),
    "MAGIC": ("lib/file/magic.mgc", "share/misc/magic.mgc"),
    "MTR_PACKET": ("bin/mtr-packet", "sbin/mtr-packet"),
    "NMAPDIR": ("share/nmap",),
    "OPENSSL_CONF": ("etc/ssl/openssl.cnf",),
    "OPENSSL_ENGINES": ("lib/*/engines-3", "lib/engines-3"),
    "OPENSSL_MODULES": ("lib/*/ossl-modules", "lib/ossl-modules"),
    "PERL5LIB": (
        "etc/perl",
        "share/perl5",
        "lib/*/perl5/[0-9]*",
        "lib/*/perl/[0-9]*",
        "share/perl/[0-9]*",
        "lib/*/perl-base",
    ),
    "PYTHONTZPATH": ("share/zoneinfo",),
    "REQUESTS_CA_BUNDLE": _BUNDLES,
    "RUBYLIB": (
        "lib/ruby/vendor_ruby",
        "lib/ruby/[0-9]*",
        "lib/*/ruby/vendor_ruby/[0-9]*",
        "lib/*/ruby/[0-9]*",
    ),
    "SHELL": ("bin/bash", "bin/sh"),
    "SSL_CERT_FILE": _BUNDLES,
    "TCL_LIBRARY": ("share/tcltk/tcl[0-9]*",),
    "TERMINFO": ("lib/terminfo", "share/terminfo", "etc/terminfo"),
    "TZDIR": ("share/zoneinfo",),
    "VIMRUNTIME": ("share/vim/vim[0-9]*",),
    "XTABLES_LIBDIR": ("lib/*/xtables", "lib/xtables"),
}
_LISTS = ("PERL5LIB", "RUBYLIB")
# A container may set these for its own programs. They would mislead the programs of the image.
FOREIGN_VARIABLES = (
    *("LD_AUDIT", "LD_LIBRARY_PATH", "LD_PRELOAD", "PERL5LIB", "PERL5OPT", "PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP"),
    *("OPENSSL_CONF", "SSL_CERT_DIR", "BASH_ENV", "ENV", "TERMCAP"),
    *("GDBHISTFILE", "INPUTRC", "LESSCLOSE", "LESSKEY", "LESSKEYIN", "LESSKEYIN_SYSTEM", "LESSKEY_SYSTEM", "LESSOPEN"),
    *("EXINIT", "LANGUAGE", "MALLOC_CONF", "NLSPATH", "PROMPT_COMMAND", "PYTHONUSERBASE", "VIMINIT"),
)
_PRIVILEGE_DROPPERS = ("tcpdump",)
_WRAPPER = """\
#!{prefix}/bin/sh
export LD_PRELOAD={library} NSS_WRAPPER_PASSWD={prefix}/etc/crashcart.passwd NSS_WRAPPER_GROUP={prefix}/etc/crashcart.group
exec {prefix}/libexec/crashcart/{name} "$@"
"""


def add_alternatives(tree: str) -> None:
    """Link well-known names to programs of TREE, as maintainer scripts would."""
    places = find_program_folders(tree)
    for name, programs in ALTERNATIVES.items():
        if any(os.path.exists(os.path.join(tree, folder, name)) for folder in places):
            continue
        for program in programs:
            place = _find_program(tree, program)
            if os.path.exists(os.path.join(tree, place)):
                link = os.path.join(tree, "bin", name)
                if os.path.islink(link):
                    os.unlink(link)  # it leads nowhere
                os.makedirs(os.path.dirname(link), exist_ok=True)
                os.symlink(os.path.relpath("/" + place, "/bin"), link)
                break


def add_certificates(tree: str) -> None:
    """Gather the certificate authorities of ca-certificates in one file, as its maintainer script would. An existing file stays."""
    if any(os.path.isfile(os.path.join(tree, place)) for place in _BUNDLES):
        return
    parts = []
    for folder, _folders, files in os.walk(os.path.join(tree, "share/ca-certificates")):
        for name in files:
            path = os.path.join(folder, name)
            if name.endswith(".crt") and os.path.isfile(path):
                with open(path, "rb") as file:
                    parts.append((name, file.read().rstrip(b"\n") + b"\n"))
    if parts:
        bundle = os.path.join(tree, _BUNDLE)
        os.makedirs(os.path.dirname(bundle), exist_ok=True)
        if os.path.lexists(bundle):
            os.unlink(bundle)  # a link that leads nowhere
        with open(bundle, "xb") as writer:
            writer.writelines(content for _name, content in sorted(parts))


def configure_apt(tree: str, prefix: str) -> None:
    """Lead apt's library to dpkg's tables of architectures in the image. All other settings of apt are the container's."""
    tables = [name for name in ("cputable", "tupletable") if os.path.isfile(os.path.join(tree, "share/dpkg", name))]
    if tables:
        lines = [f'Dir::dpkg::{name} "{prefix}/share/dpkg/{name}";\n' for name in tables]
        _write(os.path.join(tree, "etc/crashcart.apt.conf"), "".join(lines), 0o644)


def wrap_privilege_droppers(tree: str, prefix: str) -> None:
    """Wrap programs that give up root for a user of their own, which a container does not have.

    Debian's tcpdump has no option against that. The wrapper shows it a passwd file of the image, where its user has root's number.
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
    """Return the environment variables that the tools of TREE need at PREFIX: PATH, and those that lead programs to their data."""
    variables = {"PATH": ":".join(f"{prefix}/{folder}" for folder in find_program_folders(tree))}
    for name, patterns in _DATA.items():
        # No file system promises an order of names, so they are sorted. root_dir keeps brackets in the name of TREE out of the pattern.
        found = [place for pattern in patterns for place in sorted(glob.glob(pattern, root_dir=tree))]
        places = [place for place in found if _PLAIN.match(place) and os.path.exists(os.path.join(tree, place))]
        if places:
            variables[name] = ":".join(f"{prefix}/{place}" for place in (places if name in _LISTS else places[:1]))
    variables["PYTHONDONTWRITEBYTECODE"] = "1"
    # A translation of the container could hold a harmful format string.
    variables["LC_MESSAGES"] = "C"
    # No PYTHONHOME or PYTHONPATH here: programs of the container that a tool starts inherit these variables.
    return variables


def find_program_folders(tree: str) -> list[str]:
    """Return the places of those folders of programs that TREE has, in the order of PATH."""
    return [folder for folder in _PROGRAM_FOLDERS if os.path.isdir(os.path.join(tree, folder))]


def list_tools(tree: str, origins: dict[str, str]) -> dict[str, str]:
    """Return the names of the programs in TREE, each with the label of its source, or "" where the builder made it.

    ORIGINS maps places to labels of sources.
    """
    tools = {}
    for folder in reversed(find_program_folders(tree)):
        for name in sorted(os.listdir(os.path.join(tree, folder))):
            path = os.path.join(tree, folder, name)
            if os.path.isdir(path) or not os.path.exists(path):
                continue
            # Prefer the package of the file that a link leads to: its version is the program's.
            real = os.path.relpath(os.path.realpath(path), os.path.realpath(tree))
            tools[name] = origins.get(real) or origins.get(f"{folder}/{name}", "")
    return dict(sorted(tools.items()))


def link_store_programs(tree: str) -> None:
    """Link the programs of a Nix closure into bin: the closure has one folder of programs for each package."""
    for program in sorted(glob.glob("nix/store/*/bin/*", root_dir=tree)):
        link = os.path.join(tree, "bin", os.path.basename(program))
        if not os.path.lexists(link):
            os.makedirs(os.path.dirname(link), exist_ok=True)
            os.symlink(f"../{program}", link)


@dataclass(frozen=True)
class Relocation:
    """The outcome of patching a tree."""

    problems: list[dict[str, str]]  # path and reason of each file that will not work
    architectures: Counter[str]  # number of programs in the folders of programs, by architecture
    elsewhere: Counter[str]  # number of executable ELF files in other folders, by architecture


def relocate_programs(tree: str, prefix: str) -> Relocation:
    """Patch every ELF file and script of TREE to work at PREFIX."""
    # Several names may be one file, which must be patched once. So files are known by their inode numbers.
    places: dict[int, list[str]] = {}
    elves: dict[int, elf.Elf] = {}
    scripts = []
    architectures: Counter[str] = Counter()
    elsewhere: Counter[str] = Counter()
    for place in _gen_files(tree):
        path = os.path.join(tree, place)
        with open(path, "rb") as file:
            head = file.read(20)
        status = os.stat(path)
        number = status.st_ino
        if head[:4] == b"\x7fELF":
            folder = os.path.dirname(place)
            if folder in _PROGRAM_FOLDERS or _STORE_PROGRAMS.match(folder):
                architectures[elf.find_architecture(head)] += 1
            elif status.st_mode & 0o111:  # this may be firmware, or a tool's data
                elsewhere[elf.find_architecture(head)] += 1
            places.setdefault(number, []).append(place)
            found = None if number in elves else elf.read_elf(tree, place)
            if found is not None:
                elves[number] = found
        elif head[:2] == b"#!":
            interpreter = _patch_script(tree, place, prefix)
            if interpreter and status.st_mode & 0o111:
                scripts.append((place, interpreter))

    def spread(files: list[elf.Elf]) -> list[elf.Elf]:
        """Return FILES, which are in the order of ELVES, with one entry for each name of a file."""
        return [replace(file, place=place) for number, file in zip(elves, files) for place in places[number]]

    folders = elf.find_library_folders(tree, spread(list(elves.values())))
    elf.link_alternatives(tree, list(elves.values()), folders)
    patched, problems = elf.patch(tree, prefix, list(elves.values()), folders)
    problems += elf.list_problems(tree, spread(patched), folders)
    problems += [
        {"path": place, "reason": f"its interpreter {interpreter} is not in the image"}
        for place, interpreter in scripts
        if not os.path.exists(os.path.join(tree, interpreter))
    ]
    return Relocation(
        sorted(problems, key=lambda problem: (problem["path"], problem["reason"])), architectures, elsewhere
    )


def _gen_files(tree: str) -> Iterator[str]:
    """Yield the places of all regular files, in an order that does not depend on the file system."""
    for folder, folders, files in os.walk(tree):
        folders.sort()
        for name in sorted(files):
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                yield os.path.relpath(path, tree)


def _patch_script(tree: str, place: str, prefix: str) -> str:
    """Give the script at PLACE an interpreter of the tree and return the interpreter's place, "" where the script names none."""
    path = os.path.join(tree, place)
    with open(path, "rb") as file:
        line = file.readline(_MAX_LINE)
    words = os.fsdecode(line[2:]).split()
    if (not line.endswith(b"\n") and len(line) == _MAX_LINE) or not words or not words[0].startswith("/"):
        return ""
    if words[0].startswith(prefix + "/"):
        return words[0][len(prefix) + 1 :]
    program, *arguments = fold(words[0]), *words[1:]
    if program == "bin/env":
        # The script gets the interpreter itself, since env would look for it in the container's PATH.
        named = arguments[1:] if arguments[:1] == ["-S"] else arguments
        if named and not named[0].startswith("-") and "=" not in named[0]:
            program, *arguments = _find_program(tree, os.path.basename(named[0])), *named[1:]
    elif program.startswith("local/") and not os.path.exists(os.path.join(tree, program)):
        program = program[len("local/") :]
    temporary = path + ".crashcart-new"
    with open(path, "rb") as reader, open(temporary, "xb") as writer:
        reader.seek(len(line))
        writer.write(os.fsencode(" ".join([f"#!{prefix}/{program}", *arguments])) + line[len(line.rstrip(b"\n")) :])
        shutil.copyfileobj(reader, writer)
    os.chmod(temporary, stat.S_IMODE(os.stat(path).st_mode))
    os.rename(temporary, path)
    return program


def _find_program(tree: str, name: str) -> str:
    """Return the place of the program NAME, or, where TREE has no such program, its place in bin."""
    places = (f"{folder}/{name}" for folder in find_program_folders(tree))
    return next((place for place in places if os.path.exists(os.path.join(tree, place))), f"bin/{name}")
