# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A container cannot exchange the tools under a command that may do more than the container: not by moving what they are mounted in."""

from __future__ import annotations

import os
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


# A first process in namespaces of its own, where it may mount, which has given that up, and a child of it, which has not, that exchanges /dev.
IN_OWN_NAMESPACES = """
import ctypes, os, time
libc = ctypes.CDLL(None, use_errno=True)
def check(rc):
    if rc:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
check(libc.unshare(0x10000000 | 0x20000))
for name, text in (('setgroups', 'deny'), ('uid_map', '0 0 1'), ('gid_map', '0 0 1')):
    with open(f'/proc/self/{name}', 'w') as file:
        file.write(text)
for name in ('dev', 'proc', 'tmp', 'out', 'fake/crashcart/bin'):
    os.makedirs(f'/x/{name}')
with open('/x/fake/crashcart/bin/id', 'w') as file:
    file.write('echo EXCHANGED')  # which bash runs itself
os.chmod('/x/fake/crashcart/bin/id', 0o755)
check(libc.mount(b'tmpfs', b'/x/dev', b'tmpfs', 0, None))
check(libc.mount(b'/proc', b'/x/proc', None, 0x1000 | 0x4000, None))
if os.fork() == 0:
    while not os.path.exists('/x/out/began'):
        time.sleep(0.01)
    check(libc.umount2(b'/x/dev', 2))
    os.rename('/x/dev', '/x/gone')
    os.rename('/x/fake', '/x/dev')
    os.mkdir('/x/out/go')
    time.sleep(10000)
os.chroot('/x')
os.chdir('/')
check(libc.prctl(24, 21, 0, 0, 0))
os.mkdir('/ready')
time.sleep(10000)
"""


def start_chrooted(container, *options):
    name = container("busybox", "/bin/sh", "-c", CHROOT, options=(*NETWORK, "-v", "/x", *options))
    host.wait_until(lambda: Path(f"/proc/{host.find_pid(name)}/cmdline").read_bytes().startswith(b"/bin/sleep"))
    return name


def exchange(name, top, script):
    """Run SCRIPT in container NAME once the command waits, and let that go on; TOP is where the command's root is."""
    exchange_for(name, name, script, top)


def exchange_for(other, name, script, top=""):
    """Run SCRIPT in container OTHER once the command in container NAME waits, and let that go on."""
    host.wait_until(lambda: host.run("docker", "exec", name, "ls", f"{top}/out/began", check=False).returncode == 0)
    go = f"mkdir {top}/out/go"
    if other == name:  # of which nothing can be started behind that
        script = f"{script}; {go}"
    host.docker("exec", other, "/bin/sh", "-c", script)
    if other != name:
        host.docker("exec", name, "/bin/sh", "-c", go)


def run_under_exchange(name, top, script, function):
    """Call FUNCTION while the container exchanges its folders, and return its result."""
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


@pytest.mark.parametrize("rights", ["tools", "host"])
def test_in_namespaces_that_the_container_has_made(container, rights):
    """The maker of a user namespace may undo mounts there, whatever the first process says. Podman's profile lets everybody make one."""
    options = ("--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined")
    name = container("python", "/usr/bin/python3", "-c", IN_OWN_NAMESPACES, options=(*NETWORK, *options))
    host.wait_until(lambda: Path(f"/proc/{host.find_pid(name)}/root/ready").exists())
    result = execute(name, argv=["bash", "-c", WAIT], rights=rights)
    assert result["stdout"].splitlines()[0] == "0", result


def test_where_another_container_mounts(container, tmp_path):
    """By propagation, below a folder that both have. With rights=tools the call is refused: a /proc that the host has, too, may be its own."""
    shared = tmp_path / "shared"
    (shared / "r").mkdir(parents=True)
    host.run("mount", "--bind", str(shared), str(shared))
    try:
        host.run("mount", "--make-shared", str(shared))
        volume = f"type=bind,src={shared},dst=/s,bind-propagation="
        may_mount = ("--cap-add", "SYS_ADMIN", "--security-opt", "apparmor=unconfined")
        other = container(options=(*NETWORK, *may_mount, "--mount", volume + "rshared"))
        script = "mkdir -p /s/r/dev /s/r/proc /s/r/out /s/r/tmp; cp -a /bin /s/r/; mount -t tmpfs none /s/r/dev; mount -t proc none /s/r/proc"
        host.docker("exec", other, "/bin/sh", "-c", script)
        host.docker("exec", other, "/bin/sh", "-c", FAKE.format("/s/r/fake"))
        chroot = ("busybox", "/bin/sh", "-c", "exec chroot /s/r /bin/sleep 100000")
        name = container(*chroot, options=(*NETWORK, "--mount", volume + "rslave"))
        script = "umount /s/r/dev && mv /s/r/dev /s/r/gone && mv /s/r/fake /s/r/dev"
        thread = threading.Thread(target=exchange_for, args=(other, other, script, "/s/r"))
        thread.start()
        try:
            result = execute(name, argv=["bash", "-c", WAIT], rights="host")
        finally:
            thread.join()
        assert result["stdout"].splitlines()[0] == "0", result
        with pytest.raises(host.ModuleFailed, match="the host's processes are seen at '/s/r/proc'"):
            execute(name, argv=["true"], rights="tools")
    finally:
        for one in (name, other):
            host.docker("rm", "-f", one)
        host.run("umount", "-R", str(shared))


def test_a_volume_that_another_container_has_by_its_parent(container, tmp_path):
    """A folder that something is mounted on may be renamed wherever nothing is mounted on it."""
    build(tmp_path / "image", packages=["bash", "coreutils"], prefix="/srv/tools/crashcart")
    images.install(tmp_path / "image", "srv")
    volume, other_volume = (f"cc-{word}-{os.getpid()}" for word in ("srv", "tools"))
    try:
        other = container(options=(*NETWORK, "-v", f"{volume}:/v"))
        name = container(options=(*NETWORK, "-v", f"{volume}:/srv", "-v", f"{other_volume}:/srv/tools"))
        host.docker("exec", other, "/bin/sh", "-c", FAKE.format("/v/fake"))
        host.docker("exec", name, "mkdir", "/out")
        script = "mv /v/tools /v/gone && mv /v/fake /v/tools"
        thread = threading.Thread(target=exchange_for, args=(other, name, script))
        thread.start()
        try:
            result = execute(name, argv=["bash", "-c", WAIT], rights="host", image="srv")
        finally:
            thread.join()
        assert result["stdout"].splitlines()[0] == "0", result
    finally:
        for one in (name, other):
            host.docker("rm", "-f", one)
        host.docker("volume", "rm", volume, other_volume)
        host.call_module("crashcart_image", name="srv", state="absent")


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
    """The output of df for the container's file system is true."""
    for rights in ("container", "tools", "host"):
        (line,) = execute(plain, argv=["df", "-P", "/"], rights=rights)["stdout"].splitlines()[1:]
        assert line.endswith(" /") and not line.startswith("none "), rights


def test_a_folder_in_the_place_of_proc_is_not_seen_with_more_rights_than_the_containers(container):
    """Paths that are switched off in the tools lead to a place where the kernel has nothing."""
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


@pytest.mark.parametrize("rights", ["container", "tools", "host"])
def test_an_attached_image_that_was_moved_is_no_place_to_run_from(container, rights):
    name = start_chrooted(container)
    host.call_module("crashcart_attach", containers=[name])
    host.docker("exec", name, "/bin/sh", "-c", "mv /x/dev /x/foo; mkdir /x/dev")
    assert " /foo/crashcart " in host.read_container_mounts(name)
    assert execute(name, argv=["id", "-u"], rights=rights)["stdout"] == "0\n"
    assert execute(name, argv=["bash", "-c", "type -P id"], rights=rights)["stdout"] == "/dev/crashcart/bin/id\n"


@pytest.mark.parametrize("rights", ["tools", "host"])
def test_a_folder_without_an_end_costs_its_container_alone(container, rights):
    """A container may serve such a folder; the call does not read it to its end."""
    good, bad = container(), container()
    host.docker("exec", bad, "/bin/sh", "-c", "cd /dev; seq 1 20001 | xargs touch")
    with pytest.raises(host.ModuleFailed, match="over 20000 entries") as failed:
        host.call_module("crashcart_exec", containers=[good, bad], argv=["true"], rights=rights)
    assert {one["container"]: one["rc"] for one in failed.value.result["results"]} == {good: 0, bad: -1}


def test_the_hosts_processes_are_found_behind_another_root(container):
    """A tool that the container has taken over could reach processes that the first process cannot see."""
    name = start_chrooted(container, "-v", "/proc:/host/proc")
    with pytest.raises(host.ModuleFailed, match="host's processes are seen at '/host/proc'.*rights=container"):
        execute(name, argv=["true"])
    assert execute(name, argv=["true"], rights="container")["rc"] == 0
