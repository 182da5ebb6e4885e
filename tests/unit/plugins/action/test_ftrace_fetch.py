# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's half of a fetch: parts that a host sent become a trace, or nothing."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import signal
import sys
import tracemalloc
import zlib

import pytest

if sys.version_info < (3, 11):
    pytest.skip("the controller runs Python 3.11 or newer", allow_module_level=True)
pytest.importorskip("ansible.plugins.action")

from ansible_collections.crashcart.fleet.plugins.action import ftrace_fetch

HEAD = b"head of a trace " * 10
PAGES = bytes(range(256)) * 5000
FETCHED = 1795302900.25


@contextlib.contextmanager
def limit(seconds):
    """Fails what does not end in time, instead of hanging with it."""

    def fail(_signal, _frame):
        raise AssertionError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def stage(*contents):
    """The staged file of CONTENTS, and where each part of it lies."""
    file = io.BytesIO()
    parts = []
    for content in contents:
        packed = zlib.compress(content, 1)
        parts.append({"offset": file.tell(), "size": len(packed), "sha256": hashlib.sha256(content).hexdigest()})
        file.write(packed)
    return file, parts


def make_capture(pages, head, name="api"):
    return {"pages": pages, "head": head, "manifest": {"container": {"name": name}, "fetched": FETCHED, "pages": 3}}


@pytest.fixture(name="assemble")
def make_assemble(tmp_path):
    work = tmp_path / "work"
    work.mkdir()

    def assemble(capture, file):
        return ftrace_fetch._assemble(capture, file, str(tmp_path / "dest"), str(work))

    return assemble


def list_files(path):
    return sorted(
        os.path.relpath(os.path.join(folder, name), str(path))
        for folder, _f, names in os.walk(str(path))
        for name in names
    )


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("web1", "web1"),
        ("web1.example.com", "web1.example.com"),
        ("a_b-c.d", "a_b-c.d"),
        ("../../etc/passwd", ".._.._etc_passwd"),
        ("/etc", "_etc"),
        ("a/b\\c", "a_b_c"),
        ("..", "_.."),
        (".", "_."),
        ("...", "_..."),
        ("", "_"),
        ("a\0b\nc", "a_b_c"),
        ("größe", "gr__e"),
        ("[::1]:22", "___1__22"),
        ("\x1b[31m", "__31m"),
    ],
)
def test_file_name(text, name):
    assert ftrace_fetch.make_file_name(text) == name


def test_no_file_name_leads_to_another_folder():
    source = random.Random(31)
    for _round in range(3000):
        text = "".join(source.choice("./\\a\0~\n-") for _index in range(source.randrange(8)))
        name = ftrace_fetch.make_file_name(text)
        assert os.path.normpath(os.path.join("/dest", name)) == "/dest/" + name


def test_head_and_pages_become_a_trace_with_its_manifest(tmp_path, assemble):
    file, (pages, head) = stage(PAGES, HEAD)
    path = assemble(make_capture(pages, head), file)
    assert path == str(tmp_path / "dest" / "api" / "20261121T231500.250000Z.dat")
    with open(path, "rb") as trace:
        assert trace.read() == HEAD + PAGES
    with open(path[: -len(".dat")] + ".json", encoding="utf-8") as text:
        manifest = json.load(text)
    assert manifest["size"] == len(HEAD + PAGES)
    assert manifest["sha256"] == hashlib.sha256(HEAD + PAGES).hexdigest()
    assert manifest["container"] == {"name": "api"}
    assert len(list_files(tmp_path)) == 2


def test_captures_of_one_staged_file(assemble):
    file, parts = stage(b"pages 1", b"head 1 ", PAGES, HEAD)
    for name, (pages, head), content in (("a", parts[:2], b"head 1 pages 1"), ("b", parts[2:], HEAD + PAGES)):
        with open(assemble(make_capture(pages, head, name), file), "rb") as trace:
            assert trace.read() == content


def test_parts_larger_than_one_chunk(monkeypatch, assemble):
    monkeypatch.setattr(ftrace_fetch, "_CHUNK", 100)
    file, (pages, head) = stage(PAGES, HEAD)
    with open(assemble(make_capture(pages, head), file), "rb") as trace:
        assert trace.read() == HEAD + PAGES


def test_an_empty_part(assemble):
    file, (pages, head) = stage(b"", HEAD)
    with open(assemble(make_capture(pages, head), file), "rb") as trace:
        assert trace.read() == HEAD


def test_a_hostile_name_of_a_container_stays_in_the_folder(tmp_path, assemble):
    file, (pages, head) = stage(PAGES, HEAD)
    path = assemble(make_capture(pages, head, "../../../evil"), file)
    assert os.path.dirname(os.path.dirname(path)) == str(tmp_path / "dest")


@pytest.mark.parametrize("which", [0, 1])
def test_another_sha256_gives_no_trace(tmp_path, assemble, which):
    file, parts = stage(PAGES, HEAD)
    parts[which]["sha256"] = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(ValueError, match="sha256"):
        assemble(make_capture(*parts), file)
    assert list_files(tmp_path / "dest") == []


def test_a_staged_file_cut_short_anywhere_gives_no_trace(tmp_path, assemble):
    file, parts = stage(PAGES[:300], HEAD)
    whole = file.getvalue()
    for length in range(len(whole)):
        with pytest.raises((ValueError, zlib.error)):
            assemble(make_capture(*parts), io.BytesIO(whole[:length]))
    assert list_files(tmp_path / "dest") == []


def test_every_damaged_byte_is_found(tmp_path, assemble):
    file, parts = stage(PAGES[:300], HEAD)
    whole = file.getvalue()
    refused = 0
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 0x41
        try:
            path = assemble(make_capture(*parts), io.BytesIO(bytes(data)))
        except (ValueError, zlib.error):
            refused += 1
            continue
        # Bits of zlib that say nothing of the content.
        with open(path, "rb") as trace:
            assert trace.read() == HEAD + PAGES[:300]
        os.unlink(path)
    assert refused > len(whole) * 0.9


@pytest.mark.parametrize("change", [{"offset": -1}, {"offset": 1 << 40}, {"size": 1}, {"size": 0}, {"size": -5}])
def test_a_part_that_lies_elsewhere_gives_no_trace(tmp_path, assemble, change):
    file, (pages, head) = stage(PAGES, HEAD)
    with pytest.raises((ValueError, zlib.error)):
        assemble(make_capture({**pages, **change}, head), file)
    assert list_files(tmp_path / "dest") == []


def measure(capture, file, assemble):
    tracemalloc.start()
    try:
        assemble(capture, file)
    except (ValueError, zlib.error):
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def test_a_few_bytes_that_become_many_do_not_fill_the_memory(assemble):
    size = 64 << 20
    file, (pages, head) = stage(bytes(size), HEAD)
    assert pages["size"] < size // 100
    assert measure(make_capture(pages, head), file, assemble) < 16 << 20


@pytest.mark.parametrize("more", [1, len(HEAD), 64 << 20, 1 << 40])
def test_a_part_longer_than_its_stream_gives_no_trace_and_an_end(tmp_path, assemble, more):
    file, (pages, head) = stage(PAGES, HEAD)
    if more == 64 << 20:
        file.seek(0, os.SEEK_END)
        file.write(bytes(more))
        head = {**head, "size": head["size"] + more}
    else:
        pages = {**pages, "size": pages["size"] + more}
    with limit(1), pytest.raises((ValueError, zlib.error)):
        assemble(make_capture(pages, head), file)
    assert list_files(tmp_path / "dest") == []
