# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard of traces in a process of its own: it answers, ends with its traces, and finishes them when their time is over."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.calls import guard, requests

IDS = ["b" * 64, "a" * 64]


@pytest.fixture
def traces(tmp_path, monkeypatch):
    """The folders that play two instances; requests go through a folder of the test."""
    monkeypatch.setattr(requests, "FOLDER", str(tmp_path / "guards"))
    # Integration tests, which may run beside these, look for the host's guards.
    monkeypatch.setattr(guard, "GUARD_TITLE", "units-guard")
    paths = [tmp_path / "crashcart-a", tmp_path / "crashcart-b"]
    for path in paths:
        path.mkdir()
    yield paths
    for path in paths:
        with suppress(FileNotFoundError):  # the guard of the test may remove it just now
            path.rmdir()
    wait_until(lambda: not os.path.exists(requests.find_path(IDS)))


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def start(paths, seconds, finish, silence_s=None):
    guard.start_guard([str(path) for path in paths], IDS, seconds, finish, silence_s)


def finish_by(paths, note):
    """A function that removes PATHS, and writes down how it was called."""

    def finish(request, is_alone):
        new = note.with_suffix(".new")  # who finds the note finds it whole
        new.write_text(f"{request} {is_alone()}")
        new.rename(note)
        for path in paths:
            path.rmdir()
        return {"got": request}

    return finish


def test_a_request_is_answered_by_the_guard_of_these_containers(traces, tmp_path):
    start(traces, 1000, finish_by(traces, tmp_path / "note"))
    assert requests.ask(IDS[:1], {}) is None
    long = {"stamps": ["x" * 1000] * 1000}
    assert requests.ask(list(reversed(IDS)), long) == {"got": long}
    assert (tmp_path / "note").read_text().endswith(" False")
    wait_until(lambda: not os.path.exists(requests.find_path(IDS)))
    assert requests.ask(IDS, {}) is None


def test_it_ends_when_somebody_else_has_removed_the_traces(traces, tmp_path):
    start(traces, 1000, finish_by(traces, tmp_path / "note"))
    traces[0].rmdir()
    time.sleep(0.5)
    assert os.path.exists(requests.find_path(IDS))
    traces[1].rmdir()
    wait_until(lambda: not os.path.exists(requests.find_path(IDS)))
    assert not (tmp_path / "note").exists()


def test_it_finishes_them_when_their_time_is_over(traces, tmp_path):
    start(traces, 0.3, finish_by(traces, tmp_path / "note"))
    wait_until((tmp_path / "note").exists)
    wait_until(lambda: not any(path.exists() for path in traces))
    assert (tmp_path / "note").read_text() == "None True"


def test_a_client_that_says_nothing_or_nonsense_does_not_end_it(traces, tmp_path):
    start(traces, 1000, finish_by(traces, tmp_path / "note"))
    for words in (b"", b"{", b"[1]", b"\xff"):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(requests.find_path(IDS))
            client.sendall(words)
    assert requests.ask(IDS, {"a": 1}) == {"got": {"a": 1}}


def test_one_that_fails_is_as_none(traces):
    def finish(_request, _is_alone):
        raise RuntimeError

    start(traces, 1000, finish)
    assert requests.ask(IDS, {}) is None
    wait_until(lambda: not os.path.exists(requests.find_path(IDS)))
    start(traces, 1000, lambda request, _is_alone: request)
    assert requests.ask(IDS, {"a": 1}) == {"a": 1}


def test_a_socket_that_a_killed_guard_has_left_is_in_nobodys_way(traces):
    with requests.listen(IDS):
        pass
    assert os.path.exists(requests.find_path(IDS))
    assert requests.ask(IDS, {}) is None
    start(traces, 1000, lambda request, _is_alone: request)
    assert requests.ask(IDS, {"a": 1}) == {"a": 1}


def test_who_has_no_reader_is_alone(monkeypatch):
    reader, writer = os.pipe()
    kept = os.dup(1)
    try:
        os.dup2(writer, 1)
        heard = guard.is_alone()
        os.close(reader)
        assert (heard, guard.is_alone()) == (False, True)
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(writer)


def test_it_finishes_them_when_nobody_has_asked_for_anything_for_a_while(traces, tmp_path):
    def answer(request, is_alone):
        return {"looked": True} if request is not None else finish_by(traces, tmp_path / "note")(request, is_alone)

    start(traces, 1000, answer, silence_s=2)
    began = time.monotonic()
    while time.monotonic() - began < 4:
        assert requests.ask(IDS, {}) == {"looked": True}
        time.sleep(0.1)
    assert all(path.exists() for path in traces)
    wait_until((tmp_path / "note").exists)
    assert time.monotonic() - began > 5
    assert (tmp_path / "note").read_text() == "None True"
