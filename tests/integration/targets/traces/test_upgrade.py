# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Traces that an older version of this collection has begun: the newer one fetches, stops and removes them, and takes their recorder over."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from support import host
from support.every_kernel import report
from support.fetching import fetch_here

# The last state in which plain rings had no recorder, recorders did not listen, and manifests had no version.
OLDER = "68b3655"
# The staged copy of the collection has no history.
CHECKOUT = os.environ.get("CRASHCART_CHECKOUT") or str(Path(__file__).parents[4])
SYSCALLS = ["execve", "exit_group"]
BUSY = "while true; do /bin/busybox true; done"


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    """Runs modules of the older version: older(MODULE, **ARGUMENTS) → result."""
    packed = subprocess.run(
        ["git", "-C", CHECKOUT, "archive", OLDER, "plugins", "meta"], capture_output=True, check=False
    )
    if packed.returncode != 0:  # a shallow clone: no other place has the older code
        pytest.skip(f"the history of this checkout does not reach back to {OLDER}")
    folder = tmp_path_factory.mktemp("older")
    place = folder / "ansible_collections" / "crashcart" / "fleet"
    place.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(place, filter="data")

    def call(module, **arguments):
        done = subprocess.run(
            [sys.executable, "-m", f"ansible_collections.crashcart.fleet.plugins.modules.{module}"],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_version": "2.19"}}),
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(folder)},
        )
        return host.parse_result(done.stdout, done.stderr)

    return call


@pytest.fixture
def busy(container):
    return container("busybox", "/bin/busybox", "sh", "-c", BUSY)


@pytest.fixture(autouse=True)
def nobody_left():
    yield
    host.call_module("ftrace_instance", state="absent", everything=True)
    host.wait_until(lambda: host.call_module("crashcart_info", gather=["recorder"])["recorder"]["pid"] is None)


def info(name):
    (instance,) = host.call_module("ftrace_info", gather=["instances"], containers=[name])["instances"]
    return instance


def fetch(name, folder):
    (capture,) = fetch_here(folder, containers=[name])
    return capture["manifest"]


@pytest.mark.parametrize("options", [{}, {"ttl": "10m"}])
def test_an_older_ring_is_fetched_stopped_and_removed(older, busy, tmp_path, options):
    older("ftrace_instance", containers=[busy], syscalls=SYSCALLS, **options)
    assert info(busy)["state"] == "started"
    first = fetch(busy, tmp_path)
    assert first["entries"] > 0
    assert not first["complete"]
    # A trace that had an order for its end is watched from now on by itself; of the other one the next step is told.
    said = "for some time: the recorder was killed" if options else "with state=started"
    assert any("nobody watched the trace" in one and said in one for one in first["reasons"]), first["reasons"]
    # It goes on, and what it was told of its end holds.
    assert (info(busy)["state"], info(busy)["expires"] is not None) == ("started", bool(options))
    assert host.call_module("ftrace_instance", containers=[busy], state="stopped")["changed"]
    assert info(busy)["state"] == "stopped"
    assert fetch(busy, tmp_path)["entries"] > 0
    assert host.call_module("ftrace_instance", containers=[busy], state="absent")["changed"]
    assert host.list_instances() == []


def test_what_an_older_version_has_drained_and_not_brought_home_comes_with_the_next_fetch(older, busy, tmp_path):
    older("ftrace_instance", containers=[busy], syscalls=SYSCALLS)
    host.wait_until(lambda: sum(cpu["entries"] for cpu in info(busy)["cpus"]) > 100)
    transfer = older("ftrace_fetch", containers=[busy], dest=str(tmp_path), _methods=["zstd"])["transfer"]
    # Else it, or one that another test has broken, is on its way for a minute.
    for path in Path(transfer["path"]).parent.glob("transfer-*"):
        path.unlink()
    host.wait_until(lambda: sum(cpu["entries"] for cpu in info(busy)["cpus"]) > 100)
    first, second = (one["manifest"] for one in fetch_here(tmp_path, containers=[busy]))
    assert ("version" in first, first["complete"], first["reasons"]) == (False, True, [])
    assert ("version" in second, second["complete"]) == (True, False)
    assert len(report(tmp_path, tmp_path / "report")) == 2


def test_an_older_recorder_gives_way_where_its_traces_go_on(older, container, busy, tmp_path):
    other = container("busybox", "/bin/busybox", "sh", "-c", BUSY)
    older("ftrace_instance", containers=[busy], syscalls=SYSCALLS, ttl="10m")
    before = host.call_module("crashcart_info", gather=["recorder"])["recorder"]["pid"]
    host.call_module("ftrace_instance", containers=[other], syscalls=SYSCALLS)
    after = host.call_module("crashcart_info", gather=["recorder"])["recorder"]
    assert after["pid"] not in (None, before)
    assert {one["container"] for one in after["traces"]} == {busy, other}
    assert info(busy)["state"] == "started"
    # What was recorded while nobody watched comes once; from then on it is watched.
    assert not fetch(busy, tmp_path)["complete"]
    again = fetch(busy, tmp_path)
    assert (again["complete"], again["reasons"]) == (True, [])


def test_an_older_recording_is_brought_home_and_stands_in_the_way_until_then(older, container, busy, tmp_path):
    other = container("busybox", "/bin/busybox", "sh", "-c", BUSY)
    older("ftrace_instance", containers=[busy], syscalls=SYSCALLS, mode="record", min_free="1MiB")
    refusal = f"is of another version of this collection and records {busy}"
    with pytest.raises(host.ModuleFailed, match=refusal) as failure:
        host.call_module("ftrace_instance", containers=[other], syscalls=SYSCALLS)
    assert failure.value.result["msg"].count(refusal) == 1
    assert [info(busy)["state"], len(host.list_instances())] == ["started", 1]
    first = fetch(busy, tmp_path)
    assert first["entries"] > 0
    assert first["reasons"] == ["nobody watched the trace: an older version of this collection recorded it"]
    assert host.call_module("ftrace_instance", containers=[busy], state="stopped")["changed"]
    assert fetch(busy, tmp_path)["stopped"] is None
    host.call_module("ftrace_instance", containers=[busy, other], syscalls=SYSCALLS)
    assert fetch(other, tmp_path)["complete"]
