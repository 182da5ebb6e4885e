# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection plugin and the inventory plugin: any Ansible task inside a container that has nothing."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
from support import host

LOCAL = {"ansible_host": "localhost", "ansible_cart_python": sys.executable}


@pytest.fixture(params=["local", "as_root", "as_user"])
def inside(request, container, ssh_hosts, tmp_path):
    """inside(MODULE, ARGUMENTS, …): a task's result in a container with one static program, over each kind of connection."""
    name = container("static")
    if request.param == "local":
        hosts = tmp_path / "hosts.yml"
        hosts.write_text(json.dumps({"all": {"hosts": {"host": LOCAL}}}))
        parent = "host"
    else:
        hosts, parent = ssh_hosts, request.param
    variables = {
        "ansible_connection": "crashcart.fleet.cart",
        "ansible_cart_container": name,
        "ansible_cart_docker_host": os.environ["DOCKER_HOST"],
        "ansible_python_interpreter": "/dev/crashcart/bin/python3",
    }

    def run(module, arguments=None, *options, **more):
        extra = json.dumps({**variables, **more})
        return host.ad_hoc(parent, module, arguments, "-i", str(hosts), "-e", extra, *options)

    run.name = name
    yield run
    assert os.listdir("/run/crashcart/scratch") == [] if os.path.exists("/run/crashcart/scratch") else True
    assert host.docker("diff", name) == ""


@pytest.mark.parametrize("pipelining", [True, False])
def test_modules_run_where_there_is_no_shell_and_no_python(inside, pipelining):
    facts = inside("ansible.builtin.setup", {"gather_subset": "!all,python"}, ansible_pipelining=pipelining)[
        "ansible_facts"
    ]
    assert facts["ansible_python"]["executable"].startswith("/dev/crashcart/")
    words = inside("ansible.builtin.command", {"argv": ["ls", "/"]}, ansible_pipelining=pipelining)["stdout_lines"]
    assert set(words) == {"dev", "etc", "proc", "sleep", "sys"}
    assert (
        inside("ansible.builtin.shell", {"_raw_params": "echo $((6 * 7)) | cat"}, ansible_pipelining=pipelining)[
            "stdout"
        ]
        == "42"
    )


def test_raw_exit_codes_and_output_come_through(inside):
    for code in (0, 7, 254, 255):
        command = f"printf 'out\\377'; echo err >&2; exit {code}"
        try:
            result = inside("ansible.builtin.raw", {"_raw_params": command})
        except host.ModuleFailed as failed:
            result = failed.result
        assert result["rc"] == code
        assert result["stdout"].startswith("out")
        assert result["stderr"].strip() == "err"


@pytest.mark.parametrize("size", [0, 5, 3 << 20])
def test_files_travel_there_and_back(inside, tmp_path, size):
    source = tmp_path / "source"
    source.write_bytes(os.urandom(size))
    digest = hashlib.sha1(source.read_bytes()).hexdigest()
    path = "/dev/shm/copied"
    copied = inside("ansible.builtin.copy", {"src": str(source), "dest": path})
    assert (copied["changed"], copied["checksum"]) == (True, digest)
    assert not inside("ansible.builtin.copy", {"src": str(source), "dest": path})["changed"]
    inside("ansible.builtin.fetch", {"src": path, "dest": f"{tmp_path}/back", "flat": True})
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    assert host.docker("exec", inside.name, "/sleep", "0") == ""
    inside("ansible.builtin.file", {"path": path, "state": "absent"})


def test_become_is_a_change_of_user_inside(inside):
    result = inside("ansible.builtin.command", {"argv": ["id", "-u"]}, "--become", "--become-user", "1234")
    assert result["stdout"] == "1234"
    result = inside(
        "ansible.builtin.command", {"argv": ["id", "-u"]}, "--become", "--become-user", "1234", ansible_pipelining=False
    )
    assert result["stdout"] == "1234"
    assert inside("ansible.builtin.command", {"argv": ["id", "-u"]})["stdout"] == "0"


def test_modules_that_look_at_the_container(inside):
    assert inside("ansible.builtin.slurp", {"src": "/proc/1/comm"})["content"] == "c2xlZXAK"  # sleep
    assert inside("ansible.builtin.wait_for", {"path": "/sleep", "timeout": 5})["state"] == "file"
    assert inside("ansible.builtin.package_facts")["ansible_facts"]["packages"] == {}


def test_what_cannot_be_reached_is_unreachable_with_the_reason(inside):
    for more, reason in (
        ({"ansible_cart_container": "nonesuch"}, "no container is called 'nonesuch'"),
        ({"ansible_cart_image": "nonesuch"}, "no image is called 'nonesuch' on the host"),
        ({"ansible_cart_container": ""}, "set ansible_cart_container"),
    ):
        with pytest.raises(host.ModuleFailed, match=reason):
            inside("ansible.builtin.command", {"argv": ["true"]}, **more)


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
    assert f"{name}.as_user" in listed["_meta"]["hostvars"], done
    one = listed["_meta"]["hostvars"][f"{name}.as_user"]
    assert one["ansible_connection"] == "crashcart.fleet.cart"
    assert one["crashcart_container"]["labels"] == {"tier": "front end"}
    for group in (
        "containers",
        "image_crashcart_test_busybox",
        "label_tier_front_end",
        "network_none",
        "runtime_docker",
        "on_as_user",
        "fronts",
    ):
        assert listed[group]["hosts"] == [f"{name}.as_user"], group
    result = host.ad_hoc(
        f"{name}.as_user", "ansible.builtin.command", {"argv": ["cat", "/proc/1/comm"]}, "-i", str(folder)
    )
    assert result["stdout"] == "sleep"


def test_a_host_that_is_down_is_left_out_or_an_error(tmp_path):
    hosts = tmp_path / "1-hosts.yml"
    hosts.write_text("all: {hosts: {gone: {ansible_host: 127.0.0.1, ansible_port: 1}}}\n")
    containers = tmp_path / "2-containers.yml"
    containers.write_text("plugin: crashcart.fleet.containers\n")
    done = host.run("ansible-inventory", "-i", str(hosts), "-i", str(containers), "--list")
    assert "the containers of gone are left out" in done.stderr
    containers.write_text("plugin: crashcart.fleet.containers\nstrict: true\n")
    done = host.run("ansible-inventory", "-i", str(hosts), "-i", str(containers), "--list")
    assert "containers of gone" in done.stderr
    containers.write_text("plugin: crashcart.fleet.containers\nhosts: [nonesuch]\n")
    done = host.run("ansible-inventory", "-i", str(hosts), "-i", str(containers), "--list")
    assert "called 'nonesuch'" in done.stderr
