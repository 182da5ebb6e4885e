#!/usr/bin/python
# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

# The code is in the action plugin of the same name, because the terminal belongs to the controller.

from __future__ import annotations

DOCUMENTATION = r"""
module: crashcart_shell
short_description: Run a shell in a container at the terminal that Ansible was started at
description:
  - Runs a command on the controller at the terminal that C(ansible-playbook) was started at, until the command ends. The playbook
    C(crashcart.fleet.shell) attaches tools, calls this module, and detaches them again.
  - Type passwords that C(ssh) or C(sudo) ask for at the terminal. The module sends no password that Ansible knows, because the prompt may
    come from inside the container.
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
    details: The command runs on the controller as the user who runs Ansible. It becomes root on the host by itself.
  check_mode:
    support: full
  delegation:
    support: none
    details: The module runs on the controller.
  diff_mode:
    support: none
  idempotent:
    support: none
    details: Each run opens a shell.
  platform:
    platforms: linux
    support: full
options:
  line:
    description:
      - The command, as returned in RV(crashcart.fleet.crashcart_attach#module:attachments[].shell). It is split into words as a shell would,
        and run without a shell.
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

- name: Open the shell
  crashcart.fleet.crashcart_shell:
    line: "{{ attached.attachments[0].shell }}"
"""

RETURN = r"""
rc:
  description: Exit code of the command. The task fails with 127 or 255, which mean that there was no shell.
  returned: success, but not in check mode
  type: int
  sample: 0
"""
