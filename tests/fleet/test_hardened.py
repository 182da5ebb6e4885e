# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Test a host that is hardened as administrators do it, and other ways to reach a host by ssh. `make matrix` runs this.

One guest gets all the restrictions that go together, then those that leave less: no process may be traced, and the kernel is locked down.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import fleet
import guest
import pytest
from conftest import NOISY, call, play
from support import sshd

# Processes of others are hidden, and only root may trace processes. Programs in the usual temporary folders cannot be executed, the
# kernel's settings are read-only, sudo gives each command a terminal of its own, and the user's home folder cannot be written.
_HARDENED = f"""\
set -e
mount -o remount,hidepid=2 /proc
sysctl -q -w kernel.yama.ptrace_scope=2
for folder in /tmp /var/tmp /dev/shm; do mount -t tmpfs -o mode=1777,noexec,nosuid,nodev tmpfs $folder; done
mount -o remount,noexec /run
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
echo 'Defaults use_pty' >/etc/sudoers.d/pty
mount --bind -o ro /home/{guest.USER} /home/{guest.USER}
mount -o remount,bind,ro /home/{guest.USER}
"""
_WAYS = {
    "modules as files": {"pipelining": False},
    "no shared session": {"pipelining": True, "ssh_args": "-o ControlMaster=no -o ControlPath=none"},
    "files through a pipe": {"pipelining": False, "ssh_transfer_method": "piped"},
}
_TMP = {"remote_tmp": "/tmp/.ansible"}
_TMP_WORDS = json.dumps({"ansible_remote_tmp": "/tmp/.ansible"})


@pytest.fixture(scope="module")
def hosts(image):
    """Run a guest of Debian 13, which is hardened, and one of Debian 12, by which the first can be reached."""
    fleet.down()
    try:
        both = fleet.up(2, ["trixie", "bookworm"])
        both[0].run(_HARDENED)
        yield both
    finally:
        fleet.down()


@pytest.fixture(scope="module")
def hardened(hosts, image):
    """Give the hardened guest, with a small tool image."""
    run = play("install", "-l", "host1", "-e", _TMP_WORDS, image_src=str(image))
    assert run.count("failures") == {"host1": 0}
    return hosts[0]


def test_a_hardened_host(hardened, tmp_path):
    chosen = {"containers": NOISY}
    assert call("host1", "crashcart_attach", chosen, **_TMP)["changed"]
    for rights in ("container", "tools", "host"):
        argv = ["bash", "-c", "tr '\\0' ' ' </proc/1/cmdline"]
        (ran,) = call("host1", "crashcart_exec", {**chosen, "argv": argv, "rights": rights}, **_TMP)["results"]
        assert (ran["rc"], "cat /nonesuch" in ran["stdout"]) == (0, True), ran
    captured = call("host1", "ftrace_capture", {**chosen, "seconds": 6, "dest": str(tmp_path)}, **_TMP)
    assert "/nonesuch" in str(captured["findings"]), captured
    assert call("host1", "crashcart_attach", {**chosen, "state": "detached"}, **_TMP)["changed"]


def test_no_process_may_be_traced(hardened):
    """With ptrace_scope 3 nobody can read a container's seccomp filter, which commands with its rights need."""
    hardened.run("mount -o remount,bind,rw /proc/sys && sysctl -q -w kernel.yama.ptrace_scope=3")
    wish = {"containers": NOISY, "argv": ["true"]}
    refused = call("host1", "crashcart_exec", {**wish, "rights": "container"}, check=False, **_TMP)
    assert refused["failed"] and "ptrace_scope" in refused["msg"], refused
    (ran,) = call("host1", "crashcart_exec", {**wish, "rights": "host"}, **_TMP)["results"]
    assert ran["rc"] == 0, ran


def test_a_kernel_in_lockdown(hardened, tmp_path):
    """With lockdown=confidentiality the kernel shows no trace to anybody. What needs no trace goes on."""
    hardened.run("echo confidentiality >/sys/kernel/security/lockdown")
    chosen = {"containers": NOISY}
    for module, more in (("ftrace_capture", {"seconds": 1, "dest": str(tmp_path)}), ("ftrace_instance", {})):
        refused = call("host1", module, {**chosen, **more}, check=False, **_TMP)
        assert refused["failed"] and "lockdown" in refused["msg"], refused
    features = call("host1", "crashcart_info", {"gather": "features"}, **_TMP)["features"]
    assert "lockdown" in str(features["ftrace"]), features
    assert call("host1", "crashcart_attach", chosen, **_TMP)["changed"]
    (ran,) = call("host1", "crashcart_exec", {**chosen, "argv": ["true"], "rights": "host"}, **_TMP)["results"]
    assert ran["rc"] == 0, ran
    assert play("cleanup", "-l", "host1", "-e", _TMP_WORDS).count("failures") == {"host1": 0}


@pytest.mark.parametrize("way", _WAYS)
def test_other_ways_by_ssh(hosts, tmp_path, way):
    """The capture is larger than what a module's result takes home, so a transfer of its own is needed."""
    wish = {"containers": NOISY, "seconds": 4, "dest": str(tmp_path), "compression": "none", "events": ["sched:*"]}
    captured = call("host2", "ftrace_capture", wish, **_WAYS[way])
    (capture,) = captured["captures"]
    assert capture["manifest"]["complete"], captured
    assert Path(capture["path"]).stat().st_size > 1 << 16


def test_through_a_jump_host(hosts, tmp_path):
    """Reach the second guest through an sshd of this machine, as through a host at the edge of a network."""
    with tempfile.TemporaryDirectory(prefix="crashcart-sshd-") as folder, sshd.serve(Path(folder)):
        edge = Path(folder, "config").read_text().split()
        port = edge[edge.index("Port") + 1]
        login = f"-i {folder}/login_key -o UserKnownHostsFile={folder}/known_hosts -p {port} root@127.0.0.1"
        options = f'-o ProxyCommand="ssh -F none -W %h:%p {login}" -o UserKnownHostsFile={fleet.FOLDER}/known_hosts'
        wish = {"containers": NOISY, "seconds": 4, "dest": str(tmp_path)}
        captured = call("host2", "ftrace_capture", wish, ssh_common_args=options, ssh_args="-o ControlMaster=no")
        assert "/nonesuch" in str(captured["findings"]), captured
