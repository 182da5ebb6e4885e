# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep the values of secret options out of logs and of a result's `invocation`, and the rest of the result as it is.

Ansible's `no_log` keeps an option out of the host's log, but also replaces its values wherever they occur in the result. A value of 1
would turn an exit code of 1 into a text, and damage every output with a 1 in it. A command's output is data and must not change.
So the option has `no_log`, make_invocation removes its values from Ansible's list of texts to replace, and masks them in `invocation`.
"""

from __future__ import annotations

from typing import Any, Iterator, Sequence

MASK = "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER"  # as Ansible writes it


def make_invocation(module: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return a result's `invocation` in which the values of the options NAMES of MODULE (an AnsibleModule) are masked.

    A dict keeps its keys. From this call on, MODULE no longer replaces these values elsewhere in its result.
    """
    for name in names:
        module.no_log_values.difference_update(_gen_texts(module.params[name]))
    hidden = {name: _mask(module.params[name]) for name in names}
    return {"module_args": {**module.params, **hidden}}


def _gen_texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _gen_texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _gen_texts(item)
    else:
        yield str(value)


def _mask(value: Any) -> Any:
    if isinstance(value, dict):
        return dict.fromkeys(value, MASK)
    return value if value is None else MASK
