# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Let the programs of a tree load code, and what decides on code, from the image alone: the container they run in is hostile.

However a program is started (`docker exec` gives none of the image's variables), what it looks for is compiled into it. So it is
the files that are changed:

- Every dynamic ELF file gets DF_1_NODEFLIB: glibc's loader does not search its built-in folders, which are the container's.
- Paths that are compiled in are led to short links in the image's root, or to nowhere. A string of a program is never made longer.
- Python, gdb, curl and vim get their settings as arguments, by a launcher in their place (see launcher).
- A few lines of Python's library are edited.

What cannot be sealed is named, and an image that has such a thing does not count as sealed.

Sources: ld.so(8), nsswitch.conf(5), gconv in the glibc manual; dynlink.c of musl; bash(1), gdb(1), vim(1), curl(1), python(1).
"""

from __future__ import annotations

import glob
import io
import os
import posixpath
import re
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ansible_collections.crashcart.fleet.plugins.module_utils.image.launcher import make_launcher

try:
    from elftools.elf.elffile import ELFFile
except ImportError:
    pass  # elf says so

# The file of the image that says that it is sealed.
MARK = "etc/crashcart.sealed"
# What nobody can make where /proc is the kernel's: no process has this number.
_NOWHERE = "/proc/0"
# Folders of programs as relocate has them.
_PROGRAM_FOLDERS = ("local/bin", "local/sbin", "bin", "sbin")
_LAUNCHED = "libexec/crashcart"
_NSS = """\
# Where the tools of this image look users and hosts up: in the container's files and by its resolver, by code of the image.
passwd: files
group: files
shadow: files
gshadow: files
initgroups: files
hosts: files dns
networks: files dns
protocols: files
services: files
ethers: files
rpc: files
netgroup: files
aliases: files
publickey: files
"""
_VIMRC = """\
" Read by the image's vim instead of all that the container has.
set nocompatible
set backspace=indent,eol,start
set nomodeline
set viminfo=
set runtimepath={runtime}
"""

# How a compiled-in path is changed: it is emptied (its first byte is), or all of it is (somebody may use its end as a path of its own),
# or it leads to what stands at one of these places, by a link in the image's root, or to nowhere.
EMPTY = "empty"
ERASED = "erased"


@dataclass(frozen=True)
class Link:
    """A link NAME in the image's root to the first of PLACES (patterns) that is there; without one the name leads to nothing."""

    name: str
    places: tuple[str, ...] = ()


_NOTHING = Link("-")
_CERTIFICATES = Link(
    "ca.pem", ("etc/ssl/certs/ca-certificates.crt", "etc/ssl/cert.pem", "etc/pki/tls/certs/ca-bundle.crt")
)
_MAGIC = Link("magic.mgc", ("lib/file/magic.mgc", "share/misc/magic.mgc"))
_TEXTS: dict[str, str | Link] = {
    # glibc: modules and data by which it reads text.
    "/etc/nsswitch.conf": Link("nss"),
    "/usr/lib/locale": Link(""),  # the root itself, in which each locale gets a link
    "/usr/lib/locale/locale-archive": EMPTY,
    "/usr/lib/getconf": _NOTHING,
    # Translations hold formats, and images have none.
    "/usr/share/locale": _NOTHING,
    "/usr/share/locale/%L/%N:/usr/share/locale/%L/LC_MESSAGES/%N:/usr/share/locale/%l/%N:/usr/share/locale/%l/LC_MESSAGES/%N:": EMPTY,
    # Shells, and what reads lines for them: keys can be bound to text.
    **dict.fromkeys(
        ("/etc/bash.bashrc", "/etc/bash.bash_logout", "/etc/bashrc", "/etc/profile", "$HOME/.profile"), EMPTY
    ),
    **dict.fromkeys(
        (f"~/.{name}" for name in ("bashrc", "bash_profile", "bash_login", "profile", "bash_logout")), EMPTY
    ),
    "/usr/share/bashdb/bashdb-main.inc": EMPTY,
    "/usr/local/lib/bash:/usr/lib/bash:/opt/local/lib/bash:/usr/pkg/lib/bash:/opt/pkg/lib/bash:.": EMPTY,
    **dict.fromkeys(("/etc/inputrc", "~/.inputrc", "/.editrc"), EMPTY),
    ".exrc": EMPTY,
    # less, top (whose settings can hold commands), dig, jemalloc.
    **dict.fromkeys(
        ("/usr/bin/.sysless", "/etc/sysless", "/etc/syslesskey", "/etc/lesskey", "/usr/etc/sysless"), EMPTY
    ),
    **dict.fromkeys(("/etc/toprc", "/etc/topdefaultrc", "%s/.%src", "%s/procps/%src"), EMPTY),
    **dict.fromkeys(("%s/.digrc", "/etc/malloc.conf"), EMPTY),
    # file: a compiled table is taken as it is.
    **dict.fromkeys(("/etc/magic:/usr/share/misc/magic", "/usr/share/misc/magic"), _MAGIC),
    **dict.fromkeys(("%s/.magic", "%s/.magic.mgc", "/etc/magic"), EMPTY),
    # TLS: authorities, and modules of whoever. OpenSSL's folders are found by what it says itself, see _seal_openssl.
    "/etc/ssl/certs/ca-certificates.crt": _CERTIFICATES,
    "/etc/ssl/certs": _NOTHING,
    **dict.fromkeys(("/etc/gnutls/config", "/etc/gnutls/pkcs11.conf"), _NOTHING),
    **dict.fromkeys(("/etc/pkcs11/pkcs11.conf", "/etc/pkcs11/modules", "/usr/share/p11-kit/modules"), _NOTHING),
    # Kerberos: its settings name modules, too.
    **dict.fromkeys(("/etc/krb5.conf", "/usr/etc/krb5.conf", "/etc/gss/mech", "/etc/gss/mech.d/*.conf"), _NOTHING),
    "/etc/krb5.conf:/usr/etc/krb5.conf": _NOTHING,
    # PAM loads modules from the container's folders; without modules of the image su and login refuse.
    **dict.fromkeys(("/etc/pam.conf", "/etc/pam.d", "/etc/pam.d/%s", "/usr/lib/pam.d", "/usr/lib/pam.d/%s"), _NOTHING),
    "/lib/security": _NOTHING,
    # Programs that a library would start.
    **dict.fromkeys(("/usr/bin/ntlm_auth", "/usr/bin/dbus-launch"), EMPTY),
    **dict.fromkeys(
        (f"{one}/{two}" for one in ("/usr/local/sbin", "/usr/sbin") for two in ("dmsetup", "lvdisplay")), ERASED
    ),
    "/usr/lib/sysstat/sadc": Link("sadc", ("lib/sysstat/sadc",)),
    "/usr/libexec/coreutils": Link("stdbuf", ("libexec/coreutils",)),
    # Modules of programs.
    **dict.fromkeys(("/usr/lib/bfd-plugins", "/usr/bin/../lib/bfd-plugins"), _NOTHING),
    "/lib/xtables": _NOTHING,
}
# The same for paths that hold the name of an architecture, or another that differs from release to release.
_PATTERNS: tuple[tuple[re.Pattern[str], str | Link], ...] = (
    (re.compile(r"/usr/lib[^:%]*/gconv"), Link("gconv", ("lib/*/gconv", "lib/gconv", "lib64/gconv"))),
    (re.compile(r"/usr/lib[^:%]*/gconv/gconv-modules\.cache"), EMPTY),
    (re.compile(r"/usr/lib/[^/:%]+/xtables"), Link("xtables", ("lib/*/xtables", "lib/xtables"))),
    (re.compile(r"/usr/lib(/[^/:%]+)?/tc/?"), Link("tc", ("lib/*/tc", "lib/tc"))),
    (re.compile(r"/usr/lib(/[^/:%]+)?/gawk"), Link("gawk", ("lib/*/gawk", "lib/gawk"))),
    (re.compile(r"/usr/lib(/[^/:%]+)?/ip"), _NOTHING),
    (re.compile(r"/usr/lib/[^/:%]+/coreutils"), _NOTHING),
    (re.compile(r"/(usr/)?lib(/[^/:%]+)?/security/?"), _NOTHING),
    (re.compile(r"/usr/lib(/[^/:%]+)?/(krb5/plugins(/[a-z0-9]+)?|gss/?|sasl2|pkcs11|gio/modules)"), _NOTHING),
    (re.compile(r"/etc/sasl2:.*|/usr/lib.*/sasl2:.*"), _NOTHING),
)
# What is a string of its own in a program, and may be one of those above.
_STRING = re.compile(rb"\0([/~$%.][^\0\x80-\xff]{3,130})(?=\0)")
# Texts that have to be there, one of each line, in a program or library of that name; else it is made in a way that nobody has looked at.
_EXPECTED: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = (
    (re.compile(r"libc(\.so\.6|-2\.\d+\.so)"), ("/etc/nsswitch.conf", "/usr/lib/locale")),
    (re.compile(r"bash"), ("~/.bashrc", "/etc/profile")),
    (re.compile(r"dash"), ("/etc/profile", "$HOME/.profile")),
    (re.compile(r"libreadline\.so\..*"), ("~/.inputrc", "/etc/inputrc")),
    (re.compile(r"libpam\.so\..*"), ("/etc/pam.d",)),
    (re.compile(r"libmagic\.so\..*"), ("/etc/magic:/usr/share/misc/magic",)),
)
# The place of modules at home, in what Python has compiled in of its library (since 3.11): a constant as it is in memory, or as marshal
# writes it. Both know its length, so that it may begin with a NUL, and there is no path that holds one.
_USER_BASE = re.compile(rb"(?<=\0)\.local(?=\0)|(?<=[zZ\xda\xfa]\x06)\.local")
_PYTHON = re.compile(r"(libpython|python)3\.(\d+)(\.so.*|\.dylib)?")
# Names of variables by which less finds files at home; the shortest is the end of the others.
_AT_HOME = re.compile(rb"HOME(?=\0)")
_LOADER = re.compile(r"ld-linux|ld64\.so|ld-2\.")
_LARGE = 1 << 20  # libpython3.so is but a name for the library
_PRELOAD, _CACHE = b"/etc/ld.so.preload", b"/etc/ld.so.cache"
_OPENSSL = re.compile(rb'(OPENSSLDIR|ENGINESDIR|MODULESDIR): "(/[^"\0]{3,100})"')
_OPENSSL_LINKS = {
    "ENGINESDIR": Link("engines", ("lib/*/engines-3", "lib/engines-3", "lib/*/engines-1.1")),
    "MODULESDIR": Link("ossl-modules", ("lib/*/ossl-modules", "lib/ossl-modules")),
}
# What is interpreted by a program that looks for its library where it was compiled for, or that reads a file of the user's at each start.
_OPEN = {
    r"perl5?[0-9.]*": "it takes its modules from the container where it gets no PERL5LIB",
    r"ruby[0-9.]*": "it takes its library from the container where it gets no RUBYLIB",
    r"(tclsh|wish)[0-9.]*": "it takes its library from the container where it gets no TCL_LIBRARY",
    r"(php|lua|luajit|node|nodejs|guile|java|erl|Rscript|julia|ghc|ocaml)[0-9.-]*": "it takes modules from the container",
    r"(zsh|ksh|mksh|fish|tcsh|csh|nu|elvish|xonsh)[0-9]*": "it reads start-up files of the container",
    r"(git|ssh|scp|sftp|tmux|screen|lldb|emacs|mc|psql|mysql|mariadb|sqlite3|gpg|man|mutt|nano)[0-9.-]*": (
        "it reads settings of the container, which can hold commands"
    ),
    r"(nmap|ncat|tshark|wireshark)": "it takes scripts and modules from the container",
    r"(dpkg|apt|apt-get|apt-cache)": "it starts programs and hooks that settings of the container name",
    r"u?mount": "it starts the helpers /sbin/mount.TYPE of the container",
}


@dataclass
class _State:
    """What is found and done while a tree is sealed."""

    tree: str
    prefix: str
    unsealed: dict[tuple[str, str], None]
    links: dict[str, Link]
    musl: set[str]

    def complain(self, place: str, reason: str) -> None:
        self.unsealed[place, reason] = None


def seal(tree: str, prefix: str, absolute: Sequence[str] = ()) -> list[dict[str, str]]:
    """Seal the relocated TREE, which will be at PREFIX; what cannot be, as path and reason: none where all of it is.

    ABSOLUTE are places of files that need libraries by whole paths.
    """
    state = _State(tree, prefix, {}, {}, set())
    for place in absolute:
        state.complain(place, "it needs a library by its whole path, which is the container's")
    for place, status in _gen_programs(tree):
        with open(os.path.join(tree, place), "rb") as file:
            before = file.read()
        after = _seal_elf(state, place, before)
        if after != before:
            with open(os.path.join(tree, place), "r+b") as file:
                file.write(after)
            os.utime(os.path.join(tree, place), ns=(status.st_atime_ns, status.st_mtime_ns))
    _write_links(state)
    _write_musl_paths(state)
    _edit_scripts(state)
    _end_searches(state)
    _launch_programs(state)
    _find_open_programs(state)
    _find_embedded_pythons(state)
    return [{"path": place, "reason": reason} for place, reason in sorted(state.unsealed)]


def _gen_programs(tree: str) -> Iterator[tuple[str, os.stat_result]]:
    """All ELF files, each once whatever its names."""
    seen = set()
    for folder, folders, names in os.walk(tree):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            if os.path.islink(path) or status.st_ino in seen or not os.path.isfile(path):
                continue
            with open(path, "rb") as file:
                if file.read(4) != b"\x7fELF":
                    continue
            seen.add(status.st_ino)
            yield os.path.relpath(path, tree), status


# ELF files


@dataclass(frozen=True)
class Dynamic:
    """What decides how an ELF file is loaded. ENTRIES are those of its dynamic section up to the end of it: (offset, tag, value)."""

    interpreter: str
    entry_format: str
    entries: tuple[tuple[int, int, int], ...]

    def find(self, tag: int) -> int | None:
        """The value of the first entry with TAG."""
        for _offset, one, value in self.entries:
            if one == 0:
                return None
            if one == tag:
                return value
        return None


_FLAGS_1 = 0x6FFFFFFB
_PT_DYNAMIC, _PT_INTERP = 2, 3
_NODEFLIB, _PIE = 0x800, 0x8000000


def read_dynamic(content: bytes) -> Dynamic | None:
    """What CONTENT, an ELF file, says on how it is loaded; None where it is damaged or no program and no library."""
    try:
        order = {1: "<", 2: ">"}[content[5]]
        is_wide = {1: False, 2: True}[content[4]]
        if struct.unpack_from(f"{order}H", content, 16)[0] not in (2, 3):
            return None
        word = f"{order}{'Q' if is_wide else 'I'}"

        def read(form: str, offset: int) -> int:
            number: int = struct.unpack_from(form, content, offset)[0]
            return number

        # Where the headers of segments begin, and how long and how many they are; where in one its place and its length stand.
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
    """CONTENT with the flag by which its libraries are looked for in no built-in folder; None where it has no room for that."""
    changed = bytearray(content)
    ends = [offset for offset, tag, _value in dynamic.entries if tag == 0]
    for offset, tag, value in dynamic.entries:
        if tag == _FLAGS_1 and (not ends or offset < ends[0]):
            struct.pack_into(dynamic.entry_format, changed, offset, tag, value | _NODEFLIB)
            return bytes(changed)
    # Linkers leave some empty entries at the end. One of them has to stay: it ends the list.
    step = struct.calcsize(dynamic.entry_format)
    if len(ends) < 2 or ends[1] != ends[0] + step:
        return None
    struct.pack_into(dynamic.entry_format, changed, ends[0], _FLAGS_1, _NODEFLIB)
    return bytes(changed)


def _seal_elf(state: _State, place: str, content: bytes) -> bytes:
    """CONTENT, the ELF file at PLACE, sealed as far as it can be; STATE gets what is missing to that."""
    dynamic = read_dynamic(content)
    if dynamic is None:
        return content
    is_static = not dynamic.interpreter and (not dynamic.entries or bool((dynamic.find(_FLAGS_1) or 0) & _PIE))
    _note_interpreter(state, place, dynamic.interpreter)
    if not is_static and _LOADER.match(posixpath.basename(place)):
        content = _seal_loader(state, place, content)  # which bears no flag: it takes itself for broken then
    elif not is_static:
        flagged = forbid_default_folders(content, dynamic)
        content = _patch_flag(state, place) if flagged is None else flagged
    content, found = replace_texts(content, state.prefix, _TEXTS, state.links)
    (_check_static if is_static else _check_texts)(state, place, content, found)
    content = _seal_openssl(state, content)
    return _seal_by_name(state, place, content)


def _note_interpreter(state: _State, place: str, interpreter: str) -> None:
    if interpreter and not interpreter.startswith(state.prefix + "/"):
        state.complain(place, f"its loader {interpreter} is the container's")
    elif "ld-musl" in interpreter:
        state.musl.add(interpreter)
    elif interpreter and not _LOADER.match(posixpath.basename(interpreter)):
        state.complain(place, f"its loader {interpreter} is of a C library that nobody has looked at")


def _check_texts(state: _State, place: str, _content: bytes, found: set[str]) -> None:
    """Complain of what is expected in the program or library at PLACE and was not FOUND."""
    for pattern, texts in _EXPECTED:
        if pattern.fullmatch(posixpath.basename(place)):
            for text in texts:
                if text not in found:
                    state.complain(place, f"it does not hold the path {text} as expected")


def _check_static(state: _State, place: str, content: bytes, found: set[str]) -> None:
    """Complain of a static program that has glibc's way to look up users in it, and would load a library for it."""
    if "/etc/nsswitch.conf" in found:
        # Since 2.34 the one service that is left to it is built in, and holds this path.
        if b"\0/etc/ethers\0" not in content:
            state.complain(place, "it is static and would load the service for users' names from the container")
    elif b"libnss_" in content:
        state.complain(place, "it is static and does not hold the path /etc/nsswitch.conf as expected")


def _seal_by_name(state: _State, place: str, content: bytes) -> bytes:
    """CONTENT with what only the program or library at PLACE has."""
    name = posixpath.basename(place)
    if name == "less":
        if not _AT_HOME.search(content):
            state.complain(place, "it does not hold the name of the variable by which it finds settings at home")
        return _AT_HOME.sub(b"\0OME", content)
    if name == "gdb":
        return _empty_string(content, b"iconv")  # a program that it would start to ask for names of character sets
    if name.startswith("libwrap.so."):
        return _empty_string(content, b"/bin/sh")  # for commands in /etc/hosts.allow
    if name == "tar":
        return look_up_shell(content)
    return _seal_python(state, place, content)


_SHELL = b"\0/bin/sh\0"
_LOOKED_UP = {"execv": "execvp", "execl": "execlp"}


def look_up_shell(content: bytes) -> bytes:
    """CONTENT, a program that starts /bin/sh, which is the container's, made to start the `sh` that it finds by PATH.

    tar has each filter started by it. There is no room for a longer path. So the name of the shell becomes a bare one, and each call by a
    path one that looks bare names up, which differ in nothing else. A program that has no such call already stays as it is.
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


def _patch_flag(state: _State, place: str) -> bytes:
    """The content of the file at PLACE after patchelf has made room for the flag in it."""
    path = os.path.join(state.tree, place)
    done = subprocess.run(
        ["patchelf", "--no-default-lib", path], capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode != 0:
        state.complain(place, f"patchelf cannot take the built-in folders from it: {done.stderr.strip()}")
    with open(path, "rb") as file:
        return file.read()


def _seal_loader(state: _State, place: str, content: bytes) -> bytes:
    """glibc's loader without its list of libraries for all programs, and without its cache."""
    for text in (_PRELOAD, _CACHE):
        if content.count(b"\0" + text + b"\0") != 1:
            state.complain(place, f"it does not hold the path {text.decode()} once as expected")
        content = content.replace(b"\0" + text + b"\0", b"\0" * (len(text) + 2))
    return content


def replace_texts(
    content: bytes, prefix: str, texts: dict[str, str | Link], links: dict[str, Link]
) -> tuple[bytes, set[str]]:
    """CONTENT with each whole string that is one of TEXTS, or fits a pattern, changed as these say, and the strings that were found.

    LINKS gets those that CONTENT needs then. No string becomes longer.
    """
    found = set()
    pieces, end = [], 0
    for match in _STRING.finditer(content):
        text = match[1].decode("ascii")
        change = texts.get(text)
        if change is None and text[0] == "/":
            change = next((two for one, two in _PATTERNS if one.fullmatch(text)), None)
        if change is None:
            continue
        found.add(text)
        pieces += [content[end : match.start(1)], change_text(match[1], change, prefix, links)]
        end = match.end()
    return b"".join([*pieces, content[end:]]) if pieces else content, found


def change_text(text: bytes, change: str | Link, prefix: str, links: dict[str, Link]) -> bytes:
    """What stands in the place of TEXT, with as many bytes."""
    if change == EMPTY:
        return b"\0" + text[1:]
    if not isinstance(change, Link):
        return bytes(len(text))
    new = f"{prefix}/{change.name}".encode()
    if len(new) <= len(text):
        links[change.name] = change
    else:
        new = _NOWHERE.encode() if len(text) >= len(_NOWHERE) else b""
    return new + bytes(len(text) - len(new))


def _seal_openssl(state: _State, content: bytes) -> bytes:
    """OpenSSL led to modules of the image, and to settings nowhere. It names its folders itself."""
    if b"OPENSSLDIR: " not in content:
        return content
    texts: dict[str, str | Link] = {}
    for match in _OPENSSL.finditer(content):
        kind, folder = match[1].decode(), match[2].decode("utf-8", "replace")
        texts[folder] = _OPENSSL_LINKS.get(kind, _NOTHING)
        if kind == "OPENSSLDIR":
            texts[f"{folder}/cert.pem"] = _CERTIFICATES
            texts.update(
                {f"{folder}/{name}": _NOTHING for name in ("certs", "private", "ct_log_list.cnf", "openssl.cnf")}
            )
    return replace_texts(content, state.prefix, texts, state.links)[0]


def _seal_python(state: _State, place: str, content: bytes) -> bytes:
    """Python's program or library CONTENT at PLACE, which takes no modules from a user's home."""
    version = _PYTHON.fullmatch(posixpath.basename(place))
    if version is None:
        return content
    content, count = _USER_BASE.subn(b"\0local", content)
    # The program itself has an option for that; what has the library may be any.
    if not count and int(version[2]) >= 11 and version[1] == "libpython" and len(content) > _LARGE:
        state.complain(place, "it does not hold the place of modules at home as expected")
    return content


def _empty_string(content: bytes, text: bytes) -> bytes:
    """CONTENT, an ELF file, with each whole string TEXT among its constants emptied; the linker's names stay."""
    section = ELFFile(io.BytesIO(content)).get_section_by_name(".rodata")
    if section is None:
        return content
    start, end = section.header.sh_offset, section.header.sh_offset + section.header.sh_size
    changed = content[start:end].replace(b"\0" + text + b"\0", b"\0\0" + text[1:] + b"\0")
    return content[:start] + changed + content[end:]


def _write_links(state: _State) -> None:
    """Make the files and links in the image's root that strings lead to now."""
    for name, link in sorted(state.links.items()):
        path = os.path.join(state.tree, name)
        if name == "nss":
            _write(path, _NSS)
        elif name == "":
            for locale in sorted(glob.glob("lib/locale/*", root_dir=state.tree)):
                _link(state, posixpath.basename(locale), locale)
        for place in link.places:
            found = sorted(glob.glob(place, root_dir=state.tree))
            if found:
                _link(state, name, found[0])
                break


def _link(state: _State, name: str, place: str) -> None:
    path = os.path.join(state.tree, name)
    if os.path.lexists(path):
        state.complain(name, f"it stands where a link to {place} should")
    else:
        os.symlink(place, path)


def _write(path: str, text: str, mode: int = 0o644) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.lexists(path):
        os.unlink(path)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, mode)


def _write_musl_paths(state: _State) -> None:
    """Tell musl's loader its folders; it looks for the file two folders above itself."""
    for interpreter in sorted(state.musl):
        top = posixpath.dirname(posixpath.dirname(interpreter[len(state.prefix) + 1 :]))
        arch = re.sub(r"^ld-musl-|\.so.*$", "", posixpath.basename(interpreter))
        folders = sorted(
            {posixpath.dirname(place) for place in glob.glob("**/*.so*", root_dir=state.tree, recursive=True)}
        )
        usable = [one for one in folders if re.fullmatch(r"(local/)?lib(64)?(/[^/]*-linux-[^/]*)?", one)]
        text = "".join(f"{state.prefix}/{one}\n" for one in usable or ["lib"])
        _write(os.path.join(state.tree, top, f"etc/ld-musl-{arch}.path"), text)


# Scripts

# A shell that Python's library starts by the C library is the container's, but by subprocess the image's.
_SYSTEM = (r"\bos\.system\(", "__import__('subprocess').call(shell=True, args=")
_CURRENT = "look for modules in the current folder"
_BESIDE = "look for modules beside a script"
_SETTINGS = "read settings at home"
_PROGRAMS = "start programs of the container"
# Files by pattern, what stands in them, what is to stand there ({prefix}), and what Python may do where that is not found: then the image
# is not sealed.
_EDITS: tuple[tuple[str, str, str, str], ...] = (
    ("{lib}/site.py", r"^ENABLE_USER_SITE = None$", "ENABLE_USER_SITE = False", "look for modules at home"),
    # What looks for modules in the current folder, or beside a script, whatever Python was told.
    ("{lib}/pydoc.py", r"\brevised_path\.insert\(0, os\.getcwd\(\)\)", "pass", _CURRENT),
    ("{lib}/timeit.py", r"\bsys\.path\.insert\(0, os\.curdir\)", "pass", _CURRENT),
    ("{lib}/idlelib/pyshell.py", r"\bsys\.path\.insert\(0, dir\)", "pass", _CURRENT),
    ("{lib}/profile.py", r"\bsys\.path\.insert\(0, os\.path\.dirname\(progname\)\)", "pass", _BESIDE),
    ("{lib}/cProfile.py", r"\bsys\.path\.insert\(0, os\.path\.dirname\(progname\)\)", "pass", _BESIDE),
    ("{lib}/trace.py", r"\bsys\.path\[0\] = os\.path\.dirname\(opts\.progname\)", "pass", _BESIDE),
    ("{lib}/pdb.py", r"\bsys\.path\[0\] = os\.path\.dirname\((mainpyfile|self(\._target)?)\)", "pass", _BESIDE),
    ("{lib}/pdb.py", r"\breadrc=True\b", "readrc=False", _SETTINGS),
    ("{lib}/tkinter/__init__.py", r"\bself\.readprofile\(baseName, className\)", "pass", _SETTINGS),
    ("{lib}/subprocess.py", r"(?<=[ (])'/bin/sh'", "'{prefix}/bin/sh'", _PROGRAMS),
    ("{lib}/ctypes/util.py", r"'/sbin/ldconfig'", "'{prefix}/sbin/ldconfig'", _PROGRAMS),
    ("{lib}/uuid.py", r"\bpath_dirs\.extend\(\['/sbin', '/usr/sbin'\]\)", "pass", _PROGRAMS),
    # Not in each version.
    ("{lib}/pydoc.py", *_SYSTEM, ""),
    ("{lib}/_pyrepl/pager.py", *_SYSTEM, ""),
    ("{lib}/pipes.py", *_SYSTEM, ""),
    ("{lib}/mailcap.py", *_SYSTEM, ""),
)

# glibc's loader runs code of auditors that a file names (DT_AUDIT, DT_DEPAUDIT) also where it lists what the file needs. It takes so many
# lists of auditors (DL_NNS), and ends when there is one more; a list may name none.
_NO_AUDITORS = 16 * ("--audit", ":")
_AUDITORS_END = b"Too many audit modules requested"
# A program at home that lesspipe starts.
_FILTER = r"(~|\$\w+|\$\{\w+\})/\.?lessfilter\b"
_MAX_LINE = 4096
# Where a script of a shell looks before PATH or after it, and how it calls a program by its place; where a Python program has its own
# modules, as Debian's py3compile: /usr is folded into the image's root.
_FOLDERS_BESIDE_PATH = r"(?<=\bPATH=)\"?(?:(?:/[\w/]+:)+\$PATH|\$PATH(?::/[\w/]+)+)\"?(?=[;\s]|$)"
_PROGRAM_BY_PLACE = r"(?<![\w.}/$-])/(?:usr/)?s?bin/([\w.+-]+)"
_ADDED_FOLDER = r"(?<=^sys\.path\.insert\([01], ['\"])/usr/"


def _gen_own_programs(tree: str) -> Iterator[str]:
    """Places of all files in the folders of programs, without links."""
    for folder in _PROGRAM_FOLDERS:
        path = os.path.join(tree, folder)
        for name in sorted(os.listdir(path)) if os.path.isdir(path) else ():
            if os.path.isfile(os.path.join(path, name)) and not os.path.islink(os.path.join(path, name)):
                yield f"{folder}/{name}"


def _list_python_libraries(tree: str) -> list[str]:
    """Places of the folders that hold the library of a Python."""
    found = (glob.glob(f"{top}lib*/python3.*/", root_dir=tree) for top in ("", "local/"))
    return sorted(
        place.rstrip("/")
        for places in found
        for place in places
        if os.path.isfile(os.path.join(tree, place, "site.py"))
    )


# Python looks for its library in the folders above its program, up to the root, and takes the first one that has an archive of it (since
# 3.11, before all else) or os.py; in the same way it looks for modules in machine code.
_EMPTY_ARCHIVE = b"PK\5\6" + bytes(18)


def _end_searches(state: _State) -> None:
    """See to it that Python's searches upwards end in the image; complain of a Python whose library is not there."""
    libraries = _list_python_libraries(state.tree)
    for library in libraries:
        archive = os.path.join(state.tree, re.sub(r"/python3\.(\d+)$", r"/python3\1.zip", library))
        if not os.path.lexists(archive):
            with open(archive, "wb") as file:
                file.write(_EMPTY_ARCHIVE)
        os.makedirs(os.path.join(state.tree, library, "lib-dynload"), exist_ok=True)
    for place, _status in _gen_programs(state.tree):
        name = posixpath.basename(place)
        version = _PYTHON.fullmatch(name)
        if version is None or name == "libpython3.so":
            continue
        # As the folder above is one of what it looks through, or for its library that of whoever loads it.
        top = "local/" if place.startswith("local/") else ""
        if not any(re.fullmatch(rf"({top})?lib[^/]*/python3\.{version[2]}", one) for one in libraries):
            state.complain(place, "it looks for the rest of its library in the container's folders: the image has none")


def _edit_scripts(state: _State) -> None:
    """Edit the few lines of Python's library, of ldd and of other scripts that lead into the container."""
    for library in _list_python_libraries(state.tree):
        for pattern, old, new, danger in _EDITS:
            place = pattern.format(lib=library)
            path = os.path.join(state.tree, place)
            count = _edit(path, old, new.format(prefix=state.prefix))
            if danger and not count and os.path.isfile(path):
                state.complain(place, f"it does not hold the line that lets Python {danger}")
    _edit_ldd(state)
    for name in ("lesspipe", "lesspipe.sh"):
        _edit(os.path.join(state.tree, "bin", name), _FILTER, f"{_NOWHERE}/lessfilter")
    for place in _gen_own_programs(state.tree):
        with open(os.path.join(state.tree, place), "rb") as file:
            interpreter = re.match(rb"#![^\n]*/(python3|\w*sh)\b", file.readline(_MAX_LINE))
        if interpreter and interpreter[1] == b"python3":
            _edit(os.path.join(state.tree, place), _ADDED_FOLDER, f"{state.prefix}/")
        elif interpreter:
            _edit(os.path.join(state.tree, place), _FOLDERS_BESIDE_PATH, "$PATH")
            _edit(os.path.join(state.tree, place), _PROGRAM_BY_PLACE, lambda found: _find_program(state, found))


def _find_program(state: _State, found: re.Match[str]) -> str:
    """The image's own program of the name that is FOUND by its usual place; that place where the image has none."""
    places = (f"{folder}/{found[1]}" for folder in _PROGRAM_FOLDERS)
    own = next((one for one in places if os.path.lexists(os.path.join(state.tree, one))), None)
    return found[0] if own is None else f"{state.prefix}/{own}"


def _edit_ldd(state: _State) -> None:
    """Let ldd ask the image's loaders, and these load no auditors that a program names."""
    path = os.path.join(state.tree, "bin/ldd")
    loaders = sorted(glob.glob("lib*/ld-linux*.so.*", root_dir=state.tree))
    places = " ".join(f"{state.prefix}/{one}" for one in loaders)
    if not _edit(path, r"^RTLDLIST=.*$", f'RTLDLIST="{places}"'):
        _edit(path, r"(?<![\w/])/lib/(?=ld-musl-)", f"{state.prefix}/lib/")  # musl's knows no auditors
        return
    if not _edit(path, r'(?<=^      try_trace "\$RTLD" )(?="\$file")', f"{' '.join(_NO_AUDITORS)} "):
        state.complain("bin/ldd", "it does not hold the line by which it starts the loader as expected")
    for one in (os.path.join(state.tree, one) for one in loaders):
        if os.path.isfile(one) and not _holds(one, _AUDITORS_END):
            state.complain("bin/ldd", "it runs code that a file names: only glibc 2.32 and later can be told not to")


def _holds(path: str, text: bytes) -> bool:
    with open(path, "rb") as file:
        return text in file.read()


def _edit(path: str, old: str, new: str | Callable[[re.Match[str]], str]) -> int:
    """Replace what fits OLD in the file PATH by NEW, or by what NEW makes of it; how often."""
    if not os.path.isfile(path) or os.path.islink(path):
        return 0
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        text = file.read()
    changed, count = re.subn(old, new if callable(new) else lambda _match: new, text, flags=re.MULTILINE)
    if count:
        with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.write(changed)
    return count


# Launchers


@dataclass(frozen=True)
class _Launch:
    """Which programs get ARGUMENTS ({prefix}), and whether they are called by their place in the image whatever they are called.

    A program that does not hold NEEDED is too old for them.
    """

    names: re.Pattern[str]
    arguments: tuple[str, ...]
    is_named: bool = False
    needed: bytes = b""


_LAUNCHES = (
    # Neither the current folder nor what is at home; and by its name Python finds its library.
    _Launch(re.compile(r"python3(\.\d+)?"), ("-P", "-s"), is_named=True),
    _Launch(
        re.compile(r"gdb"),
        (
            "-nx",
            *("-data-directory", "{prefix}/share/gdb"),
            *("-iex", "set auto-load safe-path {prefix}/share/gdb/auto-load"),
            *("-iex", "set auto-load scripts-directory {prefix}/share/gdb/auto-load"),
            *("-iex", "set libthread-db-search-path $sdir"),
            # To read files of a process in another mount namespace it would enter that, which takes CAP_SYS_ADMIN. They are here, too.
            *("-iex", "set sysroot /"),
        ),
        is_named=True,
    ),
    _Launch(re.compile(r"curl"), ("-q",)),
    _Launch(re.compile(r"capsh"), ("--shell={prefix}/bin/bash",), needed=b"--shell="),
    _Launch(
        re.compile(r"vim(\.(tiny|basic|nox|gtk3|motif))?"),
        ("-u", "{prefix}/etc/crashcart.vimrc", "--noplugin", "-i", "NONE"),
    ),
)


def _launch_programs(state: _State) -> None:
    for place in list(_gen_own_programs(state.tree)):
        launch = next((one for one in _LAUNCHES if one.names.fullmatch(posixpath.basename(place))), None)
        if launch is not None:
            _launch(state, place, launch)
    _launch_loader(state)


def _launch_loader(state: _State) -> None:
    """Put a launcher into the place of the link by which people call glibc's loader; where there can be none, the link goes.

    The kernel and ldd call the loader by its place.
    """
    path = os.path.join(state.tree, "bin/ld.so")
    if not (os.path.islink(path) and os.path.isfile(path)):
        return
    aim = os.path.relpath(os.path.realpath(path), os.path.realpath(state.tree))
    program = make_launcher(_read_machine(path), f"{state.prefix}/{aim}", None, _NO_AUDITORS)
    os.unlink(path)
    if program is not None:
        _write_program(path, program)


def _launch(state: _State, place: str, launch: _Launch) -> None:
    """Put a launcher into the place of the program at PLACE, where that is one for a machine that launchers are known for."""
    path = os.path.join(state.tree, place)
    with open(path, "rb") as file:
        if file.read(4) != b"\x7fELF":
            return
    version = re.fullmatch(r"python3\.(\d+)", posixpath.basename(place))
    if version and int(version[1]) < 11:
        state.complain(place, "it takes modules from the current folder: only Python 3.11 and later can be told not to")
        return
    aim = f"{_LAUNCHED}/{place.removeprefix('bin/')}"
    program = _make_launcher(state, place, aim, launch)
    if program is None:
        return
    os.makedirs(os.path.dirname(os.path.join(state.tree, aim)), exist_ok=True)
    os.rename(path, os.path.join(state.tree, aim))
    _write_program(path, program)
    if "crashcart.vimrc" in " ".join(launch.arguments):
        _write(os.path.join(state.tree, "etc/crashcart.vimrc"), _VIMRC.format(runtime=_find_runtime(state)))


def _make_launcher(state: _State, place: str, aim: str, launch: _Launch) -> bytes | None:
    """A launcher for the program that is at PLACE and will be at AIM; None where there can be none, which STATE gets."""
    path = os.path.join(state.tree, place)
    if not _holds(path, launch.needed):
        state.complain(place, f"it does not hold the text {launch.needed.decode()!r} as expected")
        return None
    arguments = [one.format(prefix=state.prefix) for one in launch.arguments]
    program = make_launcher(
        _read_machine(path),
        f"{state.prefix}/{aim}",
        f"{state.prefix}/{place}" if launch.is_named else None,
        arguments,
    )
    if program is None:
        state.complain(place, f"it needs {' '.join(arguments)}, and there is no launcher for its machine")
    return program


def _read_machine(path: str) -> int:
    """The machine (e_machine) of the little-endian ELF file PATH."""
    with open(path, "rb") as file:
        return int.from_bytes(file.read(20)[18:], "little")


def _write_program(path: str, content: bytes) -> None:
    with open(path, "xb") as file:
        file.write(content)
    os.chmod(path, 0o755)


def _find_runtime(state: _State) -> str:
    """Where vim's files are in the image; where they would be, if there are none."""
    found = sorted(glob.glob("share/vim/vim[0-9]*", root_dir=state.tree))
    return f"{state.prefix}/{found[0] if found else 'share/vim'}"


def _find_open_programs(state: _State) -> None:
    """Name the programs that are known to load code of the container, and that nothing is done about."""
    for place in _gen_own_programs(state.tree):
        for pattern, reason in _OPEN.items():
            if re.fullmatch(pattern, posixpath.basename(place)):
                state.complain(place, reason)


def _find_embedded_pythons(state: _State) -> None:
    """Name the programs with Python in them that are not known to tell it where its library is."""
    for place, _status in _gen_programs(state.tree):
        name = posixpath.basename(place)
        if name == "gdb" or _PYTHON.fullmatch(name) or "/python3" in place:
            continue
        with open(os.path.join(state.tree, place), "rb") as file:
            if re.search(rb"\0libpython3\.[^\0/]*\.so", file.read()):
                state.complain(place, "it may look for Python's library where PATH leads, which is into the container")
