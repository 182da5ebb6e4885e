# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the process that decodes the pages of a trace while it goes on. What comes from a host reaches no other process undecoded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape
from ansible_collections.crashcart.fleet.plugins.plugin_utils.compiled_cache import COLLECTION, has_code, open_cache
from ansible_collections.crashcart.fleet.plugins.plugin_utils.report_runner import PROGRAM

_MAX_WORDS = 500  # characters of the process's last words in a message


class Decoder:
    """A process that decodes the pages of one trace: its HEAD, the MANIFEST that describes it, and the CPUS that record.

    IS_COMPILED says whether an earlier report has compiled the code. Without that, plain Python decodes: compiling would take the
    first half minute. Use it as a context manager. Raises FleetError where the process cannot decode the trace.
    """

    def __init__(self, head: bytes, manifest: dict[str, Any], cpus: list[int]) -> None:
        with ExitStack() as stack:
            cache = stack.enter_context(open_cache())
            self.is_compiled = has_code(cache)
            settings = {"NUMBA_CACHE_DIR": cache, **({} if self.is_compiled else {"NUMBA_DISABLE_JIT": "1"})}
            self._words = stack.enter_context(tempfile.TemporaryFile())
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", PROGRAM, str(COLLECTION), "live_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._words,
                env={**os.environ, **settings},
            )
            stack.callback(self._end)
            self._ask({"manifest": manifest, "cpus": cpus}, head)
            self._stack = stack.pop_all()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def decode(
        self, pages: list[tuple[int, bytes]], gaps: list[int], until_ns: int | None, room: int
    ) -> dict[str, Any]:
        """Return lines, ROOM at most, and the number of all calls that ended before UNTIL_NS of the trace's clock; None: that ended at all.

        PAGES are pairs of CPU and its new pages, which follow a gap on those of GAPS. Raises FleetError.
        """
        request = {
            "pages": [(cpu, len(data)) for cpu, data in pages],
            "gaps": gaps,
            "until_ns": until_ns,
            "room": room,
        }
        return self._ask(request, b"".join(data for _cpu, data in pages))

    def _ask(self, request: dict[str, Any], data: bytes) -> dict[str, Any]:
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
