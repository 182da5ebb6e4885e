# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one error of image building."""

from __future__ import annotations

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape_lines


class BuildError(FleetError):
    """An image cannot be built; the text says why, often by what a program has said in several lines."""

    show = staticmethod(escape_lines)
