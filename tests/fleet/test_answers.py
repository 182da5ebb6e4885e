# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A report about three real hosts names the faults of their containers, by each way to record paths that their kernels have.

Each host has programs with another C library, and otherwise the same containers. So a report of few findings tells what all have in common.
"""

from __future__ import annotations

import json
import re
import tempfile

import pytest
from conftest import on_all, play
from machine import seconds
from support import faults, faults_table, parts

LIBCS = dict(zip(("host1", "host2", "host3"), faults.LIBCS, strict=True))
SECONDS = 25  # a program of a host waits 5 s for a name server, and starts slowly on an emulated one
# All but these are named by other things than paths, so that each way names them alike. `make test-all` tries them, too.
NAMED_BY_PATHS = ("missing_file", "denied", "architecture")
CHOSEN = tuple(faults.FAULTS) if parts.IS_ALL else NAMED_BY_PATHS


def name_container(fault):
    return f"faulty-{fault.replace('_', '-')}"


def start(host):
    """Start on HOST a container with each fault, of images that have the same names on all hosts."""
    with tempfile.TemporaryFile() as archive:
        faults.write_image(archive, LIBCS[host.name])
        archive.seek(0)
        host.run("docker import - crashcart-test/faults", archive.read())
    for name in CHOSEN:
        fault, container = faults.FAULTS[name], name_container(name)
        image = f"crashcart-test/faults:{name}"
        options = " ".join(("--network none", *fault.options))
        host.run(
            f"docker tag crashcart-test/faults {image}; docker run -d --name {container} {options} {image} /opt/app/app {name}"
        )
        if fault.is_silent:
            pid = f"$(docker inspect -f '{{{{.State.Pid}}}}' {container})"
            host.run(f"nsenter -t {pid} -n ip route add {faults.UNREACHABLE} dev lo")


@pytest.fixture
def faulty(hosts, installed):
    """Containers with faults on all hosts during the test."""
    try:
        on_all(start, hosts)
        yield
    finally:
        names = " ".join(map(name_container, CHOSEN))
        on_all(
            lambda host: host.run(
                f"docker rm -f {names}; docker images -q crashcart-test/faults | xargs -r docker rmi -f"
            ),
            hosts,
        )


def test_each_fault_is_named_on_each_host(faulty, tmp_path):
    for way in ("eprobe", "kprobe"):
        check_faults(way, tmp_path / way)


def check_faults(way, folder):
    """Trace all faults with paths by WAY, and check what the report in FOLDER says of each."""
    run = play(
        "trace", containers=["faulty-*"], dest=str(folder), seconds=round(seconds(SECONDS)), paths="true", paths_by=way
    )
    assert run.failures == []
    lines = next(iter(run.find("Show the report").values()))["msg"][: faults_table.FIRST_LINES]
    findings = json.loads((folder / "report/findings.json").read_text())["findings"]
    unnamed = []
    for host, libc in LIBCS.items():
        for fault in CHOSEN:
            place = (host, name_container(fault))
            about = [
                one for one in findings if place in {(where["host"], where["container"]) for where in one["where"]}
            ]
            expected = faults_table.expect(fault, way, libc)
            named = [one["statement"] for one in about if re.search(expected.text, one["statement"])]
            # A line may be cut at its end.
            if not any(statement[:100] in line for statement in named for line in lines):
                unnamed.append((*place, libc, expected.text, [one["statement"] for one in about]))
    assert not unnamed, "\n".join(map(str, [*unnamed, *lines]))
