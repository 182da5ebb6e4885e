# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run many modules in one process, for emulated hosts, where the start of Python and the import of Ansible take seconds.

The program answers each line of stdin, `[MODULE, ARGUMENTS]` in JSON, by a line of stdout with the module's result.
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
