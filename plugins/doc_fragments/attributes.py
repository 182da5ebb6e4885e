# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """The attributes that every module declares."""

    DOCUMENTATION = r"""
options: {}
attributes:
  action_group:
    description:
      - Use C(group/crashcart.fleet.crashcart) in C(module_defaults) to set defaults for this module.
      - Setting an option there that one of the group's modules lacks makes that module fail. Two smaller groups avoid this.
        C(group/crashcart.fleet.containers) is for C(containers), C(labels), C(query), C(docker_host) and C(allow_empty), and
        C(group/crashcart.fleet.images) is for C(image).
    support: full
    membership:
      - crashcart.fleet.crashcart
  async:
    description: Supports being used with the C(async) keyword.
  become:
    description: Is usable alongside the C(become) keywords.
  check_mode:
    description: Can run in check mode and predict what would change without touching anything.
  delegation:
    description: Can be used with C(delegate_to) and related keywords.
  diff_mode:
    description: Returns details on what has changed, or would change in check mode, when diff mode is on.
  idempotent:
    description: A second run with the same arguments changes nothing.
  platform:
    description: Operating systems that the module supports.
"""
