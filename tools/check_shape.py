# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fail where a part of plugins/ is too large to be read at once, or catches BaseException. `make lint` runs this program.

- A function has at most 60 lines and seven parameters. A module's `main`, which is its argument spec, may have more lines.
- A file has at most 450 lines, without its documentation for users.
- A folder has at most 18 files.
- `except BaseException` is only in a function that ends its process. Other functions undo their steps by a contextlib.ExitStack.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_FUNCTION = 60
MAX_PARAMETERS = 7
MAX_FILE = 450
MAX_FOLDER = 18
DOCUMENTATION = ("DOCUMENTATION", "EXAMPLES", "RETURN")


def gen_problems(root: Path) -> Iterator[str]:
    """Yield a line for each problem in the Python files below the folder ROOT."""
    paths = sorted(root.rglob("*.py"))
    for folder in sorted({path.parent for path in paths}):
        count = sum(path.parent == folder for path in paths)
        if count > MAX_FOLDER:
            yield f"{folder}: {count} files, where {MAX_FOLDER} are the most"
    for path in paths:
        text = path.read_text(encoding="utf-8")
        yield from (f"{path}: {problem}" for problem in gen_file_problems(text))


def gen_file_problems(text: str) -> Iterator[str]:
    """Yield the problems of a Python file with the content TEXT."""
    tree = ast.parse(text)
    lines = len(text.splitlines()) - sum(map(count_lines, filter(is_documentation, tree.body)))
    if lines > MAX_FILE:
        yield f"{lines} lines, where {MAX_FILE} are the most"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield from gen_function_problems(node)


def gen_function_problems(function: ast.FunctionDef) -> Iterator[str]:
    """Yield the problems of FUNCTION, without those of functions in it."""
    where = f"{function.name} in line {function.lineno}"
    parameters = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    count = sum(parameter.arg not in ("self", "cls") for parameter in parameters)
    if count_lines(function) > MAX_FUNCTION and function.name != "main":
        yield f"{where}: {count_lines(function)} lines, where {MAX_FUNCTION} are the most"
    if count > MAX_PARAMETERS:
        yield f"{where}: {count} parameters, where {MAX_PARAMETERS} are the most"
    for node in ast.walk(function):
        if (
            isinstance(node, ast.ExceptHandler)
            and "BaseException" in list_names(node.type)
            and not ends_process(function)
        ):
            yield f"{where}: except BaseException in line {node.lineno}; a contextlib.ExitStack undoes what is begun"


def is_documentation(node: ast.stmt) -> bool:
    """Return True if NODE, a statement of a module, is documentation for users."""
    return (
        isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in DOCUMENTATION
    )


def count_lines(node: ast.stmt) -> int:
    """Return the number of NODE's lines."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def list_names(node: ast.expr | None) -> list[str]:
    """Return the names of the exceptions that an except clause with NODE catches. A clause without names catches BaseException."""
    if node is None:
        return ["BaseException"]
    return [name.id for name in ast.walk(node) if isinstance(name, ast.Name)]


def ends_process(function: ast.FunctionDef) -> bool:
    """Return True if FUNCTION calls os._exit, as a forked child does."""
    calls = (node.func for node in ast.walk(function) if isinstance(node, ast.Call))
    return any(isinstance(call, ast.Attribute) and call.attr == "_exit" for call in calls)


if __name__ == "__main__":
    problems = list(gen_problems(Path(sys.argv[1])))
    sys.exit("\n".join(problems) or 0)
