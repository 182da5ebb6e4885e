# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write a capture as text, one line per event in the order of time, as `trace-cmd report` does, with thread ids inside the container."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Iterator, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.capture_pass import CapturePass
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.codes import COMPAT
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.events import EventBlock, gen_event_blocks
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.formats import EventFormat, Field
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.functions import Symbols
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.histories import UNKNOWN_NAME, Histories
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.names.arguments import format_arguments
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.names.tables import find_compat_machine
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.syscall_names import name_errno
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import open_private
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import mask

if TYPE_CHECKING:
    from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import Ints

_RAW_SYSCALLS = ("raw_syscalls:sys_enter", "raw_syscalls:sys_exit")
_STACK = "ftrace:kernel_stack"
_MAX_STACK = 256
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


@dataclass(frozen=True)
class _Names:
    """The sources of the names in a text: of threads, of system calls, of their arguments on ARCH, and of the kernel's functions.

    WORD_SIZE is the kernel's, in bytes.
    """

    arch: str
    histories: Histories
    syscalls: dict[int, str]
    symbols: Symbols
    word_size: int


def write_text(capture: str, manifest: Mapping[str, Any], path: str) -> None:
    """Write the trace.dat CAPTURE, described by MANIFEST, as text to PATH. Raises TraceFileError when CAPTURE is damaged."""
    with open(capture, "rb") as file, open(path, "w", encoding="utf-8", opener=open_private) as text:
        trace = Trace(file)
        text.write(_describe(manifest))
        # The trace may tell the name that a thread had at first only when the name changes. So one pass comes before the one that writes.
        found = CapturePass(trace, manifest)
        state = found.run()
        names = _Names(
            str(manifest.get("arch", "")),
            Histories(state, manifest),
            found.names,
            Symbols(trace.head.kallsyms),
            trace.head.word_size,
        )
        for block in gen_event_blocks(trace, manifest, hints=state.hints):
            text.writelines(f"{line}\n" for line in _gen_lines(trace, block, names))


def _describe(manifest: Mapping[str, Any]) -> str:
    why = "; ".join(manifest.get("reasons") or [f"{manifest.get('lost')} events lost"])
    lost = "complete" if manifest.get("complete") else f"INCOMPLETE: {why}"
    container, where = manifest["container"]["name"], manifest["inventory_hostname"]
    words = f"container {container} on {where}, clock {manifest.get('clock')}, {lost}"
    return f"# {mask(words)}\n# COMM-TID (TID in the container, or - where nobody knows) [CPU] SECONDS: EVENT: FIELDS\n"


def _gen_lines(trace: Trace, block: EventBlock, names: _Names) -> Iterator[str]:
    by_number = {known.id: (name, known) for name, known in trace.formats.items()}
    texts: dict[int, str] = {}
    for number in np.unique(block.types).tolist():
        name, known = by_number.get(number, ("", None))
        events = block.select(number)
        found = _list_fields(block, events, name, known, names) if known else ["?"] * len(events)
        label = known.name if known else f"event {number}"
        texts.update((event, f"{label}: {text}") for event, text in zip(events.tolist(), found))
    histories = names.histories
    columns = (block.times, block.cpus, block.tids, block.tasks)
    for event, (time, cpu, tid, task) in enumerate(zip(*(column.tolist() for column in columns))):
        seconds, nanoseconds = divmod(time, 10**9)
        comm = histories.names[task] if task > 0 else histories.find_name(tid, time) if task else UNKNOWN_NAME
        inside = histories.find_container_pid(tid, time)
        yield (
            f"{mask(comm):>16}-{tid:<7} {'(-)' if inside is None else f'({inside})':>8} [{cpu:03d}]"
            f" {seconds:6d}.{nanoseconds:09d}: {texts[event]}"
        )


def _list_fields(block: EventBlock, events: Ints, name: str, known: EventFormat, names: _Names) -> list[str]:
    """Return the text of the fields of each of EVENTS, which are all of the format KNOWN, called NAME."""
    columns = []
    for field in known.fields.values():
        if field.name.startswith("common_"):
            continue
        if name in _RAW_SYSCALLS and field.name in _OF_CALLS and "id" in known.fields:
            columns.append([f"{field.name}={text}" for text in _list_of_calls(block, events, field, known, names)])
        elif name == _STACK:
            if field.is_array:
                columns.append(_list_stacks(block, events, known, field, names))
        elif field.name in _CODE.get(name, ()):
            addresses = block.integers(events, field).view(np.uint64).tolist()
            columns.append([f"{field.name}={mask(names.symbols.describe(address))}" for address in addresses])
        else:
            columns.append([f"{field.name}={value}" for value in _list_values(block, events, field, names.word_size)])
    return [" ".join(values) for values in zip(*columns)] if columns else [""] * len(events)


def _list_of_calls(block: EventBlock, events: Ints, field: Field, known: EventFormat, names: _Names) -> list[str]:
    """Return the text of FIELD of each of EVENTS, entries or exits of calls: the call, its arguments or its result."""
    numbers = block.integers(events, known.field("id"))
    marked = np.where((block.compats[events] != 0) & (numbers >= 0), numbers + COMPAT, numbers).tolist()
    calls = [names.syscalls.get(number, "?") for number in marked]
    if field.name == "id":
        return [f"{number} ({mask(call)})" for number, call in zip(numbers.tolist(), calls)]
    if field.name == "ret":
        return [_show_result(result, call) for result, call in zip(block.integers(events, field).tolist(), calls)]
    width = names.word_size
    places = [
        Field("", field.offset + width * index, width, False, False, False)
        for index in range(min(_ARGUMENTS, field.size // width))
    ]
    words = zip(*(block.integers(events, place).tolist() for place in places)) if places else [()] * len(events)
    archs = names.arch, find_compat_machine(names.arch)
    return [
        f"({format_arguments(call, own, archs[number >= COMPAT])})" for own, number, call in zip(words, marked, calls)
    ]


def _show_result(result: int, call: str) -> str:
    is_error = -_MAX_ERRNO <= result < 0 and call not in _RESULTS
    return f"{result} ({name_errno(-result)})" if is_error else str(result)


def _list_stacks(block: EventBlock, events: Ints, known: EventFormat, callers: Field, names: _Names) -> list[str]:
    """Return the text of each stack, the innermost function first; the event's size counts, not the length in the format."""
    sizes = np.minimum(block.integers(events, known.field("size")), _MAX_STACK)
    stacks: list[list[str]] = [[] for _event in events]
    for depth in range(int(sizes.max(initial=0))):
        place = Field("", callers.offset + names.word_size * depth, names.word_size, False, False, False)
        deep = np.flatnonzero(sizes > depth)
        for number, address in zip(deep.tolist(), block.integers(events[deep], place).view(np.uint64).tolist()):
            if address:
                stacks[number].append(mask(names.symbols.describe(address)))
    return [" <- ".join(stack) for stack in stacks]


def _list_values(block: EventBlock, events: Ints, field: Field, word_size: int) -> list[str]:
    if "char" in field.type and (field.is_array or field.is_dynamic):
        return [mask(block.text(event, field).rstrip("\n")) for event in events.tolist()]
    if field.is_array or field.size not in (1, 2, 4, 8):
        # The field is shown as words where it consists of them, as the arguments of a system call do, else as bytes.
        width = word_size if "long" in field.type and field.size % word_size == 0 else 1
        places = [
            Field("", place, width, False, False, False)
            for place in range(field.offset, field.offset + field.size, width)
        ]
        parts = [block.integers(events, place).tolist() for place in places[:64]]
        return [f"({', '.join(f'{value & (256**width - 1):x}' for value in values)})" for values in zip(*parts)] or [
            "()"
        ] * len(events)
    values = block.integers(events, field).tolist()
    is_word = field.size == 8 or (field.size == word_size and ("long" in field.type or "*" in field.type))
    if field.is_signed or not is_word:
        return list(map(str, values))
    return [f"{value & 0xFFFFFFFFFFFFFFFF:#x}" for value in values]
