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
from conftest import NAMES, NOISY, call, find_title, play
from support import alone, matrix, sshd

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
QUIET = NAMES[0]
# Test → the number of its host, and what it shows.
_SHOWN = {
    "test_a_hardened_host": (
        0,
        "hidepid=2, ptrace_scope 2, noexec /tmp and /run, read-only /proc/sys and home, sudo with use_pty",
    ),
    "test_no_process_may_be_traced": (0, "ptrace_scope 3: `rights: host` only, the others are refused by name"),
    "test_a_kernel_in_lockdown": (0, "lockdown=confidentiality: traces are refused by name, all else works"),
    "test_other_ways_by_ssh": (1, "by ssh: {way}"),
    "test_through_a_jump_host": (1, "ssh through a jump host"),
}
_TMP = {"remote_tmp": "/tmp/.ansible"}
_TMP_WORDS = json.dumps({"ansible_remote_tmp": "/tmp/.ansible"})


@pytest.fixture(scope="module")
def hosts():
    """Run a guest of Debian 13, which is hardened, and one of Debian 12, which is reached in several ways."""
    fleet.down()
    try:
        both = fleet.up(2, ["trixie", "bookworm"])
        both[0].run(_HARDENED)
        yield both
    finally:
        fleet.down()


@pytest.fixture(autouse=True)
def shown(request, hosts):
    """Note what a test shows."""
    number, row = _SHOWN[request.function.__name__]
    title = find_title(hosts[number])
    matrix.note(request.node, "hosts", title, row.format(**matrix.read_parameters(request.node)))


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
    assert " events)" in captured["lines"][0], captured
    assert call("host1", "crashcart_attach", {**chosen, "state": "detached"}, **_TMP)["changed"]


def test_no_process_may_be_traced(hardened):
    """With ptrace_scope 3 nobody can read a container's seccomp filter, which commands with its rights need."""
    hardened.run("mount -o remount,bind,rw /proc/sys && sysctl -q -w kernel.yama.ptrace_scope=3")
    # In another container, since the filter of the first one was read and kept before.
    wish = {"containers": QUIET, "argv": ["true"]}
    refused = call("host1", "crashcart_exec", {**wish, "rights": "container"}, check=False, **_TMP)
    assert "ptrace_scope" in str(refused), refused
    (ran,) = call("host1", "crashcart_exec", {**wish, "rights": "host"}, **_TMP)["results"]
    assert ran["rc"] == 0, ran


def test_a_kernel_in_lockdown(hardened, tmp_path):
    """With lockdown=confidentiality the kernel shows no trace to anybody. What needs no trace goes on."""
    hardened.run("echo confidentiality >/sys/kernel/security/lockdown")
    chosen = {"containers": NOISY}
    for module, more in (("ftrace_capture", {"seconds": 1, "dest": str(tmp_path)}), ("ftrace_instance", {})):
        refused = call("host1", module, {**chosen, **more}, check=False, **_TMP)
        assert "lockdown" in str(refused), refused
    features = call("host1", "crashcart_info", {"gather": "features"}, **_TMP)["features"]
    (tracefs,) = [one for one in features if one["name"] == "tracefs"]
    assert not tracefs["ok"] and "lockdown" in tracefs["reason"], tracefs
    assert call("host1", "crashcart_attach", chosen, **_TMP)["changed"]
    (ran,) = call("host1", "crashcart_exec", {**chosen, "argv": ["true"], "rights": "host"}, **_TMP)["results"]
    assert ran["rc"] == 0, ran
    run = play("cleanup", "-l", "host1", "-e", _TMP_WORDS)
    assert run.count("failures") == {"host1": 0}, run.output


@pytest.mark.parametrize("way", _WAYS)
def test_other_ways_by_ssh(hosts, image, tmp_path, way):
    """The image has megabytes, which need a transfer of their own; the capture comes within the module's result."""
    sent = call("host2", "crashcart_image", {"src": str(image), "name": "way"}, **_WAYS[way])
    assert sent["changed"]
    wish = {"containers": NOISY, "seconds": 4, "dest": str(tmp_path)}
    (capture,) = call("host2", "ftrace_capture", wish, **_WAYS[way])["captures"]
    assert capture["manifest"]["complete"], capture
    assert call("host2", "crashcart_image", {"name": "way", "state": "absent"}, **_WAYS[way])["changed"]


def test_through_a_jump_host(hosts, tmp_path):
    """Reach the second guest through an sshd of this machine, as through a host at the edge of a network."""
    # Other tests may run an sshd with the same user.
    with alone.hold_kernel(), tempfile.TemporaryDirectory(prefix="crashcart-sshd-") as folder, sshd.serve(Path(folder)):
        edge = Path(folder, "config").read_text().split()
        port = edge[edge.index("Port") + 1]
        login = f"-i {folder}/login_key -o UserKnownHostsFile={folder}/known_hosts -p {port} root@127.0.0.1"
        options = f'-o ProxyCommand="ssh -F none -W %h:%p {login}" -o UserKnownHostsFile={fleet.FOLDER}/known_hosts'
        wish = {"containers": NOISY, "seconds": 4, "dest": str(tmp_path)}
        captured = call("host2", "ftrace_capture", wish, ssh_common_args=options, ssh_args="-o ControlMaster=no")
        assert " events)" in captured["lines"][0], captured
