# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""strace's classes of system calls."""

from __future__ import annotations

import subprocess

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import syscall_names
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.syscall_classes import CLASSES, find_class


def test_words_for_classes():
    assert find_class("%file") == find_class("file") == CLASSES["file"]
    assert find_class("%net") == find_class("network") == CLASSES["network"]
    assert find_class("%signal") == CLASSES["signal"]
    # 32-bit programs have calls of these names.
    assert (find_class("signal"), find_class("ipc")) == (None, None)
    assert (find_class("%no"), find_class("openat"), find_class("")) == (None, None, None)


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_has_calls_of_this_machine(name):
    found = syscall_names.find_numbers([f"%{name}"], compat=True)
    assert found.native
    assert found.has_returns is (name == "signal")
    known = {*syscall_names.list_names().values(), *syscall_names.list_compat_names().values()}
    # A word that no machine knows is a mistake; newer calls than the library's, and other machines', are few.
    assert len(CLASSES[name] - known) <= 12


def test_a_class_that_there_is_none_of():
    with pytest.raises(FleetError, match="no class '%fle' of system calls: write one of %file, %desc"):
        syscall_names.find_numbers(["%fle"], compat=True)


@pytest.mark.parametrize("name", CLASSES)
def test_strace_has_these_classes(name):
    assert subprocess.run(["strace", "-e", f"trace=%{name}", "true"], capture_output=True, check=False).returncode == 0
