# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers of all runtimes: found by name, attached to, entered."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support import every_kernel, host, runtimes
from support.host import ModuleFailed
from support.remapped import run_remapped
from support.tool_checks import check_tools

SHELL = "/dev/crashcart/bin/bash"


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """A container of each runtime; all but two bear names of their own."""
    folder = tmp_path_factory.mktemp("bundles")
    pod = {
        "io__kubernetes__cri__container-type": "container",
        "io__kubernetes__cri__container-name": "app",
        "io__kubernetes__cri__sandbox-name": "api-7d9f",
        "io__kubernetes__cri__sandbox-namespace": "shop",
    }
    (folder / "plain").mkdir()
    (folder / "pod").mkdir()
    with ExitStack() as stack:
        stack.enter_context(runtimes.run_runc(folder / "plain", "cc-runc"))
        stack.enter_context(runtimes.run_runc(folder / "pod", "ab" * 32, "/run/containerd/runc/cc-test-pods", **pod))
        stack.enter_context(runtimes.run_ctr("cc-ctr", "cc-test"))
        stack.enter_context(runtimes.run_podman("cc-podman"))
        stack.enter_context(runtimes.run_podman("cc-twice"))
        pid = stack.enter_context(runtimes.run_unshared())
        stack.callback(host.docker, "rm", "-f", "cc-twice")
        host.docker("run", "-d", "--name", "cc-twice", "--network", "none", "crashcart-test/busybox")
        yield {
            "runc": "cc-runc",
            "containerd pod": "shop/api-7d9f/app",
            "containerd": "cc-ctr",
            "podman": "cc-podman",
            "process": f"pid:{pid}",
        }
    host.wait_until_empty(host.list_loop_devices)


KINDS = ("runc", "containerd pod", "containerd", "podman", "process")


@pytest.mark.parametrize("kind", KINDS)
def test_attach_exec_shell_and_detach(others, kind):
    name = others[kind]
    attached = host.call_module("crashcart_attach", containers=[name])
    assert attached["changed"]
    (one,) = attached["attachments"]
    assert one["container"] == name
    assert f"- squashfs {find_source(one['pid'])} ro" in read_mounts(one["pid"])
    assert not host.call_module("crashcart_attach", containers=[name])["changed"]
    done = type_into(one["shell"], "echo $((6 * 7)) $BASH; exit\n")
    assert f"42 {SHELL}" in done.stdout, done
    detached = host.call_module("crashcart_attach", containers=[name], state="detached")
    assert detached["changed"]
    assert "/dev/crashcart" not in read_mounts(one["pid"])


def type_into(shell, text):
    """Run the line SHELL on a terminal, which it is for, with TEXT as its input, and return the ended process."""
    return subprocess.run(
        f"script -qec {shlex.quote(shell)} /dev/null",
        shell=True,
        input=text,
        capture_output=True,
        text=True,
        timeout=host.seconds(30),
        check=False,
    )


def find_source(_pid):
    (line,) = host.list_loop_devices()
    return line.partition(":")[0]


def read_mounts(pid):
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8") as file:
        return file.read()


@pytest.mark.parametrize("kind", KINDS)
def test_exec_without_attach(others, kind):
    name = others[kind]
    (result,) = host.execute(containers=[name], argv=["cat", "/proc/1/cmdline"])
    assert result["container"] == name
    assert "sleep\x00100000" in result["stdout"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_tools_work_with_the_rights_that_they_have_by_default(others, kind):
    # What `runc spec` gives root does not have CAP_SETGID.
    check_tools(others[kind], capturer="4321" if kind in ("runc", "containerd pod") else None)


def test_the_tools_work_where_the_containers_root_is_nobody_on_the_host():
    with run_remapped("cc-remapped") as url:
        check_tools("cc-remapped", docker_host=url)


def test_all_are_listed_with_their_runtimes(others):
    listed = {one["name"]: one for one in host.call_module("crashcart_info", gather=["containers"])["containers"]}
    assert {name: listed[name]["runtime"] for name in others.values() if name in listed} == {
        "cc-runc": "runc",
        "shop/api-7d9f/app": "containerd",
        "cc-ctr": "containerd",
        "cc-podman": "podman",
    }
    assert all(listed[others[kind]]["state"] == "running" for kind in KINDS[:-1])


def test_one_call_for_several_runtimes(others):
    results = host.execute(containers=["cc-*", "shop/*"], argv=["true"])
    assert {one["container"] for one in results} == {"cc-runc", "cc-ctr", "cc-podman", "cc-twice", "shop/api-7d9f/app"}
    assert [one["container"] for one in results].count("cc-twice") == 2


def test_a_name_in_two_runtimes_is_ambiguous(others):
    with pytest.raises(
        ModuleFailed, match=r"'cc-twice' is ambiguous: it may mean docker:\w+ \(running\), podman:\w+ \(running\)"
    ):
        host.call_module("crashcart_exec", containers=["cc-twice"], argv=["true"])
    for runtime in ("docker", "podman"):
        (result,) = host.execute(containers=[f"{runtime}:cc-twice"], argv=["true"])
        assert result["rc"] == 0


PODMAN_SOCKET = Path("/run/podman/podman.sock")


@contextmanager
def serve_podman(path):
    path.parent.mkdir(exist_ok=True)
    with subprocess.Popen(["podman", "system", "service", "--time", "0", f"unix://{path}"]) as service:
        try:
            host.wait_until(path.exists)
            yield
        finally:
            service.terminate()
            service.wait()
            path.unlink(missing_ok=True)


def test_podman_by_its_api(others):
    with serve_podman(PODMAN_SOCKET):
        (result,) = host.call_module("crashcart_exec", containers=["cc-podman"], argv=["true"])["results"]
        assert result["rc"] == 0
        (one,) = host.call_module("crashcart_info", containers=["cc-podman"], gather=["containers"])["containers"]
        assert (one["runtime"], one["image"]) == ("podman", "localhost/crashcart-test/busybox:latest")


def test_podman_whose_service_has_left_its_socket(others):
    PODMAN_SOCKET.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(PODMAN_SOCKET))
    try:
        found = host.call_module("crashcart_info", containers=["cc-podman"], gather=["containers"])
        assert [one["runtime"] for one in found["containers"]] == ["podman"]
        assert "podman" not in str(found.get("warnings")), found
    finally:
        PODMAN_SOCKET.unlink()


@pytest.mark.parametrize("kind", ["a link to its socket", "two sockets", "a socket and its command"])
def test_podman_in_the_place_of_docker_is_one_engine(others, tmp_path, monkeypatch, kind):
    path = tmp_path / "docker.sock"
    with ExitStack() as stack:
        if kind != "a socket and its command":
            stack.enter_context(serve_podman(PODMAN_SOCKET))
        if kind == "a link to its socket":
            path.symlink_to(PODMAN_SOCKET)  # as podman-docker installs it
        else:
            stack.enter_context(serve_podman(path))
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        containers = host.call_module("crashcart_info", gather=["containers"])["containers"]
        assert len({one["id"] for one in containers}) == len(containers)
        assert {one["name"]: one["runtime"] for one in containers if one["name"].startswith("cc-")} == {
            "cc-runc": "runc",
            "cc-ctr": "containerd",
            "cc-podman": "podman",
            "cc-twice": "podman",
        }
        for patterns in (["cc-pod*"], ["cc-podman"], ["docker:cc-podman"], ["podman:cc-podman", "docker:cc-pod*"]):
            (result,) = host.call_module("crashcart_exec", containers=patterns, argv=["true"])["results"]
            assert (result["container"], result["rc"]) == ("cc-podman", 0)
        attached = host.call_module("crashcart_attach", containers=["docker:cc-podman"])["attachments"]
        done = type_into(attached[0]["shell"], "echo $((6 * 7)); exit\n")
        assert "42" in done.stdout, done
        host.call_module("crashcart_attach", containers=["podman:cc-podman"], state="detached")


def test_labels_and_queries_reach_annotations(others):
    chosen = {"labels": {"io.kubernetes.cri.sandbox-name": "api-7d9f"}}
    (result,) = host.execute(**chosen, argv=["true"])
    assert result["container"] == "shop/api-7d9f/app"
    query = "Annotations.\"io.kubernetes.cri.container-name\" == 'app'"
    (result,) = host.execute(query=query, argv=["true"])
    assert result["container"] == "shop/api-7d9f/app"


def test_a_process_that_is_not_there_or_is_the_hosts_own(others):
    with pytest.raises(ModuleFailed, match="pid:4194305: the host has no such process"):
        host.call_module("crashcart_exec", containers=["pid:4194305"], argv=["true"])
    with pytest.raises(ModuleFailed, match=f"container pid:{os.getpid()} .* shares the host's mount namespace"):
        host.call_module("crashcart_exec", containers=[f"pid:{os.getpid()}"], argv=["true"])
    with pytest.raises(ModuleFailed, match="pid:x: the host has no such process"):
        host.call_module("crashcart_exec", containers=["pid:x"], argv=["true"])


def test_a_stopped_container_of_runc_is_named(tmp_path):
    with runtimes.run_runc(tmp_path, "cc-stopped"):
        host.run("runc", "kill", "cc-stopped", "KILL")
        host.wait_until(lambda: re.search(r"cc-stopped\s+0\s+stopped", host.run("runc", "list").stdout))
        with pytest.raises(ModuleFailed, match=r"container cc-stopped \(\w{12}\) is exited: start it first"):
            host.call_module("crashcart_exec", containers=["cc-stopped"], argv=["true"])


def test_traces_of_runc_without_following_exec(others, tmp_path):
    result = host.call_module("ftrace_instance", containers=["cc-runc"], follow_exec=False)
    try:
        (instance,) = result["instances"]
        assert re.fullmatch(r"crashcart-[0-9a-f]{12}", instance["name"])
        assert instance["container"] == "cc-runc"
        assert host.call_module("ftrace_instance", containers=["cc-runc"], state="absent")["changed"]
    finally:
        host.call_module("ftrace_instance", state="absent", everything=True)
    assert host.list_instances() == []


@pytest.mark.parametrize("name", ["cc-podman", "cc-runc"])
def test_what_is_execed_where_there_is_no_shim_is_looked_for(others, tmp_path, name):
    (instance,) = host.call_module("ftrace_instance", containers=[name])["instances"]
    try:
        assert instance["followed"] == {
            "exec": "watch",
            "tools": False,
            "restarts": False,
            "may_be_missed": "of what is exec'ed the first 50 ms, and all that ends sooner",
        }
        assert not host.call_module("ftrace_instance", containers=[name])["changed"]
        engine = ["runc"] if name == "cc-runc" else ["podman", "--runtime", "runc", "--cgroup-manager", "cgroupfs"]
        done = host.run(
            *engine, "exec", name, "/bin/sh", "-c", "/bin/sleep 1; /bin/busybox rmdir /nonesuch", check=False
        )
        assert "nonesuch" in done.stderr, done
        host.execute(containers=[name], argv=["bash", "-c", "sleep 0.5; mkdir /proc/nonesuch"])
        (capture,) = host.ad_hoc("localhost", "ftrace_fetch", {"containers": [name], "dest": str(tmp_path)})["captures"]
        assert capture["manifest"]["followed"] == instance["followed"]
        (summary,) = every_kernel.report(tmp_path, tmp_path / "report")
        calls = every_kernel.count(summary)
        assert calls["rmdir"]["calls"] == 1
        assert "mkdir" not in calls  # a tool of ours
    finally:
        assert host.call_module("ftrace_instance", state="absent", everything=True)["changed"]
    host.wait_until(lambda: host.call_module("crashcart_info", gather=["recorder"])["recorder"]["pid"] is None)
