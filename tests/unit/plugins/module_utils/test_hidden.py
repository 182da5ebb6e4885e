# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values that nobody is to read stand nowhere but in what the command itself says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ansible.module_utils import basic

from ansible_collections.crashcart.fleet.plugins.module_utils import hidden

MODULE = """\
import sys
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError, run_module

def run(module):
    result = {"rc": 1, "stdout": "1 true hunter2 nobody\\n", "truncated": False}
    if module.params["fails"]:
        raise FleetError("exit code 1", results=[result])
    return {"results": [result]}

def main():
    module = AnsibleModule(
        argument_spec=dict(
            env=dict(type="dict", no_log=True), stdin=dict(type="str", no_log=True), fails=dict(type="bool"), user=dict(type="str")
        )
    )
    run_module(module, run, hidden=("env", "stdin"))

main()
"""


@pytest.mark.parametrize("fails", [False, True])
def test_invocation_has_no_values_and_the_output_is_whole(tmp_path, fails):
    path = tmp_path / "module.py"
    path.write_text(MODULE)
    env = {"A": 1, "B": True, "C": "hunter2", "D": "no", "E": "", "F": ["hunter2"]}
    arguments = {"env": env, "stdin": "nobody", "fails": fails, "user": "nobody", "_ansible_version": "2.19"}
    if "_ansible_inject_invocation" in Path(basic.__file__).read_text(encoding="utf-8"):
        arguments["_ansible_inject_invocation"] = True  # as ansible-core 2.21 says where its configuration wants it
    text = json.dumps({"ANSIBLE_MODULE_ARGS": arguments})
    root = hidden.__file__.partition("/ansible_collections/")[0]
    done = subprocess.run(
        [sys.executable, str(path)],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)])},
    )
    result = json.loads(done.stdout)
    assert result["results"] == [{"rc": 1, "stdout": "1 true hunter2 nobody\n", "truncated": False}]
    given = result["invocation"]["module_args"]
    assert given == {"env": dict.fromkeys(env, hidden.MASK), "stdin": hidden.MASK, "fails": fails, "user": "nobody"}
    assert result.get("msg") == ("exit code 1" if fails else None)
