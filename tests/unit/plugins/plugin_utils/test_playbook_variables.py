# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Variables of playbooks: what nobody knows, what was dropped, what is missing; and that the lists of them are true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ansible.module_utils.common.yaml import yaml_load  # in C, where that is there

from ansible_collections.crashcart.fleet.plugins.plugin_utils import playbook_variables

TOP = Path(__file__).parents[4]
SELECTION = {"containers", "labels", "query", "docker_host"}


def read_options(name):
    """The options of module NAME, by its documentation and that of its fragments."""
    about = read_documented(f"modules/{name}")
    options = {}
    for fragment in about["extends_documentation_fragment"]:
        path = f"doc_fragments/{fragment.rpartition('.')[2]}"
        options.update(read_documented(path)["options"])
    return {**options, **about["options"]}


def read_documented(path):
    text = (TOP / f"plugins/{path}.py").read_text(encoding="utf-8")
    return yaml_load(re.search(r'DOCUMENTATION = r"""(.*?)"""', text, re.DOTALL)[1])


def read_specs():
    return yaml_load((TOP / "roles/trace/meta/argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"]


def list_passed(path):
    """The options that the first task of the role's file PATH gives to its module."""
    (task, *_more) = yaml_load((TOP / f"roles/trace/tasks/{path}.yml").read_text(encoding="utf-8"))
    (task, *_more) = task.get("block", [task])
    ((_module, options),) = [(key, value) for key, value in task.items() if key.startswith("crashcart.fleet.")]
    return options


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("crashcart_container", "crashcart_containers"),
        ("crashcart_secons", "crashcart_seconds"),
        ("crashcart_sylcalls", "crashcart_syscalls"),
        ("crashcart_Containers", "crashcart_containers"),
    ],
)
def test_the_nearest_name_is_told(name, near):
    (problem,) = playbook_variables.find_unknown(dict.fromkeys([name, "crashcart_hosts", "ansible_host", "crashcart"]))
    assert problem == f"no playbook has a variable {name}: {near} may be meant"


def test_where_none_is_near_all_are_told():
    (problem,) = playbook_variables.find_unknown({"crashcart_zzzzzz": 1})
    assert "allow_empty" in problem
    assert "when_full" in problem


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("crshcart_ttl", "they begin with crashcart_"),
        ("Crashcart_ttl", "they begin with crashcart_"),
        ("crashcart-ttl", "they begin with crashcart_"),
        ("trace_secnods", "trace_seconds may be meant"),
        ("trace_profil", "trace_profile may be meant"),
        ("install_image_srce", "install_image_src may be meant"),
    ],
)
def test_what_is_nearly_one_of_ours_is_told(name, words):
    (problem,) = playbook_variables.find_unknown({name: 1})
    assert problem == f"no playbook has a variable {name}: {words}"


def test_what_is_of_others_is_not_our_affair():
    others = (
        "trace_id",
        "crash_dump",
        "cart_items",
        "install_dir",
        "ansible_cart_link",
        "cashcard_number",
        "trace_seconds",
    )
    result = {"changed": False, "failed": False, "summary": []}
    assert playbook_variables.find_unknown({**dict.fromkeys(others), "crashcart_info": result}) == []


def test_a_container_of_the_inventory_is_no_host():
    variables = {"group_names": ["crashcart_containers"], "crashcart_container": {}}
    (problem,) = playbook_variables.find_unknown(variables)
    assert "is no host of the playbooks" in problem


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"crashcart_containers": '["web","deb"]'}, ["crashcart_containers is the text"]),
        ({"crashcart_argv": " ['sh']"}, ["crashcart_argv is the text"]),
        ({"crashcart_command": ["ls", "-l"]}, ["that is what crashcart_argv is for"]),
        ({"crashcart_containers": ["web"], "crashcart_command": "[ -e /x ]", "crashcart_argv": ["["]}, []),
        ({"crashcart_containers": "web,deb"}, []),
    ],
)
def test_lists_that_are_texts_are_told(variables, words):
    problems = playbook_variables.find_misshapen(variables)
    assert len(problems) == len(words)
    assert all(word in problem for word, problem in zip(words, problems, strict=True))


@pytest.mark.parametrize("words", ["-tnp", "of the command"])
def test_words_that_were_dropped_are_told(words):
    (problem,) = playbook_variables.find_dropped({"crashcart_command": "ss", "_raw_params": words})
    assert repr(words) in problem
    assert playbook_variables.find_dropped({"crashcart_command": "ss -tnp"}) == []


@pytest.mark.parametrize(
    ("variables", "needs", "words"),
    [
        ({}, ["containers"], ["which containers"]),
        ({"crashcart_containers": None}, ["containers"], ["which containers"]),
        ({"crashcart_labels": {"a": "b"}}, ["containers"], []),
        ({"crashcart_query": "x"}, ["containers", "command"], ["what to run"]),
        ({"crashcart_containers": "api", "crashcart_argv": ["ls"]}, ["containers", "command"], []),
        ({}, [], []),
    ],
)
def test_what_is_missing_is_told(variables, needs, words):
    problems = playbook_variables.find_missing(variables, needs)
    assert len(problems) == len(words)
    assert all(word in problem for word, problem in zip(words, problems, strict=True))


def test_the_known_variables_are_those_that_playbooks_and_role_read():
    paths = [*TOP.glob("playbooks/**/*.yml"), *TOP.glob("roles/trace/*/*.yml"), *TOP.glob("roles/schedule/*/main.yml")]
    assert len(paths) > 15
    read = {name for path in paths for name in re.findall(r"\bcrashcart_(\w+)", path.read_text(encoding="utf-8"))}
    modules = {path.stem.removeprefix("crashcart_") for path in TOP.glob("plugins/modules/crashcart_*.py")}
    assert read - (modules - {"image"}) == playbook_variables.NAMES


_OF_RULES = {"rule", "max_containers", "max_time"}  # a standing rule is a task of its own
_OF_TASKS = {"host_timeout"}  # of the tasks, and no option of a module


def test_the_role_has_every_option_of_a_trace():
    options = read_options("ftrace_instance")
    passed = list_passed("start")
    assert set(passed) == set(options) - _OF_RULES - {"everything"}  # a playbook has a selection
    # The trace of the entry point main is asked for in the same words.
    of_capture = list_passed("capture_start")
    waits = "{{ trace_wait_for_start | default(crashcart_wait_for_start) | default(omit) }}"
    assert of_capture.pop("wait_for_start") == waits
    assert {**of_capture, "state": "started"} == {**passed, "phase": "start", "seconds": "{{ trace_seconds }}"}
    spec = {name.removeprefix("trace_"): one for name, one in read_specs()["start"]["options"].items()}
    assert set(spec) == set(options) - _OF_RULES - {"everything", "state"} | _OF_TASKS | {"default_ttl"}
    for name in set(spec) - _OF_TASKS - {"default_ttl"}:
        for key in ("type", "elements", "choices"):
            assert spec[name].get(key) == options[name].get(key, "str" if key == "type" else None), name


@pytest.mark.parametrize(
    ("entry", "module", "own"), [("fetch", "ftrace_fetch", {"cursor"}), ("report", "ftrace_report", set())]
)
def test_the_role_has_every_option_of_a_fetch_and_of_a_report(entry, module, own):
    documented = {name for name in read_options(module) if not name.startswith("_")} - {"allow_empty"}
    passed = set(list_passed(entry)) - {"allow_empty"}
    assert passed >= documented - own
    known = {name.removeprefix("trace_") for name in read_specs()[entry]["options"]}
    assert known - _OF_TASKS == passed - {"captures"}
