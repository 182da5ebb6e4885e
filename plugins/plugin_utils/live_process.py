# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The process that decodes the pages of a trace while it goes on, and makes lines of its calls. live_decoder.py starts it.

It reads requests from standard input, each a line of JSON and as many bytes as its key size says, and answers each by a line of JSON. The
first request describes the trace, the others bring pages.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any, BinaryIO, NoReturn

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.live.lines import format_call
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.live.stream import LiveStream
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.syscalls import set_parent_death_signal


def main() -> NoReturn:
    """Answer the requests of standard input until its end, and end the process."""
    set_parent_death_signal(signal.SIGKILL)
    # Only answers may go to standard output, whatever a library prints.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for answer in gen_answers(sys.stdin.buffer):
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    os._exit(0)


def gen_answers(source: BinaryIO) -> Any:
    """Yield the answer to each request that SOURCE brings; after an error, which is an answer, no more."""
    try:
        first = json.loads(source.readline())
        head = source.read(first["size"])
        manifest = first["manifest"]
        stream = LiveStream(head, manifest, first["cpus"])
        yield {}
        while line := source.readline():
            request = json.loads(line)
            yield _answer(stream, manifest, request, source.read(request["size"]))
    except FleetError as error:
        yield {"error": str(error)}
    except MemoryError:
        yield {"error": "memory ran out"}


def _answer(stream: LiveStream, manifest: dict[str, Any], request: dict[str, Any], data: bytes) -> dict[str, Any]:
    """Return the lines of the calls that REQUEST, with the pages DATA, ended: as many as its key room says, and the number of all calls.

    It also has the seconds that this took.
    """
    began = time.monotonic()
    start = 0
    gaps = set(request["gaps"])
    for cpu, size in request["pages"]:
        stream.add(cpu, data[start : start + size], has_gap=cpu in gaps)
        start += size
    is_last = request["until_ns"] is None
    blocks = stream.list_ended(request["until_ns"])
    if is_last:
        blocks += stream.list_pending()
    lines = [format_call(call, manifest) for call in stream.gen_some(blocks, request["room"])]
    calls = sum(len(block.starts) for block in blocks)
    return {"lines": lines, "calls": calls, "seconds": time.monotonic() - began}
