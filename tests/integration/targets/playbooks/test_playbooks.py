# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole main job by its playbooks, locally and over ssh, with and without become."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from support import host, sshd

PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
ENGINE = os.environ.get("DOCKER_HOST", "")
LOOP = ("busybox", "/bin/sh", "-c", "while /bin/true; do /bin/cat /nonesuch; /bin/sleep 0.2; done")


@pytest.fixture(params=["localhost"])
def where(request):
    """Options that lead ansible to this machine in one of two ways; pipelining is on. The fleet's tests do all over ssh and by sudo."""
    if request.param == "localhost":
        return ("-l", "localhost")
    return ("-i", str(request.getfixturevalue("ssh_hosts")), "-l", request.param)


def changed(done):
    """The number of changed tasks that a playbook's recap tells."""
    return int(re.search(r"changed=(\d+)", done.stdout).group(1))


def list_login_users_files():
    """The files that Ansible has in the home of the user that it logs in as."""
    return {path for path in Path("/home", sshd.USER, ".ansible").rglob("*") if path.is_file()}


def count_recorded_bytes():
    """The bytes in the rings of the one instance that there is."""
    (name,) = host.list_instances()
    stats = Path(host.TRACEFS, "instances", name).glob("per_cpu/cpu*/stats")
    return sum(int(re.search(r"^bytes: (\d+)", path.read_text(), re.M).group(1)) for path in stats)


def test_the_main_job(container, where, tmp_path):
    name = container(*LOOP)
    chosen = {"containers": name}
    predicted = host.playbook("attach", *where, "--check", **chosen)
    assert changed(predicted) == 1
    assert host.list_loop_devices() == []
    done = host.playbook("attach", *where, **chosen)
    assert re.search(rf"msg: - '?{name}: docker .*?/dev/crashcart/bin/bash", " ".join(done.stdout.split()))
    assert changed(host.playbook("attach", *where, **chosen)) == 0
    done = host.playbook("exec", *where, command="cat /proc/1/comm", **chosen)
    assert re.search(r"msg:\n *- sh\n", done.stdout), done.stdout
    failed = host.playbook("exec", *where, check=False, command="bash -c 'echo oh; exit 7'", **chosen)
    assert failed.returncode != 0
    assert "exit code 7" in failed.stdout
    assert changed(host.playbook("detach", *where, **chosen)) == 1
    assert changed(host.playbook("detach", *where, **chosen)) == 0
    done = host.playbook("trace", *where, seconds=1, dest=str(tmp_path), **chosen)
    assert re.search(r"cat +\d+( of them)? +openat +\d+ .*ENOENT \d+", done.stdout)
    assert host.list_instances() == []
    inventory_name = where[-1]
    captures = os.listdir(tmp_path / inventory_name / name)
    assert sorted(os.path.splitext(file)[1] for file in captures) == [".dat", ".json"]
    assert re.search(rf"{inventory_name} +{name} +\d+ +0 +\d+\.\d  complete", done.stdout)
    assert f"capture: {tmp_path}/{inventory_name}/{name}/" in done.stdout
    assert f"report: {tmp_path}/report" in done.stdout


def test_exec_shows_what_a_command_said_before_the_kernel_killed_it(container):
    name = container(options=("--network", "none", "--memory", "64m"))
    argv = ["python3", "-c", "print('soon', flush=True); bytearray(200 << 20)"]
    failed = host.playbook("exec", check=False, containers=name, argv=argv)
    assert failed.returncode != 0
    assert f"container {name}: the kernel has killed the command" in failed.stdout + failed.stderr
    assert re.search(r"msg:\n *- soon\n *- exit code 137\n", failed.stdout), failed.stdout


def test_one_container_that_fails_costs_no_other(container, tmp_path):
    """The playbook serves the other containers and shows their results; it fails with one message that has both."""
    good, stopped = container(*LOOP), container()
    host.docker("stop", "-t", "0", stopped)
    reason = rf"1 of 2 containers failed: container {stopped} \(\w+\) is exited: start it first"

    def play(name, done, **more):
        chosen = {"containers": [good, stopped], **more}
        played = host.playbook(name, "-l", "localhost", check=False, **chosen)
        assert played.returncode != 0
        text = " ".join(played.stdout.split())
        assert re.search(rf"{reason}[^;]*; {done} all the same: {good}\b", text), text
        return text

    assert "/dev/crashcart/bin/bash" in play("attach", "attached")
    assert "msg: - hello" in play("exec", "run", command="echo hello")
    host.call_module("crashcart_attach", state="detached", everything=True)
    assert re.search(r"openat +\d+ .*ENOENT \d+", play("trace", "traced", seconds=1, dest=str(tmp_path)))
    assert host.list_instances() == []
    assert list((tmp_path / "localhost").iterdir()) == [tmp_path / "localhost" / good]


def test_collect_brings_what_there_is(container, tmp_path):
    good, broken = container(*LOOP), container(*LOOP)
    host.call_module("ftrace_instance", containers=[good, broken])
    short_id = host.docker("inspect", "-f", "{{.Id}}", broken)[:12]
    events = f"{host.TRACEFS}/instances/crashcart-{short_id}/events"
    (tmp_path / "empty").mkdir()
    host.run("mount", "--bind", str(tmp_path / "empty"), events)
    try:
        done = host.playbook("collect", "-l", "localhost", check=False, dest=str(tmp_path / "traces"))
    finally:
        host.run("umount", events)
    assert done.returncode != 0
    text = " ".join(done.stdout.split())
    assert f"capture: {tmp_path}/traces/localhost/{good}/" in text
    assert f"1 of 2 containers failed: container {broken}: " in text
    assert f"; drained all the same: {good}" in text


PLAYBOOKS = ["install", "attach", "exec", "detach", "trace", "start", "stop", "collect", "report", "shell", "cleanup"]
SELECTING = {"attach": {}, "exec": {"argv": ["true"]}, "detach": {}, "trace": {}, "start": {}, "stop": {}, "shell": {}}


@pytest.mark.parametrize("name", PLAYBOOKS)
def test_a_variable_that_no_playbook_knows_and_a_wrong_value_change_nothing(container, name, tmp_path):
    running = container(*LOOP)
    before = host.read_host_state()
    known = {"containers": running, "argv": ["true"], "image_src": host.DEFAULT_IMAGE, "dest": str(tmp_path)}
    done = host.playbook(name, check=False, container="x", fail_on="critcal", **known)
    assert done.returncode != 0
    text = " ".join((done.stdout + done.stderr).split())
    assert "no playbook has a variable crashcart_container: crashcart_containers may be meant" in text
    assert "crashcart_fail_on: no rule is called 'critcal': critical may be meant" in text
    assert host.read_host_state() == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SELECTING)
def test_nothing_is_selected_by_default(container, name):
    running = container(*LOOP)
    before = host.read_host_state()
    done = host.playbook(name, check=False, **SELECTING[name])
    assert done.returncode != 0
    assert "nothing says which containers: give -e crashcart_containers=NAME" in " ".join(done.stdout.split())
    assert host.read_host_state() == before
    assert "/dev/crashcart" not in host.read_container_mounts(running)


def test_words_that_ansible_drops_are_told(container):
    options = ("-e", f"crashcart_containers={container()}", "-e")
    done = host.playbook("exec", *options, "crashcart_command=ss -tnp", check=False)
    assert done.returncode != 0
    assert "'-tnp' is left over" in " ".join(done.stdout.split())
    assert "State" in host.playbook("exec", *options, "crashcart_command='ss -tnp'").stdout


@pytest.fixture
def many(container, tmp_path):
    """An inventory of this machine under four names, one of which has the container that it selects, and what leads there."""
    name = container(*LOOP)
    line = 'ansible_connection=local ansible_python_interpreter="{{ ansible_playbook_python }}"'
    selections = [name, "nonesuch-a", "nonesuch-b", "nonesuch-*"]
    lines = [f"h{number} {line} crashcart_containers={one}" for number, one in enumerate(selections)]
    (tmp_path / "many").write_text("\n".join(lines) + "\n")
    return name, ("-i", str(tmp_path / "many"))


@pytest.mark.parametrize(
    ("play", "variables"), [("attach", {}), ("exec", {"argv": ["true"]}), ("trace", {"seconds": 1}), ("start", {})]
)
def test_hosts_without_such_a_container_are_fine_and_told_in_a_line(many, play, variables, tmp_path):
    _name, options = many
    line = "3 of 4 hosts have no such container: h1, h2, h3."
    done = host.playbook(play, *options, dest=str(tmp_path / "traces"), **variables)
    assert line in " ".join(done.stdout.split())
    nowhere = host.playbook(play, *options, "-l", "h1,h2", check=False, dest=str(tmp_path / "traces"), **variables)
    assert nowhere.returncode != 0
    text = " ".join((nowhere.stdout + nowhere.stderr).split())
    assert "2 of 2 hosts have no such container: h1, h2." in text
    assert "`ansible HOST -b" in text
    accepted = ("-l", "h1,h2", "-e", '{"crashcart_allow_empty": true}')
    host.playbook(play, *options, *accepted, dest=str(tmp_path / "traces"), **variables)
    alone = host.playbook(play, *options, "-l", "h1", check=False, dest=str(tmp_path / "traces"), **variables)
    assert "no container is called 'nonesuch-a'; running are" in " ".join((alone.stdout + alone.stderr).split())


def test_a_trace_goes_on_until_it_is_stopped(container, tmp_path):
    name = container(*LOOP)
    chosen = {"containers": name, "dest": str(tmp_path / "traces")}
    done = host.playbook("start", syscalls=["openat"], **chosen)
    said = " ".join(done.stdout.split())
    assert re.search(rf"trace of {name}: begun 2\d\d\d-[^,]* by root[^,]*, records until 2\d\d\d-", said), said
    assert len(host.list_instances()) == 1
    refused = host.playbook("start", check=False, **chosen)
    assert f"container {name} is traced already" in " ".join((refused.stdout + refused.stderr).split())
    for _round in range(2):
        done = host.playbook("stop", **chosen)
        assert host.list_instances() == []
    # The second one has found nothing, and reports on nothing.
    assert "No capture: there is nothing to report on." in done.stdout
    assert "Nothing came from any host: no trace there had anything to fetch." in done.stdout
    captures = list((tmp_path / "traces").rglob("*.dat"))
    assert len(captures) == 1
    done = host.playbook("report", src=str(tmp_path / "traces"), dest=str(tmp_path / "other"))
    assert re.search(r"openat +\d+ .*ENOENT \d+", done.stdout)
    assert (tmp_path / "other" / "report" / "summary.json").exists()


def has_events():
    (one,) = host.call_module("ftrace_info", gather=["instances"])["instances"]
    return sum(cpu["entries"] for cpu in one["cpus"])


def test_a_trace_that_is_over_and_collected_is_taken_over(container, tmp_path):
    name = container(*LOOP)
    chosen = {"containers": name, "dest": str(tmp_path), "seconds": 1}
    host.call_module("ftrace_instance", containers=[name], syscalls=["openat"])
    host.wait_until(has_events)
    host.call_module("ftrace_instance", containers=[name], state="stopped")
    refused = host.playbook("trace", check=False, **chosen)
    assert f"container {name} is traced already" in " ".join((refused.stdout + refused.stderr).split())
    host.playbook("collect", dest=str(tmp_path))
    host.playbook("trace", **chosen)
    assert host.list_instances() == []
    # A report is of what this run has brought home.
    reported = json.loads((tmp_path / "report" / "summary.json").read_text())["captures"]
    assert len(reported) == 1 < len(list(tmp_path.rglob("*.dat")))


def read_instances():
    """Settings of all instances; the processes come and go."""
    found = host.read_host_state()["instances"]
    return {name: {**settings, "set_event_pid": None} for name, settings in found.items()}


def test_a_trace_leaves_the_instance_that_was_there(container, tmp_path):
    name = container(*LOOP)
    host.call_module("ftrace_instance", containers=[name], errors_only=True, clock="boot", buffer_size="1MiB")
    before = read_instances()
    done = host.playbook("trace", "-l", "localhost", check=False, seconds=1, dest=str(tmp_path), containers=name)
    assert done.returncode != 0
    text = " ".join((done.stdout + done.stderr).split())
    assert re.search(
        rf"container {name} is traced already: begun 2\d+-\d\d-\d\d .* by root.*, records without a ttl; fetch its events",
        text,
    ), text
    assert read_instances() == before


@pytest.mark.parametrize("where", ["as_user"], indirect=True)
def test_collect_leaves_the_trace_running(container, where, tmp_path):
    name = container(*LOOP)
    host.call_module("ftrace_instance", containers=[name])
    for _round in range(2):
        host.playbook("collect", *where, dest=str(tmp_path), containers=name)
    assert len(host.list_instances()) == 1
    files = [file for file in os.listdir(tmp_path / where[-1] / name) if file.endswith(".dat")]
    assert len(files) == 2
    with open(tmp_path / "report" / "summary.json", encoding="utf-8") as file:
        assert len(json.load(file)["captures"]) == 1  # of this run


def test_defaults_of_options_that_not_all_modules_have(container, tmp_path):
    """By the groups that are for them."""
    name = container(*LOOP)
    calls = {
        "crashcart_info": {},
        "crashcart_attach": {},
        "crashcart_exec": {"argv": ["true"]},
        "ftrace_instance": {},
        "ftrace_info": {},
        "ftrace_fetch": {"dest": str(tmp_path / "traces")},
        "crashcart_image": {"name": "nonesuch", "state": "absent"},
        "ftrace_report": {"src": str(tmp_path / "traces"), "dest": str(tmp_path / "report")},
    }
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "module_defaults": {
            "group/crashcart.fleet.containers": {"containers": [name], "docker_host": ENGINE},
            "group/crashcart.fleet.images": {"image": "default"},
        },
        "tasks": [{f"crashcart.fleet.{module}": arguments} for module, arguments in calls.items()],
    }
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    done = host.run("ansible-playbook", str(tmp_path / "play.yml"), check=False)
    assert done.returncode == 0, done.stdout
    assert json.loads((tmp_path / "report" / "summary.json").read_text())["captures"][0]["container"] == name


def test_the_shell_line_over_ssh_gives_a_shell(container, ssh_hosts):
    name = container("static")
    for login, word in (("as_root", "docker"), ("as_user", "sudo docker")):
        inventory = ("-i", str(ssh_hosts))
        result = host.ad_hoc(login, "crashcart_attach", {"containers": [name], "docker_host": ENGINE}, "-b", *inventory)
        line = result["attachments"][0]["shell"]
        assert line.startswith("ssh -t")
        assert result["lines"] == [f"{name}: {line}"]
        assert word in line
        done = subprocess.run(
            ["script", "-qec", line, "/dev/null"],
            input="echo $((40+2)); exit\n",
            capture_output=True,
            text=True,
            check=False,
            timeout=host.seconds(60),
        )
        assert re.search(r"^42\r?$", done.stdout, re.M), done.stdout


@pytest.mark.parametrize("where", ["localhost", "as_user"], indirect=True)
def test_a_shell_in_one_line_at_a_terminal(container, where):
    """With the terminal's size, its end, and nothing left attached."""
    name = container("static")
    chosen = json.dumps({"crashcart_containers": name, "crashcart_docker_host": ENGINE})
    line = shlex.join(["ansible-playbook", "crashcart.fleet.shell", *where, "-e", chosen])
    with host.start("script", "-qec", f"stty rows 33 cols 101; {line}", "/dev/null", **PIPES) as terminal:
        said = read_until(terminal, b"]0;|\\[crashcart\\]")
        terminal.stdin.write(b"echo $((40+2)); stty size; ls -d /dev/crashcart; exit 3\n")
        terminal.stdin.flush()
        said = read_until(terminal, b"PLAY RECAP.*\n.* failed=[0-9]")
        terminal.wait(30)
    assert re.search(rb"^42\r?$", said, re.M), said
    assert re.search(rb"^33 101\r?$", said, re.M), said
    assert b" failed=0 " in said, said
    assert "/dev/crashcart" not in host.read_container_mounts(name)


def read_until(process, pattern):
    """Return the output of PROCESS up to the moment when PATTERN is in it."""
    said = b""
    while not re.search(pattern, said, re.S):
        data = os.read(process.stdout.fileno(), 65536)
        assert data, said
        said += data
    return said


def test_a_shell_is_in_one_container_of_one_host_at_a_terminal(container):
    name, other = container(), container()
    for options, chosen, words in (
        ((), [name], "input is no terminal: start it at one; crashcart.fleet.attach prints a line"),
        ((), [name, other], f"these are {', '.join(sorted([name, other]))}: name one"),
        (("-i", "localhost,other,"), [name], "A shell is on one host, and these are 2"),
    ):
        done = host.playbook("shell", *options, check=False, containers=chosen)
        assert done.returncode != 0
        assert words in " ".join(done.stdout.split())
    assert "/dev/crashcart" not in host.read_container_mounts(name) + host.read_container_mounts(other)


@pytest.mark.parametrize("pipelining", [True, False])
def test_tools_with_an_end_go_after_the_login_has_gone(container, ssh_hosts, pipelining):
    name = container()
    options = ("-b", "-i", str(ssh_hosts), "-e", json.dumps({"ansible_pipelining": pipelining}))
    arguments = {"containers": [name], "docker_host": ENGINE, "ttl": "4s"}
    assert host.ad_hoc("as_user", "crashcart_attach", arguments, *options)["changed"]
    assert "/dev/crashcart" in host.read_container_mounts(name)
    host.wait_until(lambda: "/dev/crashcart" not in host.read_container_mounts(name))
    host.wait_until(lambda: not host.call_module("crashcart_info", gather=["census"])["census"]["watchdogs"])


def test_without_become_an_unprivileged_login_is_told_what_is_missing(container, ssh_hosts):
    name = container()
    with pytest.raises(host.ModuleFailed, match="needs root on the host .*become"):
        host.ad_hoc("as_user", "crashcart_attach", {"containers": [name], "docker_host": ENGINE}, "-i", str(ssh_hosts))


def test_fetch_with_become_leaves_nothing_in_the_login_users_folder(container, ssh_hosts, tmp_path):
    name = container(*LOOP)
    host.call_module("ftrace_instance", containers=[name])
    arguments = {"containers": [name], "docker_host": ENGINE, "dest": str(tmp_path)}
    before = list_login_users_files()
    capture = host.ad_hoc("as_user", "ftrace_fetch", arguments, "-b", "-i", str(ssh_hosts))["captures"][0]
    assert host.run("trace-cmd", "report", capture["path"]).stdout.count("openat") >= 0
    assert capture["path"].startswith(f"{tmp_path}/as_user/{name}/")
    assert host.run("sha256sum", capture["path"]).stdout.split()[0] == capture["manifest"]["sha256"]
    assert list_login_users_files() <= before


def test_a_task_whose_time_is_over_leaves_the_captures_on_the_host(container, ssh_hosts, tmp_path):
    name = container("busybox", "/bin/sh", "-c", "while /bin/true; do /bin/cat /nonesuch; done")
    host.call_module("ftrace_instance", containers=[name])
    # A small capture needs no transfer of its own.
    host.wait_until(lambda: count_recorded_bytes() > 1 << 20)
    slow = tmp_path / "sftp"
    slow.write_text("#!/bin/sh\nsleep 20\n")
    slow.chmod(0o755)
    arguments = {"containers": [name], "docker_host": ENGINE, "dest": str(tmp_path)}
    options = ("-b", "-i", str(ssh_hosts), "--task-timeout", "8", "-e", f"ansible_sftp_executable={slow}")
    done = host.run(
        "ansible", "as_user", "-m", "crashcart.fleet.ftrace_fetch", "-a", json.dumps(arguments), *options, check=False
    )
    assert done.returncode != 0
    said = " ".join((done.stdout + done.stderr).split())
    assert "they are kept on the host in /var/lib/crashcart/captures, and the next fetch brings them" in said
    (staged,) = [file for file in os.listdir("/var/lib/crashcart/captures") if file.endswith(".new")]
    assert os.path.getsize(f"/var/lib/crashcart/captures/{staged}") > 1000
    # Its own folder knows what was on the way, so the same controller need not wait.
    result = host.ad_hoc("as_user", "ftrace_fetch", arguments, "-b", "-i", str(ssh_hosts))
    stamps = [os.path.basename(one["path"]) for one in result["captures"] if one["path"]]
    assert len(stamps) >= 1
    assert os.listdir("/var/lib/crashcart/captures") == []


def test_an_unwritable_destination_loses_nothing_silently(container, tmp_path):
    name = container(*LOOP)
    host.call_module("ftrace_instance", containers=[name])
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(host.ModuleFailed, match="cannot be written"):
        host.ad_hoc("localhost", "ftrace_fetch", {"containers": [name], "dest": str(blocker / "below")})


def test_cleanup_takes_everything_and_install_brings_it_back(container):
    name, other = container(), container()
    host.playbook("attach", containers=name)
    host.call_module("ftrace_instance", containers=[name])
    host.call_module("ftrace_instance", containers=[other], mode="record", ttl="1h")
    # As a task that was killed leaves it.
    events_fd = os.open(f"{host.TRACEFS}/uprobe_events", os.O_WRONLY | os.O_APPEND)
    os.write(events_fd, b"p:crashcart_0123456789ab_00000000/left /bin/true:0x1000\n")
    os.close(events_fd)
    state = host.read_host_state()
    host.playbook("cleanup", "--check")
    assert host.read_host_state() == state
    host.playbook("cleanup")
    census = host.call_module("crashcart_info", gather=["census"])["census"]
    assert not any(census.values()), census
    assert not os.path.exists("/var/lib/crashcart")
    assert not os.path.exists("/run/crashcart")
    assert "/dev/crashcart" not in host.read_container_mounts(name)
    assert changed(host.playbook("cleanup")) == 0
    assert changed(host.playbook("install", "--check")) > 0
    assert not os.path.exists("/var/lib/crashcart")
    assert changed(host.playbook("install")) > 0
    assert changed(host.playbook("install")) == 0


def test_cleanup_fails_and_names_what_is_left(container):
    name = container()
    host.playbook("attach", containers=name)
    with subprocess.Popen(["docker", "exec", name, "/dev/crashcart/bin/sleep", "1000"]) as user:
        host.wait_until(lambda: host.runs(name, "sleep 1000"))
        failed = host.playbook("cleanup", check=False)
        assert failed.returncode != 0
        assert re.search(r"/dev/loop\d+ .* in use by 'sleep' \(pid \d+\)", " ".join(failed.stdout.split()))
        user.terminate()
    host.docker("kill", name)
    host.playbook("cleanup")


def test_facts_of_the_install_role():
    info = host.call_module("crashcart_info", gather=["host", "features"])
    assert info["host"]["kernel"] == os.uname().release
    assert info["host"]["tracefs"] == host.TRACEFS
    assert all(feature["ok"] or feature["reason"] for feature in info["features"])
    assert {feature["name"] for feature in info["features"]} >= {
        "kernel",
        "mount_api",
        "loop",
        "squashfs",
        "tracefs",
    }


def test_without_become_info_is_not_green_and_says_what_it_needs(ssh_hosts):
    done = host.run("ansible", "as_user", "-i", str(ssh_hosts), "-m", "crashcart.fleet.crashcart_info", check=False)
    assert done.returncode != 0
    assert "add become=true, or -b" in " ".join(done.stderr.split())
    result = json.loads(done.stdout.partition("=> ")[2])
    assert result["msg"].startswith("no runtime of this host says what containers it has: ")
    assert result["summary"][0].startswith("host: Linux ")


@pytest.mark.parametrize("login", ["as_user"])
def test_a_push_over_ssh(ssh_hosts, login):
    source = host.DEFAULT_IMAGE
    options = ("-b", "-i", str(ssh_hosts))
    before = list_login_users_files()
    call = ("-m", "crashcart.fleet.crashcart_image", "-a", json.dumps({"src": source, "name": "pushed"}))
    told, _arrow, text = host.run("ansible", login, *call, *options).stdout.partition("=> ")
    assert re.match(rf"crashcart_image: pushing image pushed to {login} \(\d+\.\d MiB\)\n", told)
    first = json.loads(text)
    second = host.ad_hoc(login, "crashcart_image", {"src": source, "name": "pushed"}, *options)
    assert (first["changed"], second["changed"]) == (True, False)
    assert host.run("sha256sum", first["image"]["path"]).stdout.split()[0] == first["image"]["digest"]
    assert host.call_module("crashcart_image", name="pushed", state="absent")["changed"]
    assert list_login_users_files() <= before
