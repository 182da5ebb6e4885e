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
  - Makes one image of everything that is named - sets of tools, Debian packages, package files, archives, folders, programs, a
    container image - whose programs work below C(/dev/crashcart) in any container, with libraries of the image alone.
  - The dependency closure of Debian packages is resolved by apt's own solver in an apt root of its own.
  - Needs neither root nor a mount, and runs nothing of what it unpacks, no maintainer script either. Of the machine's apt only its
    sources, keys and proxies are read.
  - What no tool needs in a container is left out - C(/boot), C(/dev), C(/proc), C(/run), C(/sys), C(/tmp), C(/var), what starts
    services, documentation, translations, tables of rare encodings, empty folders.
  - The tools load code from the image only, also those that C(docker exec) starts without any of the image's variables. Preloaded
    libraries, name services, character sets, start-up files and modules of the container (C(/etc/ld.so.preload), C(/etc/nsswitch.conf),
    C(~/.bashrc), C(~/.gdbinit), C(~/.local/lib/python3.11) and their like) are not read. What cannot be kept from that is in
    RV(image.unsealed). Variables of the container's configuration such as E(LD_PRELOAD) count where they are handed over.
  - So C(python3) does not look for modules in the current folder or beside a script (as with C(-P)) unless E(PYTHONPATH) names it,
    C(su) and C(runuser) refuse (C(setpriv) does not), and what a tool is told to start, such as C(!command), is the container's C(/bin/sh).
  - The same sources make the same image, to the byte.
  - Runs on the controller (C(delegate_to=localhost) with C(become=false)), or on another machine by delegation.
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
  sets:
    description:
      - Tools by the name of a set; V(default) where no other source is named. They are bash, coreutils, findutils, grep, less and sed,
        and beside these
      - V(default) - curl, dig, file, gdb, iproute2, lsof, ping, procps, python3, socat, strace, tcpdump, util-linux and vim, and what Ansible's
        modules call (bzip2, getent, gzip, hostname, tar, unzip, which, xz);
      - V(network) - conntrack, curl, dig, ethtool, iperf3, iproute2, iptables, mtr, nc, net-tools, nft, ngrep, openssl, ping, procps,
        socat, tcpdump, tracepath and traceroute;
      - V(debug) - binutils, bpftrace, elfutils, file, gdb, lsof, ltrace, procps, psmisc, python3, strace, sysstat, util-linux and vim;
      - V(python) - procps, python3 with its whole standard library and apt's, util-linux, and the same that Ansible's modules call.
      - V(minimal) is busybox and nothing else.
    type: list
    elements: str
    choices: [minimal, default, network, debug, python]
  packages:
    description:
      - Names of Debian packages, with C(=VERSION) where a certain version is wanted.
    type: list
    elements: str
  paths:
    description:
      - Files and folders of the machine that builds. A folder stands for the root of a file system, a C(.deb), C(.rpm) or tar archive is
        unpacked, a program goes to C(bin).
      - What a C(.deb) depends on is fetched along with it; what a C(.rpm) depends on has to be named, too.
      - A package of the store of Nix (C(/nix/store/NAME)) stays at its place, and its programs get names in C(bin). Name its whole
        closure, as C(nix-store -qR) lists it.
      - An ext2, ext3 or ext4 file system, such as an image of Oracle's crashcart, is used as it is, and is the only source then.
    type: list
    elements: path
  docker_image:
    description:
      - Name of a container image that the Docker engine has, whose files go into the tool image.
    type: str
  docker_container:
    description:
      - Name or id, or twelve or more digits of the id, of a container, running or not, whose files as they are now go into the tool image.
    type: str
  docker_host:
    description:
      - URL of the engine's socket. By default the environment variable E(DOCKER_HOST), then C(unix:///var/run/docker.sock).
    type: str
  prefix:
    description:
      - The path that the tools work at, where the image has to be attached. Its last part begins with C(crashcart).
    type: str
    default: /dev/crashcart
  format:
    description:
      - The image's file system. M(crashcart.fleet.crashcart_info) says what a host can mount.
      - V(squashfs) is the smallest, V(erofs) the quickest to start tools from, V(ext4) the one that every kernel has.
    type: str
    choices: [squashfs, erofs, ext4]
    default: squashfs
  arch:
    description:
      - The architecture of the programs by Debian's name. By default that of the machine that builds, or of the container image or
        files where there are no packages.
      - Nothing is executed, so images for other architectures than the machine's can be built.
    type: str
    choices: [amd64, arm64]
  release:
    description:
      - The release of Debian or Ubuntu that packages come from, for example V(trixie), with its updates and its security updates.
      - By default what the machine's own sources name.
    type: str
  mirror:
    description:
      - The address of the mirror for O(release), of which nothing but that suite is used then. By default the machine's own mirrors.
    type: str
  cache:
    description:
      - Folder for lists of packages and package files, kept for the next build. Builds that share one fetch one after the other.
    type: path
    default: ~/.cache/crashcart
  cache_valid_time:
    description:
      - Lists of packages that are younger are not fetched again, for example V(1h).
    type: str
    default: 1h
  offline:
    description:
      - Fetch nothing; use the lists and the packages that O(cache) has from an earlier build.
    type: bool
    default: false
  sbom:
    description:
      - A file for a software bill of materials of the image (CycloneDX 1.6, JSON).
    type: path
  _progress:
    description:
      - Internal. A file that the action plugin reads, and that the module tells each step.
    type: path
requirements:
  - patchelf, and squashfs-tools, erofs-utils or e2fsprogs for the format
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

- name: Say how big they are
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

- name: Make a tool image of a container image
  crashcart.fleet.crashcart_build:
    dest: netshoot.squashfs
    docker_image: nicolaka/netshoot
  delegate_to: localhost
  run_once: true
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
      description: Its programs by name, each with the package and the version that it came with.
      type: dict
      sample: {"bash": "bash 5.2.15-2+b7", "strace": "strace 6.1-0.1"}
    problems:
      description: Files that will not work in the image, each with the reason, such as a library that no source has.
      type: list
      elements: dict
      contains:
        path:
          description: The file, seen from the root of the image.
          type: str
        reason:
          description: What it lacks.
          type: str
    sealed:
      description: Whether all its programs load code, and what decides which code is loaded, from the image only, whatever the container
        has that they run in. The image itself says so by the file C(etc/crashcart.sealed).
      type: bool
      sample: true
    unsealed:
      description: What keeps the image from being sealed, each with the reason, such as an interpreter that looks for its modules where
        the container has them.
      type: list
      elements: dict
      contains:
        path:
          description: The file, seen from the root of the image; empty where it is all of it.
          type: str
        reason:
          description: What it would load from the container.
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
    # An image of an older builder has no components in its manifest.
    return {one["name"]: one["version"] or one["hash"] for one in (manifest or {}).get("components", ())}


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
    """The paths of programs that lack something, of the sources that were asked for by their names.

    A set's packages and dependencies are left out: they bring scripts along for languages that the image does not have.
    """
    unasked = {one["name"] for one in manifest["components"] if one["uri"]} - set(named)
    paths = [one["path"] for one in manifest["problems"] if one["path"].startswith(("bin/", "sbin/", "local/"))]
    return [path for path in paths if manifest["tools"].get(os.path.basename(path), "").split(" ")[0] not in unasked]


def make_teller(path):
    """Who writes each step to the file PATH as a line, where there is one to write to."""

    def tell(text):
        if path is not None:
            with open(path, "a", encoding="utf-8") as file:
                file.write(text.replace("\n", " ") + "\n")

    return tell


def run(module):
    if elf.ELFTOOLS_IMPORT_ERROR:
        module.fail_json(msg=missing_required_lib("pyelftools"), exception=elf.ELFTOOLS_IMPORT_ERROR)
    # The tools of file systems are not in everybody's PATH.
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    parameters = module.params
    dest = parameters["dest"]
    builder.check_dest(dest, parameters["paths"] or ())
    if parameters["sbom"] and sbom.CYCLONEDX_IMPORT_ERROR:
        module.fail_json(msg=missing_required_lib("cyclonedx-python-lib"), exception=sbom.CYCLONEDX_IMPORT_ERROR)
    beside_sbom = os.path.dirname(os.path.abspath(parameters["sbom"] or dest))
    if parameters["sbom"] and not os.access(beside_sbom, os.W_OK):
        module.fail_json(
            msg=f"sbom {parameters['sbom']} cannot be written: {beside_sbom} is no folder that is there and writable"
        )
    request = make_request(parameters)
    before = builder.read_manifest(dest)
    if module.check_mode:
        is_listed = not parameters["sbom"] or os.path.exists(parameters["sbom"])
        is_current = is_listed and builder.is_same_request(before, request)
        return {"changed": not is_current, "image": describe(before if is_current else None, dest)}
    # Beside the image there has to be room for a container's files; /tmp may be in memory.
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
