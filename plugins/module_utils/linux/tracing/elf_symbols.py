# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where in an ELF file a function begins, for a probe of it. The file may be a stranger's: every number in it is checked before use.

What is read is bounded whatever the file says, and nothing of it is kept but the names that are looked for.
Source: elf(5), and the gABI for the types of sections.
"""

from __future__ import annotations

import os
import struct
import sys
from array import array
from dataclasses import dataclass
from typing import Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError

_MAX_TABLE = 256 << 20  # bytes of symbols, or of their names
_MAX_READ = 1 << 30  # bytes for all questions about one file
_MAX_CANDIDATES = 65536
_CHUNK = 3 << 20  # a multiple of the sizes of both kinds of symbols
_MAX_NAME = 4096
_PT_LOAD, _PF_X = 1, 1
_SHT_SYMTAB, _SHT_STRTAB, _SHT_DYNSYM, _SHT_VERSYM = 2, 3, 11, 0x6FFFFFFF
_STT_NOTYPE, _STT_FUNC, _STT_IFUNC = 0, 2, 10
_HIDDEN = 0x8000  # in a version's number: what links without a version gets another one


class ElfError(FleetError):
    """The file is no ELF file, is damaged, or has not what was looked for; the text says so and does not name the file."""


@dataclass(frozen=True)
class _Segment:
    offset: int
    address: int
    size: int
    is_code: bool


@dataclass(frozen=True)
class _Section:
    type: int
    offset: int
    size: int
    link: int


@dataclass(frozen=True)
class _Symbol:
    index: int
    kind: int
    section: int
    value: int


class ElfFile:
    """The ELF file behind descriptor FD. Raises ElfError for what is none that this machine could run."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.size = os.fstat(fd).st_size
        self._left = _MAX_READ
        ident = os.pread(fd, 16, 0)
        if len(ident) < 16 or ident[:4] != b"\x7fELF" or ident[4] not in (1, 2):
            raise ElfError("it is no ELF file")
        if ident[5] != (1 if sys.byteorder == "little" else 2):
            raise ElfError("it is for machines of the other byte order")
        self.is_64 = ident[4] == 2
        head = struct.Struct("=HHIQQQIHHHHHH" if self.is_64 else "=HHIIIIIHHHHHH")
        fields = head.unpack(self._read(16, head.size, "its head"))
        if fields[0] not in (2, 3):
            raise ElfError("it is neither a program nor a shared library")
        self._segments = list(self._gen_segments(fields[4], fields[8], fields[9]))
        self._sections = list(self._gen_sections(fields[5], fields[10], fields[11]))

    def _read(self, offset: int, size: int, what: str) -> bytes:
        if offset + size > self.size:
            raise ElfError(f"it is damaged: {what} would lie beyond its end")
        self._left -= size
        if self._left < 0:
            raise ElfError("its symbols are more than is looked through: give an offset")
        data = os.pread(self._fd, size, offset)
        if len(data) != size:
            raise ElfError("it was cut short while it was read")
        return data

    def _read_table(self, offset: int, entry_size: int, count: int, layout: struct.Struct, what: str) -> bytes:
        if count and entry_size != layout.size:
            raise ElfError(f"it is damaged: an entry of {what} of {entry_size} bytes is not known")
        return self._read(offset, count * layout.size, what) if count else b""

    def _gen_segments(self, offset: int, entry_size: int, count: int) -> Iterator[_Segment]:
        layout = struct.Struct("=IIQQQQQQ" if self.is_64 else "=IIIIIIII")
        for fields in layout.iter_unpack(self._read_table(offset, entry_size, count, layout, "its segments")):
            flags = fields[1] if self.is_64 else fields[6]
            place, address, size = (
                (fields[2], fields[3], fields[5]) if self.is_64 else (fields[1], fields[2], fields[4])
            )
            if fields[0] == _PT_LOAD:
                yield _Segment(place, address, size, bool(flags & _PF_X))

    def _gen_sections(self, offset: int, entry_size: int, count: int) -> Iterator[_Section]:
        layout = struct.Struct("=IIQQQQIIQQ" if self.is_64 else "=IIIIIIIIII")
        for fields in layout.iter_unpack(self._read_table(offset, entry_size, count, layout, "its sections")):
            yield _Section(fields[1], fields[4], fields[5], fields[6])

    def check_code(self, offset: int) -> None:
        """Raise ElfError unless there is code at OFFSET bytes from the file's begin."""
        if not any(one.is_code and one.offset <= offset < one.offset + one.size for one in self._segments):
            raise ElfError(f"there is no code at offset {offset:#x}")

    def find_offset(self, symbol: str) -> int | None:
        """Bytes from the file's begin to function SYMBOL; None where it has none of that name."""
        if not symbol or len(symbol) > _MAX_NAME:
            return None
        name = symbol.encode("utf-8", "surrogateescape")
        for kind in (_SHT_DYNSYM, _SHT_SYMTAB):
            # A file has one of each at most (gABI).
            table = next((index for index, one in enumerate(self._sections) if one.type == kind), None)
            found = self._find_symbols(table, name) if table is not None else []
            if found:
                return self._locate(found, symbol)
        return None

    def _find_symbols(self, table: int, name: bytes) -> list[_Symbol]:
        """Defined functions called NAME in the symbols of section TABLE; of several versions the default one."""
        section = self._sections[table]
        if section.link >= len(self._sections) or self._sections[section.link].type != _SHT_STRTAB:
            raise ElfError("it is damaged: its symbols have no names")
        names = self._find_names(self._sections[section.link], name)
        if not names:
            return []
        found = [
            one
            for one in self._gen_symbols(section, names)
            if one.section and one.kind in (_STT_NOTYPE, _STT_FUNC, _STT_IFUNC)
        ]
        if len({one.value for one in found}) > 1:
            found = [one for one in found if not self._is_hidden(table, one.index)] or found
        return found

    def _gen_chunks(self, section: _Section, what: str, overlap: int = 0) -> Iterator[tuple[int, bytes]]:
        """Where in SECTION each part begins, and its bytes; OVERLAP of them are the end of the part before."""
        if section.size > _MAX_TABLE:
            raise ElfError(f"{what} of {section.size >> 20} MiB are more than is looked through: give an offset")
        for start in range(0, section.size, _CHUNK):
            first = max(0, start - overlap)
            yield first, self._read(section.offset + first, min(start + _CHUNK, section.size) - first, what)

    def _find_names(self, section: _Section, name: bytes) -> set[int]:
        """Where NAME stands in a section of names: a longer one that ends with it may serve as well."""
        wanted = name + b"\0"
        found: set[int] = set()
        for start, chunk in self._gen_chunks(section, "its names", len(wanted) - 1):
            place = chunk.find(wanted)
            while place >= 0:
                found.add(start + place)
                if len(found) > _MAX_CANDIDATES:
                    raise ElfError(f"it has a name more than {_MAX_CANDIDATES} times, so it is damaged")
                place = chunk.find(wanted, place + 1)
        return found

    def _gen_symbols(self, section: _Section, names: set[int]) -> Iterator[_Symbol]:
        """The symbols whose names stand at NAMES."""
        layout = struct.Struct("=IBBHQQ" if self.is_64 else "=IIIBBH")
        words = layout.size // 4
        count = 0
        for start, chunk in self._gen_chunks(section, "its symbols"):
            whole = len(chunk) // layout.size * layout.size
            # The first word of each is its name's place: most parts have none of these.
            if not names.isdisjoint(array("I", chunk[:whole])[::words]):
                for index, fields in enumerate(layout.iter_unpack(chunk[:whole]), start // layout.size):
                    if fields[0] not in names:
                        continue
                    count += 1
                    if count > _MAX_CANDIDATES:
                        raise ElfError(f"it has a symbol more than {_MAX_CANDIDATES} times, so it is damaged")
                    if self.is_64:
                        yield _Symbol(index, fields[1] & 15, fields[3], fields[4])
                    else:
                        yield _Symbol(index, fields[3] & 15, fields[5], fields[1])

    def _is_hidden(self, table: int, index: int) -> bool:
        for section in self._sections:
            if section.type == _SHT_VERSYM and section.link == table:
                (version,) = struct.unpack("=H", self._read(section.offset + 2 * index, 2, "its versions"))
                return bool(version & _HIDDEN)
        return False

    def _locate(self, found: list[_Symbol], symbol: str) -> int:
        if any(one.kind == _STT_IFUNC for one in found):
            raise ElfError(
                f"which code {symbol!r} is, is chosen when a program starts (IFUNC): name that function, or give an offset"
            )
        addresses = sorted({one.value for one in found})
        if len(addresses) > 1:
            raise ElfError(f"it has {len(addresses)} functions called {symbol!r}: give an offset")
        for one in self._segments:
            if one.is_code and one.address <= addresses[0] < one.address + one.size:
                offset = addresses[0] - one.address + one.offset
                if offset < self.size:
                    return offset
        raise ElfError(f"{symbol!r} is no code")
