# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the process that makes a report, and return its result. The process ends with its parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape, escape_lines
from ansible_collections.crashcart.fleet.plugins.plugin_utils.compiled_cache import COLLECTION, has_code, open_cache

# The options of ftrace_report, with their types.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "src": {"type": "path"},
    "captures": {"type": "list", "elements": "path"},
    "dest": {"type": "path", "required": True},
    "formats": {"type": "list", "elements": "str", "choices": ["json", "text"], "default": ["json", "text"]},
    "min_latency": {"type": "str"},
    "fail_on": {"type": "list", "elements": "str", "default": []},
    "since": {"type": "str"},
    "until": {"type": "str"},
    "hosts": {"type": "list", "elements": "str", "default": []},
    "containers": {"type": "list", "elements": "str", "default": []},
    "runs": {"type": "list", "elements": "str", "default": []},
}
REQUIRED_ONE_OF = [("src", "captures")]
# Only this collection is there, wherever its folder is, and whatever another folder of Python's path holds under the same names. Its bytecode
# is kept beside the compiled code: its own folder is often not writable. numba's and numpy's was written when they were installed. What is
# imported stays, so nothing looks through it for garbage.
PROGRAM = """\
import contextlib, gc, importlib, sys, types
gc.disable()
with contextlib.suppress(ImportError):
    import numba
sys.pycache_prefix, sys.dont_write_bytecode = sys.argv[2], False
path = []
for name in ("ansible_collections", "crashcart", "fleet"):
    path.append(name)
    module = sys.modules[".".join(path)] = types.ModuleType(".".join(path))
    module.__path__ = [sys.argv[1]] if name == "fleet" else []
main = importlib.import_module("ansible_collections.crashcart.fleet.plugins.plugin_utils." + sys.argv[3]).main
gc.freeze()
gc.enable()
main()
"""
"""Python's text that runs main() of a module of plugin_utils. Its arguments: the collection's folder, the cache, the module's name."""
_MAX_STDERR = 4000  # characters of it in a message
_SMALL = 256 << 10  # bytes of captures, some 50,000 events: plain Python takes five seconds, and compiling a minute


def run(request: dict[str, Any], folder: str) -> dict[str, Any]:
    """Return the result, as ftrace_report returns it, for REQUEST, a report's or a text's; relative paths in REQUEST are below FOLDER.

    The result has `failed` and `msg` where there is no report, also where the process has ended without a result.
    """
    with open_cache() as cache:
        # numpy's library for matrices, which is not used, would start threads.
        settings = {"NUMBA_CACHE_DIR": cache, "OPENBLAS_NUM_THREADS": "1"}
        if not has_code(cache) and are_small(request, folder):
            settings["NUMBA_DISABLE_JIT"] = "1"
        done = subprocess.run(
            # Without -P, Python would look for modules in the current folder first, which is anybody's.
            [sys.executable, "-P", "-c", PROGRAM, str(COLLECTION), cache, "report_process"],
            input=json.dumps(request).encode("ascii"),
            capture_output=True,
            cwd=folder,
            env={**os.environ, **settings},
            check=False,
        )
    stderr = escape_lines(done.stderr.decode("utf-8", "replace"))
    try:
        result: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
    except ValueError:
        result = {}
    if result:
        return result
    return {"failed": True, "changed": False, "msg": _explain(done.returncode, stderr), "stderr": stderr[-_MAX_STDERR:]}


def are_small(request: dict[str, Any], folder: str) -> bool:
    """Return True if the captures that REQUEST names are read sooner by plain Python than their reader is compiled."""
    chosen = request.get("captures")
    if chosen is None:
        source = os.path.join(folder, request.get("src") or "")
        chosen = [os.path.join(place, name) for place, _folders, names in os.walk(source) for name in names] or [source]
    size = 0
    for path in chosen:
        if not path.endswith(".json"):
            with suppress(OSError):  # the process tells what is wrong with it
                size += os.stat(os.path.join(folder, path)).st_size
    return size <= _SMALL


def _explain(status: int, stderr: str) -> str:
    """Return why the process ended with STATUS, negative for a signal, and without a result; STDERR holds its last words."""
    if status == -signal.SIGKILL:
        return (
            "the process that decodes the captures was killed, most likely because memory ran out (see the kernel's log):"
            " report on fewer captures at once, or where there is more memory"
        )
    last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "it said nothing")
    how = f"was ended by {_name_signal(-status)}" if status < 0 else f"ended with exit code {status}"
    return escape(f"the process that decodes the captures {how} before the report was done: {last[:500]}")


def _name_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
