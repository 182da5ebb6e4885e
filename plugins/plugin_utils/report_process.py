# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The process that makes a report, or the text of a capture.

It reads a request from standard input and writes the result to standard output, both as JSON.
report_runner.py starts it. Its code comes from the collection's folder, so that numba finds what it has compiled for an earlier report.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.capture_summary import gen_captures, gen_source
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.choice import Choice
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import describe
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.search import MAX_SHOWN, Search
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.report_files import ReportWriter
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.report_tables import describe_skipped
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.text import write_text
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError, explain
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.syscalls import set_parent_death_signal
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape
from ansible_collections.crashcart.fleet.plugins.module_utils.units import parse_seconds

_TERMINATED, _INTERRUPTED = 143, 130


def main() -> NoReturn:
    """Make the report that standard input asks for, and end the process with 0 if there is a result, which may be an error."""
    signal.signal(signal.SIGTERM, _end)
    set_parent_death_signal(signal.SIGTERM)
    # Only the result may go to standard output, whatever a library prints.
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        request = json.load(sys.stdin)
        try:
            result = make_text(request) if "text" in request else make_report(request)
        except FleetError as error:
            result = {**error.result, "failed": True, "msg": str(error)}
        except OSError as error:
            result = {"failed": True, "msg": explain(error)}
        except MemoryError:
            result = {"failed": True, "msg": "memory ran out: report on fewer captures at once, or where there is more"}
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    json.dump(result, results)
    results.close()
    sys.exit(0)


def _end(_number: int, _frame: Any) -> NoReturn:
    """End the process, but let it remove what it has begun to write."""
    sys.exit(_TERMINATED)


def make_report(request: dict[str, Any]) -> dict[str, Any]:
    """Write the report that REQUEST, the arguments of ftrace_report and check_mode, asks for, and return the module's result.

    Raises FleetError when an argument is wrong, or when the only capture cannot be read.
    """
    choice = Choice(request.get("fail_on") or ())
    min_latency_ns = int((parse_seconds(request.get("min_latency"), "min_latency") or 0) * 1e9)
    skipped: list[dict[str, str]] = []
    captures, search = [], Search()
    with ReportWriter(request["dest"], request["formats"], check_mode=request.get("check_mode", False)) as report:
        for capture in _gen_entries(request, skipped, min_latency_ns, search):
            report.add(capture)
            del capture["programs"], capture["processes"]
            captures.append(capture)
        changed = report.finish(skipped, search)
    result = {
        "changed": changed,
        "lines": report.lines,
        "findings": [describe(finding) for finding in report.findings[:MAX_SHOWN]],
        "summary": {"captures": captures, "skipped": skipped},
        "files": report.files,
        "warnings": [*(escape(f"skipped {describe_skipped(file)}") for file in skipped), *search.problems],
    }
    reason = choice.explain(report.findings, report.files.get("findings"))
    return {**result, "failed": True, "msg": reason} if reason else result


def make_text(request: dict[str, Any]) -> dict[str, Any]:
    """Write the only capture that REQUEST names as text, to the path that it has as `text`; it has the manifest, too.

    Raises FleetError when the capture cannot be read.
    """
    (capture,) = request["captures"]
    write_text(capture, request["manifest"], request["text"])
    return {"changed": True}


def find_root(captures: Sequence[str]) -> str:
    """Return the deepest folder that all CAPTURES have in common, the current one where there are none."""
    return os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in captures] or ["."])


def _gen_entries(
    request: dict[str, Any], skipped: list[dict[str, str]], min_latency_ns: int, search: Search
) -> Iterator[dict[str, Any]]:
    chosen = request.get("captures")
    if chosen is None:
        return gen_source(request["src"], skipped, min_latency_ns, search)
    root = request.get("src") or find_root(chosen)
    return gen_captures(dict.fromkeys(chosen), root, skipped, min_latency_ns, search)
