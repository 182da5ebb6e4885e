# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian's names of architectures, which images and packages carry."""

from __future__ import annotations

import platform

_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}


def name_architecture(machine: str) -> str:
    """Return Debian's name of the architecture that `uname -m` calls MACHINE; MACHINE itself where the two agree."""
    return _NAMES.get(machine, machine)


def find_architecture() -> str:
    """Return Debian's name of this machine's architecture."""
    return name_architecture(platform.machine())
