# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Add the running containers of an inventory's hosts as hosts of their own."""

from __future__ import annotations

DOCUMENTATION = r"""
name: containers
short_description: The running containers of the inventory's hosts, as hosts to run any task in
version_added: 0.1.0
author:
  - crashcart.fleet contributors (@crashcart-fleet)
description:
  - Asks the hosts of earlier inventory sources for their containers, of all runtimes. Adds each running container as a host called
    C(CONTAINER@HOST), with the connection P(crashcart.fleet.cart#connection). No machine's name has an C(@), and patterns,
    C(--limit), caches of facts and ssh accept it.
  - Where several runtimes of a host have a container of the same name, the containers are called C(CONTAINER.RUNTIME@HOST). Where one
    runtime has several, the beginning of the id takes the place of the runtime.
  - In a name each character other than ASCII letters and digits, C(.), C(-) and C(_) becomes C(_), such as the C(/) of a pod's
    C(NAMESPACE/POD/CONTAINER). A warning lists changed names, and C(crashcart_container.name) is the original one.
  - All containers are in the group C(crashcart_containers). Plays for hosts only have C(hosts) of C(all:!crashcart_containers).
  - Containers that the users of a host run themselves, for example by rootless Podman, are left out unless O(users) is set.
  - The connection variables of a host lead to the host, and its containers inherit them. Variables of become lead to the
    host's root. C(become) and C(become_user) of a task are for the inside, see P(crashcart.fleet.cart#connection).
  - Ansible does not hand the password that it asks for with C(-K) to inventory plugins. So with C(-K) this plugin asks once more where a
    host needs a password that is neither in C(ansible_become_password) nor in C(--become-password-file).
  - The name of the plugin's file ends with C(containers.yml) or C(containers.yaml). In a folder of inventory sources the file has to come
    after the others in the order of names.
options:
  plugin:
    description: This plugin's name.
    type: str
    required: true
    choices: [crashcart.fleet.containers]
  hosts:
    description: Names of the hosts and groups whose containers are added.
    type: list
    elements: str
    default: [all]
  group_by:
    description:
      - Properties that containers are grouped by. The groups are called C(image_…), C(label_NAME_VALUE), C(network_…), C(runtime_…) and
        C(on_HOST).
    type: list
    elements: str
    choices: [image, label, network, runtime, host]
    default: [image, label, network, runtime, host]
  users:
    description:
      - Add the containers of the hosts' users, too, as C(CONTAINER.userUID@HOST). These containers are in the same groups as the others, so
        anyone who can log in to a host chooses groups for them, by labels.
    type: bool
    default: false
  forks:
    description: Number of hosts that are asked at the same time.
    type: int
    default: 10
extends_documentation_fragment:
  - ansible.builtin.constructed
"""

EXAMPLES = r"""
# hosts/1-hosts.yml has web1 and web2; this is hosts/2-containers.yml. Then
# `ansible -i hosts network_shop -m ansible.builtin.setup` asks the containers of the network shop.
plugin: crashcart.fleet.containers
hosts: [web1, web2]

# Without groups by label, but with one of its own
# plugin: crashcart.fleet.containers
# group_by: [image, network]
# groups:
#   fronts: crashcart_container.labels.tier | default('') == 'front'
"""

import functools
import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible import constants, context
from ansible.errors import AnsibleError, AnsibleParserError
from ansible.inventory.group import to_safe_group_name
from ansible.inventory.helpers import get_group_vars
from ansible.playbook.play_context import PlayContext
from ansible.plugins.inventory import BaseInventoryPlugin, Constructable
from ansible.plugins.loader import connection_loader
from ansible.template import Templar, trust_as_template
from ansible.utils.vars import combine_vars
from ansible.vars.plugins import get_vars_from_inventory_sources

from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape

_CONNECTION = "crashcart.fleet.cart"
_ENGINE = "crashcart_docker_host"
_GROUP = "crashcart_containers"
_MAX_NAME = 120  # a cache of facts has a file that is called by this name and the host's
_MAX_TOLD = 10  # names in a warning


class InventoryModule(BaseInventoryPlugin, Constructable):
    """The inventory plugin that adds containers as hosts."""

    NAME = "crashcart.fleet.containers"

    def verify_file(self, path: str) -> bool:
        """Return True if PATH has a name that this plugin's files have."""
        return bool(super().verify_file(path)) and path.endswith(("containers.yml", "containers.yaml"))

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        """Add the containers of the hosts in INVENTORY.

        Raises AnsibleParserError for an unknown host or group in the file PATH, and, if `strict` is set, for a host that does not answer.
        """
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        variables = {name: self._find_variables(name) for name in self._choose_hosts()}
        # A container that is in the inventory already is no host of containers.
        hosts = [name for name, values in variables.items() if values.get("ansible_connection") != _CONNECTION]
        connections = {name: self._connect(variables[name]) for name in hosts}
        with ThreadPoolExecutor(self.get_option("forks")) as pool:
            answers = dict(zip(hosts, pool.map(lambda name: _ask(connections[name]), hosts)))
        self.inventory.add_group(_GROUP)
        for name, (found, silence) in answers.items():
            if silence and self.get_option("strict"):
                raise AnsibleParserError(f"containers of {name}: {silence}")
            if silence:
                self.display.warning(f"containers of {name} are left out: {silence}")
            wanted = [container for container in found if container["user"] is None or self.get_option("users")]
            changed = []
            for short_name, container in zip(_name(wanted), wanted):
                full_name = self._find_free(f"{short_name}@{name}", container)
                self._add(full_name, name, connections[name], variables[name], container)
                if full_name != f"{_describe(container)}@{name}":
                    changed.append(f"{container['name']!r} is {full_name}")
            if changed:
                more = [f"and {len(changed) - _MAX_TOLD} more"] if len(changed) > _MAX_TOLD else []
                told = escape(", ".join(changed[:_MAX_TOLD] + more))
                self.display.warning(f"containers of {name} have other names in the inventory: {told}")

    def _find_free(self, name: str, container: dict[str, Any]) -> str:
        """Return NAME, or a name derived from it where NAME stands for something other than CONTAINER in the inventory."""
        known = self.inventory.hosts.get(name)
        if known is None or known.vars.get("ansible_cart_container") == _find_key(container):
            return name
        short_name, _at, host = name.partition("@")
        return self._find_free(f"{short_name}.{_clean(container['id'])[:12]}@{host}", container)

    def _choose_hosts(self) -> list[str]:
        names: dict[str, None] = {}
        for wanted in self.get_option("hosts"):
            if wanted == "all":  # Ansible adds groups to `all` only after it has read all sources
                names.update(dict.fromkeys(self.inventory.hosts))
            elif wanted in self.inventory.groups:
                names.update((host.name, None) for host in self.inventory.groups[wanted].get_hosts())
            elif wanted in self.inventory.hosts:
                names[wanted] = None
            else:
                raise AnsibleParserError(
                    f"hosts: no inventory source before this one has a host or a group called {wanted!r}"
                )
        return list(names)

    def _find_variables(self, name: str) -> dict[str, Any]:
        host = self.inventory.hosts[name]
        sources = getattr(self.inventory, "processed_sources", [])
        layers = [
            get_group_vars(host.get_groups()),
            get_vars_from_inventory_sources(self.loader, sources, host.get_groups(), "all"),
            host.get_vars(),
            get_vars_from_inventory_sources(self.loader, sources, [host], "all"),
        ]
        return {**functools.reduce(combine_vars, layers), "inventory_hostname": name}

    def _connect(self, variables: dict[str, Any]) -> Any:
        """Make a connection to the host that has VARIABLES, without sending anything yet."""
        play_context = PlayContext()
        connection = connection_loader.get(_CONNECTION, play_context)
        translated = {**variables, **_translate(variables)}
        templar = Templar(self.loader, variables=translated)
        options = connection._resolve_option_variables(translated, templar)
        keys = {"remote_user": play_context.remote_user}
        connection.set_options(task_keys=keys, var_options=options)
        if connection.must_become_on_host() and not connection.get_option("host_become_password"):
            play_context.become_pass = self._become_password
            connection.set_options(task_keys=keys, var_options=options)
        return connection

    @functools.cached_property
    def _become_password(self) -> str:
        """The password of the command line, from its file or from a prompt, since inventory plugins do not get Ansible's answer."""
        path = context.CLIARGS.get("become_password_file") or constants.BECOME_PASSWORD_FILE
        if context.CLIARGS.get("become_ask_pass"):
            return str(self.display.prompt("BECOME password to list containers: ", private=True))
        if path and path != "-":  # "-" means stdin, which has been read already
            from ansible.cli import CLI

            return str(CLI.get_password_from_file(path))
        return ""

    def _add(self, name: str, host: str, connection: Any, variables: dict[str, Any], container: dict[str, Any]) -> None:
        self.inventory.add_host(name, group=_GROUP)
        values = _translate(variables)
        own = [key for key in variables if key.startswith("ansible_cart_")]
        for key in [*connection.list_host_variables(), *own]:
            if key in variables and key != "inventory_hostname":
                values[key] = _refer(host, key) if self.templar.is_template(variables[key]) else variables[key]
        if (
            _ENGINE in variables
            and "ansible_cart_docker_host" not in variables
            and self.templar.is_template(variables[_ENGINE])
        ):
            values["ansible_cart_docker_host"] = _refer(host, _ENGINE)
        values.setdefault("ansible_host", host)
        # Only these constants are trusted as templates. Text of hosts and containers stays untrusted, so Ansible never evaluates it.
        values["ansible_connection"] = trust_as_template(_CONNECTION)
        values["ansible_cart_container"] = _find_key(container)
        values["ansible_python_interpreter"] = trust_as_template("/dev/crashcart/bin/python3")
        values["crashcart_container"] = container
        for key, value in values.items():
            self.inventory.set_variable(name, key, value)
        for group in _list_groups(host, container, self.get_option("group_by")):
            self.inventory.add_group(group)
            self.inventory.add_child(group, name)
        strict = self.get_option("strict")
        self._set_composite_vars(self.get_option("compose"), values, name, strict=strict)
        self._add_host_to_composed_groups(self.get_option("groups"), values, name, strict=strict)
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), values, name, strict=strict)


def _name(containers: list[dict[str, Any]]) -> list[str]:
    """Return a name for each of a host's CONTAINERS; equal names get the runtime, or the beginning of the id, appended.

    Root's containers get their names first, so that a user's container cannot change them.
    """
    names: dict[int, str] = {}
    for user in dict.fromkeys([None, *(container["user"] for container in containers)]):
        some = {index: container for index, container in enumerate(containers) if container["user"] == user}
        taken = set(names.values())
        plain = Counter(map(_shorten, some.values()))
        longer = Counter(f"{_shorten(container)}.{container['runtime']}" for container in some.values())
        for index, container in some.items():
            name = _shorten(container)
            if plain[name] > 1 or name in taken:
                name = f"{name}.{container['runtime']}"
                if longer[name] > 1 or name in plain or name in taken:
                    name = f"{_shorten(container)}.{_clean(container['id'])[:12]}"
            names[index] = name
    return [names[index] for index in range(len(containers))]


def _describe(container: dict[str, Any]) -> str:
    """Return the name of CONTAINER on its host, with the user's number for a user's container."""
    return str(container["name"]) + ("" if container["user"] is None else f".user{container['user']}")


def _shorten(container: dict[str, Any]) -> str:
    """Return a name for CONTAINER of safe characters and limited length, which other containers may have, too."""
    name = _clean(_describe(container))
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 13]}.{_clean(container['id'])[:12]}"


def _clean(text: str) -> str:
    """Return TEXT with each character replaced by "_" that has a meaning in patterns, files' names or command lines."""
    return re.sub(r"[^A-Za-z0-9._-]|^[.-]", "_", text)


def _find_key(container: dict[str, Any]) -> str:
    """Return the value of the connection's option `container` that means CONTAINER and no other."""
    owner = "" if container["user"] is None else f"{container['user']}/"
    return f"{container['runtime']}:{owner}{container['id']}"


def _ask(connection: Any) -> tuple[list[dict[str, Any]], str]:
    """Return the containers of CONNECTION's host, and why the list is incomplete or empty, or '' where it is complete."""
    try:
        return connection.list_containers()  # type: ignore[no-any-return]
    except AnsibleError as error:
        return [], str(error)
    finally:
        connection.close()


def _refer(host: str, variable: str) -> Any:
    """Return a template that gives VARIABLE of HOST, evaluated with the variables of HOST."""
    return trust_as_template(f"{{{{ hostvars[{json.dumps(host)}][{json.dumps(variable)}] }}}}")


def _translate(variables: dict[str, Any]) -> dict[str, Any]:
    found = {}
    link = str(variables.get("ansible_connection", "")).rpartition(".")[2]
    if link in ("local", "ssh"):
        found["ansible_cart_link"] = trust_as_template(link)
    if _ENGINE in variables:  # a user sets the playbooks' variable only, and it holds for the connection, too
        found["ansible_cart_docker_host"] = variables[_ENGINE]
    return {**found, **{key: value for key, value in variables.items() if key.startswith("ansible_cart_")}}


def _list_groups(host: str, container: dict[str, Any], kinds: list[str]) -> list[str]:
    groups = []
    if "image" in kinds and container["image"]:
        groups.append(f"image_{container['image']}")
    if "label" in kinds:
        groups += [f"label_{key}_{value}" for key, value in container["labels"].items()]
    if "network" in kinds:
        groups += [f"network_{network}" for network in container["networks"]]
    if "runtime" in kinds:
        groups.append(f"runtime_{container['runtime']}")
    if "host" in kinds:
        groups.append(f"on_{host}")
    return [to_safe_group_name(group, force=True, silent=True) for group in groups]
