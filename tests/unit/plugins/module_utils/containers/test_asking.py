# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that are asked: their bounds, and what is left of them."""

from __future__ import annotations

import os
import time

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.asking import (
    Unanswered,
    clean_text,
    parse_json,
    read_engine_timeout,
    run,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import ContainerError

ENOUGH_S = 60.0


def ask(script, seconds=ENOUGH_S, **options):
    return run(["sh", "-c", script], time.monotonic() + seconds, **options)


def runs(mark):
    """Return True if a process has MARK in its command line."""
    for pid in os.listdir("/proc"):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if pid.isdigit() and mark.encode("ascii") in file.read():
                    return True
        except OSError:
            continue
    return False


def wait_until(condition):
    end = time.monotonic() + ENOUGH_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_an_answer():
    done = ask("echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", "err")


def test_the_environment_is_clean(monkeypatch):
    monkeypatch.setenv("CC_SECRET", "x")
    assert b"CC_SECRET" not in ask("env").stdout


def test_how_long_an_engine_may_take(monkeypatch):
    monkeypatch.delenv("DOCKER_TIMEOUT", raising=False)
    assert read_engine_timeout() == 60
    monkeypatch.setenv("DOCKER_TIMEOUT", "2.5")
    assert read_engine_timeout() == 2.5


@pytest.mark.parametrize("text", ["soon", "0", "-3", "nan", "inf"])
def test_no_time_for_an_engine_is_named(monkeypatch, text):
    monkeypatch.setenv("DOCKER_TIMEOUT", text)
    with pytest.raises(ContainerError, match=f"DOCKER_TIMEOUT={text} is not a number of seconds"):
        read_engine_timeout()


@pytest.mark.sweep
@pytest.mark.parametrize(
    "script",
    [
        "sleep 1000.{0}",
        # It answers byte by byte, each of them in time.
        "while :; do echo x; sleep 0.2; : {0}; done",
        # It has ended, and what it has left holds its output.
        "sleep 1000.{0} & exit 0",
        # It has let go of its output, and goes on.
        "exec >&- 2>&-; sleep 1000.{0}",
    ],
)
def test_what_does_not_end_is_ended_with_its_children(script):
    mark = str(time.monotonic_ns())
    start = time.monotonic()
    with pytest.raises(Unanswered, match="in time"):
        ask(script.format(mark), 1.0)
    assert time.monotonic() - start < ENOUGH_S
    wait_until(lambda: not runs(mark))


def test_an_endless_answer_is_not_read_to_its_end():
    with pytest.raises(Unanswered, match="more than 65536 bytes"):
        ask("while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; done", max_bytes=1 << 16)
    with pytest.raises(Unanswered, match="more than 10 bytes"):
        ask("echo 01234567890123456789 >&2", max_bytes=10)
    assert len(ask("head -c 65536 /dev/zero", max_bytes=1 << 16).stdout) == 1 << 16


def test_a_program_that_is_not_there():
    with pytest.raises(FileNotFoundError):
        run(["crashcart-nonesuch"], time.monotonic() + ENOUGH_S)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("plain", "plain"),
        ("two\nlines\t and more", "two lines and more"),
        ("\x1b[31mred\x07", "?[31mred?"),
        ("\ud800", "?"),
        ("x" * 1000, "x" * 400 + "…"),
    ],
)
def test_words_of_others_in_messages(text, cleaned):
    assert clean_text(text) == cleaned


def test_a_document_that_is_nested_too_deeply_is_none():
    with pytest.raises(RecursionError):
        parse_json(b"[" * 200_000)
