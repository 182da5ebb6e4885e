# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of a fetch, with their types. The doc fragment captures documents them."""

from __future__ import annotations

from typing import Any

# What the controller makes of captures.
FORMAT_ARGUMENTS: dict[str, dict[str, Any]] = {
    "format": {"type": "str", "choices": ["dat", "text"], "default": "dat"},
    "dat_version": {"type": "int", "choices": [6, 7], "default": 7},
}
# By these the action plugin of a fetch says what the controller has.
HOME_ARGUMENTS: dict[str, dict[str, Any]] = {
    "_parts": {"type": "dict", "default": {}},
    "_broken": {"type": "str", "default": ""},
    "_stamps": {"type": "list", "elements": "str", "default": []},
    "_methods": {"type": "list", "elements": "str", "default": []},
}
