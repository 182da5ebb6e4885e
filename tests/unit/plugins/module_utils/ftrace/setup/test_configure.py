# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""An instance, here one of files, whose probes the kernel refuses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.specification import Settings
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.setup.configure import configure
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance, TraceError


def refuse():
    raise TraceError("the kernel refuses the probe")


def never():
    raise AssertionError("it goes on")


def test_one_that_was_there_is_not_touched(tmp_path):
    folder = tmp_path / "instances" / "crashcart-0123456789ab"
    folder.mkdir(parents=True)
    (folder / "tracing_on").write_text("1\n")
    wanted = Settings({"trace_clock": "mono"}, {"crashcart_0123456789ab_x:new": ""})
    with pytest.raises(TraceError, match="refuses the probe"):
        configure(
            Instance(str(tmp_path), folder.name),
            Settings({}, {"sched:sched_switch": ""}),
            wanted,
            SimpleNamespace(begin=never, restore=never),
            refuse,
            never,
        )
    assert (folder / "tracing_on").read_text() == "1\n"
    assert [path.name for path in folder.iterdir()] == ["tracing_on"]
