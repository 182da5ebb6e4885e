# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a container puts in the place of its files: devices, pipes, and file systems that never answer."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys

import pytest
from support import fuse, host

PASSWD = "app:x:1000:1001::/:/bin/sh\n"
WHO = {"argv": ["id", "-u"], "user": "app"}


@pytest.fixture
def pair(container):
    """A good container, and one whose /etc/passwd is the test's to choose; both have a user `app`."""
    names = [container(), container()]
    for name in names:
        write_passwd(name)
    return names


def write_passwd(name):
    command = ["docker", "exec", "-i", name, "/bin/sh", "-c", "mkdir -p /etc; cat > /etc/passwd"]
    subprocess.run(command, input=PASSWD.encode(), check=True)


def fail(module, **arguments):
    with pytest.raises(host.ModuleFailed) as failed:
        host.call_module(module, **arguments)
    return failed.value.result


def check_the_good_one_is_served(result, good, bad, why):
    """By crashcart_exec: GOOD has run, BAD says WHY not."""
    by_name = {one["container"]: one for one in result["results"]}
    assert (by_name[good]["rc"], by_name[good]["stdout"]) == (0, "1000\n")
    assert by_name[bad]["rc"] == -1
    assert why in by_name[bad]["msg"]
    assert f"container {bad}: its /etc/passwd" in result["msg"]


KINDS = {"a block device": stat.S_IFBLK, "a character device": stat.S_IFCHR, "a pipe": stat.S_IFIFO}


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_in_the_place_of_passwd_is_not_opened(pair, tmp_path, kind):
    good, bad = pair
    path = f"/proc/{host.find_pid(bad)}/root/etc/passwd"
    os.unlink(path)
    os.mknod(path, KINDS[kind] | 0o666, os.makedev(7, 0) if kind == "a block device" else os.makedev(1, 5))
    log = tmp_path / "strace"
    text = json.dumps({"ANSIBLE_MODULE_ARGS": {"containers": pair, **WHO, "_ansible_version": "2.19"}})
    trace = ["strace", "-f", "-y", "-qq", "-e", "trace=open,openat,openat2", "-o", str(log)]
    done = host.run(
        *trace, sys.executable, "-m", f"{host.COLLECTION}.plugins.modules.crashcart_exec", input=text, check=False
    )
    with pytest.raises(host.ModuleFailed) as failed:
        host.parse_result(done.stdout, done.stderr)
    check_the_good_one_is_served(failed.value.result, good, bad, f"it is no regular file but {kind}")
    lines = [line for line in log.read_text(errors="replace").splitlines() if "etc/passwd" in line]
    # Both are looked at as places; only the good one is opened.
    opened = [line for line in lines if "O_PATH" not in line]
    assert (len(lines) - len(opened), len(opened)) == (2, 1), lines


@pytest.mark.parametrize("takes_requests", [False, True])
def test_a_passwd_that_never_answers_costs_only_its_container(pair, takes_requests):
    good, bad = pair
    with fuse.hang(host.find_pid(bad), "/etc/passwd", takes_requests=takes_requests) as hung:
        result = fail("crashcart_exec", containers=pair, **WHO)
        check_the_good_one_is_served(result, good, bad, "it took more than")
        assert bool(hung.requests) == takes_requests
        # Numbers need none of its files.
        found = host.call_module("crashcart_exec", containers=pair, argv=["id", "-u"], user="5")["results"]
        assert [one["stdout"] for one in found] == ["5\n", "5\n"]
        assert "it took more than" in fail("crashcart_exec", check_mode=True, containers=pair, **WHO)["msg"]
