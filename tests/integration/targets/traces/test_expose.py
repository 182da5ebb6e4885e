# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of a trace instance shown inside its container: who can do what with them, what stands in the way, and what is left."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from support import every_kernel, host

PATH = "/dev/crashcart-trace"
LOOP = ("busybox", "/bin/sh", "-c", "while /bin/true; do /bin/id >/dev/null; /bin/sleep 0.1; done")
USER = ("--network", "none", "--user", "1234:4321")


def expose(name, *, files=None, path=None, **more):
    wish = {key: value for key, value in (("files", files), ("path", path)) if value is not None}
    # Who reads a trace that has the reader's own calls in it never comes to its end.
    return host.call_module("ftrace_instance", containers=[name], expose=wish, follow_exec=False, **more)


def inside(name, script, check=True):
    """Run a shell's SCRIPT in container NAME as the container's user, for 20 seconds at most, and return the completed process."""
    return host.run("timeout", "20", "docker", "exec", name, "/bin/sh", "-c", script, check=check)


def list_mounts(name):
    return [line for line in host.read_container_mounts(name).splitlines() if "crashcart" in line]


def fetch_text(name, folder):
    (capture,) = host.ad_hoc(
        "localhost", "ftrace_fetch", {"dest": str(folder), "containers": [name], "format": "text"}
    )["captures"]
    return capture["path"], Path(capture["path"]).with_suffix(".txt").read_text()


@pytest.mark.parametrize("options", [("--network", "none"), USER, ("--read-only", *USER)])
def test_a_container_sees_its_trace_and_writes_lines_of_its_own(container, tmp_path, options):
    name = container(*LOOP, options=options)
    result = expose(name)
    assert result["changed"]
    assert result["instances"][0]["exposed"] == {"path": PATH, "files": ["trace", "trace_marker"]}
    assert not expose(name)["changed"]
    uid, gid = (1234, 4321) if "--user" in options else (0, 0)
    listed = inside(name, f"cd {PATH} && ls -ln trace trace_marker").stdout
    assert re.findall(r"^(\S+) +1 +(\d+) +(\d+) .* (\w+)$", listed, re.M) == [
        ("-r--------", str(uid), str(gid), "trace"),
        ("--w-------", str(uid), str(gid), "trace_marker"),
    ]
    inside(name, f"echo 'I was here' >{PATH}/trace_marker")
    host.pause(0.5)
    seen = inside(name, f"cat {PATH}/trace").stdout
    assert "I was here" in seen
    assert "sys_enter" in seen
    path, text = fetch_text(name, tmp_path)
    assert text.count("I was here") == 1
    assert host.run("trace-cmd", "report", path).stdout.count("I was here") == 1
    (summary,) = every_kernel.report(tmp_path, tmp_path / "report")
    assert summary["event_counts"]["ftrace:print"] == 1


@pytest.mark.parametrize("options", [("--network", "none"), USER])
def test_settings_are_out_of_reach_and_the_trace_cannot_be_emptied(container, options):
    name = container(*LOOP, options=options)
    expose(name)
    host.pause(0.3)
    for script in (
        f": >{PATH}/trace",
        f"echo x >>{PATH}/trace",
        f"chmod 666 {PATH}/trace",
        f"rm -f {PATH}/trace",
        f"mv -f {PATH}/trace {PATH}/x",
        f"echo x >{PATH}/new",
        f"umount {PATH}/trace",
        f"mount -o remount,bind,rw {PATH}/trace",
        f"cat {PATH}/../tracing_on {PATH}/trace/../tracing_on",
    ):
        done = inside(name, script, check=False)
        assert done.returncode != 0, script
    assert inside(name, f"ls -a {PATH}").stdout.split() == [".", "..", "trace", "trace_marker"]
    (instance,) = host.list_instances()
    assert Path(host.TRACEFS, "instances", instance, "trace").read_text().count("sys_enter") > 10


def test_another_user_of_the_container_cannot_use_them(container):
    name = container(*LOOP, options=USER)
    expose(name)
    for word in (f"cat {PATH}/trace", f"echo x >{PATH}/trace_marker"):
        done = host.run("docker", "exec", "--user", "77", name, "/bin/sh", "-c", word, check=False)
        assert done.returncode != 0


def test_the_pipe_gives_each_event_once(container, tmp_path):
    name = container(*LOOP)
    expose(name, files=["trace_pipe"])
    seen = inside(name, f"timeout 1 cat {PATH}/trace_pipe", check=False).stdout
    assert seen.count("sys_enter") > 5
    assert inside(name, f"echo x >{PATH}/trace_pipe", check=False).returncode != 0
    assert inside(name, f"ls {PATH}").stdout.split() == ["trace_pipe"]


def test_a_change_of_the_wish_and_its_end(container):
    name = container(*LOOP)
    expose(name)
    assert expose(name, files=["trace_marker"])["changed"]
    assert inside(name, f"ls {PATH}").stdout.split() == ["trace_marker"]
    other = "/tmp/seen/here"
    inside(name, "mkdir /tmp/seen")
    assert expose(name, files=["trace_marker"], path=other)["changed"]
    assert inside(name, f"ls {other}").stdout.split() == ["trace_marker"]
    assert not host.run("docker", "exec", name, "/bin/ls", PATH, check=False).stdout
    (shown,) = host.call_module("ftrace_instance", containers=[name])["instances"]
    assert shown["exposed"] is None
    assert list_mounts(name) == []
    assert inside(name, "ls /tmp/seen").stdout == ""
    assert inside(name, f"ls {PATH}", check=False).returncode != 0


def test_removing_the_instance_takes_all_away(container):
    name = container(*LOOP)
    expose(name)
    assert any(PATH in one for one in host.call_module("crashcart_info", gather=["census"])["census"]["mounts"])
    host.call_module("ftrace_instance", containers=[name], state="absent")
    assert host.list_instances() == []
    assert list_mounts(name) == []
    assert inside(name, f"ls -d {PATH}", check=False).returncode != 0
    assert host.call_module("crashcart_info", gather=["census"])["census"]["mounts"] == []


def test_what_a_killed_task_has_left_goes_with_everything(container):
    """The instance is gone and its files are still shown."""
    name = container(*LOOP)
    (made,) = expose(name)["instances"]
    folder = Path(host.TRACEFS, "instances", made["name"])
    (folder / "events" / "enable").write_text("0")
    host.wait_until(lambda: remove_folder(folder))
    assert inside(name, f"cat {PATH}/trace", check=False).returncode != 0
    assert len(list_mounts(name)) == 3
    assert host.call_module("ftrace_instance", state="absent", everything=True)["changed"]
    assert list_mounts(name) == []
    assert not host.call_module("ftrace_instance", state="absent", everything=True)["changed"]


def remove_folder(folder):
    try:
        os.rmdir(folder)
    except OSError:
        return False
    return True


def test_a_container_that_holds_a_file_open_is_named_and_costs_no_memory(container):
    name = container(*LOOP)
    (made,) = expose(name, buffer_size="8MiB")["instances"]
    command = ["docker", "exec", name, "/bin/sh", "-c", f"exec 3>{PATH}/trace_marker; /bin/sleep 100"]
    with subprocess.Popen(command) as holder:
        host.wait_until(lambda: host.runs(name, "sleep 100"))
        with pytest.raises(host.ModuleFailed, match=r"held open by pid \d+") as failed:
            host.call_module("ftrace_instance", containers=[name], state="absent")
        pid = int(re.search(r"held open by pid (\d+)", failed.value.result["msg"]).group(1))
        assert host.read_state(pid)
        assert list_mounts(name) == []
        folder = Path(host.TRACEFS, "instances", made["name"])
        assert (folder / "tracing_on").read_text() == "0\n"
        assert int((folder / "buffer_total_size_kb").read_text().split()[0]) < 100
        for number in re.findall(r"pid (\d+)", failed.value.result["msg"]):
            os.kill(int(number), 9)
        holder.wait(timeout=host.seconds(20))
    host.wait_until(lambda: not host.runs(name, "sleep 100") or kill_sleep(name))
    host.call_module("ftrace_instance", containers=[name], state="absent")
    assert host.list_instances() == []


def kill_sleep(name):
    host.run("docker", "exec", name, "/bin/sh", "-c", "kill -9 $(pidof sleep)", check=False)


@pytest.mark.parametrize(
    ("prepare", "wanted"),
    [
        (f"ln -s /tmp {PATH}", "not a directory|symbolic link"),
        (f"ln -s /nonesuch {PATH}", "not a directory|symbolic link"),
        (f"echo x >{PATH}", "not a directory"),
        (f"mkdir {PATH}; echo x >{PATH}/trace", "not empty"),
        (f"mkdir {PATH}; mkdir {PATH}/trace_marker", "not empty"),
    ],
)
def test_what_stands_in_the_way_is_named_before_anything_is_done(container, prepare, wanted):
    name = container(*LOOP)
    inside(name, prepare)
    with pytest.raises(host.ModuleFailed, match=wanted):
        expose(name)
    assert host.list_instances() == []
    assert list_mounts(name) == []


@pytest.mark.parametrize("path", ["relative", "/", "/dev", "/dev/../proc", "/nonesuch/below/it", "/tmp/link/x"])
def test_folders_that_are_none(container, path):
    name = container(*LOOP)
    inside(name, "ln -s /dev /tmp/link")
    with pytest.raises(host.ModuleFailed, match="no folder to show files in|no folder to mount in|symbolic link"):
        expose(name, path=path)
    assert host.list_instances() == []


def test_a_folder_that_was_there_stays(container):
    name = container(*LOOP)
    inside(name, "mkdir /tmp/mine")
    expose(name, path="/tmp/mine")
    host.call_module("ftrace_instance", containers=[name], state="absent")
    assert inside(name, "ls -d /tmp/mine").stdout.strip() == "/tmp/mine"


def test_two_containers_see_their_own_trace_only(container, tmp_path):
    names = [container(*LOOP) for _number in range(2)]
    host.call_module("ftrace_instance", containers=names, expose={}, follow_exec=False)
    for name in names:
        inside(name, f"echo 'word of {name}.' >{PATH}/trace_marker")
    for name in names:
        seen = inside(name, f"cat {PATH}/trace").stdout
        assert [f"word of {other}." in seen for other in names] == [other == name for other in names]
    host.call_module("ftrace_instance", containers=[names[0]], state="absent")
    assert list_mounts(names[0]) == []
    assert "word of" in inside(names[1], f"cat {PATH}/trace").stdout


def test_check_mode_changes_nothing(container):
    name = container(*LOOP)
    assert host.call_module("ftrace_instance", check_mode=True, containers=[name], expose={})["changed"]
    assert (host.list_instances(), list_mounts(name)) == ([], [])
    host.call_module("ftrace_instance", containers=[name])
    assert host.call_module("ftrace_instance", check_mode=True, containers=[name], expose={})["changed"]
    assert list_mounts(name) == []


def test_a_restarted_container_is_shown_its_trace_again(container):
    name = container(*LOOP)
    expose(name)
    host.docker("restart", "-t", "0", name)
    assert list_mounts(name) == []
    assert expose(name)["changed"]
    inside(name, f"echo again >{PATH}/trace_marker")
    assert "again" in inside(name, f"cat {PATH}/trace").stdout


def test_a_tmpfs_that_the_containers_root_calls_as_ours_is_only_its_own_affair(container):
    """A container that may mount mounts what looks like ours: it is taken away there, and nothing else happens."""
    name = container(
        *LOOP, options=("--network", "none", "--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined")
    )
    inside(name, "mkdir /tmp/x && mount -t tmpfs crashcart-0123456789ab /tmp/x")
    host.call_module("ftrace_instance", state="absent", everything=True)
    assert list_mounts(name) == []
    assert inside(name, "ls -d /tmp/x").stdout.strip() == "/tmp/x"


def test_a_pipe_is_not_exposed_of_a_recording(container):
    name = container()
    with pytest.raises(host.ModuleFailed, match="trace_pipe would take events away from the recording"):
        expose(name, files=["trace_pipe"], mode="record")
    assert host.list_instances() == []
