# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Probes of programs in hostile containers, shared by containers, left by killed tasks, and wanted by others."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from support import every_kernel, host, images, killing, serving
from support.every_kernel import LIBC, read_texts
from support.fetching import fetch_here
from support.records import find_record

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import plan
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.end import remove
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.probes import parse_request
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.specification import (
    Specification,
    find_settings,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.selection import list_instances
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.setup import installed_probes

PYTHON = "/usr/bin/python3"
OPEN = {
    "name": "opening",
    "type": "uprobe",
    "binary": LIBC,
    "symbol": "open64",
    "arguments": {"path": "+0(%di):ustring"},
}


class Here:
    """This machine, as much of it as a workload needs."""

    def run(self, command):
        return host.run("sh", "-c", command).stdout


HERE = Here()


def read_probes():
    """All probes of programs on this host."""
    return Path(host.TRACEFS, "uprobe_events").read_text()


def write_event(file, text):
    fd = os.open(f"{host.TRACEFS}/{file}", os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = read_probes()
    yield
    host.call_module("ftrace_instance", state="absent", everything=True)
    assert read_probes() == before
    assert host.list_instances() == []


@pytest.fixture
def worker(container):
    name = container("python")
    every_kernel.wait_for_worker(HERE, name)
    return name


def run_python(name, code, check=True):
    """Run CODE in container NAME."""
    return host.run("docker", "exec", name, PYTHON, "-S", "-E", "-c", code, check=check)


def refuse(**arguments):
    with pytest.raises(host.ModuleFailed) as failure:
        host.call_module("ftrace_instance", **arguments)
    return str(failure.value)


def test_a_path_may_hold_anything(worker, tmp_path):
    odd = '/od d"\n:0x12 #'
    run_python(
        worker,
        f"import shutil; shutil.copyfile('/lib/x86_64-linux-gnu/libz.so.1', {odd!r}); import os; os.symlink({odd!r}, '/link')",
    )
    for number, path in enumerate((odd, "/link", "/../../link", "/proc/../link")):
        probe = {"name": "version", "type": "uprobe", "binary": path, "symbol": "zlibVersion"}
        (made,) = host.call_module("ftrace_instance", containers=[worker], probes=[probe])["instances"]
        assert list(made["probes"]) == ["version"]
        run_python(worker, f"import ctypes; ctypes.CDLL({odd!r}).zlibVersion()")
        (capture,) = fetch_here(tmp_path / str(number), containers=[worker])
        assert len(read_texts(capture["path"], "version", "__probe_ip")) == 1


def test_no_link_leads_out(worker, tmp_path):
    outside = tmp_path / "libz.so.1"
    outside.write_bytes(Path(LIBC).read_bytes())
    links = {"/out": str(outside), "/up": "../../../../../../../../.." + str(outside), "/magic": f"/proc/1/root{LIBC}"}
    code = f"import os\nfor name, to in {links!r}.items(): os.symlink(to, name)\nos.symlink('/loop', '/loop')"
    run_python(worker, code)
    before = read_probes()
    for path, wanted in (
        ("/out", "there is no such file"),
        ("/up", "there is no such file"),
        (str(outside), "there is no such file"),
        ("/magic", "none of those is followed"),
        (f"/proc/1/root{LIBC}", "none of those is followed"),
        ("/loop", "too many symbolic links"),
        ("/lib", "is no regular file"),
        ("/dev/null", "is no regular file"),
        ("/workload.py", "it is no ELF file"),
        ("/workload.py/x", "there is no such file"),
    ):
        said = refuse(containers=[worker], probes=[{**OPEN, "binary": path}])
        assert re.search(f"{re.escape(path)}'? of container {worker}.*{wanted}", said), said
    assert read_probes() == before
    assert host.list_instances() == []


def test_what_a_program_does_not_have_is_named(worker):
    for change, wanted in (
        ({"symbol": "nonesuch"}, "has no function 'nonesuch'; if strip has"),
        ({"symbol": "memcpy"}, "chosen when a program starts"),
        ({"symbol": "environ"}, "has no function 'environ'"),
        ({"symbol": None, "offset": "0x10"}, "there is no code at offset 0x10"),
        ({"symbol": None, "offset": str(1 << 60)}, "there is no code at offset"),
        ({"arguments": {"x": "$retval"}}, "retval"),
    ):
        assert wanted in refuse(containers=[worker], probes=[{**OPEN, **change}])
    assert host.list_instances() == []


def test_a_probe_by_offset_is_that_of_the_function(worker):
    (made,) = host.call_module("ftrace_instance", containers=[worker], probes=[OPEN])["instances"]
    offset = re.search(r":(0x[0-9a-f]+) path=", made["probes"]["opening"])[1]
    by_offset = {**OPEN, "symbol": None, "offset": offset}
    assert not host.call_module("ftrace_instance", containers=[worker], probes=[by_offset])["changed"]


def test_an_instruction_that_cannot_be_probed_is_told(worker):
    program = Path(f"/proc/{host.find_pid(worker)}/root{LIBC}").read_bytes()
    locked = program.index(b"\xf0\x0f\xb1")  # lock cmpxchg
    said = refuse(containers=[worker], probes=[{**OPEN, "symbol": None, "offset": hex(locked)}])
    assert "on an instruction that cannot be probed (ENOTSUPP): put it on another" in said
    assert host.list_instances() == []


def test_the_same_probe_in_two_containers_of_one_image(worker, container, tmp_path):
    other = container("python")
    every_kernel.wait_for_worker(HERE, other)
    host.call_module("ftrace_instance", containers=[worker, other], probes=[OPEN])
    assert read_probes().count("/opening") == 2
    every_kernel.run_workload(HERE, worker)
    sizes = {}
    for capture in fetch_here(tmp_path, containers=[worker, other]):
        rows = read_texts(capture["path"], "opening", "path") if capture["path"] else []
        sizes[capture["manifest"]["container"]["name"]] = len(rows)
    # They share the file that the probes sit in, and see their own processes only.
    assert sizes == {worker: 300, other: 0}
    host.call_module("ftrace_instance", containers=[other], state="absent")
    assert read_probes().count("/opening") == 1
    every_kernel.run_workload(HERE, worker)
    (capture,) = fetch_here(tmp_path / "later", containers=[worker])
    assert len(read_texts(capture["path"], "opening", "path")) == 300


def test_other_probes_take_the_place_of_the_first_ones(worker, tmp_path):
    host.call_module("ftrace_instance", containers=[worker], probes=[OPEN])
    every_kernel.run_workload(HERE, worker)
    first = read_probes()
    closing = {"name": "closing", "type": "uprobe", "binary": LIBC, "symbol": "close"}
    foreseen = host.call_module("ftrace_instance", check_mode=True, diff=True, containers=[worker], probes=[closing])
    assert foreseen["changed"]
    assert any("closing" in event for event in foreseen["diff"]["after"][worker]["events"])
    assert read_probes() == first
    (made,) = host.call_module("ftrace_instance", containers=[worker], probes=[closing])["instances"]
    assert list(made["probes"]) == ["closing"]
    every_kernel.run_workload(HERE, worker)
    (capture,) = fetch_here(tmp_path, containers=[worker])
    assert len(read_texts(capture["path"], "closing", "__probe_ip")) >= 200
    # What the first ones have recorded can still be read.
    assert (capture["manifest"]["complete"], len(read_texts(capture["path"], "opening", "path"))) == (True, 300)
    # A start that fails brings back what was.
    before = read_probes()
    refuse(containers=[worker], probes=[OPEN], events=[{"name": "sched:sched_switch", "filter": "nonesuch == 1"}])
    assert read_probes() == before
    (left,) = host.call_module("ftrace_info", gather=["instances"], containers=[worker])["instances"]
    assert (list(left["probes"]), left["state"]) == (["closing"], "started")
    host.call_module("ftrace_instance", containers=[worker], state="absent")
    assert "crashcart" not in read_probes()


def test_a_container_that_has_changed_its_program_gets_a_new_probe(worker, tmp_path):
    run_python(worker, "import shutil; shutil.copyfile('/lib/x86_64-linux-gnu/libz.so.1', '/lib.so')")
    probe = {"name": "version", "type": "uprobe", "binary": "/lib.so", "symbol": "zlibVersion"}
    host.call_module("ftrace_instance", containers=[worker], probes=[probe])
    assert not host.call_module("ftrace_instance", containers=[worker], probes=[probe])["changed"]
    run_python(worker, "import os, shutil; shutil.copyfile('/lib.so', '/lib2.so'); os.rename('/lib2.so', '/lib.so')")
    assert host.call_module("ftrace_instance", containers=[worker], probes=[probe])["changed"]
    run_python(worker, "import ctypes; ctypes.CDLL('/lib.so').zlibVersion()")
    (capture,) = fetch_here(tmp_path, containers=[worker])
    assert len(read_texts(capture["path"], "version", "__probe_ip")) == 1


def test_a_probe_holds_no_container_back(worker):
    host.call_module("ftrace_instance", containers=[worker], probes=[OPEN])
    host.docker("restart", "-t", "0", worker)
    every_kernel.wait_for_worker(HERE, worker)
    # It has another file system now, and so another file.
    assert host.call_module("ftrace_instance", containers=[worker], probes=[OPEN])["changed"]
    assert not host.call_module("ftrace_instance", containers=[worker], probes=[OPEN])["changed"]
    host.docker("rm", "-f", worker)
    assert host.call_module("ftrace_instance", state="absent", everything=True)["changed"]
    assert "opening" not in read_probes()


def test_a_container_that_ends_meanwhile_leaves_no_probe(worker, monkeypatch):
    found = find_record(worker)
    define = installed_probes.define

    def define_and_kill(root, probes):
        define(root, probes)
        host.docker("kill", worker)

    monkeypatch.setattr(installed_probes, "define", define_and_kill)
    before = read_probes()
    with pytest.raises(FleetError, match="has just ended"):
        serving.start_traces(
            [found],
            plan.TraceRequest(
                find_settings(Specification(syscalls=None)), follow_exec=True, probes=[parse_request(OPEN)]
            ),
        )
    assert read_probes() == before
    assert host.list_instances() == []


def test_a_probe_that_somebody_uses_is_named_and_removed_later(worker):
    host.call_module("ftrace_instance", containers=[worker], probes=[OPEN])
    group = re.search(r"p:(crashcart_\w+)/opening", read_probes())[1]
    foreign = Path(host.TRACEFS, "instances", "somebody-elses")
    foreign.mkdir()
    try:
        (foreign / "events" / group / "enable").write_text("1")
        assert "it is on in somebody-elses, switch it off there" in refuse(containers=[worker], state="absent")
        # Said again to whoever wants everything gone, and no matter to whoever starts another trace.
        assert "it is on in somebody-elses" in refuse(state="absent", everything=True)
        assert host.call_module("ftrace_instance", containers=[worker], probes=[OPEN])["changed"]
        refuse(containers=[worker], state="absent")
        assert group in read_probes()
        (foreign / "events" / group / "enable").write_text("0")
    finally:
        foreign.rmdir()
    # Its instance is gone: now it is a leftover.
    assert host.call_module("ftrace_instance", check_mode=True, state="absent", everything=True)["changed"]
    assert group in read_probes()
    assert host.call_module("ftrace_instance", state="absent", everything=True)["changed"]
    assert group not in read_probes()


def test_leftovers_are_found_by_anyones_next_start_and_foreign_ones_are_not(worker, tmp_path):
    ours, foreign = "crashcart_0123456789ab_5d41402a/left", "crashcartoons/left"
    write_event("uprobe_events", f"p:{foreign} /bin/true:0x1000\n")
    try:
        write_event("uprobe_events", f"p:{ours} /bin/true:0x1000\n")
        census = host.call_module("crashcart_info", gather=["census"])["census"]["probes"]
        assert any(ours in line for line in census)
        assert host.call_module("ftrace_instance", containers=[worker])["changed"]
        assert ours not in read_probes()
        assert foreign in read_probes()
        assert not host.call_module("ftrace_instance", containers=[worker])["changed"]
    finally:
        write_event("uprobe_events", f"-:{foreign}\n")


def test_kill_9_at_every_system_call_leaves_nothing_that_the_next_does_not_find(worker):
    before = read_probes()

    def begin():
        host_module = json.dumps({"containers": [worker], "probes": [OPEN]})
        serving.start_traces(
            [find_record(worker)],
            plan.TraceRequest(
                find_settings(Specification(syscalls=None)),
                follow_exec=True,
                probes=[parse_request(OPEN)],
                described={"asked": host_module},
            ),
        )

    def check(number):
        host.call_module("ftrace_instance", state="absent", everything=True)
        assert read_probes() == before, number
        assert host.list_instances() == [], number

    # Some of some hundred moments: each costs a look by a module.
    assert killing.kill_everywhere(begin, check, own_calls=True, step=17) > 5

    def end():
        remove(list_instances(host.TRACEFS, []), Outcome())

    def check_end(number):
        host.call_module("ftrace_instance", state="absent", everything=True)
        assert read_probes() == before, number
        begin()

    begin()
    assert killing.kill_everywhere(end, check_end, own_calls=True, step=3) > 2


def test_without_a_c_library_there_are_no_paths(container):
    name = container("static")
    said = refuse(containers=[name], paths=True)
    assert f"container {name} has none of /lib/x86_64-linux-gnu/libc.so.6" in said
    assert "make their system calls without a C library" in said
    assert host.list_instances() == []
    (made,) = host.call_module("ftrace_instance", containers=[name], paths="auto")["instances"]
    assert (made["state"], made["probes"], made["paths"]["by"]) == ("started", {}, None)


def test_paths_of_failures_alone(worker, tmp_path):
    host.call_module(
        "ftrace_instance", containers=[worker], errors_only=True, paths=True, syscalls=["openat", "unlink"]
    )
    every_kernel.run_workload(HERE, worker)
    run_python(worker, "import os\nfor _number in range(3):\n try: os.unlink('/nonesuch/file')\n except OSError: pass")
    fetch_here(tmp_path, containers=[worker])
    (summary,) = every_kernel.report(tmp_path, tmp_path / "report")
    uses = {row["syscall"]: row["paths"] for row in summary["programs"]}
    assert uses["unlink"] == [{"path": "/nonesuch/file", "calls": 3, "errors": {"ENOENT": 3}}]
    assert all(use["errors"] for use in uses["openat"])


def test_paths_of_many_calls_and_of_a_shell(container, tmp_path):
    images.make("crashcart-test", "debian")
    name = container("debian")
    host.call_module("ftrace_instance", containers=[name], paths=True, buffer_size="8MiB")
    commands = (
        "cd /tmp; cat /nonesuch/cat; ls /nonesuch/ls; rm /nonesuch/rm; mkdir /nonesuch/mkdir/x; rmdir /nonesuch/rmdir;"
        " mv /nonesuch/mv /x; ln -s a /nonesuch/ln; chmod 1 /nonesuch/chmod; /nonesuch/exec; touch /nonesuch/touch;"
        " readlink /nonesuch/readlink; truncate -s 0 /nonesuch/truncate; cd /nonesuch/cd; exec /nonesuch/exec2"
    )
    host.run("docker", "exec", name, "/bin/bash", "-c", commands, check=False)
    fetch_here(tmp_path, containers=[name])
    (summary,) = every_kernel.report(tmp_path, tmp_path / "report")
    failed = {use["path"] for row in summary["processes"] for use in row["paths"] if use["errors"]}
    wanted = {"cat", "ls", "rm", "mkdir/x", "rmdir", "chmod", "exec", "touch", "cd", "exec2", "truncate"}
    assert {f"/nonesuch/{one}" for one in wanted} <= failed
    assert any("/nonesuch/mv" in path for path in failed)
    assert any("/nonesuch/ln" in path for path in failed)


EATER = """
import os, time
child = os.fork()
if child == 0:
    held = []
    while True:
        held.append(b"x" * (1 << 20))
os.waitpid(child, 0)
print("killed", flush=True)
time.sleep(1e6)
"""


def test_a_container_that_ran_out_of_memory_gets_no_probes_of_programs(container):
    """To switch one on takes memory of the container, and the kernel would kill its first process where there is none left."""
    name = container("python", PYTHON, "-S", "-c", EATER, options=("--network", "none", "--memory", "32m"))
    host.wait_until(lambda: "killed" in host.docker("logs", name))
    with pytest.raises(host.ModuleFailed, match=r"ran out of memory 1 times"):
        host.call_module("ftrace_instance", containers=[name], syscalls=["openat"], probes=[OPEN])
    assert host.list_instances() == []
    host.call_module("ftrace_instance", containers=[name], syscalls=["openat"])
