#!/usr/bin/python
# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

# The code is in the action plugin of the same name: the terminal is the controller's.

from __future__ import annotations

DOCUMENTATION = r"""
module: crashcart_shell
short_description: Lend the terminal that Ansible was started at to a shell in a container
description:
  - Runs a line on the controller at the terminal that C(ansible-playbook) was started at, until it ends. The playbook C(crashcart.fleet.shell)
    attaches tools, calls it, and takes them away again.
  - Passwords that C(ssh) or C(sudo) ask for are typed at the terminal. None that Ansible knows is sent, since what asks may be in the container.
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
    details: It runs on the controller, as who runs Ansible; the line has what it takes.
  check_mode:
    support: full
  delegation:
    support: none
    details: It runs on the controller.
  diff_mode:
    support: none
  idempotent:
    support: none
    details: A shell is a shell.
  platform:
    platforms: linux
    support: full
options:
  line:
    description:
      - The command, as RV(crashcart.fleet.crashcart_attach#module:attachments[].shell) has it. It is split into words as a shell would, and
        run without one.
    type: str
    required: true
seealso:
  - module: crashcart.fleet.crashcart_attach
"""

EXAMPLES = r"""
- name: Attach tools
  crashcart.fleet.crashcart_attach:
    containers: api
    ttl: 8h
  become: true
  register: attached

- name: Work there
  crashcart.fleet.crashcart_shell:
    line: "{{ attached.attachments[0].shell }}"
"""

RETURN = r"""
rc:
  description: The exit code of the shell.
  returned: success
  type: int
  sample: 0
"""
