# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options whose values stand in no log and in no result's `invocation`, and which change nothing else of a result.

Ansible's `no_log` keeps an option out of the log of the host, and then replaces its values wherever they occur in the result: the
value 1 makes a text of an exit code of 1, and breaks every output with a 1 in it. A command's output is data. So the option has
`no_log`, and its values are taken from what is replaced before there is a result; only `invocation` goes without them.
"""

from __future__ import annotations

from typing import Any, Iterator, Sequence

MASK = "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER"  # as Ansible writes it


def make_invocation(module: Any, names: Sequence[str]) -> dict[str, Any]:
    """What is a result's `invocation` without the values of options NAMES of MODULE (an AnsibleModule); keys of dicts stay.

    From now on MODULE leaves these values where they are in results.
    """
    for name in names:
        module.no_log_values.difference_update(_gen_texts(module.params[name]))
    hidden = {name: _mask(module.params[name]) for name in names}
    return {"module_args": {**module.params, **hidden}}


def _gen_texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for one in value.values():
            yield from _gen_texts(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _gen_texts(one)
    else:
        yield str(value)


def _mask(value: Any) -> Any:
    if isinstance(value, dict):
        return dict.fromkeys(value, MASK)
    return value if value is None else MASK
