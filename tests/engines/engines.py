# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run containers of each engine of a host by the engine's own commands."""

from __future__ import annotations

import hashlib
import shlex
from typing import Protocol

import place
from keeper import NAMESPACE

_IMAGE = f"docker.io/{place.IMAGE}:latest"


class Engine(Protocol):
    """An engine on one host. All commands are run there."""

    runtime: str  # as crashcart_info calls it
    title: str  # as people call it

    def choose_name(self, word: str) -> str:
        """Return a name for a container that is called WORD in a test."""

    def run(self, name: str, command: str) -> None:
        """Start a container NAME that runs the shell command COMMAND."""

    def exec(self, name: str, command: str) -> str:
        """Run the shell command COMMAND in container NAME by the engine, and return its output."""

    def restart(self, name: str) -> None:
        """End container NAME and start it again."""

    def remove(self, name: str) -> None:
        """Remove container NAME, whatever its state is."""


class _Client:
    """Docker or Podman, whose clients have the same words."""

    def __init__(self, host: place.Place, runtime: str) -> None:
        self.runtime = runtime
        self.title = runtime.title()
        self._host = host

    def choose_name(self, word: str) -> str:
        return f"cc-{word}"

    def run(self, name: str, command: str) -> None:
        words = f"--name {name} --network none {place.IMAGE} /bin/sh -c {shlex.quote(command)}"
        self._host.run(f"{self.runtime} run -d {words}")

    def exec(self, name: str, command: str) -> str:
        return self._host.run(f"{self.runtime} exec {name} /bin/sh -c {shlex.quote(command)}")

    def restart(self, name: str) -> None:
        self._host.run(f"{self.runtime} restart -t 0 {name}")

    def remove(self, name: str) -> None:
        self._host.run(f"{self.runtime} rm -f {name}")


class _Containerd:
    """containerd by `ctr`, which has no word for a restart."""

    runtime = "containerd"
    title = "ctr of containerd"

    def __init__(self, host: place.Place) -> None:
        self._host = host

    def choose_name(self, word: str) -> str:
        # An id as Kubernetes and nerdctl give them, who have names elsewhere.
        return hashlib.sha256(word.encode()).hexdigest()

    def _ctr(self, words: str) -> str:
        return self._host.run(f"ctr -n {NAMESPACE} {words}")

    def run(self, name: str, command: str) -> None:
        self._ctr(f"run --detach {_IMAGE} {name} /bin/sh -c {shlex.quote(command)}")

    def exec(self, name: str, command: str) -> str:
        return self._ctr(f"tasks exec --exec-id work {name} /bin/sh -c {shlex.quote(command)}")

    def restart(self, name: str) -> None:
        self._end(name)
        self._ctr(f"tasks start --detach {name}")

    def remove(self, name: str) -> None:
        self._end(name)
        self._ctr(f"containers delete {name}")

    def _end(self, name: str) -> None:
        self._host.run(
            f"ctr='ctr -n {NAMESPACE}'; $ctr tasks kill -s KILL {name}; "
            f"for try in $(seq 100); do $ctr tasks delete {name} && exit; sleep 0.1; done"
        )


KINDS = ("docker", "podman", "containerd")


def choose(kind: str, host: place.Place) -> Engine:
    """Return the engine KIND, one of KINDS, of HOST."""
    return _Containerd(host) if kind == "containerd" else _Client(host, kind)
