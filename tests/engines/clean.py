#!/usr/bin/env python
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""End what tests of engines that were killed have left running, and remove the cached archives of their hosts.

Usage: clean.py [--keep-archives]
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "fleet")]

import keeper
import place
import releases


def main() -> None:
    """Remove everything."""
    for folder in sorted(place.FOLDER.glob("*/")):
        keeper.clean(folder)
    if "--keep-archives" not in sys.argv:
        shutil.rmtree(releases.CACHE, ignore_errors=True)


if __name__ == "__main__":
    main()
