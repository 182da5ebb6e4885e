# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers that put other things in the place of their files: devices, pipes, and file systems that never answer."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys

import pytest
from support import fuse, host, images, runtimes

from ansible_collections.crashcart.fleet.plugins.plugin_utils.captures import make_file_name

PASSWD = "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/:/bin/sh\n"
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
    # A file for each process: in one for all of them a call that another one's interrupts takes two lines.
    trace = ["strace", "-ff", "-y", "-qq", "-e", "trace=open,openat,openat2", "-o", str(log)]
    done = host.run(
        *trace, sys.executable, "-m", f"{host.COLLECTION}.plugins.modules.crashcart_exec", input=text, check=False
    )
    with pytest.raises(host.ModuleFailed) as failed:
        host.parse_result(done.stdout, done.stderr)
    check_the_good_one_is_served(failed.value.result, good, bad, f"it is no regular file but {kind}")
    texts = [path.read_text(errors="replace") for path in tmp_path.glob("strace.*")]
    lines = [line for text in texts for line in text.splitlines() if "etc/passwd" in line]
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
        # Numbers need none of its files, and nobody has to have a home.
        found = host.execute(containers=pair, argv=["id", "-u"], user="5:6")
        assert [one["stdout"] for one in found] == ["5\n", "5\n"]
        found = host.execute(containers=pair, argv=["bash", "-c", "echo $HOME"])
        assert {one["container"]: one["stdout"] for one in found} == {good: "/root\n", bad: "/\n"}
        assert "it took more than" in fail("crashcart_exec", check_mode=True, containers=pair, **WHO)["msg"]


LIBC = "/lib/x86_64-linux-gnu/libc.so.6"
WISHES = {
    "probes": {"probes": [{"name": "opening", "type": "uprobe", "binary": LIBC, "symbol": "open"}]},
    "paths": {"syscalls": ["openat"], "paths": True, "paths_by": "uprobe"},
}


@pytest.mark.parametrize(("wish", "takes_requests"), [("probes", True), ("paths", False)])
def test_programs_that_never_answer_cost_only_their_container(container, wish, takes_requests):
    good, bad = container("python"), container("python")
    with fuse.hang(host.find_pid(bad), "/lib", takes_requests=takes_requests):
        result = fail("ftrace_instance", containers=[good, bad], **WISHES[wish])
        assert [one["container"] for one in result["instances"]] == [good]
        assert result["instances"][0]["state"] == "started"
        assert f"the programs of container {bad} cannot be read: it took more than" in result["msg"]
        assert len(host.list_instances()) == 1


def test_a_pipe_in_the_place_of_a_library_costs_only_its_container(container):
    good, bad = container("python"), container("python")
    path = f"/proc/{host.find_pid(bad)}/root{LIBC}"
    os.rename(path, path + ".away")
    os.mkfifo(path)
    result = fail("ftrace_instance", containers=[good, bad], **WISHES["probes"])
    assert [one["container"] for one in result["instances"]] == [good]
    assert f"{LIBC}' of container {bad}: it is no regular file but a pipe" in result["msg"]
    said = fail("ftrace_instance", containers=[bad], **WISHES["probes"])["msg"]
    assert "it is no regular file but a pipe" in said
    assert len(host.list_instances()) == 1


def test_a_name_from_an_annotation_reaches_no_terminal_as_it_is(tmp_path):
    hostile = "api\x1b[2J\x1b]0;owned\x07\u202e"
    annotations = {"io__kubernetes__cri__sandbox-name": hostile, "io__kubernetes__cri__container-name": "app"}
    with runtimes.run_runc(tmp_path, f"cc-name-{os.getpid()}", **annotations):
        result = fail("crashcart_exec", query="runtime == 'runc'", argv=["id"], user="nonesuch")
    assert r"api\x1b[2J\x1b]0;owned\x07\u202e" in result["msg"]
    assert result["msg"].isprintable()
    # In the file system a name is nothing but a name.
    assert "/" not in make_file_name(hostile)
    assert make_file_name(hostile).isprintable()


def read_modes(*tops):
    found = {}
    for top in tops:
        for folder, names, files in os.walk(top):
            for path in [folder, *(os.path.join(folder, name) for name in [*names, *files])]:
                status = os.lstat(path)
                if not stat.S_ISLNK(status.st_mode):
                    found[path] = stat.S_IMODE(status.st_mode)
    return found


def test_modes_are_ours_whatever_the_umask_is(container, tmp_path):
    """This holds where an earlier version, or somebody else, has made the folder open to all."""
    name = container("python")
    os.makedirs("/run/crashcart", exist_ok=True)
    os.chmod("/run/crashcart", 0o777)
    before = os.umask(0)
    try:
        dest = tmp_path / "out" / "put"
        host.call_module("crashcart_attach", containers=[name], ttl="1h")
        host.call_module("crashcart_exec", containers=[name], argv=["id"], dest=str(dest))
        host.call_module(
            "ftrace_instance", containers=[name], syscalls=["openat"], mode="record", max_size="64MiB", ttl="1h"
        )
        host.call_module("ftrace_instance", containers=[name], state="absent")
        images.install(host.DEFAULT_IMAGE, "umask")
        modes = read_modes("/run/crashcart", "/var/lib/crashcart", str(tmp_path / "out"))
    finally:
        os.umask(before)
        host.call_module("crashcart_image", name="umask", state="absent", force=True)
    assert modes["/run/crashcart"] == 0o700
    assert modes[str(dest)] == modes[str(dest.parent)] == 0o700
    assert {modes[str(path)] for path in dest.iterdir()} == {0o600}
    assert modes["/var/lib/crashcart/images/umask"] == 0o755
    assert {path: oct(mode) for path, mode in modes.items() if mode & 0o022} == {}
    shown = {path for path, mode in modes.items() if mode & 0o077 and not path.startswith("/var/lib/crashcart/images/")}
    assert shown <= {"/var/lib/crashcart", "/var/lib/crashcart/images", "/var/lib/crashcart/captures"}


def test_a_folder_of_somebody_else_in_our_place_is_an_error(container):
    name = container()
    host.call_module("crashcart_attach", containers=[name])
    os.chown("/run/crashcart/locks", 1234, 1234)
    try:
        said = fail("crashcart_attach", containers=[name], state="detached")["msg"]
    finally:
        os.chown("/run/crashcart/locks", 0, 0)
    assert "/run/crashcart/locks belongs to user 1234" in said
    host.call_module("crashcart_attach", containers=[name], state="detached")
