# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's half of ftrace_capture: what several calls say together, and what it does not import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ansible_collections.crashcart.fleet.plugins.action import ftrace_capture

ACTION = ftrace_capture.ActionModule.__new__(ftrace_capture.ActionModule)


def test_the_next_call_finishes_what_is_left():
    arguments = {
        "containers": "api,db",
        "labels": {"a": "b"},
        "seconds": 9,
        "dest": "d",
        "format": "text",
        "_methods": ["zstd"],
    }
    result = {"left": ["a" * 64], "leave": ["b" * 64]}
    assert ACTION.list_next(result, arguments) == {
        "phase": "finish",
        "containers": ["a" * 64],
        "leave": ["b" * 64],
        "allow_empty": True,
        "dest": "d",
        "format": "text",
        "_methods": ["zstd"],
    }


def test_a_failure_of_any_call_is_one_of_the_task():
    good = {"changed": True, "instances": ["i"], "selected": ["api"], "failed_containers": []}
    bad = {"failed": True, "msg": "one", "failed_containers": [{"container": "db"}], "instances": ["i"]}
    later = {"changed": True, "selected": [], "failed_containers": [{"container": "web"}], "failed": True, "msg": "two"}
    assert "failed" not in ACTION.join(good, {"changed": True, "failed_containers": []})
    joined = ACTION.join(bad, later)
    assert (joined["failed"], joined["msg"]) == (True, "one; two")
    assert [one["container"] for one in joined["failed_containers"]] == ["db", "web"]
    assert ACTION.join(good, later)["selected"] == ["api"]
    assert ACTION.join(bad, good)["msg"] == "one"


@pytest.mark.parametrize("name", ["ftrace_capture", "ftrace_fetch"])
def test_ansible_imports_no_numpy_for_it(name):
    """Ansible imports an action before the task, and once more in each worker."""
    code = f"import {ftrace_capture.__package__}.{name}, sys; sys.exit('numpy' in sys.modules)"
    folder = ftrace_capture.__file__.rpartition("/ansible_collections/")[0]
    subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {folder!r}); {code}"], check=True)
