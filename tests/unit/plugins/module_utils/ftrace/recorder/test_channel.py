# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages between modules and the recorder, through a real socket."""

from __future__ import annotations

import os
import socket

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import channel, orders


@pytest.fixture
def pair():
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield ends
    for end in ends:
        end.close()


def test_a_message_arrives_whole_with_its_descriptors(pair):
    reader, writer = os.pipe()
    channel.send(pair[0], {"ok": True, "cpus": [1, 0]}, [writer])
    message, fds = channel.receive(pair[1])
    assert message == {"ok": True, "cpus": [1, 0]}
    os.write(fds[0], b"x")
    assert os.read(reader, 1) == b"x"
    assert not os.get_inheritable(fds[0])
    for fd in (reader, writer, *fds):
        os.close(fd)


def test_as_many_descriptors_as_one_message_takes(pair):
    fds = [os.open(os.devnull, os.O_RDONLY) for _number in range(channel.MAX_FDS)]
    channel.send(pair[0], {"ok": True}, fds)
    _message, received = channel.receive(pair[1])
    assert len(received) == len(fds)
    for fd in (*fds, *received):
        os.close(fd)


def test_the_end_of_the_other_is_an_empty_message(pair):
    pair[0].close()
    assert channel.receive(pair[1]) == ({}, [])


def test_a_recorder_takes_the_place_of_one_that_was_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(orders, "FOLDER", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        channel.connect()
    channel.listen().close()  # its file stays, as after a kill
    with pytest.raises(ConnectionRefusedError):
        channel.connect()
    with channel.listen() as server, channel.connect() as client:
        server.setblocking(True)
        with server.accept()[0] as accepted:
            channel.send(client, {"do": "take", "name": "crashcart-1"})
            assert channel.receive(accepted) == ({"do": "take", "name": "crashcart-1"}, [])
