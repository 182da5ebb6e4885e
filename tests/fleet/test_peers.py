# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Test that files of `trace-cmd record` are read as trace-cmd reads them, or refused by name. Only guests' kernels have all it needs."""

from __future__ import annotations

import base64
import io
import tarfile

import pytest
from conftest import each
from support import every_kernel, images, peers
from support.host import ModuleFailed

TRACE_CMD = "/dev/crashcart/bin/trace-cmd"
FOLDER = "/run/peers"
EVENTS = " ".join(f"-e {event}" for event in ("raw_syscalls:sys_enter", *peers.FIELDS))
# Name of a recording → trace-cmd's options; a dict for each guest.
RECORDINGS = (
    {"default": EVENTS, "plain": f"--compression none {EVENTS}", "ticks": f"-C x86-tsc {EVENTS}"},
    {"buffers": f"{EVENTS} -B peer {EVENTS}", "hundredths": f"-C uptime {EVENTS}", "counted": f"-C counter {EVENTS}"},
    {
        "version 6": f"--file-version 6 {EVENTS}",
        "buffers of version 6": f"--file-version 6 {EVENTS} -B peer {EVENTS}",
        "scaled ticks": f"-C tsc2nsec {EVENTS}",
    },
)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """Build a tool image with trace-cmd, which guests do not have, and return its path."""
    path = tmp_path_factory.mktemp("tools") / "trace-cmd.image"
    images.build(path, packages=["trace-cmd"])
    return path


def record(host, recordings, image, dest):
    """Let trace-cmd on HOST make RECORDINGS, and copy them to DEST."""
    host.run(f"mkdir -p {FOLDER} /dev/crashcart && cat >{FOLDER}/image", image.read_bytes())
    host.run(f"mount -o loop,ro {FOLDER}/image /dev/crashcart && cat >{FOLDER}/work.py", peers.WORKLOAD.encode())
    try:
        for name, options in recordings.items():
            # With --file-version 6 trace-cmd complains that it cannot find itself, and still writes the file.
            host.run(f"cd {FOLDER} && {TRACE_CMD} record -q -o '{name}.dat' {options} python3 -S -E work.py")
        packed = base64.b64decode(host.run(f"tar -cz -C {FOLDER} --exclude ./image . | base64"))
    finally:
        host.run(f"umount /dev/crashcart; rmdir /dev/crashcart; rm -r {FOLDER}")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(dest, filter="data")


def test_what_trace_cmd_records(hosts, image, tmp_path):
    each(hosts, *(lambda host, part=part: record(host, part, image, tmp_path) for part in RECORDINGS))
    buffers = {}
    for name in (name for part in RECORDINGS for name in part):
        path = tmp_path / f"{name}.dat"
        if name in ("ticks", "counted"):
            with pytest.raises(ModuleFailed, match="does not count nanoseconds.*record it again with -C mono"):
                peers.check_reads_the_same(path, tmp_path / "report")
            continue
        # A nanosecond in trace-cmd's output is a hundredth of a second of this clock.
        tick_ns = 10**7 if name == "hundredths" else 1
        assert peers.check_reads_the_same(path, tmp_path / "report", tick_ns) == peers.FIELDS.keys(), name
        captures = every_kernel.report(path, tmp_path / "report")
        buffers[name] = [one["buffer"] for one in captures]
    assert buffers.pop("buffers") == buffers.pop("buffers of version 6") == [None, "peer"]
    assert set(map(tuple, buffers.values())) == {(None,)}
