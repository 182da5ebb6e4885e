# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one kind of error that a user has to read, and the one place where a module ends."""

from __future__ import annotations

import os
import signal
from typing import Any, Callable, NoReturn, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.hidden import make_invocation
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape

# What to enter containers takes, by the kernel's numbers.
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
    """The text names the thing that is wrong and the next step, and may go to a terminal; RESULT is what was done before.

    SHOW makes it so: it is one line, but where a subclass has what a program of ours has said.
    """

    show: Callable[[str], str] = staticmethod(escape)

    def __init__(self, message: str, **result: Any) -> None:
        super().__init__(self.show(message))
        self.result = result


def require_root() -> None:
    """Raise FleetError unless the caller has the privileges of the host's root."""
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


def explain(error: OSError) -> str:
    """What to tell a user of ERROR, which nobody has foreseen."""
    where = f" ({error.filename})" if error.filename else ""
    return escape(f"the host refused: {error.strerror or error}{where}")


def _interrupt(_number: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def run_module(module: Any, function: Callable[[Any], dict[str, Any]], *, hidden: Sequence[str] = ()) -> NoReturn:
    """End MODULE (an AnsibleModule) with what FUNCTION(module) returns, or with the error it raises.

    HIDDEN are options whose values nobody is to read; they have `no_log`.
    """
    more = {"invocation": make_invocation(module, hidden)} if hidden else {}
    # Ended by a task's time limit it undoes what it has begun, as it does when interrupted.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        result = function(module)
    except FleetError as error:
        module.fail_json(msg=str(error), **error.result, **more)
    except OSError as error:
        module.fail_json(msg=explain(error), **more)
    module.exit_json(**result, **more)
    raise SystemExit  # exit_json has ended the process; this tells the type checker
