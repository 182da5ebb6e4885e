#!/usr/bin/python
# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

# The code is in the action plugin of the same name, because nothing here runs on a host.

from __future__ import annotations

DOCUMENTATION = r"""
module: ftrace_store
short_description: Keep a folder of fetched captures in order, with a catalogue and limits
description:
  - A store is a folder on the controller that M(crashcart.fleet.ftrace_fetch) and M(crashcart.fleet.ftrace_capture) fetch captures to. This
    module keeps a catalogue of it in C(PATH/catalogue.sqlite), an SQLite file with the tables C(captures), C(runs) and C(findings).
    M(crashcart.fleet.ftrace_report) selects captures from it.
  - The catalogue is made of the manifests. It can be removed, and is made again. What it knew of runs, findings and removed captures is
    lost then.
  - Captures are removed only where a limit asks for it (O(keep_age), O(keep_count), O(keep_size), O(keep_total)), the oldest first.
  - Each container on each host keeps its newest capture, whatever the limits are.
  - Nothing that came into the store less than a day ago is removed, whatever the limits are. That is counted by the controller's clock from
    when the catalogue has first seen it.
  - Nothing is removed where the controller's clock is behind the last time in the catalogue, or where the last run was more than a day ago
    and more than twice the time between the two runs before it. The result says so, and the next run removes again.
  - Files without a manifest, or with an unreadable one, are never removed. They are named.
  - A file that is damaged in place of the catalogue is set aside as C(PATH/catalogue.sqlite.damaged), with a warning. The catalogue of a newer
    version of this collection is an error.
  - It runs on the controller. In a play over hosts use C(run_once=true). Relative paths are below the playbook's folder.
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
    details: The module runs on the controller and needs no privileges.
  check_mode:
    support: full
    details: The catalogue is brought up to date in memory, and the result is the same.
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
  path:
    description:
      - The store's folder. It is created where it is missing.
    type: path
    required: true
  phase:
    description:
      - V(check) sees that the store can be written and that O(keep_free) are free, and fails otherwise. It is for the time before a collection,
        and notes with O(run) when the run began.
      - V(update) brings the catalogue up to date with the files, notes O(findings), and applies the limits.
    type: str
    choices: [check, update]
    default: update
  run:
    description:
      - The id of the run. New captures are noted with it.
    type: str
  captures:
    description:
      - Paths of the captures that the run has fetched, for example those in RV(crashcart.fleet.ftrace_fetch#module:captures[].path). Only these
        are noted with O(run). Without this option all new captures are.
    type: list
    elements: path
  findings:
    description:
      - Path of a C(findings.json) that M(crashcart.fleet.ftrace_report) has written for this store. Its findings are noted with the captures
        that are their evidence.
    type: path
  keep_age:
    description:
      - Remove captures that ended longer ago, for example V(14d). A capture's end is that of its manifest, but no later than when it came into
        the store.
    type: str
  keep_count:
    description:
      - The number of captures to keep of each container on each host, 1 or more.
    type: str
  keep_size:
    description:
      - How much to keep of each container on each host, for example V(2GiB).
    type: str
  keep_total:
    description:
      - How much to keep of all captures together, for example V(50GiB).
    type: str
  keep_free:
    description:
      - How much has to be free on the store's file system, for example V(5GiB). With less, O(phase=check) removes what exceeds the other
        limits, and fails where that makes too little room.
    type: str
seealso:
  - module: crashcart.fleet.ftrace_fetch
  - module: crashcart.fleet.ftrace_report
"""

EXAMPLES = r"""
- name: See that there is room before anything is fetched
  crashcart.fleet.ftrace_store:
    path: /srv/traces
    phase: check
    keep_free: 5GiB
  run_once: true

- name: Keep two weeks, and no more than 50 GiB
  crashcart.fleet.ftrace_store:
    path: /srv/traces
    keep_age: 14d
    keep_total: 50GiB
  run_once: true
  register: stored

- name: Say what came and what was removed
  ansible.builtin.debug:
    var: stored.lines
  run_once: true
"""

RETURN = r"""
lines:
  description:
    - What came, what was removed and why, what is kept, and how much is free. Then comes what could not be read, at most 20 lines of it.
  returned: success
  type: list
  elements: str
  sample:
    - "3 captures came, 2 were removed (keep_age=14d), 118 are kept (1.2 GiB); 34.0 GiB are free"
added:
  description: The captures that are new, relative to O(path).
  returned: success
  type: list
  elements: str
  sample: [web1/api/20261121T231500.000000Z.dat]
gone:
  description: The captures that somebody else has removed.
  returned: success
  type: list
  elements: str
  sample: []
removed:
  description: The captures that were removed, by O(phase=check) only to make room for O(keep_free). In check mode, those that would be.
  returned: success
  type: list
  elements: dict
  contains:
    path:
      description: The capture, relative to O(path).
      type: str
      sample: web1/api/20261101T231500.000000Z.dat
    why:
      description: The limit that it exceeded.
      type: str
      sample: keep_age=14d
kept:
  description: The number of captures that are there now. V(null) for O(phase=check).
  returned: success
  type: int
  sample: 118
bytes:
  description: The bytes of all files of these captures. V(null) for O(phase=check).
  returned: success
  type: int
  sample: 1288490188
free:
  description: The bytes that this user can still write on the store's file system.
  returned: success
  type: int
  sample: 36507222016
freed:
  description: The bytes of the captures that were removed. In check mode, of those that would be.
  returned: success
  type: int
  sample: 20971520
problems:
  description: A sentence for each file that is no capture of ours, that cannot be read, or that could not be removed.
  returned: success
  type: list
  elements: str
  sample: []
"""
