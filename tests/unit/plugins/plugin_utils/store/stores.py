# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stores with real files for tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager, suppress

import pytest

from ansible_collections.crashcart.fleet.plugins.plugin_utils.store import update
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store.catalogue import open_catalogue

SECOND = 10**9
HOUR, DAY = 3600 * SECOND, 86400 * SECOND
# A process of its own finds the collection as this one does.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
NOW = 1_795_302_900 * SECOND  # 2026-11-21T23:15:00Z


def make_manifest(host="web1", container="api", begin=NOW - HOUR, end=NOW, **more):
    return {
        "version": 3,
        "inventory_hostname": host,
        "host": host,
        "container": {"id": "c" * 64, "name": container, "image": "shop/api:1", "runtime": "docker"},
        "clock_offset_ns": 0,
        "time": {
            "start": {"offset_ns": 0, "real_time_ns": begin, "uncertainty_ns": 1},
            "changed": {"offset_ns": 0, "real_time_ns": begin, "uncertainty_ns": 1},
            "end": {"offset_ns": 0, "real_time_ns": end, "uncertainty_ns": 1},
        },
        "fetched": end / SECOND,
        "complete": True,
        "reasons": [],
        "lost": 0,
        "entries": 7,
        "sha256": "a" * 64,
        **more,
    }


def write_capture(store, name, size=100, text=None, **about):
    """Write the files of a capture at HOST/CONTAINER/NAME.dat below STORE, a pathlib.Path, and return the trace's path."""
    manifest = make_manifest(**about)
    folder = store / manifest["inventory_hostname"] / manifest["container"]["name"]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.dat"
    path.with_suffix(".json").write_text(json.dumps(manifest))
    if text is not None:
        path.with_suffix(".txt").write_text(text)
    path.write_bytes(b"\0" * size)
    return path


@contextmanager
def mount_small_disk(folder):
    """Give FOLDER a file system of its own, of 512 KiB, which a test can fill."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if os.geteuid():
        pytest.skip("only root can mount a small file system")  # make test runs as root
    subprocess.run(mount, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill_up(folder):
    """Take all room that is left in FOLDER, which is a file system of its own."""
    with suppress(OSError), open(folder / "other", "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    assert update.find_free(folder) == 0


class Clock:
    """A controller's clock that a test sets."""

    def __init__(self, now=NOW):
        self.now = now

    def __call__(self):
        return self.now


@contextmanager
def open_store(store, clock=None, **options):
    warnings = []
    with open_catalogue(str(store), warnings, clock=clock or Clock(), **options) as catalogue:
        catalogue.warnings = warnings
        yield catalogue


def list_paths(catalogue):
    return [record.path for record in catalogue.list_there()]
