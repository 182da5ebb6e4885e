# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write findings as lines for people: two for each finding, the worst first."""

from __future__ import annotations

from typing import Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import Finding, Place
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.search import MAX_SHOWN
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import mask

_MAX_LINE = 160  # of a statement
_MAX_DETAILS = 200  # of the line below it, which is longer only for a long command
_MAX_PART = 60
_MAX_NAMES = 3  # of containers, hosts or process numbers in a line
_INDENT = "     "


def format_findings(findings: Sequence[Finding], dropped: int, captures: int, *, is_written: bool = True) -> list[str]:
    """Return the lines for FINDINGS of so many CAPTURES, which are ranked; DROPPED more findings are in no file.

    Twenty findings are shown, in 42 lines at most. IS_WRITTEN says that findings.json has all FINDINGS.
    """
    looked = f"{captures} capture{'s' if captures != 1 else ''}"
    if not findings:
        return [f"No finding in {looked}: no rule saw a failure that matters or a long wait."]
    places = {place for finding in findings for place in finding.where}
    count = f"{len(findings)} finding{'s' if len(findings) != 1 else ''}"
    hosts = len({place.host for place in places})
    lines = [f"{count} in {looked}, in {_count(len(places), 'container')} on {_count(hosts, 'host')}:"]
    for number, finding in enumerate(findings[:MAX_SHOWN], 1):
        lines += _gen_lines(number, finding)
    more = len(findings) - MAX_SHOWN
    if more > 0 or dropped:
        lines.append(_describe_rest(max(0, more), dropped, is_written))
    return lines


def _describe_rest(more: int, dropped: int, is_written: bool) -> str:
    lost = f"{dropped} that rank lowest are nowhere" if dropped else ""
    if not is_written:
        return "; ".join(
            filter(None, (f"{more} more of lower rank: formats=json writes them to a file" if more else "", lost))
        )
    kept = (
        f"{_count(more, 'more finding')} of lower rank {'is' if more == 1 else 'are'} in findings.json" if more else ""
    )
    return "; ".join(filter(None, (kept, lost)))


def _gen_lines(number: int, finding: Finding) -> Iterator[str]:
    doubt = "" if finding.confidence == "certain" else f" ({finding.confidence})"
    # A long statement keeps its end out of sight, and never its doubt.
    yield _cut(f"{number}. {mask(finding.statement)}", _MAX_LINE - len(doubt)) + doubt
    parts = [_describe_who(finding), _describe_where(finding.where), finding.often]
    if finding.first:
        parts.append(f"since {finding.first[:19]}Z")
    if finding.missing:
        parts.append(f"incomplete: {finding.missing}")
    command = mask(finding.next)
    if len(command) > _MAX_LINE:
        command = "see findings.json (formats=json)"  # a part of a command is of no use, and may do harm
    known = " · ".join(_cut(mask(part), _MAX_PART) for part in parts if part)
    # The command is whole, so the rest of the line gives way to it.
    yield f"{_INDENT}{_cut(known, max(_MAX_PART, _MAX_DETAILS - len(command) - len(_INDENT) - 9))} · next: {command}"


def _describe_who(finding: Finding) -> str:
    pids = finding.container_pids
    if not pids:
        return finding.program
    more = f" and {len(pids) - _MAX_NAMES} more" if len(pids) > _MAX_NAMES else ""
    return f"{finding.program} pid {', '.join(map(str, pids[:_MAX_NAMES]))}{more}".lstrip()


def _describe_where(where: Sequence[Place]) -> str:
    """Return WHERE as text: names where they are few, and else numbers."""
    containers, hosts = sorted({place.container for place in where}), sorted({place.host for place in where})
    if not any((*containers, *hosts)):
        return ""
    if len(where) == 1:
        return f"{containers[0] or 'a container'} on {hosts[0] or 'an unknown host'}"
    inside = ", ".join(containers) if len(containers) <= _MAX_NAMES else _count(len(where), "container")
    outside = ", ".join(hosts) if len(hosts) <= _MAX_NAMES else _count(len(hosts), "host")
    return f"{inside} on {outside}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
