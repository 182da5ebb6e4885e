#!/usr/bin/python
# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: crashcart_image
short_description: Push a tool image from the controller to a host, or remove it
description:
  - Copies an image that M(crashcart.fleet.crashcart_build) made on the controller into the host's store, unless the store has it already.
  - The module compares the digest in the image's manifest (C(IMAGE.json) beside the image), so an image that is on the host already costs
    almost nothing.
  - The copy is verified by its SHA-256 and renamed into place as a whole. Containers that have the previous image of that name attached
    keep it until they detach.
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
    support: full
    details: The module needs root on the host. The image is copied as the login user.
  check_mode:
    support: full
  delegation:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
  platform:
    platforms: linux
    support: full
options:
  src:
    description:
      - The image file on the controller. To serve hosts of several architectures, give a dictionary of image files by Debian's name of
        the architecture, such as V(amd64), and each host gets its own.
      - Required with O(state=present).
    type: raw
  name:
    description:
      - Name of the image on the host.
    type: str
    default: default
  state:
    description:
      - Whether the image should be in the host's store.
    type: str
    choices: [present, absent]
    default: present
  force:
    description:
      - With O(state=absent), remove the image even while it is attached. Containers that have it attached keep it until they detach.
    type: bool
    default: false
  _manifest:
    description:
      - Internal. The manifest of O(src), set by the action plugin.
    type: dict
  _staged:
    description:
      - Internal. Path on the host that the action plugin has copied the image to.
    type: path
requirements:
  - Linux 5.8 or later on the host
seealso:
  - module: crashcart.fleet.crashcart_build
  - module: crashcart.fleet.crashcart_attach
"""

EXAMPLES = r"""
- name: Push the default tools
  crashcart.fleet.crashcart_image:
    src: default.squashfs
  become: true
  register: pushed

- name: Show the digest of the image
  ansible.builtin.debug:
    var: pushed.image.digest

- name: Push to each host the image for its architecture
  crashcart.fleet.crashcart_image:
    src:
      amd64: default.squashfs
      arm64: default-arm64.squashfs
  become: true

- name: Remove the default tools
  crashcart.fleet.crashcart_image:
    state: absent
  become: true
"""

RETURN = r"""
image:
  description: The image on the host. V(null) with O(state=absent).
  returned: success
  type: dict
  contains:
    name:
      description: Name of the image on the host.
      type: str
      sample: default
    digest:
      description: SHA-256 of the image.
      type: str
      sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    path:
      description: Path of the image on the host.
      type: str
      sample: /var/lib/crashcart/images/default/9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08.image
    arch:
      description: Architecture of the image's programs by Debian's name.
      type: str
      sample: amd64
    format:
      description: File system of the image.
      type: str
      sample: squashfs
    size:
      description: Size of the image in bytes.
      type: int
      sample: 60000000
    prefix:
      description: Path in containers that the image's programs work at.
      type: str
      sample: /dev/crashcart
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import census, store
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import hold_lock
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import require_root, run_module


def ensure_present(name, manifest, staged, check_mode):
    store.check_manifest(manifest)
    digest = manifest["digest"]
    before = store.describe(name)
    wanted = store.StoredImage(name, digest, manifest)
    if before != digest and not check_mode:
        if staged is None:
            raise store.ImageError("the image was there a moment ago and is gone: try again")
        with hold_lock("store-" + name):
            wanted = store.install_image(name, digest, manifest, staged)
    return {
        "changed": before != digest,
        "image": wanted.as_result(),
        "diff": {"before": {name: before}, "after": {name: digest}},
    }


def find_container_names():
    """Return the names of containers by id for a message; empty where no engine answers, so that the message has the ids."""
    # Imported here only: the SDK takes as long to import as the rest of a push that changes nothing.
    from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import ContainerError
    from ansible_collections.crashcart.fleet.plugins.module_utils.containers.host import Host

    try:
        return {container.id: container.name for container in Host(None).list_containers()}
    except ContainerError:
        return {}


def ensure_absent(name, force, check_mode):
    before = store.describe(name)
    users, _omitted = census.list_mount_users(name)
    if users and not force:
        phrases = ", ".join(census.describe_users(users, find_container_names()))
        raise store.ImageError(
            f"image {name!r} is in use: {phrases}; detach it first, or give force=true to remove it all the same"
        )
    if before is not None and not check_mode:
        with hold_lock("store-" + name):
            if store.describe(name) is not None:
                store.remove_image(name)
    return {"changed": before is not None, "image": None, "diff": {"before": {name: before}, "after": {name: None}}}


def run(module):
    require_root()
    parameters = module.params
    store.check_name(parameters["name"])
    if parameters["state"] == "present":
        if parameters["_manifest"] is None:
            raise store.ImageError("this module works through its action plugin, which reads src on the controller")
        return ensure_present(parameters["name"], parameters["_manifest"], parameters["_staged"], module.check_mode)
    return ensure_absent(parameters["name"], parameters["force"], module.check_mode)


def main():
    module = AnsibleModule(
        argument_spec=dict(
            src=dict(type="raw"),
            name=dict(type="str", default="default"),
            state=dict(type="str", choices=["present", "absent"], default="present"),
            force=dict(type="bool", default=False),
            _manifest=dict(type="dict"),
            _staged=dict(type="path"),
        ),
        required_if=[("state", "present", ["src"])],
        supports_check_mode=True,
    )
    run_module(module, run)


if __name__ == "__main__":
    main()
