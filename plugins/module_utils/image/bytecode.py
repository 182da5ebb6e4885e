# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compile Python's library in a tree. An image is read-only, so Python would otherwise compile its library at each start.

The compiler is this machine's Python of the same version. Nothing of the image is run.
Sources: PEP 3147 (places of compiled files), PEP 552 (unchecked-hash: no time stamp, so the same source gives the same file).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

_FOLDER = re.compile(r"python(3\.\d+)")
_TIMEOUT_S = 300


def compile_library(tree: str, prefix: str) -> str:
    """Compile the Python library in TREE, which will be at PREFIX. Return "", or a phrase that says why that was not possible."""
    names = os.listdir(f"{tree}/lib") if os.path.isdir(f"{tree}/lib") and not os.path.islink(f"{tree}/lib") else ()
    versions = sorted(match[1] for name in names if (match := _FOLDER.fullmatch(name)))
    for version in versions:
        python = _find_python(version)
        if python is None:
            return f"this machine has no Python {version} to compile the image's library with: its Python will start slowly"
        files = [path for name in (f"python{version}", "python3") for path in _gen_sources(f"{tree}/lib/{name}")]
        options = ("-q", "--invalidation-mode", "unchecked-hash", "-s", tree, "-p", prefix, "-i", "-")
        # compileall skips files with errors (lib2to3's tests have some on purpose) and exits with 1 then.
        subprocess.run(
            [python, "-I", "-W", "ignore", "-m", "compileall", *options],
            input="\n".join(sorted(files)).encode("utf-8", "surrogateescape"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT_S,
            check=False,
        )
    return ""


def _find_python(version: str) -> str | None:
    if version == "{}.{}".format(*sys.version_info):
        return sys.executable
    python = shutil.which(f"python{version}")
    # A version manager's stand-in is also there for versions that are not installed.
    if python and subprocess.run([python, "-I", "-c", ""], capture_output=True, check=False).returncode == 0:
        return python
    return None


def _gen_sources(folder: str) -> Iterator[str]:
    """Yield the Python sources below FOLDER, and remove each __pycache__ there: it may be a link that leads elsewhere."""
    if os.path.islink(folder):
        return
    for place, folders, names in os.walk(folder):
        cache = os.path.join(place, "__pycache__")
        if os.path.islink(cache) or os.path.isfile(cache):
            os.unlink(cache)
        elif "__pycache__" in folders:
            shutil.rmtree(cache)
        if "__pycache__" in folders:
            folders.remove("__pycache__")
        for name in names:
            path = os.path.join(place, name)
            if name.endswith(".py") and not os.path.islink(path) and "\n" not in path:
                yield path
