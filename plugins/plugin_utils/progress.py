# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines that tell whoever waits what goes on; small things, which nobody waits for, are done in silence."""

from __future__ import annotations

from ansible.utils.display import Display

from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape
from ansible_collections.crashcart.fleet.plugins.module_utils.units import format_bytes

_MIN_BYTES = 8 << 20


def tell_transfer(text: str, size: int) -> None:
    """Say TEXT of a transfer of SIZE bytes that begins."""
    if size >= _MIN_BYTES:
        Display().display(escape(f"{text} ({format_bytes(size)})"))
