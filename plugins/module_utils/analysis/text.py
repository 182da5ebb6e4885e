# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write a capture as text, one line per event in the order of time, as `trace-cmd report` does, with thread ids inside the container."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Iterator, Tuple

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compat import CompatTasks
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.codes import COMPAT
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Batch, Trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.formats import EventFormat, Field
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.functions import Symbols
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.names.arguments import format_arguments
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.names.tables import find_compat_machine
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.syscall_names import name_errno, read_names
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.tasks import TaskNames
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.trace_dat import CpuPages
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import open_private

if TYPE_CHECKING:
    from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import Ints
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import mask

# Bytes of pages per batch: one batch of each CPU is in memory at a time.
_BLOCK = 1 << 20
_RAW_SYSCALLS = ("raw_syscalls:sys_enter", "raw_syscalls:sys_exit")
_STACK = "ftrace:kernel_stack"
_MAX_STACK = 256
_WORD = 8
_OF_CALLS = ("id", "args", "ret")
_ARGUMENTS = 6
_MAX_ERRNO = 4095
_RESULTS = frozenset({"rt_sigreturn", "sigreturn"})  # calls whose results are a program's own numbers
# Event → fields with addresses of the kernel's code.
_CODE = {
    "ftrace:function": ("ip", "parent_ip"),
    "ftrace:funcgraph_entry": ("func",),
    "ftrace:funcgraph_exit": ("func",),
    "ftrace:funcgraph_retaddr_entry": ("func", "retaddr"),
}
_Row = Tuple[int, int, str]  # time, number in its CPU's order, line


@dataclass(frozen=True)
class _Names:
    """The sources of the names in a text: of threads, of system calls, of their arguments on ARCH, and of the kernel's functions."""

    arch: str
    tasks: TaskNames
    compat: CompatTasks
    syscalls: dict[int, str]
    symbols: Symbols


def write_text(capture: str, manifest: dict[str, Any], path: str) -> None:
    """Write the trace.dat CAPTURE, described by MANIFEST, as text to PATH. Raises TraceFileError when CAPTURE is damaged."""
    with open(capture, "rb") as file, open(path, "w", encoding="utf-8", opener=open_private) as text:
        trace = Trace(file)
        names = _find_names(trace, manifest)
        text.write(_describe(manifest))
        rows = heapq.merge(*(_gen_rows(trace, place, names) for place in trace.head.cpus))
        text.writelines(f"{line}\n" for _time, _number, line in rows)


def _find_names(trace: Trace, manifest: dict[str, Any]) -> _Names:
    first, last = manifest.get("first_tasks") or [], manifest.get("tasks") or []
    tasks = TaskNames(first, last, trace.head.cmdlines)
    compat = CompatTasks(first, last)
    for batch in trace.gen_batches():
        tasks.feed(batch, trace.formats)
        compat.feed(batch, trace.formats)
    tasks.finish()
    compat.finish()
    return _Names(str(manifest.get("arch", "")), tasks, compat, read_names(manifest), Symbols(trace.head.kallsyms))


def _describe(manifest: dict[str, Any]) -> str:
    why = "; ".join(manifest.get("reasons") or [f"{manifest.get('lost')} events lost"])
    lost = "complete" if manifest.get("complete") else f"INCOMPLETE: {why}"
    container, where = manifest["container"]["name"], manifest["inventory_hostname"]
    words = f"container {container} on {where}, clock {manifest.get('clock')}, {lost}"
    return f"# {mask(words)}\n# COMM-TID (TID in the container, or - where nobody knows) [CPU] SECONDS: EVENT: FIELDS\n"


def _gen_rows(trace: Trace, place: CpuPages, names: _Names) -> Iterator[_Row]:
    by_number = {known.id: (name, known) for name, known in trace.formats.items()}
    count = 0
    for batch in trace.gen_cpu_batches(place, _BLOCK):
        texts: dict[int, str] = {}
        for number in np.unique(batch.types).tolist():
            name, known = by_number.get(number, ("", None))
            events = batch.select(number)
            found = _list_fields(batch, events, name, known, names) if known else ["?"] * len(events)
            label = known.name if known else f"event {number}"
            texts.update((event, f"{label}: {text}") for event, text in zip(events.tolist(), found))
        for event, (time, tid) in enumerate(zip(batch.times.tolist(), batch.tids.tolist())):
            seconds, nanoseconds = divmod(time, 10**9)
            comm = mask(names.tasks.find_name(tid, time))
            inside = names.tasks.find_container_pid(tid, time)
            line = (
                f"{comm:>16}-{tid:<7} {'(-)' if inside is None else f'({inside})':>8} [{batch.cpu:03d}]"
                f" {seconds:6d}.{nanoseconds:09d}: {texts[event]}"
            )
            # Times do not go back on one CPU. The number keeps the order of events with the same time.
            count += 1
            yield time, count, line


def _list_fields(batch: Batch, events: Ints, name: str, known: EventFormat, names: _Names) -> list[str]:
    """Return the text of the fields of each of EVENTS, which are all of the format KNOWN, called NAME."""
    columns = []
    for field in known.fields.values():
        if field.name.startswith("common_"):
            continue
        if name in _RAW_SYSCALLS and field.name in _OF_CALLS and "id" in known.fields:
            columns.append([f"{field.name}={text}" for text in _list_of_calls(batch, events, field, known, names)])
        elif name == _STACK:
            if field.is_array:
                columns.append(_list_stacks(batch, events, known, field, names.symbols))
        elif field.name in _CODE.get(name, ()):
            addresses = batch.integers(events, field).view(np.uint64).tolist()
            columns.append([f"{field.name}={mask(names.symbols.describe(address))}" for address in addresses])
        else:
            columns.append([f"{field.name}={value}" for value in _list_values(batch, events, field)])
    return [" ".join(values) for values in zip(*columns)] if columns else [""] * len(events)


def _list_of_calls(batch: Batch, events: Ints, field: Field, known: EventFormat, names: _Names) -> list[str]:
    """Return the text of FIELD of each of EVENTS, entries or exits of calls: the call, its arguments or its result."""
    numbers = batch.integers(events, known.field("id"))
    plain = numbers.tolist()
    names.compat.mark(batch.tids[events], batch.times[events], numbers)
    calls = [(marked, names.syscalls.get(marked, "?")) for marked in numbers.tolist()]
    if field.name == "id":
        return [f"{number} ({mask(call)})" for number, (_marked, call) in zip(plain, calls)]
    if field.name == "ret":
        results = batch.integers(events, field).tolist()
        return [_show_result(result, call) for result, (_marked, call) in zip(results, calls)]
    places = [
        Field("", field.offset + _WORD * index, _WORD, False, False, False)
        for index in range(min(_ARGUMENTS, field.size // _WORD))
    ]
    words = zip(*(batch.integers(events, place).tolist() for place in places)) if places else [()] * len(events)
    archs = names.arch, find_compat_machine(names.arch)
    return [f"({format_arguments(call, own, archs[marked >= COMPAT])})" for own, (marked, call) in zip(words, calls)]


def _show_result(result: int, call: str) -> str:
    is_error = -_MAX_ERRNO <= result < 0 and call not in _RESULTS
    return f"{result} ({name_errno(-result)})" if is_error else str(result)


def _list_stacks(batch: Batch, events: Ints, known: EventFormat, callers: Field, symbols: Symbols) -> list[str]:
    """Return the text of each stack, the innermost function first; the event's size counts, not the length in the format."""
    sizes = np.minimum(batch.integers(events, known.field("size")), _MAX_STACK)
    stacks: list[list[str]] = [[] for _event in events]
    for depth in range(int(sizes.max(initial=0))):
        place = Field("", callers.offset + _WORD * depth, _WORD, False, False, False)
        deep = np.flatnonzero(sizes > depth)
        for number, address in zip(deep.tolist(), batch.integers(events[deep], place).view(np.uint64).tolist()):
            if address:
                stacks[number].append(mask(symbols.describe(address)))
    return [" <- ".join(stack) for stack in stacks]


def _list_values(batch: Batch, events: Ints, field: Field) -> list[str]:
    if "char" in field.type and (field.is_array or field.is_dynamic):
        return [mask(batch.text(event, field).rstrip("\n")) for event in events.tolist()]
    if field.is_array or field.size not in (1, 2, 4, 8):
        # The field is shown as words where it consists of them, as the arguments of a system call do, else as bytes.
        width = 8 if "long" in field.type and field.size % 8 == 0 else 1
        places = [
            Field("", place, width, False, False, False)
            for place in range(field.offset, field.offset + field.size, width)
        ]
        parts = [batch.integers(events, place).tolist() for place in places[:64]]
        return [f"({', '.join(f'{value & (256**width - 1):x}' for value in values)})" for values in zip(*parts)] or [
            "()"
        ] * len(events)
    values = batch.integers(events, field).tolist()
    if field.is_signed or field.size < 8:
        return list(map(str, values))
    return [f"{value & 0xFFFFFFFFFFFFFFFF:#x}" for value in values]
