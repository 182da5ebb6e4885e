# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """The attributes that modules declare."""

    DOCUMENTATION = r"""
options: {}
attributes:
  action_group:
    description:
      - Use C(group/crashcart.fleet.crashcart) in C(module_defaults) to set defaults for this module.
      - An option that not all modules of a group have is an error in those without it. So there are two smaller groups.
        C(group/crashcart.fleet.containers) is for C(containers), C(labels), C(query), C(docker_host) and C(allow_empty), and
        C(group/crashcart.fleet.images) for C(image).
    support: full
    membership:
      - crashcart.fleet.crashcart
  async:
    description: Can be used with C(async).
  become:
    description: Is usable alongside C(become) keywords.
  check_mode:
    description: Can run in check mode and say what would change, without touching anything.
  delegation:
    description: Can be used with C(delegate_to).
  diff_mode:
    description: Returns details on what has changed, or would in check mode, when diff mode is on.
  idempotent:
    description: A second run with the same arguments changes nothing.
  platform:
    description: Systems that the module works on.
"""
