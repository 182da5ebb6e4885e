# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Python's library compiled: where an image is mounted nothing can be written, and so Python would compile it anew at each start.

The compiler is this machine's Python of the image's version; nothing of the image is run.
Source: PEP 3147 (where compiled files are), PEP 552 (unchecked-hash: no time stamp, so the same source gives the same file).
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
    """Compile what is in TREE, which will be at PREFIX, for the Python in it; a phrase for why that was not possible."""
    names = os.listdir(f"{tree}/lib") if os.path.isdir(f"{tree}/lib") and not os.path.islink(f"{tree}/lib") else ()
    versions = sorted(match[1] for name in names if (match := _FOLDER.fullmatch(name)))
    for version in versions:
        python = _find_python(version)
        if python is None:
            return f"this machine has no Python {version} to compile the image's library with: its Python will start slowly"
        files = [path for name in (f"python{version}", "python3") for path in _gen_sources(f"{tree}/lib/{name}")]
        options = ("-q", "--invalidation-mode", "unchecked-hash", "-s", tree, "-p", prefix, "-i", "-")
        # Files that are made to be wrong (lib2to3's tests have some) are passed over, and the exit code is 1 then.
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
    # A version manager's stand-in answers for versions that it does not have.
    if python and subprocess.run([python, "-I", "-c", ""], capture_output=True, check=False).returncode == 0:
        return python
    return None


def _gen_sources(folder: str) -> Iterator[str]:
    """Python's files below FOLDER, from which what stands where compiled ones go is removed: it may be a link to elsewhere."""
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
