# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which Debian packages make a tool image."""

from __future__ import annotations

from ansible_collections.crashcart.fleet.plugins.module_utils.image.errors import BuildError

# What any set with a shell has: tools that others call, the terminal's descriptions, the C library's own tools and locale.
_SHELL = ("bash", "coreutils", "findutils", "grep", "less", "libc-bin", "ncurses-base", "sed")
# The whole standard library. Later releases have no packages of their own for its parts.
_PYTHON = ("ca-certificates", "python3", "python3-distutils", "python3-lib2to3")
# What Ansible's own modules call in a container: `unarchive`, `hostname`, `getent` (of libc-bin), `service_facts` and the like.
_CALLED = ("bzip2", "debianutils", "gzip", "hostname", "tar", "unzip", "xz-utils")
# Debian's tcpdump gives up root for a user that no container has; see relocate.wrap_privilege_droppers.
_TCPDUMP = ("libnss-wrapper", "tcpdump")

TOOL_SETS: dict[str, tuple[str, ...]] = {
    "minimal": ("busybox-static",),
    "default": (
        *_SHELL,
        *_PYTHON,
        *_CALLED,
        *_TCPDUMP,
        "bind9-dnsutils",
        "curl",
        "file",
        "gdb",
        "iproute2",
        "iputils-ping",
        "lsof",
        "procps",
        "socat",
        "strace",
        "util-linux",
        "vim-tiny",
    ),
    "network": (
        *_SHELL,
        *_TCPDUMP,
        "bind9-dnsutils",
        "ca-certificates",
        "conntrack",
        "curl",
        "ethtool",
        "iperf3",
        "iproute2",
        "iptables",
        "iputils-ping",
        "iputils-tracepath",
        "mtr-tiny",
        "net-tools",
        "netcat-openbsd",
        "nftables",
        "ngrep",
        "openssl",
        "procps",
        "socat",
        "traceroute",
    ),
    "debug": (
        *_SHELL,
        *_PYTHON,
        "binutils",
        "bpftrace",
        "elfutils",
        "file",
        "gdb",
        "lsof",
        "ltrace",
        "procps",
        "psmisc",
        "strace",
        "sysstat",
        "util-linux",
        "vim-tiny",
    ),
    "python": (*_SHELL, *_PYTHON, *_CALLED, "dpkg", "procps", "python3-apt", "util-linux"),
}
# Packages of the sets that not every release has, and that its others make up for.
OPTIONAL = frozenset({"python3-distutils", "python3-lib2to3"})

# What maintainer scripts would have linked, were they run: link → programs, the first that is there.
ALTERNATIVES = {
    "awk": ("mawk", "gawk"),
    "editor": ("vim.basic", "vim.tiny", "nano"),
    "emacs": ("emacs-nox", "emacs-gtk"),
    "ex": ("vim.basic", "vim.tiny"),
    "ip6tables": ("ip6tables-nft", "ip6tables-legacy"),
    "iptables": ("iptables-nft", "iptables-legacy"),
    "lua": ("lua5.4", "lua5.3", "lua5.1"),
    "nc": ("nc.openbsd", "nc.traditional"),
    "pager": ("less",),
    "sar": ("sar.sysstat",),
    "sh": ("bash", "dash", "busybox"),
    "traceroute": ("traceroute.db",),
    "view": ("vim.basic", "vim.tiny"),
    "vi": ("vim.basic", "vim.tiny"),
    "vim": ("vim.basic", "vim.tiny"),
    "which": ("which.gnu", "which.debianutils"),
}


def list_packages(names: list[str]) -> list[str]:
    """The packages of the sets called NAMES."""
    for name in names:
        if name not in TOOL_SETS:
            raise BuildError(f"there is no tool set {name!r}, but {', '.join(TOOL_SETS)}")
    return sorted({package for name in names for package in TOOL_SETS[name]})
