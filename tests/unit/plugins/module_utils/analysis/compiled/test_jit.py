# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compiled code that is kept is loaded by the next process without what only a compilation needs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled import jit

pytest.importorskip("numba")

SOURCE = f"""
from {jit.__name__} import compile_whole

@compile_whole
def add(one, other):
    return one + other
"""
# Each compilation gets its context ready first, and so does numba before it loads kept code.
COUNT = """
import sys
from numba.core import base
count = 0
def refresh(self, refresh=base.BaseContext.refresh):
    global count
    count += 1
    refresh(self)
base.BaseContext.refresh = refresh
from added import add
print(add(int(sys.argv[1]), 2), count)
"""


def run(folder, number):
    paths = [str(folder), jit.__file__.rpartition("/ansible_collections/")[0]]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": ":".join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", COUNT, str(number)], env=environment, capture_output=True, text=True, check=True
    )
    return tuple(map(int, done.stdout.split()))


def test_kept_code_is_loaded_at_once_and_what_is_gone_is_compiled_again(tmp_path):
    (tmp_path / "added.py").write_text(SOURCE)
    total, count = run(tmp_path, 40)
    assert total == 42 and count > 0
    assert run(tmp_path, 41) == (43, 0)
    for path in (tmp_path / "cache").rglob("*.nbc"):
        path.unlink()
    total, count = run(tmp_path, 42)
    assert total == 44 and count > 0
