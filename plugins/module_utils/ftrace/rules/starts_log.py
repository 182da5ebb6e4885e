# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Note which threads belong to which container of a rule, in a file of each segment of the rule's recording, as lines of JSON.

Each segment's file is complete by itself: it begins with the containers that run then, and their threads.

    {"number": 3, "time": 17, "tids": [5, 6]}     from trace time 17 ns on these threads are of the third container that has started
    {"number": 0, "time": 17, "tids": [4]}        these are of a runtime, which starts a container
    {"number": 3, "container": {...}, ...}        what is known of it; a later line counts
    {"number": 3, "ended": 1790000000.5}          it has ended, in seconds since the epoch
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Collection, Iterable, Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import open_private

NAME = "starts"
# The number of what is no container's: the runtimes, and what they start beside the containers.
RUNTIMES = 0
# What becomes of a container: it is traced, was traced for as long as the rule allows, is not meant, may be meant, or was one too many.
TRACED, OVER, UNMEANT, UNDECIDED, REFUSED = "traced", "over", "unmeant", "undecided", "refused"


class StartsLog:
    """The file of the current segment of a rule's recording."""

    def __init__(self) -> None:
        self._fd: int | None = None

    def begin(self, folder: str) -> None:
        """Write to the segment in FOLDER from now on."""
        self.close()
        self._fd = open_private(os.path.join(folder, NAME), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write_threads(self, number: int, time_ns: int, tids: Collection[int]) -> None:
        """Note that the threads TIDS belong to container NUMBER from the trace time TIME_NS on."""
        if tids:
            self._write({"number": number, "time": time_ns, "tids": sorted(tids)})

    def write(self, number: int, **about: Any) -> None:
        """Note what is known of container NUMBER."""
        self._write({"number": number, **about})

    def _write(self, line: dict[str, Any]) -> None:
        if self._fd is not None:
            # A full disk may take a part of it: the line break before the next line makes that one whole again.
            os.write(self._fd, b"\n" + json.dumps(line).encode("ascii") + b"\n")

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


@dataclass
class Started:
    """One container that has started, as segments tell of it.

    THREADS: pairs of a trace time in nanoseconds and a thread that belongs to it from then on.
    ABOUT: container, verdict, start, tasks, stopped and ended, as far as they are known.
    """

    threads: list[tuple[int, int]] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)


def read(folders: Iterable[str]) -> dict[int, Started]:
    """Return number → container of the segments in FOLDERS, in this order; a line that was cut short is passed over."""
    found: dict[int, Started] = {}
    for folder in folders:
        for line in _gen_lines(os.path.join(folder, NAME)):
            started = found.setdefault(int(line.pop("number")), Started())
            if "tids" in line:
                started.threads += [(line["time"], tid) for tid in line["tids"]]
            else:
                if started.about.get("verdict") == OVER:
                    line.pop("verdict", None)  # a later segment has it as one that is not meant any more
                started.about.update(line)
    return found


def _gen_lines(path: str) -> Iterator[dict[str, Any]]:
    try:
        with open(path, "rb") as file:
            for line in file:
                with suppress(ValueError):  # a killed recorder or a full disk has cut the line short
                    found = json.loads(line)
                    if isinstance(found, dict) and isinstance(found.get("number"), int):
                        yield found
    except FileNotFoundError:
        return
