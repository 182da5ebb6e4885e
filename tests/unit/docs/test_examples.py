# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of docs/examples/ are what the pages show, and name only playbooks, variables and options that there are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ansible_collections.crashcart.fleet.plugins.module_utils import errors
from ansible_collections.crashcart.fleet.plugins.module_utils.names import STATE
from ansible_collections.crashcart.fleet.plugins.plugin_utils.playbook_variables import NAMES, PREFIX, SELECTION

# The checkout, its staged copy and the built archive all have docs/ and tests/ beside plugins/.
TOP = Path(errors.__file__).parents[2]
EXAMPLES = TOP / "docs/examples"
FILES = sorted(path for path in EXAMPLES.rglob("*") if path.is_file())
DOCUMENTS = [path for path in FILES if path.suffix == ".yml"]
PAGES = [TOP / f"docs/guide/{name}.md" for name in ("awx", "pull", "execution_environment")]
_SHOWN = re.compile(r"^<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_VARIABLE = re.compile(rf"(?<![\w./]){PREFIX}(\w+)")
_OURS = re.compile(r"(?<![\w.])crashcart\.fleet\.(\w+)")
# Words of pages that begin like a variable and are modules.
_MODULES = {path.stem.removeprefix(PREFIX) for path in (TOP / "plugins/modules").glob(f"{PREFIX}*.py")}


def name_case(path: Path) -> str:
    """Return PATH below the collection, as the name of a test's case."""
    return str(path.relative_to(TOP))


def read(path: Path) -> str:
    """Return the text of the file PATH."""
    return path.read_text(encoding="utf-8")


def find_unknown_names(text: str) -> list[str]:
    """Return the variables and playbooks of ours in TEXT that there are not."""
    known = NAMES | _MODULES
    playbooks = {path.stem for path in (TOP / "playbooks").glob("*.yml")}
    return [PREFIX + name for name in _VARIABLE.findall(text) if name not in known] + [
        f"crashcart.fleet.{name}" for name in _OURS.findall(text) if name not in playbooks
    ]


def list_tasks(place: str) -> list[dict]:
    """Return the tasks of the only play in the example PLACE."""
    (play,) = yaml.safe_load(read(EXAMPLES / place))
    return play["tasks"]


def list_options(module: str) -> list[dict]:
    """Return the options of each task of awx.yml that calls MODULE of awx.awx."""
    return [task[f"awx.awx.{module}"] for task in list_tasks("awx.yml") if f"awx.awx.{module}" in task]


@pytest.mark.parametrize("page", PAGES, ids=name_case)
def test_a_page_shows_the_files_as_they_are(page):
    shown = _SHOWN.findall(read(page))
    assert shown
    for place, block in shown:
        assert block == read((page.parent / place).resolve()), place


@pytest.mark.parametrize("path", FILES, ids=name_case)
def test_a_page_leads_to_the_file(path):
    place = f"../examples/{path.relative_to(EXAMPLES).as_posix()}"
    assert any(f"file: {place} " in read(page) or f"]({place})" in read(page) for page in PAGES)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_case)
def test_an_example_is_yaml(path):
    assert isinstance(yaml.safe_load(read(path)), (list, dict))


@pytest.mark.parametrize("path", FILES, ids=name_case)
def test_an_example_names_playbooks_and_variables_that_there_are(path):
    assert find_unknown_names(read(path)) == []


@pytest.mark.parametrize("page", PAGES, ids=name_case)
def test_a_block_of_a_page_names_playbooks_and_variables_that_there_are(page):
    assert [name for block in _BLOCK.findall(read(page)) for name in find_unknown_names(block)] == []


def test_what_is_not_there_is_found():
    text = "crashcart.fleet.colect crashcart_dst crashcart.fleet.collect crashcart_dest /srv/crashcart_x crashcart_run"
    assert find_unknown_names(text) == ["crashcart_dst", "crashcart.fleet.colect"]


def test_ansible_accepts_the_playbooks(tmp_path):
    # awx.yml is left out: awx.awx is not installed.
    playbooks = [
        *(EXAMPLES / f"awx/{name}.yml" for name in ("collect", "trace", "report", "push")),
        EXAMPLES / "pull/local.yml",
    ]
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "--syntax-check", "-i", "web1,", *map(str, playbooks)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(TOP.parents[2]), "ANSIBLE_HOME": str(tmp_path / "home")},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("playbook: ") == len(playbooks)


def test_templates_of_awx_lead_to_playbooks_and_to_what_the_playbook_makes():
    templates = {options["name"]: options for options in list_options("job_template")}
    made = {name: list_options(name)[0]["name"] for name in ("execution_environment", "instance_group", "inventory")}
    (project,) = list_options("project")
    assert project["default_environment"] == made["execution_environment"]
    for options in templates.values():
        # AWX looks for the word at the beginning of a line, without ansible.builtin before it.
        assert re.search(r"^\s*import_playbook:", read(EXAMPLES / "awx" / options["playbook"]), re.MULTILINE)
        assert options["project"] == project["name"]
        assert options["inventory"] == made["inventory"]
        assert options["execution_environment"] == made["execution_environment"]
        assert options["instance_groups"] == [made["instance_group"]]
    (workflow,) = list_options("workflow_job_template")
    nodes = {options["identifier"]: options for options in list_options("workflow_job_template_node")}
    for options in nodes.values():
        assert options["workflow_job_template"] == workflow["name"]
        assert options["unified_job_template"] in templates
        assert set(options.get("always_nodes", [])) <= set(nodes)
    (schedule,) = list_options("schedule")
    assert schedule["unified_job_template"] in {workflow["name"], *templates}
    assert re.fullmatch(r"DTSTART:\d{8}T\d{6}Z RRULE:FREQ=\w+;INTERVAL=\d+", schedule["rrule"])


def test_the_survey_asks_for_what_the_playbook_takes():
    (options,) = (one for one in list_options("job_template") if "survey_spec" in one)
    assert options["survey_enabled"] is True
    questions = {one["variable"]: one for one in options["survey_spec"]["spec"]}
    assert set(questions) == {f"{PREFIX}{name}" for name in ("containers", "seconds", "profile")}
    module = yaml.safe_load(read(TOP / "plugins/modules/ftrace_instance.py").split('r"""', 1)[1].split('"""', 1)[0])
    profile = questions[f"{PREFIX}profile"]
    assert set(profile["choices"]) <= set(module["options"]["profile"]["choices"])
    assert profile["default"] in profile["choices"]


def test_pods_and_playbooks_have_the_store_at_the_same_place():
    (group,) = list_options("instance_group")
    pod = yaml.safe_load(re.sub(r"\{\{ (\w+) \}\}", r"\1", group["pod_spec_override"]))
    (container,) = pod["spec"]["containers"]
    (mount,) = container["volumeMounts"]
    assert mount["name"] == pod["spec"]["volumes"][0]["name"]
    for name in ("collect", "trace", "report"):
        (play,) = yaml.safe_load(read(EXAMPLES / f"awx/{name}.yml"))
        assert play["vars"]["crashcart_dest"].startswith(mount["mountPath"] + "/")
    assert container["env"][0]["value"].startswith(mount["mountPath"] + "/")


def test_a_host_that_pulls_collects_all_and_names_containers_only_to_start():
    plays = yaml.safe_load(read(EXAMPLES / "pull/local.yml"))
    collect, start = (play["vars"] for play in plays)
    assert [play["import_playbook"] for play in plays] == ["crashcart.fleet.collect", "crashcart.fleet.start"]
    assert not {f"{PREFIX}{name}" for name in SELECTION} & set(collect)
    assert start["crashcart_containers"] == "*"
    # A cleanup of the host removes what is below STATE.
    assert not f"{collect['crashcart_dest']}/".startswith(f"{STATE}/")
