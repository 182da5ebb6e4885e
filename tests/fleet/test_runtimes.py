# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Test hosts that differ: a kernel with kprobes, hosts without an engine, and runtimes that only a real host has."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import golden
import guest
import pytest
from conftest import NOISY, build, each, play, same
from fleet import start_containers
from machine import seconds
from modules import ModuleServer
from support import every_kernel
from support.rights import LOOK

HOLD = "/bin/sleep 1000"
_QEMU = "/usr/bin/qemu-aarch64-static"
_BINFMT = "/proc/sys/fs/binfmt_misc"
# The first bytes of programs of arm64, in the kernel's form: admin-guide/binfmt-misc.rst. With F the kernel holds QEMU open, so that containers
# need not have it.
_ARM64 = (
    rb":crashcart-arm64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:"
    rb"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:" + f"{_QEMU}:F".encode()
)
HOOK_PROGRAM = "/usr/libexec/crashcart/start-hook"
LIST_HOOK_FILES = (
    "find /etc/cdi /usr/share/containers/oci/hooks.d /etc/crashcart /usr/libexec/crashcart 2>/dev/null | sort"
)
# Prints the command line of the container's first process, and the host's user that is root there.
WHERE = ["bash", "-c", "echo $(tr '\\0' ' ' </proc/1/cmdline)/ $(cat /proc/1/uid_map)"]


@pytest.fixture
def one_without_docker(hosts):
    """Stop the second host's Docker during the test."""
    hosts[1].run("systemctl stop docker.socket docker.service containerd")
    yield
    start_containers(hosts[1])


def test_hosts_that_lack_something(hosts, installed, one_without_docker, tmp_path):
    """Check an attach with one host without an engine and one that is down. Then each host runs tests of its own at the same time."""
    hosts[2].machine.call("stop")
    try:
        run = play("attach", "-l", "fleet", "-T", "10", containers=NOISY)
    finally:
        hosts[2].machine.call("cont")
    assert run.count("changed")["host1"] == 1, run.output
    assert (
        "no Docker engine answers at unix:///var/run/docker.sock: start it"
        in run.find("See whether the host can do it")["host2"]["msg"]
    )
    assert run.count("unreachable") == {"host1": 0, "host2": 0, "host3": 1}
    each(
        hosts,
        lambda host: tell(host, lambda guest_: check_kernel(guest_, tmp_path)),
        lambda host: tell(host, check_podman, check_start_hook_with_crun, check_remapped_docker),
        lambda host: tell(host, check_without_engine, check_apparmor),
    )
    assert {host.name: host.run("losetup -a | wc -l").strip() for host in hosts} == {**same("0"), "host1": "1"}


class Guest:
    """HOST in the form that the checks for every kernel need. SERVER runs its modules."""

    def __init__(self, host, server):
        self._server = server
        self.run = host.run

    def call(self, module, **arguments):
        return self._server.call(module, arguments)

    def fetch(self, dest, **selection):
        return self._server.fetch(dest, selection)


def tell(host, *stories):
    """Run STORIES on HOST one after the other."""
    with ModuleServer(host) as server:
        for story in stories:
            story(Guest(host, server))


def check_kernel(host, folder):
    """Run the checks for every kernel on HOST, in a container that uses the host's Python."""
    every_kernel.check_all(host, golden.IMAGE, folder)


def check_remapped_docker(host):
    """Check a second Docker engine, whose containers' root is an unprivileged user on the host."""
    docker = "docker -H unix:///run/remapped/docker.sock"
    host.run(
        "systemd-run -q --collect --unit remapped dockerd -H unix:///run/remapped/docker.sock --data-root /srv/remapped "
        "--exec-root /run/remapped --pidfile /run/remapped/pid --containerd-namespace remapped --containerd-plugins-namespace "
        f"remapped-plugins --cgroup-parent shop-all.slice --userns-remap {guest.USER}; "
        f"until {docker} version >/dev/null 2>&1; do sleep 0.2; done; "
        f"tar -c -C {golden.TREE} . | {docker} import - {golden.IMAGE}; "
        f"{docker} run -d --name mapped --network none {golden.IMAGE} {HOLD}"
    )
    chosen = {"docker_host": "unix:///run/remapped/docker.sock", "containers": "mapped"}
    try:
        check_all(host, chosen, {"mapped": "100000"})
        check_contained(host, docker, chosen)
        # The engine's own settings decide on a container's cgroup. Only its running containers show them to the module.
        host.run(f"{docker} create --name later --network none {golden.IMAGE} cat /nonesuch")
        later = {**chosen, "containers": "later"}
        (awaited,) = host.call("ftrace_instance", **later, profile="startup")["instances"]
        trace = f"{every_kernel.host.TRACEFS}/instances/{awaited['name']}/trace"
        host.run(f"{docker} start later; {docker} wait later; grep ' cat-.* sys_exit: NR 257 = -2$' {trace}")
        host.call("ftrace_instance", **later, state="absent")
    finally:
        host.run(f"{docker} rm -f mapped later; systemctl stop remapped")


def check_rootless_docker(host):
    """Check a user's own Docker engine in the user's own namespaces, as dockerd-rootless.sh starts it."""
    with user_session(host) as (uid, own):
        socket = f"unix:///run/user/{uid}/docker.sock"
        docker = f"docker -H {socket}"
        # /run is a copy whose links lead to root's own folders.
        inside = (
            "rm -f /run/docker /run/containerd /run/xtables.lock; "
            f"exec dockerd --rootless -H {socket} --bridge=none --iptables=false --ip6tables=false --storage-driver vfs"
        )
        host.run(
            f"({own} systemd-run --user -q --collect --unit rootless -p Delegate=yes rootlesskit --net=slirp4netns "
            f"--disable-host-loopback --state-dir=/run/user/{uid}/rootlesskit --copy-up=/etc --copy-up=/run "
            f"--propagation=rslave sh -c '{inside}'); "
            f"for try in $(seq 300); do {docker} version >/dev/null 2>&1 && break; sleep 0.2; done; "
            f"{docker} version >/dev/null || {{ journalctl -n 20 _UID={uid}; exit 1; }}; "
            f"tar -c -C {golden.TREE} . | {docker} import - {golden.IMAGE}; "
            f"{docker} run -d --name rootless --network none {golden.IMAGE} {HOLD}"
        )
        chosen = {"docker_host": socket, "containers": "rootless"}
        try:
            check_all(host, chosen, {"rootless": uid})
            check_contained(host, docker, chosen)
            (traced,) = host.call("ftrace_instance", **chosen)["instances"]
            trace = f"{every_kernel.host.TRACEFS}/instances/{traced['name']}/trace"
            host.run(f"{docker} exec rootless cat /nonesuch; grep ' cat-.* sys_exit: NR 257 = -2$' {trace}")
            host.call("ftrace_instance", **chosen, state="absent")
        finally:
            host.run(f"{docker} rm -f rootless; ({own} systemctl --user stop rootless)")


@contextmanager
def user_session(host):
    """Let a session of the guest's user run on HOST until the context ends, and give the user's number and the words before a command of it."""
    uid = host.run(f"id -u {guest.USER}").strip()
    host.run(f"loginctl enable-linger {guest.USER}; until test -S /run/user/{uid}/bus; do sleep 0.2; done")
    try:
        session = f"XDG_RUNTIME_DIR=/run/user/{uid} DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/{uid}/bus"
        yield uid, f"cd / && runuser -u {guest.USER} -- env {session} HOME=/home/{guest.USER}"
    finally:
        host.run(f"loginctl disable-linger {guest.USER}")


def check_contained(host, docker, chosen):
    """Check in the containers that CHOSEN selects that a command with rights=container has the rights of `docker exec`."""
    results = host.call("crashcart_exec", **chosen, argv=["/bin/sh", "-c", LOOK], rights="container")["results"]
    assert results
    for one in results:
        wanted = host.run(f"{docker} exec -i {one['container']} /bin/sh", LOOK.encode())
        assert (one["rc"], one["stdout"]) == (0, wanted), one


def check_all(host, chosen, owners):
    """Check attach, a command and detach in the containers that CHOSEN selects.

    OWNERS maps the name of each container to the number of the host's user that is root in it.
    """
    attached = host.call("crashcart_attach", **chosen)
    assert attached["changed"]
    assert {one["container"] for one in attached["attachments"]} == set(owners)
    for one in attached["attachments"]:
        assert " ro," in host.run(f"grep ' /dev/crashcart ro' /proc/{one['pid']}/mountinfo")
    results = {one["container"]: one for one in host.call("crashcart_exec", **chosen, argv=WHERE)["results"]}
    assert set(results) == set(owners)
    for name, owner in owners.items():
        command, _slash, numbers = results[name]["stdout"].partition("/ ")
        assert (results[name]["rc"], HOLD in "/bin/" + command.rpartition("/")[2]) == (0, True), results[name]
        assert numbers.split()[:2] == ["0", owner], results[name]
    assert host.call("crashcart_attach", **chosen, state="detached")["changed"]
    for one in attached["attachments"]:
        assert host.run(f"grep ' /dev/crashcart ' /proc/{one['pid']}/mountinfo || true") == ""


def check_rule_with_crun(host, run):
    """Check that a rule traces what crun starts, and names a container without a control group, which only crun can have."""
    host.call("ftrace_instance", state="awaiting", rule="crun", containers=["rule-*"])
    for name in ("rule-none", "other-none"):
        host.run(f"podman {run} {name} --cgroups=disabled localhost/{golden.IMAGE} {HOLD}")
    host.run(
        f"podman run --rm --network none --name rule-one localhost/{golden.IMAGE} cat /nonesuch 2>/dev/null; [ $? = 1 ]"
    )

    def find_rule():
        (instance,) = host.call("ftrace_info", gather=["instances"])["instances"]
        return instance["rule"]

    deadline = time.monotonic() + seconds(60)
    while not find_rule()["troubles"]:
        assert time.monotonic() < deadline, find_rule()
    found = find_rule()
    (trouble,) = found["troubles"]
    assert trouble.startswith("container rule-none was not traced: it has no control group of its own"), found
    assert [one["name"] for one in found["latest"] if one["verdict"] == "traced"] == ["rule-one"], found
    host.call("ftrace_instance", state="absent", everything=True)


# How a container asks for a profile of the start hook.
ASKING = {"device": "--device crashcart.fleet/trace=startup", "note": "--annotation crashcart.trace=startup"}


def check_start_hook_with_crun(host):
    """Check that crun starts a container when its trace is on, for a device and for an annotation."""
    before = host.run(LIST_HOOK_FILES)
    host.call("ftrace_hook", ways=["cdi", "hooks"], profiles=[{"name": "startup", "buffer_size": "4MiB"}])
    host.run(f"{HOOK_PROGRAM} begin startup")
    try:
        with tempfile.TemporaryDirectory() as folder:
            for kind in ASKING:
                _check_asking(host, kind, Path(folder, kind))
    finally:
        host.call("ftrace_instance", state="absent", everything=True)
        # Docker may be down, and could not tell of its containers.
        host.call("ftrace_hook", state="absent", force=True)
    assert host.run(LIST_HOOK_FILES) == before


def _check_asking(host, kind, folder):
    """Check a container that asks by the KIND of ASKING. FOLDER is for its capture."""
    for number in range(5):
        name = f"hook-{kind}-{number}"
        known = list_hook_troubles(host)
        words = f"podman run --rm --network none --name {name} {ASKING[kind]} localhost/{golden.IMAGE} cat /nonesuch"
        # The container has its own exit status whatever becomes of its trace.
        assert "/nonesuch" in host.run(f"{words} 2>&1; [ $? = 1 ]")
        why = list_hook_troubles(host)[len(known) :]
        # An emulated guest may take longer than a start waits.
        assert all("not on within" in one for one in why), why
        if not why:
            break
    found = {one["manifest"]["container"]["name"]: one["manifest"] for one in host.fetch(folder)}
    manifest = found[name]
    assert (manifest["complete"], manifest["has_run"], manifest["reasons"]) == (True, True, [])
    assert manifest["container"]["runtime"] == "podman"
    summaries = every_kernel.report(folder, folder / "report")
    (summary,) = (one for one in summaries if one["container"] == name)
    assert {row["name"] for row in summary["processes"]} == {"cat"}
    assert every_kernel.count(summary)["openat"]["errors"]["ENOENT"] >= 1


def list_hook_troubles(host):
    return [trouble["why"] for trouble in host.call("ftrace_info", gather=["start_hook"])["start_hook"]["troubles"]]


def check_podman(host):
    """Check Podman with crun, root's and a user's own, by its command and by its API, while the host's Docker does not run.

    One container is in a crash loop, and a trace awaits its next start.
    """
    with user_session(host) as (uid, own):
        _check_podman(host, uid, f"{own} podman")


def _check_podman(host, uid, podman):
    """Check root's Podman, and that of the user UID, whose command is PODMAN."""
    host.run(f"tar -c -C {golden.TREE} . | ({podman} import - busybox)")
    run = "run -d --network none --name"
    host.run(f"{podman} {run} own-web localhost/busybox {HOLD}")
    host.run(f"podman {run} pod-web localhost/{golden.IMAGE} {HOLD}")
    host.run(f"podman {run} pod-map --uidmap 0:200000:65536 localhost/{golden.IMAGE} {HOLD}")
    own = f"podman:{uid}/own-web"
    chosen = {"containers": ["pod-*", own]}
    try:
        check_all(host, chosen, {"pod-web": "0", "pod-map": "200000", "own-web": uid})
        traced = host.call("ftrace_instance", containers=[own, "pod-web"])["instances"]
        assert {one["container"]: one["followed"]["exec"] for one in traced} == {"own-web": "watch", "pod-web": "watch"}
        host.run(f"podman {run} pod-loop --restart always localhost/{golden.IMAGE} /bin/sh -c 'cat /nonesuch; exit 1'")
        loop = {"containers": ["pod-loop"], "profile": "startup"}
        (awaited,) = host.call("ftrace_instance", **loop)["instances"]
        trace = f"{every_kernel.host.TRACEFS}/instances/{awaited['name']}/trace"
        # Two starts at least are in the trace, without crun's own calls.
        seen = f"[ $(grep -c ' cat-.* sys_exit: NR 257 = -2$' {trace}) -ge 2 ]"
        host.run(f"for try in $(seq 300); do {seen} && break; sleep 0.1; done; {seen} && ! grep crun- {trace}")
        host.run("systemctl start podman.socket")
        assert not host.call("ftrace_instance", **loop)["changed"]
        served = {**loop, "docker_host": "unix:///run/podman/podman.sock"}
        (awaited,) = host.call("ftrace_instance", **served)["instances"]
        assert (awaited["created"], awaited["followed"]["exec"]) == (False, "watch")
        assert host.call("ftrace_instance", state="absent", everything=True)["changed"]
        check_rule_with_crun(host, run)
        done = host.call("crashcart_exec", containers="pod-web", argv=["true"])
        assert [(one["container"], one["rc"]) for one in done["results"]] == [("pod-web", 0)]
    finally:
        host.run(f"podman rm -f -t 0 pod-web pod-map pod-loop rule-none other-none; {podman} rm -f -t 0 own-web")
        host.run("systemctl stop podman.socket podman.service; rm -r /run/libpod")


def check_foreign_architecture(host):
    """Check a container of arm64, whose programs QEMU's user emulation runs. The tools are of the host's architecture, and run natively."""
    subprocess.run([golden.TOOLS / "install_packages.sh", "qemu-user-static", "squashfs-tools"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder, "image"), ["coreutils"], arch="arm64", prefix="/opt/crashcart-arm")
        top = Path(folder, "tree")
        top.joinpath("opt").mkdir(parents=True)
        subprocess.run(
            ["unsquashfs", "-quiet", "-no-progress", "-d", top / "opt/crashcart-arm", Path(folder, "image")], check=True
        )
        archive = subprocess.run(["tar", "-c", "-C", top, "."], check=True, capture_output=True).stdout
    host.run(f"cat >{_QEMU} && chmod 755 {_QEMU}", Path(_QEMU).read_bytes())
    host.run(
        f"modprobe binfmt_misc; mountpoint -q {_BINFMT} || mount -t binfmt_misc binfmt_misc {_BINFMT}; cat >{_BINFMT}/register",
        _ARM64,
    )
    host.run("docker import - foreign", archive)
    uname = ["/opt/crashcart-arm/bin/uname", "-m"]
    try:
        host.run(f"docker run -d --name foreign --network none foreign /opt/crashcart-arm{HOLD}")
        assert host.run(f"docker exec foreign {' '.join(uname)}") == "aarch64\n"
        check_all(host, {"containers": "foreign"}, {"foreign": "0"})
        for argv, machine in ((uname, "aarch64"), (["uname", "-m"], "x86_64")):
            (ran,) = host.call("crashcart_exec", containers="foreign", argv=argv)["results"]
            assert (ran["rc"], ran["stdout"]) == (0, f"{machine}\n"), ran
    finally:
        host.run(f"docker rm -f foreign; docker rmi foreign; echo -1 >{_BINFMT}/crashcart-arm64; rm {_QEMU}")


# Makes a bundle for OCI runtimes in the folder $1 with the annotations $2 and the command $3….
BUNDLE = """\
import json, shutil, subprocess, sys
folder, annotations, *command = sys.argv[1:]
shutil.copytree("/srv/busybox", folder + "/rootfs")
subprocess.run(["crun", "spec"], cwd=folder, check=True)
with open(folder + "/config.json") as file:
    configuration = json.load(file)
configuration["process"].update(terminal=False, args=command)
configuration["annotations"] = json.loads(annotations)
with open(folder + "/config.json", "w") as file:
    json.dump(configuration, file)
"""
POD = {
    "io.kubernetes.cri-o.ContainerType": "container",
    "io.kubernetes.container.name": "app",
    "io.kubernetes.pod.name": "api-7d9f",
    "io.kubernetes.pod.namespace": "shop",
}
MACHINES = {
    "/etc/systemd/nspawn/box-two.nspawn": f"[Exec]\nBoot=no\nParameters={HOLD}\nPrivateUsers=300000:65536\n[Network]\nPrivate=yes\n",
    "/var/lib/lxc/box-lxc/config": "lxc.uts.name = box-lxc\nlxc.rootfs.path = dir:/srv/box-lxc\nlxc.net.0.type = empty\n"
    f"lxc.mount.auto = proc sys\nlxc.apparmor.profile = unconfined\nlxc.init.cmd = {HOLD}\n",
}


def check_without_engine(host):
    """Check systemd-nspawn (as a command, and as a service with a user namespace), LXC, a pod of CRI-O, and a nested container."""
    for path, text in MACHINES.items():
        host.run(f"mkdir -p {Path(path).parent}; cat >{path}", text.encode())
    host.run("cat >/root/bundle.py", BUNDLE.encode())
    inner = "/bin/sleep 1000.5"
    pod_id = "ab" * 32
    shared = " ".join(f"-v {path}:{path}:ro" for path in ("/usr", "/lib", "/lib64"))
    host.run(
        "set -e; mkdir -p /srv/pod /srv/inner /var/lib/machines\n"
        f"for place in /srv/box-one /var/lib/machines/box-two /srv/box-lxc; do cp -a {golden.TREE} $place; done\n"
        "mkdir -p /srv/box-lxc/dev /srv/box-lxc/proc /srv/box-lxc/sys\n"
        f"systemd-run -q --collect --unit box-one systemd-nspawn -q -D /srv/box-one -M box-one --private-network {HOLD}\n"
        "systemctl start systemd-nspawn@box-two\n"
        "lxc-start -n box-lxc\n"
        f"python3 /root/bundle.py /srv/pod '{json.dumps(POD)}' {HOLD}\n"
        f"crun --root /run/crun run -d -b /srv/pod {pod_id} </dev/null >/dev/null 2>&1\n"
        f"python3 /root/bundle.py /srv/inner '{{}}' {inner}\n"
        f"docker run -d --name outer --privileged --network none {shared} -v /srv/inner:/inner {golden.IMAGE} {HOLD}\n"
        "docker exec outer crun --root /tmp/crun --cgroup-manager disabled run -d -b /inner nested </dev/null >/dev/null 2>&1\n"
    )
    nested = "pid:" + host.run(f"pgrep -x -f '{inner}'").strip()
    owners = {"box-one": "0", "box-two": "300000", "box-lxc": "0", "shop/api-7d9f/app": "0", "outer": "0", nested: "0"}
    try:
        listed = {
            one["name"]: one["runtime"] for one in host.call("crashcart_info", gather=["containers"])["containers"]
        }
        wanted = {
            "box-one": "systemd-nspawn",
            "box-two": "systemd-nspawn",
            "box-lxc": "lxc",
            "shop/api-7d9f/app": "cri-o",
        }
        assert wanted.items() <= listed.items()
        check_all(host, {"containers": list(owners)}, owners)
    finally:
        host.run(
            f"docker rm -f outer; crun --root /run/crun delete -f {pod_id}; lxc-stop -k -n box-lxc; "
            "systemctl stop box-one systemd-nspawn@box-two"
        )


# Name → options of `docker run`, and the AppArmor label that they lead to.
LABELLED = {
    "plain": ("", "docker-default (enforce)"),
    "user": ("--user 1234:1235 --cap-drop ALL", "docker-default (enforce)"),
    "all": ("--cap-add ALL --security-opt no-new-privileges", "docker-default (enforce)"),
    "free": ("--privileged", "unconfined"),
    "trusted": ("--cap-add ALL --security-opt apparmor=unconfined", "unconfined"),
}


def check_apparmor(host):
    """Check that a command with rights=container has the container's AppArmor label, and that the label's profile restricts it.

    The kernel of the machine that runs these tests may lack AppArmor, so this needs a guest.
    """
    for name, (options, _label) in LABELLED.items():
        host.run(f"docker run -d --name label-{name} --network none {options} {golden.IMAGE} {HOLD}")
    try:
        check_contained(host, "docker", {"containers": "label-*"})
        # The capabilities and the seccomp filter of "all" allow the mount. Only its AppArmor profile forbids it.
        argv = [
            "/bin/sh",
            "-c",
            "cat /proc/self/attr/current; mkdir /m && mount -t tmpfs tmpfs /m && echo mounted; true",
        ]
        wish = {"containers": "label-*", "argv": argv, "rights": "container"}
        results = {one["container"][len("label-") :]: one for one in host.call("crashcart_exec", **wish)["results"]}
        assert {name: one["stdout_lines"] for name, one in results.items()} == {
            name: [label, *(["mounted"] if name in ("free", "trusted") else [])]
            for name, (_options, label) in LABELLED.items()
        }
        assert "permission denied" in results["all"]["stderr"].lower()
    finally:
        host.run(f"docker rm -f {' '.join('label-' + name for name in LABELLED)}")
