# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parse event formats, in which tracefs describes the fields of an event's record."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.trace_dat import Head, TraceFileError

_FIELD = re.compile(
    r"field:(?P<type>.+?)\s*(?P<name>\w+)(?P<array>\[\w*\])?;\s*offset:(?P<offset>[0-9]{1,6});\s*size:(?P<size>[0-9]{1,6});\s*signed:(?P<signed>[01]);"
)

_MAX_LINE = 512
_RELATIVE = "__rel_loc"


@dataclass(frozen=True)
class Field:
    """A field of an event's record."""

    name: str
    offset: int  # bytes from the record's start
    size: int  # bytes
    is_signed: bool
    is_dynamic: bool  # the field holds offset and length of a text or an array further on in the record
    is_array: bool
    type: str = field(default="", compare=False)  # in C
    is_relative: bool = (
        False  # of a dynamic field: the offset counts from the field's end, and not from the record's start
    )


@dataclass(frozen=True)
class EventFormat:
    """The format of an event: its number, its name and its fields."""

    id: int
    system: str
    name: str
    fields: dict[str, Field]  # by name

    def field(self, name: str) -> Field:
        """Return the field called NAME; raises TraceFileError when the event has no such field."""
        if name not in self.fields:
            raise TraceFileError(f"event {self.system}:{self.name} of the trace has no field {name!r}")
        return self.fields[name]


def parse_format(text: str, system: str) -> EventFormat:
    """Return the EventFormat in TEXT, the text of events/SYSTEM/NAME/format.

    Raises TraceFileError when TEXT has no name or no number.
    """
    name = number = ""
    fields = {}
    for line in map(str.strip, text.splitlines()):
        if len(line) > _MAX_LINE:
            continue  # the line is `print fmt` or damaged, for the line of a field is short
        if line.startswith("name:"):
            name = line[5:].strip()
        elif line.startswith("ID:"):
            number = line[3:].strip()
        match = _FIELD.match(line)
        if match:
            fields[match["name"]] = Field(
                name=match["name"],
                offset=int(match["offset"]),
                size=int(match["size"]),
                is_signed=match["signed"] == "1",
                is_dynamic=match["type"].startswith(("__data_loc", _RELATIVE)),
                is_array=match["array"] is not None,
                type=match["type"],
                is_relative=match["type"].startswith(_RELATIVE),
            )
    if not name or not re.fullmatch(r"[0-9]{1,9}", number):
        raise TraceFileError(f"an event format of system {system!r} has no name or no number")
    return EventFormat(int(number), system, name, fields)


def read_formats(head: Head) -> dict[str, EventFormat]:
    """Return the event formats in HEAD by system:name. Raises TraceFileError for a damaged format."""
    formats = {}
    for system, texts in (("ftrace", head.ftrace_formats), *head.event_formats.items()):
        for text in texts:
            parsed = parse_format(text.decode("utf-8", "replace"), system)
            formats[f"{system}:{parsed.name}"] = parsed
    return formats
