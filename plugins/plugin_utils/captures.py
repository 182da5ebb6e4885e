# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A segment that has arrived becomes a trace.dat with its manifest, and a text beside it where one is wanted."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from dataclasses import replace
from typing import Any, Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.capture_summary import is_sound
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.text import write_text
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import (
    compression,
    ring_pages,
    tables,
    trace_dat,
    trace_dat_reader,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.capture_file import (
    Segment,
    SegmentError,
    find_stamp,
    read_segment,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.manifest import VERSION
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_missing, open_private
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape

_BLOCK = 1 << 20
_MAX_MANIFEST = 4096
_ROOM_FOR_FILE = 128  # what the manifest says of its file: a digest of 64 characters, and a size
_MAX_NAME = 200  # file systems take 255
_UNFIT = re.compile(r"[^A-Za-z0-9_.-]")


def make_file_name(text: str) -> str:
    """TEXT as the name of one file: nothing in it can lead to another folder."""
    name = _UNFIT.sub("_", text)
    if len(name) > _MAX_NAME:
        name = name[: _MAX_NAME - 17] + "-" + hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
    return name if name.strip(".") else "_" + name


def assemble(path: str, folder: str, host: str, *, version: int, with_text: bool) -> tuple[str, dict[str, Any]]:
    """Write the capture in the segment PATH below FOLDER, the captures' one of HOST: the path of the trace, and all of its manifest,
    which may be longer than what stands beside the trace.

    Raises SegmentError or TraceFileError for a segment that cannot be one, and leaves nothing then; OSError is this controller's own.
    """
    try:
        return _assemble(path, folder, host, version, with_text)
    except (OSError, FleetError):
        raise
    except Exception as error:  # it came from a host: whatever is wrong with it, other segments wait
        raise SegmentError(f"it is damaged ({type(error).__name__}: {str(error)[:200]})") from error


def _assemble(path: str, folder: str, host: str, version: int, with_text: bool) -> tuple[str, dict[str, Any]]:
    with open(path, "rb") as file, tempfile.TemporaryDirectory(prefix=".crashcart-", dir=folder) as work:
        segment = read_segment(file)
        manifest = segment.document
        segment.head.cmdlines = str(manifest.pop("cmdlines", "")).encode("utf-8", "replace")
        container = manifest.get("container")
        if not is_sound(manifest) or not isinstance(container, dict) or not isinstance(container.get("name"), str):
            raise SegmentError("the manifest of a segment is not what a host writes, or names no container")
        shown = {name: manifest.pop(name) for name in tables.NAMES if name in manifest}
        if "reasons" not in manifest:  # an older version of this collection has drained it
            manifest["reasons"] = [] if manifest.get("complete") else [f"{manifest.get('lost')} events were lost"]
        manifest["pages"] = _count_pages(segment)
        manifest["inventory_hostname"] = host
        if "version" in manifest:
            manifest["version"] = VERSION
        manifest["in_trace"] = {}
        short, parts = tables.split(manifest, _MAX_MANIFEST - _ROOM_FOR_FILE)
        segment.head.options.append(tables.pack(shown, parts))
        stamp = find_stamp(os.path.basename(path))
        files = {"dat": os.path.join(work, "trace.dat")}
        digest = hashlib.sha256()
        with open(files["dat"], "wb", opener=open_private) as trace:
            for block in gen_trace(segment, version):
                digest.update(block)
                trace.write(block)
            about_file = {"size": trace.tell(), "sha256": digest.hexdigest()}
        files["json"] = os.path.join(work, "manifest.json")
        with open(files["json"], "w", encoding="utf-8", opener=open_private) as text:
            text.write(tables.format_manifest({**short, **about_file}))
        if with_text:
            files["txt"] = os.path.join(work, "trace.txt")
            write_text(files["dat"], {**shown, **manifest}, files["txt"])
        target = os.path.join(folder, make_file_name(container["name"]))
        make_missing(target)
        # The trace comes last: where it is, all of it is.
        for ending in sorted(files, key="dat".__eq__):
            os.rename(files[ending], os.path.join(target, f"{stamp}.{ending}"))
        return os.path.join(target, stamp + ".dat"), {**manifest, **about_file}


def has_never_started(manifest: dict[str, Any]) -> bool:
    """Whether a trace without events, of which a host says MANIFEST, is of a container whose start it still awaits."""
    followed = manifest.get("followed")
    return isinstance(followed, dict) and followed.get("restarts") is True and manifest.get("has_run") is False


def describe(path: str | None, manifest: dict[str, Any]) -> str:
    """Return a line for people on the capture at PATH, None for none, of which a host says MANIFEST."""
    container = manifest.get("container")
    name = container.get("name") if isinstance(container, dict) else None
    what = f"{path} ({manifest.get('entries')} events)" if path else "nothing was recorded"
    text = f"{name or 'an unknown container'}: {what}"
    if path is None and has_never_started(manifest):
        text += ", for it has not started since the trace awaits it: start it, or remove the trace by ftrace_instance with state=absent"
    if not manifest.get("complete"):
        reasons = manifest.get("reasons")
        text += f" (incomplete: {'; '.join(map(str, reasons)) if isinstance(reasons, list) else 'nobody knows why'})"
    if manifest.get("stopped"):
        text += f" (stopped: {manifest['stopped']})"
    return escape(text)


def _count_pages(segment: Segment) -> int:
    """How many pages SEGMENT holds. Raises SegmentError for more than its host's buffers can have held, by its manifest, and than any could."""
    chunks = [chunk for found in segment.chunks.values() for chunk in found]
    page_size, plain = segment.head.page_size, sum(chunk.size for chunk in chunks)
    trace_dat_reader.check_growth(sum(chunk.packed for chunk in chunks), plain, page_size)
    most = find_most(segment.document, page_size)
    if most is not None and plain > most:
        raise SegmentError(f"{plain} bytes of pages are more than its ring buffers and files can have held ({most})")
    return plain // page_size


def find_most(manifest: dict[str, Any], page_size: int) -> int | None:
    """Bytes of pages that a trace can have held as MANIFEST tells of it; None where it does not.

    A ring's buffers are drained once, and each page holds less than a page. A recording ends, or loses its oldest files, at its size, which a
    drain may overshoot.
    """
    size_kb, cpus = str(manifest.get("buffer_kb")), manifest.get("cpus")
    if not re.fullmatch("[0-9]{1,15}", size_kb) or not isinstance(cpus, list):
        return None
    rings = (int(size_kb) * 1024 // (page_size - ring_pages.PAGE_HEADER_SIZE) + 2) * page_size * len(cpus)
    if manifest.get("mode") != "record":
        return rings
    limits = manifest.get("limits")
    most = limits.get("max_bytes") if isinstance(limits, dict) else None
    return rings + 2 * most if isinstance(most, int) else None


def gen_trace(segment: Segment, version: int) -> Iterator[bytes]:
    """The bytes of the trace.dat of VERSION that SEGMENT comes to.

    Chunks of zstd go into version 7 as they are; else the pages are written plain.
    """
    cpus = range(max(segment.chunks, default=-1) + 1)
    is_copied = version == 7 and segment.compression == compression.ZSTD
    if is_copied:
        count_size = len(trace_dat.pack_count(0))
        sizes = [
            sum(trace_dat.CHUNK_HEADER_SIZE + one.packed for one in segment.chunks[cpu]) + count_size
            if cpu in segment.chunks
            else 0
            for cpu in cpus
        ]
    else:
        sizes = [sum(one.size for one in segment.chunks.get(cpu, ())) for cpu in cpus]
    head = replace(
        segment.head, version=version, compression=compression.ZSTD if is_copied else compression.NONE, cpus=[]
    )
    yield trace_dat.pack_head(head, sizes)
    for cpu in cpus:
        chunks = segment.chunks.get(cpu, [])
        if is_copied and chunks:
            yield trace_dat.pack_count(len(chunks))
        for chunk in chunks:
            yield segment.read_packed(chunk) if is_copied else segment.read_chunk(chunk)
