# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turn the probes that a user defines into definitions that the kernel takes. Pure.

Source: Documentation/trace/kprobetrace.rst, uprobetracer.rst and eprobetrace.rst of the kernel.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Iterable, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.dynamic_events import TYPES
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import TraceError

# The name of a probes' group is this prefix, the container's short id, '_' and a digest.
GROUP_PREFIX = "crashcart_"
# The names of this collection's own probes, for the paths of system calls, begin with it.
PATH_PREFIX = "path_"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}\Z")
_ARGUMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,30}\Z")
# The kernel splits a definition at blanks, begins a comment at a hash, and ends a definition at a line break.
_ARGUMENT = re.compile(r"[!-\"$-~]{1,255}\Z")
_FUNCTION = re.compile(r"(?:[A-Za-z_]\w*:)?[A-Za-z_.][\w.$]*(?:\+(?:0x[0-9a-fA-F]+|\d+))?\Z", re.ASCII)
_EVENT = re.compile(r"([A-Za-z0-9_-]+)[:/]([A-Za-z0-9_-]+)\Z")
_SYMBOL = re.compile(r"[!-~]{1,1024}\Z")
_MAX_LINE = 4000  # bytes; the kernel takes less than a page at once
_DIGEST_LENGTH = 8
# The options that say where a probe of a type sits.
_PLACES = {
    "kprobe": {"function"},
    "kretprobe": {"function"},
    "eprobe": {"event"},
    "uprobe": {"binary", "symbol", "offset"},
    "uretprobe": {"binary", "symbol", "offset"},
}

# The argument spec of the modules' option probes; parse_request reads an entry.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "name": {"type": "str", "required": True},
    "type": {"type": "str", "required": True, "choices": list(TYPES)},
    "function": {"type": "str"},
    "event": {"type": "str"},
    "binary": {"type": "str"},
    "symbol": {"type": "str"},
    "offset": {"type": "str"},
    "arguments": {"type": "dict", "default": {}},
    "filter": {"type": "str"},
}


@dataclass(frozen=True)
class ProbeRequest:
    """A probe to define, before a container is known.

    NAME, TYPE: its name, and its type such as kretprobe.
    PLACE: the kernel's function or event that it sits on; '' for a probe in a program.
    BINARIES: paths in the container; the probe sits in the first that exists.
    SYMBOL, OFFSET: the function that it sits on, or its place in bytes from the file's beginning.
    ARGUMENTS: names and fetch arguments.
    FILTER: the filter of its event; '' for none.
    IS_OPTIONAL: True if the container may lack the binary or the symbol.
    """

    name: str
    type: str
    place: str = ""
    binaries: tuple[str, ...] = ()
    symbol: str = ""
    offset: int | None = None
    arguments: tuple[tuple[str, str], ...] = ()
    filter: str = ""
    is_optional: bool = False

    @property
    def kind(self) -> str:
        """Return the kind of probe that the kernel has to support: kprobe, eprobe or uprobe."""
        return self.type.replace("ret", "")


@dataclass(frozen=True)
class Definition:
    """A probe of a container as the kernel takes it: '{letter}:GROUP/{name} {rest}'.

    FILE: the control file that takes the definition.
    LETTER: the kernel's letter for the type.
    REST: the place and the arguments.
    IDENTITY: REST with a place that stays valid; the one in REST may be a descriptor of this process.
    FILTER: the filter of its event; '' for none.
    """

    name: str
    file: str
    letter: str
    rest: str
    identity: str
    filter: str

    def format(self, group: str) -> str:
        """Return the line that defines the probe in GROUP."""
        return f"{self.letter}:{group}/{self.name} {self.rest}"


@dataclass(frozen=True)
class ProbeSet:
    """The probes of a container, all in GROUP."""

    group: str = ""
    definitions: tuple[Definition, ...] = ()

    def list_events(self) -> dict[str, str]:
        """Return event → filter for the events of the probes."""
        return {f"{self.group}:{definition.name}": definition.filter for definition in self.definitions}


def parse_request(entry: Mapping[str, Any]) -> ProbeRequest:
    """Parse ENTRY of the option probes.

    Raises TraceError for an entry that no kernel would take, or that a kernel would misunderstand.
    """
    name, kind = entry["name"], entry["type"]
    if not _NAME.match(name):
        raise TraceError(f"probe {name!r}: a name is made of letters, digits and underscores, 63 at most")
    if name.startswith(PATH_PREFIX):
        raise TraceError(f"probe {name}: names that begin with {PATH_PREFIX} are those of the option paths")
    given = {key for key in ("function", "event", "binary", "symbol", "offset") if entry.get(key) is not None}
    strange = given - _PLACES[kind]
    if strange:
        raise TraceError(f"probe {name}: {', '.join(sorted(strange))} is not for a {kind}")
    arguments = tuple(
        _parse_argument(name, argument, text) for argument, text in (entry.get("arguments") or {}).items()
    )
    event_filter = " ".join((entry.get("filter") or "").split())
    if "binary" not in _PLACES[kind]:
        return ProbeRequest(name, kind, _parse_place(entry), arguments=arguments, filter=event_filter)
    return ProbeRequest(
        name,
        kind,
        binaries=(_parse_binary(name, entry.get("binary")),),
        arguments=arguments,
        filter=event_filter,
        **_parse_point(name, entry),
    )


def _parse_argument(name: str, argument: Any, text: Any) -> tuple[str, str]:
    if not isinstance(argument, str) or not _ARGUMENT_NAME.match(argument):
        raise TraceError(
            f"probe {name}: {argument!r} is no name for an argument: letters, digits, underscores, 31 at most"
        )
    if not isinstance(text, str) or not _ARGUMENT.match(text):
        raise TraceError(
            f"probe {name}: {text!r} is no fetch argument: one word of ASCII without '#', for example '+0(%di):ustring'"
        )
    return argument, text


def _parse_place(entry: Mapping[str, Any]) -> str:
    name, kind = entry["name"], entry["type"]
    if kind == "eprobe":
        match = _EVENT.match(entry.get("event") or "")
        if not match:
            raise TraceError(f"probe {name}: an eprobe needs event, as system:name")
        return f"{match[1]}/{match[2]}"
    function = entry.get("function") or ""
    if not _FUNCTION.match(function):
        raise TraceError(f"probe {name}: a {kind} needs function, a function of the kernel, as NAME or NAME+OFFSET")
    return function


def _parse_binary(name: str, path: Any) -> str:
    if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
        raise TraceError(f"probe {name}: it needs binary, an absolute path inside the container, not {path!r}")
    return path


def _parse_point(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    symbol, offset = entry.get("symbol"), entry.get("offset")
    if (symbol is None) == (offset is None):
        raise TraceError(
            f"probe {name}: it needs either symbol, a function of its binary, or offset, bytes into the file"
        )
    if symbol is not None:
        if not _SYMBOL.match(symbol):
            raise TraceError(f"probe {name}: {symbol!r} is no name of a function")
        return {"symbol": symbol}
    try:
        number = int(str(offset), 0)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 63:
        raise TraceError(f"probe {name}: offset {offset!r} is no number of bytes")
    return {"offset": number}


def check_names(requests: Iterable[ProbeRequest]) -> None:
    """Raise TraceError if two of REQUESTS have the same name."""
    seen = set()
    for request in requests:
        if request.name in seen:
            raise TraceError(f"probe {request.name}: there are two of that name")
        seen.add(request.name)


def make_definition(request: ProbeRequest, place: str, identity: str) -> Definition:
    """Return the definition of REQUEST at PLACE.

    PLACE may name a descriptor; IDENTITY names the same place for any process. Raises TraceError for a definition that is too long.
    """
    file, letter = TYPES[request.type]
    rest = " ".join([place, *(f"{name}={text}" for name, text in request.arguments)])
    if len(rest) > _MAX_LINE:
        raise TraceError(f"probe {request.name}: its definition is longer than the kernel takes: fetch fewer arguments")
    return Definition(request.name, file, letter, rest, " ".join([identity, rest[len(place) :]]), request.filter)


def name_group(short_id: str, definitions: Sequence[Definition]) -> str:
    """Return the name of the group for DEFINITIONS of the container with SHORT_ID.

    The name has a digest of DEFINITIONS, so other definitions are in another group.
    """
    parts = [(definition.name, definition.file, definition.letter, definition.identity) for definition in definitions]
    digest = hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()
    return f"{GROUP_PREFIX}{short_id}_{digest[:_DIGEST_LENGTH]}"
