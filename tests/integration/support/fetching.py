# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetch captures as ftrace_fetch's action plugin does, but without Ansible and its connection, for tests of other things."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import outbox
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import compression
from ansible_collections.crashcart.fleet.plugins.plugin_utils.arrivals import Arrivals
from ansible_collections.crashcart.fleet.plugins.plugin_utils.captures import assemble
from support import host


def fetch(
    call: Callable[..., dict[str, Any]], take: Callable[[list[str]], bytes], dest: Path, name: str, **arguments: Any
) -> list[dict[str, Any]]:
    """Return the captures of ftrace_fetch with ARGUMENTS on the host called NAME. Their files are below DEST.

    CALL(module, …) runs a module on the host and returns its result. TAKE(paths) returns the content of the first of these files of
    the host and removes all of them.
    """
    folder = dest / name
    folder.mkdir(parents=True, exist_ok=True)
    home = {"_methods": compression.list_available(), "_stamps": [path.stem for path in folder.rglob("*.dat")]}
    result = call("ftrace_fetch", dest=str(dest), **home, **arguments)
    captures: list[dict[str, Any]] = []
    transfer = result["transfer"]
    if transfer is not None:
        segments = [f"{outbox.FOLDER}/{segment['name']}.{segment['state']}" for segment in transfer["segments"]]
        local = folder / "transfer"
        local.write_bytes(take([transfer["path"], *segments]))
        for part in Arrivals(str(folder)).take(transfer, str(local)):
            path, manifest = assemble(part, str(folder), name, version=7, with_text=False)
            captures.append({"path": path, "manifest": manifest})
            os.unlink(part)
        local.unlink()
    captures += [{"path": None, "manifest": manifest} for manifest in result["empty"]]
    if result["more"] and transfer is not None:
        captures += fetch(call, take, dest, name, **arguments)
    return captures


def fetch_here(dest: Path, **arguments: Any) -> list[dict[str, Any]]:
    """Return the captures of ftrace_fetch with ARGUMENTS on this machine, which is called localhost. Their files are below DEST."""
    return fetch(host.call_module, _take_here, dest, "localhost", **arguments)


def _take_here(paths: list[str]) -> bytes:
    content = Path(paths[0]).read_bytes()
    for path in paths:
        os.unlink(path)
    return content
