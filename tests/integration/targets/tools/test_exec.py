# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""crashcart_exec on real containers."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import pytest
from support import host, inside

# Every tool of the default set: what it is called with, and what it must say.
TOOLS = {
    "bash": (["bash", "--version"], "GNU bash"),
    "coreutils": (["ls", "--version"], "GNU coreutils"),
    "curl": (["curl", "--version"], "OpenSSL"),
    "dig": (["dig", "-v"], "DiG"),
    "file": (["file", "/dev/crashcart/bin/gdb"], "ELF 64-bit"),
    "find": (["find", "/dev/crashcart/bin", "-name", "gdb"], "/dev/crashcart/bin/gdb"),
    "gdb": (["gdb", "-batch", "-ex", "python import json; print(json.dumps([6 * 7]))"], "[42]"),
    "grep": (["bash", "-c", "echo yes | grep -c y"], "1"),
    "ip": (["ip", "-brief", "address"], "lo "),
    "less": (["less", "--version"], "less "),
    "lsof": (["lsof", "-v"], "revision"),
    "ping": (["ping", "-c", "1", "127.0.0.1"], "1 received"),
    "ps": (["ps", "-e"], "PID"),
    "python3": (["python3", "-c", "import sqlite3, ctypes, lzma; print(sqlite3.sqlite_version)"], "3."),
    "sed": (["sed", "--version"], "GNU sed"),
    "socat": (["socat", "-V"], "socat by"),
    "ss": (["ss", "-tlnp"], "State"),
    "strace": (["strace", "-e", "trace=getpid", "true"], ""),
    "tcpdump": (["tcpdump", "--version"], "libpcap"),
    "util-linux": (["lsblk", "--version"], "util-linux"),
    "vim": (["vim", "--version"], "VIM - Vi IMproved"),
}


def execute(name, *argv, **options):
    """The one result of a command in container NAME."""
    return host.execute(containers=[name], argv=list(argv), **options)[0]


@pytest.mark.parametrize("tool", TOOLS)
def test_every_default_tool_works_where_there_is_nothing_else(static, tool):
    argv, wanted = TOOLS[tool]
    result = execute(static, *argv)
    assert result["rc"] == 0, result
    assert wanted in result["stdout"] + result["stderr"]


@pytest.fixture(scope="module")
def static():
    """A container with one static program, for the whole file."""
    name = f"cc-static-{os.getpid()}"
    host.docker("run", "-d", "--name", name, "--network", "none", "crashcart-test/static")
    yield name
    host.docker("rm", "-f", name)


def test_python_imports_its_whole_library(static):
    program = (
        "import sys, importlib\n"
        "left_out = {'antigravity', 'this', 'tkinter', 'turtle', 'turtledemo', 'idlelib', 'ensurepip', 'venv'}\n"
        "names = [n for n in sys.stdlib_module_names if not n.startswith('_') and n not in left_out]\n"
        "names = [n for n in names if n not in ('msilib', 'msvcrt', 'nt', 'winreg', 'winsound')]\n"
        "bad = []\n"
        "for name in names:\n"
        "    try: importlib.import_module(name)\n"
        "    except Exception as e: bad.append((name, str(e)))\n"
        "print(len(names), bad)\n"
    )
    count, _space, bad = execute(static, "python3", "-W", "ignore", "-c", program)["stdout"].partition(" ")
    assert bad.strip() == "[]"
    assert int(count) > 200


def test_tcpdump_captures_a_packet(static):
    script = "tcpdump -i lo -c 1 -n icmp & sleep 1; ping -c 1 127.0.0.1 >/dev/null; wait"
    result = execute(static, "bash", "-c", script, timeout="20s")
    assert "ICMP echo request" in result["stdout"]


def test_strace_sees_the_containers_process(container):
    name = container("busybox", "/bin/sh", "-c", "while /bin/true; do /bin/cat /nonesuch-file; done")
    result = execute(name, "bash", "-c", "timeout 2 strace -f -o /dev/stdout -e trace=openat -p 1", timeout="20s")
    assert '"/nonesuch-file"' in result["stdout"]


@pytest.mark.parametrize("rc", [0, 1, 2, 124, 126, 127, 128, 200, 255])
def test_exit_codes_pass_through(static, rc):
    assert execute(static, "bash", "-c", f"exit {rc}")["rc"] == rc


def test_a_command_that_fails_fails_its_task_by_its_own_words(container):
    good, bad = container(), container(options=("--network", "none", "--hostname", "bad"))
    script = "echo out; if [ $(cat /proc/sys/kernel/hostname) = bad ]; then echo one >&2; printf 'two \\033[2J\\n\\n' >&2; exit 3; fi"
    call = {"containers": [good, bad], "argv": ["bash", "-c", script]}
    done = host.run("ansible", "localhost", "-m", "crashcart.fleet.crashcart_exec", "-a", json.dumps(call), check=False)
    assert done.returncode != 0
    result = json.loads(done.stdout.partition("=> ")[2])
    assert result["msg"] == (
        f"1 of 2 containers failed: container {bad}: the command ended with exit code 3: two \\x1b[2J; run all the same: {good}"
    )
    assert result["failed_containers"] == []
    told = {one["container"]: (one["rc"], one["stdout_lines"]) for one in result["results"]}
    assert told == {good: (0, ["out"]), bad: (3, ["out"])}
    with pytest.raises(host.ModuleFailed, match="container .*: the command ended with exit code 1$"):
        host.call_module("crashcart_exec", containers=[good], argv=["false"])


def test_failed_when_decides_which_exit_codes_are_failures(container, tmp_path):
    """By the examples of the module's documentation."""
    name = container()
    task = {
        "crashcart.fleet.crashcart_exec": {"containers": name, "argv": ["bash", "-c", "exit {{ code }}"]},
        "register": "found",
        "failed_when": "found.results is not defined or found.results | map(attribute='rc') | difference([0, 1]) | length > 0",
    }
    any_code = {**task, "failed_when": "found.results is not defined or found.failed_containers | length > 0"}
    gone = {"crashcart.fleet.crashcart_exec": {"containers": "nonesuch", "argv": ["true"]}}
    for number, (one, code, is_green) in enumerate(
        ((task, 1, True), (task, 2, False), (any_code, 2, True), ({**any_code, **gone}, 0, False))
    ):
        play = tmp_path / f"{number}.yml"
        play.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": [one]}]))
        assert (
            host.run("ansible-playbook", str(play), "-e", f"code={code}", check=False).returncode == 0
        ) == is_green, one


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGPIPE])
def test_a_signal_is_128_and_its_number(static, number):
    assert execute(static, "bash", "-c", f"kill -{number.value} $$")["rc"] == 128 + number


def test_what_a_command_gets(container):
    name = container("busybox")
    script = 'cat; echo "$PWD|$VARIABLE|$(id -u):$(id -g):$(id -G)"; env | sort'
    result = execute(name, "bash", "-c", script, env={"VARIABLE": "a 'b'\n$c"}, stdin="in\n", chdir="/tmp", user="app")
    assert result["stdout"].startswith("in\n/tmp|a 'b'\n$c|1234:1235:1235 1300\n")
    names = {line.partition("=")[0] for line in result["stdout"].splitlines()[3:] if "=" in line}
    assert "DOCKER_HOST" not in names, "the host's environment leaked"
    assert result["stderr"] == ""
    assert execute(name, "bash", "-c", "id -u; echo $HOME", user="1000")["stdout"] == "1000\n/\n"
    assert execute(name, "id", "-g", user="1000:7")["stdout"] == "7\n"
    assert execute(name, "bash", "-c", "id -u; echo $HOME")["stdout"] == "0\n/root\n"
    assert execute(name, "bash", "-c", "echo $HOME", env={"HOME": "/mine"})["stdout"] == "/mine\n"
    apps = container("busybox", options=("--network", "none", "--user", "app"))
    homes = [execute(apps, "bash", "-c", "echo $HOME", rights=rights)["stdout"] for rights in ("tools", "host")]
    assert homes == ["/home/app\n", "/root\n"]
    with pytest.raises(host.ModuleFailed, match=f"{name}.*no user is called 'nobody-here'"):
        execute(name, "true", user="nobody-here")


def test_cmd_is_split_but_given_to_no_shell(static):
    result = host.call_module("crashcart_exec", containers=[static], cmd="printf '%s|' 'a b' $(id) ';' \"c\"")
    assert result["results"][0]["stdout"] == "a b|$(id)|;|c|"


def test_a_bare_name_is_never_a_program_of_the_container(container):
    name = container("busybox", "/bin/sh", "-c", "/bin/busybox cp /bin/busybox /bin/evil; /bin/sleep 1000")
    host.wait_until(lambda: host.run("docker", "exec", name, "/bin/ls", "/bin/evil", check=False).returncode == 0)
    with pytest.raises(host.ModuleFailed, match=f"{name}.*no program called 'evil'"):
        execute(name, "evil")
    assert execute(name, "/bin/busybox", "echo", "yes")["stdout"] == "yes\n"


def test_commands_run_side_by_side_in_all_containers(container):
    names = [container() for _number in range(8)]
    start = time.monotonic()
    results = host.execute(containers=names, argv=["bash", "-c", "sleep 2; cat /proc/sys/kernel/hostname"])
    assert time.monotonic() - start < host.seconds(10)
    assert {one["container"] for one in results} == set(names)
    assert len({one["stdout"] for one in results}) == 8


@pytest.mark.parametrize("attached", [False, True])
def test_the_target_sees_nothing_of_a_passing_execution(container, attached):
    name = container()
    if attached:
        host.call_module("crashcart_attach", containers=[name])
    before = host.read_container_mounts(name)
    process = host.start_module("crashcart_exec", containers=[name], argv=["bash", "-c", "echo x > /dev/mine; sleep 2"])
    host.wait_until(lambda: host.runs(name, "sleep 2"))
    during = host.read_container_mounts(name)
    listing = host.docker("exec", name, "/bin/ls", "-a", "/dev").split()
    stdout, stderr = process.communicate(timeout=host.seconds(30))
    assert host.parse_result(stdout, stderr)["results"][0]["rc"] == 0
    assert during == before
    assert ("crashcart" in listing) == attached
    assert "mine" not in listing
    assert host.read_container_mounts(name) == before
    assert host.docker("diff", name) == ""


def test_a_detach_and_other_sessions_do_not_disturb_a_running_command(container):
    name = container()
    host.call_module("crashcart_attach", containers=[name])
    process = host.start_module(
        "crashcart_exec",
        containers=[name],
        argv=["bash", "-c", "sleep 2; ls -d /dev/crashcart/bin; /dev/crashcart/bin/true"],
    )
    host.wait_until(lambda: host.runs(name, "sleep 2"))
    host.call_module("crashcart_attach", containers=[name], state="detached")
    assert execute(name, "true")["rc"] == 0
    result = host.parse_result(*process.communicate(timeout=host.seconds(30)))["results"][0]
    assert (result["rc"], result["stdout"]) == (0, "/dev/crashcart/bin\n")
    host.wait_until_empty(host.list_loop_devices)


def test_a_timeout_ends_the_whole_tree(container):
    name = container()
    script = "(setsid sleep 4321 &) ; setsid bash -c 'trap \"\" TERM; sleep 4322; true' & sleep 4323"
    start = time.monotonic()
    with pytest.raises(host.ModuleFailed, match=f"container {name}: killed after 1 s") as failure:
        execute(name, "bash", "-c", f"echo before; {script}", timeout="1s")
    assert time.monotonic() - start < host.seconds(10)
    result = failure.value.result["results"][0]
    assert (result["timed_out"], result["rc"], result["stdout"]) == (True, 137, "before\n")
    assert not [command for command in host.list_commands(name) if "432" in command]
    host.wait_until_empty(host.list_loop_devices)


def test_what_a_command_leaves_running_ends_with_it(container):
    name = container()
    assert execute(name, "bash", "-c", "setsid sleep 4321 >/dev/null 2>&1 & exit 3")["rc"] == 3
    assert not host.runs(name, "sleep 4321")


@pytest.mark.parametrize("when", ["at once", "while it runs"])
def test_a_killed_module_leaves_nothing(container, when):
    name = container()
    before = host.read_container_mounts(name)
    process = host.start_module("crashcart_exec", containers=[name], argv=["sleep", "4321"])
    if when == "while it runs":
        host.wait_until(lambda: host.runs(name, "sleep 4321"))
    else:
        host.pause(0.3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    host.wait_until(lambda: not host.runs(name, "sleep 4321"))
    host.wait_until_empty(host.list_loop_devices)
    assert host.read_container_mounts(name) == before


def test_output_is_bounded_and_any_bytes_are_taken(static):
    result = execute(static, "bash", "-c", "head -c 6000000 /dev/zero | tr '\\0' x; printf '\\377\\033[2J' >&2")
    assert len(result["stdout"]) == 4 << 20
    assert result["stdout_truncated"]
    assert result["stderr"] == "\ufffd\x1b[2J"
    assert not result["stderr_truncated"]


def test_input_that_nobody_reads_does_no_harm(static):
    assert execute(static, "true", stdin="x" * 3_000_000)["rc"] == 0
    assert execute(static, "wc", "-c", stdin="x" * 3_000_000)["stdout"].strip() == "3000000"


def test_a_container_removed_in_the_middle(container):
    name = container()
    process = host.start_module("crashcart_exec", containers=[name], argv=["sleep", "4321"])
    host.wait_until(lambda: host.runs(name, "sleep 4321"))
    host.docker("rm", "-f", name)
    with pytest.raises(host.ModuleFailed, match=f"{name}.*the container ended"):
        host.parse_result(*process.communicate(timeout=host.seconds(30)))
    host.wait_until_empty(host.list_loop_devices)


def test_check_mode_runs_nothing(container):
    name = container()
    before = host.read_host_state()
    assert execute_check(name)["results"] == []
    assert host.read_host_state() == before
    assert "mine" not in host.docker("exec", name, "/bin/ls", "/tmp")
    with pytest.raises(host.ModuleFailed, match="no container is called"):
        execute_check("nonesuch")


def execute_check(name):
    return host.call_module("crashcart_exec", containers=[name], argv=["touch", "/tmp/mine"], check_mode=True)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"cmd": "echo 'x"}, "cannot be split"),
        ({"cmd": " "}, "empty"),
        ({"argv": ["true"], "timeout": "soon"}, "timeout: 'soon' is not a time"),
        ({"argv": ["true"], "chdir": "/nonesuch"}, r"its folder '/nonesuch' .chdir. cannot be entered: No such file"),
        ({"argv": ["true"], "env": {"N": None}}, "env: N has no value"),
        ({"argv": ["/nonesuch"]}, "cannot run /nonesuch"),
        ({"argv": ["true"], "image": "../x"}, "image name"),
        ({"argv": ["true"], "image": "other"}, "no image is called 'other' on the host .the host has: default."),
        ({"argv": ["true"], "env": {"A=B": "c"}}, "variable"),
    ],
)
def test_bad_input_is_named(static, options, wanted):
    with pytest.raises(host.ModuleFailed, match=wanted):
        host.call_module("crashcart_exec", containers=[static], **options)


def test_a_name_that_a_passwd_makes_the_hosts_root_is_refused(container, tmp_path):
    """Whoever gives it asks for somebody with less than root has."""
    name = container()
    line = "nobody:x:0:0:nobody:/:/bin/sh"
    host.docker(
        "exec", name, "/bin/sh", "-c", f"mkdir -p /etc; echo {line} >/etc/passwd; echo root:x:0:0::/: >>/etc/passwd"
    )
    with pytest.raises(
        host.ModuleFailed, match="user 'nobody' is number 0, and with rights=host that is the host's root"
    ):
        execute(name, "id", "-u", user="nobody", rights="host")
    for user in ("root", "0", "0:0"):
        assert execute(name, "id", "-u", user=user, rights="host")["stdout"] == "0\n"
    assert execute(name, "id", "-u", user="nobody")["stdout"] == "0\n"  # with the container's own capabilities
    become = {"ansible_become": True, "ansible_become_user": "nobody", "ansible_cart_rights": "host"}
    with pytest.raises(AssertionError, match="user 'nobody' is number 0"):
        inside.run_task(tmp_path, name, "ansible.builtin.command", {"argv": ["id"]}, **become)


def test_a_hostile_passwd_cannot_block_or_lead_outside(container):
    name = container("busybox", "/bin/sh", "-c", "/bin/rm /etc/passwd; /bin/mkfifo /etc/passwd; /bin/sleep 1000")
    with pytest.raises(host.ModuleFailed, match="its /etc/passwd cannot be read: it is no regular file but a pipe"):
        execute(name, "true", user="app")
    other = container(
        "busybox",
        "/bin/sh",
        "-c",
        "/bin/rm /etc/passwd; /bin/busybox ln -s /proc/1/root/../../../etc/passwd /etc/passwd; /bin/sleep 1000",
    )
    with pytest.raises(host.ModuleFailed, match="its /etc/passwd cannot be read: .*none of those is followed"):
        execute(other, "true", user="daemon")


@pytest.mark.parametrize(
    "escape",
    [
        "unshare -m setsid sleep 4321",
        "unshare -mpf sleep 4321",
        "nsenter -t 1 -m /bin/sleep 4321",
        "setsid setsid sleep 4321",
    ],
)
@pytest.mark.parametrize("end", ["its end", "a timeout", "a kill"])
def test_nothing_that_a_command_starts_outlives_it(container, escape, end):
    """This holds for processes that have left its mount namespace; and where nobody else reaps, no zombie stays."""
    name = container()
    script = f"{escape} & {escape} & exec 1>&- 2>&-; sleep {'1' if end == 'its end' else '4322'}"
    process = host.start_module(
        "crashcart_exec",
        containers=[name],
        argv=["bash", "-c", script],
        timeout="1s" if end == "a timeout" else None,
        rights="host",  # to make and enter namespaces
    )
    host.wait_until(lambda: host.runs(name, "sleep 4321"))
    if end == "a kill":
        process.send_signal(signal.SIGKILL)
    process.communicate(timeout=host.seconds(30))
    host.wait_until(lambda: len(host.list_commands(name)) == 1)
    host.wait_until_empty(host.list_loop_devices)


def test_what_finished_early_leaves_nothing_while_others_run(container):
    early, late = container(), container(options=("--network", "none", "--hostname", "late"))
    script = "if [ $(cat /proc/sys/kernel/hostname) = late ]; then sleep 3; else setsid sleep 4321 >/dev/null 2>&1 & fi"
    process = host.start_module("crashcart_exec", containers=[early, late], argv=["bash", "-c", script])
    host.wait_until(lambda: host.runs(late, "sleep 3"))
    host.wait_until(lambda: len(host.list_commands(early)) == 1, 2)
    assert host.runs(late, "sleep 3")
    process.communicate(timeout=host.seconds(30))


def test_a_kill_of_its_own_group_is_the_commands_affair(static):
    assert execute(static, "bash", "-c", "kill -9 0")["rc"] == 137
    assert execute(static, "bash", "-c", "trap 'kill 0' EXIT; exit 3")["rc"] in (3, 143)


@pytest.mark.parametrize("user", ["4294967295", "1000:4294967295", "\u00b2", "-1"])
def test_a_number_that_would_stay_root_is_refused(static, user):
    with pytest.raises(host.ModuleFailed, match="no (user|group) is called"):
        execute(static, "id", user=user)


def test_terminal_programs_and_letters(static):
    assert "PID" in execute(static, "top", "-b", "-n", "1")["stdout"]
    assert execute(static, "bash", "-c", "printf é | wc -m")["stdout"].strip() == "1"


LETTERS = "é€𝄞"


@pytest.fixture(params=["ASCII", "ISO-8859-1"])
def locale(request, monkeypatch, tmp_path):
    """The variables of a host's locale that is not UTF-8, which this process has, too."""
    found = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    if request.param != "ASCII":
        name = f"en_US.{request.param}"
        command = ("localedef", "-i", "en_US", "-f", request.param, str(tmp_path / name))
        if host.run(*command, check=False).returncode != 0:
            pytest.skip("this machine has no sources of locales")
        found.update(LC_ALL=name, LOCPATH=str(tmp_path))
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    encoding = host.run(sys.executable, "-c", "import sys; print(sys.getfilesystemencoding())").stdout.strip()
    assert encoding.replace("iso", "iso-").upper().startswith(request.param)
    return found


def run_module(name, *argv, **options):
    done = host.start_module("crashcart_exec", containers=[name], argv=argv, **options)
    return host.parse_result(*done.communicate(timeout=host.seconds(60)))["results"][0]


def test_letters_are_utf_8_whatever_the_hosts_locale_is(static, locale):
    look = 'printf "%s|%s|%s|" "$1" "$LETTERS" "$(cat)"; printf "%s" "$1" | wc -m'
    found = run_module(static, "bash", "-c", look, "x", LETTERS, env={"LETTERS": LETTERS}, stdin=LETTERS)
    assert found["stdout"] == f"{LETTERS}|{LETTERS}|{LETTERS}|3\n"
    with pytest.raises(host.ModuleFailed, match=f"no program called '{LETTERS}'"):
        run_module(static, LETTERS)
    with pytest.raises(host.ModuleFailed, match=f"cannot run /{LETTERS}"):
        run_module(static, f"/{LETTERS}")


def test_a_foreign_mount_over_the_tools_stays(container):
    name = container(options=("--network", "none", "--cap-add", "SYS_ADMIN", "--security-opt", "apparmor=unconfined"))
    host.call_module("crashcart_attach", containers=[name])
    host.run(
        "nsenter", "-t", str(host.find_pid(name)), "-m", "--", "/bin/mount", "-t", "tmpfs", "mine", "/dev/crashcart"
    )
    before = host.read_container_mounts(name)
    with pytest.raises(host.ModuleFailed, match=f"{name}.*not ours"):
        host.call_module("crashcart_attach", containers=[name], state="detached")
    assert host.read_container_mounts(name) == before


@pytest.mark.parametrize("signal_name", ["KILL", "STOP"])
def test_a_containers_root_that_turns_on_the_supervisor_gains_no_process(container, signal_name):
    name = container()
    process = host.start_module(
        "crashcart_exec", containers=[name], argv=["bash", "-c", "setsid sleep 7771 & sleep 7772"], timeout="3s"
    )
    host.wait_until(lambda: host.runs(name, "sleep 7771") and host.runs(name, "sleep 7772"))
    host.docker("exec", name, "/bin/busybox", "killall", f"-{signal_name}", "crashcart")
    with pytest.raises(
        host.ModuleFailed, match=f"{name}.*killed" if signal_name == "KILL" else f"container {name}: killed after 3 s"
    ):
        host.parse_result(*process.communicate(timeout=host.seconds(60)))
    assert not [command for command in host.list_commands(name) if "777" in command]
    host.wait_until_empty(host.list_loop_devices)


def test_a_users_command_gains_nothing_by_a_setuid_program(container):
    name = container(
        "busybox",
        "/bin/sh",
        "-c",
        "/bin/busybox cp /bin/busybox /bin/busybox-setuid; /bin/chmod 4755 /bin/busybox-setuid; /bin/sleep 1000",
    )
    host.wait_until(
        lambda: host.run("docker", "exec", name, "/bin/ls", "/bin/busybox-setuid", check=False).returncode == 0
    )
    read = ["bash", "-c", "/bin/busybox-setuid cat /proc/self/status"]
    status = execute(name, *read, user="1234", rights="host")["stdout"]
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == ["1234"] * 4
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0
    assert fields["NoNewPrivs"] == "1"
