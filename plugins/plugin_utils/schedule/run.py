# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that a schedule's timer starts: run.py [--timer] [--catch-up] PLAN. It finds the collection by its own path."""

import importlib
import sys
import types
from pathlib import Path

# Only this collection is there, whatever another folder of Python's path holds under the same names.
PATH = []
for NAME in ("ansible_collections", "crashcart", "fleet"):
    PATH.append(NAME)
    MODULE = sys.modules[".".join(PATH)] = types.ModuleType(".".join(PATH))
    MODULE.__path__ = [str(Path(__file__).resolve().parents[3])] if NAME == "fleet" else []

if __name__ == "__main__":
    RUNNING = importlib.import_module("ansible_collections.crashcart.fleet.plugins.plugin_utils.schedule.running")
    sys.exit(RUNNING.main(sys.argv[1:]))
