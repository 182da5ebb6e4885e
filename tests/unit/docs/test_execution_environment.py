# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection tells ansible-builder what it needs. `make package` lets ansible-builder itself read it."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from ansible_collections.crashcart.fleet.plugins.module_utils import errors
from ansible_collections.crashcart.fleet.plugins.plugin_utils import controller_needs

TOP = Path(errors.__file__).parents[2]
_LINE = re.compile(r"([a-z][a-z0-9+.-]+) \[platform:(dpkg|rpm)\]")


def read_lines(name: str) -> list[str]:
    """Return the lines of the collection's file NAME that are no comments."""
    lines = (TOP / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def list_packages(platform: str) -> set[str]:
    """Return the packages for PLATFORM, dpkg or rpm, that the file for bindep names."""
    found = [_LINE.fullmatch(line) for line in read_lines("meta/ee-bindep.txt")]
    assert all(found)
    return {one[1] for one in found if one and one[2] == platform}


def test_the_definition_names_files_of_the_collection():
    definition = yaml.safe_load((TOP / "meta/execution-environment.yml").read_text(encoding="utf-8"))
    assert definition["version"] == 3  # ansible-builder 3.2 warns of earlier ones
    assert all((TOP / place).is_file() for place in definition["dependencies"].values())
    assert set(definition["dependencies"]) == {"python", "system"}


def test_python_packages_are_those_of_a_controller_without_ansible():
    # ansible-builder leaves ansible-core to the definition of the image.
    wanted = [line for line in read_lines("requirements.txt") if not line.startswith("ansible-core")]
    assert read_lines("meta/ee-requirements.txt") == wanted


def test_debian_packages_have_the_programs_that_the_controller_calls():
    needed = {package for programs in controller_needs._PROGRAMS.values() for package in programs.values()}
    assert list_packages("dpkg") == needed | {"libzstd1", "openssh-client"}


def test_rpm_packages_are_those_without_which_nothing_can_be_fetched_or_read():
    assert list_packages("rpm") == {"libzstd", "openssh-clients"}
