# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fail where a part of a folder is too large to be read at once, or catches BaseException. `make lint` runs this program.

- A function has at most 60 lines and seven parameters, of which *args and **kwargs are one each. The `main` of a module in
  plugins/modules, which is its argument spec, may have more.
- A file has at most 450 lines, without its documentation for users.
- A folder has at most 18 files.
- BaseException is caught or suppressed only in a function that itself calls os._exit, as a forked child does. Other functions undo their
  steps by a contextlib.ExitStack.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Union

MAX_FUNCTION = 60
MAX_PARAMETERS = 7
MAX_FILE = 450
MAX_FOLDER = 18
DOCUMENTATION = ("DOCUMENTATION", "EXAMPLES", "RETURN")

Function = Union[ast.FunctionDef, ast.AsyncFunctionDef]


def gen_problems(root: Path) -> Iterator[str]:
    """Yield a line for each problem in the Python files below the folder ROOT. Raise NotADirectoryError when ROOT is no folder."""
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is no folder: give one that is there, such as plugins")
    paths = sorted(root.rglob("*.py"))
    for folder in sorted({path.parent for path in paths}):
        count = sum(path.parent == folder for path in paths)
        if count > MAX_FOLDER:
            yield f"{folder}: {count} files, where {MAX_FOLDER} are the most"
    for path in paths:
        text = path.read_text(encoding="utf-8")
        is_module = path.resolve().parts[-3:-1] == ("plugins", "modules")
        yield from (f"{path}: {problem}" for problem in gen_file_problems(text, is_module=is_module))


def gen_file_problems(text: str, *, is_module: bool = False) -> Iterator[str]:
    """Yield the problems of a Python file with the content TEXT; IS_MODULE says that it is in plugins/modules."""
    tree = ast.parse(text)
    lines = len(text.splitlines()) - sum(map(count_lines, filter(is_documentation, tree.body)))
    if lines > MAX_FILE:
        yield f"{lines} lines, where {MAX_FILE} are the most"
    nodes = list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not (
            is_module and node.name == "main" and node in tree.body
        ):
            yield from gen_size_problems(node)
    # Most files cannot catch it under any name, and looking for its names takes most of the time.
    if "BaseException" in text or any(isinstance(node, ast.ExceptHandler) and node.type is None for node in nodes):
        names = find_names(nodes)
        for scope in (tree, *(node for node in nodes if is_function(node))):
            yield from gen_catch_problems(scope, names)


def gen_size_problems(function: Function) -> Iterator[str]:
    """Yield a line where FUNCTION is too long, and one where it has too many parameters."""
    where = f"{function.name} in line {function.lineno}"
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    count = sum(parameter.arg not in ("self", "cls") for parameter in named)
    count += sum(parameter is not None for parameter in (arguments.vararg, arguments.kwarg))
    if count_lines(function) > MAX_FUNCTION:
        yield f"{where}: {count_lines(function)} lines, where {MAX_FUNCTION} are the most"
    if count > MAX_PARAMETERS:
        yield f"{where}: {count} parameters, where {MAX_PARAMETERS} are the most"


def gen_catch_problems(scope: ast.AST, names: dict[str, str]) -> Iterator[str]:
    """Yield a line for each place where SCOPE, a module or function, catches BaseException and is no child that ends its process."""
    nodes = list(walk_own(scope))
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    if is_function(scope) and any(resolve(call.func, names) == "os._exit" for call in calls):
        return
    where = (
        f"{scope.name} in line {scope.lineno}: " if isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef)) else ""
    )
    advice = "a contextlib.ExitStack undoes what is begun"
    for node in nodes:
        if isinstance(node, ast.ExceptHandler) and (node.type is None or catches_all(node.type, names)):
            yield f"{where}except BaseException in line {node.lineno}; {advice}"
    for call in calls:
        if resolve(call.func, names) == "contextlib.suppress" and any(catches_all(word, names) for word in call.args):
            yield f"{where}suppress(BaseException) in line {call.lineno}; {advice}"


def find_names(nodes: list[ast.AST]) -> dict[str, str]:
    """Return for each name that NODES give by an import or an assignment what it stands for, as a dotted name."""
    names = {"BaseException": "builtins.BaseException"}
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update({alias.asname: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    for _round in range(3):  # an alias may stand for another one
        for node in nodes:
            if isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                meant = (resolve(part, names) for part in list_parts(node.value))
                found = next(
                    (name for name in meant if name in ("builtins.BaseException", "contextlib.suppress")), None
                )
                if found:
                    names.update({target.id: found for target in targets if isinstance(target, ast.Name)})
    return names


def list_parts(node: ast.expr) -> list[ast.expr]:
    """Return the expressions that NODE, an exception or a tuple of some, consists of."""
    if isinstance(node, ast.BinOp):  # (OSError,) + OTHERS
        return [*list_parts(node.left), *list_parts(node.right)]
    if isinstance(node, ast.Starred):
        return list_parts(node.value)
    if isinstance(node, (ast.Tuple, ast.List)):
        return [part for element in node.elts for part in list_parts(element)]
    return [node]


def resolve(node: ast.expr, names: dict[str, str]) -> str:
    """Return the dotted name that NODE stands for where names mean what NAMES says; an empty text for what is no name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{resolve(node.value, names)}.{node.attr}"
    return ""


def catches_all(node: ast.expr, names: dict[str, str]) -> bool:
    """Return True if BaseException is NODE or one of its elements."""
    return any(resolve(part, names) == "builtins.BaseException" for part in list_parts(node))


def is_function(node: ast.AST) -> bool:
    """Return True if NODE is a function."""
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))


def walk_own(scope: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes below SCOPE that are not in a function below it; classes count as their surroundings."""
    for node in ast.iter_child_nodes(scope):
        if not is_function(node) and not isinstance(node, ast.Lambda):
            yield node
            yield from walk_own(node)


def is_documentation(node: ast.stmt) -> bool:
    """Return True if NODE, a statement of a module, is documentation for users."""
    return (
        isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in DOCUMENTATION
    )


def count_lines(node: ast.stmt) -> int:
    """Return the number of NODE's lines."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


if __name__ == "__main__":
    try:
        problems = [problem for folder in sys.argv[1:] for problem in gen_problems(Path(folder))]
    except NotADirectoryError as error:
        sys.exit(str(error))
    sys.exit("\n".join(problems) or ("Usage: check_shape.py FOLDER..." if not sys.argv[1:] else 0))
