# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""crashcart_exec with rights=container: what the container's first process may do and no more, as `docker exec` gives it."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import struct
from contextlib import suppress
from pathlib import Path

import pytest
from support import host
from support.rights import LOOK
from support.user_namespace import run_in_user_namespace

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import capabilities, seccomp, syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import syscall_names

NETWORK = ("--network", "none")
RIGHTS = ("container", "tools", "host")
DENIES_MKDIR = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}],
}


def contained(name, *argv, **options):
    """The one result of a contained command in container NAME."""
    return host.execute(containers=[name], argv=list(argv), rights="container", **options)[0]


def plain(name, *argv, **options):
    """The one result of a command with the host's capabilities."""
    options.setdefault("rights", "host")
    return host.execute(containers=[name], argv=list(argv), **options)[0]


@pytest.fixture
def profile(tmp_path):
    """A seccomp profile that allows all but mkdir."""
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(DENIES_MKDIR))
    return f"seccomp={path}"


CONTAINERS = {
    "default": (),
    "user": ("--user", "1234:1235"),
    "groups": ("--user", "1234:1235", "--group-add", "44", "--group-add", "4444"),
    "no capabilities": ("--cap-drop", "ALL"),
    "user without capabilities": ("--cap-drop", "ALL", "--user", "1234"),
    "more capabilities": ("--cap-add", "SYS_PTRACE", "--cap-add", "NET_ADMIN"),
    "an administrator": ("--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined"),
    "no new privileges": ("--security-opt", "no-new-privileges"),
    "no new privileges, user": ("--security-opt", "no-new-privileges", "--user", "1234"),
    "no seccomp": ("--security-opt", "seccomp=unconfined"),
    "limits": (
        "--ulimit",
        "nofile=77:88",
        "--ulimit",
        "core=0",
        "--ulimit",
        "nproc=500:600",
        "--ulimit",
        "fsize=1000000",
    ),
    "memory": ("--memory", "64m", "--pids-limit", "50", "--cpus", "0.5"),
    "host's pids": ("--pid", "host"),
    "own control groups": ("--cgroupns", "private"),
    "read-only": ("--read-only",),
    "home": ("--env", "HOME=/srv/of its own"),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_contained_command_is_as_docker_exec_makes_it(container, kind):
    name = container(options=(*NETWORK, *CONTAINERS[kind]))
    look = f'{LOOK}; echo "home $HOME"'
    wanted = host.docker("exec", name, "/bin/sh", "-c", look)
    result = contained(name, "/bin/sh", "-c", look)
    assert result["rc"] == 0, result
    assert result["stdout"].strip() == wanted
    assert "CapBnd" in wanted


@pytest.mark.parametrize("user", ["root", "app", "1234", "4321", "4321:1", "app:logs", "1234:7"])
@pytest.mark.parametrize(
    "kind", ["default", "user", "no capabilities", "no new privileges", "more capabilities", "home"]
)
def test_another_user_is_as_docker_exec_makes_it(container, kind, user):
    name = container(options=(*NETWORK, *CONTAINERS[kind]))
    script = f'{LOOK}; echo "home $HOME"'
    wanted = host.docker("exec", "--user", user, name, "/bin/sh", "-c", script)
    assert "home /" in wanted
    assert contained(name, "/bin/sh", "-c", script, user=user)["stdout"].strip() == wanted


def test_a_seccomp_filter_holds(container, profile):
    name = container(options=(*NETWORK, "--security-opt", profile))
    script = "mkdir /tmp/$0 && echo made"
    result = contained(name, "bash", "-c", script, "mine")
    assert (result["rc"], result["stdout"]) == (1, "")
    assert "Operation not permitted" in result["stderr"]
    assert plain(name, "bash", "-c", script, "ours")["stdout"] == "made\n"


def test_a_filter_and_no_new_privileges_hold_together(container, profile):
    name = container(options=(*NETWORK, "--security-opt", profile, "--security-opt", "no-new-privileges"))
    assert "Operation not permitted" in contained(name, "mkdir", "/tmp/mine")["stderr"]
    assert host.docker("exec", name, "/bin/sh", "-c", LOOK) == contained(name, "/bin/sh", "-c", LOOK)["stdout"].strip()


# What Docker's default container may not do, each as one command of the image, and what is said then.
FORBIDDEN = {
    "mount": (["/bin/busybox", "mount", "-t", "tmpfs", "x", "/tmp"], "permission denied|Operation not permitted"),
    "unmount": (["/bin/busybox", "umount", "/dev"], "must be superuser|permission denied|not permitted"),
    "another namespace": (["nsenter", "-t", "1", "-m", "true"], "Operation not permitted|Permission denied"),
    "a new namespace": (["unshare", "-m", "true"], "Operation not permitted"),
    "the kernel's log": (["dmesg"], "Operation not permitted|Permission denied"),
    "higher limits": (["bash", "-c", "ulimit -n 77 && ulimit -Hn 78"], "Operation not permitted"),
    "the clock": (["date", "-s", "2020-01-01"], "Operation not permitted"),
    "the network's settings": (["ip", "link", "set", "lo", "down"], "Operation not permitted"),
    "the host's name": (["/bin/busybox", "hostname", "other"], "Operation not permitted"),
    "a block device": (["bash", "-c", "mknod /tmp/loop b 7 0 && head -c 1 /tmp/loop"], "Operation not permitted"),
    "the kernel's settings": (["bash", "-c", "echo 1 > /proc/sys/kernel/domainname"], "Read-only file system"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_the_container_may_not_do_a_contained_command_may_not(container, what):
    argv, said = FORBIDDEN[what]
    name = container()
    result = contained(name, *argv)
    assert result["rc"] != 0, result
    assert re.search(said, result["stderr"]), result


@pytest.mark.parametrize("argv", [["chroot", "/", "true"], ["mknod", "/tmp/x", "c", "1", "3"], ["chown", "1", "/tmp"]])
def test_capabilities_that_the_container_has_dropped_are_missing(container, argv):
    name = container(options=(*NETWORK, "--cap-drop", "ALL"))
    result = contained(name, *argv)
    assert result["rc"] != 0
    assert "Operation not permitted" in result["stderr"]
    assert plain(name, "chroot", "/", "/dev/crashcart/bin/true")["rc"] == 0


def test_the_workload_is_not_traced_by_another_user(container):
    name = container()
    result = contained(name, "timeout", "2", "strace", "-p", "1", user="4321")
    assert "Operation not permitted" in result["stderr"]


def test_a_contained_command_has_no_descriptor_and_no_path_of_the_host(container):
    name = container()
    assert contained(name, "ls", "/proc/self/fd")["stdout"].split() == ["0", "1", "2", "3"]  # 3 is the listing's own
    assert plain(name, "ls", "/proc/self/fd")["stdout"].split() == ["0", "1", "2", "3"]
    mounts = contained(name, "cat", "/proc/self/mountinfo")["stdout"]
    assert "/var/lib/crashcart" not in mounts
    assert "/run/crashcart" not in mounts


def test_streams_can_be_opened_by_their_names_by_any_user(container):
    name = container(options=(*NETWORK, "--user", "1234"))
    result = contained(name, "bash", "-c", "echo out > /dev/stdout; echo err > /proc/self/fd/2")
    assert (result["stdout"], result["stderr"]) == ("out\n", "err\n")


def test_nothing_privileged_of_ours_is_in_the_pid_namespace(container):
    """While a contained command runs every process in there has the container's capabilities, or fewer."""
    name = container()
    first = host.find_pid(name)
    process = host.start_module("crashcart_exec", containers=[name], argv=["sleep", "2"], rights="container")
    namespace = os.readlink(f"/proc/{first}/ns/pid")
    bounding = capabilities.parse_sets(_read_status(first)).bounding
    seen = set()
    while process.poll() is None:
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.readlink(f"/proc/{pid}/ns/pid") != namespace:
                    continue
                status = _read_status(pid)
                assert capabilities.parse_sets(status).permitted & ~bounding == 0, (pid, status)
                if int(pid) != first:
                    seen.add((status["Name"], os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt")))
            except OSError:
                continue
    process.communicate()
    assert ("sleep", False) in seen
    assert not [one for one in seen if one[1]], "a process of ours saw the host's files"


@pytest.mark.parametrize("rights", RIGHTS[:2])
@pytest.mark.parametrize("options", [(), ("--security-opt", "no-new-privileges")])
def test_all_of_ours_in_the_pid_namespace_is_under_the_containers_filters(container, options, rights):
    name = container(options=(*NETWORK, *options))
    first = host.find_pid(name)
    process = host.start_module("crashcart_exec", containers=[name], argv=["sleep", "4321"], rights=rights)
    host.wait_until(lambda: host.runs(name, "sleep 4321"))
    namespace = os.readlink(f"/proc/{first}/ns/pid")
    fields = ("NoNewPrivs", "Seccomp", "Seccomp_filters")
    wanted = {field: _read_status(first)[field] for field in fields}
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if os.readlink(f"/proc/{pid}/ns/pid") == namespace:
                status = _read_status(pid)
                found[status["Name"]] = {field: status[field] for field in fields}
    process.kill()
    process.communicate()
    assert found["crashcart"] == wanted
    assert len(found) == 2, "the first process is a sleep, too"
    assert found["sleep"] == wanted


# A first process under a filter that tells those who make a call of CALLS that it succeeded, and does not let them make it.
FEIGNS = """
import ctypes, struct, time
calls = CALLS
steps = [(0x20, 0, 0, 0)]
for index, call in enumerate(calls):
    steps.append((0x15, len(calls) - index, 0, call))
steps += [(0x06, 0, 0, 0x7fff0000), (0x06, 0, 0, 0x00050000)]
text = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *step) for step in steps))
class Program(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('instructions', ctypes.c_void_p)]
program = Program(len(steps), ctypes.addressof(text))
open('/ready', 'w').close()
assert ctypes.CDLL(None).prctl(22, 2, ctypes.byref(program)) == 0
time.sleep(10000)
"""


@pytest.mark.parametrize("rights", RIGHTS[:2])
@pytest.mark.parametrize("calls", [["capset"], ["clone", "clone3"], ["setsid", "clone"], ["prctl"]])
def test_a_filter_that_feigns_success_gives_a_command_nothing(container, calls, rights):
    """Neither the capabilities that were to be dropped, nor a place among the host's processes: the step is seen to fail."""
    script = FEIGNS.replace("CALLS", repr([syscall_names.find_number(one) for one in calls]))
    options = (
        "--cap-add",
        "SYS_ADMIN",
        "--security-opt",
        "seccomp=unconfined",
        "--security-opt",
        "apparmor=unconfined",
    )
    name = container("python", "/usr/bin/python3", "-c", script, options=(*NETWORK, *options))
    pid = host.find_pid(name)
    host.wait_until(lambda: _read_status(pid)["Seccomp"] == "2")
    with pytest.raises(host.ModuleFailed, match="Operation not permitted"):
        host.call_module("crashcart_exec", containers=[name], argv=["cat", "/proc/self/status"], rights=rights)
    assert not host.runs(name, "crashcart")


def _read_status(pid):
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return {line.partition(":")[0]: line.partition(":")[2].strip() for line in text.splitlines()}


def _check_untouched(pid):
    status = _read_status(pid)
    assert status["TracerPid"] == "0"
    assert status["State"][0] not in "tT", status["State"]


def test_the_first_process_goes_on_after_a_contained_command(container):
    name = container("busybox", "/bin/sh", "-c", "while /bin/true; do i=$((i+1)); echo $i > /tmp/count; done")
    for _round in range(5):
        assert contained(name, "true")["rc"] == 0
        _check_untouched(host.find_pid(name))
    before = contained(name, "cat", "/tmp/count")["stdout"]
    host.wait_until(lambda: contained(name, "cat", "/tmp/count")["stdout"] not in ("", before))


def test_a_kill_in_the_middle_lets_the_first_process_go_on(container):
    """The kills come at 20 moments, and half of them also hit the supervisor, which stops the first process."""
    name = container()
    first = host.find_pid(name)
    for number in range(20):
        process = host.start_module("crashcart_exec", containers=[name], argv=["sleep", "4321"], rights="container")
        host.pause(0.25 + number * 0.02)
        killed = [process.pid]
        if number % 2:
            killed += [int(pid) for pid in host.run("pgrep", "-P", str(process.pid), check=False).stdout.split()]
        for pid in killed:
            with suppress(ProcessLookupError):  # a child of the module that is not the supervisor, and has ended
                os.kill(pid, signal.SIGKILL)
        process.communicate()
        # Where the supervisor was killed its reaper is, too, and what nobody there reaps has no command line.
        host.wait_until(lambda: len([one for one in host.list_commands(name) if one]) == 1)
        _check_untouched(first)
    assert host.docker("inspect", "-f", "{{.State.Running}}", name) == "true"


def test_a_traced_first_process_is_named_with_the_way_out(container):
    name = container()
    first = host.find_pid(name)
    syscalls.ptrace(0x4206, first)  # PTRACE_SEIZE
    try:
        tracer = f"process {os.getpid()} of the host, [^,]+, traces it"
        with pytest.raises(
            host.ModuleFailed, match=f"{name}: the seccomp filter .*{first}.*{tracer}.*crashcart_attach"
        ):
            contained(name, "true")
    finally:
        syscalls.ptrace(0x4207, first)
        os.waitpid(first, 0x40000000)
        syscalls.ptrace(17, first)
    assert contained(name, "true")["rc"] == 0


def test_a_stopped_first_process_stays_stopped(container):
    name = container()
    first = host.find_pid(name)
    os.kill(first, signal.SIGSTOP)
    assert contained(name, "echo", "yes")["stdout"] == "yes\n"
    assert _read_status(first)["State"][0] == "T"
    os.kill(first, signal.SIGCONT)
    host.wait_until(lambda: _read_status(first)["State"][0] == "S")


def test_signals_that_come_while_a_filter_is_read_reach_the_first_process(container):
    """It is traced some ten microseconds at a time; a stream of signals meets that moment."""
    script = "count() { i=$((i+1)); echo $i > /tmp/count; }; trap count USR1; echo 0 > /tmp/count; while true; do /bin/sleep 0.01 & wait; done"
    name = container("busybox", "/bin/sh", "-c", script)
    first = host.find_pid(name)
    host.wait_until(lambda: plain(name, "cat", "/tmp/count")["stdout"] == "0\n")
    for number in range(200):
        os.kill(first, signal.SIGUSR1)
        child = os.fork()
        if child == 0:
            try:
                seccomp.read_filters(first)
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        host.wait_until(lambda n=number: Path(f"/proc/{first}/root/tmp/count").read_text() == f"{n + 1}\n")


def test_filters_are_read_in_the_order_of_their_installation():
    """Two filters of a process on the host: the first one denies what the second one's installation is known by."""
    reader, writer = os.pipe()
    child = os.fork()
    allow = struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)  # BPF_RET | BPF_K, SECCOMP_RET_ALLOW
    load = struct.pack("HBBI", 0x20, 0, 0, 0)  # BPF_LD | BPF_W | BPF_ABS, nr
    if child == 0:
        seccomp.install_filter(allow)
        seccomp.install_filter(load + allow)
        os.write(writer, b"x")
        signal.pause()
    os.read(reader, 1)
    try:
        assert seccomp.read_filters(child) == [allow, load + allow]
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize("rights", RIGHTS)
def test_a_command_is_in_the_containers_control_groups(container, rights):
    name = container()
    groups = host.docker("exec", name, "/bin/cat", "/proc/self/cgroup")
    assert name not in groups
    result = host.call_module("crashcart_exec", containers=[name], argv=["cat", "/proc/self/cgroup"], rights=rights)
    assert result["results"][0]["stdout"].strip() == groups


@pytest.mark.parametrize("rights", RIGHTS)
def test_where_the_containers_memory_ends_the_tool_dies_and_not_the_workload(container, rights):
    name = container(options=(*NETWORK, "--memory", "64m"))
    first = host.find_pid(name)
    script = "x = bytearray(200 << 20); print(len(x))"
    with pytest.raises(host.ModuleFailed, match=f"{name}.*reached its memory limit of 64.0 MiB") as caught:
        host.execute(containers=[name], argv=["python3", "-c", script], rights=rights)
    (result,) = caught.value.result["results"]
    assert (result["rc"], result["stdout"], result["oom_killed"]) == (137, "", True), result
    assert host.find_pid(name) == first
    _check_untouched(first)


def test_a_contained_command_has_none_of_the_callers_keys(container):
    name = container(options=(*NETWORK, "--security-opt", "seccomp=unconfined"))
    libc = ctypes.CDLL(None, use_errno=True)
    key = libc.syscall(
        248, b"user", b"crashcart-test", b"secret", 6, ctypes.c_long(-3)
    )  # add_key, to the session's keyring
    assert key > 0
    read = "import ctypes; print(ctypes.CDLL(None).syscall(250, 11, {}, 0, 0))"  # keyctl, KEYCTL_READ
    assert contained(name, "python3", "-c", read.format(key))["stdout"] == "-1\n"


@pytest.mark.parametrize(("option", "value"), [("namespaces", ["net"]), ("capabilities", ["NET_RAW"])])
def test_what_does_not_go_together_with_the_containers_rights_is_refused(container, option, value):
    with pytest.raises(host.ModuleFailed, match=f"rights=container.*{option}"):
        contained(container(), "true", **{option: value})


def test_a_paused_container_is_refused(container):
    name = container()
    host.docker("pause", name)
    with pytest.raises(host.ModuleFailed, match=f"{name}.*paused"):
        contained(name, "true")
    host.docker("unpause", name)


def test_a_command_whose_container_is_paused_ends_when_that_goes_on(container):
    name = container()
    process = host.start_module("crashcart_exec", containers=[name], argv=["sleep", "4321"], rights="container")
    host.wait_until(lambda: host.runs(name, "sleep 4321"))
    host.docker("pause", name)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    host.pause(1)
    host.docker("unpause", name)
    host.wait_until(lambda: len(host.list_commands(name)) == 1)


def test_a_container_that_ends_takes_a_command_outside_its_pid_namespace_with_it(container):
    """Else its control group could not be removed."""
    name = container()
    process = host.start_module(
        "crashcart_exec", containers=[name], argv=["sleep", "4321"], rights="host", namespaces=["mnt", "net"]
    )
    host.wait_until(lambda: host.run("pgrep", "-f", "^sleep 4321", check=False).stdout)
    host.docker("kill", name)
    with pytest.raises(host.ModuleFailed, match=f"{name}.*ended"):
        host.parse_result(*process.communicate(timeout=host.seconds(30)))
    assert not host.run("pgrep", "-f", "^sleep 4321", check=False).stdout
    host.docker("start", name)
    assert contained(name, "true")["rc"] == 0


def test_a_hostile_containers_root_cannot_trace_what_enters(container):
    """Its processes may trace each other, and try to stop, read and trace whatever of ours appears."""
    script = (
        "import os, ctypes, time\n"
        "libc = ctypes.CDLL(None)\n"
        "own = set(os.listdir('/proc'))\n"
        "caught = []\n"
        "end = time.monotonic() + 4\n"
        "while time.monotonic() < end:\n"
        "    for pid in filter(str.isdigit, os.listdir('/proc')):\n"
        "        if pid in own: continue\n"
        "        try:\n"
        "            target = os.readlink(f'/proc/{pid}/exe')\n"
        "            if not target.startswith('/dev/crashcart/'): caught.append(target)\n"
        "        except OSError: pass\n"
        "print('caught', caught)\n"
    )
    name = container()
    # The spy is a contained command itself: a process with the container's own rights.
    spy = host.start_module("crashcart_exec", containers=[name], argv=["python3", "-c", script], rights="container")
    host.wait_until(lambda: any("python3" in one for one in host.list_commands(name)))
    for _round in range(4):
        contained(name, "true")
    result = host.parse_result(*spy.communicate(timeout=host.seconds(60)))["results"][0]
    assert result["stdout"] == "caught []\n", result


def test_who_may_trace_cannot_write_to_the_hosts_python(container):
    """With CAP_SYS_PTRACE a container reaches the program of each process it sees, by /proc/PID/exe."""
    script = (
        "import os, time\n"
        "held = {}\n"
        "end = time.monotonic() + 4\n"
        "while time.monotonic() < end:\n"
        "    for pid in filter(str.isdigit, os.listdir('/proc')):\n"
        "        try:\n"
        "            target = os.readlink(f'/proc/{pid}/exe')\n"
        "            if target.startswith(('/dev/crashcart/', '/bin/busybox')): continue\n"
        "            if pid not in held: held[pid] = os.open(f'/proc/{pid}/exe', os.O_PATH)\n"
        "        except OSError: pass\n"
        # The file is busy, for this test runs by it; but a mount that is read-only is told of first.
        "seen = set()\n"
        "for fd in held.values():\n"
        "    try: seen.add(os.open(f'/proc/self/fd/{fd}', os.O_WRONLY | os.O_TRUNC))\n"
        "    except OSError as error: seen.add(error.strerror)\n"
        "print(seen)\n"
    )
    name = container(options=(*NETWORK, "--cap-add", "SYS_PTRACE"))
    spy = host.start_module("crashcart_exec", containers=[name], argv=["python3", "-c", script], rights="container")
    host.wait_until(lambda: any("held" in one for one in host.list_commands(name)))
    for _round in range(4):
        contained(name, "true")
    result = host.parse_result(*spy.communicate(timeout=host.seconds(60)))["results"][0]
    assert result["stdout"] == "{'Read-only file system'}\n", result


def test_a_process_in_a_user_namespace_is_entered_as_itself():
    """Where no engine is needed: a root of a user namespace, with groups and names of its own."""
    with run_in_user_namespace() as pid:
        look = "import os; print(os.getresuid(), os.getresgid(), os.getgroups(), os.readlink('/proc/self/ns/user'))"
        name = f"pid:{pid}"
        namespace = os.readlink(f"/proc/{pid}/ns/user")
        assert namespace != os.readlink("/proc/self/ns/user")
        result = contained(name, "python3", "-c", look)
        assert result["stdout"].strip() == f"(0, 0, 0) (0, 0, 0) [] {namespace}", result
        status = dict(
            line.split(":\t", 1)
            for line in contained(name, "cat", "/proc/self/status")["stdout"].splitlines()
            if ":\t" in line
        )
        wanted = _read_status(pid)
        assert {field: status[field].split() for field in wanted if field.startswith("Cap")} == {
            field: wanted[field].split() for field in wanted if field.startswith("Cap")
        }
        other = contained(name, "python3", "-c", look, user="7:8")
        assert other["stdout"].strip() == f"(7, 7, 7) (8, 8, 8) [8] {namespace}", other
        with pytest.raises(host.ModuleFailed, match="its user namespace has no user 70000 with group 0"):
            contained(name, "true", user="70000")
        outside = plain(name, "python3", "-c", look, user="7:8")
        assert outside["stdout"].startswith("(100007, 100007, 100007) (100008, 100008, 100008)"), outside
        entered = plain(name, "python3", "-c", look, namespaces=["mnt", "pid", "user"])
        assert entered["stdout"].strip() == f"(0, 0, 0) (0, 0, 0) [] {namespace}", entered
