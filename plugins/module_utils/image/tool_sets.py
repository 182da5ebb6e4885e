# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which Debian packages make a tool image."""

from __future__ import annotations

DEFAULT_PACKAGES = (
    "bash",
    "bind9-dnsutils",
    "ca-certificates",
    "coreutils",
    "curl",
    "file",
    "findutils",
    "gdb",
    "grep",
    "iproute2",
    "iputils-ping",
    "less",
    "libc-bin",
    "libnss-wrapper",
    "lsof",
    "ncurses-base",
    "procps",
    "python3",
    "python3-distutils",
    "python3-lib2to3",
    "sed",
    "socat",
    "strace",
    "tcpdump",
    "util-linux",
    "vim-tiny",
)

# What maintainer scripts would have linked, were they run: link → program, by Debian's alternatives.
ALTERNATIVES = {"awk": "mawk", "ex": "vim.tiny", "pager": "less", "sh": "bash", "vi": "vim.tiny", "vim": "vim.tiny"}
