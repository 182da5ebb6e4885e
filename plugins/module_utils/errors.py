# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one kind of error that a user has to read, and the one place where a module ends."""

from __future__ import annotations

import os
from typing import Any, Callable, NoReturn


class FleetError(Exception):
    """The text names the thing that is wrong and the next step; RESULT is what was done before."""

    def __init__(self, message: str, **result: Any) -> None:
        super().__init__(message)
        self.result = result


def require_root() -> None:
    """Raise FleetError unless the caller has the privileges of the host's root."""
    if os.geteuid() != 0:
        raise FleetError(
            "this needs root on the host (CAP_SYS_ADMIN, CAP_SYS_PTRACE, CAP_SYS_CHROOT): add become=true, or -b on the command line"
        )


def run_module(module: Any, function: Callable[[Any], dict[str, Any]]) -> NoReturn:
    """End MODULE (an AnsibleModule) with what FUNCTION(module) returns, or with the error it raises."""
    try:
        result = function(module)
    except FleetError as error:
        module.fail_json(msg=str(error), **error.result)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        module.fail_json(msg=f"the host refused: {error.strerror or error}{where}")
    module.exit_json(**result)
    raise SystemExit  # exit_json has ended the process; this tells the type checker
