# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The error that image building raises."""

from __future__ import annotations

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape_lines


class BuildError(FleetError):
    """An image that cannot be built; the text says why, often with several lines of a program's output."""

    show = staticmethod(escape_lines)
