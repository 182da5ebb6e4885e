# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers that other tools fail on, each a real one: attach, a shell's worth of tools, a command, detach, and nothing left."""

from __future__ import annotations

import os
import shlex

import pytest
from support import host, runtimes

BASH = "/dev/crashcart/bin/bash"
ASK = ("-c", "echo $((40 + 2))")


def enter(name, *command):
    """Run COMMAND of the host as its root in the mount namespace of container NAME, which may not do it itself."""
    return host.run("nsenter", "-t", str(host.find_pid(name)), "-m", "-p", *command).stdout


def check(name, *, ask=("docker", "exec")):
    """Everything of the tools works in container NAME, and it is afterwards as it was before."""
    before = host.read_container_mounts(name) if ask != ("podman", "exec") else None
    assert host.call_module("crashcart_attach", containers=[name])["changed"]
    if ask:
        assert host.run(*ask, name, BASH, *ASK).stdout == "42\n"
    (result,) = host.execute(containers=[name], argv=["bash", *ASK], rights="host")
    assert (result["rc"], result["stdout"]) == (0, "42\n")
    assert host.call_module("crashcart_attach", containers=[name], state="detached")["changed"]
    if before is not None:
        assert host.read_container_mounts(name) == before
        assert not os.path.lexists(f"/proc/{host.find_pid(name)}/root/dev/crashcart")
    host.wait_until_empty(host.list_loop_devices)
    (result,) = host.execute(containers=[name], argv=["bash", *ASK], rights="host")
    assert (result["rc"], result["stdout"]) == (0, "42\n")


OPTIONS = {
    "pid namespace of the host": ("--pid", "host"),
    "network of the host": ("--network", "host"),
    "ipc and uts of the host": ("--ipc", "host", "--uts", "host"),
    "everything shared and everything dropped": (
        *("--pid", "host", "--network", "host", "--read-only", "--cap-drop", "ALL"),
        *("--user", "1234:1235", "--security-opt", "no-new-privileges"),
    ),
    "no room": ("--memory", "16m", "--pids-limit", "4"),
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_options(container, kind):
    options = OPTIONS[kind]
    check(container("busybox", options=options if "--network" in options else ("--network", "none", *options)))


def test_a_command_in_the_pid_namespace_of_the_host_ends_alone(container):
    """The processes that the command leaves are killed, and no process of the host is."""
    name = container("busybox", options=("--network", "none", "--pid", "host"))
    with host.start("sleep", "4321") as stranger:
        argv = ["bash", "-c", "setsid sleep 4322 >/dev/null 2>&1 & exit 3"]
        (result,) = host.execute(containers=[name], argv=argv, rights="host")
        assert result["rc"] == 3
        assert stranger.poll() is None
        assert host.run("pgrep", "-xf", "sleep 4322", check=False).stdout == ""


def test_the_pid_namespace_of_another_container(container):
    first = container()
    check(container("busybox", options=("--network", "none", "--pid", f"container:{first}")))


@pytest.mark.parametrize(
    "change",
    [
        ("mount", "-o", "remount,hidepid=2", "/proc"),
        ("umount", "-l", "/proc"),
        ("mount", "-o", "remount,bind,noexec,nosuid", "/dev"),
        ("mount", "-o", "remount,bind,ro", "/dev"),
    ],
    ids=["processes hidden", "no proc", "dev is noexec", "dev is read-only"],
)
def test_mounts(container, change):
    name = container("busybox", options=("--network", "none", "--read-only"))
    enter(name, "/bin/busybox", *change)
    if "noexec" in change[-2]:
        assert "noexec" in host.read_container_mounts(name)
    check(name, ask=() if change[0] == "umount" else ("docker", "exec"))  # which itself needs /proc


def test_a_mount_of_somebody_else_in_the_way(container):
    name = container()
    enter(name, "/bin/mkdir", "/dev/crashcart")
    enter(name, "/bin/busybox", "mount", "-t", "tmpfs", "tmpfs", "/dev/crashcart")
    before = host.read_container_mounts(name)
    for state in ("attached", "detached"):
        if state == "attached":
            with pytest.raises(host.ModuleFailed, match=f"{name}: /dev/crashcart already holds a mount of tmpfs"):
                host.call_module("crashcart_attach", containers=[name])
        else:
            assert not host.call_module("crashcart_attach", containers=[name], state="detached")["changed"]
        assert host.read_container_mounts(name) == before
    (result,) = host.execute(containers=[name], argv=["bash", *ASK], rights="host")
    assert result["stdout"] == "42\n"


def test_what_a_mount_in_the_way_is_of_stays_in_its_line(container):
    name = container()
    enter(name, "/bin/mkdir", "/dev/crashcart")
    enter(name, "/bin/busybox", "mount", "-t", "tmpfs", "x\nok: [host]\u2028\x1b[2J", "/dev/crashcart")
    with pytest.raises(host.ModuleFailed, match=r"a mount of x\\nok: \[host\]\\u2028\\x1b\[2J \(tmpfs\)"):
        host.call_module("crashcart_attach", containers=[name])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("rm -r /x/dev", "that is not there"),
        ("rm -r /x/dev; ln -s tmp /x/dev", "that is a symbolic link"),
        ("rm -r /x/dev; touch /x/dev", "that is no folder"),
    ],
)
@pytest.mark.parametrize("rights", ["container", "tools"])
def test_a_root_without_a_folder_for_the_tools(container, change, why, rights):
    script = f"mkdir -p /x/dev /x/proc /x/tmp; cp -a /bin /x/; {change}; exec chroot /x /bin/sleep 100000"
    name = container("busybox", "/bin/sh", "-c", script, options=("--network", "none", "-v", "/x"))
    host.wait_until(lambda: host.list_commands(name) == ["/bin/sleep 100000"])
    with pytest.raises(host.ModuleFailed, match=f"the tools go into /dev, and in the container {why}.*: give it"):
        host.call_module("crashcart_exec", containers=[name], argv=["true"], rights=rights)


@pytest.mark.parametrize("check_mode", [True, False])
def test_a_folder_of_the_host_that_is_read_only_is_left_alone(container, check_mode):
    name = container("busybox", options=("--network", "none", "--volume", "/dev:/dev:ro"))
    with pytest.raises(
        host.ModuleFailed, match=f"{name} at /dev/crashcart: its folder there is the host's, mounted read-only"
    ):
        host.call_module("crashcart_attach", containers=[name], check_mode=check_mode)
    assert not os.path.lexists("/dev/crashcart")
    (result,) = host.execute(containers=[name], argv=["bash", *ASK], rights="host")
    assert result["stdout"] == "42\n", result
    assert not os.path.lexists("/dev/crashcart")


def test_a_restarted_container_starts_without_and_takes_them_again(container):
    name = container()
    host.call_module("crashcart_attach", containers=[name])
    host.docker("restart", "-t", "0", name)
    assert "/dev/crashcart" not in host.read_container_mounts(name)
    host.wait_until_empty(host.list_loop_devices)
    check(name)


def test_a_container_in_a_container(container):
    """The outer one by its name; the inner one, which no engine of the host knows, by its process."""
    inner = "exec /bin/busybox unshare -m -p -f /bin/sh -c '/bin/mount -t tmpfs tmpfs /dev; exec /bin/sleep 4321'"
    options = ("--network", "none", "--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined")
    outer = container("busybox", "/bin/sh", "-c", f"{inner} & wait", options=options)
    host.wait_until(lambda: host.run("pgrep", "-xf", "/bin/sleep 4321", check=False).stdout)
    pid = host.run("pgrep", "-xf", "/bin/sleep 4321").stdout.strip()
    host.wait_until(lambda: host.run("cat", f"/proc/{pid}/comm").stdout == "sleep\n")
    check(outer)
    (attachment,) = host.call_module("crashcart_attach", containers=[f"pid:{pid}"])["attachments"]
    assert (
        host.run("sh", "-c", shlex.join(shlex.split(attachment["shell"])[:-3]) + f" {shlex.join(ASK)}").stdout == "42\n"
    )
    assert "/dev/crashcart" not in host.read_container_mounts(outer)
    assert host.call_module("crashcart_attach", containers=[f"pid:{pid}"], state="detached")["changed"]
    host.wait_until_empty(host.list_loop_devices)


def test_a_user_namespace():
    """/dev is a file system of that namespace, in which the host's root is nobody."""
    with runtimes.run_podman("cc-mapped", "--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"):
        check("cc-mapped", ask=("podman", "exec"))
        host.call_module("crashcart_attach", containers=["cc-mapped"])
        assert host.run("podman", "exec", "cc-mapped", f"{BASH[:-4]}id", "-u").stdout == "0\n"
        host.call_module("crashcart_attach", containers=["cc-mapped"], state="detached")
        assert "crashcart" not in host.run("podman", "exec", "cc-mapped", "/bin/ls", "/dev").stdout
    host.wait_until_empty(host.list_loop_devices)


@pytest.mark.parametrize(
    "change",
    [
        "mount -t tmpfs none /dev/crashcart",
        "mount -t tmpfs none /dev/crashcart/bin",
        "mount --bind /dev/crashcart/share /dev/crashcart",
        "mkdir /dev/crashcart-2; mount --bind /dev/crashcart /dev/crashcart-2",
        "mkdir /dev/crashcart-2; mount --bind /dev/crashcart/bin /dev/crashcart-2; umount -l /dev/crashcart",
        "mkdir /opt; mount -t tmpfs none /opt; mkdir /opt/crashcart; mount --bind /dev/crashcart /opt/crashcart",
    ],
)
def test_what_the_container_mounts_over_the_tools_or_makes_of_them_is_no_matter_to_a_command(container, change):
    unconfined = ("--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined")
    name = container(options=("--network", "none", "--cap-add", "SYS_ADMIN", *unconfined))
    host.call_module("crashcart_attach", containers=[name])
    host.docker("exec", name, "/bin/sh", "-ec", change)
    (result,) = host.call_module("crashcart_exec", containers=[name], argv=["sh", "-c", "echo $0 $PATH; ss -V"])[
        "results"
    ]
    assert (result["rc"], result["stdout_lines"][0]) == (0, "sh /dev/crashcart/bin:/dev/crashcart/sbin"), result
    host.docker("kill", name)
