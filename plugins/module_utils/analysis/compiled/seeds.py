# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Give the pass what is known before its first event: threads, what they wait in, and the descriptors of their processes."""

from __future__ import annotations

import re
from typing import Any, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled import codes, planting
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.state import MAX_HINTS, NAME_SIZE, State
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape_surrogates

_MAX_TEXT = 4096


class Seeds:
    """The knowledge about threads in MANIFEST and in CMDLINES, the kernel's list of names, as tables.

    HINTS has rows of thread, process (-1 where it is not known) and 1 for a 32-bit program, sorted by thread.
    """

    def __init__(self, manifest: Mapping[str, Any], cmdlines: bytes) -> None:
        first = manifest.get("first_tasks") or []
        known: dict[int, tuple[int, str, int]] = {}
        for line in cmdlines.decode("utf-8", "replace").splitlines():
            tid, _space, name = line.partition(" ")
            if re.fullmatch(r"[0-9]{1,9}", tid):
                known[int(tid)] = -1, name, 0
        for task in manifest.get("tasks") or []:
            known[task["tid"]] = task["tgid"], task["comm"], int(bool(task.get("compat")))
        rows = [(tid, known[tid][0], known[tid][2]) for tid in sorted(known)]
        self.hints = np.array(rows, np.int64).reshape(-1, codes.HINT_COLUMNS)
        self.hint_names = _pack_names([known[tid][1] for tid in sorted(known)])
        # The first thread of a process comes before the others.
        first = sorted(first, key=lambda task: (task["tid"] != task["tgid"], task["tid"]))
        rows = [(task["tid"], task["tgid"], int(bool(task.get("compat")))) for task in first]
        self.threads = np.array(rows, np.int64).reshape(-1, 3)
        self.thread_names = _pack_names([task["comm"] for task in first])
        self.waits = _read_waits((manifest.get("waits") or {}).get("first") or [])
        self.descriptors, self.targets = _read_descriptors((manifest.get("descriptors") or {}).get("first") or [])


def _pack_names(names: list[str]) -> Any:
    packed = np.zeros((len(names), NAME_SIZE), np.uint8)
    for row, name in enumerate(names):
        raw = escape_surrogates(name).encode("utf-8")[: NAME_SIZE - 1]
        packed[row, : len(raw)] = np.frombuffer(raw, np.uint8)
    return packed


def _read_waits(waits: list[dict[str, Any]]) -> Any:
    """Return rows of thread, number of the call and six arguments."""
    rows = [(wait["tid"], wait["number"], *(_to_word(word) for word in wait["args"])) for wait in waits]
    return np.array(rows, np.int64).reshape(-1, 8)


def _to_word(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _read_descriptors(descriptors: list[dict[str, Any]]) -> tuple[Any, Any]:
    """Return rows of process, descriptor, start and size of the target's text; and the texts."""
    rows, texts, used = [], [], 0
    for entry in descriptors:
        text = escape_surrogates(entry["target"]).encode("utf-8")[:_MAX_TEXT]
        rows.append((entry["pid"], entry["fd"], used, len(text)))
        texts.append(text)
        used += len(text)
    return np.array(rows, np.int64).reshape(-1, 4), np.frombuffer(b"".join(texts) or b"\0", np.uint8)


def plant(state: State, seeds: Seeds, hints: Any = None) -> None:
    """Put SEEDS into STATE, which is new. HINTS are those of an earlier pass over the same trace, which knows who will exec.

    Without them, a thread that the trace's end calls a 32-bit program may have become one by an exec, where the trace has execs.
    """
    count = min(len(seeds.hints), MAX_HINTS)
    state.hints[:count], state.hint_names[:count] = seeds.hints[:count], seeds.hint_names[:count]
    compats = state.hints[:count, codes.HINT_COMPAT]
    if hints is not None:
        compats[:] = hints[:count, codes.HINT_COMPAT] == codes.MAY_BE_COMPAT
    elif state.scalars[codes.CAN_TELL]:
        compats[compats == 1] = codes.MAY_BE_COMPAT
    state.scalars[codes.HINTS] = count
    planting.plant_threads(state, seeds.threads, seeds.thread_names)
    planting.plant_waits(state, seeds.waits)
    planting.plant_descriptors(state, seeds.descriptors, seeds.targets, codes.TARGET)
