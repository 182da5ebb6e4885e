#!/usr/bin/python
# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

# The code is in the action plugin of the same name: nothing of this is asked of a host.

from __future__ import annotations

DOCUMENTATION = r"""
module: crashcart_playbook_check
short_description: See that a playbook was told what it needs before it does anything
description:
  - Looks at the variables of all hosts of the play whose names begin with C(crashcart_), as the collection's playbooks have them. One that no
    playbook has, or words that Ansible has dropped of a C(-e), are an error, and the nearest name is told.
  - Looks for what the controller has to have.
  - All that is wrong is told at once. Use it with C(run_once=true), so that one host's mistake changes nothing on any host.
version_added: 0.1.0
author:
  - crashcart.fleet contributors (@crashcart-fleet)
extends_documentation_fragment:
  - crashcart.fleet.attributes
attributes:
  action_group:
    support: full
  async:
    support: none
  become:
    support: none
    details: It runs on the controller.
  check_mode:
    support: full
  delegation:
    support: none
    details: It runs on the controller.
  diff_mode:
    support: none
  idempotent:
    support: full
  platform:
    platforms: linux
    support: full
options:
  needs:
    description:
      - What has to be there besides. V(containers) is a selection, V(command) what to run, V(report) and V(build)
        what the controller needs for these, V(terminal) that Ansible was started at one.
    type: list
    elements: str
    choices: [containers, command, report, build, terminal]
    default: []
seealso:
  - module: crashcart.fleet.crashcart_host_check
"""

EXAMPLES = r"""
- name: See that somebody said which containers
  crashcart.fleet.crashcart_playbook_check:
    needs: [containers]
  run_once: true
"""

RETURN = r""" # """
