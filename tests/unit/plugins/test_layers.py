# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may import whom: no circle, nothing upward, and hosts' code imports nothing that hosts do not have."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from ansible_collections.crashcart.fleet.plugins.module_utils import errors

COLLECTION = "ansible_collections.crashcart.fleet.plugins."
PLUGINS = Path(errors.__file__).parents[1]
# From the bottom to the top: a module imports from its own line and from those above it in this list. The most specific name counts.
LAYERS = (
    ("errors", "feature", "names", "units", "printable", "hidden", "architectures"),
    ("linux",),
    ("linux.tracing",),
    ("features",),
    ("containers",),
    ("cart",),
    ("cart.attach",),
    ("cart.execute", "cart.exposure"),
    ("cart.census",),
    ("ftrace.format",),
    ("ftrace",),  # what a trace is, and what is said of it
    ("ftrace.request",),
    ("ftrace.follow",),
    ("ftrace.setup",),
    ("ftrace.head", "ftrace.drain"),
    ("ftrace.recorder",),
    ("ftrace.fetch",),
    ("ftrace.describe", "ftrace.end"),
    ("ftrace.selection", "ftrace.start"),
    ("summaries", "image", "analysis"),
)
ON_THE_CONTROLLER = ("module_utils.analysis", "module_utils.image", "plugin_utils", "action", "connection", "inventory")
CONTROLLERS_MODULES = ("modules.crashcart_build", "modules.ftrace_report")
# What hosts may have beside Python's library: what Ansible sends, and what the role install installs.
LIBRARIES = {"ansible.module_utils", "docker", "jmespath", "requests", "urllib3"}


def list_modules():
    """Module → its imports: of this collection by their names below plugins, others as they are."""
    paths = {".".join(path.relative_to(PLUGINS).with_suffix("").parts): path for path in PLUGINS.rglob("*.py")}
    return {name: set(gen_imports(path, paths)) for name, path in paths.items()}


def gen_imports(path, known):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(COLLECTION[:-1]):
            yield node.module or ""
        elif isinstance(node, ast.ImportFrom):
            package = (node.module or "")[len(COLLECTION) :]
            for alias in node.names:
                name = f"{package}.{alias.name}"
                yield name if name in known else package


MODULES = list_modules()


def find_layer(name):
    """The number of the layer that a module of module_utils is in."""
    found = {entry: number for number, entries in enumerate(LAYERS) for entry in entries}
    parts = name[len("module_utils.") :].split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in found:
            return found[".".join(parts[:length])]
    raise AssertionError(f"{name} is in no layer: say in LAYERS where it belongs")


def list_upward(modules):
    """Imports between modules of module_utils that go from a lower layer to a higher one."""
    return [
        f"{name} imports {other}"
        for name, others in modules.items()
        for other in others
        if name.startswith("module_utils.") and other.startswith("module_utils.")
        if find_layer(other) > find_layer(name)
    ]


def find_circle(modules):
    """A circle of imports, as the names along it; empty where there is none."""
    done = set()

    def look(name, path):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(modules[name] & modules.keys()):
            if circle := look(other, [*path, name]):
                return circle
        done.add(name)
        return []

    return next((circle for name in modules if (circle := look(name, []))), [])


def is_on_hosts(name):
    """Whether a module is sent to hosts."""
    return name.startswith(("module_utils.", "modules.")) and not name.startswith(
        (*ON_THE_CONTROLLER, *CONTROLLERS_MODULES)
    )


def list_foreign(modules):
    """Imports of hosts' code that hosts do not have."""
    return [
        f"{name} imports {other}"
        for name, others in modules.items()
        if is_on_hosts(name)
        for other in others
        if other.startswith(ON_THE_CONTROLLER)
        or not (
            other in modules
            or other.split(".")[0] in sys.stdlib_module_names
            or any(f"{other}.".startswith(f"{one}.") for one in LIBRARIES)
        )
    ]


def test_nothing_is_imported_upward():
    assert list_upward(MODULES) == []
    assert list_upward({"module_utils.linux.locks": {"module_utils.ftrace.start"}}) != []


def test_there_is_no_circle():
    assert find_circle(MODULES) == []
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_hosts_code_imports_what_hosts_have():
    assert list_foreign(MODULES) == []
    assert list_foreign({"module_utils.cart.store": {"numpy"}}) != []
    assert list_foreign({"modules.ftrace_info": {"module_utils.analysis.capture_summary"}}) != []
