# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The imports of the plugins as their sources have them: those that Ansible follows, too, to find what it sends to hosts."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

from ansible_collections.crashcart.fleet.plugins.module_utils import errors

COLLECTION = "ansible_collections.crashcart.fleet.plugins."
PLUGINS = Path(errors.__file__).parents[1]


class Source:
    """The imports of a file with the content TEXT, where KNOWN are the modules that there are.

    NAMES are the modules that it imports: of this collection by their names below plugins, others as they are. PROBLEMS are the forms
    of import that hide a module from these tests or from Ansible.
    """

    def __init__(self, text, known):
        self._known = known
        self.names = set()
        self.problems = []
        for node in self._list_nodes(text):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self._add_plain(alias.name, node.lineno)
            elif isinstance(node, ast.ImportFrom):
                self._add_from(node)
            elif isinstance(node, ast.Call):
                self._add_call(node)

    @staticmethod
    def _list_nodes(text):
        """Return the nodes that may import: all, or where no name can be such a function's the statements, which are far fewer."""
        tree = ast.parse(text)
        if "import_module" in text or "__import__" in text:
            return list(ast.walk(tree))
        nodes = [tree]
        for node in nodes:  # which grows
            for field in ("body", "orelse", "handlers", "finalbody", "cases"):
                nodes += getattr(node, field, ())
        return nodes

    def _refuse(self, line, what):
        self.problems.append(f"line {line}: {what}")

    def _add_plain(self, name, line):
        if is_below(name, ["ansible_collections"]):
            self._refuse(line, f"import {name}: write from {name} import")
        self.names.add(name)

    def _add_from(self, node):
        if node.level:
            self._refuse(node.lineno, "a relative import")
            return
        for alias in node.names:
            if is_below(node.module, ["ansible_collections"]):
                self._add_own(f"{node.module}.{alias.name}", node.lineno)
            else:
                self.names.add(node.module)
            if node.module == "importlib" and alias.name in ("import_module", "__import__", "*"):
                self._refuse(node.lineno, "write importlib.import_module where it is called")

    def _add_own(self, name, line):
        """Add the module of this collection that NAME is, or is in."""
        for found in (name, name.rpartition(".")[0]):
            if found.startswith(COLLECTION) and found[len(COLLECTION) :] in self._known:
                self.names.add(found[len(COLLECTION) :])
                return
        self._refuse(line, f"{name} is no module of this collection, nor in one")

    def _add_call(self, node):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called not in ("import_module", "__import__"):
            return
        name = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
        if not isinstance(name, str) or name.startswith(".") or called == "__import__":
            self._refuse(node.lineno, f"{called} of what is no full name")
        elif is_below(name, ["ansible_collections"]):
            self._add_own(name, node.lineno)
        else:
            self.names.add(name)


def is_below(name, folders):
    """Return True if the module NAME is one of FOLDERS or in one of them."""
    return any(f"{name}.".startswith(f"{folder}.") for folder in folders)


@functools.lru_cache(maxsize=None)
def read_sources(root=PLUGINS):
    """Return module → Source for all that is below the folder ROOT."""
    paths = {".".join(path.relative_to(root).with_suffix("").parts): path for path in sorted(root.rglob("*.py"))}
    return {name: Source(path.read_text(encoding="utf-8"), paths) for name, path in paths.items()}


def read_modules(root=PLUGINS):
    """Return module → names of the modules that it imports."""
    return {name: source.names for name, source in read_sources(root).items()}


def list_needed(modules, name):
    """Return the names of MODULES that the module NAME imports, and that these import, as Ansible sends them."""
    found, todo = set(), [name]
    while todo:
        new = modules[todo.pop()] & modules.keys() - found
        found |= new
        todo += new
    return found
