# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The groups of modules for module_defaults: an option that one module of a group lacks would break it."""

from __future__ import annotations

import importlib
from pathlib import Path

from ansible.module_utils.common.yaml import yaml_load  # in C, where that is there

from ansible_collections.crashcart.fleet.plugins.modules import crashcart_info

HERE = Path(crashcart_info.__file__).parent
OF_CONTAINERS = {"containers", "labels", "query", "docker_host", "allow_empty"}


def read_options(text):
    """The options of DOCUMENTATION in TEXT, with those of the fragments."""
    about = yaml_load(text)
    options = set(about.get("options") or {})
    return (
        options | OF_CONTAINERS if "crashcart.fleet.containers" in about["extends_documentation_fragment"] else options
    )


def read_modules():
    """Module → its options, and the groups that its documentation names."""
    found = {}
    for path in HERE.glob("[!_]*.py"):
        module = importlib.import_module(f"ansible_collections.crashcart.fleet.plugins.modules.{path.stem}")
        attributes = yaml_load(module.DOCUMENTATION)["attributes"]
        named = attributes["action_group"].get("membership", ["crashcart.fleet.crashcart"])
        found[path.stem] = (read_options(module.DOCUMENTATION), named)
    return found


def test_each_module_of_a_group_has_its_options_and_names_it():
    groups = yaml_load((HERE.parents[1] / "meta" / "runtime.yml").read_text(encoding="utf-8"))["action_groups"]
    modules = read_modules()
    wanted = {
        "crashcart": set(modules),
        "containers": {name for name, (options, _named) in modules.items() if options >= OF_CONTAINERS},
        # crashcart_build and crashcart_image return an image, and are told its name in other words.
        "images": {name for name, (options, _named) in modules.items() if "image" in options},
    }
    assert {group: set(members) for group, members in groups.items()} == wanted
    for name, (_options, named) in modules.items():
        assert {f"crashcart.fleet.{group}" for group, members in groups.items() if name in members} == set(named), name
