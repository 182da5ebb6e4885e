# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of a selection is an error, what a warning, and what is accepted."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import options
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container, ContainerError
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.selection import Selector

API, DB = (Container(digit * 64, name, "running", 2, "", {}) for digit, name in (("a", "api"), ("d", "db")))


class Module:
    def __init__(self, *, allow_empty=False):
        self.params = {"allow_empty": allow_empty}
        self.warnings = []

    def warn(self, text):
        self.warnings.append(text)


def choose(module, *patterns, labels=(), **more):
    found = options.choose(module, Selector(patterns or None, labels), [API, DB], running_only=True, **more)
    return [one.name for one in found]


@pytest.mark.parametrize("more", [{}, {"none_ok": True}])
def test_a_name_that_is_not_there_is_an_error(more):
    with pytest.raises(ContainerError, match="no container is called 'nonesuch'; running are: api, db"):
        choose(Module(), "api", "nonesuch", **more)


def test_a_selection_that_matches_nothing_is_an_error_unless_that_is_no_matter():
    for patterns, labels in ((["none*"], ()), ([], (("tier", "front"),))):
        with pytest.raises(ContainerError, match=r"matches no container; running are: api, db \(allow_empty=true"):
            choose(Module(), *patterns, labels=labels)
        module = Module()
        assert choose(module, *patterns, labels=labels, none_ok=True) == []
        assert module.warnings == []


def test_allow_empty_accepts_all_that_is_not_there_without_a_word():
    module = Module(allow_empty=True)
    assert choose(module, "api", "nonesuch", "pid:77") == ["api"]
    assert choose(module, "nonesuch") == []
    assert choose(module, "none*") == []
    assert choose(module, "nonesuch", missing_ok=True) == []
    assert module.warnings == []
    twin = Container("e" * 64, "api", "running", 3, "", {}, "podman")
    with pytest.raises(ContainerError, match="'api' is ambiguous"):
        options.choose(module, Selector(("api",)), [API, twin], running_only=True)


def test_what_need_not_be_there_is_named_in_a_warning():
    module = Module()
    assert choose(module, "nonesuch", "api", "a\x1b", missing_ok=True) == ["api"]
    assert module.warnings == [
        r"nothing to do for 'nonesuch', 'a\x1b': no container here is called so",
    ]
    module = Module()
    assert choose(module, "none*", missing_ok=True) == []
    assert module.warnings == ["nothing to do: the selection matches no container here"]
