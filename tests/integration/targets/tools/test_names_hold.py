# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A container cannot exchange the tools under a command that may do more than the container: not by moving what they are mounted in."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from support import host, images, inside, runtimes
from support.images import build

NETWORK = ("--network", "none")
# The container's own program, at the path of a tool.
FAKE = "mkdir -p /out {0}/crashcart/bin; printf '#!/bin/sh\\necho EXCHANGED\\n' >{0}/crashcart/bin/id; chmod 755 {0}/crashcart/bin/id"
# Goes on when somebody has made the folder `out/go`, and starts nothing before.
WAIT = ": >/out/began; until [ -e /out/go ]; do :; done; id -u; df -P / | tail -n1; ls /"
# A first process that has made a folder of a volume its root.
CHROOT = "mkdir -p /x/dev /x/proc /x/tmp /x/out; cp -a /bin /x/; exec chroot /x /bin/sleep 100000"


def start_chrooted(container, *options):
    name = container("busybox", "/bin/sh", "-c", CHROOT, options=(*NETWORK, "-v", "/x", *options))
    host.wait_until(lambda: Path(f"/proc/{host.find_pid(name)}/cmdline").read_bytes().startswith(b"/bin/sleep"))
    return name


def exchange(name, top, script):
    """Run SCRIPT in container NAME once the command waits, and let that go on; TOP is where the command's root is."""
    host.wait_until(lambda: host.run("docker", "exec", name, "ls", f"{top}/out/began", check=False).returncode == 0)
    host.docker("exec", name, "/bin/sh", "-c", f"{script}; mkdir {top}/out/go")


def run_under_exchange(name, top, script, function):
    """What FUNCTION returns while the container exchanges its folders."""
    thread = threading.Thread(target=exchange, args=(name, top, script))
    thread.start()
    try:
        return function()
    finally:
        thread.join()


def execute(name, **options):
    (result,) = host.execute(containers=[name], timeout="60s", **options)
    return result


def check(name, top, script, rights, **options):
    result = run_under_exchange(
        name, top, script, lambda: execute(name, argv=["bash", "-c", WAIT], rights=rights, **options)
    )
    assert result["stdout"].splitlines()[0] == "0", result
    return result["stdout"]


@pytest.mark.parametrize("rights", ["tools", "host"])
def test_in_another_root_than_the_mount_namespaces(container, rights):
    """Docker's default capabilities are enough for a first process to take another root."""
    name = start_chrooted(container)
    host.docker("exec", name, "/bin/sh", "-c", FAKE.format("/x/fake"))
    check(name, "/x", "mv /x/dev /x/gone && mv /x/fake /x/dev", rights)


@pytest.mark.parametrize("rights", ["tools", "host"])
def test_where_the_container_may_unmount(container, rights):
    name = container(options=(*NETWORK, "--cap-add", "SYS_ADMIN", "--security-opt", "apparmor=unconfined"))
    host.docker("exec", name, "/bin/sh", "-c", FAKE.format("/fake"))
    text = check(name, "", "umount -l /dev && mv /dev /gone && mv /fake /dev", rights)
    assert text.splitlines()[1].startswith("none ") and text.splitlines()[1].endswith(" /")
    assert {"bin", "etc", "proc", "sys", "out", "dev"} <= set(text.splitlines()[2:])


def test_a_prefix_that_nothing_of_the_container_is_mounted_on(container, tmp_path):
    image = build(tmp_path / "image", packages=["bash", "coreutils"], prefix="/opt/crashcart")
    assert image["sealed"]
    images.install(tmp_path / "image", "opt")
    name = container()
    host.docker("exec", name, "/bin/sh", "-c", "mkdir /opt /opt/app; " + FAKE.format("/fake"))
    script = "mv /opt /gone && mv /fake /opt"
    check(name, "", script, "host", image="opt")
    host.call_module("crashcart_image", name="opt", state="absent")


def test_through_the_connection(container, tmp_path):
    name = start_chrooted(container)
    host.docker("exec", name, "/bin/sh", "-c", FAKE.format("/x/fake"))
    command = {"argv": ["/dev/crashcart/bin/bash", "-c", WAIT]}
    done = run_under_exchange(
        name,
        "/x",
        "mv /x/dev /x/gone && mv /x/fake /x/dev",
        lambda: inside.run_task(tmp_path, name, "ansible.builtin.command", command, ansible_cart_rights="host"),
    )
    assert "rc=0 >>\n0\n" in done.stdout


@pytest.fixture(params=["docker", "podman", "containerd"])
def plain(request, container):
    """The name of a container with the usual capabilities, of one engine after the other."""
    if request.param == "docker":
        yield container()
        return
    name = f"cc-plain-{request.param}"
    with runtimes.run_podman(name) if request.param == "podman" else runtimes.run_ctr(name, "plain"):
        yield name


def test_the_root_is_the_containers_own_where_its_names_hold(plain):
    """What is told of its file system is true."""
    for rights in ("container", "tools", "host"):
        (line,) = execute(plain, argv=["df", "-P", "/"], rights=rights)["stdout"].splitlines()[1:]
        assert line.endswith(" /") and not line.startswith("none "), rights


def test_a_folder_in_the_place_of_proc_is_not_seen_with_more_rights_than_the_containers(container):
    """What is switched off in the tools is led to where the kernel has nothing."""
    name = start_chrooted(container)
    host.docker("exec", name, "mkdir", "/x/proc/0")
    for rights, text in (("container", "/proc/0\n"), ("tools", ""), ("host", "")):
        assert execute(name, argv=["bash", "-c", "ls -d /proc/0 2>&-; :"], rights=rights)["stdout"] == text, rights


@pytest.mark.parametrize("rights", ["container", "tools", "host"])
def test_nor_is_it_a_home_of_pythons_modules(container, rights):
    """Of the Python in gdb, which has no option against such."""
    name = start_chrooted(container)
    folder = "/x/proc/lib/python3.11/site-packages"
    script = f"""mkdir -p {folder}; echo 'open("/out/run", "w")' >{folder}/usercustomize.py"""
    host.docker("exec", name, "/bin/sh", "-c", script)
    result = execute(
        name,
        argv=["gdb", "-batch", "-ex", "python import site; print(repr(site.getusersitepackages()))"],
        rights=rights,
    )
    assert "python3.11/site-packages" in result["stdout"], result
    assert host.docker("exec", name, "ls", "/x/out") == ""


@pytest.mark.parametrize("rights", ["tools", "host"])
def test_a_folder_without_an_end_costs_its_container_alone(container, rights):
    """As a container may serve it: it is not read to its end."""
    good, bad = container(), container()
    host.docker("exec", bad, "/bin/sh", "-c", "cd /dev; seq 1 20001 | xargs touch")
    with pytest.raises(host.ModuleFailed, match="over 20000 entries") as failed:
        host.call_module("crashcart_exec", containers=[good, bad], argv=["true"], rights=rights)
    assert {one["container"]: one["rc"] for one in failed.value.result["results"]} == {good: 0, bad: -1}


def test_the_hosts_processes_are_found_behind_another_root(container):
    """What the first process cannot see, a tool that the container has taken over could reach."""
    name = start_chrooted(container, "-v", "/proc:/host/proc")
    with pytest.raises(host.ModuleFailed, match="host's processes are seen at '/host/proc'.*rights=container"):
        execute(name, argv=["true"])
    assert execute(name, argv=["true"], rights="container")["rc"] == 0
