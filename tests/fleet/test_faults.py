# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Test faults that need a host of its own: a network that fails, power cuts and a reboot. The last test is cleanup."""

from __future__ import annotations

import json
import subprocess
import time
from contextlib import suppress

import processes
from conftest import (
    CENSUS,
    NAMES,
    NOISY,
    Run,
    build,
    call,
    each,
    list_captures,
    on_all,
    play,
    same,
    start_module,
    start_play,
)
from fleet import start_containers
from golden import IMAGE
from machine import seconds

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import store

WRITES = 50_000  # of one byte each: a capture of half a MB, for which sftp asks twice (255 KiB are its largest request)
RULES = {"rules": [{"name": "late", "containers": ["late-*"]}]}
TRACED = "losetup -a; ls /sys/kernel/tracing/instances"


def fill_a_trace(host):
    """Make an instance for the noisy container on HOST that holds the events of WRITES writes."""
    call(host.name, "ftrace_instance", {"containers": NOISY, "buffer_size": "16MiB"})
    host.run(f"docker exec {NOISY} busybox dd if=/dev/zero of=/dev/null bs=1 count={WRITES} 2>/dev/null")


def slow_down(host):
    """Make HOST send so slowly that the transfer of a trace takes twenty seconds."""
    host.run(
        "tc qdisc replace dev eth0 root handle 1: tbf rate 200kbit burst 16kb latency 200ms && "
        "tc qdisc replace dev eth0 parent 1: fq_codel"  # other connections' packets must not wait behind the transfer's
    )


def wait_for_more(folder, host, process, part=0):
    """Wait until more than PART bytes of HOST's staged captures have arrived in FOLDER, where PROCESS fetches them.

    This asks nobody but the folder: a command on a slow host may take as long as the transfer.
    """
    deadline = time.monotonic() + seconds(120)
    while measure_part(folder, host) <= part:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing comes"
        time.sleep(0.02)


def measure_part(folder, host):
    """Return the number of bytes of HOST's staged captures that have arrived in FOLDER."""
    size = 0
    for path in folder.glob(f"{host.name}/.crashcart-*/transfer"):
        with suppress(FileNotFoundError):  # the transfer is complete
            size += path.stat().st_size
    return size


def test_a_network_that_comes_back_in_the_middle_of_a_collection(hosts, installed, tmp_path):
    host = hosts[0]
    on_all(fill_a_trace, hosts)
    slow_down(host)
    process = start_play("collect", dest=str(tmp_path))
    wait_for_more(tmp_path, host, process)
    host.machine.call("set_link", name="net", up=False)
    time.sleep(1)  # packets that were sent already arrive
    part = measure_part(tmp_path, host)
    time.sleep(4)
    assert 0 < part == measure_part(tmp_path, host)
    host.machine.call("set_link", name="net", up=True)
    wait_for_more(tmp_path, host, process, part)
    host.run("tc qdisc del dev eth0 root")
    run = Run(process)
    assert run.count("failures") == same(0), run.output
    for name in same(0):
        (path,) = tmp_path.glob(f"{name}/{NOISY}/*.dat")
        manifest = json.loads(path.with_suffix(".json").read_text())
        digest = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
        assert digest == manifest["sha256"]
        assert manifest["complete"]
    # dd also writes a few times to the terminal.
    writes = [sum(row["calls"] for row in one["processes"] if is_workload(row)) for one in list_captures(tmp_path)]
    assert len(writes) == 3
    assert len(set(writes)) == 1, writes
    assert WRITES <= writes[0] <= WRITES + 5


def is_workload(row):
    return row["syscall"] == "write" and row["calls"] >= WRITES


# Stops all processes called python3 but itself as soon as a file matches the pattern $1.
FREEZE = """\
import glob, os, signal, sys
while not glob.glob(sys.argv[1]):
    pass
for entry in os.listdir("/proc"):
    try:
        if entry.isdigit() and int(entry) != os.getpid() and open(f"/proc/{entry}/comm").read() == "python3\\n":
            os.kill(int(entry), signal.SIGSTOP)
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has just ended
"""
# Mounts a file system that never answers on /dev of the container with the process $1.
HANG = """\
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
namespace = os.open(f"/proc/{sys.argv[1]}/ns/mnt", os.O_RDONLY)
if libc.setns(namespace, 0) or libc.mount(b"hang", b"/dev", b"fuse", 0, options):
    sys.exit(os.strerror(ctypes.get_errno()))
time.sleep(1000)
"""


def test_power_cuts_and_a_reboot(hosts, installed, tmp_path):
    """Cut the first host's power during a fetch and a push and the second one's during an attach with traces; reboot the third."""
    each(
        hosts,
        lambda host: cut_while_files_travel(host, tmp_path),
        cut_while_attaching,
        lambda host: reboot_with_tools_attached(host, tmp_path),
    )
    on_all(lambda host: start_containers(host, [NOISY]), hosts)

    # The kernel's state is gone with the kernel. Files are unchanged.
    assert on_all(lambda host: host.run(TRACED), hosts) == [""] * 3
    run = play("attach exec", containers="*", argv=["bash", "-c", "cat /proc/1/comm"])
    assert run.count("failures") == same(0), run.output
    assert {host: one["changed"] for host, one in run.find("Attach").items()} == same(True)
    for one in run.find("Run").values():
        assert [(ran["container"], ran["rc"], ran["stdout"]) for ran in one["results"]] == [(NOISY, 0, "sh\n")]


def list_pushed(host):
    """Return the paths of complete images called `other` on HOST, one per line."""
    # ls fails where there is none, which is no error here.
    return host.run(f"ls {store.STORE}/other/*.image 2>/dev/null || true")


def cut_while_files_travel(host, folder):
    fill_a_trace(host)
    other = folder / "other.squashfs"
    build(other, ["bash", "coreutils", "iproute2", "strace", "file"])
    push = start_module(host.name, "crashcart_image", {"src": str(other), "name": "other"})
    host.run(f"python3 -c '{FREEZE}' '{store.STORE}/other/.crashcart-*'")
    assert list_pushed(host) == ""
    slow_down(host)
    fetch = start_module(host.name, "ftrace_fetch", {"containers": NOISY, "dest": str(folder)})
    wait_for_more(folder, host, fetch)
    assert (fetch.poll(), push.poll()) == (None, None)
    host.machine.cut_power()
    processes.end(fetch)
    processes.end(push)
    host.boot()
    host.wait_until_up()
    assert list_pushed(host) == ""
    assert not list(folder.glob(f"{host.name}/*/*.dat"))


def cut_while_attaching(host):
    """Cut HOST's power when an attach is done in one container and hangs in the other."""
    call(host.name, "ftrace_instance", {"containers": "*"})
    first, last = (host.run(f"docker inspect -f '{{{{.State.Pid}}}}' {name}").strip() for name in (NOISY, NAMES[0]))
    host.run(
        f"systemd-run -q python3 -c '{HANG}' {last}; until grep -q ' fuse ' /proc/{last}/mountinfo; do sleep 0.1; done"
    )
    attach = start_module(host.name, "crashcart_attach", {"containers": "*"})
    host.run(
        f"until grep -q ' /dev/crashcart ' /proc/{first}/mountinfo && grep -q -v '^0' /sys/fs/fuse/connections/*/waiting; do sleep 0.1; done"
    )
    host.machine.cut_power()
    assert attach.poll() is None, attach.communicate()
    processes.end(attach)
    host.boot()
    host.wait_until_up()


def reboot_with_tools_attached(host, folder):
    """Reboot HOST with an attached image and an instance, which end with the kernel, and with a rule that begins again."""
    call(host.name, "crashcart_attach", {"containers": NAMES[0]})
    call(host.name, "ftrace_instance", {"containers": NAMES[0]})
    assert call(host.name, "ftrace_rules", RULES)["changed"]
    assert not call(host.name, "ftrace_rules", RULES)["changed"]
    before = host.run("cat /proc/sys/kernel/random/boot_id")
    host.run("systemctl reboot")
    host.machine.wait(lambda: not is_same_boot(host, before), 300, "reboot")
    host.wait_until_up()
    check_rule_after_boot(host, folder)


def check_rule_after_boot(host, folder):
    """Check that nobody but HOST itself has begun the rule, before the engine, and that it traces a container from its first instruction."""
    unit = "systemctl is-active crashcart-rules"
    assert host.run(f'while [ "$({unit})" = activating ]; do sleep 0.2; done; {unit}') == "active\n"
    (found,) = call(host.name, "ftrace_info", {"gather": ["boot_rules"]})["boot_rules"]
    assert found == {"name": "late", "is_running": True}
    host.run(
        f"systemctl start docker; docker run --rm --name late-one --network none {IMAGE} cat /nonesuch 2>/dev/null; [ $? = 1 ]"
    )
    (capture,) = call(host.name, "ftrace_fetch", {"containers": "late-*", "dest": str(folder)})["captures"]
    assert (capture["manifest"]["complete"], capture["manifest"]["reasons"]) == (True, [])
    assert capture["manifest"]["rule"] == "late"
    call(host.name, "ftrace_rules", {"state": "absent"})
    call(host.name, "ftrace_instance", {"state": "absent", "everything": True})
    left = "/etc/crashcart /usr/libexec/crashcart /etc/systemd/system/crashcart-rules.service"
    assert host.run(f"for path in {left}; do [ ! -e $path ] || echo $path; done") == ""


def is_same_boot(host, boot_id):
    try:
        return host.run("cat /proc/sys/kernel/random/boot_id", limit_s=20) == boot_id
    except Exception:
        return True  # the host is shutting down or booting


def test_cleanup(hosts, installed):
    """Check that cleanup also removes the files of an interrupted push."""
    run = play("cleanup")
    assert run.count("failures") == same(0), run.output
    assert not any(any(one["census"].values()) for one in run.find("Verify that nothing is left").values()), run.output
    assert on_all(lambda host: host.run(CENSUS), hosts) == [""] * 3
