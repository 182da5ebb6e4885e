# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter capture_table."""

from __future__ import annotations

DOCUMENTATION = r"""
name: capture_table
short_description: A short table of captures, as lines
description:
  - Makes a table with a row for each container, with the number of its events, how many were lost, for how long it was traced, and why a
    capture is not complete. Rows with such a note come first, and the table has at most twenty rows. The last lines say where the
    files are.
  - The collection's playbooks print it at their end.
version_added: 0.1.0
author:
  - crashcart.fleet contributors (@crashcart-fleet)
options:
  _input:
    description: The captures of all hosts, as RV(crashcart.fleet.ftrace_fetch#module:captures) and
      RV(crashcart.fleet.ftrace_capture#module:captures) have them.
    type: list
    elements: dict
    required: true
  report:
    description: The folder of the report, to be named in the last line.
    type: path
seealso:
  - plugin: crashcart.fleet.ftrace_capture
    plugin_type: module
  - plugin: crashcart.fleet.ftrace_fetch
    plugin_type: module
"""

EXAMPLES = r"""
- name: Show what came from all hosts
  ansible.builtin.debug:
    msg: "{{ captures | crashcart.fleet.capture_table }}"
  run_once: true
  vars:
    captures: >-
      {{ ansible_play_hosts_all | map('extract', hostvars) | selectattr('captured', 'defined') | map(attribute='captured')
      | map(attribute='captures', default=[]) | flatten }}
"""

RETURN = r"""
_value:
  description: The lines.
  type: list
  elements: str
  sample:
    - HOST  CONTAINER  EVENTS  LOST  SECONDS
    - web1  api           644     0      2.6  complete
    - "capture: traces/web1/api/20261121T231500.000000Z.dat"
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.crashcart.fleet.plugins.plugin_utils.capture_table import make_lines


def capture_table(captures: Sequence[Mapping[str, Any]], report: str | None = None) -> list[str]:
    """Return the lines about CAPTURES and the folder REPORT. Raises AnsibleFilterError where CAPTURES are none."""
    try:
        return make_lines(captures, report)
    except (KeyError, TypeError, AttributeError) as error:
        raise AnsibleFilterError(
            f"capture_table takes the captures of ftrace_fetch or ftrace_capture, a list: {error!r}"
        ) from error


class FilterModule:
    """The filter of this file."""

    def filters(self) -> dict[str, Callable[..., list[str]]]:
        """Return the filter by its name."""
        return {"capture_table": capture_table}
