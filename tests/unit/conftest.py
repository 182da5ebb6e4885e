# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Let pytest find the checkout as the collection that it is, also where nothing has prepared that."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _is_importable() -> bool:
    try:
        return importlib.util.find_spec("ansible_collections.crashcart.fleet.plugins") is not None
    except ModuleNotFoundError:
        return False


if not _is_importable():
    link = ROOT / ".collections/ansible_collections/crashcart/fleet"
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to("../../..")
    sys.path.insert(0, str(ROOT / ".collections"))
    sys.modules.pop("ansible_collections", None)  # one that another place has

# Let tests find what numba has compiled before: here, since a conftest below imports numba, which then looks at the environment. Beside the
# sources, numba would take old code when only a file has changed whose functions are compiled as parts of others.
_CACHE = contextlib.ExitStack()
if importlib.util.find_spec("numba") and "NUMBA_CACHE_DIR" not in os.environ:
    from ansible_collections.crashcart.fleet.plugins.plugin_utils import compiled_cache

    os.environ["NUMBA_CACHE_DIR"] = _CACHE.enter_context(compiled_cache.open_cache())


def pytest_configure(config):
    """Name the marker also where the checkout's settings of pytest are not read."""
    config.addinivalue_line("markers", "sweep: looks at very many cases; `make quick` leaves it out")
    config.add_cleanup(_CACHE.close)


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Return a plain folder that plays tracefs, with all files of the collection on a host beside it."""
    # Here, since most tests need none of what it imports.
    from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.ftrace.kernel import install

    return install(str(tmp_path), monkeypatch)


_SECONDS: Counter[str] = Counter()


def pytest_runtest_logreport(report):
    """Count how long the tests of each file take."""
    _SECONDS[report.nodeid.partition("::")[0]] += report.duration


def pytest_sessionfinish():
    """Write these times for the next `make quick`."""
    if path := os.environ.get("CRASHCART_TEST_SECONDS"):
        Path(path).write_text("".join(f"{seconds:.2f} {name}\n" for name, seconds in _SECONDS.items()))


def pytest_collection_finish():
    """Leave what is loaded by now out of garbage collections, and out of what forked children copy by them."""
    gc.freeze()
