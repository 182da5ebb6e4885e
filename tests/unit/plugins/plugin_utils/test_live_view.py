# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's side of a live view, with the real process that decodes, against a socket that plays the guard."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from typing import ClassVar

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.calls import requests
from ansible_collections.crashcart.fleet.plugins.plugin_utils import compiled_cache, live_decoder, live_view
from ansible_collections.crashcart.fleet.plugins.plugin_utils.live_view import Guard, LiveView
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.live.test_live_stream import (
    HEAD,
    MANIFEST,
    page,
)

LATER = 1 << 50


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def cache(home, monkeypatch):
    """Let all tests here share a cache, as if it had compiled code. Nothing is compiled, since that takes longer than all of them."""
    monkeypatch.setattr(compiled_cache, "_find_home", lambda: str(home))
    monkeypatch.setattr(live_decoder, "has_code", lambda _folder: True)
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")


def pack(data):
    return base64.b64encode(zlib.compress(data)).decode()


class Host:
    """A host whose guard gives ANSWERS one after the other, the last one again and again. REQUESTS has what it was asked for."""

    servers: ClassVar[list[socket.socket]] = []  # which listen

    def __init__(self, folder, answers):
        self.path = str(folder / "guard")
        self.requests = []
        self._answers = list(answers)
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(self.path)
        self._server.listen(1)
        self.servers.append(self._server)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                connection, _address = self._server.accept()
            except OSError:
                return  # the test is over
            with connection:
                self.requests.append(json.loads(requests.receive(connection)))
                answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
                connection.sendall(answer if isinstance(answer, bytes) else json.dumps(answer).encode())

    def execute(self, command):
        """Return the result of COMMAND in the form of Ansible's low-level execution."""
        done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False)
        return {"rc": done.returncode, "stdout": f"noise\n{done.stdout}", "stderr": done.stderr}

    def view(self, lines):
        live = {
            "python": sys.executable,
            "socket": self.path,
            "cpus": [0, 1],
            "manifest": pack(json.dumps(MANIFEST).encode()),
            "head": pack(HEAD),
        }
        guard = Guard(live, self.execute)
        return guard, LiveView(live, guard, lines.append)


@pytest.fixture(autouse=True)
def no_server_stays():
    yield
    while Host.servers:
        server = Host.servers.pop()
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def answer(cpu_pages=(), until_ns=LATER, ended=None, **more):
    return {
        "until_ns": until_ns,
        "ended": ended,
        "pages": [(cpu, len(data)) for cpu, data in cpu_pages],
        "data": pack(b"".join(data for _cpu, data in cpu_pages)),
        "gaps": [],
        "skipped": 0,
        "seen": {"0": [1, 512]},
        **more,
    }


def make_calls(first, count):
    return b"".join(
        page((time, pages.make_enter(101, 39)), (time + 10, pages.make_exit(101, 39, 1)))
        for time in range(first, first + 100 * count, 100)
    )


def test_lines_come_look_by_look_until_the_trace_ends(tmp_path):
    split = page((5000, pages.make_enter(101, 0))), page((9000, pages.make_exit(101, 0, 3)))
    host = Host(
        tmp_path,
        [
            answer([(0, make_calls(1000, 2) + split[0])]),
            answer([(1, split[1])], seen={"0": [1, 512], "1": [1, 512]}),
            answer(ended="the container\x1b ended"),
        ],
    )
    lines = []
    _guard, view = host.view(lines)
    view.show(600)
    assert [line.partition(" ")[2] for line in lines] == [
        "p101[1] getpid() = 1 in 10 ns",
        "p101[1] getpid() = 1 in 10 ns",
        "p101[1] read(…) = 3 in 4 us".replace("…", "-1431655766, 0xaaaaaaaaaaaaaaaa, 12297829382473034410"),
    ]
    assert view.as_result() == {"lines": 3, "others": 0, "skipped": 0, "ended": "the container\\x1b ended"}
    assert [request["look"]["seen"] for request in host.requests] == [
        {},
        {"0": [1, 512]},
        {"0": [1, 512], "1": [1, 512]},
    ]


def test_more_lines_than_a_second_has_room_for_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(live_view, "_LINES_PER_S", 5)
    host = Host(tmp_path, [answer([(0, make_calls(1000, 50))]), answer(ended="over", skipped=3 << 20)])
    lines = []
    _guard, view = host.view(lines)
    view.show(600)
    assert len([line for line in lines if "getpid" in line]) == 5
    assert "… 45 more calls in this second" in lines
    assert "… 3.0 MiB of events came faster than they can be read here, and were passed over" in lines
    assert view.as_result() == {"lines": 5, "others": 45, "skipped": 3 << 20, "ended": "over"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_the_line_is_shown(tmp_path, number):
    """Ansible's main process would wait for ever for the lock of a worker that ends within."""
    order = []

    def show(_line):
        os.kill(os.getpid(), number)
        order.append("shown")

    _guard, view = Host(tmp_path, [answer([(0, make_calls(1000, 1))], ended="the container ended")]).view([])
    view._show_line = show
    before = signal.signal(number, lambda *_signal: order.append("signal"))
    try:
        view.show(600)
    finally:
        signal.signal(number, before)
    assert order == ["shown", "signal"]


def test_the_time_ends_the_view_with_what_has_not_ended(tmp_path):
    host = Host(tmp_path, [answer([(0, page((1000, pages.make_enter(101, 39))))]), answer()])
    lines = []
    _guard, view = host.view(lines)
    view.show(1.2)
    assert [line.partition(" ")[2] for line in lines] == ["p101[1] getpid() = ?"]
    assert view.ended is None and len(host.requests) >= 2


def decode_until_it_is_compiled(decoder):
    """Let DECODER take over. The tests' environment has numba compile nothing, so that this takes no minute."""
    deadline = time.monotonic() + 60
    while not decoder.is_compiled:
        assert time.monotonic() < deadline
        decoder.decode([], [], LATER, 0)
        time.sleep(0.05)


def test_compiled_code_takes_over_with_all_that_came_before(monkeypatch):
    monkeypatch.setattr(live_decoder, "has_code", lambda _folder: False)
    with live_decoder.Decoder(HEAD, MANIFEST, [0, 1]) as decoder:
        assert not decoder.is_compiled
        found = decoder.decode([(0, make_calls(1000, 3) + page((5000, pages.make_enter(101, 39))))], [], 6000, 9)
        assert (found["calls"], len(found["lines"])) == (3, 3)
        decode_until_it_is_compiled(decoder)
        found = decoder.decode([(1, page((7000, pages.make_exit(101, 39, 8))))], [], None, 9)
        assert [line.partition(" ")[2] for line in found["lines"]] == ["p101[1] getpid() = 8 in 2 us"]


def test_what_is_too_much_to_read_again_is_a_gap_for_compiled_code(monkeypatch):
    monkeypatch.setattr(live_decoder, "has_code", lambda _folder: False)
    monkeypatch.setattr(live_decoder, "_MAX_PAST", 4096)
    with live_decoder.Decoder(HEAD, MANIFEST, [0, 1]) as decoder:
        decoder.decode([(0, make_calls(1000, 5) + page((5000, pages.make_enter(102, 0))))], [], 6000, 0)
        decoder.decode([(0, make_calls(6000, 7))], [], 9000, 0)
        decode_until_it_is_compiled(decoder)
        found = decoder.decode([(1, page((9500, pages.make_exit(102, 0, 8))))], [], None, 9)
        assert [line.partition(" ")[2] for line in found["lines"]] == ["p102[2] read(…) = 8"]


@pytest.mark.sweep  # of processes
@pytest.mark.parametrize(
    "bad",
    [
        {"pages": [[0, "x"]]},
        {"pages": [[9, 512]], "data": pack(bytes(512))},
        {"pages": [[0, 100]], "data": pack(bytes(100))},
        {"data": "no base64!"},
        {"data": base64.b64encode(b"no zlib").decode()},
        {"data": pack(bytes(40 << 20))},
        {"seen": {"0": 7}},
        {"seen": []},
        {"until_ns": None},
        b"",
        b"[]",
        b"\x1b[2J{",
        {"failed": True, "msg": "no \x1b room"},
    ],
)
def test_a_hosts_nonsense_is_an_error_in_one_printable_line(tmp_path, bad):
    host = Host(tmp_path, [{**answer(), **bad} if isinstance(bad, dict) else bad])
    _guard, view = host.view([])
    with pytest.raises(FleetError) as failed:
        view.show(600)
    assert str(failed.value).isprintable()


def test_a_guard_that_is_gone_is_told(tmp_path):
    host = Host(tmp_path, [answer()])
    guard, view = host.view([])
    os.unlink(host.path)
    for ask in (guard.drop, lambda: view.show(600)):
        with pytest.raises(FleetError, match="the guard of the trace does not answer: .*No such file"):
            ask()


@pytest.mark.parametrize("name", ["manifest", "head", "cpus"])
def test_a_description_that_is_damaged_is_told(tmp_path, name):
    host = Host(tmp_path, [answer()])
    guard, view = host.view([])
    live = {**view._live, name: pack(b"{") if name != "cpus" else ["x"]}
    with pytest.raises(FleetError):
        LiveView(live, guard, print).show(600)
