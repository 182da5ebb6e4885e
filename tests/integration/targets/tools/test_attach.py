# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""crashcart_attach on real containers."""

from __future__ import annotations

import os
import re
import resource
import shlex
import shutil
import signal
import stat
import subprocess
from contextlib import contextmanager

import pytest
from support import host, serving
from support.records import find_record

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach import attachments
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError

TOOLS = "/dev/crashcart/bin"
KINDS = {
    "no shell": ("static", ()),
    "read-only": ("busybox", ("--read-only",)),
    "unprivileged": ("python", ("--cap-drop", "ALL", "--user", "1000")),
    "everything at once": ("static", ("--read-only", "--cap-drop", "ALL", "--user", "1000")),
    "redis": ("redis", ()),
    "nginx": ("nginx", ()),
}


def list_changes(name):
    """Return the files that container NAME has changed, sorted, since the engine lists them in no order."""
    return sorted(host.docker("diff", name).splitlines())


def wait_for_quiet(name):
    """Wait until the service of container NAME has made its files, and return the files that the container has changed."""
    changes = None
    while changes != list_changes(name):
        changes = list_changes(name)
        host.pause(0.5)
    return changes


@contextmanager
def open_files(soft, taken=0):
    """This process, and what it starts, may open SOFT files, and has opened TAKEN."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    fds = [os.open("/", os.O_PATH | os.O_CLOEXEC) for _number in range(taken)]
    try:
        yield
    finally:
        for fd in fds:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_more_containers_than_a_login_may_open_files_for(container):
    names = [container() for _number in range(12)]
    with open_files(48):
        assert host.call_module("crashcart_attach", containers=names)["changed"]
        limit = {"argv": ["bash", "-c", "ulimit -Sn"], "rights": "host"}
        told = host.execute(containers=names[:2], **limit)
        assert [one["stdout"] for one in told] == ["48\n"] * 2  # a command does not have more than it would without us
        assert host.call_module("crashcart_attach", containers=names, state="detached")["changed"]


def test_descriptors_above_those_that_select_takes(container):
    name = container()
    found = find_record(name)
    with open_files(4096, taken=1100):
        serving.attach([found])
        assert len(attachments.list_attachments([found])[0]) == 1
        serving.detach([found])
    assert host.call_module("crashcart_info", gather=["attachments"], containers=[name])["attachments"] == []


@pytest.mark.parametrize("kind", KINDS)
def test_tools_run_in_any_container_and_leave_no_trace(container, kind):
    image, options = KINDS[kind]
    name = container(image, options=("--network", "none", *options))
    before = host.read_container_mounts(name)
    changed_before = wait_for_quiet(name)
    result = host.call_module("crashcart_attach", containers=[name])
    assert result["changed"]
    assert host.docker("exec", name, f"{TOOLS}/bash", "-c", "echo $((6 * 7))") == "42"
    assert host.docker("exec", name, f"{TOOLS}/python3", "-c", "import json, socket; print(json.dumps([1]))") == "[1]"
    assert "GNU gdb" in host.docker("exec", name, f"{TOOLS}/gdb", "--version")
    assert host.call_module("crashcart_attach", containers=[name], state="detached")["changed"]
    assert host.read_container_mounts(name) == before
    assert list_changes(name) == changed_before
    assert not os.path.exists(f"/proc/{host.find_pid(name)}/root/dev/crashcart")
    host.wait_until_empty(host.list_loop_devices)


def test_a_container_without_changes_of_its_own_has_an_empty_diff(container):
    name = container("static")
    host.call_module("crashcart_attach", containers=[name])
    host.docker("exec", name, f"{TOOLS}/bash", "-c", "true")
    host.call_module("crashcart_attach", containers=[name], state="detached")
    assert host.docker("diff", name) == ""


def test_gdb_shows_a_backtrace_of_redis(container):
    name = container("redis")
    result = host.call_module("crashcart_exec", containers=[name], argv=["gdb", "-batch", "-p", "1", "-ex", "bt"])
    assert "epoll_wait" in result["results"][0]["stdout"]


def test_twenty_containers_share_one_loop_device(container):
    names = [container("busybox") for _number in range(20)]
    result = host.call_module("crashcart_attach", containers=names)
    assert len(result["attachments"]) == 20
    assert len(host.list_loop_devices()) == 1
    assert {host.docker("exec", name, f"{TOOLS}/bash", "-c", "echo yes") for name in names} == {"yes"}
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        assert "crashcart" not in file.read(), "the host itself got a mount"
    host.call_module("crashcart_attach", containers=names, state="detached")
    host.wait_until_empty(host.list_loop_devices)


def test_the_mount_is_read_only_without_setuid_and_devices(container):
    name = container("busybox")
    host.call_module("crashcart_attach", containers=[name])
    line = next(line for line in host.read_container_mounts(name).splitlines() if " /dev/crashcart " in line)
    assert {"ro", "nosuid", "nodev"} <= set(line.split()[5].split(","))
    assert line.split(" - ")[1].split()[2].split(",")[0] == "ro", "the superblock is writable"
    assert host.run("docker", "exec", name, "/bin/touch", "/dev/crashcart/x", check=False).returncode != 0


def test_twice_changes_nothing_the_second_time(container):
    name = container()
    first = host.call_module("crashcart_attach", containers=[name])
    state = host.read_container_mounts(name)
    second = host.call_module("crashcart_attach", containers=[name])
    assert (first["changed"], second["changed"]) == (True, False)
    assert second["attachments"] == first["attachments"]
    assert host.read_container_mounts(name) == state
    assert host.call_module("crashcart_attach", containers=[name], state="detached")["changed"]
    assert not host.call_module("crashcart_attach", containers=[name], state="detached")["changed"]


@pytest.mark.parametrize("attached", [False, True])
def test_check_mode_predicts_and_touches_nothing(container, attached):
    name = container()
    if attached:
        host.call_module("crashcart_attach", containers=[name])
    for state in ("attached", "detached"):
        before = (host.read_host_state(), host.read_container_mounts(name))
        predicted = host.call_module("crashcart_attach", containers=[name], state=state, check_mode=True, diff=True)
        assert (host.read_host_state(), host.read_container_mounts(name)) == before
        assert predicted["changed"] == (attached != (state == "attached"))
        assert (predicted["diff"]["before"] != predicted["diff"]["after"]) == predicted["changed"]
        assert bool(predicted["diff"]["after"]) == (state == "attached")


def test_what_was_done_before_a_failure_is_told(container):
    good, bad = container(), container("busybox", "/bin/sh", "-c", "/bin/touch /dev/crashcart; /bin/sleep 1000")
    host.wait_until(lambda: "crashcart" in host.docker("exec", bad, "/bin/ls", "/dev"))
    with pytest.raises(host.ModuleFailed, match=f"attach to container {bad}") as failed:
        host.call_module("crashcart_attach", containers=[bad, good])
    told = [one["container"] for one in failed.value.result["attachments"]]
    assert (failed.value.result["changed"], told) == (True, [good])
    assert "/dev/crashcart" in host.read_container_mounts(good)
    other = container()
    host.call_module("crashcart_attach", containers=[other])
    host.docker("exec", "-d", "-w", "/dev/crashcart/bin", good, "/bin/sleep", "1000")
    with pytest.raises(host.ModuleFailed, match=f"detach from container {good}.*sleep") as failed:
        host.call_module("crashcart_attach", containers=[good, other], state="detached")
    told = [one["container"] for one in failed.value.result["attachments"]]
    assert (failed.value.result["changed"], told) == (True, [good])
    with pytest.raises(host.ModuleFailed) as failed:
        host.call_module("crashcart_attach", containers=[good, other], state="detached")
    assert not failed.value.result["changed"]


def test_what_stands_in_the_way_is_named_and_stays(container):
    for command, wanted in (
        ("/bin/mkdir /dev/crashcart; /bin/touch /dev/crashcart/mine", "not empty"),
        ("/bin/touch /dev/crashcart", "not a directory"),
        ("/bin/busybox ln -s /tmp /dev/crashcart", "not a directory"),
    ):
        name = container("busybox", "/bin/sh", "-c", f"{command}; /bin/sleep 1000")
        before = host.docker("exec", name, "/bin/ls", "-la", "/dev", "/tmp")
        for check_mode in (True, False):
            with pytest.raises(host.ModuleFailed, match=f"{name}.*{wanted}"):
                host.call_module("crashcart_attach", containers=[name], check_mode=check_mode)
        assert host.docker("exec", name, "/bin/ls", "-la", "/dev", "/tmp") == before
        assert host.list_loop_devices() == []


def change_dev(name, *command):
    """Run COMMAND, a mount, as root in container NAME, which may not do that itself."""
    host.run("nsenter", "-t", str(host.find_pid(name)), "-m", "-p", "/bin/busybox", *command)


def test_a_dev_that_is_mounted_read_only_gets_a_mount_point_all_the_same(container):
    name = container("busybox", options=("--network", "none", "--read-only"))
    change_dev(name, "mount", "-o", "remount,bind,ro", "/dev")
    mounts = host.read_container_mounts(name)
    assert host.call_module("crashcart_attach", containers=[name], check_mode=True)["changed"]
    host.call_module("crashcart_attach", containers=[name])
    assert host.docker("exec", name, f"{TOOLS}/bash", "-c", "echo yes") == "yes"
    assert host.run("docker", "exec", name, "/bin/touch", "/dev/x", check=False).returncode != 0
    host.call_module("crashcart_attach", containers=[name], state="detached")
    assert host.read_container_mounts(name) == mounts
    assert "crashcart" not in host.docker("exec", name, "/bin/ls", "/dev")


def test_a_dev_whose_file_system_is_read_only_is_foreseen_and_named(container):
    name = container()
    change_dev(name, "mount", "-t", "tmpfs", "-o", "ro", "tmpfs", "/dev")
    for check_mode in (True, False):
        with pytest.raises(host.ModuleFailed, match=f"cannot attach to container {name}.*Read-only.*start it with"):
            host.call_module("crashcart_attach", containers=[name], check_mode=check_mode)
    assert host.list_loop_devices() == []


def test_a_dev_of_the_containers_own_files(container):
    """Where a runtime mounts nothing on /dev, the folder is made among the container's files, and removed."""
    name = container()
    change_dev(name, "umount", "-l", "/dev")
    host.call_module("crashcart_attach", containers=[name])
    assert os.path.exists(f"/proc/{host.find_pid(name)}/root{TOOLS}/bash")
    host.call_module("crashcart_attach", containers=[name], state="detached")
    assert not os.path.exists(f"/proc/{host.find_pid(name)}/root/dev/crashcart")


def test_an_empty_folder_of_somebody_else_is_used_and_stays(container):
    name = container("busybox", "/bin/sh", "-c", "/bin/mkdir /dev/crashcart; /bin/sleep 1000")
    host.call_module("crashcart_attach", containers=[name])
    assert host.docker("exec", name, f"{TOOLS}/bash", "-c", "echo yes") == "yes"
    host.call_module("crashcart_attach", containers=[name], state="detached")
    assert host.docker("exec", name, "/bin/ls", "-A", "/dev/crashcart") == ""
    assert not host.call_module("crashcart_attach", containers=[name], state="detached")["changed"]


def test_a_symlink_on_the_way_is_not_followed(container):
    """/dev itself leads elsewhere: the image's only place must not be made there."""
    name = container(
        "busybox",
        "/bin/sh",
        "-c",
        "/bin/umount -l /dev; /bin/rm -rf /dev; /bin/busybox ln -s /tmp /dev; /bin/sleep 1000",
    )
    pid = host.find_pid(name)
    if not os.path.islink(f"/proc/{pid}/root/dev"):
        # Without CAP_SYS_ADMIN the container cannot unmount its /dev; the host can do it for the test.
        host.run("nsenter", "-t", str(pid), "-m", "--", "/bin/umount", "-l", "/dev")
        shutil.rmtree(f"/proc/{pid}/root/dev")
        os.symlink("/tmp", f"/proc/{pid}/root/dev")
    with pytest.raises(host.ModuleFailed, match=f"{name}.*symbolic link"):
        host.call_module("crashcart_attach", containers=[name])
    assert os.listdir(f"/proc/{pid}/root/tmp") == []


def test_busy_tools_are_named_and_a_lazy_detach_takes_them_out_of_sight(container):
    name = container()
    host.call_module("crashcart_attach", containers=[name])
    with subprocess.Popen(["docker", "exec", name, f"{TOOLS}/sleep", "1000"]) as user:
        host.wait_until(lambda: host.runs(name, "sleep 1000"))
        with pytest.raises(host.ModuleFailed, match=r"'sleep' \(pid \d+\)"):
            host.call_module("crashcart_attach", containers=[name], state="detached")
        assert "/dev/crashcart" in host.read_container_mounts(name)
        assert host.call_module("crashcart_attach", containers=[name], state="detached", busy="lazy")["changed"]
        assert "/dev/crashcart" not in host.read_container_mounts(name)
        user.terminate()


@contextmanager
def busy_tools(name, *command):
    """COMMAND of the attached tools, at work in container NAME."""
    with subprocess.Popen(["docker", "exec", name, f"{TOOLS}/{command[0]}", *command[1:]]) as user:
        host.wait_until(lambda: host.runs(name, " ".join(command)))
        yield user
        user.terminate()


def test_a_detach_waits_for_busy_tools(container):
    name = container()
    host.call_module("crashcart_attach", containers=[name])
    with busy_tools(name, "sleep", "3"):
        detached = host.call_module("crashcart_attach", containers=[name], state="detached", busy="wait")
        assert detached["changed"]
    assert "/dev/crashcart" not in host.read_container_mounts(name)
    host.call_module("crashcart_attach", containers=[name])
    with busy_tools(name, "sleep", "1000"), pytest.raises(host.ModuleFailed, match=r"in use by 'sleep' \(pid \d+\)"):
        host.call_module("crashcart_attach", containers=[name], state="detached", busy="wait", busy_timeout="1s")
    assert "/dev/crashcart" in host.read_container_mounts(name)


def test_a_detach_kills_busy_tools_and_nobody_else(container):
    name = container("busybox", "/bin/sh", "-c", "/bin/sleep 4321 & wait")
    host.call_module("crashcart_attach", containers=[name])
    with busy_tools(name, "bash", "-c", "cd /tmp; exec 9< /dev/crashcart; sleep 1000; true") as user:
        detached = host.call_module("crashcart_attach", containers=[name], state="detached", busy="kill")
        assert detached["changed"]
        assert user.wait(10) == 137
    assert "/dev/crashcart" not in host.read_container_mounts(name)
    assert host.runs(name, "/bin/sleep 4321")


STATES = {
    "exited": lambda name: host.docker("stop", "-t", "0", name),
    "paused": lambda name: host.docker("pause", name),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("module", ["crashcart_attach", "crashcart_exec", "ftrace_instance"])
def test_a_container_that_does_not_run_is_named(container, state, module):
    name = container()
    before = host.read_host_state()
    STATES[state](name)
    more = {"argv": ["true"]} if module == "crashcart_exec" else {}
    with pytest.raises(host.ModuleFailed, match=f"{name}.*{state}"):
        host.call_module(module, containers=[name], **more)
    assert host.read_host_state() == before


def test_a_restarting_container_is_named(container):
    name = container("busybox", "/bin/false", options=("--network", "none", "--restart", "always"))
    host.wait_until(lambda: host.docker("inspect", "-f", "{{.State.Status}}", name) == "restarting")
    with pytest.raises(host.ModuleFailed, match=f"{name}.*(restarting|ended)"):
        host.call_module("crashcart_exec", containers=[name], argv=["true"])


def test_unknown_and_ambiguous_names(container):
    names = [container() for _number in range(2)]
    with pytest.raises(host.ModuleFailed, match=r"no container is called 'nonesuch'; running are: .*cc-test"):
        host.call_module("crashcart_attach", containers=["nonesuch", names[0]])
    short_id = host.docker("inspect", "-f", "{{.Id}}", names[0])[:12]
    for digits in (short_id[0], short_id[:11]):
        with pytest.raises(
            host.ModuleFailed, match=f"no container is called '{digits}'; it begins the id of .*{names[0]}"
        ):
            host.call_module("crashcart_attach", containers=[digits])
    container(name=short_id)
    with pytest.raises(host.ModuleFailed, match="ambiguous"):
        host.call_module("crashcart_attach", containers=[short_id])
    assert host.list_loop_devices() == []


def test_nothing_selected_and_nothing_matched(container):
    name = container()
    with pytest.raises(host.ModuleFailed, match="say which containers"):
        host.call_module("crashcart_attach")
    with pytest.raises(host.ModuleFailed, match=f"matches no container; running are: .*{name}"):
        host.call_module("crashcart_attach", containers=["nonesuch*"])
    assert host.call_module("crashcart_attach", containers=["nonesuch*"], allow_empty=True)["attachments"] == []


def test_a_group_of_hosts_is_served_where_some_lack_the_container(container):
    name = container()
    for absent in ("nonesuch", "pid:4194305", "docker:nonesuch", "7" * 64):
        result = host.call_module("crashcart_attach", containers=[absent, name], allow_empty=True)
        assert [one["container"] for one in result["attachments"]] == [name]
        assert "warnings" not in result
    assert host.call_module("crashcart_attach", containers=["nonesuch"], allow_empty=True)["attachments"] == []
    argv = {"argv": ["true"], "allow_empty": True}
    assert host.call_module("crashcart_exec", containers=["nonesuch"], **argv)["results"] == []
    (ran,) = host.call_module("crashcart_exec", containers=["nonesuch", name], **argv)["results"]
    assert ran["container"] == name


def test_what_is_not_there_is_detached(container):
    name, other = container(), container()
    host.call_module("crashcart_attach", containers=[name])
    for check_mode in (True, False):
        result = host.call_module(
            "crashcart_attach", containers=["nonesuch", other, name], state="detached", check_mode=check_mode
        )
        assert result["changed"]
        assert "nothing to do for 'nonesuch': no container here is called so" in str(result["warnings"])
    assert host.list_loop_devices() == []
    for names, words in ((["nonesuch", "pid:4194305"], "nonesuch', 'pid:4194305"), (["nonesuch*"], "matches no")):
        result = host.call_module("crashcart_attach", containers=names, state="detached")
        assert not result["changed"]
        assert words in str(result["warnings"])
    silent = {"docker_host": "unix:///nonesuch.sock"}
    with pytest.raises(host.ModuleFailed, match="no Docker engine answers"):
        host.call_module("crashcart_attach", containers=["nonesuch"], state="detached", **silent)


def test_selection_by_labels_and_query(container):
    web = container(options=("--network", "none", "--label", "tier=web", "--label", "note=a 'b' $(c)"))
    container(options=("--network", "none", "--label", "tier=db"))
    ways = (
        {"labels": {"tier": "web"}},
        {"labels": {"note": "a 'b' $(c)"}},
        {"query": "Config.Labels.tier == 'web'"},
        {"containers": ["cc-test-*"], "labels": {"note": None}},
        {"containers": [host.docker("inspect", "-f", "{{.Id}}", web)[:20]]},
    )
    for selection in ways:
        found = host.call_module("crashcart_attach", check_mode=True, **selection)["attachments"]
        assert [one["container"] for one in found] == [web], selection
    with pytest.raises(host.ModuleFailed, match="is not JMESPath"):
        host.call_module("crashcart_attach", query="Config.[")


def test_a_process_that_died_after_the_inspect_is_refused(container):
    name = container()
    record = find_record(name)
    host.docker("kill", name)
    host.wait_until(lambda: not os.path.exists(f"/proc/{record.pid}"))
    with pytest.raises(FleetError, match=f"{name}.*just ended"):
        serving.attach([record])
    assert host.list_loop_devices() == []


def test_a_detach_minds_no_container_that_died_after_the_inspect(container):
    dying, staying = container(), container()
    host.call_module("crashcart_attach", containers=[dying, staying])
    records = [find_record(name) for name in (dying, staying)]
    host.docker("kill", dying)
    host.wait_until(lambda: host.docker("inspect", "-f", "{{.State.Running}}", dying) == "false")
    change = serving.detach(records)
    assert ([one.container.name for one in change.before], change.after) == ([staying], [])
    assert host.list_loop_devices() == []


def test_a_pid_that_now_belongs_to_a_process_of_the_host_is_refused(container):
    """The kernel may give the number of a dead container's process to another process."""
    name = container()
    record = find_record(name)
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        recycled = type(record)(**{**vars(record), "pid": stranger.pid})
        with pytest.raises(FleetError, match=f"{name}.*another process"):
            serving.attach([recycled])
        stranger.kill()
    assert not os.path.exists("/dev/crashcart")


def test_a_killed_attach_leaves_what_the_next_one_takes(container):
    """kill -9 at some moments of its life: the next call brings what was asked for, a detach brings the rest away."""
    name = container()
    for delay_ms in range(200, 420, 20):
        process = host.start_module("crashcart_attach", containers=[name])
        try:
            process.wait(delay_ms / 1000)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
        assert host.call_module("crashcart_attach", containers=[name])["attachments"][0]["path"] == "/dev/crashcart"
        assert host.read_container_mounts(name).count(" /dev/crashcart ") == 1
        host.call_module("crashcart_attach", containers=[name], state="detached")
        assert not os.path.exists(f"/proc/{host.find_pid(name)}/root/dev/crashcart")
        host.wait_until_empty(host.list_loop_devices)


def test_the_shell_line_gives_a_shell_with_the_tools(container):
    name = container("static")
    line = host.call_module("crashcart_attach", containers=[name])["attachments"][0]["shell"]
    assert host.docker("inspect", "-f", "{{.Id}}", name).startswith(
        re.search(r" ([0-9a-f]{12}) /dev/crashcart/bin/bash ", line).group(1)
    )
    # A terminal of its own, as a person at the keyboard would have.
    done = subprocess.run(
        ["script", "-qec", line, "/dev/null"],
        input="ls /dev/crashcart/bin/gdb; echo $((40+2))-$TERMINFO; exit\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=host.seconds(60),
    )
    assert "42-/dev/crashcart/lib/terminfo" in done.stdout
    assert shlex.split(line)[0] == "docker"


def test_a_detach_leaves_the_tools_of_others_who_share_the_folder(container, tmp_path):
    """To remove a folder would unmount what other containers have mounted on it."""
    folder = tmp_path / "dev"
    folder.mkdir()
    os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))  # which runc wants to see
    options = ("--network", "none", "-v", f"{folder}:/dev")
    one, two, three = (container("busybox", options=options) for _number in range(3))
    host.call_module("crashcart_attach", containers=[one, two])
    assert host.call_module("crashcart_attach", containers=[one], state="detached")["changed"]
    assert not host.call_module("crashcart_attach", containers=[three], state="detached")["changed"]
    assert os.path.exists(f"/proc/{host.find_pid(two)}/root{TOOLS}/bash")
    assert host.call_module("crashcart_attach", containers=[two], state="detached")["changed"]
    assert "crashcart" not in os.listdir(folder)
    host.call_module("crashcart_attach", containers=[one, two, three])
    assert host.call_module("crashcart_attach", containers=[one, two, three], state="detached")["changed"]
    assert "crashcart" not in os.listdir(folder)


def test_detach_takes_a_path_as_people_write_it(container):
    name = container()
    host.call_module("crashcart_attach", containers=[name])
    assert host.call_module("crashcart_attach", containers=[name], state="detached", path="/dev/crashcart/")["changed"]
    assert "/dev/crashcart" not in host.read_container_mounts(name)
