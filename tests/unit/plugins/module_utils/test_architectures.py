# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of architectures."""

from __future__ import annotations

import platform

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils import architectures


@pytest.mark.parametrize(
    ("machine", "name"), [("x86_64", "amd64"), ("aarch64", "arm64"), ("riscv64", "riscv64"), ("", "")]
)
def test_names(machine, name):
    assert architectures.name_architecture(machine) == name


def test_this_machine():
    assert architectures.find_architecture() == architectures.name_architecture(platform.machine())
