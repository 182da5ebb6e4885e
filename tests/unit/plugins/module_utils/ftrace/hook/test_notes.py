# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Notes of what could not be traced: bounded, and whole lines only."""

from __future__ import annotations

import re
import socket

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.hook import notes


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(notes, "HOOK_FOLDER", str(tmp_path))
    monkeypatch.setattr(notes, "_FILE", f"{tmp_path}/troubles")
    monkeypatch.setattr(notes, "_LOG", f"{tmp_path}/log")
    return tmp_path


def test_they_are_read_in_order_and_bounded(folder):
    for number in range(2000):
        notes.tell("startup", str(number), "why " * 100)
    found = notes.read()
    assert [note["container"] for note in found] == [str(number) for number in range(2000 - len(found), 2000)]
    assert len(found) > 100
    assert sum(path.stat().st_size for path in folder.glob("troubles*")) < 140 << 10


def test_a_line_that_was_cut_short_is_passed_over(folder):
    notes.tell("startup", "a", "why")
    with open(folder / "troubles", "a", encoding="ascii") as file:
        file.write('{"time": 1, "prof\n[1]\n{"time": 1}\n\xff\n'.encode("latin1").decode("ascii", "ignore"))
    notes.tell("startup", "b\0\n\x1b[31m", "é" * 9)
    assert [note["container"] for note in notes.read()] == ["a", "b\0\n\x1b[31m"]


def test_a_log_that_hangs_holds_nobody_up(folder):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(folder / "log"))
        for number in range(2000):  # more than a socket holds
            notes.tell("startup", str(number), "why")
        first = log.recv(1000)
    assert re.fullmatch(rb"<28>crashcart-start-hook\[\d+\]: container 0 of startup: why", first)
    assert notes.read()[-1]["container"] == "1999"


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
