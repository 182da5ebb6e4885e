# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Seal ELF files: their loader takes no library of the container, and the strings in them lead to the image."""

from __future__ import annotations

import glob
import io
import os
import posixpath
import re
import struct
import subprocess
from dataclasses import dataclass

from ansible_collections.crashcart.fleet.plugins.module_utils.image.sealing.state import (
    PYTHON,
    State,
    write_text,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.image.sealing.texts import (
    TEXTS,
    replace_texts,
    seal_openssl,
)

try:
    from elftools.elf.elffile import ELFFile
except ImportError:
    pass  # image/elf.py reports it

_FLAGS_1 = 0x6FFFFFFB
_PT_DYNAMIC = 2
_PT_INTERP = 3
_NODEFLIB = 0x800
_PIE = 0x8000000
_SHELL = b"\0/bin/sh\0"
_LOOKED_UP = {"execv": "execvp", "execl": "execlp"}
# A program or library of such a name has to hold all of these texts. A file without them was built in a way that this module does not know.
_EXPECTED: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = (
    (re.compile(r"libc(\.so\.6|-2\.\d+\.so)"), ("/etc/nsswitch.conf", "/usr/lib/locale")),
    (re.compile(r"bash"), ("~/.bashrc", "/etc/profile")),
    (re.compile(r"dash"), ("/etc/profile", "$HOME/.profile")),
    (re.compile(r"libreadline\.so\..*"), ("~/.inputrc", "/etc/inputrc")),
    (re.compile(r"libpam\.so\..*"), ("/etc/pam.d",)),
    (re.compile(r"libmagic\.so\..*"), ("/etc/magic:/usr/share/misc/magic",)),
)
# The folder of modules in a user's home, in the part of Python's library that is compiled in (since 3.11): a constant as in memory, or
# as marshal writes it. Both forms hold its length, so it may begin with a NUL, and no path holds a NUL.
_USER_BASE = re.compile(rb"(?<=\0)\.local(?=\0)|(?<=[zZ\xda\xfa]\x06)\.local")
# less finds files at home by variables whose names all end with this one.
_AT_HOME = re.compile(rb"HOME(?=\0)")
_LOADER = re.compile(r"ld-linux|ld64\.so|ld-2\.")
_LARGE = 1 << 20  # a smaller libpython3.so only refers to the library itself
_PRELOAD = b"/etc/ld.so.preload"
_CACHE = b"/etc/ld.so.cache"


@dataclass(frozen=True)
class Dynamic:
    """The parts of an ELF file that decide how it is loaded."""

    interpreter: str  # its loader; "" for a library or a static program
    entry_format: str  # of one entry in the dynamic section, for struct
    entries: tuple[tuple[int, int, int], ...]  # of the whole dynamic section: (offset in the file, tag, value)

    def find(self, tag: int) -> int | None:
        """Return the value of the first entry with TAG, or None where there is none before the terminating entry."""
        for _offset, entry_tag, value in self.entries:
            if entry_tag == 0:
                return None
            if entry_tag == tag:
                return value
        return None


def read_dynamic(content: bytes) -> Dynamic | None:
    """Return the interpreter and the dynamic section of the ELF file CONTENT, or None where it is damaged or an object file."""
    try:
        order = {1: "<", 2: ">"}[content[5]]
        is_wide = {1: False, 2: True}[content[4]]
        if struct.unpack_from(f"{order}H", content, 16)[0] not in (2, 3):
            return None
        word = f"{order}{'Q' if is_wide else 'I'}"

        def read(form: str, offset: int) -> int:
            number: int = struct.unpack_from(form, content, offset)[0]
            return number

        # TABLE: offset of the program headers; SIZE and COUNT: of one and of all; FIELDS: offsets of p_offset and p_filesz in a header.
        table = read(word, 32 if is_wide else 28)
        size, count = struct.unpack_from(f"{order}HH", content, 54 if is_wide else 42)
        fields = (8, 32) if is_wide else (4, 16)
        entry = f"{order}qQ" if is_wide else f"{order}iI"
        step = struct.calcsize(entry)
        interpreter, entries = "", []
        for start in range(table, table + size * count, size or 1):
            segment = read(f"{order}I", start)
            at, length = (read(word, start + field) for field in fields)
            if segment == _PT_INTERP:
                interpreter = content[at : at + length].rstrip(b"\0").decode("utf-8", "replace")
            elif segment == _PT_DYNAMIC:
                offsets = range(at, at + length - step + 1, step)
                entries = [(offset, *struct.unpack_from(entry, content, offset)) for offset in offsets]
        return Dynamic(interpreter, entry, tuple(entries))
    except (KeyError, IndexError, OverflowError, struct.error):
        return None


def forbid_default_folders(content: bytes, dynamic: Dynamic) -> bytes | None:
    """Return CONTENT with the flag that keeps the loader from its built-in folders, or None where it has no room for the flag."""
    changed = bytearray(content)
    ends = [offset for offset, tag, _value in dynamic.entries if tag == 0]
    for offset, tag, value in dynamic.entries:
        if tag == _FLAGS_1 and (not ends or offset < ends[0]):
            struct.pack_into(dynamic.entry_format, changed, offset, tag, value | _NODEFLIB)
            return bytes(changed)
    # Linkers leave some empty entries at the end. One of them has to stay, since it ends the list.
    step = struct.calcsize(dynamic.entry_format)
    if len(ends) < 2 or ends[1] != ends[0] + step:
        return None
    struct.pack_into(dynamic.entry_format, changed, ends[0], _FLAGS_1, _NODEFLIB)
    return bytes(changed)


def seal_elf(state: State, place: str, content: bytes) -> bytes:
    """Return CONTENT, the ELF file at PLACE, sealed as far as possible, and complain to STATE of the rest."""
    dynamic = read_dynamic(content)
    if dynamic is None:
        return content
    is_static = not dynamic.interpreter and (not dynamic.entries or bool((dynamic.find(_FLAGS_1) or 0) & _PIE))
    _note_interpreter(state, place, dynamic.interpreter)
    if not is_static and _LOADER.match(posixpath.basename(place)):
        content = _seal_loader(state, place, content)  # a loader that bears the flag takes itself for broken
    elif not is_static:
        flagged = forbid_default_folders(content, dynamic)
        content = _patch_flag(state, place) if flagged is None else flagged
    content, found = replace_texts(content, state.prefix, TEXTS, state.links)
    (_check_static if is_static else _check_texts)(state, place, content, found)
    content = seal_openssl(state, content)
    return _seal_by_name(state, place, content)


def _note_interpreter(state: State, place: str, interpreter: str) -> None:
    if interpreter and not interpreter.startswith(state.prefix + "/"):
        state.complain(place, f"its loader {interpreter} is the container's")
    elif "ld-musl" in interpreter:
        state.musl.add(interpreter)
    elif interpreter and not _LOADER.match(posixpath.basename(interpreter)):
        state.complain(place, f"its loader {interpreter} is of a C library that nobody has looked at")


def _check_texts(state: State, place: str, _content: bytes, found: set[str]) -> None:
    """Complain of each text that the program or library at PLACE should hold and that was not FOUND."""
    for pattern, texts in _EXPECTED:
        if pattern.fullmatch(posixpath.basename(place)):
            for text in texts:
                if text not in found:
                    state.complain(place, f"it does not hold the path {text} as expected")


def _check_static(state: State, place: str, content: bytes, found: set[str]) -> None:
    """Complain of a static program that holds glibc's lookup of users, and would load a library for it."""
    if "/etc/nsswitch.conf" in found:
        # Since glibc 2.34 the service that such a program needs is built in, and holds this path.
        if b"\0/etc/ethers\0" not in content:
            state.complain(place, "it is static and would load the service for users' names from the container")
    elif b"libnss_" in content:
        state.complain(place, "it is static and does not hold the path /etc/nsswitch.conf as expected")


def _seal_by_name(state: State, place: str, content: bytes) -> bytes:
    """Return CONTENT with the changes that only the program or library at PLACE needs."""
    name = posixpath.basename(place)
    if name == "less":
        if not _AT_HOME.search(content):
            state.complain(place, "it does not hold the name of the variable by which it finds settings at home")
        return _AT_HOME.sub(b"\0OME", content)
    if name == "gdb":
        return _empty_string(content, b"iconv")  # gdb would start this program to list the names of character sets
    if name.startswith("libwrap.so."):
        return _empty_string(content, b"/bin/sh")  # it runs commands in /etc/hosts.allow
    if name == "tar":
        return look_up_shell(content)
    return _seal_python(state, place, content)


def look_up_shell(content: bytes) -> bytes:
    """Return CONTENT, a program that starts the container's /bin/sh, changed to start the `sh` that it finds by PATH.

    tar starts each filter by that shell, and has no room for a longer path. So the shell's path becomes a bare name, and each call of
    execv or execl becomes execvp or execlp, which differ only in that they look up bare names. A program that does not import
    the other function already stays as it is.
    """
    changed = bytearray(content.replace(_SHELL, b"\0sh".ljust(len(_SHELL), b"\0")))
    symbols = ELFFile(io.BytesIO(content)).get_section_by_name(".dynsym")
    names = {symbol.name: symbol.entry.st_name for symbol in symbols.iter_symbols()} if symbols else {}
    calls = [name for name in _LOOKED_UP if name in names]
    if content.count(_SHELL) != 1 or not calls or not all(_LOOKED_UP[name] in names for name in calls):
        return content
    order = {1: "<", 2: ">"}[content[5]]
    for index, symbol in enumerate(symbols.iter_symbols()):
        if symbol.name in calls:
            place = symbols.header.sh_offset + index * symbols.header.sh_entsize
            struct.pack_into(f"{order}I", changed, place, names[_LOOKED_UP[symbol.name]])
    return bytes(changed)


def _patch_flag(state: State, place: str) -> bytes:
    """Let patchelf set the flag in the file at PLACE, and return the new content of the file."""
    path = os.path.join(state.tree, place)
    done = subprocess.run(
        ["patchelf", "--no-default-lib", path], capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode != 0:
        state.complain(place, f"patchelf cannot take the built-in folders from it: {done.stderr.strip()}")
    with open(path, "rb") as file:
        return file.read()


def _seal_loader(state: State, place: str, content: bytes) -> bytes:
    """Return CONTENT, glibc's loader, without the paths of its preload list and of its cache."""
    for text in (_PRELOAD, _CACHE):
        if content.count(b"\0" + text + b"\0") != 1:
            state.complain(place, f"it does not hold the path {text.decode()} once as expected")
        content = content.replace(b"\0" + text + b"\0", b"\0" * (len(text) + 2))
    return content


def _seal_python(state: State, place: str, content: bytes) -> bytes:
    """Return CONTENT, the file at PLACE, changed to take no modules from a user's home if it is Python's program or library."""
    version = PYTHON.fullmatch(posixpath.basename(place))
    if version is None:
        return content
    content, count = _USER_BASE.subn(b"\0local", content)
    # The program's launcher passes an option for that. Any program may load the library, without such an option.
    if not count and int(version[2]) >= 11 and version[1] == "libpython" and len(content) > _LARGE:
        state.complain(place, "it does not hold the place of modules at home as expected")
    return content


def _empty_string(content: bytes, text: bytes) -> bytes:
    """Return the ELF file CONTENT with each whole string TEXT among its constants emptied. The linker's names stay."""
    section = ELFFile(io.BytesIO(content)).get_section_by_name(".rodata")
    if section is None:
        return content
    start, end = section.header.sh_offset, section.header.sh_offset + section.header.sh_size
    changed = content[start:end].replace(b"\0" + text + b"\0", b"\0\0" + text[1:] + b"\0")
    return content[:start] + changed + content[end:]


def write_musl_paths(state: State) -> None:
    """Write the file that lists the folders of musl's loader. The loader looks for the file two folders above itself."""
    for interpreter in sorted(state.musl):
        top = posixpath.dirname(posixpath.dirname(interpreter[len(state.prefix) + 1 :]))
        arch = re.sub(r"^ld-musl-|\.so.*$", "", posixpath.basename(interpreter))
        folders = sorted(
            {posixpath.dirname(place) for place in glob.glob("**/*.so*", root_dir=state.tree, recursive=True)}
        )
        usable = [folder for folder in folders if re.fullmatch(r"(local/)?lib(64)?(/[^/]*-linux-[^/]*)?", folder)]
        text = "".join(f"{state.prefix}/{folder}\n" for folder in usable or ["lib"])
        write_text(os.path.join(state.tree, top, f"etc/ld-musl-{arch}.path"), text)
