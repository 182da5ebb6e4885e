# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Notes of what could not be traced: bounded, and whole lines only."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.hook import notes


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(notes, "HOOK_FOLDER", str(tmp_path))
    monkeypatch.setattr(notes, "RUN", str(tmp_path))
    monkeypatch.setattr(notes, "_FILE", f"{tmp_path}/troubles")
    monkeypatch.setattr(notes.syslog, "syslog", lambda *_arguments: None)
    return tmp_path


def test_they_are_read_in_order_and_bounded(folder):
    for number in range(2000):
        notes.tell("startup", str(number), "why " * 100)
    found = notes.read()
    assert [note["container"] for note in found] == [str(number) for number in range(2000 - len(found), 2000)]
    assert len(found) > 100
    assert sum(path.stat().st_size for path in folder.iterdir()) < 140 << 10


def test_a_line_that_was_cut_short_is_passed_over(folder):
    notes.tell("startup", "a", "why")
    with open(folder / "troubles", "a", encoding="ascii") as file:
        file.write('{"time": 1, "prof\n[1]\n{"time": 1}\n\xff\n'.encode("latin1").decode("ascii", "ignore"))
    notes.tell("startup", "b\0\n\x1b[31m", "é" * 9)
    assert [note["container"] for note in notes.read()] == ["a", "b\0\n\x1b[31m"]


def test_a_refusal_is_forgotten_after_some_seconds(monkeypatch):
    assert notes.find_refusal("startup") is None
    notes.note_refusal("startup", "no room")
    assert notes.find_refusal("startup") == "no room"
    assert notes.find_refusal("other") is None
    now = notes.time.monotonic()
    monkeypatch.setattr(notes.time, "monotonic", lambda: now + 60)
    assert notes.find_refusal("startup") is None
    monkeypatch.undo()


def test_nothing_can_be_written(monkeypatch, tmp_path):
    monkeypatch.setattr(notes, "HOOK_FOLDER", f"{tmp_path}/file/below")
    monkeypatch.setattr(notes, "_FILE", f"{tmp_path}/file/below/troubles")
    (tmp_path / "file").write_text("")
    notes.tell("startup", "a", "why")
    notes.note_refusal("startup", "why")
    notes.forget_refusal("startup")
    assert (notes.read(), notes.find_refusal("startup")) == ([], None)
