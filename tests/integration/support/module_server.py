# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A program for emulated hosts, where to start Python and import Ansible takes seconds: one process that has done so runs many modules.

For each line of stdin, `[MODULE, ARGUMENTS]` in JSON, a line of stdout with the module's result.
"""

from __future__ import annotations

import json
import sys

from support import host


def main() -> None:
    """Run modules until stdin ends."""
    for line in sys.stdin:
        module, arguments = json.loads(line)
        try:
            result = host.call_module(module, **arguments)
        except host.ModuleFailed as error:
            result = error.result
        except AssertionError as error:
            result = {"failed": True, "msg": str(error)}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
