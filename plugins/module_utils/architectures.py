# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Architectures by Debian's names, which images and packages bear."""

from __future__ import annotations

import platform

_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}


def name_architecture(machine: str) -> str:
    """Debian's name for what the kernel calls MACHINE (as uname -m prints it)."""
    return _NAMES.get(machine, machine)


def find_architecture() -> str:
    """This machine's architecture."""
    return name_architecture(platform.machine())
