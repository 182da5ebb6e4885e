# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show the calls of a trace while it goes on: look at the host twice a second, decode what is new, and print it within bounds."""

from __future__ import annotations

import base64
import json
import os
import shlex
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.calls.live import DROP, LOOK, MOST_BYTES
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape
from ansible_collections.crashcart.fleet.plugins.module_utils.units import format_bytes
from ansible_collections.crashcart.fleet.plugins.plugin_utils.live_decoder import Decoder

_PERIOD_S = 0.5
_LINES_PER_S = 200
_DECODING_S = 0.35  # of a period, at most
_LEAST_BYTES, _FIRST_BYTES, _FIRST_COMPILED = 64 << 10, 128 << 10, 2 << 20
_MARGIN_NS = 20_000_000  # an event is written so long after its time, at most
_MAX_HEAD = 256 << 20
_MAX_JSON = 64 << 20
# Python's text that sends its second argument to the socket that its first one names, and prints the answer.
_ASK = (
    "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\ns.sendall(sys.argv[2].encode())\n"
    "s.shutdown(1)\nfor b in iter(lambda:s.recv(65536),b''):sys.stdout.write(b.decode())"
)
Execute = Callable[[str], dict[str, Any]]


class Guard:
    """The guard of a trace on a host, as LIVE, the result of its start, tells. EXECUTE runs a command there and returns its result."""

    def __init__(self, live: dict[str, Any], execute: Execute) -> None:
        self._live, self._execute = live, execute

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the guard's answer to REQUEST. Raises FleetError."""
        words = [str(self._live["python"]), "-I", "-S", "-c", _ASK, str(self._live["socket"]), json.dumps(request)]
        done = self._execute(shlex.join(words))
        text = str(done.get("stdout", "")).strip().rpartition("\n")[2]
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if done.get("rc") != 0 or not isinstance(answer, dict):
            why = str(done.get("stderr", "")).strip().rpartition("\n")[2]
            raise FleetError(f"the guard of the trace does not answer: {escape(why) or 'it is gone'}")
        if answer.get("failed"):
            raise FleetError(escape(str(answer.get("msg"))))
        return answer

    def drop(self) -> None:
        """Let the guard remove the trace and all that it recorded. Raises FleetError."""
        self.ask({DROP: True})


@contextmanager
def hold_signals() -> Iterator[None]:
    """Hold back SIGINT and SIGTERM until the context ends.

    Ansible ends its workers by these. One that ends while it gives a line to the main process leaves the lock of their queue taken, and the
    main process then waits for it for ever.
    """
    held: list[int] = []
    # Not blocked, since another thread would take them, and Python would then run their handlers in this one all the same.
    before = {
        number: signal.signal(number, lambda caught, _frame: held.append(caught))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for got in dict.fromkeys(held):
            os.kill(os.getpid(), got)


class LiveView:
    """A view of the trace that LIVE describes, through GUARD, on DISPLAY, a function that shows a line."""

    def __init__(self, live: dict[str, Any], guard: Guard, display: Callable[[str], None]) -> None:
        self._live, self._guard, self._show_line = live, guard, display
        self._seen: dict[str, Any] = {}
        self._second = 0
        self._room = 0
        self._others_in_second = 0
        self.lines = self.others = self.skipped = 0
        self.ended: str | None = None

    def as_result(self) -> dict[str, Any]:
        """Return what was shown, as the module documents it."""
        return {"lines": self.lines, "others": self.others, "skipped": self.skipped, "ended": self.ended}

    def show(self, seconds: float) -> None:
        """Show the calls until SECONDS are over, or the trace has ended. Raises FleetError."""
        try:
            manifest = json.loads(unpack(self._live["manifest"], _MAX_JSON))
            head = unpack(self._live["head"], _MAX_HEAD)
            cpus = [int(cpu) for cpu in self._live["cpus"]]
        except (ValueError, KeyError, TypeError, zlib.error) as error:
            raise FleetError(f"the host's description of the trace is damaged: {error}") from error
        with Decoder(head, manifest, cpus) as decoder:
            next_s = time.monotonic()
            until_s = next_s + seconds
            is_last = is_compiled = False
            most = _FIRST_BYTES
            while not is_last and self.ended is None:
                next_s = min(max(next_s + _PERIOD_S, time.monotonic()), until_s)
                time.sleep(max(0.0, next_s - time.monotonic()))
                is_last = time.monotonic() >= until_s
                if decoder.is_compiled and not is_compiled:
                    is_compiled, most = True, _FIRST_COMPILED
                size, spent_s = self._look(decoder, most, is_last=is_last)
                if size >= _LEAST_BYTES // 4:  # few pages tell little of the speed
                    wanted = int(size / max(spent_s, 0.001) * _DECODING_S)
                    most = max(_LEAST_BYTES, min(MOST_BYTES, (most + wanted) // 2))
            self._tell_others()

    def _look(self, decoder: Decoder, most: int, *, is_last: bool) -> tuple[int, float]:
        """Bring the new pages, MOST bytes of them, and show their calls. Return the bytes, and the seconds that the decoder took."""
        answer = self._guard.ask({LOOK: {"seen": self._seen, "most": most}})
        try:
            data = unpack(answer["data"], MOST_BYTES + most)
            until_ns = int(answer["until_ns"]) - _MARGIN_NS
            skipped = int(answer["skipped"])
            gaps = [int(cpu) for cpu in answer["gaps"]]
            pages, start = [], 0
            for cpu, size in answer["pages"]:
                pages.append((int(cpu), data[start : start + int(size)]))
                start += int(size)
            self._seen = {str(int(cpu)): [int(place[0]), int(place[1])] for cpu, place in answer["seen"].items()}
            self.ended = None if answer["ended"] is None else escape(str(answer["ended"]))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, zlib.error) as error:
            raise FleetError(f"the host's answer is damaged: {error}") from error
        is_last |= self.ended is not None
        self._begin_second()
        found = decoder.decode(pages, gaps, None if is_last else until_ns, self._room)
        for line in found["lines"]:
            self._display(line)
        shown = len(found["lines"])
        self._room -= shown
        self.lines += shown
        self.others += found["calls"] - shown
        self._others_in_second += found["calls"] - shown
        if skipped:
            self.skipped += skipped
            self._display(
                f"… {format_bytes(skipped)} of events came faster than they can be read here, and were passed over"
            )
        return len(data), found["seconds"]

    def _display(self, line: str) -> None:
        with hold_signals():
            self._show_line(line)

    def _begin_second(self) -> None:
        """Give room for the lines of this second, if it is another one than that of the last look, after a word about the last one's rest."""
        now = int(time.monotonic())
        if now != self._second:
            self._tell_others()
            self._second, self._room = now, _LINES_PER_S

    def _tell_others(self) -> None:
        if self._others_in_second:
            what = "more call" if self._others_in_second == 1 else "more calls"
            self._display(f"… {self._others_in_second:,} {what} in this second")
            self._others_in_second = 0


def unpack(text: str, most: int) -> bytes:
    """Return the bytes that TEXT of a host holds, compressed and in base64. Raises ValueError for more than MOST bytes, and zlib.error."""
    engine = zlib.decompressobj()
    data = engine.decompress(base64.b64decode(text, validate=True), most)
    if engine.unconsumed_tail:
        raise ValueError(f"it has more than {most} bytes")
    return data
