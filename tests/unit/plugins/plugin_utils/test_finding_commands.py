# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands in findings can be pasted: no text of a container becomes a word of a shell, or is evaluated by Ansible.

These tests are here since Ansible's own parser judges, which ansible-test keeps from the tests of module_utils.
"""

from __future__ import annotations

import json
import shlex

import pytest
from ansible.parsing.splitter import parse_kv

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.commands import run_in, trace_again
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import Place

API = Place("web1", "api")


@pytest.mark.parametrize("path", ["/a b", "/a'b", '/a"b', "/$(reboot)", "/;reboot", "/é", "/~/*", "/{a}", "/a\\\\nb"])
def test_words_reach_the_program_as_they_are(path):
    words = shlex.split(run_in(API, "ls", "-ld", path))
    assert words[:5] == ["ansible-playbook", "crashcart.fleet.exec", "-l", "web1", "-e"]
    assert json.loads(words[5]) == {"crashcart_containers": ["api"], "crashcart_argv": ["ls", "-ld", path]}


@pytest.mark.parametrize("path", ["/etc/x", "/a-b_c.d/e+f:g@h=i,j%k"])
def test_simple_words_make_a_simple_command(path):
    words = shlex.split(run_in(API, "ls", "-ld", path))
    assert words[5:] == ["crashcart_containers=api", "-e", f"crashcart_command='ls -ld {path}'"]
    assert parse_kv(words[7]) == {"crashcart_command": f"ls -ld {path}"}


@pytest.mark.parametrize("path", ["/{{ x }}", "/{% x %}", "/{# x", "/\x1b[2J", "/a\nb", "/\u202e", "x" * 201, ""])
def test_words_that_something_would_change_are_not_given(path):
    assert run_in(API, "ls", path) == "ansible-playbook crashcart.fleet.trace -l web1 -e crashcart_containers=api"


def test_a_trace_is_asked_for_with_what_is_known():
    assert trace_again(Place("", "")) == "ansible-playbook crashcart.fleet.trace -e 'crashcart_containers=*'"
    assert trace_again(Place("a b", "{{ x }}"), profile="startup") == (
        "ansible-playbook crashcart.fleet.trace -l 'a b' -e 'crashcart_containers=*' -e crashcart_profile=startup"
    )
    assert run_in(Place("", "api"), "ls").startswith("ansible-playbook crashcart.fleet.trace ")
