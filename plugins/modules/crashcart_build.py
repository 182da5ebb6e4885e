#!/usr/bin/python
# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: crashcart_build
short_description: Build a tool image from Debian packages
description:
  - Resolves the whole dependency closure of Debian packages with apt's own solver, unpacks it, makes its programs work below
    C(/dev/crashcart), and packs it as a squashfs image with a manifest beside it.
  - Needs neither root nor a mount, and runs no maintainer script. Of the machine's apt only its sources and keys are read.
  - Runs on the controller (C(delegate_to=localhost) with C(become=false)), or on another Debian or Ubuntu machine by delegation.
version_added: 0.1.0
author:
  - crashcart.fleet contributors (@crashcart-fleet)
extends_documentation_fragment:
  - crashcart.fleet.attributes
attributes:
  action_group:
    support: full
  async:
    support: full
  become:
    support: none
    details: It needs no privileges.
  check_mode:
    support: full
    details: In check mode no lists of packages are fetched; an image that was asked for in the same words counts as current.
  delegation:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
    details: An image is built again when a package has a new version.
  platform:
    platforms: debian
    support: full
options:
  dest:
    description:
      - The image file to make. Its manifest is written beside it as C(DEST.json).
    type: path
    required: true
  packages:
    description:
      - Names of Debian packages, with C(=VERSION) where a certain version is wanted. Without it the default set of tools, which is
        bash, coreutils, curl, dig, file, findutils, gdb, grep, iproute2, less, lsof, ping, procps, python3, sed, socat, strace,
        tcpdump, util-linux and vim.
    type: list
    elements: str
  format:
    description:
      - The image's file system.
    type: str
    choices: [squashfs]
    default: squashfs
  cache:
    description:
      - Folder for lists of packages and package files, kept for the next build.
    type: path
    default: ~/.cache/crashcart
  cache_valid_time:
    description:
      - Lists of packages that are younger are not fetched again, for example V(1h).
    type: str
    default: 1h
requirements:
  - apt, dpkg, squashfs-tools and patchelf (packages of Debian and Ubuntu)
  - pyelftools (Python)
seealso:
  - module: crashcart.fleet.crashcart_image
"""

EXAMPLES = r"""
- name: Build the default tools
  crashcart.fleet.crashcart_build:
    dest: default.squashfs
  delegate_to: localhost
  run_once: true
  become: false
  register: built

- name: Say how big they are
  ansible.builtin.debug:
    var: built.image.size

- name: Build network tools only
  crashcart.fleet.crashcart_build:
    dest: network.squashfs
    packages: [bash, iproute2, tcpdump, nmap]
  delegate_to: localhost
  become: false
"""

RETURN = r"""
image:
  description: The image as its manifest describes it; in check mode V(null) for an image that would be built.
  returned: success
  type: dict
  contains:
    path:
      description: The image file.
      type: str
      sample: default.squashfs
    digest:
      description: Its sha256.
      type: str
      sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    size:
      description: Its size in bytes.
      type: int
      sample: 60000000
    arch:
      description: The architecture of its programs by Debian's name.
      type: str
      sample: amd64
    format:
      description: Its file system.
      type: str
      sample: squashfs
    prefix:
      description: The path that its programs work at.
      type: str
      sample: /dev/crashcart
    tools:
      description: Names of its programs.
      type: list
      elements: str
      sample: [bash, gdb, strace]
"""

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import run_module
from ansible_collections.crashcart.fleet.plugins.module_utils.image import builder, relocate, tool_sets
from ansible_collections.crashcart.fleet.plugins.module_utils.units import parse_seconds


def describe(manifest, dest):
    if manifest is None:
        return None
    kept = ("digest", "size", "arch", "format", "prefix", "tools")
    return {"path": dest, **{name: manifest[name] for name in kept}}


def list_versions(manifest):
    return {one["name"]: one["version"] for one in manifest["packages"]} if manifest else {}


def run(module):
    if relocate.ELFTOOLS_IMPORT_ERROR:
        module.fail_json(msg=missing_required_lib("pyelftools"), exception=relocate.ELFTOOLS_IMPORT_ERROR)
    parameters = module.params
    dest = parameters["dest"]
    packages = tool_sets.DEFAULT_PACKAGES if parameters["packages"] is None else parameters["packages"]
    request = builder.Request(tuple(sorted(packages)), format=parameters["format"])
    before = builder.read_manifest(dest)
    if module.check_mode:
        is_current = builder.is_same_request(before, request)
        return {"changed": not is_current, "image": describe(before if is_current else None, dest)}
    valid_s = parse_seconds(parameters["cache_valid_time"], "cache_valid_time")
    apt, closure = builder.resolve(request, parameters["cache"], valid_s)
    is_current = builder.is_current(before, request, closure)
    after = before if is_current else builder.build(request, apt, closure, dest)
    return {
        "changed": not is_current,
        "image": describe(after, dest),
        "diff": {"before": list_versions(before), "after": list_versions(after)},
    }


def main():
    module = AnsibleModule(
        argument_spec=dict(
            dest=dict(type="path", required=True),
            packages=dict(type="list", elements="str"),
            format=dict(type="str", choices=["squashfs"], default="squashfs"),
            cache=dict(type="path", default="~/.cache/crashcart"),
            cache_valid_time=dict(type="str", default="1h"),
        ),
        supports_check_mode=True,
    )
    run_module(module, run)


if __name__ == "__main__":
    main()
