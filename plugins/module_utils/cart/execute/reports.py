# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reports on commands for modules' results: output, exit codes, and failures."""

from __future__ import annotations

import base64
from typing import Any, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.jobs import (
    Command,
    ExecutionError,
    Output,
    Result,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.sinks import STREAMS, Sink
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome, Who
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape

_MAX_QUOTED = 200


def report_results(
    results: Sequence[Result], sinks: Sequence[Mapping[str, Sink]], output: Output
) -> list[dict[str, Any]]:
    """Return the reports on RESULTS, with the output from SINKS as OUTPUT wants it; the sinks are closed."""
    reports = []
    for result, streams in zip(results, sinks):
        errors = [result.error]
        texts: dict[str, Any] = {}
        for name in STREAMS:
            texts.update(_report_stream(name, streams[name], output))
            try:
                streams[name].close()
            except OSError as error:  # a network file system reports failed writes late
                errors.append(f"its {name} cannot be kept: {error.strerror}")
        reports.append({**describe_result(result, errors), **texts})
    return reports


def describe_result(result: Result, errors: Sequence[str]) -> dict[str, Any]:
    """Return the report on RESULT without its output; `msg` holds those of ERRORS that are not empty."""
    report = {name: value for name, value in vars(result).items() if name != "error"}
    if any(errors):
        report["msg"] = escape("; ".join(filter(None, errors)))
    return report


def note_failures(reports: Sequence[Mapping[str, Any]], outcome: Outcome, command: Command) -> None:
    """Note in OUTCOME the containers whose REPORTS have an error, a timeout of COMMAND, or an exit code other than 0."""
    for report in reports:
        who = Who(report["container"], report["id"])
        if "msg" in report:
            outcome.fail(who, ExecutionError(report["msg"]))
        if report["timed_out"]:
            outcome.fail(who, ExecutionError(f"killed after {command.timeout_s:g} s"))
        elif report["rc"] and "msg" not in report:
            outcome.blame(who, f"the command ended with exit code {report['rc']}{_quote_end(report)}")


def _quote_end(report: Mapping[str, Any]) -> str:
    """Return the last line that the command of REPORT wrote to its standard error, or the path of the file with it."""
    lines = [line.strip() for line in report.get("stderr_lines", ()) if line.strip()]
    if lines:
        return f": {lines[-1][:_MAX_QUOTED]}"
    return f"; {report['stderr_path']} has what it said" if report["stderr_size"] and "stderr_path" in report else ""


def _report_stream(name: str, sink: Sink, output: Output) -> dict[str, Any]:
    if output.dest is not None:
        return {f"{name}_path": sink.path}
    data = sink.read()
    if output.encoding == "base64":
        return {name: base64.b64encode(data).decode("ascii")}
    text = data.decode("utf-8", "replace")
    return {name: text, f"{name}_lines": text.splitlines()}
