# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The containers of an inventory's hosts as hosts of their own."""

from __future__ import annotations

DOCUMENTATION = r"""
name: containers
short_description: The running containers of the inventory's hosts, as hosts to run any task in
version_added: 0.1.0
author:
  - crashcart.fleet contributors (@crashcart-fleet)
description:
  - Asks the hosts that other inventory sources have named before it for their containers, of all runtimes, and adds each running one
    as a host called C(CONTAINER@HOST), with the connection P(crashcart.fleet.cart#connection). No machine's name has an C(@), and patterns,
    C(--limit), caches of facts and ssh take it.
  - Containers of one name in several runtimes of a host are called C(CONTAINER.RUNTIME@HOST), and in one runtime by the beginning of their id
    in its place. In a name all but letters and digits of ASCII, C(.), C(-) and C(_) becomes C(_), such as the C(/) of a pod's
    C(NAMESPACE/POD/CONTAINER). A warning tells of names that had to be changed, and C(crashcart_container.name) is the true one.
  - All of them are in the group C(crashcart_containers). Plays for hosts only have C(hosts) of C(all:!crashcart_containers).
  - What the users of a host run themselves, as by rootless Podman, is left out unless O(users) is set.
  - The hosts are reached by their own connection variables, which their containers inherit. Those of become lead to the
    host's root. C(become) and C(become_user) of a task are for the inside, see P(crashcart.fleet.cart#connection).
  - An inventory is read before Ansible asks for a password. So with C(-K) this plugin asks once more, where a host needs one that
    is neither in C(ansible_become_password) nor in C(--become-password-file).
  - Its file's name ends with C(containers.yml) or C(containers.yaml). In a folder of inventory sources it has to come after the
    others by its name.
options:
  plugin:
    description: This plugin's name.
    type: str
    required: true
    choices: [crashcart.fleet.containers]
  hosts:
    description: Names of hosts and groups whose containers are wanted.
    type: list
    elements: str
    default: [all]
  group_by:
    description:
      - By what to make groups. Their names are C(image_…), C(label_NAME_VALUE), C(network_…), C(runtime_…) and C(on_HOST).
    type: list
    elements: str
    choices: [image, label, network, runtime, host]
    default: [image, label, network, runtime, host]
  users:
    description:
      - Add the containers of the hosts' users, too, as C(CONTAINER.userUID@HOST). They are in the same groups as the others, so whoever can log
        in to a host chooses groups for them, by their labels.
    type: bool
    default: false
  forks:
    description: How many hosts are asked at the same time.
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
_MAX_NAME = 120  # a cache of facts makes a file's name of it and the host's
_MAX_TOLD = 10  # names in a warning


class InventoryModule(BaseInventoryPlugin, Constructable):
    """Containers as hosts."""

    NAME = "crashcart.fleet.containers"

    def verify_file(self, path: str) -> bool:
        """Whether PATH may be this plugin's file."""
        return bool(super().verify_file(path)) and path.endswith(("containers.yml", "containers.yaml"))

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        """Add the containers of the hosts that INVENTORY has."""
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        variables = {name: self._find_variables(name) for name in self._choose_hosts()}
        # Containers that are in the inventory already have none.
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
            wanted = [one for one in found if one["user"] is None or self.get_option("users")]
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
        """NAME, or one made of it where the inventory has it already for something other than CONTAINER."""
        known = self.inventory.hosts.get(name)
        if known is None or known.vars.get("ansible_cart_container") == _find_key(container):
            return name
        short_name, _at, host = name.partition("@")
        return self._find_free(f"{short_name}.{_clean(container['id'])[:12]}@{host}", container)

    def _choose_hosts(self) -> list[str]:
        names: dict[str, None] = {}
        for wanted in self.get_option("hosts"):
            if wanted == "all":  # which groups are children of it is only settled when all sources are read
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
        """A connection to the host that has VARIABLES; nothing is sent yet."""
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
        """What the command line says of it; to ask again is the only way to learn what it has asked for."""
        path = context.CLIARGS.get("become_password_file") or constants.BECOME_PASSWORD_FILE
        if context.CLIARGS.get("become_ask_pass"):
            return str(self.display.prompt("BECOME password to list containers: ", private=True))
        if path and path != "-":  # its stdin has been read
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
        # What we wrote ourselves; all that hosts and containers say stays untrusted, and is never taken for a template.
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
    """A name for each of a host's CONTAINERS; those of one name bear their runtime, too, or the beginning of their id.

    Whatever a user of the host calls a container, it changes no name of one of root's.
    """
    names: dict[int, str] = {}
    for user in dict.fromkeys([None, *(one["user"] for one in containers)]):
        some = {index: one for index, one in enumerate(containers) if one["user"] == user}
        taken = set(names.values())
        plain = Counter(map(_shorten, some.values()))
        longer = Counter(f"{_shorten(one)}.{one['runtime']}" for one in some.values())
        for index, one in some.items():
            name = _shorten(one)
            if plain[name] > 1 or name in taken:
                name = f"{name}.{one['runtime']}"
                if longer[name] > 1 or name in plain or name in taken:
                    name = f"{_shorten(one)}.{_clean(one['id'])[:12]}"
            names[index] = name
    return [names[index] for index in range(len(containers))]


def _describe(container: dict[str, Any]) -> str:
    """What people call CONTAINER on its host."""
    return str(container["name"]) + ("" if container["user"] is None else f".user{container['user']}")


def _shorten(container: dict[str, Any]) -> str:
    """A name for CONTAINER that harms nobody, if there is no other of that name."""
    name = _clean(_describe(container))
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 13]}.{_clean(container['id'])[:12]}"


def _clean(text: str) -> str:
    """TEXT with what patterns, files or command lines would take for something else replaced."""
    return re.sub(r"[^A-Za-z0-9._-]|^[.-]", "_", text)


def _find_key(container: dict[str, Any]) -> str:
    """What the connection plugin takes for CONTAINER and for no other."""
    owner = "" if container["user"] is None else f"{container['user']}/"
    return f"{container['runtime']}:{owner}{container['id']}"


def _ask(connection: Any) -> tuple[list[dict[str, Any]], str]:
    """The containers of a host, and why there are no others, or none at all; '' where these are all."""
    try:
        return connection.list_containers()  # type: ignore[no-any-return]
    except AnsibleError as error:
        return [], str(error)
    finally:
        connection.close()


def _refer(host: str, variable: str) -> Any:
    """A template of what VARIABLE of HOST is, by the variables of that host."""
    return trust_as_template(f"{{{{ hostvars[{json.dumps(host)}][{json.dumps(variable)}] }}}}")


def _translate(variables: dict[str, Any]) -> dict[str, Any]:
    found = {}
    link = str(variables.get("ansible_connection", "")).rpartition(".")[2]
    if link in ("local", "ssh"):
        found["ansible_cart_link"] = trust_as_template(link)
    if _ENGINE in variables:  # the playbooks' variable is enough for both
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
