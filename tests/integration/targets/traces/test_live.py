# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls shown while they happen: the lines come at once, and nothing is left when the time is over or the user has had enough."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import support
from support import host

ENGINE = os.environ.get("DOCKER_HOST", "")
LOOP = ("busybox", "/bin/sh", "-c", "while /bin/true; do /bin/cat /nonesuch; /bin/sleep 0.5; done")
STORM = Path(support.__file__).with_name("workload_storm.py").read_text(encoding="utf-8")
CAPTURES = Path("/var/lib/crashcart/captures")
RECORDINGS = Path("/var/lib/crashcart/traces")
# As strace -f shows it; the C library calls open or openat, and not every kernel tells the path.
LOOK_UP = re.compile(
    r"\d\d:\d\d:\d\d\.\d{3} cat\[([^]]+)\] open(?:at)?\((?:AT_FDCWD, )?"
    r'(?:"/nonesuch"|0x[0-9a-f]+), O_RDONLY[|A-Z_]*\) = -1 ENOENT in [\d.]+ [mun]?s'
)
OPTIONS = {"min_free": "1MiB", "buffer_size": "256KiB"}


@pytest.fixture(autouse=True)
def nothing_is_left():
    """After each test no trace is left, no file of one, and no process of ours."""
    yield
    host.wait_until_empty(host.list_instances, 60)
    host.wait_until_empty(host.list_processes, 60)
    assert not RECORDINGS.exists() or os.listdir(RECORDINGS) == []
    assert not CAPTURES.exists() or os.listdir(CAPTURES) == []


@contextmanager
def watching(names, *options, where="localhost", **more):
    """The process of `ansible` that shows container NAMES, in a session of its own."""
    arguments = {"containers": names, "docker_host": ENGINE, "live": True, **OPTIONS, **more}
    command = ("ansible", where, *options, "-b", "-m", "crashcart.fleet.ftrace_capture", "-a", json.dumps(arguments))
    environment = {**os.environ, "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}
    with host.start(
        *command, stdout=subprocess.PIPE, text=True, errors="replace", start_new_session=True, env=environment
    ) as process:
        yield process


def read_lines(process):
    """The lines of PROCESS before its result, each with the time when it came; and the result."""
    lines = []
    for line in process.stdout:
        if "=> {" in line:
            text = "{" + line.partition("=> {")[2] + process.stdout.read()
            return lines, json.loads(text)
        lines.append((time.monotonic(), line.rstrip("\n")))
    raise AssertionError(f"there is no result: {lines[-5:]}")


def test_the_lines_come_while_the_calls_happen(container, ssh_hosts):
    name = container(*LOOP)
    seconds = host.seconds(12)
    with watching(
        [name], "-i", str(ssh_hosts), where="as_user", seconds=seconds, syscalls=["%file", "%process"]
    ) as process:
        lines, result = read_lines(process)
        ended = time.monotonic()
    found = [(came, match) for came, line in lines if (match := LOOK_UP.match(line))]
    assert len(found) >= 4, lines
    # They do not come at the end together.
    assert ended - found[0][0] > seconds / 2
    assert max(later - sooner for (sooner, _one), (later, _other) in zip(found, found[1:])) < seconds / 2
    # Each is another process, by its number in the container, which only its parent's call told.
    numbers = [match[1] for _came, match in found]
    assert all(number.isdecimal() for number in numbers) and len(set(numbers)) == len(numbers), numbers
    assert sorted(numbers, key=int) == numbers
    assert result["shown"]["lines"] == len(lines) and result["shown"]["skipped"] == 0
    assert result["shown"]["ended"] is None and "captures" not in result and "live" not in result


def test_with_dest_the_capture_comes_home_as_well(container, tmp_path):
    name = container(*LOOP)
    with watching([name], seconds=host.seconds(3), dest=str(tmp_path)) as process:
        lines, result = read_lines(process)
    assert any(LOOK_UP.match(line) for _came, line in lines)
    (one,) = result["captures"]
    assert one["manifest"]["complete"] and "cat" in host.run("trace-cmd", "report", one["path"]).stdout
    assert result["shown"]["lines"] == len(lines)
    assert any("ENOENT" in one["statement"] and one["program"] in ("cat", "busybox") for one in result["findings"])
    assert {one["statement"] for one in result["findings"]} <= set(result["lines"])


def test_a_container_that_ends_ends_the_view(container):
    script = "trap 'exec /bin/cat /nonesuch' USR1; while /bin/true; do /bin/sleep 0.2; done"
    name = container("busybox", "/bin/sh", "-c", script)
    lines = []
    with watching([name], seconds=600) as process:
        lines.append(process.stdout.readline())
        host.docker("kill", "--signal", "USR1", name)
        more, result = read_lines(process)
    assert result["shown"]["ended"] == "the container ended"
    assert result["shown"]["lines"] == 1 + len([line for _came, line in more if not line.startswith("…")])
    assert any(LOOK_UP.match(line) for _came, line in more)
    assert any("cat[1] exit_group(1) = ?" in line for _came, line in more), more[-5:]


def test_more_calls_than_anybody_can_read_are_counted(container):
    name = container("python", "/usr/bin/python3", "-S", "-c", STORM, "2", "3000")
    host.wait_until(lambda: "ready" in host.docker("logs", name))
    with watching([name], seconds=host.seconds(8), syscalls=["getppid"], compat=False) as process:
        host.wait_until(lambda: host.list_instances() != [])
        host.pause(1)
        host.docker("kill", "--signal", "USR1", name)
        lines, result = read_lines(process)
    calls = int(host.docker("logs", name).split("calls ")[1].split()[0])
    shown = [line for _came, line in lines if re.search(r"python3?\[1\] getppid\(\) = 0 in ", line)]
    others = [
        int(match[1].replace(",", "")) for _came, line in lines if (match := re.match(r"… ([\d,]+) more calls? ", line))
    ]
    assert len(shown) == result["shown"]["lines"] < calls
    assert sum(others) == result["shown"]["others"]
    if not result["shown"]["skipped"]:
        assert len(shown) + sum(others) == calls
    else:
        assert any("came faster than they can be read here" in line for _came, line in lines)


@pytest.mark.parametrize("dest", [False, True])
def test_control_c_leaves_nothing(container, ssh_hosts, tmp_path, dest):
    name = container(*LOOP)
    more = {"dest": str(tmp_path)} if dest else {}
    with watching([name], "-i", str(ssh_hosts), where="as_user", seconds=host.seconds(60), **more) as process:
        assert any(LOOK_UP.match(line) for line in process.stdout)
        process.send_signal(signal.SIGINT)
        process.communicate()
    host.wait_until_empty(host.list_instances, 60)
    host.wait_until_empty(host.list_processes, 60)
    assert not RECORDINGS.exists() or os.listdir(RECORDINGS) == []
    if dest:  # what was recorded is not lost
        assert len([path for path in CAPTURES.iterdir() if path.suffix == ".new"]) == 1
        host.playbook("collect", "-i", str(ssh_hosts), "-l", "as_user", dest=str(tmp_path))
        (path,) = tmp_path.glob(f"as_user/{name}/*.json")
        assert json.loads(path.read_text())["entries"] > 10


def test_more_than_one_is_refused_and_the_next_step_named(container, ssh_hosts):
    names = sorted([container(*LOOP), container(*LOOP)])
    with pytest.raises(host.ModuleFailed) as failed:
        host.ad_hoc("localhost", "ftrace_capture", {"containers": names, "live": True, "docker_host": ENGINE}, "-b")
    expected = f"live shows one container, and the selection has 2: {names[0]}, {names[1]}; name one of them: containers={names[0]}"
    assert failed.value.result["msg"] == expected
    arguments = json.dumps({"containers": names[:1], "live": True})
    done = host.run(
        *("ansible", "all", "-i", str(ssh_hosts), "-b", "-m", "crashcart.fleet.ftrace_capture", "-a", arguments),
        check=False,
    )
    assert done.returncode != 0
    assert "live shows one host, and this play has 2" in done.stdout


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"mode": "ring"}, "live reads a recording, and mode=ring makes none"),
        ({"existing": "change"}, "live shows a trace of its own"),
        ({"clock": "local"}, "live needs a clock that the host can read"),
        ({"phase": "finish", "dest": "x"}, "live starts and ends the trace in one task: leave phase out"),
    ],
)
def test_what_cannot_be_shown_is_told(container, more, words):
    name = container(*LOOP)
    arguments = {"containers": [name], "live": True, "docker_host": ENGINE, **more}
    with pytest.raises(host.ModuleFailed, match=re.escape(words)):
        host.ad_hoc("localhost", "ftrace_capture", arguments, "-b")


def test_check_mode_shows_nothing(container):
    name = container(*LOOP)
    result = host.ad_hoc(
        "localhost", "ftrace_capture", {"containers": [name], "live": True, "docker_host": ENGINE}, "-b", "-C"
    )
    assert (result["changed"], result["selected"]) == (True, [name])
