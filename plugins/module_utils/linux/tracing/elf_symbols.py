# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the offset of a function in an ELF file, to set a probe there. The file may be hostile: each number in it is checked before use.

The amount of data read is bounded, whatever the file claims, and only matches of the wanted name are kept in memory.
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

_MAX_TABLE = 256 << 20  # bytes of a table of symbols, or of their names
_MAX_READ = 1 << 30  # bytes that one ElfFile reads in all
_MAX_CANDIDATES = 65536
_CHUNK = 3 << 20  # a multiple of the sizes of 32-bit and 64-bit symbols
_MAX_NAME = 4096
_PT_LOAD, _PF_X = 1, 1
_SHT_SYMTAB, _SHT_STRTAB, _SHT_DYNSYM, _SHT_VERSYM = 2, 3, 11, 0x6FFFFFFF
_STT_NOTYPE, _STT_FUNC, _STT_IFUNC = 0, 2, 10
_HIDDEN = 0x8000  # bit in a symbol's version: programs that link without naming a version get another one


class ElfError(FleetError):
    """The file is no ELF file, is damaged, or lacks the wanted function or code; the text does not name the file."""


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
    """The ELF file that is open as FD. Raises ElfError when it is no program or shared library that this machine could run."""

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
            raise ElfError("it has more symbols than are searched: give an offset")
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
        """Raise ElfError unless the file has code at OFFSET, in bytes from its start."""
        for segment in self._segments:
            if segment.is_code and segment.offset <= offset < segment.offset + segment.size:
                return
        raise ElfError(f"there is no code at offset {offset:#x}")

    def find_offset(self, symbol: str) -> int | None:
        """Return the offset of the function SYMBOL in bytes from the file's start; None when the file has no such function.

        Raises ElfError when SYMBOL is ambiguous, is no code, or is an IFUNC, and when the file is damaged or too large to search.
        """
        if not symbol or len(symbol) > _MAX_NAME:
            return None
        name = symbol.encode("utf-8", "surrogateescape")
        for kind in (_SHT_DYNSYM, _SHT_SYMTAB):
            # A file has at most one section of each of these types (gABI).
            table = next((index for index, section in enumerate(self._sections) if section.type == kind), None)
            found = self._find_symbols(table, name) if table is not None else []
            if found:
                return self._locate(found, symbol)
        return None

    def _find_symbols(self, table: int, name: bytes) -> list[_Symbol]:
        """Return the functions called NAME that section TABLE defines; of several versions, only the default one."""
        section = self._sections[table]
        if section.link >= len(self._sections) or self._sections[section.link].type != _SHT_STRTAB:
            raise ElfError("it is damaged: its symbols have no names")
        names = self._find_names(self._sections[section.link], name)
        if not names:
            return []
        found = [
            candidate
            for candidate in self._gen_symbols(section, names)
            if candidate.section and candidate.kind in (_STT_NOTYPE, _STT_FUNC, _STT_IFUNC)
        ]
        if len({candidate.value for candidate in found}) > 1:
            found = [candidate for candidate in found if not self._is_hidden(table, candidate.index)] or found
        return found

    def _gen_chunks(self, section: _Section, what: str, overlap: int = 0) -> Iterator[tuple[int, bytes]]:
        """Yield SECTION in parts: the offset of each, and its bytes, of which the first OVERLAP are the end of the part before."""
        if section.size > _MAX_TABLE:
            raise ElfError(f"{what} take {section.size >> 20} MiB, which is more than is searched: give an offset")
        for start in range(0, section.size, _CHUNK):
            first = max(0, start - overlap)
            yield first, self._read(section.offset + first, min(start + _CHUNK, section.size) - first, what)

    def _find_names(self, section: _Section, name: bytes) -> set[int]:
        """Return the offsets of NAME in a section of names, also within longer names that end with NAME, which symbols may share."""
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
        """Yield the symbols of SECTION whose names are at the offsets NAMES."""
        layout = struct.Struct("=IBBHQQ" if self.is_64 else "=IIIBBH")
        words = layout.size // 4
        count = 0
        for start, chunk in self._gen_chunks(section, "its symbols"):
            whole = len(chunk) // layout.size * layout.size
            # A symbol's first word is the offset of its name. Most chunks hold none of NAMES, and are skipped at once.
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
        if any(candidate.kind == _STT_IFUNC for candidate in found):
            raise ElfError(
                f"the code of {symbol!r} is chosen when a program starts (IFUNC): name the function that is chosen, or give an offset"
            )
        addresses = sorted({candidate.value for candidate in found})
        if len(addresses) > 1:
            raise ElfError(f"it has {len(addresses)} functions called {symbol!r}: give an offset")
        for segment in self._segments:
            if segment.is_code and segment.address <= addresses[0] < segment.address + segment.size:
                offset = addresses[0] - segment.address + segment.offset
                if offset < self.size:
                    return offset
        raise ElfError(f"{symbol!r} is no code")
