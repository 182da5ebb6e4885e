# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reports as ftrace_report makes them, with all rows in memory."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis import capture_summary, report_files


def summarize(source):
    """Return the content of summary.json for SOURCE."""
    skipped = []
    return {"captures": list(capture_summary.gen_source(source, skipped)), "skipped": skipped}


def write(summary, dest, formats, *, check_mode=False):
    """Write SUMMARY as FORMATS say: whether a file changed, and the files by format."""
    with report_files.ReportWriter(dest, formats, check_mode=check_mode) as writer:
        for one in summary["captures"]:
            writer.add(one)
        return writer.finish(summary["skipped"]), writer.files


def format_summary(summary):
    """Return the text of summary.txt for SUMMARY, or of the page, where there is nothing to report on."""
    with tempfile.TemporaryDirectory() as folder, report_files.ReportWriter(
        folder, ["text"], check_mode=False
    ) as writer:
        for one in summary["captures"]:
            writer.add(one)
        writer.finish(summary["skipped"])
        if not writer.files:
            return "".join(f"{line}\n" for line in writer.lines)
        return Path(writer.files["text"]).read_text(encoding="utf-8")
