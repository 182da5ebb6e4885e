# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two users of one task: root on the host, by sudo or su with a password, and whoever was asked for inside the container."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support import host
from support.accounts import make_account

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute import scratch

USER = "crashcart-asked"
CAPABILITIES = "+dac_override,+dac_read_search"
WHO = {"argv": ["id"]}


@pytest.fixture(scope="module")
def passwords():
    """Passwords of a user whose sudo asks for it, and of root, which has its old one back at the end."""
    known = {"sudo": secrets.token_hex(12), "su": secrets.token_hex(12)}
    old = host.run("getent", "shadow", "root").stdout.split(":")[1]
    rule = Path("/etc/sudoers.d", USER)
    with make_account(USER, "--create-home", "--shell", "/bin/bash"):
        try:
            subprocess.run(["chpasswd"], input=f"{USER}:{known['sudo']}\nroot:{known['su']}\n", text=True, check=True)
            rule.write_text(f"{USER} ALL=(ALL) ALL\n")
            rule.chmod(0o440)
            yield known
        finally:
            subprocess.run(["usermod", "--password", old, "root"], check=True)
            rule.unlink(missing_ok=True)


@pytest.fixture
def app(container, tmp_path):
    """A container with a user called app; its first process is root's."""
    (tmp_path / "passwd").write_text("root:x:0:0::/root:/bin/sh\napp:x:1234:1235::/app:/bin/sh\n")
    return container("static", options=("--network", "none", "-v", f"{tmp_path}/passwd:/etc/passwd:ro"))


@pytest.fixture
def hosts(ssh_hosts, app, request):
    """A folder of inventory: the host `asked`, over the link that is the parameter, its container as `manual`, and the plugin."""
    with tempfile.TemporaryDirectory(prefix="crashcart-hosts-") as name:
        os.chmod(name, 0o755)  # pytest's own folders are closed to other users
        write_inventory(Path(name), ssh_hosts, app, request.param)
        request.node.link = request.param
        yield Path(name)
    assert scratch.list_mounts() == []


def write_inventory(folder, ssh_hosts, app, link_name):
    (folder / "1-hosts.yml").write_text(Path(ssh_hosts).read_text())
    link = (
        {"ansible_user": USER} if link_name == "ssh" else {"ansible_host": "localhost", "ansible_connection": "local"}
    )
    inside = {"ansible_cart_container": app, "ansible_python_interpreter": "/dev/crashcart/bin/python3"}
    manual = {**link, **inside, "ansible_connection": "crashcart.fleet.cart"}
    more = {"asked": {**link, "ansible_pipelining": False}, "manual": manual}
    (folder / "2-more.yml").write_text(json.dumps({"all": {"hosts": more}}))
    (folder / "3-containers.yml").write_text("plugin: crashcart.fleet.containers\nhosts: [asked]\nstrict: true\n")
    shared = {
        "ansible_cart_docker_host": os.environ["DOCKER_HOST"],
        "ansible_cart_python": sys.executable if link_name == "local" else "python3",
    }
    (folder / "group_vars").mkdir()
    (folder / "group_vars" / "all.yml").write_text(json.dumps(shared))


@pytest.fixture
def run(hosts, request):
    """run(HOST, OPTION…): what id says there, with the inventory's folder; over a local link Ansible is that user's."""
    before = ()
    if request.node.link == "local":
        # With the right to read what only root can: Ansible, and this collection.
        words = [
            "--reuid",
            USER,
            "--regid",
            USER,
            "--init-groups",
            "--inh-caps",
            CAPABILITIES,
            "--ambient-caps",
            CAPABILITIES,
        ]
        before = ("setpriv", *words, "env", f"HOME=/home/{USER}")

    def run_id(name, *options, **how):
        how = {"start_new_session": True, "timeout": 60, **how}
        return host.run_task(name, "ansible.builtin.command", WHO, "-i", str(hosts), *options, before=before, **how)[
            "stdout"
        ]

    run_id.before = before
    return run_id


@pytest.mark.parametrize("hosts", ["ssh", "local"], indirect=True)
def test_a_password_leads_to_the_container_and_become_to_a_user_in_it(passwords, hosts, app, run):
    variables = hosts / "group_vars" / "all.yml"
    shared = json.loads(variables.read_text())
    for method, name in (("sudo", f"{app}@asked"), ("su", f"{app}@asked"), ("sudo", "manual"), ("su", "manual")):
        # As people keep it: the password is another variable's value.
        more = {"ansible_become_method": method, "ansible_become_password": "{{ kept }}", "kept": passwords[method]}
        variables.write_text(json.dumps({**shared, **more}))
        if name != "manual":
            assert run(name).startswith("uid=0(root)")
        assert run(name, "--become", "--become-user", "app").startswith("uid=1234(app) gid=1235"), (method, name)


@pytest.mark.parametrize("hosts", ["ssh", "local"], indirect=True)
def test_a_password_that_is_typed(passwords, hosts, app, run, tmp_path):
    # The plugin asks for it once more: it comes first, and Ansible does not tell it.
    typed = {"input": f"{passwords['su']}\n" * 2}
    words = ("--become-method", "su", "-K")
    assert run(f"{app}@asked", *words, "--become", "--become-user", "app", **typed).startswith("uid=1234(app)")
    file = tmp_path / "password"
    file.write_text(passwords["sudo"])
    assert run(f"{app}@asked", "--become-password-file", str(file)).startswith("uid=0(root)")
    (hosts / "3-containers.yml").unlink()
    assert run("manual", "-K", input=f"{passwords['sudo']}\n").startswith("uid=0(root)")


@pytest.mark.parametrize("hosts", ["ssh", "local"], indirect=True)
def test_a_password_that_is_wrong_or_missing(passwords, hosts, app, run):
    for words in (
        (),
        ("-e", "ansible_become_password=wrong"),
        ("-e", "ansible_become_method=su ansible_become_password=wrong"),
    ):
        with pytest.raises(
            host.ModuleFailed, match="(?s)does not lead to root on .* with -K or ansible_become_password"
        ):
            run("manual", *words)
    listed = host.run(*run.before, "ansible-inventory", "-i", str(hosts), "--list")
    assert "give the password with -K" in " ".join(listed.stderr.split())


@pytest.mark.parametrize("hosts", ["ssh"], indirect=True)
def test_what_keywords_and_variables_of_become_are_for(passwords, hosts, app, tmp_path):
    """The method is the host's, the user is the container's; a keyword that names a method inside changes nothing."""
    play = {
        "hosts": f"{app}@asked",
        "gather_facts": False,
        "tasks": [
            {
                "ansible.builtin.shell": "id; echo home $HOME",
                "register": "as_app",
                "become": True,
                "become_user": "app",
                "become_method": "su",
            },
            {
                "ansible.builtin.command": WHO,
                "register": "as_any",
                "become": True,
                "vars": {"ansible_become_user": "{{ 4 }}"},
            },
            {"ansible.builtin.debug": {"msg": "{{ [as_app.stdout, as_any.stdout] }}"}},
        ],
    }
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    # In the variables of the host itself, by another variable of its own.
    (hosts / "host_vars").mkdir()
    own = {"ansible_become_password": "{{ own }}", "own": passwords["sudo"], "ansible_become": True}
    (hosts / "host_vars" / "asked.yml").write_text(json.dumps(own))
    done = host.run("ansible-playbook", "-i", str(hosts), str(tmp_path / "play.yml"))
    assert "uid=1234(app)" in done.stdout
    assert "home /app" in done.stdout
    assert "home /app" in done.stdout
    assert "uid=4" in done.stdout
    listed = host.run("ansible-inventory", "-i", str(hosts), "--host", f"{app}@asked").stdout
    assert passwords["sudo"] not in listed
