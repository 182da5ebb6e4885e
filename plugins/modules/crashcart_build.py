#!/usr/bin/python
# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: crashcart_build
short_description: Build a tool image from packages, files and container images
description:
  - Builds one image from all named sources - sets of tools, Debian packages, package files, archives, folders, programs, a container
    image. Its programs work below C(/dev/crashcart) in any container and load libraries from the image only.
  - The build needs neither root nor a mount, and runs nothing of what it unpacks, including maintainer scripts. apt's own solver resolves the
    dependencies of Debian packages in a separate apt root. Of the machine's apt configuration only sources, keys and proxies are read.
  - The image leaves out what no tool needs in a container - C(/boot), C(/dev), C(/proc), C(/run), C(/sys), C(/tmp), C(/var), files that start
    services, documentation, translations, tables of rare encodings, empty folders.
  - The tools ignore the container's preloaded libraries, name services, character sets, start-up files and modules
    (C(/etc/ld.so.preload), C(/etc/nsswitch.conf), C(~/.bashrc), C(~/.gdbinit), C(~/.local/lib/python3.11) and others). This also holds for tools
    that C(docker exec) starts without the image's variables. RV(image.unsealed) lists the exceptions. Variables of the container's
    configuration, such as E(LD_PRELOAD), take effect where the engine passes them to a tool.
  - For that reason C(python3) looks for modules neither in the current folder nor beside a script (as with C(-P)) unless E(PYTHONPATH) names
    the folder, and C(su) and C(runuser) refuse to run (use C(setpriv)). A command that a tool starts, such as C(!command), runs in the
    container's C(/bin/sh).
  - The same sources give the same image, byte for byte.
  - Run it on the controller (C(delegate_to=localhost) with C(become=false)), or delegate it to a build machine.
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
    details: The module needs no privileges.
  check_mode:
    support: full
    details: Check mode fetches no lists of packages. An image that an earlier run with the same arguments built counts as current.
  delegation:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
    details: The image is built again when one of its packages has a new version.
  platform:
    platforms: debian
    support: full
options:
  dest:
    description:
      - The image file to create. Its manifest is written beside it as C(DEST.json).
    type: path
    required: true
  sets:
    description:
      - Sets of tools to include. The default is V(default) where no other source is named. Each set but V(minimal) has bash, coreutils,
        findutils, grep, less and sed.
      - V(default) adds curl, dig, file, gdb, iproute2, lsof, ping, procps, python3, socat, strace, tcpdump, util-linux, vim, and programs that
        Ansible's modules call (bzip2, getent, gzip, hostname, tar, unzip, which, xz).
      - V(network) adds conntrack, curl, dig, ethtool, iperf3, iproute2, iptables, mtr, nc, net-tools, nft, ngrep, openssl, ping, procps,
        socat, tcpdump, tracepath and traceroute.
      - V(debug) adds binutils, bpftrace, elfutils, file, gdb, lsof, ltrace, procps, psmisc, python3, strace, sysstat, util-linux and vim.
      - V(python) adds procps, python3 with its whole standard library and apt's module, util-linux, and programs that Ansible's modules call.
      - V(minimal) has busybox only.
    type: list
    elements: str
    choices: [minimal, default, network, debug, python]
  packages:
    description:
      - Names of Debian packages to include. Append C(=VERSION) to get a certain version.
    type: list
    elements: str
  paths:
    description:
      - Files and folders of the build machine to include. A folder is taken as the root of a file system, a C(.deb), C(.rpm) or tar archive is
        unpacked, a program goes to C(bin).
      - The dependencies of a C(.deb) are fetched. The dependencies of a C(.rpm) have to be named as well.
      - A package of the Nix store (C(/nix/store/NAME)) keeps its path, and its programs get names in C(bin). Name its whole closure, as
        C(nix-store -qR) lists it.
      - An ext2, ext3 or ext4 file system, such as an image of Oracle's crashcart, is used unchanged and has to be the only source.
    type: list
    elements: path
  docker_image:
    description:
      - Name of a container image to include. The Docker engine must have it already.
    type: str
  docker_container:
    description:
      - Name, or id of at least twelve digits, of a container to include with its current files. It need not run.
    type: str
  docker_host:
    description:
      - URL of the engine's socket for O(docker_image) and O(docker_container). The default is the environment variable E(DOCKER_HOST), then
        C(unix:///var/run/docker.sock).
    type: str
  prefix:
    description:
      - Path in containers where the image has to be attached, because its tools work there only. The last part of the path must begin
        with C(crashcart).
    type: str
    default: /dev/crashcart
  format:
    description:
      - File system of the image. M(crashcart.fleet.crashcart_info) shows which of them a host can mount.
      - V(squashfs) is the smallest, V(erofs) starts tools the fastest, and every kernel has V(ext4).
    type: str
    choices: [squashfs, erofs, ext4]
    default: squashfs
  arch:
    description:
      - Architecture of the programs by Debian's name. The default is that of the build machine, or of the container image or the
        files where no packages are included.
      - Another architecture than the machine's works, because the build runs none of the programs.
    type: str
    choices: [amd64, arm64]
  release:
    description:
      - Release of Debian or Ubuntu that packages come from, for example V(trixie), with its updates and security updates. The
        default is what the machine's own sources name.
    type: str
  mirror:
    description:
      - Address of the mirror for O(release). Only that suite of the mirror is used then. The default is the machine's own mirrors.
    type: str
  cache:
    description:
      - Folder that keeps lists of packages and package files for the next build. Builds that share a cache fetch one after the other.
    type: path
    default: ~/.cache/crashcart
  cache_valid_time:
    description:
      - Age up to which lists of packages are not fetched again, for example V(30m) or V(1d).
    type: str
    default: 1h
  offline:
    description:
      - Fetch nothing, and use the lists and packages that an earlier build has left in O(cache).
    type: bool
    default: false
  sbom:
    description:
      - File to write a software bill of materials to (CycloneDX 1.6, JSON). Its folder must exist.
    type: path
  _progress:
    description:
      - Internal. A file that the module writes each step to, for the action plugin to read.
    type: path
requirements:
  - patchelf, and squashfs-tools, erofs-utils or e2fsprogs for the O(format)
  - apt and dpkg (Debian or Ubuntu) for packages, bsdtar (libarchive-tools) for C(.rpm)
  - pyelftools (Python), docker (Python) for container images, cyclonedx-python-lib (Python) for O(sbom)
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

- name: Show the size of the image
  ansible.builtin.debug:
    var: built.image.size

- name: Build network tools and one more package, for hosts with another processor
  crashcart.fleet.crashcart_build:
    dest: network-arm64.squashfs
    sets: [network]
    packages: [nmap]
    arch: arm64
  delegate_to: localhost
  run_once: true
  become: false

- name: Build a tool image from a container image
  crashcart.fleet.crashcart_build:
    dest: netshoot.squashfs
    docker_image: nicolaka/netshoot
  delegate_to: localhost
  run_once: true
  become: false
"""

RETURN = r"""
image:
  description: The image. V(null) in check mode for an image that would be built.
  returned: success
  type: dict
  contains:
    path:
      description: Path of the image file, as given in O(dest).
      type: str
      sample: default.squashfs
    digest:
      description: SHA-256 of the image file.
      type: str
      sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    size:
      description: Size of the image file in bytes.
      type: int
      sample: 60000000
    arch:
      description: Architecture of the programs by Debian's name.
      type: str
      sample: amd64
    format:
      description: File system of the image.
      type: str
      sample: squashfs
    prefix:
      description: Path in containers that the programs work at.
      type: str
      sample: /dev/crashcart
    tools:
      description: The programs by name, each with the package and the version that it came with.
      type: dict
      sample: {"bash": "bash 5.2.15-2+b7", "strace": "strace 6.1-0.1"}
    problems:
      description: Files that will not work in the image, for example because no source has one of their libraries.
      type: list
      elements: dict
      contains:
        path:
          description: The file, relative to the root of the image.
          type: str
        reason:
          description: What the file lacks.
          type: str
    sealed:
      description: Whether all programs load code, and the settings that choose this code, from the image only, whatever the container holds.
        The image itself records this by the file C(etc/crashcart.sealed).
      type: bool
      sample: true
    unsealed:
      description: What keeps the image from being sealed, for example an interpreter that looks for its modules in the container.
      type: list
      elements: dict
      contains:
        path:
          description: The file, relative to the root of the image. Empty where the whole image is meant.
          type: str
        reason:
          description: What would be loaded from the container.
          type: str
"""

import os

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.store import check_prefix
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import run_module
from ansible_collections.crashcart.fleet.plugins.module_utils.image import builder, elf, sbom, tool_sets
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape
from ansible_collections.crashcart.fleet.plugins.module_utils.units import parse_seconds

SOURCES = ("packages", "paths", "docker_image", "docker_container")


def describe(manifest, dest):
    if manifest is None:
        return None
    kept = ("digest", "size", "arch", "format", "prefix", "tools", "problems", "sealed", "unsealed")
    return {"path": dest, **{name: manifest[name] for name in kept}}


def list_versions(manifest):
    # The manifest of an image that an older builder made has no components.
    components = (manifest or {}).get("components", ())
    return {component["name"]: component["version"] or component["hash"] for component in components}


def make_request(parameters):
    sets = parameters["sets"] or ([] if any(parameters[name] for name in SOURCES) else ["default"])
    check_prefix(parameters["prefix"])
    named = set(parameters["packages"] or [])
    of_sets = set(tool_sets.list_packages(sets))
    optional = of_sets & tool_sets.OPTIONAL - named
    return builder.Request(
        packages=tuple(sorted((of_sets | named) - optional)),
        optional=tuple(sorted(optional)),
        paths=tuple(parameters["paths"] or []),
        **{
            name: parameters[name]
            for name in ("docker_image", "docker_container", "prefix", "format", "arch", "release", "mirror")
        },
    )


def list_broken(manifest, named):
    """Return the paths of the programs that lack something and come from a source that the user named.

    Packages of a set and dependencies are left out: they contain scripts for languages that the image does not have.
    """
    unasked = {component["name"] for component in manifest["components"] if component["uri"]} - set(named)
    problems = [problem["path"] for problem in manifest["problems"]]
    paths = [path for path in problems if path.startswith(("bin/", "sbin/", "local/"))]
    return [path for path in paths if manifest["tools"].get(os.path.basename(path), "").split(" ")[0] not in unasked]


def make_teller(path):
    """Return a function that appends a step as one line to the file PATH, or does nothing where PATH is None."""

    def tell(text):
        if path is not None:
            with open(path, "a", encoding="utf-8") as file:
                file.write(text.replace("\n", " ") + "\n")

    return tell


def run(module):
    if elf.ELFTOOLS_IMPORT_ERROR:
        module.fail_json(msg=missing_required_lib("pyelftools"), exception=elf.ELFTOOLS_IMPORT_ERROR)
    # mksquashfs and mkfs may be in folders that an ordinary user's PATH lacks.
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    parameters = module.params
    dest = parameters["dest"]
    builder.check_dest(dest, parameters["paths"] or ())
    if parameters["sbom"] and sbom.CYCLONEDX_IMPORT_ERROR:
        module.fail_json(msg=missing_required_lib("cyclonedx-python-lib"), exception=sbom.CYCLONEDX_IMPORT_ERROR)
    beside_sbom = os.path.dirname(os.path.abspath(parameters["sbom"] or dest))
    if parameters["sbom"] and not os.access(beside_sbom, os.W_OK):
        module.fail_json(
            msg=f"sbom {parameters['sbom']} cannot be written: {beside_sbom} is missing or not writable: name a file elsewhere"
        )
    request = make_request(parameters)
    before = builder.read_manifest(dest)
    if module.check_mode:
        is_listed = not parameters["sbom"] or os.path.exists(parameters["sbom"])
        is_current = is_listed and builder.is_same_request(before, request)
        return {"changed": not is_current, "image": describe(before if is_current else None, dest)}
    # The work folder is beside the image because it may hold a whole container's files, and /tmp may be in memory.
    beside = os.path.dirname(os.path.abspath(dest))
    os.makedirs(beside, exist_ok=True)
    with builder.open_work_folder(beside) as folder:
        plan = builder.Plan(
            request,
            parameters["cache"],
            folder,
            docker_host=parameters["docker_host"],
            valid_s=parse_seconds(parameters["cache_valid_time"], "cache_valid_time"),
            offline=parameters["offline"],
        )
        is_current = builder.is_current(before, plan) and builder.is_undamaged(before, dest)
        after = before if is_current else builder.build(plan, dest, make_teller(parameters["_progress"]))
        plan.close()
    is_listed = True
    if parameters["sbom"]:
        is_listed = not sbom.write(sbom.make(after, os.path.basename(dest)), parameters["sbom"])
    broken = list_broken(after, parameters["packages"] or ())
    if broken:
        module.warn(escape(f"these programs will not work in the image (see problems): {', '.join(broken)}"))
    return {
        "changed": not (is_current and is_listed),
        "image": describe(after, dest),
        "diff": {"before": list_versions(before), "after": list_versions(after)},
    }


def main():
    module = AnsibleModule(
        argument_spec=dict(
            dest=dict(type="path", required=True),
            sets=dict(type="list", elements="str", choices=list(tool_sets.TOOL_SETS)),
            packages=dict(type="list", elements="str"),
            paths=dict(type="list", elements="path"),
            docker_image=dict(type="str"),
            docker_container=dict(type="str"),
            docker_host=dict(type="str"),
            prefix=dict(type="str", default="/dev/crashcart"),
            format=dict(type="str", choices=["squashfs", "erofs", "ext4"], default="squashfs"),
            arch=dict(type="str", choices=["amd64", "arm64"]),
            release=dict(type="str"),
            mirror=dict(type="str"),
            cache=dict(type="path", default="~/.cache/crashcart"),
            cache_valid_time=dict(type="str", default="1h"),
            offline=dict(type="bool", default=False),
            sbom=dict(type="path"),
            _progress=dict(type="path"),
        ),
        supports_check_mode=True,
    )
    run_module(module, run)


if __name__ == "__main__":
    main()
