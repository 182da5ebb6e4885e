# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show the user the progress of long steps. Short ones are silent."""

from __future__ import annotations

from ansible.utils.display import Display

from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape
from ansible_collections.crashcart.fleet.plugins.module_utils.units import format_bytes

_MIN_BYTES = 8 << 20


def tell_transfer(text: str, size: int) -> None:
    """Show TEXT about a transfer of SIZE bytes that begins, if it is 8 MiB or more."""
    if size >= _MIN_BYTES:
        Display().display(escape(f"{text} ({format_bytes(size)})"))
