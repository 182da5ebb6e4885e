# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fail where a docstring does not stand alone, or is missing. `make lint` runs this program beside check_shape.py.

- No docstring begins with a word of FIRST_WORDS: it would need the text around it, or have no actor.
- Each public function, class and method of plugins/module_utils and plugins/plugin_utils has a docstring; those of their tests need none. A
  method that overrides another has that one's.
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections.abc import Iterator
from pathlib import Path

FIRST_WORDS = ("The same", "Whether", "What", "Who", "As", "Also", "And", "Those", "Here")
DOCUMENTED = (("plugins", "module_utils"), ("plugins", "plugin_utils"))
_FIRST = re.compile(rf"({'|'.join(FIRST_WORDS)})\b")
_WITHOUT_METHODS = (
    "Protocol",
    "Generic",
    "NamedTuple",
    "ABC",
    "Enum",
    "object",
)  # nothing that is in these is overridden by a public name


def gen_problems(root: Path) -> Iterator[str]:
    """Yield a line for each problem in the Python files below the folder ROOT. Raise NotADirectoryError when ROOT is no folder."""
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is no folder: give one that is there, such as plugins")
    for path in sorted(root.rglob("*.py")):
        parts = path.resolve().parts
        is_documented = root.name != "tests" and any(parts[i : i + 2] in DOCUMENTED for i in range(len(parts)))
        text = path.read_text(encoding="utf-8")
        yield from (f"{path}:{problem}" for problem in gen_file_problems(text, is_documented=is_documented))


def gen_file_problems(text: str, *, is_documented: bool) -> Iterator[str]:
    """Yield the problems of a Python file with the content TEXT; IS_DOCUMENTED says that each public name needs a docstring."""
    tree = ast.parse(text)
    classes = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            found = _FIRST.match(ast.get_docstring(node) or "")
            if found:
                line = getattr(node, "lineno", 1)
                yield f"{line}: the docstring begins with {found[1]!r}: say what comes back or what is done"
        if isinstance(node, ast.ClassDef):
            classes[node.name] = node
    if is_documented:
        yield from gen_missing(tree, None, classes)


def gen_missing(scope: ast.AST, owner: ast.ClassDef | None, classes: dict[str, ast.ClassDef]) -> Iterator[str]:
    """Yield a line for each public name of SCOPE, a part of OWNER or of a module with CLASSES, that has no docstring."""
    for node in ast.iter_child_nodes(scope):
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from gen_missing(node, owner, classes)  # such as an if clause
        elif not node.name.startswith("_"):
            name = f"{owner.name}.{node.name}" if owner else node.name
            is_new = owner is None or not (overrides(owner, node.name, classes) or is_sequel(node))
            if is_new and not ast.get_docstring(node):
                yield f"{node.lineno}: {name} has no docstring"
            if isinstance(node, ast.ClassDef):
                yield from gen_missing(node, node, classes)


def overrides(owner: ast.ClassDef, name: str, classes: dict[str, ast.ClassDef]) -> bool:
    """Return True if a base of the class OWNER has NAME, or may have it: a base that is neither in CLASSES nor Python's own is unknown."""
    for base in owner.bases:
        word = base.value if isinstance(base, ast.Subscript) else base
        text = ast.unparse(word).rpartition(".")[2]
        if text in classes:
            inherited = classes[text]
            has_name = any(getattr(node, "name", None) == name for node in inherited.body)
            if has_name or overrides(inherited, name, classes):
                return True
        elif text not in _WITHOUT_METHODS:
            known = getattr(builtins, text, None)
            if known is None or hasattr(known, name):
                return True
    return False


def is_sequel(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return True if NODE sets or deletes a property, whose getter has the docstring."""
    return any(isinstance(word, ast.Attribute) and word.attr in ("setter", "deleter") for word in node.decorator_list)


if __name__ == "__main__":
    try:
        problems = [problem for folder in sys.argv[1:] for problem in gen_problems(Path(folder))]
    except NotADirectoryError as error:
        sys.exit(str(error))
    sys.exit("\n".join(problems) or ("Usage: check_docstrings.py FOLDER..." if not sys.argv[1:] else 0))
