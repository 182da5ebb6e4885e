# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection on three real hosts at once: over ssh with an unprivileged login and become.

In the order in which they stand these tests are one story, from install to cleanup, since each step takes its time on
emulated hosts; each of them can also be run alone.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

import golden
from conftest import NAMES, Run, build, call, finish, on_all, play, start_ansible, start_play
from fleet import start_containers
from support import every_kernel, images

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import store

WRITES = 60_000  # of one byte each
NOISY = "shop-web"  # the one whose loop fails again and again
CENSUS = (
    "losetup -a; ls /sys/kernel/tracing/instances; ls -d /run/crashcart /var/lib/crashcart 2>/dev/null; "
    "cat /proc/*/mountinfo 2>/dev/null | grep crashcart; true"
)


def same(value):
    """VALUE for each of the three hosts."""
    return {"host1": value, "host2": value, "host3": value}


def list_processes(capture, name, syscall):
    return [row for row in capture["processes"] if (row["name"], row["syscall"]) == (name, syscall)]


def test_hosts_are_themselves(hosts):
    files = "/etc/machine-id /proc/sys/kernel/random/boot_id /etc/ssh/ssh_host_ed25519_key.pub"
    command = f"hostname; cat {files}; head -c 8 /dev/urandom | od -An -x; date +%s"
    answers = on_all(lambda host: host.run(command).split("\n"), hosts)
    for what in range(5):
        assert len({answer[what] for answer in answers}) == 3, answers
    assert all(abs(float(answer[5]) - time.time()) < 10 for answer in answers)


def test_hosts_have_what_a_kernel_of_debian_has(hosts):
    info = call("host1", "crashcart_info", {})["host"]
    assert (info["cgroups"], info["tracefs"]) == ("v2", "/sys/kernel/tracing")
    assert {one["ok"] for one in info["features"]} == {True}
    offered = call("host1", "ftrace_info", {})["available"]
    assert {"kprobe", "uprobe", "synthetic"} <= set(offered["probes"])
    assert "function_graph" in offered["tracers"]


def test_an_unprivileged_login_is_told_what_it_lacks(hosts):
    features = {
        one["name"]: one["reason"] for one in call("host1", "crashcart_info", {}, become=False)["host"]["features"]
    }
    assert features["squashfs"] == ""
    assert "use become" in features["mount_api"]
    assert "use become" in features["tracefs"]
    refused = call("host1", "crashcart_attach", {"containers": "*"}, become=False, check=False)
    assert "needs root on the host" in refused["msg"]


def test_install(installed, image):
    digest = json.loads(image.with_suffix(".squashfs.json").read_text())["digest"]
    assert {host: one["image"]["digest"] for host, one in installed.find("Push the tool image").items()} == same(digest)
    assert all("cgroups v2, Docker 20" in one["msg"] for one in installed.find("Say what the host is").values())


def test_a_push_without_pipelining(hosts, installed, image):
    """Then modules are files on the host, in the same folder as the image on its way."""
    pushed = call("host2", "crashcart_image", {"src": str(image), "name": "again"}, ansible_pipelining=False)
    assert (pushed["changed"], pushed["image"]["name"]) == (True, "again")
    assert not call("host2", "crashcart_image", {"src": str(image), "name": "again"}, ansible_pipelining=False)[
        "changed"
    ]
    assert call("host2", "crashcart_image", {"name": "again", "state": "absent"})["changed"]
    assert hosts[1].run("find /root/.ansible /home/*/.ansible -type f 2>/dev/null; true") == ""


def test_attach_and_detach(hosts, installed):
    predicted = play("attach", "-l", "host2", "--check")
    assert predicted.count("changed") == {"host2": 1}
    assert hosts[1].run("losetup -a") == ""
    run = play("attach", "-l", "fleet", "-f", "2", "-e", "ansible_pipelining=false", serial=2)
    assert run.count("changed") == same(1), run.output
    for one in run.find("Attach").values():
        assert sorted(attachment["container"] for attachment in one["attachments"]) == sorted(NAMES)
    assert play("detach").count("changed") == same(1)
    assert "".join(on_all(lambda host: host.run("losetup -a"), hosts)) == ""


def test_trace(hosts, installed, tmp_path):
    run = play("trace", seconds=4, dest=str(tmp_path), containers=NOISY)
    assert run.count("failures") == same(0), run.output
    summary = json.loads((tmp_path / "report/summary.json").read_text())
    assert len(summary["captures"]) == 3
    for capture in summary["captures"]:
        failing = list_processes(capture, "cat", "openat")
        assert sum(row["errors"].get("ENOENT", 0) for row in failing) >= 1, capture
    assert on_all(lambda host: host.run("ls /sys/kernel/tracing/instances"), hosts) == [""] * 3


def test_one_host_without_an_engine_and_one_that_is_down(hosts, installed):
    hosts[1].run("systemctl stop docker.socket docker.service")
    hosts[2].machine.call("stop")
    try:
        run = play("attach", "-l", "fleet", "-T", "10", containers=NOISY)
    finally:
        hosts[2].machine.call("cont")
        start_containers(hosts[1])
    assert run.count("changed")["host1"] == 1, run.output
    assert "no Docker engine answers at unix:///var/run/docker.sock: start it" in run.find("Attach")["host2"]["msg"]
    assert run.count("unreachable") == {"host1": 0, "host2": 0, "host3": 1}


def fill_a_trace(host):
    """A stopped instance of the noisy container that holds some MB."""
    call(host.name, "ftrace_instance", {"containers": NOISY, "buffer_size": "32MiB"})
    host.run(f"docker exec {NOISY} busybox dd if=/dev/zero of=/dev/null bs=1 count={WRITES} 2>/dev/null")
    call(host.name, "ftrace_instance", {"containers": NOISY, "state": "stopped"})


def test_a_network_that_comes_back_in_the_middle_of_a_collection(hosts, installed, tmp_path):
    host = hosts[0]
    on_all(fill_a_trace, hosts)
    process = start_play("collect", dest=str(tmp_path))
    wait_for_file(host, "/home/*/.ansible/tmp/*/captures", process)
    host.machine.call("set_link", name="net", up=False)
    time.sleep(4)
    host.machine.call("set_link", name="net", up=True)
    run = Run(process)
    assert run.count("failures") == same(0), run.output
    for name in same(0):
        (path,) = tmp_path.glob(f"{name}/{NOISY}/*.dat")
        manifest = json.loads(path.with_suffix(".json").read_text())
        whole = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
        assert whole == manifest["sha256"]
        assert manifest["complete"]
    summary = json.loads((tmp_path / "report/summary.json").read_text())
    # dd's own writes to the terminal are a few more.
    counts = {sum(row["calls"] for row in one["processes"] if is_workload(row)) for one in summary["captures"]}
    assert len(counts) == 1, counts
    assert WRITES <= counts.pop() <= WRITES + 5


def is_workload(row):
    return row["syscall"] == "write" and row["calls"] >= WRITES


def wait_for_file(host, pattern, process):
    """Wait until there is a file like PATTERN on HOST; PROCESS, which makes it, must still be at work then."""
    host.run(f"until ls {pattern} >/dev/null 2>&1; do sleep 0.05; done")
    assert process.poll() is None, process.communicate()


def test_power_cuts(hosts, installed, image, tmp_path):
    """One host loses its power during a push, one while it traces and attaches, one during a fetch."""
    push, attach, fetch = hosts
    on_all(lambda host: call(host.name, "ftrace_instance", {"containers": "shop-*"}), [attach])
    fill_a_trace(fetch)
    other = tmp_path / "other.squashfs"
    packages = ["bash", "coreutils", "iproute2", "strace", "file"]
    build(other, packages)
    options = ("-b", "-m")
    at_work = [
        start_ansible(
            "ansible", push.name, *options, "crashcart.fleet.crashcart_image", "-a", json.dumps({"src": str(other)})
        ),
        start_ansible(
            "ansible", attach.name, *options, "crashcart.fleet.crashcart_attach", "-a", '{"containers": "*"}'
        ),
        start_ansible(
            "ansible",
            fetch.name,
            *options,
            "crashcart.fleet.ftrace_fetch",
            "-a",
            json.dumps({"containers": NOISY, "dest": str(tmp_path)}),
        ),
    ]
    moments = {
        push.name: lambda: wait_for_file(push, f"{store.STORE}/default/.crashcart-*", at_work[0]),
        attach.name: lambda: time.sleep(4),
        fetch.name: lambda: wait_for_file(fetch, "/home/*/.ansible/tmp/*/captures", at_work[2]),
    }
    on_all(lambda host: (moments[host.name](), host.machine.cut_power()), hosts)
    for process in at_work:
        finish(process)
    on_all(lambda host: (host.boot(), host.wait_until_up(), start_containers(host)), hosts)

    # The kernel's state went with the kernel; files are what they were, or are pushed anew.
    assert on_all(lambda host: host.run("losetup -a; ls /sys/kernel/tracing/instances"), hosts) == [""] * 3
    assert not call(fetch.name, "ftrace_fetch", {"dest": str(tmp_path / "after")})["captures"]
    run = play("cleanup", "-l", push.name)
    assert run.count("failures") == {push.name: 0}, run.output
    assert push.run(CENSUS) == ""
    run = play("install", "-l", push.name, image_src=str(image))
    assert run.count("failures") == {push.name: 0}, run.output
    assert on_all(lambda host: len(host.run(f"ls -A {store.STORE}/default").split()), hosts) == [2] * 3
    run = play("attach")
    assert run.count("changed") == same(1), run.output
    run = play("exec", argv=["bash", "-c", "cat /proc/1/comm"])
    expected = [(name, 0, "sh\n") for name in sorted(NAMES)]
    results = run.find("Run")
    assert sorted(results) == sorted(same(0)), run.output
    for one in results.values():
        assert sorted((each["container"], each["rc"], each["stdout"]) for each in one["results"]) == expected


def test_every_kernel_and_podman_only_and_a_reboot(hosts, installed, tmp_path):
    """A story for each host, all at once: each alone would leave a core idle."""
    stories = {
        "host1": lambda host: check_kernel(host, tmp_path),
        "host2": use_podman_only,
        "host3": reboot_with_tools_attached,
    }
    on_all(lambda host: stories[host.name](host), hosts)


class Guest:
    """HOST as the tests for every kernel see it."""

    def __init__(self, host):
        self._host = host
        self.run = host.run

    def call(self, module, **arguments):
        return call(self._host.name, module, arguments)

    def fetch(self, dest, **selection):
        return self.call("ftrace_fetch", dest=str(dest), **selection)["captures"]


def check_kernel(host, folder):
    """What the integration tests check with this machine's kernel; the container's Python is the host's."""
    guest = Guest(host)
    guest.run("cat >/root/workload.py", Path(images.WORKLOAD).read_bytes())
    shared = " ".join(f"-v {path}:{path}:ro" for path in ("/usr", "/lib", "/lib64"))
    guest.run(
        f"docker run -d --name worker --network none {shared} -v /root/workload.py:/workload.py:ro "
        f"{golden.IMAGE} /usr/bin/python3 /workload.py"
    )
    every_kernel.wait_for_worker(guest, "worker")
    for check in every_kernel.CHECKS:
        check(guest, "worker", folder / check.__name__)
    guest.call("ftrace_instance", containers=["worker"], state="absent")
    guest.run("docker kill worker && docker rm worker")


def use_podman_only(host):
    """With crun, by its own command and by its API."""
    host.run("systemctl stop docker.socket docker.service containerd")
    host.run("podman run -d --name pod-web --network none localhost/crashcart-test/busybox sleep 1000")
    chosen = {"containers": "pod-*"}
    try:
        assert call(host.name, "crashcart_attach", chosen)["changed"]
        for is_served in (False, True):
            if is_served:
                host.run("systemctl start podman.socket")
            done = call(host.name, "crashcart_exec", {**chosen, "argv": ["bash", "-c", "echo $BASH_VERSION"]})
            assert done["results"][0]["stdout"].startswith("5.")
        refused = call(host.name, "ftrace_instance", chosen, check=False)
        assert re.search("is no child of containerd-shim but of 'conmon'.*follow_exec=false", refused["msg"])
    finally:
        host.run("podman rm -f -t 0 pod-web; systemctl stop podman.socket podman.service")
        start_containers(host)
    assert host.run("losetup -a") == ""


def reboot_with_tools_attached(host):
    """What the kernel held is gone with it, and attaching works anew."""
    call(host.name, "crashcart_attach", {"containers": NAMES[0]})
    call(host.name, "ftrace_instance", {"containers": NAMES[0]})
    before = host.run("cat /proc/sys/kernel/random/boot_id")
    host.run("systemctl reboot")
    host.machine.wait(lambda: not is_same_boot(host, before), 300, "reboot")
    start_containers(host)
    assert host.run("losetup -a; ls /sys/kernel/tracing/instances") == ""
    assert call(host.name, "crashcart_attach", {"containers": NAMES[0]})["changed"]


def is_same_boot(host, boot_id):
    try:
        return host.run("cat /proc/sys/kernel/random/boot_id", limit_s=20) == boot_id
    except Exception:
        return True  # it is on its way down or up


def test_cleanup(hosts, installed):
    run = play("cleanup")
    assert run.count("failures") == same(0), run.output
    assert on_all(lambda host: host.run(CENSUS), hosts) == [""] * 3
    info = call("host1", "crashcart_info", {})
    assert not any(info["census"].values()), info["census"]
