# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files by which engines run the start hook, and the runtime that announces containers."""

from __future__ import annotations

import json
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.hook import wiring
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.specification import is_runtimes
from ansible_collections.crashcart.fleet.plugins.module_utils.names import HOOK_FILES, TITLE_LENGTH

CREATE = ["--root", "/run/x", "--log", "l", "create", "--bundle", "/b", "--pid-file", "/b/init.pid", "0123abc"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the runtime around a program that ends with STATUS; return the exit code, the calls, and what both were given."""
    program = tmp_path / "hook"
    monkeypatch.setattr(wiring, "HOOK_PROGRAM", str(program))

    def call(words, status=0, hook_status=0, *, is_stub=False):
        for path, name, code in ((tmp_path / "real one", "real", status), (program, "hook", hook_status)):
            path.write_text(f'#!/bin/sh\necho {name} "$@" >>{tmp_path}/calls\nexit {code}\n')
            path.chmod(0o755)
        file = wiring.make_wrappers(["startup"], [str(tmp_path / "real one"), "--more"], is_stub=is_stub)[
            "crashcart-startup"
        ]
        (tmp_path / "runtime").write_bytes(file.content)
        (tmp_path / "calls").write_text("")
        done = subprocess.run(["/bin/sh", tmp_path / "runtime", *words], capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr) == ("", "")
        return done.returncode, (tmp_path / "calls").read_text().splitlines()

    return call


def test_all_files_are_found_by_a_cleanup():
    made = [wiring.make_cdi(["startup"], is_stub=False), *wiring.make_hooks(["startup", "more"])]
    made += wiring.make_wrappers(["startup", "more"], ["/usr/bin/runc"], is_stub=False).values()
    for file in made:
        assert [pattern for pattern in HOOK_FILES if fnmatch(file.path, pattern)], file.path


def test_traces_leave_out_our_runtimes_by_the_name_that_the_kernel_gives_them():
    for name in wiring.name_runtimes(["startup", "x"]):
        assert is_runtimes(Path(wiring.name_wrapper(name)).name[:TITLE_LENGTH])


def test_create_is_announced(run):
    real = f"real --more {' '.join(CREATE)}"
    assert run(CREATE) == (0, [real, "hook created startup 0123abc /b/init.pid"])
    assert run(CREATE, hook_status=3) == (0, [real, "hook created startup 0123abc /b/init.pid"])
    words = [word for word in CREATE if word not in ("--pid-file", "/b/init.pid")]
    assert run([*words[:-1], "--pid-file=/b/p", "id"])[1][1] == "hook created startup id /b/p"


def test_a_create_that_fails_fails_as_it_did(run):
    assert run(CREATE, status=5) == (5, [f"real --more {' '.join(CREATE)}"])


@pytest.mark.parametrize(
    "words", [["start", "create"], ["--log", "l", "exec", "--process", "p", "create"], ["--version"], []]
)
def test_other_commands_are_passed_on(run, words):
    assert run(words, status=4) == (4, [" ".join(["real", "--more", *words])])


def test_a_stub_announces_nothing(run):
    assert run(CREATE, is_stub=True) == (0, [f"real --more {' '.join(CREATE)}"])


def test_names_of_runtimes():
    assert wiring.name_runtimes(["a", "b"]) == {"crashcart": "a", "crashcart-a": "a", "crashcart-b": "b"}
    assert wiring.name_devices(["a"]) == ["crashcart.fleet/trace=a"]
    assert (wiring.is_ours("crashcart-a"), wiring.is_ours("crashcarts"), wiring.is_ours("runc")) == (True, False, False)


def test_a_stub_has_an_edit_for_each_device_and_no_hook():
    file = wiring.make_cdi(["a", "b"], is_stub=True)
    devices = json.loads(file.content)["devices"]
    assert [device["name"] for device in devices] == ["a", "b"]
    assert all(device["containerEdits"] and "hooks" not in device["containerEdits"] for device in devices)
