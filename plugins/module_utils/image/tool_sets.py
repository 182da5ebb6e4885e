# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Debian packages of each tool set, and the links that go with them."""

from __future__ import annotations

from ansible_collections.crashcart.fleet.plugins.module_utils.image.errors import BuildError

# Every set with a shell has these: tools that others call, descriptions of terminals, the C library's own tools and locale.
_SHELL = ("bash", "coreutils", "findutils", "grep", "less", "libc-bin", "ncurses-base", "sed")
# The whole standard library. Later releases have no separate packages for its parts.
_PYTHON = ("ca-certificates", "python3", "python3-distutils", "python3-lib2to3")
# Ansible's own modules (`unarchive`, `hostname`, `getent`, `service_facts`, …) call these in a container. getent is in libc-bin.
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
# A release may lack these packages: its other packages have the same modules then.
OPTIONAL = frozenset({"python3-distutils", "python3-lib2to3"})

# Links that maintainer scripts would make: link → programs, of which the first that is there counts.
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
    """Return the packages of the tool sets called NAMES, sorted. Raises BuildError for an unknown name."""
    for name in names:
        if name not in TOOL_SETS:
            raise BuildError(f"there is no tool set {name!r}: choose from {', '.join(TOOL_SETS)}")
    return sorted({package for name in names for package in TOOL_SETS[name]})
