#!/usr/bin/python
# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

# The code is in the action plugin of the same name, because nothing here runs on a host.

from __future__ import annotations

DOCUMENTATION = r"""
module: crashcart_playbook_check
short_description: Check the variables of a playbook before it changes anything
description:
  - Checks the variables whose names begin with C(crashcart_), of all hosts of the play, for the collection's playbooks. A variable that no
    playbook has is an error that suggests the nearest name. Words of an C(-e) option that Ansible has dropped are an error, too.
  - Checks the values for a trace and its report, as far as this needs no host. A profile that does not exist is an error, for example.
  - Checks that the controller has what the playbook needs.
  - Lists all problems at once. Use it with C(run_once=true), so that a problem of one host stops the play before any host is changed.
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
    details: The module runs on the controller.
  check_mode:
    support: full
  delegation:
    support: none
    details: The module runs on the controller.
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
      - What else the playbook needs.
      - V(containers) checks that containers are selected, V(command) that there is a command to run, V(report) and V(build) that the
        controller can make reports and build images, V(report_packages) that it has what reports need, wherever they go,
        V(cron) that it reads the fields of cron, V(terminal) that Ansible was started at a terminal.
    type: list
    elements: str
    choices: [containers, command, report, report_packages, build, cron, terminal]
    default: []
seealso:
  - module: crashcart.fleet.crashcart_host_check
"""

EXAMPLES = r"""
- name: Check that containers are selected
  crashcart.fleet.crashcart_playbook_check:
    needs: [containers]
  run_once: true
"""

RETURN = r"""
given:
  description: The variables that the command line gives. Those of the inventory are not among them.
  returned: success
  type: dict
  sample: {crashcart_containers: api}
environment:
  description: What the options of the command line mean, as variables of the environment, for later runs of other playbooks.
  returned: success
  type: dict
  sample: {ANSIBLE_REMOTE_USER: deploy}
questions:
  description: What these options ask a person for.
  returned: success
  type: list
  elements: str
  sample: []
"""
