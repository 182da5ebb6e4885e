# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the process that decodes the pages of a trace while it goes on. What comes from a host reaches no other process undecoded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack, suppress
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape
from ansible_collections.crashcart.fleet.plugins.plugin_utils.compiled_cache import COLLECTION, has_code, open_cache
from ansible_collections.crashcart.fleet.plugins.plugin_utils.report_runner import PROGRAM

_NOTHING: dict[str, Any] = {"pages": [], "gaps": [], "until_ns": 0, "room": 0}
_MAX_PAST = 64 << 20  # bytes of pages that are kept for the next process
_MAX_WORDS = 500  # characters of the process's last words in a message


class _Process:
    """A process that decodes, with the environment variables SETTINGS. Raises FleetError where it ends, or cannot decode."""

    def __init__(self, settings: dict[str, str]) -> None:
        self._words = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM, str(COLLECTION), settings["NUMBA_CACHE_DIR"], "live_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env={**os.environ, **settings},
        )

    def ask(self, request: dict[str, Any], data: bytes) -> dict[str, Any]:
        """Return the answer to REQUEST with DATA."""
        line = b""
        with suppress(BrokenPipeError):
            if self._process.stdin is not None and self._process.stdout is not None:
                self._process.stdin.write(json.dumps({**request, "size": len(data)}).encode("ascii") + b"\n" + data)
                self._process.stdin.flush()
                line = self._process.stdout.readline()
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            raise FleetError(f"the process that decodes the trace has ended: {self._read_words()}") from None
        if "error" in answer:
            raise FleetError(f"the trace cannot be decoded: {answer['error']}")
        return answer

    def _read_words(self) -> str:
        status = self._process.wait()
        self._words.seek(0)
        lines = self._words.read().decode("utf-8", "replace").strip().splitlines()
        return escape(lines[-1][:_MAX_WORDS] if lines else f"status {status}")

    def kill(self) -> None:
        """End the process. Who waits for its answer meets a FleetError."""
        self._process.kill()

    def close(self) -> None:
        """End the process, and let go of all that belongs to it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        self._words.close()


class Decoder:
    """Processes that decode the pages of one trace: its HEAD, the MANIFEST that describes it, and the CPUS that record.

    Where no earlier report has compiled the code, plain Python decodes, and another process compiles meanwhile, which takes a minute
    or two. Then that process reads what has come, and takes over. IS_COMPILED says whether compiled code decodes.
    Use it as a context manager. Raises FleetError where the trace cannot be decoded.
    """

    def __init__(self, head: bytes, manifest: dict[str, Any], cpus: list[int]) -> None:
        self._description: tuple[dict[str, Any], bytes] = {"manifest": manifest, "cpus": cpus}, head
        self._past: list[tuple[dict[str, Any], bytes]] | None = None
        self._next: _Process | None = None
        self._compiling: threading.Thread | None = None
        self._has_compiled = False
        with ExitStack() as stack:
            cache = {"NUMBA_CACHE_DIR": (folder := stack.enter_context(open_cache()))}
            self.is_compiled = has_code(folder)
            self._process = _Process(cache if self.is_compiled else {**cache, "NUMBA_DISABLE_JIT": "1"})
            stack.callback(self._close)
            self._process.ask(*self._description)
            if not self.is_compiled:
                self._past = []
                self._next = _Process(cache)
                self._compiling = threading.Thread(target=self._compile, args=(self._next,), daemon=True)
                self._compiling.start()
            self._stack = stack.pop_all()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    def _close(self) -> None:
        if self._next is not None:
            self._next.kill()
        if self._compiling is not None:
            self._compiling.join()
        for process in (self._next, self._process):
            if process is not None:
                process.close()

    def _compile(self, process: _Process) -> None:
        """Let PROCESS compile: it answers when it has. Where it cannot, the first process goes on."""
        with suppress(FleetError, OSError, ValueError):
            process.ask(*self._description)
            process.ask(_NOTHING, b"")
            self._has_compiled = True

    def _take_over(self, process: _Process) -> None:
        """Let PROCESS, which has compiled, read what has come, and decode from now on."""
        for request, data in self._past or ():
            process.ask({**request, "room": 0}, data)
        self._process.close()
        self._process, self._next, self._past, self.is_compiled = process, None, None, True

    def decode(
        self, pages: list[tuple[int, bytes]], gaps: list[int], until_ns: int | None, room: int
    ) -> dict[str, Any]:
        """Return lines, ROOM at most, and the number of all calls that ended before UNTIL_NS of the trace's clock; None: that ended at all.

        PAGES are pairs of CPU and its new pages, which follow a gap on those of GAPS. Raises FleetError.
        """
        if self._has_compiled and self._next is not None:
            self._take_over(self._next)
        request = {
            "pages": [(cpu, len(data)) for cpu, data in pages],
            "gaps": gaps,
            "until_ns": until_ns,
            "room": room,
        }
        data = b"".join(data for _cpu, data in pages)
        if self._past is not None:
            self._past.append((request, data))
            if sum(len(earlier) for _request, earlier in self._past) > _MAX_PAST:
                # The next process misses what came before, as if it were lost.
                self._past = [({**request, "gaps": self._description[0]["cpus"]}, data)]
        return self._process.ask(request, data)
