# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the pages that a recording has got since the last look, while it goes on. Nothing is changed."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Mapping, Sequence, Tuple

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import recordings

_NUMBER = re.compile(r"\d{8}\Z")
Place = Tuple[int, int]  # number of a segment, and bytes of a CPU's pages in it
_Piece = Tuple[str, int, int]  # path of a file; the places in it where the piece begins and ends


@dataclass(frozen=True)
class NewPages:
    """The pages that are new in a recording.

    PAGES: CPU → whole pages in the order of writing; CPUs without new pages are left out.
    GAPS: the CPUs of which pages before these were passed over.
    SKIPPED: bytes of pages that were passed over because they were too many.
    SEEN: CPU → the place behind its last page, for the next look.
    """

    pages: dict[int, bytes] = field(default_factory=dict)
    gaps: list[int] = field(default_factory=list)
    skipped: int = 0
    seen: dict[int, Place] = field(default_factory=dict)


def read_new(path: str, cpus: Sequence[int], seen: Mapping[int, Place], page_size: int, most: int) -> NewPages:
    """Return the pages of CPUS in the recording in PATH behind the places SEEN, about MOST bytes of them.

    Where there are more, the oldest are passed over, of all CPUs alike.
    """
    numbers = _list_numbers(path)
    # What is finished does not grow. So the ends are looked for before the sizes.
    finished = {number for number in numbers[-1:] if os.path.exists(_find(path, number, recordings.END))}
    found = NewPages()
    pieces: dict[int, list[_Piece]] = {}
    for cpu in cpus:
        number, offset = seen.get(cpu, (1, 0))
        if numbers and number < numbers[0]:  # the recorder has made room
            found.gaps.append(cpu)
            number, offset = numbers[0], 0
        for own in numbers:
            if own < number:
                continue
            start = offset if own == number else 0
            file = _find(path, own, f"cpu{cpu}")
            end = max(start, _read_size(file) // page_size * page_size)
            if end > start:
                pieces.setdefault(cpu, []).append((file, start, end))
            number, offset = (own + 1, 0) if own in finished else (own, end)
        found.seen[cpu] = number, offset
    total = sum(end - start for some in pieces.values() for _file, start, end in some)
    skipped = 0
    for cpu, some in pieces.items():
        whole = sum(end - start for _file, start, end in some)
        kept = whole if total <= most else max(1, whole * most // total // page_size) * page_size
        data = b"".join(_read(piece) for piece in _cut(some, whole - kept))
        if kept < whole and cpu not in found.gaps:
            found.gaps.append(cpu)
        skipped += whole - kept
        found.pages[cpu] = data[: len(data) // page_size * page_size]
    return NewPages(found.pages, found.gaps, skipped, found.seen)


def _list_numbers(path: str) -> list[int]:
    with suppress(FileNotFoundError):
        return sorted(int(name) for name in os.listdir(path) if _NUMBER.match(name))
    return []


def _find(path: str, number: int, name: str) -> str:
    return os.path.join(path, recordings.format_number(number), name)


def _read_size(path: str) -> int:
    with suppress(FileNotFoundError):
        return os.stat(path).st_size
    return 0


def _cut(pieces: Sequence[_Piece], count: int) -> list[_Piece]:
    """Return PIECES without their first COUNT bytes."""
    left = []
    for file, start, end in pieces:
        cut = min(count, end - start)
        count -= cut
        if start + cut < end:
            left.append((file, start + cut, end))
    return left


def _read(piece: _Piece) -> bytes:
    """Return the bytes of PIECE; nothing where the recorder has removed the file meanwhile."""
    path, start, end = piece
    with suppress(FileNotFoundError), open(path, "rb", buffering=0) as file:
        file.seek(start)
        return file.read(end - start) or b""
    return b""
