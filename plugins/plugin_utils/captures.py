# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a trace.dat, its manifest and, on request, a text of a segment that has arrived on the controller."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from dataclasses import replace
from typing import Any, Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.manifest_form import is_sound
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import (
    compression,
    ring_pages,
    tables,
    trace_dat,
    trace_dat_reader,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.capture_file import SegmentError, find_stamp
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.capture_file_reader import (
    Segment,
    read_segment,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.manifest import VERSION
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_missing, open_private
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape
from ansible_collections.crashcart.fleet.plugins.plugin_utils import report_runner

_BLOCK = 1 << 20
_MAX_MANIFEST = 4096
_ROOM_FOR_FILE = 128  # for the trace's hash, of 64 characters, and its size in the manifest
_MAX_NAME = 200  # file systems take 255
_UNFIT = re.compile(r"[^A-Za-z0-9_.-]")
# Names of devices on Windows, with any ending, and dots at the end, which Windows drops: a store may be on a share, or be copied there.
_DEVICE = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|\Z)", re.IGNORECASE)


def make_file_name(text: str) -> str:
    """Return TEXT as the name of a file, also on Windows: it cannot lead to another folder, is not hidden, and has 200 characters at most."""
    name = _UNFIT.sub("_", text)
    kept = name.rstrip(".")
    name = kept + "_" * (len(name) - len(kept))
    # Names of our own files in a store begin with a dot.
    if not name or name.startswith(".") or _DEVICE.match(name):
        name = "_" + name
    if len(name) > _MAX_NAME:
        name = name[: _MAX_NAME - 17] + "-" + hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
    return name


def assemble(path: str, folder: str, host: str, *, version: int, with_text: bool) -> tuple[str, dict[str, Any]]:
    """Write the capture in the segment PATH below FOLDER, the folder of HOST's captures; return the trace's path and its manifest.

    The manifest is complete. The file beside the trace may lack long parts, which are within the trace. VERSION is that of the
    trace.dat; WITH_TEXT writes the events as text, too. Raises SegmentError or TraceFileError for a damaged segment and leaves no
    file then. OSError is about this controller.
    """
    try:
        return _assemble(path, folder, host, version, with_text)
    except (OSError, FleetError):
        raise
    except Exception as error:  # a host may send anything, and must not keep other segments from being read
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
        if "reasons" not in manifest:  # an older version of this collection has written it
            manifest["reasons"] = [] if manifest.get("complete") else [f"{manifest.get('lost')} events were lost"]
        manifest["pages"] = _count_pages(segment)
        manifest["inventory_hostname"] = host
        if "version" in manifest:
            manifest["version"] = VERSION
        manifest["in_trace"] = {}
        short, parts = tables.split(manifest, _MAX_MANIFEST - _ROOM_FOR_FILE)
        segment.head.options.append(tables.pack(shown, parts))
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
            # In a process of its own, which finds the code that was compiled for an earlier text or report.
            request = {"captures": [files["dat"]], "manifest": {**shown, **manifest}, "text": files["txt"]}
            made = report_runner.run(request, work)
            if made.get("failed"):
                raise SegmentError(f"its text cannot be written: {made['msg']}")
        target = os.path.join(folder, make_file_name(container["name"]))
        make_missing(target)
        place = _find_place(os.path.join(target, find_stamp(os.path.basename(path))), digest.hexdigest())
        # The trace comes last: where there is a trace, its manifest and its text are there, too.
        for ending in sorted(files, key="dat".__eq__):
            os.rename(files[ending], f"{place}.{ending}")
        return f"{place}.dat", {**manifest, **about_file}


def _find_place(wanted: str, sha256: str) -> str:
    """Return WANTED, a path without ending, or with a number after it where another capture than that with the hash SHA256 is there.

    Two captures of one time have been on hosts whose names give the same folder, or one's host sends what it likes.
    """
    place, number = wanted, 1
    while os.path.lexists(f"{place}.dat"):
        with open(f"{place}.dat", "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                break
        number += 1
        place = f"{wanted}-{number}"
    return place


def has_never_started(manifest: dict[str, Any]) -> bool:
    """Return True if the trace with MANIFEST still awaits the first start of its container."""
    followed = manifest.get("followed")
    return isinstance(followed, dict) and followed.get("restarts") is True and manifest.get("has_run") is False


def describe(path: str | None, manifest: dict[str, Any]) -> str:
    """Return a line for the user about the capture at PATH with MANIFEST. PATH is None for a trace without events."""
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
    """Return the number of SEGMENT's pages; raise SegmentError for more bytes than the buffers in its manifest can have held."""
    chunks = [chunk for found in segment.chunks.values() for chunk in found]
    page_size, plain = segment.head.page_size, sum(chunk.size for chunk in chunks)
    trace_dat_reader.check_growth(sum(chunk.packed for chunk in chunks), plain, page_size)
    most = find_most(segment.document, page_size)
    if most is not None and plain > most:
        raise SegmentError(f"{plain} bytes of pages are more than its ring buffers and files can have held ({most})")
    return plain // page_size


def find_most(manifest: dict[str, Any], page_size: int) -> int | None:
    """Return the largest number of bytes of pages that the trace with MANIFEST can have held, or None where MANIFEST does not say.

    A ring's buffers are drained once, and the events of a page are shorter than the page by its header. A recording ends, or loses
    its oldest files, when it reaches its maximum size, and a drain may exceed this size.
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
    """Yield the bytes of SEGMENT as a trace.dat of VERSION (6 or 7).

    Chunks compressed with zstd go into version 7 unchanged. In all other cases the pages are written uncompressed.
    """
    cpus = range(max(segment.chunks, default=-1) + 1)
    is_copied = version == 7 and segment.compression == compression.ZSTD
    if is_copied:
        count_size = len(trace_dat.pack_count(0))
        sizes = [
            sum(trace_dat.CHUNK_HEADER_SIZE + chunk.packed for chunk in segment.chunks[cpu]) + count_size
            if cpu in segment.chunks
            else 0
            for cpu in cpus
        ]
    else:
        sizes = [sum(chunk.size for chunk in segment.chunks.get(cpu, ())) for cpu in cpus]
    head = replace(
        segment.head, version=version, compression=compression.ZSTD if is_copied else compression.NONE, cpus=[]
    )
    yield trace_dat.pack_head(head, sizes)
    for cpu in cpus:
        chunks = segment.chunks.get(cpu, [])
        if is_copied and chunks:
            yield trace_dat.pack_count(len(chunks), head.order)
        for chunk in chunks:
            yield segment.read_packed(chunk) if is_copied else segment.read_chunk(chunk)
