# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a program that stays on a host: one file, which the host's Python runs, with what it imports of this collection and nothing else.

It is an archive in the form of Python's zipapp. Its bytes depend only on the collection's sources and on the Python.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import io
import marshal
import shlex
import sys
import zipfile
from typing import Any, Callable, Iterator, Sequence

_COLLECTION = "ansible_collections.crashcart.fleet"
_CALL = "\n\nmain()\n"
RUN = '#!/bin/sh\nexec %s -IS "$0" "$@"\n'
# Ends with 0 also where that Python is missing, or is killed, and at signals that a shell can have a trap for.
RUN_AND_END_WITH_0 = """\
#!/bin/sh
trap : HUP INT QUIT PIPE ALRM TERM USR1 USR2
%s -IS "$0" "$@" || logger -t crashcart-start-hook "$0 $*: its Python has ended with status $?" 2>/dev/null
exit 0
"""
_WHEN = (1980, 1, 1, 0, 0, 0)


def make(main: str, others: Sequence[str] = (), shell: str = RUN) -> tuple[bytes, bytes]:
    """Return a program as bytes, and the last of these bytes, a digest of the sources that the program was made of.

    The program runs on the Python that runs this function. It calls main() of the module MAIN, and has what that and the modules OTHERS
    import, which have to be on this host: Ansible sends what the calling module imports. SHELL (RUN or RUN_AND_END_WITH_0) starts it.
    Before Python 3.11 the other bytes of two programs may differ though their sources are equal.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        modules = _read_all([main, *others])
        _add_module(archive, "__main__", modules[main] + _CALL)
        folders = set()
        for name, source in sorted(modules.items()):
            path = name.replace(".", "/")
            parts = path.split("/")[:-1]
            folders |= {"/".join(parts[:count]) for count in range(1, len(parts) + 1)}
            _add_module(archive, path, source)
        for folder in sorted(folders):
            _add(archive, f"{folder}/__init__.py", b"")
        made_of = [
            shell,
            sys.executable,
            sys.version,
            *(f"{name}\n{source}" for name, source in sorted(modules.items())),
        ]
        archive.comment = hashlib.sha256("\0".join(made_of).encode("utf-8")).hexdigest().encode("ascii")
        end = archive.comment
    return (shell % shlex.quote(sys.executable)).encode() + content.getvalue(), end


def _add_module(archive: zipfile.ZipFile, path: str, source: str) -> None:
    _add(archive, f"{path}.py", source.encode("utf-8"))
    # Python compiles nothing from an archive for later.
    _add(archive, f"{path}.pyc", _compile(source, f"{path}.py"))


def _add(archive: zipfile.ZipFile, path: str, content: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(path, _WHEN), content, zipfile.ZIP_DEFLATED)


def _compile(source: str, path: str) -> bytes:
    """Return SOURCE as a .pyc file that is not compared with a source (PEP 552)."""
    code = compile(source, path, "exec", dont_inherit=True)
    return importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8) + marshal.dumps(code)


def _read_all(names: Sequence[str]) -> dict[str, str]:
    """Return name → source of the modules NAMES, and of all of this collection that they import."""
    found: dict[str, str] = {}
    left = list(names)
    while left:
        name = left.pop()
        if name in found:
            continue
        source = _read(name)
        if source is not None:  # a name that is imported from a module may be a module or not
            found[name] = source
            left += _gen_imports(source)
    return found


def _gen_imports(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(_COLLECTION):
            yield node.module
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def _read(name: str) -> str | None:
    """Return the source of the module NAME, from wherever Python imports it; None if there is none."""
    try:
        spec = importlib.util.find_spec(name)
    except ImportError:  # its parent is no package
        return None
    if spec is None or spec.submodule_search_locations is not None:
        return None
    # No type of loaders has it, and all loaders of sources do; Ansible's own returns bytes.
    get_source: Callable[[str], Any] = getattr(spec.loader, "get_source")  # noqa: B009
    source = get_source(name)
    return source.decode("utf-8") if isinstance(source, bytes) else source
