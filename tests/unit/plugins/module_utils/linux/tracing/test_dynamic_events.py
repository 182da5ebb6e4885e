# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's lists of probes, here as files."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import dynamic_events
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance, TraceError

OURS = "crashcart_0123456789ab_5d41402a"
TEXT = f"""\
p:{OURS}/open /proc/self/fd/7:0x00000000000f5f10 path=+0(%di):ustring
r:{OURS}/open_end /proc/self/fd/7:0x00000000000f5f10 result=$retval:s32
r10:{OURS}/many vfs_read result=$retval
e:{OURS}/event syscalls.sys_enter_openat path=+0($filename):ustring
p:somebody/open /bin/sh:0x0000000000000400
s:synthetic/wakeup u64 lat
garbage
"""


@pytest.fixture
def root(tmp_path):
    (tmp_path / "instances").mkdir()
    (tmp_path / "uprobe_events").write_text(TEXT)
    return tmp_path


def test_probes_of_a_list():
    found = dynamic_events.parse_probes(TEXT, "dynamic_events")
    assert [one.event for one in found] == [
        f"{OURS}:open",
        f"{OURS}:open_end",
        f"{OURS}:many",
        f"{OURS}:event",
        "somebody:open",
        "synthetic:wakeup",
    ]
    assert found[0].line == TEXT.splitlines()[0]


def test_ours_are_known_by_the_begin_of_their_group(root):
    found = dynamic_events.list_probes(str(root), "crashcart")
    assert [(one.name, one.file) for one in found] == [
        (name, "uprobe_events") for name in ("open", "open_end", "many", "event")
    ]
    # Where there is a list of all, each stands once.
    (root / "dynamic_events").write_text(TEXT)
    assert {one.file for one in dynamic_events.list_probes(str(root), "crashcart")} == {"dynamic_events"}


def test_a_kernel_without_probes_has_none(tmp_path):
    assert dynamic_events.list_probes(str(tmp_path), "crashcart") == []
    assert dynamic_events.list_kinds(str(tmp_path)) == []
    assert {
        kind: reason.split("(")[1] for kind, reason in dynamic_events.find_missing_kinds(str(tmp_path)).items()
    } == {
        "kprobe": "CONFIG_KPROBE_EVENTS)",
        "eprobe": "CONFIG_EPROBE_EVENTS, Linux 5.15)",
        "uprobe": "CONFIG_UPROBE_EVENTS)",
    }


def test_kinds_that_are_there(root):
    (root / "kprobe_events").write_text("")
    (root / "synthetic_events").write_text("")
    assert dynamic_events.list_kinds(str(root)) == ["kprobe", "synthetic", "uprobe"]


def test_a_definition_is_added_to_what_is_there(root):
    dynamic_events.define(str(root), "uprobe_events", "p:g/n /bin/sh:0x400")
    assert (root / "uprobe_events").read_text() == TEXT + "p:g/n /bin/sh:0x400\n"


def test_a_removal_is_added_too(root):
    probe = dynamic_events.parse_probes(TEXT, "uprobe_events")[0]
    dynamic_events.remove(str(root), probe, 1.0)
    assert (root / "uprobe_events").read_text() == TEXT + f"-:{OURS}/open\n"


def test_a_refusal_names_the_definition(root):
    with pytest.raises(TraceError, match="refuses the probe 'p:g/n x': No such file or directory$"):
        dynamic_events.define(str(root), "kprobe_events/nonesuch", "p:g/n x")


@pytest.mark.parametrize(("text", "wanted"), [("0\n", False), ("1\n", True), ("0*\n", False), ("1*\n", True)])
def test_whether_an_event_is_on(root, text, wanted):
    folder = root / "instances" / "one" / "events" / OURS / "open"
    folder.mkdir(parents=True)
    (folder / "enable").write_text(text)
    assert dynamic_events.is_on(Instance(str(root), "one"), f"{OURS}:open") == wanted
    assert dynamic_events.list_users(str(root), f"{OURS}:open") == (["one"] if wanted else [])
