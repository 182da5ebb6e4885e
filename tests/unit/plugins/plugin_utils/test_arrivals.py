# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Segments that arrive in one file, whole or broken off at any byte, with wrong words of a host beside them."""

from __future__ import annotations

import hashlib
import os

import pytest

from ansible_collections.crashcart.fleet.plugins.plugin_utils.arrivals import ArrivalError, Arrivals

NAMES = [f"crashcart-{number:012x}.{number:020d}" for number in range(3)]
CONTENTS = {name: bytes([number]) * (50 + number) for number, name in enumerate(NAMES)}


def make_transfer(have, contents=CONTENTS):
    """Return a host's description of a transfer and its bytes, for a controller that has the numbers HAVE of bytes of segments."""
    segments = [
        {
            "name": name,
            "state": "new",
            "size": len(content),
            "start": have.get(name, 0),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        for name, content in contents.items()
    ]
    return {"path": "/the/transfer", "segments": segments}, b"".join(
        content[have.get(name, 0) :] for name, content in contents.items()
    )


def take(arrivals, transfer, data, tmp_path):
    path = tmp_path / "transfer"
    path.write_bytes(data)
    return arrivals.take(transfer, str(path))


def read_all(paths):
    return {os.path.basename(path): open(path, "rb").read() for path in paths}


def test_a_whole_transfer(tmp_path):
    transfer, data = make_transfer({})
    arrivals = Arrivals(str(tmp_path))
    assert read_all(take(arrivals, transfer, data, tmp_path)) == CONTENTS


@pytest.mark.sweep
@pytest.mark.parametrize("again", [7, 60])
def test_a_transfer_broken_at_every_byte_goes_on_behind_it(tmp_path, again):
    whole = sum(map(len, CONTENTS.values()))
    for length in (*range(0, whole, 5), 49, 50, 51, 101, whole - 1):
        folder = tmp_path / f"{length}-{len(os.listdir(tmp_path))}"
        folder.mkdir()
        arrivals = Arrivals(str(folder))
        transfer, data = make_transfer({})
        sent = length
        found = take(arrivals, transfer, data[:length], folder)
        while len(found) < len(CONTENTS):
            have = arrivals.list_parts()
            # Also of what has not begun to arrive is known that it is ours.
            assert set(have) == set(CONTENTS)
            assert sum(have.values()) == sent
            transfer, data = make_transfer(have)
            found = take(arrivals, transfer, data[:again], folder)
            sent += min(again, len(data))
        assert sent == whole
        assert read_all(found) == CONTENTS


def test_parts_that_the_host_has_no_more_are_removed(tmp_path):
    arrivals = Arrivals(str(tmp_path))
    transfer, data = make_transfer({})
    take(arrivals, transfer, data[:60], tmp_path)
    rest = {NAMES[1]: CONTENTS[NAMES[1]]}
    transfer, data = make_transfer(arrivals.list_parts(), rest)
    assert read_all(take(arrivals, transfer, data, tmp_path)) == rest
    assert list(arrivals.list_parts()) == [NAMES[1]]


def test_another_sha256_is_found_and_the_part_comes_again(tmp_path):
    arrivals = Arrivals(str(tmp_path))
    transfer, data = make_transfer({})
    with pytest.raises(ArrivalError, match="the sha256 of what arrived"):
        take(arrivals, transfer, b"\xff" + data[1:], tmp_path)
    assert NAMES[0] not in arrivals.list_parts()
    transfer, data = make_transfer(arrivals.list_parts())
    assert read_all(take(arrivals, transfer, data, tmp_path)) == CONTENTS


def test_a_host_that_goes_on_elsewhere_begins_anew(tmp_path):
    arrivals = Arrivals(str(tmp_path))
    transfer, data = make_transfer({NAMES[0]: 10})
    with pytest.raises(ArrivalError, match="goes on at byte 10, and 0 are here"):
        take(arrivals, transfer, data, tmp_path)
    transfer, data = make_transfer(arrivals.list_parts())
    assert read_all(take(arrivals, transfer, data, tmp_path)) == CONTENTS


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../../evil",
            "/etc/passwd",
            "crashcart-a/../b.00000000000000000001",
            "other.00000000000000000001",
            "",
            None,
            7,
        ),
        *("crashcart-a.1", "crashcart-a.00000000000000000001\n", "crashcart-é.00000000000000000001"),
    ],
)
def test_names_that_are_none(tmp_path, name):
    arrivals = Arrivals(str(tmp_path / "in"))
    transfer = {
        "path": "/the/transfer",
        "segments": [{"name": name, "state": "new", "size": 1, "start": 0, "sha256": ""}],
    }
    with pytest.raises(ArrivalError, match="is no name of a segment"):
        take(arrivals, transfer, b"x", tmp_path)
    assert os.listdir(tmp_path / "in" / ".crashcart-parts") == ["transfer"]


def test_the_folder_goes_with_the_last_part(tmp_path):
    arrivals = Arrivals(str(tmp_path))
    transfer, data = make_transfer({})
    for path in take(arrivals, transfer, data, tmp_path):
        arrivals.clean()
        assert arrivals.find_broken() == "/the/transfer"
        assert os.path.exists(path)
        os.unlink(path)
    arrivals.clean()
    assert os.listdir(tmp_path) == ["transfer"]
    assert (arrivals.list_parts(), arrivals.find_broken()) == ({}, "")
