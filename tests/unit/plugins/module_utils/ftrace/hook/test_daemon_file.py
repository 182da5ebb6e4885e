# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Docker's configuration gets our runtimes and loses them again; what others have in it stays, byte for byte where nobody else changed it."""

from __future__ import annotations

import json
import os

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.hook import daemon_file
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.hook.daemon_file import DaemonFile
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.installed import files

OURS = {"crashcart": {"path": "/usr/libexec/crashcart/crashcart-runtime"}}
THEIRS = {"kata": {"path": "/usr/bin/kata"}}
# Each has something that a JSON library would write differently.
TEXTS = {
    "none": None,
    "empty": b"",
    "blank": b" \n",
    "one line": b'{"debug":true}',
    "tabs": b'{\n\t"debug": true,\n\t"log-level":  "warn"\n}',
    "runtimes of others": json.dumps({"runtimes": THEIRS, "bip": "10.0.0.1/24"}, indent=8).encode(),
    "letters": '{"labels": ["café"]}\n'.encode(),
}


@pytest.fixture
def path(tmp_path, monkeypatch):
    """Give the place of the daemon's configuration, in a folder that stands for the host."""
    for name, value in list(vars(files).items()):
        if isinstance(value, str) and value.startswith("/etc/"):
            monkeypatch.setattr(files, name, str(tmp_path) + value)
    return tmp_path / "daemon.json"


def add(path):
    """Add our runtimes to those in the file PATH."""
    DaemonFile(str(path)).write(OURS, "/run/docker.pid")


def take_back(path, seen, fails=False):
    """Take our runtimes out of the file PATH; SEEN gets what the daemon reads, and with FAILS the daemon cannot read."""

    def reload():
        seen.append(json.loads(path.read_text() or "{}").get("runtimes"))
        if fails:
            raise FleetError("no reload")

    DaemonFile(str(path)).take_back(reload)
    assert files.recall()["daemon"] == {}


@pytest.mark.parametrize("case", TEXTS)
def test_what_nobody_else_has_changed_comes_back_byte_for_byte(path, case):
    before = TEXTS[case]
    if before is not None:
        path.write_bytes(before)
        path.chmod(0o600)
    add(path)
    content = json.loads(path.read_text())
    assert content.pop("runtimes") == {**(THEIRS if case == "runtimes of others" else {}), **OURS}
    assert content == {
        name: value for name, value in json.loads((before or b"").strip() or b"{}").items() if name != "runtimes"
    }
    assert path.stat().st_mode & 0o777 == (0o644 if before is None else 0o600)
    add(path)  # once more, as by a change of profiles
    seen = []
    with pytest.raises(FleetError):
        take_back(path, seen, fails=True)
    take_back(path, seen)
    # A daemon that reads no key `runtimes` keeps those that it has.
    assert seen == [THEIRS if case == "runtimes of others" else {}] * 2
    assert (path.read_bytes() if path.exists() else None) == before


def test_what_somebody_else_has_changed_meanwhile_stays(path):
    path.write_text('{\n    "debug": true\n}\n')
    add(path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "log-level": "warn"}, indent=4))
    seen = []
    take_back(path, seen)
    assert seen == [{}]
    assert path.read_text() == '{\n    "debug": true,\n    "log-level": "warn"\n}\n'


def test_what_somebody_else_has_changed_before_our_second_change_stays(path):
    path.write_text('{"debug": true}')
    add(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "debug": False}))
    add(path)
    take_back(path, [])
    assert json.loads(path.read_text()) == {"debug": False}


def test_a_file_that_somebody_has_removed_stays_away(path):
    add(path)
    path.unlink()
    seen = []
    take_back(path, seen)
    # The daemon has our runtimes until it reads that there are none.
    assert seen == [{}] and not path.exists()


def test_what_somebody_changes_while_the_daemon_reads_stays(path):
    path.write_text('{"debug": true}')
    add(path)
    DaemonFile(str(path)).take_back(lambda: path.write_text('{"log-level": "warn"}'))
    assert path.read_text() == '{"log-level": "warn"}' and files.recall()["daemon"] == {}


@pytest.mark.parametrize("when", ["add", "take back"])
def test_after_a_kill_between_note_and_write_the_file_comes_back_byte_for_byte(path, monkeypatch, when):
    path.write_bytes(TEXTS["tabs"])
    add(path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        write = files.replace

        def write_or_end(file):
            if file.path == str(path):
                raise KeyboardInterrupt
            write(file)

        patch.setattr(files, "replace", write_or_end)
        if when == "add":
            DaemonFile(str(path)).write({**OURS, "crashcart-more": {"path": "x"}}, "/run/docker.pid")
        else:
            DaemonFile(str(path)).take_back(lambda: None)
    take_back(path, [])
    assert path.read_bytes() == TEXTS["tabs"]


def test_what_somebody_changes_after_a_removal_is_what_comes_back(path):
    path.write_text('{"debug": true}')
    add(path)
    take_back(path, [])
    path.write_bytes(TEXTS["tabs"])
    add(path)
    take_back(path, [])
    assert path.read_bytes() == TEXTS["tabs"]


def test_a_removal_finds_the_file_that_was_changed(path):
    assert daemon_file.find_files("/etc/docker/daemon.json", "/run/docker.pid") == (
        "/etc/docker/daemon.json",
        "/run/docker.pid",
    )
    DaemonFile(str(path)).write(OURS, "/run/other.pid")
    assert daemon_file.find_files("/etc/docker/daemon.json", "/run/docker.pid") == (str(path), "/run/other.pid")
    assert daemon_file.find_files(str(path), "/run/given.pid") == (str(path), "/run/given.pid")
    assert DaemonFile(str(path)).is_known


def test_what_a_killed_process_has_left_of_a_file_is_removed_with_it(path):
    left = path.with_name(f".{path.name}.crashcart")
    left.touch()
    assert files.is_left(str(path))
    files.remove(str(path))
    assert not left.exists() and not files.is_left(str(path))


def test_a_link_stays_one(path, tmp_path):
    real = tmp_path / "real.json"
    real.write_text("{}")
    path.symlink_to(real)
    add(path)
    take_back(path, [])
    assert path.is_symlink() and os.readlink(path) == str(real)
    assert real.read_text() == "{}"


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"runtimes": []}', '{"runtimes": null}'])
def test_what_is_no_configuration_is_named_and_left(path, text):
    path.write_text(text)
    with pytest.raises(
        FleetError, match=f"{path} is no configuration of Docker's daemon .*mend it first; nothing was changed"
    ):
        DaemonFile(str(path))
    assert path.read_text() == text
