# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Imports between packages: no circle, nothing upward, no hidden form, and hosts' code imports nothing that hosts do not have."""

from __future__ import annotations

import sys

import pytest

from ansible_collections.crashcart.fleet.tests.unit.plugins.imports import (
    COLLECTION,
    PLUGINS,
    Source,
    is_below,
    read_modules,
    read_sources,
)

# The folders of module_utils from the bottom to the top: a module imports from its own line and from those above it in this list. The
# most specific name counts.
SHARED_LAYERS = (
    ("errors", "feature", "names", "units", "printable", "hidden", "architectures", "columns"),
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
    ("ftrace.follow", "ftrace.holdings"),
    ("ftrace.setup",),
    ("ftrace.head", "ftrace.drain"),
    ("ftrace.rules",),
    ("ftrace.recorder",),
    ("ftrace.fetch",),
    ("ftrace.describe", "ftrace.end"),
    ("ftrace.plan",),
    ("ftrace.selection", "ftrace.start"),
    ("ftrace.calls",),  # what a module does for its options
    ("ftrace.installed",),  # what stays on a host until it is taken away
    ("ftrace.hook", "ftrace.boot"),
    ("summaries", "image", "analysis"),
)
# What Ansible or a user starts, which nothing imports.
STARTED = ("action", "callback", "connection", "doc_fragments", "filter", "inventory", "modules")
LAYERS = (*(tuple(f"module_utils.{name}" for name in layer) for layer in SHARED_LAYERS), ("plugin_utils",), STARTED)
ON_THE_CONTROLLER = (
    "module_utils.analysis",
    "module_utils.image",
    "plugin_utils",
    "action",
    "callback",
    "connection",
    "doc_fragments",
    "filter",
    "inventory",
)
CONTROLLERS_MODULES = ("modules.crashcart_build",)
# What hosts may have beside Python's library, and who may import it: what Ansible sends, and what the role install installs.
LIBRARIES = {
    "ansible.module_utils": ("module_utils", "modules"),
    "docker": ("module_utils.containers",),
    "jmespath": ("module_utils.containers.query",),
    "requests": ("module_utils.containers",),
    "urllib3": ("module_utils.containers",),
}
# Of Python's library: what Python 3.8 lacks, and what 3.13 has no more.
NEWER = ("annotationlib", "compression", "graphlib", "tomllib", "zoneinfo")
GONE = ("asynchat", "asyncore", "cgi", "crypt", "distutils", "imp", "pipes", "smtpd", "spwd", "telnetlib")
MODULES = read_modules()


def find_layer(name):
    """Return the number of the layer that a module is in."""
    found = {entry: number for number, entries in enumerate(LAYERS) for entry in entries}
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in found:
            return found[".".join(parts[:length])]
    raise AssertionError(f"{name} is in no layer: say in LAYERS where it belongs")


def list_upward(modules):
    """Return the imports between modules of this collection that go from a lower layer to a higher one, or to what is only started."""
    return [
        f"{name} imports {other}"
        for name, others in modules.items()
        for other in sorted(others & modules.keys())
        if find_layer(other) > find_layer(name) or is_below(other, STARTED)
    ]


def find_circle(modules):
    """Return a circle of imports as the names along it, or an empty list."""
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
    """Return True if a module is sent to hosts."""
    return is_below(name, ("module_utils", "modules")) and not is_below(
        name, (*ON_THE_CONTROLLER, *CONTROLLERS_MODULES)
    )


def is_of_python(name):
    """Return True if NAME is in the standard library of each Python that hosts have."""
    return name.split(".")[0] in sys.stdlib_module_names and not is_below(name, (*NEWER, *GONE))


def list_foreign(modules):
    """Return the imports of hosts' code that hosts do not have."""
    return [
        f"{name} imports {other}"
        for name, others in modules.items()
        if is_on_hosts(name)
        for other in sorted(others)
        if is_below(other, ON_THE_CONTROLLER)
        or not (other in modules or is_of_python(other) or is_below(other, LIBRARIES))
    ]


def list_misplaced(modules):
    """Return the imports of libraries that stand where only other modules may have them."""
    return [
        f"{name} imports {other}"
        for name, others in modules.items()
        for other in sorted(others)
        for library, places in LIBRARIES.items()
        if is_below(other, [library])
        and not is_below(name, places)
        and (is_on_hosts(name) or not is_below(other, ["ansible"]))
    ]


def test_nothing_is_imported_upward():
    assert list_upward(MODULES) == []


def test_there_is_no_circle():
    assert find_circle(MODULES) == []
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_no_form_of_import_hides_a_module():
    found = {name: source.problems for name, source in read_sources(PLUGINS).items()}
    assert {name: problems for name, problems in found.items() if problems} == {}


def test_hosts_code_imports_what_hosts_have():
    assert list_foreign(MODULES) == []


def test_libraries_are_imported_in_one_place():
    assert list_misplaced(MODULES) == []
    for library, places in LIBRARIES.items():  # the list has no library or place that nobody needs any more
        if library != "urllib3":  # which comes with requests
            for place in places:
                assert any(
                    is_below(other, [library]) for name in MODULES if is_below(name, [place]) for other in MODULES[name]
                )


def make_tree(folder, files):
    """Make a folder of plugins with FILES, path → what it imports of this collection, and return its modules."""
    for path, others in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        lines = (f"from {COLLECTION}{other.rpartition('.')[0]} import {other.rpartition('.')[2]}\n" for other in others)
        place.write_text("".join(lines))
    return read_modules(folder)


@pytest.mark.parametrize(
    ("path", "other"),
    [
        ("module_utils/linux/locks.py", "module_utils.ftrace.start"),
        ("module_utils/linux/locks.py", "module_utils.linux.tracing.tracefs"),
        ("module_utils/summaries.py", "plugin_utils.transfer"),
        ("module_utils/image/tree.py", "action.crashcart_build"),
        ("module_utils/errors.py", "modules.crashcart_exec"),
        ("module_utils/cart/store.py", "connection.cart"),
        ("plugin_utils/transfer.py", "inventory.containers"),
        ("modules/crashcart_attach.py", "modules.crashcart_exec"),
        ("action/crashcart_attach.py", "modules.crashcart_attach"),
    ],
)
def test_an_import_upward_is_found(tmp_path, path, other):
    modules = make_tree(tmp_path, {path: [other], f"{other.replace('.', '/')}.py": []})
    name = path[: -len(".py")].replace("/", ".")
    assert modules == {name: {other}, other: set()}
    assert list_upward(modules) == [f"{name} imports {other}"]
    assert find_circle(modules) == []


def test_an_import_downward_is_none(tmp_path):
    lower = "module_utils.linux.locks"
    others = ("module_utils/ftrace/start.py", "plugin_utils/transfer.py", "modules/crashcart_exec.py")
    modules = make_tree(tmp_path, {"module_utils/linux/locks.py": [], **{path: [lower] for path in others}})
    assert list_upward(modules) == [] and sum(map(len, modules.values())) == 3


def test_what_is_in_no_layer_is_an_error():
    with pytest.raises(AssertionError, match="module_utils.new.x is in no layer"):
        find_layer("module_utils.new.x")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("from . import store", "a relative import"),
        ("from ..linux import locks", "a relative import"),
        (f"import {COLLECTION}module_utils.errors", "import ansible_collections.crashcart"),
        (f"import {COLLECTION}module_utils.errors as errors", "import ansible_collections.crashcart"),
        ("import ansible_collections", "import ansible_collections"),
        ("from ansible_collections.crashcart.fleet import plugins", "plugins is no module of this collection"),
        (f"from {COLLECTION[:-1]} import module_utils", "module_utils is no module of this collection"),
        (f"from {COLLECTION}module_utils import nonesuch", "nonesuch is no module of this collection"),
        ("from ansible_collections.community.docker.plugins.module_utils import util", "no module of this collection"),
        ("def f():\n    from . import store", "line 2: a relative import"),
        ("import importlib\nimportlib.import_module('.errors', 'x')", "import_module of what is no full name"),
        ("import importlib\nimportlib.import_module(name)", "import_module of what is no full name"),
        (
            f"import importlib\nimportlib.import_module(f'{COLLECTION}{{name}}')",
            "import_module of what is no full name",
        ),
        (f"import importlib\nimportlib.import_module('{COLLECTION}nonesuch.x')", "no module of this collection"),
        ("from importlib import import_module as load", "write importlib.import_module"),
        (f"__import__('{COLLECTION}module_utils.errors')", "__import__ of what is no full name"),
    ],
)
def test_a_form_of_import_that_hides_a_module_is_found(text, problem):
    (found,) = Source(text, {"module_utils.errors"}).problems
    assert problem in found


@pytest.mark.parametrize(
    "text",
    [
        f"from {COLLECTION}module_utils import errors",
        f"from {COLLECTION}module_utils.errors import FleetError as Error",
        f"import importlib\nimportlib.import_module('{COLLECTION}module_utils.errors')",
        f"try:\n    pass\nfinally:\n    from {COLLECTION}module_utils import errors",
    ],
)
def test_other_forms_give_the_module(text):
    source = Source(text, {"module_utils.errors"})
    assert source.problems == [] and source.names - {"importlib"} == {"module_utils.errors"}


@pytest.mark.parametrize(
    ("name", "other", "is_found"),
    [
        ("module_utils.cart.store", "numpy", True),
        ("module_utils.cart.store", "dockerfile", True),
        ("module_utils.cart.store", "ansible.plugins.action", True),
        ("module_utils.cart.store", "zoneinfo", True),
        ("modules.ftrace_info", "tomllib", True),
        ("modules.ftrace_info", "graphlib", True),
        ("modules.ftrace_info", "imp", True),
        ("modules.ftrace_info", "importlib.util", False),
        ("modules.crashcart_build", "tomllib", False),
        ("module_utils.image.tree", "zoneinfo", False),
        ("modules.ftrace_info", "module_utils.analysis.capture_summary", True),
        ("modules.ftrace_info", "plugin_utils.transfer", True),
        ("modules.crashcart_build", "module_utils.image.tree", False),
    ],
)
def test_what_hosts_do_not_have_is_found(name, other, is_found):
    assert list_foreign({name: {other}}) == [f"{name} imports {other}"] * is_found


@pytest.mark.parametrize(
    ("name", "other", "is_found"),
    [
        ("module_utils.cart.store", "docker.errors", True),
        ("modules.crashcart_info", "requests", True),
        ("plugin_utils.transfer", "urllib3.util", True),
        ("module_utils.containersx", "docker", True),
        ("module_utils.containers.podman", "docker", False),
        ("module_utils.containers.podman", "jmespath", True),
        ("module_utils.containers.query", "jmespath.exceptions", False),
        ("modules.crashcart_info", "ansible.module_utils.basic", False),
        ("connection.cart", "ansible.module_utils.common.text.converters", False),
    ],
)
def test_a_library_in_a_wrong_place_is_found(name, other, is_found):
    assert list_misplaced({name: {other}}) == [f"{name} imports {other}"] * is_found
