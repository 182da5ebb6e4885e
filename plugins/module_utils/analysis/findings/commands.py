# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands that findings give as the next step. They are pasted into shells, and hold texts of containers."""

from __future__ import annotations

import json
import re
import shlex

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import Place

# Ansible evaluates these in the values of -e.
_JINJA = re.compile(r"\{[{%#]")
_SIMPLE = re.compile(r"[\w./:@%+,=-]+\Z", re.ASCII)  # nothing that a shell or Ansible changes or splits at
_MAX_TEXT = 200


def run_in(place: Place, *argv: str) -> str:
    """Return the command that runs ARGV, of the tool image, in the container of PLACE.

    Where a word cannot be given safely, or nobody knows the container, the command traces again.
    """
    if not place.host or not all(word and is_plain(word) for word in (place.container, *argv)):
        return trace_again(place)
    if all(_SIMPLE.match(word) for word in (place.container, *argv)):
        chosen = f"-e crashcart_containers={place.container} -e \"crashcart_command='{' '.join(argv)}'\""
        return f"ansible-playbook crashcart.fleet.exec {_limit(place)} {chosen}"
    variables = json.dumps({"crashcart_containers": [place.container], "crashcart_argv": argv}, ensure_ascii=False)
    return f"ansible-playbook crashcart.fleet.exec {_limit(place)} -e {shlex.quote(variables)}"


def trace_again(place: Place, **options: str) -> str:
    """Return the command that traces the container of PLACE once more, with OPTIONS, such as profile='startup'."""
    container = place.container if is_plain(place.container) else ""
    words = [f"crashcart_{name}={value}" for name, value in {"containers": container or "*", **options}.items()]
    chosen = (f"-e {shlex.quote(word)}" for word in words)
    return " ".join(filter(None, ("ansible-playbook crashcart.fleet.trace", _limit(place), *chosen)))


def is_plain(text: str) -> bool:
    """Return True if TEXT reaches a program unchanged through a terminal, a shell and Ansible."""
    return len(text) <= _MAX_TEXT and text.isprintable() and not _JINJA.search(text)


def _limit(place: Place) -> str:
    return f"-l {shlex.quote(place.host)}" if place.host else ""
