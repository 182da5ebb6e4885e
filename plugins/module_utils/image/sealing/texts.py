# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Change strings that are compiled into programs: paths and names of settings lead to the image or to nowhere."""

from __future__ import annotations

import glob
import os
import posixpath
import re

from ansible_collections.crashcart.fleet.plugins.module_utils.image.sealing.state import (
    NOWHERE,
    Link,
    State,
    write_text,
)

# The changes of a compiled-in path. EMPTY: its first byte becomes a NUL. ERASED: all its bytes do, since code may use its end as a path, too.
# A Link: the path leads to the first of the link's places that is there, by a link in the image's root, or to nowhere.
EMPTY = "empty"
ERASED = "erased"
NOTHING = Link("-")
CERTIFICATES = Link(
    "ca.pem", ("etc/ssl/certs/ca-certificates.crt", "etc/ssl/cert.pem", "etc/pki/tls/certs/ca-bundle.crt")
)
_MAGIC = Link("magic.mgc", ("lib/file/magic.mgc", "share/misc/magic.mgc"))
TEXTS: dict[str, str | Link] = {
    # glibc: the settings of its name services, and its locales.
    "/etc/nsswitch.conf": Link("nss"),
    "/usr/lib/locale": Link(""),  # the root itself, in which each locale gets a link
    "/usr/lib/locale/locale-archive": EMPTY,
    "/usr/lib/getconf": NOTHING,
    # Translations hold format strings, and images have no translations.
    "/usr/share/locale": NOTHING,
    "/usr/share/locale/%L/%N:/usr/share/locale/%L/LC_MESSAGES/%N:/usr/share/locale/%l/%N:/usr/share/locale/%l/LC_MESSAGES/%N:": EMPTY,
    # Shells, and their line editors, whose settings can bind keys to text.
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
    # file: it trusts a compiled table.
    **dict.fromkeys(("/etc/magic:/usr/share/misc/magic", "/usr/share/misc/magic"), _MAGIC),
    **dict.fromkeys(("%s/.magic", "%s/.magic.mgc", "/etc/magic"), EMPTY),
    # TLS: certificate authorities and modules. seal_openssl finds OpenSSL's folders by OpenSSL's own strings.
    "/etc/ssl/certs/ca-certificates.crt": CERTIFICATES,
    "/etc/ssl/certs": NOTHING,
    **dict.fromkeys(("/etc/gnutls/config", "/etc/gnutls/pkcs11.conf"), NOTHING),
    **dict.fromkeys(("/etc/pkcs11/pkcs11.conf", "/etc/pkcs11/modules", "/usr/share/p11-kit/modules"), NOTHING),
    # Kerberos: its settings name modules, too.
    **dict.fromkeys(("/etc/krb5.conf", "/usr/etc/krb5.conf", "/etc/gss/mech", "/etc/gss/mech.d/*.conf"), NOTHING),
    "/etc/krb5.conf:/usr/etc/krb5.conf": NOTHING,
    # PAM loads modules from the container's folders. The image has no modules, so su and login refuse.
    **dict.fromkeys(("/etc/pam.conf", "/etc/pam.d", "/etc/pam.d/%s", "/usr/lib/pam.d", "/usr/lib/pam.d/%s"), NOTHING),
    "/lib/security": NOTHING,
    # A library would start these programs.
    **dict.fromkeys(("/usr/bin/ntlm_auth", "/usr/bin/dbus-launch"), EMPTY),
    **dict.fromkeys(
        (f"{folder}/{program}" for folder in ("/usr/local/sbin", "/usr/sbin") for program in ("dmsetup", "lvdisplay")),
        ERASED,
    ),
    "/usr/lib/sysstat/sadc": Link("sadc", ("lib/sysstat/sadc",)),
    "/usr/libexec/coreutils": Link("stdbuf", ("libexec/coreutils",)),
    # Modules of programs.
    **dict.fromkeys(("/usr/lib/bfd-plugins", "/usr/bin/../lib/bfd-plugins"), NOTHING),
    "/lib/xtables": NOTHING,
}
# Changes of paths that hold the name of an architecture or another part that depends on the release.
_PATTERNS: tuple[tuple[re.Pattern[str], str | Link], ...] = (
    (re.compile(r"/usr/lib[^:%]*/gconv"), Link("gconv", ("lib/*/gconv", "lib/gconv", "lib64/gconv"))),
    (re.compile(r"/usr/lib[^:%]*/gconv/gconv-modules\.cache"), EMPTY),
    (re.compile(r"/usr/lib/[^/:%]+/xtables"), Link("xtables", ("lib/*/xtables", "lib/xtables"))),
    (re.compile(r"/usr/lib(/[^/:%]+)?/tc/?"), Link("tc", ("lib/*/tc", "lib/tc"))),
    (re.compile(r"/usr/lib(/[^/:%]+)?/gawk"), Link("gawk", ("lib/*/gawk", "lib/gawk"))),
    (re.compile(r"/usr/lib(/[^/:%]+)?/ip"), NOTHING),
    (re.compile(r"/usr/lib/[^/:%]+/coreutils"), NOTHING),
    (re.compile(r"/(usr/)?lib(/[^/:%]+)?/security/?"), NOTHING),
    (re.compile(r"/usr/lib(/[^/:%]+)?/(krb5/plugins(/[a-z0-9]+)?|gss/?|sasl2|pkcs11|gio/modules)"), NOTHING),
    (re.compile(r"/etc/sasl2:.*|/usr/lib.*/sasl2:.*"), NOTHING),
)
# A whole string in a program that may be one of those above.
_STRING = re.compile(rb"\0([/~$%.][^\0\x80-\xff]{3,130})(?=\0)")
_OPENSSL = re.compile(rb'(OPENSSLDIR|ENGINESDIR|MODULESDIR): "(/[^"\0]{3,100})"')
_OPENSSL_LINKS = {
    "ENGINESDIR": Link("engines", ("lib/*/engines-3", "lib/engines-3", "lib/*/engines-1.1")),
    "MODULESDIR": Link("ossl-modules", ("lib/*/ossl-modules", "lib/ossl-modules")),
}
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


def replace_texts(
    content: bytes, prefix: str, texts: dict[str, str | Link], links: dict[str, Link]
) -> tuple[bytes, set[str]]:
    """Return CONTENT with each whole string changed that TEXTS or a pattern names, and the set of these strings.

    LINKS gets the links that the new CONTENT needs. No string becomes longer.
    """
    found = set()
    pieces, end = [], 0
    for match in _STRING.finditer(content):
        text = match[1].decode("ascii")
        change = texts.get(text)
        if change is None and text[0] == "/":
            change = next((change for pattern, change in _PATTERNS if pattern.fullmatch(text)), None)
        if change is None:
            continue
        found.add(text)
        pieces += [content[end : match.start(1)], change_text(match[1], change, prefix, links)]
        end = match.end()
    return b"".join([*pieces, content[end:]]) if pieces else content, found


def change_text(text: bytes, change: str | Link, prefix: str, links: dict[str, Link]) -> bytes:
    """Return the replacement of TEXT by CHANGE, with as many bytes as TEXT. LINKS gets the link that it leads to, if any."""
    if change == EMPTY:
        return b"\0" + text[1:]
    if not isinstance(change, Link):
        return bytes(len(text))
    new = f"{prefix}/{change.name}".encode()
    if len(new) <= len(text):
        links[change.name] = change
    else:
        new = NOWHERE.encode() if len(text) >= len(NOWHERE) else b""
    return new + bytes(len(text) - len(new))


def seal_openssl(state: State, content: bytes) -> bytes:
    """Return CONTENT with OpenSSL's folders of modules led to the image and its settings led to nowhere.

    OpenSSL itself holds strings that name its folders.
    """
    if b"OPENSSLDIR: " not in content:
        return content
    texts: dict[str, str | Link] = {}
    for match in _OPENSSL.finditer(content):
        kind, folder = match[1].decode(), match[2].decode("utf-8", "replace")
        texts[folder] = _OPENSSL_LINKS.get(kind, NOTHING)
        if kind == "OPENSSLDIR":
            texts[f"{folder}/cert.pem"] = CERTIFICATES
            texts.update(
                {f"{folder}/{name}": NOTHING for name in ("certs", "private", "ct_log_list.cnf", "openssl.cnf")}
            )
    return replace_texts(content, state.prefix, texts, state.links)[0]


def write_links(state: State) -> None:
    """Make the files and links in the image's root that changed strings lead to. Complain to STATE where a name is taken."""
    for name, link in sorted(state.links.items()):
        path = os.path.join(state.tree, name)
        if name == "nss":
            write_text(path, _NSS)
        elif name == "":
            for locale in sorted(glob.glob("lib/locale/*", root_dir=state.tree)):
                _link(state, posixpath.basename(locale), locale)
        for place in link.places:
            found = sorted(glob.glob(place, root_dir=state.tree))
            if found:
                _link(state, name, found[0])
                break


def _link(state: State, name: str, place: str) -> None:
    path = os.path.join(state.tree, name)
    if os.path.lexists(path):
        state.complain(name, f"it stands where a link to {place} should")
    else:
        os.symlink(place, path)
