# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""crashcart_exec with rights=tools, the default: what the container's first process may, and the two capabilities that tools need."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import host
from support.stops import count_stops
from support.tool_checks import check_tools
from support.user_namespace import run_in_user_namespace

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.confinement import TOOL_CAPABILITIES
from ansible_collections.crashcart.fleet.plugins.module_utils.containers import options
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.host import Host
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.sharing import find_shared
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import open_targets
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import capabilities, cgroups, mounts, processes

NETWORK = ("--network", "none")
LOOP = ("busybox", "/bin/sh", "-c", "while /bin/true; do /bin/cat /nonesuch-file; done")
CONTAINERS = {
    "root": (),
    "user": ("--user", "1234:1235"),
    "no new privileges, user": ("--user", "1234:1235", "--security-opt", "no-new-privileges"),
    "read-only": ("--read-only", "--tmpfs", "/tmp"),
    "own control groups": ("--cgroupns", "private"),
}


def execute(name, *argv, **options):
    """Return the one result of a command in container NAME."""
    return host.execute(containers=[name], argv=list(argv), **options)[0]


def read_status(name, **options):
    """Return the fields of /proc/self/status of a command in container NAME."""
    return processes.parse_status(execute(name, "cat", "/proc/self/status", **options)["stdout"].encode())


def read_first_status(name):
    return processes.parse_status(Path(f"/proc/{host.find_pid(name)}/status").read_bytes())


def join_groups(pid, other):
    """Put process PID into the control groups of process OTHER."""
    own, wanted = (cgroups.parse_cgroup(Path(f"/proc/{one}/cgroup").read_bytes()) for one in (pid, other))
    for _group, path in cgroups.gen_joins(wanted, own, mounts.read_mounts("self", " - cgroup")):
        if path:
            Path(path).write_text(str(pid))


@pytest.fixture
def profile(tmp_path):
    """Return the option for a seccomp profile that allows all but mkdir and what traces."""
    denied = {"names": ["mkdir", "mkdirat", "ptrace", "process_vm_readv"], "action": "SCMP_ACT_ERRNO"}
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [denied]}))
    return f"seccomp={path}"


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_tool_has_what_the_first_process_has_and_two_capabilities(container, kind):
    name = container(options=(*NETWORK, *CONTAINERS[kind]))
    first, found = read_first_status(name), read_status(name)
    for field in ("Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "Seccomp_filters"):
        assert found[field] == first[field], field
    assert found["Seccomp"] == "2"
    had, has = capabilities.parse_sets(first), capabilities.parse_sets(found)
    is_root = first["Uid"].split()[0] == "0"
    assert has.bounding == had.bounding | TOOL_CAPABILITIES
    assert has.effective == has.permitted == (has.bounding if is_root else had.effective | TOOL_CAPABILITIES)
    assert has.ambient == (0 if is_root else TOOL_CAPABILITIES)
    kinds = ("mnt", "pid", "net", "ipc", "uts", "cgroup", "user")
    script = " ".join(f"/proc/self/ns/{one}" for one in kinds)
    inside = execute(name, "bash", "-c", f"for one in {script}; do readlink $one; done")["stdout"].split()
    outside = [os.readlink(f"/proc/{host.find_pid(name)}/ns/{one}") for one in kinds]
    assert inside[1:] == outside[1:]  # the first is the private view of its files
    assert execute(name, "true")["rights"] == "tools"


def test_another_user_has_the_two_capabilities_and_no_others(container):
    name = container()
    found = capabilities.parse_sets(read_status(name, user="4321"))
    assert found.effective == found.permitted == found.ambient == TOOL_CAPABILITIES


@pytest.mark.parametrize("settles", [True, False])
def test_who_enters_before_it_is_in_the_control_group_is_waited_for(container, settles):
    """A process of runc enters so for a health check or a command of `docker exec`."""
    name = container()
    pid = host.find_pid(name)
    parameters = {"containers": [name], "labels": None, "query": None, "allow_empty": False, "docker_host": None}
    chosen = options.select(SimpleNamespace(params=parameters), Host(os.environ["DOCKER_HOST"]), required=True)
    with host.start("nsenter", "-t", str(pid), "-p", "--", "sleep", "60") as runtime, open_targets(chosen) as targets:
        child = int(host.wait_until(Path(f"/proc/{runtime.pid}/task/{runtime.pid}/children").read_text))
        joins = threading.Timer(0.1, join_groups, (child, pid))
        if settles:
            joins.start()
        (shared,) = find_shared(targets, ["pid", "net"])
        os.kill(child, signal.SIGKILL)
    if settles:
        joins.join()
        assert shared == {}
    else:
        assert list(shared) == ["pid"]
        assert f"process {child} " in shared["pid"]


@pytest.mark.parametrize("kind", CONTAINERS)
def test_the_tools_work(container, kind):
    name = container(options=(*NETWORK, *CONTAINERS[kind]))
    # Of another user's processes root alone sees the sockets (CAP_DAC_OVERRIDE).
    check_tools(name, **({"user": "4321"} if "user" not in kind else {}))


def test_tools_trace_under_a_filter_that_denies_it_and_all_else_stays_denied(container, profile):
    name = container(*LOOP, options=(*NETWORK, "--security-opt", profile))
    strace = ("timeout", "-s", "INT", "2", "strace", "-f", "-o", "/dev/stdout", "-p", "1")
    assert "/nonesuch-file" in execute(name, *strace, timeout="30s")["stdout"]
    assert "Operation not permitted" in execute(name, "mkdir", "/tmp/mine")["stderr"]
    assert "not permitted" in execute(name, *strace, timeout="30s", rights="container")["stderr"]


@pytest.mark.parametrize("rights", ["container", "tools", "host"])
def test_a_program_of_the_container_has_the_containers_rights(container, rights):
    name = container()
    wanted = capabilities.parse_sets(read_first_status(name))
    for program in ("/bin/busybox", "/dev/crashcart/../../bin/busybox", "/dev/../bin/busybox"):
        result = execute(name, program, "cat", "/proc/self/status", rights=rights)
        assert result["rights"] == "container"
        status = processes.parse_status(result["stdout"].encode())
        assert capabilities.parse_sets(status) == wanted, program
        assert status["Seccomp"] == "2"
    result = execute(name, "/dev/crashcart/bin/cat", "/proc/self/status", rights=rights)
    assert result["rights"] == rights
    assert execute(name, "/dev/crashcart/bin/../bin/true", rights=rights)["rights"] == rights
    with pytest.raises(host.ModuleFailed, match="/bin/busybox is not of the image.*rights=container"):
        execute(name, "/bin/busybox", "true", capabilities=["NET_RAW"], rights="host")


SHARED = {
    "the host's processes": (("--pid", "host"), "SYS_PTRACE.* pid namespace.* the host's"),
    "the engine's network": (("--network", "host"), "NET_RAW.* net namespace.* also that of process"),
    "another's processes": (("--pid", "container:{other}"), "SYS_PTRACE.* pid namespace.* also that of process"),
    "another's network": (("--network", "container:{other}"), "NET_RAW.* net namespace.* also that of process"),
}


@pytest.mark.parametrize("what", SHARED)
def test_where_others_would_be_touched_the_call_says_who(container, what):
    options, said = SHARED[what]
    other = container()
    own = options if "--network" in options else (*options, *NETWORK)
    name = container(options=tuple(option.format(other=other) for option in own))
    with pytest.raises(
        host.ModuleFailed, match=rf"container {name}: rights=tools .*{said}.*rights=container.*rights=host"
    ) as failure:
        execute(name, "true")
    assert failure.value.result["results"][0]["rc"] == -1
    assert execute(name, "true", rights="container")["rc"] == 0
    assert execute(name, "true", rights="host")["rc"] == 0
    # Where what is given does not act on what is shared, nobody is touched.
    chosen = ["NET_ADMIN"] if "--pid" in options else ["SYS_PTRACE"]
    assert execute(name, "true", capabilities=chosen)["rc"] == 0
    if "{other}" in options[1]:
        with pytest.raises(host.ModuleFailed, match=f"container {other}: rights=tools"):
            execute(other, "true")


@pytest.mark.parametrize("what", ["/proc", "/"])
def test_where_the_hosts_processes_are_seen_through_a_volume_the_call_says_where(container, what):
    """Agents that watch the host have such volumes: a tool that may trace would reach the host's files by /host/proc/1/root."""
    name = container(options=(*NETWORK, "-v", f"{what}:/host/{what.strip('/')}:ro"))
    said = f"{name}: rights=tools .*SYS_PTRACE.* pid namespace.* at '/host/proc.*rights=container.*rights=host"
    with pytest.raises(host.ModuleFailed, match=said):
        execute(name, "true")
    assert execute(name, "true", rights="container")["rc"] == 0
    assert execute(name, "true", capabilities=["NET_RAW"])["rc"] == 0


def test_one_container_that_refuses_does_not_cost_the_others(container):
    shared = container(options=("--pid", "host", *NETWORK))
    good = container()
    with pytest.raises(host.ModuleFailed, match=f"container {shared}: rights=tools") as failure:
        host.call_module("crashcart_exec", containers=[good, shared], argv=["echo", "yes"])
    results = {one["container"]: one for one in failure.value.result["results"]}
    assert (results[good]["rc"], results[good]["stdout"]) == (0, "yes\n")
    assert (results[shared]["rc"], "pid namespace" in results[shared]["msg"]) == (-1, True)


def test_chosen_capabilities_replace_the_two(container):
    name = container(options=(*NETWORK, "--cap-drop", "ALL"))
    found = capabilities.parse_sets(read_status(name, capabilities=["NET_ADMIN"]))
    assert found.effective == capabilities.parse_names(["NET_ADMIN"])
    assert capabilities.parse_sets(read_status(name, capabilities=[])).effective == 0
    with pytest.raises(host.ModuleFailed, match="CAP_SYS_ADMIN.*user namespace.*the host's.*rights=host"):
        execute(name, "true", capabilities=["SYS_ADMIN"])


def test_namespaces_of_the_host_bring_no_capability_on_them(container):
    name = container()
    found = capabilities.parse_sets(read_status(name, namespaces=["mnt", "pid"]))
    assert found.bounding & capabilities.select({"net", "ipc"}) == 0
    assert found.effective & TOOL_CAPABILITIES == capabilities.parse_names(["SYS_PTRACE"])
    for chosen in (["net"], ["mnt", "net"], ["pid"]):
        with pytest.raises(host.ModuleFailed, match="namespaces: without mnt or pid .*rights=host"):
            execute(name, "true", namespaces=chosen)


def test_the_old_name_says_what_to_write(container):
    result = host.call_module("crashcart_exec", containers=[container()], argv=["true"], confined=True)
    assert result["results"][0]["rights"] == "container"
    assert "confined" in str(result["deprecations"])
    with pytest.raises(host.ModuleFailed, match="confined is the old name"):
        host.call_module("crashcart_exec", containers=["any"], argv=["true"], confined=True, rights="host")


def test_in_a_user_namespace_capabilities_are_its_own():
    with run_in_user_namespace() as pid:
        found = read_status(f"pid:{pid}")
        had = capabilities.parse_sets(processes.parse_status(Path(f"/proc/{pid}/status").read_bytes()))
        assert capabilities.parse_sets(found).effective == had.effective | TOOL_CAPABILITIES
        look = "import os; print(os.getuid(), os.readlink('/proc/self/ns/user'))"
        namespace = os.readlink(f"/proc/{pid}/ns/user")
        assert execute(f"pid:{pid}", "python3", "-c", look)["stdout"] == f"0 {namespace}\n"
        assert execute(f"pid:{pid}", "python3", "-c", look, namespaces=["mnt", "pid"])["stdout"] == f"0 {namespace}\n"


def test_the_first_process_is_stopped_once_for_each_of_its_starts(container):
    name = container()
    folder = Path("/run/crashcart/seccomp")
    with count_stops(host.find_pid(name)) as stops:
        for rights in ("tools", "container", "tools", "host", "container"):
            execute(name, "true", rights=rights)
    assert stops.count == 1
    (kept,) = folder.glob(f"{host.find_pid(name)}-*")
    assert (folder.stat().st_mode & 0o777, kept.stat().st_mode & 0o777) == (0o700, 0o600)
    host.docker("restart", "-t", "0", name)
    with count_stops(host.find_pid(name)) as stops:
        for _round in range(2):
            assert read_status(name)["Seccomp"] == "2"
    assert stops.count == 1
    assert not kept.exists()


def test_commands_that_begin_at_once_stop_the_first_process_once(container):
    name = container()
    with count_stops(host.find_pid(name)) as stops:
        running = [host.start_module("crashcart_exec", containers=[name], argv=["true"]) for _number in range(4)]
        for process in running:
            assert host.parse_result(*process.communicate())["results"][0]["rc"] == 0
    assert stops.count == 1


def test_a_file_of_filters_that_was_not_written_to_its_end_is_read_anew(container):
    name = container()
    execute(name, "true")
    (kept,) = Path("/run/crashcart/seccomp").glob(f"{host.find_pid(name)}-*")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-20])
    assert read_status(name)["Seccomp"] == "2"
    assert kept.read_bytes() == whole
