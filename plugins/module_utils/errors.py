# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The error that users read (FleetError), and the function that runs a module and ends it."""

from __future__ import annotations

import os
import signal
from typing import Any, Callable, NoReturn, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.hidden import make_invocation
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape

# The capabilities that entering a container takes, with the kernel's numbers.
_NEEDED = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SYS_CHROOT": 18,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
}
_ALL_USERS = ["0", "0", "4294967295"]


class FleetError(Exception):
    """An error for the user: its text names what is wrong and the next step.

    SHOW makes MESSAGE safe for a terminal and keeps it on one line; a subclass that quotes a program's output keeps the lines.
    RESULT holds further keys for the module's result, such as what was done before the error.
    """

    show: Callable[[str], str] = staticmethod(escape)

    def __init__(self, message: str, **result: Any) -> None:
        super().__init__(self.show(message))
        self.result = result


def require_root() -> None:
    """Raise FleetError unless the caller is root of the host itself and has all capabilities that the collection needs."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    missing = ", ".join(name for name, number in _NEEDED.items() if not effective >> number & 1)
    if os.geteuid() != 0:
        raise FleetError(
            f"this needs root on the host (user {os.geteuid()} lacks {missing or 'its files'}): add become=true, or -b on the command line"
        )
    if missing:
        raise FleetError(
            f"this root lacks {missing}, as in a container or a service with limited capabilities: run it with those, on the host itself"
        )
    with open("/proc/self/uid_map", encoding="ascii") as file:
        if file.read().split() != _ALL_USERS:
            raise FleetError("this is root of a user namespace only: run it as root of the host itself")


def tell_any(error: Exception) -> str:
    """Return the text of ERROR, with its type where it is not one of ours, whose text says enough."""
    return str(error) if isinstance(error, FleetError) else f"{type(error).__name__}: {error}"


def explain(error: OSError) -> str:
    """Return the message for ERROR, a failed system call that no other code explains."""
    where = f" ({error.filename})" if error.filename else ""
    return escape(f"the host refused: {error.strerror or error}{where}")


def _interrupt(_number: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def run_module(module: Any, function: Callable[[Any], dict[str, Any]], *, hidden: Sequence[str] = ()) -> NoReturn:
    """Call FUNCTION(module) and end MODULE (an AnsibleModule) with the result, or fail it with the FleetError or OSError raised.

    HIDDEN names the `no_log` options whose values must not show in the result's `invocation` (see hidden.py).
    """
    more = {"invocation": make_invocation(module, hidden)} if hidden else {}
    # A task's time limit ends the module by SIGTERM: as KeyboardInterrupt, the signal lets the module undo what it has begun.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        result = function(module)
    except FleetError as error:
        module.fail_json(msg=str(error), **error.result, **more)
    except OSError as error:
        module.fail_json(msg=explain(error), **more)
    module.exit_json(**result, **more)
    raise SystemExit  # never reached, for exit_json ends the process: the type checker needs it
