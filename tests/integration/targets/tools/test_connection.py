# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection plugin and the inventory plugin: any Ansible task inside a container that has nothing."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest
from support import host, images

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute import scratch
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.confinement import TOOL_CAPABILITIES
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import capabilities, processes

LOCAL = {"ansible_host": "localhost", "ansible_cart_python": sys.executable}


@pytest.fixture
def inside(request, container, ssh_hosts, tmp_path):
    """inside(MODULE, ARGUMENTS, …): a task's result in a container with one static program, over the connection that is the
    fixture's parameter, by default that of a user with sudo."""
    name = container("static")
    parent = getattr(request, "param", "as_user")
    hosts = ssh_hosts
    if parent == "local":
        hosts = tmp_path / "hosts.yml"
        hosts.write_text(json.dumps({"all": {"hosts": {"local": LOCAL}}}))
    variables = {
        "ansible_connection": "crashcart.fleet.cart",
        "ansible_cart_container": name,
        "ansible_cart_docker_host": os.environ["DOCKER_HOST"],
        "ansible_python_interpreter": "/dev/crashcart/bin/python3",
    }

    def run(module, arguments=None, *options, **more):
        extra = json.dumps({**variables, **more})
        return host.run_task(parent, module, arguments, "-i", str(hosts), "-e", extra, *options)

    run.name, run.parent = name, parent
    yield run
    assert not os.path.exists(scratch.FOLDER) or os.listdir(scratch.FOLDER) == []
    assert scratch.list_mounts() == []
    assert host.docker("diff", name) == ""


@pytest.mark.parametrize(
    ("inside", "pipelining"),
    [("local", True), ("local", False), ("as_root", True), ("as_user", True), ("as_user", False)],
    indirect=["inside"],
)
def test_modules_run_where_there_is_no_shell_and_no_python(inside, pipelining):
    shell = {"_raw_params": "echo $((6 * 7)) | cat; ls /; exit 3"}
    with pytest.raises(host.ModuleFailed) as failed:
        inside("ansible.builtin.shell", shell, ansible_pipelining=pipelining)
    result = failed.value.result
    assert result["rc"] == 3
    assert result["stdout_lines"] == ["42", "dev", "etc", "proc", "sleep", "sys"]


def test_facts_are_the_containers(inside):
    facts = inside("ansible.builtin.setup", {"gather_subset": "!all,min"})["ansible_facts"]
    assert facts["ansible_python"]["executable"].startswith("/dev/crashcart/")
    assert facts["ansible_hostname"] == host.docker("inspect", "-f", "{{.Config.Hostname}}", inside.name)


@pytest.mark.parametrize("code", [0, 254, 255])
def test_raw_exit_codes_and_output_come_through(inside, code):
    command = f"printf 'out\\377'; echo err >&2; exit {code}"
    try:
        result = inside("ansible.builtin.raw", {"_raw_params": command})
    except host.ModuleFailed as failed:
        result = failed.result
    assert result["rc"] == code
    assert result["stdout"].startswith("out")
    assert result["stderr"].strip() == "err"


def test_a_command_that_the_kernel_kills_for_want_of_memory_says_so(inside):
    host.docker("update", "--memory", "64m", "--memory-swap", "64m", inside.name)
    command = "exec /dev/crashcart/bin/python3 -c 'bytearray(200 << 20)'"
    with pytest.raises(host.ModuleFailed) as failed:
        inside("ansible.builtin.raw", {"_raw_params": command})
    assert failed.value.result["rc"] == 137
    assert (
        "crashcart: the kernel has killed the command, since the container has reached its memory limit of 64.0 MiB"
        in (failed.value.result["stderr"])
    )


@pytest.mark.parametrize(("inside", "size"), [("as_user", 0), ("as_user", 3 << 20), ("local", 5)], indirect=["inside"])
def test_files_travel_there_and_back(inside, tmp_path, size):
    source = tmp_path / "source"
    source.write_bytes(os.urandom(size))
    digest = hashlib.sha1(source.read_bytes()).hexdigest()
    path = "/dev/shm/copied"
    copied = inside("ansible.builtin.copy", {"src": str(source), "dest": path})
    assert (copied["changed"], copied["checksum"]) == (True, digest)
    inside("ansible.builtin.fetch", {"src": path, "dest": f"{tmp_path}/back", "flat": True})
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    if size == 5:
        assert not inside("ansible.builtin.copy", {"src": str(source), "dest": path})["changed"]
        assert inside("ansible.builtin.file", {"path": path, "state": "absent"})["changed"]


@pytest.mark.parametrize("inside", ["local"], indirect=True)
def test_letters_are_utf_8_whatever_the_hosts_locale_is(inside, tmp_path):
    """Ansible wants UTF-8 for itself; of a host it knows nothing."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nLC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    letters, host_python = "é€𝄞", {"ansible_cart_python": str(python)}
    found = inside("ansible.builtin.shell", {"_raw_params": f"echo {letters}; cat", "stdin": letters}, **host_python)
    assert found["stdout_lines"] == [letters, letters]
    (tmp_path / letters).write_text(letters)
    inside("ansible.builtin.copy", {"src": f"{tmp_path}/{letters}", "dest": f"/dev/shm/{letters}"}, **host_python)
    inside(
        "ansible.builtin.fetch",
        {"src": f"/dev/shm/{letters}", "dest": f"{tmp_path}/back {letters}", "flat": True},
        **host_python,
    )
    assert (tmp_path / f"back {letters}").read_text() == letters


def test_archives_are_unpacked(inside, tmp_path):
    (tmp_path / "file").write_text("in an archive")
    inside("ansible.builtin.file", {"path": "/dev/shm/unpacked", "state": "directory"})
    for kind in ("gztar", "bztar", "xztar", "zip"):
        path = shutil.make_archive(str(tmp_path / kind), kind, tmp_path, "file")
        assert inside("ansible.builtin.unarchive", {"src": path, "dest": "/dev/shm/unpacked"})["changed"], kind
        read = {"_raw_params": "cat /dev/shm/unpacked/file && rm /dev/shm/unpacked/file"}
        assert inside("ansible.builtin.shell", read)["stdout"] == "in an archive", kind


@pytest.mark.parametrize("inside", ["as_user", "local"], indirect=True)
def test_links_as_ends_of_a_copy_and_a_fetch_are_followed(inside, tmp_path):
    for name, text in (("source", "new"), ("target", "old")):
        (tmp_path / name).write_text(text)
        (tmp_path / f"link to {name}").symlink_to(name)
    path = "/dev/shm/linked"
    copied = inside("ansible.builtin.copy", {"src": f"{tmp_path}/link to source", "dest": path})
    assert copied["checksum"] == hashlib.sha1(b"new").hexdigest()
    inside("ansible.builtin.fetch", {"src": path, "dest": f"{tmp_path}/link to target", "flat": True})
    assert (tmp_path / "target").read_text() == "new"
    assert (tmp_path / "link to target").is_symlink()
    assert len(os.listdir(tmp_path)) == 4 + (inside.parent == "local")  # its inventory


def test_without_become_tasks_are_the_containers_user(inside, container):
    name = container("static", options=("--network", "none", "--user", "1234:1235"))
    look = {"argv": ["id"]}
    assert inside("ansible.builtin.command", look, ansible_cart_container=name)["stdout"].startswith(
        "uid=1234 gid=1235"
    )
    written = {"content": "mine", "dest": "/dev/shm/mine"}
    assert inside("ansible.builtin.copy", written, ansible_cart_container=name, ansible_pipelining=False)["uid"] == 1234
    found = inside("ansible.builtin.command", look, "--become", ansible_cart_container=name)
    assert found["stdout"].startswith("uid=0")
    with_host = inside("ansible.builtin.command", look, ansible_cart_container=name, ansible_cart_rights="host")
    assert with_host["stdout"].startswith("uid=0")


def test_become_is_a_change_of_user_inside(inside):
    result = inside("ansible.builtin.command", {"argv": ["id", "-u"]}, "--become", "--become-user", "1234")
    assert result["stdout"] == "1234"
    result = inside(
        "ansible.builtin.command", {"argv": ["id", "-u"]}, "--become", "--become-user", "1234", ansible_pipelining=False
    )
    assert result["stdout"] == "1234"
    assert inside("ansible.builtin.command", {"argv": ["id", "-u"]})["stdout"] == "0"


@pytest.fixture
def python_image(tmp_path):
    """The set of tools that is made for modules, in the host's store."""
    path = tmp_path / "python.ext4"
    images.build(path, sets=["python"])
    images.install(path, "python")
    yield "python"
    host.call_module("crashcart_image", name="python", state="absent", force=True)


STATUS = """\
Package: hello
Status: install ok installed
Version: 2.10-3
Architecture: all
Maintainer: nobody
Description: a package

"""


def test_modules_that_look_at_the_container(inside, python_image, container, tmp_path):
    image = {"ansible_cart_image": python_image}
    assert inside("ansible.builtin.slurp", {"src": "/proc/1/comm"}, **image)["content"] == "c2xlZXAK"  # sleep
    assert inside("ansible.builtin.wait_for", {"path": "/sleep", "timeout": 5}, **image)["state"] == "file"
    images.make("crashcart-test", "debian")
    (tmp_path / "status").write_text(STATUS)
    mount = f"{tmp_path}/status:/var/lib/dpkg/status:ro"
    image["ansible_cart_container"] = container("debian", options=("--network", "none", "-v", mount))
    packages = inside("ansible.builtin.package_facts", **image)["ansible_facts"]["packages"]
    assert [one["version"] for one in packages["hello"]] == ["2.10-3"]


def test_what_does_not_work_there_fails_by_itself_and_leaves_nothing(inside):
    with pytest.raises(host.ModuleFailed, match="async does not work in a container"):
        inside("ansible.builtin.command", {"_raw_params": "/dev/crashcart/bin/sleep 1"}, "-B", "20", "-P", "1")
    with pytest.raises(host.ModuleFailed, match="no user is called 'nonesuch'") as failed:
        inside("ansible.builtin.command", {"_raw_params": "/dev/crashcart/bin/id"}, "-b", "--become-user", "nonesuch")
    assert not failed.value.result.get("unreachable")


def test_the_folders_of_killed_controllers_go_in_time(inside):
    for name in ("old", "used", "new"):
        leave_scratch(name)
    folder = Path(scratch.FOLDER)
    for name in ("old", "used"):
        os.utime(folder / name, (1e9, 1e9))
    fd = os.open(folder / "used", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)  # as a command does
    inside("ansible.builtin.ping")
    assert sorted(os.listdir(folder)) == ["new", "used"]
    assert scratch.list_mounts() == [f"{folder}/{name}/files" for name in ("used", "new")]
    os.close(fd)
    for name in ("used", "new"):
        scratch.remove(name)


def leave_scratch(name):
    """Leave the folder of connection NAME with a file, as a killed controller does."""
    child = os.fork()
    if child == 0:
        try:
            scratch.open_scratch(name, 1234, 1234)
            Path(scratch.FOLDER, name, "files", "secret").write_text("of a task")
        finally:
            os._exit(0)
    os.waitpid(child, 0)


@pytest.mark.parametrize("inside", ["as_user", "local"], indirect=True)
def test_what_a_task_leaves_in_its_scratch_stops_nobody(inside):
    """Folders nested beyond what anybody can walk, also where the controller was killed."""
    nest = "import os\nos.chdir(os.environ['TMPDIR'])\nfor _ in range(2500): os.mkdir('d'); os.chdir('d')"
    inside("ansible.builtin.command", {"argv": ["/dev/crashcart/bin/python3", "-c", nest]})
    assert scratch.list_mounts() == []
    leave_scratch("old")
    place = Path(scratch.FOLDER, "old", "files")
    host.run(sys.executable, "-c", nest, env={"TMPDIR": str(place)})
    os.utime(place.parent, (1e9, 1e9))
    assert inside("ansible.builtin.ping")["ping"] == "pong"
    assert scratch.list_mounts() == []
    assert os.listdir(scratch.FOLDER) == []


def test_what_a_task_writes_to_its_scratch_is_bounded_and_not_on_the_hosts_file_system(inside):
    before = os.statvfs("/run/crashcart").f_bfree
    look = "d=$(df -k $TMPDIR | tail -1); echo $d"
    fill = "i=0; while [ $i -lt 300 ]; do dd if=/dev/zero of=$TMPDIR/$i bs=1M count=1 2>/dev/null || exit 9; i=$((i+1)); done"
    result = inside("ansible.builtin.shell", {"_raw_params": f"{fill}; {look}"})
    assert result["rc"] == 0
    assert result["stdout"].split()[:2] == ["crashcart-scratch", str(512 << 10)]
    assert int(result["stdout"].split()[2]) >= 300 << 10
    with pytest.raises(host.ModuleFailed) as failed:
        inside("ansible.builtin.shell", {"_raw_params": "cat /dev/zero > $TMPDIR/x"}, ansible_cart_scratch_size="20MiB")
    assert "No space left on device" in failed.value.result["stderr"]
    assert abs(before - os.statvfs("/run/crashcart").f_bfree) * os.statvfs("/run/crashcart").f_bsize < 8 << 20


PLAY = """\
- hosts: HOST
  gather_facts: false
  tasks:
    - ansible.builtin.command: {argv: [sleep, "4322"]}
      environment: {TOKEN: hush-hush}
"""


@pytest.mark.parametrize("parent", ["as_user", "local"])
def test_no_process_has_a_tasks_environment_among_its_arguments(container, ssh_hosts, tmp_path, parent):
    name = container("static")
    hosts = ssh_hosts
    if parent == "local":
        hosts = tmp_path / "hosts.yml"
        hosts.write_text(json.dumps({"all": {"hosts": {"local": LOCAL}}}))
    (tmp_path / "play.yml").write_text(PLAY.replace("HOST", parent))
    variables = {
        "ansible_connection": "crashcart.fleet.cart",
        "ansible_cart_container": name,
        "ansible_cart_docker_host": os.environ["DOCKER_HOST"],
        "ansible_python_interpreter": "/dev/crashcart/bin/python3",
    }
    command = ["ansible-playbook", "-i", str(hosts), "-e", json.dumps(variables), str(tmp_path / "play.yml")]
    with host.start(*command, stdout=-3) as play:
        host.wait_until(lambda: host.runs(name, "sleep 4322"), 60)
        lines = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                lines[pid] = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
        (pid,) = [pid for pid, line in lines.items() if line.endswith("sleep\0004322\0")]
        assert "TOKEN=hush-hush" in Path(f"/proc/{pid}/environ").read_text().split("\0")
        assert [line for line in lines.values() if "hush-hush" in line] == []
        os.kill(int(pid), signal.SIGTERM)
        play.wait(60)


def test_what_cannot_be_reached_is_unreachable_with_the_reason(inside):
    for more, reason in (
        ({"ansible_cart_container": "nonesuch"}, "no container is called 'nonesuch'"),
        ({"ansible_cart_image": "nonesuch"}, "no image is called 'nonesuch' on the host"),
        ({"ansible_cart_container": ""}, "set ansible_cart_container"),
    ):
        with pytest.raises(host.ModuleFailed, match=reason) as failed:
            inside("ansible.builtin.command", {"argv": ["true"]}, **more)
        assert failed.value.result.get("unreachable", False) == bool(more.get("ansible_cart_container", "x"))


def test_what_may_mean_several_containers_is_an_error_that_names_them(inside, container):
    names = [container(name=f"cc-one-of-{number}") for number in range(2)]
    done = inside("ansible.builtin.command", {"argv": ["cat", "/etc/hostname"]}, ansible_cart_container="cc-one-of-0*")
    assert done["stdout"] == host.docker("inspect", "-f", "{{.Config.Hostname}}", names[0])
    digits = host.docker("inspect", "-f", "{{.Id}}", names[0])[:11]
    for wanted, reason in (
        ("cc-one-of-*", r"may mean cc-one-of-\d \(docker:\w{64}\), cc-one-of-\d \(docker:\w{64}\); give one of these"),
        ("nonesuch*", r"no container matches 'nonesuch\*'; running are: .*cc-one-of-0"),
        (digits, f"no container is called '{digits}'; it begins the id of cc-one-of-0"),
    ):
        with pytest.raises(host.ModuleFailed, match=reason):
            inside("ansible.builtin.command", {"argv": ["true"]}, ansible_cart_container=wanted)


@pytest.fixture
def broken_python(tmp_path):
    """broken_python(CODE): the path of the host's Python with a Docker SDK that runs CODE where it is imported."""

    def make(code):
        (tmp_path / "docker.py").write_text(code)
        path = tmp_path / "python"
        path.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
        path.chmod(0o755)
        return str(path)

    return make


@pytest.mark.parametrize("inside", ["local"], indirect=True)
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            "import os; os.nonesuch",
            r"does not fit the libraries beside it \(AttributeError: module 'os' has no attribute 'nonesuch'\)",
        ),
        (
            "raise ModuleNotFoundError(\"No module named 'docker'\")",
            r"is missing on the host, for (\S+): \1 -m pip install docker, or choose another Python",  # it is not the distribution's
        ),
        (
            "import errors\ndef APIClient(**_more): raise errors.DockerException(\"unexpected keyword argument 'chunked'\")",
            "does not fit the libraries beside it",
        ),
    ],
)
def test_an_sdk_that_cannot_be_used_is_named(inside, broken_python, tmp_path, code, reason):
    (tmp_path / "errors.py").write_text(
        "class DockerException(Exception): pass\nclass NotFound(DockerException): pass\n"
    )
    python = broken_python(f"import sys\n{code}\nimport errors; sys.modules['docker.errors'] = errors")
    with pytest.raises(host.ModuleFailed, match=f"the Docker SDK for Python .*{reason}"):
        inside("ansible.builtin.command", {"argv": ["id"]}, ansible_cart_python=python)
    (tmp_path / "1-hosts.yml").write_text(
        json.dumps({"all": {"hosts": {"here": {**LOCAL, "ansible_cart_python": python}}}})
    )
    (tmp_path / "2-containers.yml").write_text("plugin: crashcart.fleet.containers\n")
    options = ("-i", str(tmp_path / "1-hosts.yml"), "-i", str(tmp_path / "2-containers.yml"))
    done = host.run("ansible-inventory", *options, "--list")
    assert "the Docker SDK for Python" in done.stderr
    call = ("crashcart_exec", {"containers": [inside.name], "cmd": "id", "docker_host": os.environ["DOCKER_HOST"]})
    with pytest.raises(host.ModuleFailed, match=f"the Docker SDK for Python .*{reason}"):
        host.ad_hoc("localhost", *call, "-e", json.dumps({"ansible_python_interpreter": python}))


def test_the_inventory_of_containers(container, ssh_hosts, tmp_path):
    name = container("busybox", options=("--network", "none", "--label", "tier=front end"), name="cc-listed")
    folder = tmp_path / "hosts"
    folder.mkdir()
    (folder / "1-hosts.yml").write_text(Path(ssh_hosts).read_text())
    (folder / "2-containers.yml").write_text(
        "plugin: crashcart.fleet.containers\nhosts: [as_user]\n"
        "groups: {fronts: \"crashcart_container.labels.tier | default('') is search('front')\"}\n"
    )
    variables = {"ansible_cart_docker_host": os.environ["DOCKER_HOST"]}
    (folder / "group_vars").mkdir()
    (folder / "group_vars" / "all.yml").write_text(json.dumps(variables))
    done = host.run("ansible-inventory", "-i", str(folder), "--list")
    listed = json.loads(done.stdout)
    assert f"{name}@as_user" in listed["_meta"]["hostvars"], done
    assert "other names" not in done.stderr
    one = listed["_meta"]["hostvars"][f"{name}@as_user"]
    assert one["ansible_connection"] == "crashcart.fleet.cart"
    # It is from a container: never a template.
    assert one["crashcart_container"]["labels"] == {"tier": {"__ansible_unsafe": "front end"}}
    for group in (
        "crashcart_containers",
        "image_crashcart_test_busybox",
        "label_tier_front_end",
        "network_none",
        "runtime_docker",
        "on_as_user",
        "fronts",
    ):
        assert listed[group]["hosts"] == [f"{name}@as_user"], group
    command = {"argv": ["cat", "/proc/1/comm"]}
    # A cache of facts makes a file of the name.
    cache = {"ANSIBLE_CACHE_PLUGIN": "jsonfile", "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(tmp_path / "cache")}
    limit = ("-i", str(folder), "-l", f"{name}@*")
    environment = {**os.environ, **cache}
    fact = {"key": "value", "cacheable": True}
    assert (
        host.run_task("all", "ansible.builtin.set_fact", fact, *limit, env=environment)["ansible_facts"]["key"]
        == "value"
    )
    assert [one.rpartition("_cc")[2] for one in os.listdir(tmp_path / "cache")] == ["-listed@as_user"]
    assert host.run_task("all", "ansible.builtin.command", command, *limit)["stdout"] == "sleep"
    only_hosts = host.run("ansible", "all:!crashcart_containers", "-i", str(folder), "--list-hosts").stdout
    assert [line.strip() for line in only_hosts.splitlines()[1:]] == ["as_root", "as_user"]


def test_containers_take_no_machines_place(container, tmp_path):
    """This holds where a machine has a container's name, and where names of containers are fit for neither files nor patterns."""
    name = container("busybox")
    folder = tmp_path / "hosts"
    (folder / "group_vars").mkdir(parents=True)
    machines = {
        "here": LOCAL,
        f"{name}@here": {"ansible_host": "192.0.2.1", "mine": True},
        f"{name}.here": {"mine": True},
    }
    (folder / "1-hosts.yml").write_text(json.dumps({"all": {"children": {"own": {"hosts": machines}}}}))
    for number in (2, 3):  # a second source of them adds nothing
        (folder / f"{number}-containers.yml").write_text(
            "plugin: crashcart.fleet.containers\nhosts: [here]\nstrict: true\n"
        )
    (folder / "group_vars" / "all.yml").write_text(json.dumps({"ansible_cart_docker_host": os.environ["DOCKER_HOST"]}))
    done = host.run("ansible-inventory", "-i", str(folder), "--list")
    listed = json.loads(done.stdout)
    short_id = host.docker("inspect", "-f", "{{.Id}}", name)[:12]
    assert listed["crashcart_containers"]["hosts"] == [f"{name}.{short_id}@here"], done
    assert "crashcart_container" not in listed["_meta"]["hostvars"][f"{name}@here"]
    assert listed["own"]["hosts"] == list(machines)
    assert f"'{name}' is {name}.{short_id}@here" in " ".join(done.stderr.split())


def test_a_host_that_is_down_is_left_out_or_an_error(tmp_path):
    hosts = tmp_path / "1-hosts.yml"
    hosts.write_text("all: {hosts: {gone: {ansible_host: 127.0.0.1, ansible_port: 1}}}\n")
    containers = tmp_path / "2-containers.yml"
    containers.write_text("plugin: crashcart.fleet.containers\n")
    done = host.run("ansible-inventory", "-i", str(hosts), "-i", str(containers), "--list")
    assert "containers of gone are left out" in done.stderr
    containers.write_text("plugin: crashcart.fleet.containers\nstrict: true\n")
    done = host.run("ansible-inventory", "-i", str(hosts), "-i", str(containers), "--list")
    assert "containers of gone" in done.stderr
    containers.write_text("plugin: crashcart.fleet.containers\nhosts: [nonesuch]\n")
    done = host.run("ansible-inventory", "-i", str(hosts), "-i", str(containers), "--list")
    assert "called 'nonesuch'" in done.stderr


def test_tasks_are_in_the_containers_control_groups_and_have_the_rights_that_are_asked_for(inside):
    groups = Path(f"/proc/{host.find_pid(inside.name)}/cgroup").read_text()
    assert inside("ansible.builtin.command", {"argv": ["cat", "/proc/self/cgroup"]})["stdout"].strip() == groups.strip()
    read = {"argv": ["grep", "-E", "^(Cap|Seccomp)", "/proc/self/status"]}

    def read_lines(**variables):
        return inside("ansible.builtin.command", read, **variables)["stdout_lines"]

    def parse(lines):
        return processes.parse_status("\n".join(lines).encode())

    wanted = [
        line
        for line in Path(f"/proc/{host.find_pid(inside.name)}/status").read_text().splitlines()
        if line.startswith(("Cap", "Seccomp"))
    ]
    found = {rights: read_lines(ansible_cart_rights=rights) for rights in ("container", "tools", "host")}
    assert found["container"] == wanted
    assert read_lines() == found["tools"]
    had, has = (capabilities.parse_sets(parse(lines)) for lines in (wanted, found["tools"]))
    assert (has.effective, has.bounding) == (had.effective | TOOL_CAPABILITIES, had.bounding | TOOL_CAPABILITIES)
    assert parse(found["tools"])["Seccomp"] == "2"
    assert parse(found["host"])["Seccomp"] == "0"
    assert capabilities.parse_sets(parse(found["host"])).effective & capabilities.parse_names(["SYS_ADMIN"])
    assert read_lines(ansible_cart_confined=True) == wanted


@pytest.mark.parametrize("inside", ["local", "as_root"], indirect=True)
def test_a_kill_of_the_hosts_program_leaves_nothing(inside):
    """Of the one that holds the connection's end of the command."""

    def sleep():
        with pytest.raises((host.ModuleFailed, AssertionError)):
            inside("ansible.builtin.command", {"argv": ["sleep", "4321"]})

    task = threading.Thread(target=sleep)
    task.start()
    host.wait_until(lambda: host.runs(inside.name, "sleep 4321"), 60)
    # Its supervisor is to end the command.
    pid = host.run("pgrep", "--oldest", "-f", "^[^ ]*python[^ ]* -X utf8 /run/crashcart/lib/").stdout
    os.kill(int(pid), signal.SIGKILL)
    host.wait_until(lambda: not host.runs(inside.name, "sleep 4321"))
    task.join()
    for name in os.listdir(scratch.FOLDER):  # which the killed program would have emptied
        scratch.remove(name)
