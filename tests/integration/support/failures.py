# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check calls for several containers of which some fail, and make containers fail."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from support import host

LOCKS = "/run/crashcart/locks"


def fail(module: str, reasons: dict[str, str], done: list[str], **arguments: Any) -> dict[str, Any]:
    """Call MODULE, check that it fails in some containers and works in the containers DONE, and return its result.

    REASONS maps each failing container to a pattern of its message. The module's message has to name each container once.
    """
    with pytest.raises(host.ModuleFailed) as failure:
        host.call_module(module, containers=[*reasons, *done], **arguments)
    result = failure.value.result
    message = result["msg"]
    assert {failed["container"] for failed in result["failed_containers"]} == set(reasons), message
    for failed in result["failed_containers"]:
        assert re.search(reasons[failed["container"]], failed["msg"]), failed
        assert host.docker("inspect", "-f", "{{.Id}}", failed["container"]) == failed["id"]
        assert failed["msg"] in message
    assert message.startswith(f"{len(reasons)} of {len(reasons) + len(done)} containers failed: "), message
    for name in (*reasons, *done):
        assert len(re.findall(rf"{name}(?![\w-])", message)) == 1, message
    if done:
        told = re.search(r"; [a-z]+ all the same: (.*)\Z", message)
        assert told is not None, message
        assert set(told[1].split(", ")) == set(done)
    return result


@contextmanager
def held(kind: str, name: str) -> Iterator[None]:
    """Hold the lock of KIND (container, trace) of container NAME, as a call by another user would."""
    os.makedirs(LOCKS, mode=0o700, exist_ok=True)
    path = f"{LOCKS}/{kind}-{host.docker('inspect', '-f', '{{.Id}}', name)[:12]}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def end(name: str) -> None:
    """Kill container NAME, and wait until its first process is gone."""
    pid = host.find_pid(name)
    host.docker("kill", name)
    host.wait_until(lambda: not os.path.exists(f"/proc/{pid}"))


def stop(name: str) -> str:
    """Stop container NAME and return NAME."""
    host.docker("stop", "-t", "0", name)
    return name
