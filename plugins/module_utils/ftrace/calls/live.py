# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's half of a trace that is shown while it goes on: the guard of the trace answers each look of the controller at it."""

from __future__ import annotations

import base64
import json
import os
import sys
import zlib
from typing import Any, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import end
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.calls import finishing, requests
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch.new_pages import read_new
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.manifest import Tables
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import client, recordings
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.recordings import Recording
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import clocks

SILENCE_S = 20.0
"""The guard ends a trace that nobody has looked at so long."""
MOST_BYTES = 8 << 20
"""Bytes of pages that one look brings, at most."""
LOOK, DROP = "look", "drop"
"""What a request asks the guard for: new pages, or to remove the trace with all that it recorded."""
_UNTOLD_NS = 6_000_000_000  # a recorder that cannot be asked drains all buffers within this time
_NAMED = 5  # containers in a message


def prepare(parameters: dict[str, Any]) -> None:
    """Check PARAMETERS of a trace that is shown, and fill in what it needs. Raises FleetError."""
    if parameters["phase"] == "finish":
        raise FleetError("live: phase=finish ends a trace that is there: leave live out")
    if parameters["mode"] == "ring":
        raise FleetError("live reads a recording, and mode=ring makes none: leave mode out")
    if parameters["existing"] == "change":
        raise FleetError("live shows a trace of its own: leave existing out, and end the present trace first")
    if clocks.read(parameters["clock"]) is None:
        raise FleetError(f"live needs a clock that the host can read: take mono or boot, not {parameters['clock']}")
    parameters["mode"] = "record"
    if not parameters["dest"]:  # then nobody wants the recording itself, and it only has to last until it is shown
        for name, value in (("when_full", "rotate"), ("max_size", "256MiB")):
            if parameters[name] is None:
                parameters[name] = value


def check_one(containers: Sequence[Container]) -> None:
    """Raise FleetError unless CONTAINERS are one."""
    if len(containers) > 1:
        names = sorted(container.name for container in containers)
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        raise FleetError(
            f"live shows one container, and the selection has {len(names)}: {', '.join(names[:_NAMED])}{more};"
            f" name one of them: containers={names[0]}"
        )


def find_recording(name: str) -> Recording:
    """Return the recording that goes on in instance NAME. Raises FleetError where there is none."""
    found = recordings.list_recordings(name)
    if not found:
        raise FleetError("the trace has begun, and no recorder writes it: see why with ftrace_info")
    return found[-1]


def describe(recording: Recording, container_id: str) -> dict[str, Any]:
    """Return what the controller needs to look at RECORDING of the container with CONTAINER_ID, and to read its pages."""
    about, record = recording.about, recording.about["record"]
    with open(os.path.join(recording.path, recordings.HEAD), "rb") as file:
        head = file.read()
    manifest = {
        "arch": about["arch"],
        "specification": record.get("specification"),
        "earlier_syscalls": record.get("earlier_syscalls", []),
        "time": {"changed": record.get("changed")},
        "clock_offset_ns": clocks.measure_offset(about["clock"])["offset_ns"],
        "complete": True,
        **Tables(record.get("tasks", []), [], "", recording.read_holdings()).as_json(),
    }
    return {
        "python": sys.executable,
        "socket": requests.find_path([container_id]),
        "cpus": about["cpus"],
        "manifest": _pack(json.dumps(manifest).encode("utf-8")),
        "head": _pack(head),
    }


def _pack(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 1)).decode("ascii")


def look(recording: Recording, request: dict[str, Any]) -> dict[str, Any]:
    """Return the pages of RECORDING behind the places that REQUEST names, and until when all events are in them.

    The key until_ns is a time of the trace's clock, ended tells why the recording has ended (None: it goes on), pages has CPU and bytes of
    what is in data, and the others are as new_pages.NewPages has them.
    """
    about = recording.about
    until_ns = clocks.read(about["clock"]) or 0
    if not client.drain_recording(recording.name):
        until_ns -= _UNTOLD_NS
    ended = recording.read_end()
    seen = {int(cpu): (int(number), int(offset)) for cpu, (number, offset) in request["seen"].items()}
    most = min(int(request["most"]), MOST_BYTES)
    found = read_new(recording.path, about["cpus"], seen, about["page_size"], most)
    return {
        "until_ns": until_ns,
        "ended": ended["why"] if ended else None,
        "pages": [[cpu, len(data)] for cpu, data in found.pages.items()],
        "data": _pack(b"".join(found.pages.values())),
        "gaps": found.gaps,
        "skipped": found.skipped,
        "seen": found.seen,
    }


def drop(root: str, ids: Sequence[str], docker_host: str | None) -> dict[str, Any]:
    """Remove the traces of the containers with IDS, with all that they recorded, and return a module's result. ROOT is the tracefs."""
    outcome = Outcome()
    found = finishing.select(root, ids, docker_host)
    end.remove(found, outcome)
    outcome.check([trace.who for trace in found], "removed")
    return {"changed": True}
