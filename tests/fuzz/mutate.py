# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Damage a good capture at random: its texts, records, times and documents before it is packed, and its bytes afterwards."""

from __future__ import annotations

import copy
import json
import pickle
import re
import struct

from ansible_collections.crashcart.fleet.tests.fuzz.samples import make_call

_EXTREMES = (0, 1, -1, 7, 255, 511, 512, 4095, 4096, 65535, 1 << 20, 1 << 27, (1 << 31) - 1, -(1 << 31), 1 << 32)
_WIDE = (1 << 62, (1 << 62) - 1, (1 << 63) - 1, -(1 << 63), (1 << 64) - 1, 1 << 59)
_TEXTS = (
    b"",
    b"\0",
    b"/",
    b"\x1b[2J",
    b"\xff\xfe",
    b"a" * 300,
    "\u202e".encode(),
    b"%s",
    b"\n",
    b"accept",
    b"999999999999",
)
_FIELDS = re.compile(rb"(offset|size|signed|ID):(\s*)([0-9]+)")


def pick_number(source):
    """Return a number that is at an edge, small or anything."""
    kind = source.randrange(4)
    if kind == 0:
        return source.choice(_EXTREMES)
    if kind == 1:
        return source.choice(_WIDE)
    return source.randrange(64) if kind == 2 else source.getrandbits(64) - (1 << 63)


def damage(sample, source):
    """Return file and manifest, both as bytes, of SAMPLE (which stays as it is) with damage that SOURCE, a random.Random, chooses."""
    sample = pickle.loads(pickle.dumps(sample))  # a copy, in a tenth of the time that copy.deepcopy takes
    if source.random() < 0.7:
        for _time in range(source.randrange(1, 4)):
            source.choice(_OF_SAMPLES)(sample, source)
    data = bytearray(_pack(sample))
    if source.random() < 0.5:
        for _time in range(source.randrange(1, 4)):
            source.choice(_OF_BYTES)(data, source)
    manifest = bytearray(json.dumps(sample.manifest), "utf-8")
    if source.random() < 0.04:
        source.choice(_OF_BYTES)(manifest, source)
    return bytes(data), bytes(manifest) if source.random() < 0.97 else None


def _pack(sample):
    try:
        return sample.pack()
    except (struct.error, UnicodeEncodeError, AssertionError):
        return b""  # the damage does not fit into the format


# Before it is packed.


def _change_format(sample, source):
    """Set an offset, a size, a sign or a number of a format, rename a field or drop its line."""
    system = source.choice([*sample.formats, "ftrace"])
    texts = sample.ftrace_formats if system == "ftrace" else sample.formats[system]
    place = source.randrange(len(texts))
    text = texts[place]
    kind = source.randrange(8)
    if kind < 5:
        found = list(_FIELDS.finditer(text))
        spot = source.choice(found)
        limit = 24 if spot[1] == b"ID" else source.choice((24, 24, 80, 600, 70000, 1000000))
        number = source.randrange(limit) if source.random() < 0.7 else source.choice((0, 1, 2, 3, 4, 8, 999999))
        text = text[: spot.start(3)] + b"%d" % number + text[spot.end(3) :]
    elif kind == 5:
        lines = text.split(b"\n")
        del lines[source.randrange(len(lines))]
        text = b"\n".join(lines)
    elif kind == 6:
        lines = text.split(b"\n")
        one, other = source.randrange(len(lines)), source.randrange(len(lines))
        lines[one], lines[other] = lines[other], lines[one]
        text = b"\n".join(lines)
    else:
        for old, new in (
            (b"field:int ", b"field:__rel_loc "),
            (b"char ", b"__data_loc char[] "),
            (b"__data_loc", b"__rel_loc"),
        ):
            if old in text and source.random() < 0.5:
                text = text.replace(old, new)
    texts[place] = text


def _change_common(sample, source):
    """Set the offset or the size of a common field in all formats."""
    name = source.choice((b"common_type", b"common_pid"))
    number = source.choice((0, 1, 2, 3, 5, 6, 8, 100, 480, 65535, 999999))
    what = source.choice((b"offset", b"size"))
    pattern = re.compile(rb"(" + name + rb";.*?" + what + rb":)[0-9]+")
    sample.ftrace_formats = [pattern.sub(rb"\g<1>%d" % number, text) for text in sample.ftrace_formats]
    sample.formats = {
        system: [pattern.sub(rb"\g<1>%d" % number, text) for text in texts] for system, texts in sample.formats.items()
    }


def _change_header_page(sample, source):
    spot = source.choice(list(_FIELDS.finditer(sample.header_page)))
    number = source.choice((0, 1, 2, 4, 8, 12, 17, 500, 511, 512, 999, 4096))
    sample.header_page = sample.header_page[: spot.start(3)] + b"%d" % number + sample.header_page[spot.end(3) :]


def _change_record(sample, source):
    """Set words in records, cut records, or put in random ones of right numbers."""
    events = source.choice(sample.cpus)
    for _time in range(source.randrange(1, 8)):
        place = source.randrange(len(events)) if events else 0
        if not events:
            return
        time, record = events[place]
        kind = source.randrange(5)
        raw = bytearray(record)
        if kind == 0:
            raw[8:] = source.randbytes(len(raw) - 8)
        elif kind == 1:
            raw = raw[: source.randrange(8, len(raw) + 1)]
        elif kind == 2 and len(raw) >= 12:
            at = source.randrange(2, len(raw) // 4) * 4
            struct.pack_into("I", raw, at, pick_number(source) & 0xFFFFFFFF)
        elif kind == 3 and len(raw) >= 16:
            at = source.randrange(1, len(raw) // 8) * 8
            struct.pack_into("Q", raw, at, pick_number(source) & (1 << 64) - 1)
        else:
            raw += source.choice(_TEXTS)
        events[place] = time, bytes(raw)


def _change_thread(sample, source):
    """Let an event be of another thread."""
    events = source.choice(sample.cpus)
    for _time in range(source.randrange(1, 6)):
        if events:
            place = source.randrange(len(events))
            time, record = events[place]
            tid = source.choice((5, 6, 7, 0, -1, 1 << 30, source.getrandbits(31)))
            events[place] = time, record[:4] + struct.pack("i", tid) + record[8:]


def _change_time(sample, source):
    """Let the clock jump."""
    events = source.choice(sample.cpus)
    if events:
        first = source.randrange(len(events))
        shift = source.choice((-(10**9), 10**9, 10**15, -(10**15), pick_number(source)))
        for place in range(first, source.randrange(first, len(events)) + 1):
            events[place] = events[place][0] + shift & (1 << 64) - 1, events[place][1]


def _move_events(sample, source):
    """Swap, double or drop events, or move them to the other CPU."""
    events, others = source.choice(sample.cpus), source.choice(sample.cpus)
    for _time in range(source.randrange(1, 10)):
        if not events:
            return
        place = source.randrange(len(events))
        kind = source.randrange(4)
        if kind == 0:
            other = source.randrange(len(events))
            events[place], events[other] = (events[place][0], events[other][1]), (events[other][0], events[place][1])
        elif kind == 1:
            events.insert(place, events[place])
        elif kind == 2:
            del events[place]
        else:
            others.insert(source.randrange(len(others) + 1), events.pop(place))


def _add_calls(sample, source):
    """Put calls with random numbers, arguments and results in."""
    names = sample.tables.get("syscalls")  # anything, after another damage
    known = [int(number) for number in names if number.isdecimal()] if isinstance(names, dict) else []
    known = known or [0]
    for _time in range(source.randrange(1, 20)):
        events = source.choice(sample.cpus)
        number = source.choice(known) if source.random() < 0.8 else pick_number(source)
        number = (number + (1 << 63)) % (1 << 64) - (1 << 63)
        arguments = [pick_number(source) if source.random() < 0.4 else source.randrange(300) for _word in range(6)]
        result = source.choice((0, 3, 255, 256, -1, -2, -11, -110, -115, -512, -4095, pick_number(source)))
        result = (result + (1 << 63)) % (1 << 64) - (1 << 63)
        events += make_call(
            source.choice((5, 6, 7, 8)), number, arguments, result, 7 * 10**9 + source.getrandbits(30), 100
        )


def _change_document(sample, source):
    """Change shape or values in the manifest or the tables."""
    for _time in range(source.randrange(1, 4)):
        document = source.choice((sample.manifest, sample.tables, sample.tables, sample.parts))
        place = document
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = source.choice(keys)
            if isinstance(place[key], (dict, list)) and source.random() < 0.85:
                place = place[key]
                continue
            _change_value(place, key, source)
            break


def _change_value(place, key, source):
    value = place[key]
    kind = source.randrange(8)
    if kind == 0:
        del place[key]
    elif kind == 1:
        place[key] = source.choice((None, True, False, [], {}, "", 0, 1.5, 1e308, [[]], {"": None}, float("nan")))
    elif kind == 2 and isinstance(place, list):
        place += [copy.deepcopy(value)] * source.choice((1, 2, 50))
    elif kind == 3 and isinstance(place, dict) and isinstance(key, str):
        text = source.choice(_TEXTS).decode("utf-8", "surrogateescape")
        place[source.choice((text, "-1", "0", "00", "²", "999999999", "1024", "2047"))] = value
    elif isinstance(value, bool) or value is None:
        place[key] = source.choice((None, True, False, 0, "yes"))
    elif isinstance(value, int):
        place[key] = pick_number(source)
    elif isinstance(value, str):
        place[key] = source.choice(_TEXTS).decode("utf-8", "surrogateescape") + value * source.choice((0, 1, 1, 40))
    else:
        place[key] = copy.deepcopy(source.choice((place, value, [value])))


def _change_options(sample, source):
    number = source.choice((2, 3, 4, 5, 8, 9, 14, 16, source.getrandbits(16)))
    content = source.choice((b"[x86-tsc]", b"[uptime]", b"[tsc2nsec]", b"\nBuffer: x\n\n\0", source.randbytes(20)))
    sample.options.append((number, content))
    if source.random() < 0.5:
        sample.options.insert(0, (4, source.choice((b"[x86-tsc]", b"[uptime]", b"[tai]", b"local"))))
        sample.options.append((14, struct.pack("IIQ", source.getrandbits(32), source.choice((0, 10, 32, 33)), 0)))


def _change_file(sample, source):
    """Let there be other CPUs, pages or another version."""
    kind = source.randrange(3)
    if kind == 0:
        sample.cpus += [[] for _cpu in range(source.choice((1, 8, 100)))]
        sample.cpus.append([(10**9, b"\xba\x01\0\0\x05\0\0\0" + bytes(16))])
    elif kind == 1:
        sample.page_size = source.choice((512, 1024, 4096, 65536))
    else:
        sample.version = 13 - sample.version


_OF_SAMPLES = (
    *(
        _change_format,
        _change_format,
        _change_format,
        _change_common,
        _change_header_page,
        _change_record,
        _change_record,
    ),
    *(_change_thread, _change_time, _move_events, _add_calls, _change_document, _change_document, _change_document),
    *(_change_options, _change_file),
)


# As bytes.


def _flip(data, source):
    for _time in range(source.choice((1, 1, 2, 8, 40))):
        if data:
            data[source.randrange(len(data))] ^= 1 << source.randrange(8)


def _set_bytes(data, source):
    for _time in range(source.randrange(1, 9)):
        if data:
            data[source.randrange(len(data))] = source.randrange(256)


def _set_number(data, source):
    """Set an aligned or other number to an extreme."""
    code, size = source.choice((("H", 2), ("I", 4), ("Q", 8)))
    if len(data) > size:
        at = source.randrange(len(data) - size)
        at -= at % size if source.random() < 0.5 else 0
        data[at : at + size] = struct.pack(code, pick_number(source) & (1 << 8 * size) - 1)


def _cut(data, source):
    del data[source.randrange(len(data) + 1) :]


def _splice(data, source):
    if data:
        start, end = sorted(source.randrange(len(data)) for _end in range(2))
        end = min(end, start + source.choice((4, 64, 512, 4096)))
        place = source.randrange(len(data))
        if source.random() < 0.5:
            data[place:place] = data[start:end]
        else:
            data[place : place + end - start] = data[start:end]


def _swap_chunks(data, source):
    size = source.choice((4, 8, 16, 512))
    if len(data) > 2 * size:
        one, other = (source.randrange(len(data) // size) * size for _place in range(2))
        data[one : one + size], data[other : other + size] = data[other : other + size], data[one : one + size]


def _damage_pages(data, source):
    """Damage the second half of the file, where the pages are."""
    half = data[len(data) // 2 :]
    for _time in range(source.randrange(1, 5)):
        source.choice((_flip, _set_number, _swap_chunks))(half, source)
    data[len(data) // 2 :] = half


_OF_BYTES = (_flip, _set_bytes, _set_number, _set_number, _cut, _splice, _swap_chunks, _damage_pages, _damage_pages)
