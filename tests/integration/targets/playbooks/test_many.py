# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Output for many containers and hosts can be read, and a bad container or host costs no good one."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from support import failures, host, images

LOOP = ("busybox", "/bin/sh", "-c", "while /bin/true; do /bin/cat /nonesuch; /bin/sleep 0.2; done")
SCREEN = 50  # lines of a terminal that is not small
WIDE = {**os.environ, "COLUMNS": "200"}
LOCAL = "ansible_connection=local ansible_python_interpreter="
CONTROLLERS = '"{{ ansible_playbook_python }}"'


def play(name, *options, **variables):
    """The exit code of a playbook, and what it prints, with Ansible's own settings."""
    words = [word for key, value in variables.items() for word in ("-e", f"crashcart_{key}={value}")]
    done = host.run("ansible-playbook", f"crashcart.fleet.{name}", *words, *options, check=False, env=WIDE)
    return done.returncode, done.stdout + done.stderr


def test_info_of_a_host_with_three_images_and_thirty_containers_is_a_page(container):
    names = [container() for _number in range(30)]
    others = ["second", "third"]
    try:
        for name in others:
            images.install(host.DEFAULT_IMAGE, name)
        host.call_module("crashcart_attach", containers=names[:4], ttl="1h")
        host.call_module("ftrace_instance", containers=names[2:6], ttl="1h")
        text = host.run("ansible", "localhost", "-m", "crashcart.fleet.crashcart_info", env=WIDE).stdout
    finally:
        host.call_module("ftrace_instance", state="absent", everything=True)
        host.call_module("crashcart_attach", state="detached", everything=True)
        for name in others:
            host.call_module("crashcart_image", name=name, state="absent")
    assert len(text.splitlines()) <= 60, text
    assert all(f"container {name}: docker, " in text for name in names)
    assert all(f"image {name}: " in text for name in ("default", *others))
    assert (
        text.count("has default at /dev/crashcart until "),
        len(re.findall(r"traced: begun [^;]* records until ", text)),
    ) == (4, 4)


def test_a_trace_of_eight_containers_on_two_hosts_is_two_screens(container, tmp_path):
    names = [container(*LOOP) for _number in range(8)]
    inventory = tmp_path / "hosts"
    lines = [
        f"web{number} {LOCAL}{CONTROLLERS} crashcart_containers={','.join(chosen)}\n"
        for number, chosen in ((1, names[:4]), (2, names[4:]))
    ]
    inventory.write_text("".join(lines))
    code, text = play("trace", "-i", str(inventory), seconds=1, dest=tmp_path / "traces")
    assert code == 0, text
    # Warnings come after it: this machine is both hosts, and so it sees what the other one is about to fetch.
    page, _recap, _warnings = text.partition("\n[WARNING]")
    assert len(page.rstrip().splitlines()) <= 2 * SCREEN, text
    for index, name in enumerate(names):
        assert f"{name} on web{index // 4 + 1}: " in text
    assert text.count("ENOENT ") >= 8, text
    assert f"all of it is in {tmp_path}/traces/report/summary.txt" in text


@pytest.fixture
def without_sdk(tmp_path):
    """A Python that lacks the Docker SDK."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    return tmp_path / "bare/bin/python"


@pytest.mark.parametrize(
    ("name", "variables"), [("attach", {}), ("exec", {"command": "true"}), ("trace", {"seconds": 1})]
)
def test_what_is_bad_among_hosts_is_named_and_costs_no_good_one(container, without_sdk, name, variables, tmp_path):
    good, stopped = container(*LOOP), failures.stop(container())
    inventory = tmp_path / "hosts"
    inventory.write_text(f"""\
fine {LOCAL}{CONTROLLERS} crashcart_containers={good}
partly {LOCAL}{CONTROLLERS} crashcart_containers='["{good}", "{stopped}"]'
bare {LOCAL}{without_sdk} crashcart_containers={good}
dead {LOCAL}{CONTROLLERS} crashcart_containers={good} crashcart_docker_host=unix://{tmp_path}/nonesuch.sock
empty {LOCAL}{CONTROLLERS} crashcart_containers=nonesuch
""")
    code, text = play(
        name,
        "-i",
        str(inventory),
        *(() if name != "trace" else ("-e", "crashcart_existing=change")),
        dest=tmp_path / "traces",
        **variables,
    )
    assert code != 0, text
    assert "1 of 5 hosts have no such container: empty." in text
    assert f"container {stopped} " in text and "is exited: start it first" in text
    assert "the Docker SDK for Python is missing on the host" in text
    assert f"{without_sdk} -m pip install docker" in text
    assert f"no Docker engine answers at unix://{tmp_path}/nonesuch.sock: start it, or name its socket" in text
    recap = dict(re.findall(r"^(\w+) +: ok=\d+ .* failed=(\d)", text, re.MULTILINE))
    assert recap == {"fine": "0", "partly": "1", "bare": "1", "dead": "1", "empty": "0"}
    done = {
        "attach": lambda: "/dev/crashcart" in host.read_container_mounts(good),
        "exec": lambda: text.count(f"(item={good})") == 2,
        "trace": lambda: len(list((tmp_path / "traces").glob(f"*/{good}/*.dat"))) >= 1,
    }
    assert done[name](), text
