# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Functions of real and of made ELF files, whole and damaged."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import re
import struct
import sys

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import elf_symbols
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.elf_symbols import ElfError, ElfFile

FUNC, OBJECT, IFUNC = 2, 1, 10
DYNSYM, SYMTAB = 11, 2
CODE_OFFSET, CODE_ADDRESS, CODE_SIZE = 0x200, 0x1200, 0x100


class Made:
    """An ELF file of this machine's byte order with one segment of code, another of data, and SYMBOLS of each kind of table.

    A symbol is (name, value, type, section of which it is, version).
    """

    def __init__(self, *, is_64=True, kind=3, **tables):
        word = "Q" if is_64 else "I"
        head = struct.Struct(f"=HHI{word}{word}{word}IHHHHHH")
        segment = struct.Struct("=IIQQQQQQ" if is_64 else "=IIIIIIII")
        section = struct.Struct("=IIQQQQIIQQ" if is_64 else "=IIIIIIIIII")
        self.body = bytearray(CODE_OFFSET + CODE_SIZE)
        sections = [section.pack(*[0] * 10)]
        for name, symbols in tables.items():
            names = b"\0" + b"".join(one[0].encode() + b"\0" for one in symbols)
            # The first symbol of a table is none.
            packed = [self._pack_symbol(is_64, 0, 0, 0, 0)]
            place = 1
            for symbol, value, type_, where, _version in symbols:
                packed.append(self._pack_symbol(is_64, place, value, type_, where))
                place += len(symbol) + 1
            number = {"dynsym": DYNSYM, "symtab": SYMTAB}[name]
            index = len(sections)
            sections.append(self._add(section, number, b"".join(packed), index + 1))
            sections.append(self._add(section, 3, names, 0))
            versions = struct.pack(f"={len(symbols) + 1}H", 0, *(one[4] for one in symbols))
            sections.append(self._add(section, 0x6FFFFFFF, versions, index))
        phoff, shoff = 16 + head.size, len(self.body)
        if is_64:
            segments = [
                segment.pack(1, 5, CODE_OFFSET, CODE_ADDRESS, 0, CODE_SIZE, CODE_SIZE, 4096),
                segment.pack(1, 6, 0, 0x4000, 0, 0x100, 0x100, 4096),
            ]
        else:
            segments = [
                segment.pack(1, CODE_OFFSET, CODE_ADDRESS, 0, CODE_SIZE, CODE_SIZE, 5, 4096),
                segment.pack(1, 0, 0x4000, 0, 0x100, 0x100, 6, 4096),
            ]
        ident = b"\x7fELF" + bytes([2 if is_64 else 1, 1 if sys.byteorder == "little" else 2, 1]) + bytes(9)
        packed_head = head.pack(
            kind, 62, 1, 0, phoff, shoff, 0, 64, segment.size, len(segments), section.size, len(sections), 0
        )
        start = ident + packed_head + b"".join(segments)
        assert len(start) <= CODE_OFFSET
        self.body[: len(start)] = start
        self.body += b"".join(sections)

    @staticmethod
    def _pack_symbol(is_64, name, value, type_, where):
        if is_64:
            return struct.pack("=IBBHQQ", name, 16 | type_, 0, where, value, 4)
        return struct.pack("=IIIBBH", name, value, 4, 16 | type_, 0, where)

    def _add(self, section, number, content, link):
        offset = len(self.body)
        self.body += content
        return section.pack(0, number, 0, 0, offset, len(content), link, 0, 0, 0)


@contextlib.contextmanager
def opened(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def find(tmp_path, made, symbol):
    path = tmp_path / "elf"
    path.write_bytes(made if isinstance(made, bytes) else bytes(made.body))
    with opened(path) as fd:
        return ElfFile(fd).find_offset(symbol)


def symbol(name, value=CODE_ADDRESS, type_=FUNC, where=1, version=2):
    return (name, value, type_, where, version)


def find_loaded(address):
    """The file, and the offset in it, of what is mapped at ADDRESS."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) r.xp ([0-9a-f]+) \S+ \d+ +(/.*)", line)
            if match and int(match[1], 16) <= address < int(match[2], 16):
                return match[4], address - int(match[1], 16) + int(match[3], 16)
    raise AssertionError(f"nothing is mapped at {address:#x}")


@pytest.mark.parametrize("name", ["open", "openat", "fopen", "execve", "unlink", "access", "getaddrinfo", "rename"])
def test_functions_of_the_c_library_are_where_the_loader_has_put_them(name):
    address = ctypes.cast(getattr(ctypes.CDLL(None), name), ctypes.c_void_p).value
    path, offset = find_loaded(address)
    with opened(path) as fd:
        elf = ElfFile(fd)
        assert elf.find_offset(name) == offset
        elf.check_code(offset)
        assert elf.find_offset("nonesuch_function") is None
        with pytest.raises(ElfError, match="no code at offset 0x0"):
            elf.check_code(0)


@pytest.mark.parametrize("is_64", [True, False])
@pytest.mark.parametrize("table", ["dynsym", "symtab"])
def test_a_symbol_is_found_in_either_table_of_either_size(tmp_path, is_64, table):
    made = Made(is_64=is_64, **{table: [symbol("first"), symbol("wanted", CODE_ADDRESS + 0x42)]})
    assert find(tmp_path, made, "wanted") == CODE_OFFSET + 0x42
    assert find(tmp_path, made, "first") == CODE_OFFSET
    assert find(tmp_path, made, "wante") is None
    assert find(tmp_path, made, "anted") is None
    assert find(tmp_path, made, "") is None


def test_a_name_may_be_the_end_of_another(tmp_path):
    made = Made(dynsym=[symbol("__open64"), symbol("x", CODE_ADDRESS + 8)])
    body = bytes(made.body)
    # The second symbol's name: the end of the first one's.
    old = struct.pack("=IBBHQQ", 1 + len("__open64") + 1, 16 | FUNC, 0, 1, CODE_ADDRESS + 8, 4)
    assert body.count(old) == 1
    body = body.replace(old, struct.pack("=I", 3) + old[4:])
    assert find(tmp_path, body, "open64") == CODE_OFFSET + 8


def test_of_two_versions_the_default_one(tmp_path):
    made = Made(dynsym=[symbol("f", CODE_ADDRESS + 1, version=0x8002), symbol("f", CODE_ADDRESS + 2, version=3)])
    assert find(tmp_path, made, "f") == CODE_OFFSET + 2


@pytest.mark.parametrize(
    ("symbols", "wanted"),
    [
        ([symbol("f"), symbol("f", CODE_ADDRESS + 1)], "2 functions called 'f'"),
        ([symbol("f", type_=IFUNC)], "IFUNC"),
        ([symbol("f", 0x4010)], "'f' is no code"),
        ([symbol("f", CODE_ADDRESS + CODE_SIZE)], "'f' is no code"),
        ([symbol("f", (1 << 64) - 1)], "'f' is no code"),
    ],
)
def test_what_is_no_place_for_a_probe_is_named(tmp_path, symbols, wanted):
    with pytest.raises(ElfError, match=wanted):
        find(tmp_path, Made(symtab=symbols), "f")


@pytest.mark.parametrize("one", [symbol("f", where=0), symbol("f", type_=OBJECT)])
def test_what_is_no_function_of_the_file_is_not_found(tmp_path, one):
    assert find(tmp_path, Made(dynsym=[one]), "f") is None


def test_a_file_without_names_has_no_function(tmp_path):
    assert find(tmp_path, Made(), "f") is None


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (b"", "no ELF file"),
        (b"#!/bin/sh\nexit 0\n", "no ELF file"),
        (b"\x7fELF\x02\x01\x01" + bytes(9), "its head would lie beyond"),
        (b"\x7fELF\x03" + bytes(60), "no ELF file"),
        (b"\x7fELF\x02" + (b"\x02" if sys.byteorder == "little" else b"\x01") + bytes(60), "other byte order"),
        (bytes(Made(kind=1).body), "neither a program nor a shared library"),
        (bytes(Made(dynsym=[symbol("f")]).body[:-1]), "its sections would lie beyond"),
    ],
)
def test_what_is_no_program_is_named(tmp_path, body, wanted):
    with pytest.raises(ElfError, match=wanted):
        find(tmp_path, body, "f")


def test_a_table_that_is_said_to_be_huge_is_not_read(tmp_path):
    body = bytearray(Made(dynsym=[symbol("f")]).body)
    # Of section 2, the names, which is followed by that of versions.
    place = len(body) - 2 * 64
    size = struct.pack("=Q", 1 << 40)
    body[place + 32 : place + 40] = size
    with pytest.raises(ElfError, match="more than is searched"):
        find(tmp_path, bytes(body), "f")


def test_all_that_is_read_of_a_file_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(elf_symbols, "_MAX_READ", 2000)
    path = tmp_path / "elf"
    path.write_bytes(bytes(Made(dynsym=[symbol("f")]).body))
    with opened(path) as fd:
        elf = ElfFile(fd)
        assert elf.find_offset("f") == CODE_OFFSET
        with pytest.raises(ElfError, match="more symbols than are searched"):
            for _number in range(100):
                elf.find_offset("f")


def test_a_file_that_shrinks_is_named(tmp_path):
    path = tmp_path / "elf"
    path.write_bytes(bytes(Made(dynsym=[symbol("f")]).body))
    with opened(path) as fd:
        elf = ElfFile(fd)
        os.truncate(path, 100)
        with pytest.raises(ElfError, match="was cut short"):
            elf.find_offset("f")


@pytest.mark.sweep
def test_damage_is_an_error_or_a_wrong_answer_and_never_anything_else(tmp_path):
    whole = bytes(Made(dynsym=[symbol("f"), symbol("g")], symtab=[symbol("h")]).body)
    luck = random.Random(6)
    kinds = set()
    for _number in range(3000):
        body = bytearray(whole)
        for _change in range(luck.randint(1, 4)):
            # Where the numbers are: in the head and the segments, the symbols and the sections.
            place = luck.choice((luck.randrange(CODE_OFFSET), luck.randrange(CODE_OFFSET + CODE_SIZE, len(body))))
            body[place] = luck.choice((0, 1, 0x7F, 0xFF, luck.randrange(256)))
        try:
            offset = find(tmp_path, bytes(body), luck.choice("fgh"))
            assert offset is None or 0 <= offset < len(body)
            kinds.add(offset is None)
        except ElfError:
            kinds.add("error")
    assert kinds == {True, False, "error"}
