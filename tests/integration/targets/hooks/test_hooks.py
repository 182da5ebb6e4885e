# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Test the start hook: containers that ask for it are traced from their first instruction, and each container starts whatever happens."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import host, killing, parts, runtimes
from support.fetching import fetch_here

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.hook import begin, notes, wiring
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import orders, recordings
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import processes
from ansible_collections.crashcart.fleet.plugins.module_utils.names import HOOK_FOLDER, HOOK_POLICY, HOOK_PROGRAM
from ansible_collections.crashcart.fleet.tools.busybox_archive import make_archive

IMAGE = "crashcart-test/busybox"
FAILS = ("/bin/busybox", "cat", "/etc/nope")
# Who makes an event is the first word of its line.
OTHERS = re.compile(r"(^ *|comm=)(runc|crun|conmon|containerd-shim|crashcart-)")
DEVICE = "crashcart.fleet/trace=startup"
FOLDERS = ("/etc/cdi", "/usr/share/containers/oci/hooks.d", "/etc/crashcart", "/usr/libexec/crashcart")


def list_files():
    """Return path → content of what is in the folders that the hook uses, and of the daemon's configuration."""
    found = {}
    for folder in FOLDERS:
        for path in [Path(folder), *Path(folder).rglob("*")]:
            if path.exists():
                found[str(path)] = path.read_bytes() if path.is_file() else None
    return {**found, "daemon": find_daemon().read_bytes()}


def find_daemon():
    return Path(os.environ["DOCKER_HOST"][len("unix://") :]).parent / "daemon.json"


def set_hook(**arguments):
    """Call the module for the tests' engine."""
    daemon = find_daemon()
    places = {"docker_config": str(daemon), "docker_pidfile": str(daemon.parent / "docker.pid")}
    return host.call_module("ftrace_hook", docker_host=os.environ["DOCKER_HOST"], **places, **arguments)


@pytest.fixture
def hook():
    """Give the function that sets the hook up with a profile `startup` that has more options; at the end all of it is gone."""
    before = list_files()

    def make(ways=("cdi", "hooks", "runtime"), *, is_begun=True, **options):
        """With IS_BEGUN the trace is on: a slow machine may take longer to begin it than a start waits."""
        profile = {"name": "startup", "max_containers": 200, "buffer_size": "4MiB", **options}
        done = set_hook(ways=list(ways), profiles=[profile])
        if is_begun:
            subprocess.run([HOOK_PROGRAM, "begin", "startup"], check=True)
        return done

    yield make
    host.call_module("ftrace_instance", state="absent", everything=True)
    set_hook(state="absent", force=True)
    for path in Path(HOOK_FOLDER).glob("*"):
        path.unlink()
    assert list_files() == before


def make_bundle(folder, *command, stage="createRuntime"):
    """Make a bundle in FOLDER that runs COMMAND and has the hook."""
    folder.mkdir(parents=True, exist_ok=True)
    runtimes.make_bundle(folder, *(command or FAILS))
    path = folder / "config.json"
    about = json.loads(path.read_text())
    about["hooks"] = {stage: [{"path": HOOK_PROGRAM, "args": ["start-hook", "create", "startup"]}]}
    path.write_text(json.dumps(about))
    return folder


def run_runc(bundle, name):
    return subprocess.run(["runc", "run", "-b", str(bundle), name], capture_output=True, text=True, check=False)


def run_docker(name, *command, options=("--runtime", "crashcart-startup")):
    words = ("run", "--rm", "--network", "none", "--name", name, *options, IMAGE, *(command or FAILS))
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=False)


def fetch(tmp_path, number=0):
    """Return container → its capture of a fetch."""
    captures = fetch_here(tmp_path / f"fetch-{number}")
    names = [capture["manifest"]["container"]["name"] for capture in captures]
    assert len(set(names)) == len(names), names
    return dict(zip(names, captures))


def check_from_the_first_instruction(capture, program="/bin/busybox"):
    """Check that a CAPTURE begins with the execve of PROGRAM, is complete, has the failure, and nothing of a runtime."""
    manifest = capture["manifest"]
    assert manifest["complete"], manifest["reasons"]
    assert manifest["has_run"]
    lines = list_lines(capture)
    assert f"sched_process_exec:   filename={program}" in lines[0], lines[:3]
    assert any("sys_exit" in line and line.endswith("= -2") for line in lines), lines
    assert not list(filter(OTHERS.search, lines[1:]))


def list_lines(capture):
    text = host.run("trace-cmd", "report", capture["path"]).stdout
    return [line for line in text.splitlines() if " [0" in line]


def read_troubles():
    return [
        trouble["why"] for trouble in host.call_module("ftrace_info", gather=["start_hook"])["start_hook"]["troubles"]
    ]


def check_runs(bundle, why=""):
    """Check that the container of BUNDLE runs, soon, with its own exit code, and that the reason WHY it is not traced is told."""
    start = time.monotonic()
    done = run_runc(bundle, f"cc-hook-{os.urandom(4).hex()}")
    assert (done.returncode, "nope" in done.stderr) == (1, True), done
    assert time.monotonic() - start < host.seconds(8)
    if why:
        assert re.search(why, read_troubles()[-1]), read_troubles()


def test_runc(hook, tmp_path):
    assert hook()["changed"]
    bundle = make_bundle(tmp_path / "bundle")
    for name in ("cc-hook-one", "cc-hook-two"):
        assert run_runc(bundle, name).returncode == 1
    captures = fetch(tmp_path)
    assert captures.keys() == {"cc-hook-one", "cc-hook-two"}
    for capture in captures.values():
        check_from_the_first_instruction(capture)
    assert fetch(tmp_path, 1) == {}
    assert read_troubles() == []


def test_docker_by_a_runtime(hook, tmp_path):
    hook()
    assert run_docker("cc-hook-plain", options=()).returncode == 1
    assert run_docker("cc-hook-one", options=("--runtime", "crashcart", "--label", "tier=front")).returncode == 1
    assert run_docker("cc-hook-two", "/bin/sh", "-c", "/bin/busybox cat /etc/nope; exit 7").returncode == 7
    captures = fetch(tmp_path)
    assert captures.keys() == {"cc-hook-one", "cc-hook-two"}
    about = captures["cc-hook-one"]["manifest"]["container"]
    assert (about["labels"], about["image"], about["runtime"]) == ({"tier": "front"}, IMAGE, "docker")
    check_from_the_first_instruction(captures["cc-hook-one"])
    check_from_the_first_instruction(captures["cc-hook-two"], "/bin/sh")


def test_what_is_execed_by_our_runtime_is_recorded_and_nothing_of_the_runtime(hook, tmp_path):
    hook()
    name = "cc-hook-exec"
    host.docker("run", "-d", "--network", "none", "--name", name, "--runtime", "crashcart", IMAGE, "/bin/sleep", "1000")
    try:
        shim = processes.read_parent(int(host.docker("inspect", "-f", "{{.State.Pid}}", name)))
        followed = Path(host.TRACEFS, "instances", host.list_instances()[0], "set_event_pid")
        host.wait_until(lambda: str(shim) in followed.read_text().split())
        for _time in range(3):
            host.docker("exec", name, *FAILS, check=False)
    finally:
        host.docker("rm", "-f", name)
    lines = list_lines(fetch(tmp_path)[name])
    assert sum("sched_process_exec:   filename=/bin/busybox" in line for line in lines) == 3, lines
    assert not list(filter(OTHERS.search, lines[1:]))


@pytest.mark.parametrize("options", [("--device", DEVICE), ("--annotation", "crashcart.trace=startup")])
def test_podman(hook, tmp_path, options):
    hook()
    name = "cc-hook-pod"
    subprocess.run(["podman", "import", "-", IMAGE], input=make_archive(), check=True, capture_output=True)
    limits = runtimes.PODMAN_LIMITS
    words = (
        "--runtime",
        "runc",
        "run",
        "--rm",
        "--network",
        "none",
        *limits,
        "--name",
        name,
        *options,
        f"localhost/{IMAGE}",
    )
    done = subprocess.run(["podman", *words, *FAILS], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done
    captures = fetch(tmp_path)
    assert captures.keys() == {name}
    check_from_the_first_instruction(captures[name])
    assert captures[name]["manifest"]["container"]["runtime"] == "podman"


def test_a_hundred_at_once_are_complete(hook, tmp_path):
    hook()
    number = 100
    with ThreadPoolExecutor(20) as pool:
        done = list(pool.map(lambda each: run_docker(f"cc-hook-{each}"), range(number)))
    assert {one.returncode for one in done} == {1}
    captures = fetch(tmp_path)
    late = [why for why in read_troubles() if "within" in why]  # a slow machine may take longer than the hook waits
    assert len(captures) >= number - len(late), read_troubles()
    assert len(captures) > number / 2
    for name, capture in captures.items():
        assert capture["manifest"]["complete"] or any(
            "no execve" in reason for reason in capture["manifest"]["reasons"]
        ), name
    whole = [capture for capture in captures.values() if capture["manifest"]["complete"]]
    assert len(whole) >= number - len(late)


def test_beyond_max_containers_the_number_is_told(hook, tmp_path):
    hook(max_containers=2)
    bundle = make_bundle(tmp_path / "bundle", "/bin/sleep", "100")
    names = [f"cc-hook-{number}" for number in range(2)]
    for name in names:
        subprocess.run(
            ["runc", "run", "-d", "-b", str(bundle), name],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    try:
        check_runs(
            make_bundle(tmp_path / "third"), "2 containers are traced at once, and max_containers allows no more"
        )
        (instance,) = host.call_module("ftrace_info", gather=["instances"])["instances"]
        assert (instance["rule"]["refused"], instance["rule"]["running"]) == (1, 2)
    finally:
        for name in names:
            subprocess.run(["runc", "delete", "-f", name], check=True)
    assert fetch(tmp_path).keys() == set(names)


def test_a_full_buffer_makes_the_capture_incomplete_and_costs_no_start(hook, tmp_path):
    hook(buffer_size="64KiB", max_size="64MiB")
    bundle = make_bundle(
        tmp_path / "bundle",
        "/bin/sh",
        "-c",
        "i=0; while [ $i -lt 3000 ]; do /bin/busybox cat /etc/nope; i=$((i+1)); done 2>/dev/null; exit 1",
    )
    os.kill(start_trace(tmp_path), signal.SIGSTOP)  # the recorder does not drain
    try:
        done = run_runc(bundle, "cc-hook-full")
        assert done.returncode == 1
    finally:
        os.kill(orders.find_recorder(), signal.SIGCONT)


def start_trace(tmp_path):
    """Have the trace begin by a container's start, on a slow machine by a later one; return the recorder's pid."""
    bundle = make_bundle(tmp_path / "first")

    def is_traced():
        before = len(read_troubles())
        check_runs(bundle)
        return len(read_troubles()) == before

    host.wait_until(is_traced, 60)
    Path(f"{HOOK_FOLDER}/troubles").unlink(missing_ok=True)
    return orders.find_recorder()


FAILURES = {
    "no room on the disk": ({"min_free": "900000GiB"}, "less than min_free"),
    "no memory for the buffer": ({"buffer_size": "64000GiB", "max_size": "900000GiB"}, "buffer"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_trace_that_cannot_begin_costs_no_start(hook, tmp_path, case):
    options, why = FAILURES[case]
    hook(**options, is_begun=False)
    bundle = make_bundle(tmp_path / "bundle")
    for _round in range(2):
        check_runs(bundle, why)
    assert host.list_instances() == []


def test_without_tracefs(hook, tmp_path):
    hook(is_begun=False)
    bundle = make_bundle(tmp_path / "bundle")
    words = ("unshare", "--mount", "sh", "-c", f"umount -l {host.TRACEFS}; exec runc run -b {bundle} cc-hook-blind")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, "nope" in done.stderr) == (1, True), done
    assert "tracefs is not mounted" in read_troubles()[-1]


def test_without_a_policy_and_with_a_profile_that_is_gone(hook, tmp_path):
    hook(is_begun=False)
    bundle = make_bundle(tmp_path / "bundle")
    text = Path(HOOK_POLICY).read_text()
    Path(HOOK_POLICY).write_text(text[:-20])
    check_runs(bundle, "is damaged: run the role start_hook")
    notes.forget_refusal("startup")
    Path(HOOK_POLICY).write_text('{"profiles": {}}')
    check_runs(bundle, "has no profile startup")
    notes.forget_refusal("startup")
    Path(HOOK_POLICY).write_text(text)
    check_runs(bundle)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b'{"id": 1}', b'{"id": "x", "pid": "y"}', b"\xff" * 99, b" " * (2 << 20)]
)
def test_nonsense_from_the_runtime(hook, text):
    hook()
    done = subprocess.run([HOOK_PROGRAM, "create", "startup"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert len(read_troubles()) == 1


def test_nonsense_about_a_process(hook, tmp_path):
    hook()
    start_trace(tmp_path)
    for pid in (0, -1, 1, os.getpid(), 1 << 40):
        state = json.dumps({"id": "nonesuch", "pid": pid}).encode()
        assert subprocess.run([HOOK_PROGRAM, "create", "startup"], input=state, check=False).returncode == 0
    for words in (
        [],
        ["create"],
        ["created", "startup", "x"],
        ["created", "startup", "x", "/nonesuch"],
        ["begin"],
        ["what"],
    ):
        assert subprocess.run([HOOK_PROGRAM, *words], stdin=subprocess.DEVNULL, check=False).returncode == 0
    check_runs(make_bundle(tmp_path / "bundle"))
    assert orders.find_recorder()


def test_a_user_without_any_right(hook):
    hook()
    state = json.dumps({"id": "x", "pid": 1}).encode()
    words = ["setpriv", "--reuid", "nobody", "--clear-groups", HOOK_PROGRAM, "create", "startup"]
    done = subprocess.run(words, input=state, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"")


def test_a_recorder_that_hangs_delays_a_start_by_two_seconds(hook, tmp_path):
    hook()
    recorder = start_trace(tmp_path)
    os.kill(recorder, signal.SIGSTOP)
    try:
        check_runs(make_bundle(tmp_path / "bundle"), "not on within 2 s")
    finally:
        os.kill(recorder, signal.SIGCONT)
    check_runs(make_bundle(tmp_path / "again"))


def test_a_killed_recorder_is_followed_by_another(hook, tmp_path):
    hook()
    os.kill(start_trace(tmp_path), signal.SIGKILL)
    bundle = make_bundle(tmp_path / "bundle")
    assert run_runc(bundle, "cc-hook-after").returncode == 1
    captures = fetch(tmp_path)
    check_from_the_first_instruction(captures["cc-hook-after"])


def test_kill_9_of_what_begins_the_trace_at_every_system_call(hook, tmp_path):
    hook(is_begun=False)
    bundle = make_bundle(tmp_path / "bundle")

    def check(_number):
        check_runs(bundle)
        host.call_module("ftrace_instance", state="absent", everything=True)
        host.wait_until(lambda: orders.find_recorder() is None)

    assert killing.kill_everywhere(lambda: begin.begin("startup"), check, step=41, full_step=5) > 3
    start_trace(tmp_path / "last")  # goes on as if nothing had been


def test_kill_9_of_the_recorder_at_every_system_call(hook, tmp_path):
    hook()
    bundle = make_bundle(tmp_path / "bundle")
    step = 5 if parts.IS_ALL else 29
    moment, kills = random.randint(1, step), 0
    while moment < 400:
        check_runs(bundle)
        with killing.kill_at(orders.find_recorder(), moment) as was_killed:
            check_runs(bundle)
            kills += was_killed()
        moment += step
    assert kills > 1
    start_trace(tmp_path / "last")  # goes on as if nothing had been


def test_an_idle_trace_ends_and_the_next_start_begins_another(hook, tmp_path):
    hook(idle="1s")
    start_trace(tmp_path)
    host.wait_until(lambda: orders.list_orders() == [])
    host.wait_until(lambda: host.call_module("ftrace_info", gather=["instances"])["instances"][0]["state"] != "started")
    bundle = make_bundle(tmp_path / "bundle")
    assert run_runc(bundle, "cc-hook-later").returncode == 1
    captures = fetch_here(tmp_path / "fetched")
    assert len(captures) == 2
    for capture in captures:
        check_from_the_first_instruction(capture)


def test_what_nobody_fetches_is_bounded(hook, tmp_path):
    hook(idle="1s", max_size="32MiB", buffer_size="1MiB")
    bundle = make_bundle(
        tmp_path / "bundle",
        "/bin/sh",
        "-c",
        "i=0; while [ $i -lt 4000 ]; do /bin/busybox cat /etc/nope; i=$((i+1)); done 2>/dev/null; exit 1",
    )
    for number in range(3):
        assert run_runc(bundle, f"cc-hook-{number}").returncode == 1
        host.wait_until(lambda: orders.list_orders() == [])
    begin.begin("startup")
    (name,) = recordings.list_names()
    sizes = [recording.as_result()["size"] for recording in recordings.list_recordings(name)]
    assert sum(sizes) <= 32 << 20, sizes


def test_again_changes_nothing_and_check_mode_foretells(hook):
    hook(ways=["cdi"])
    assert not hook(ways=["cdi"])["changed"]
    daemon = find_daemon().read_bytes()
    places = {"docker_config": str(find_daemon()), "docker_pidfile": str(find_daemon().parent / "docker.pid")}
    wish = {"ways": ["cdi", "runtime"], "profiles": [{"name": "startup"}, {"name": "other"}], **places}
    told = host.call_module("ftrace_hook", check_mode=True, docker_host=os.environ["DOCKER_HOST"], **wish)
    assert str(find_daemon()) in told["changes"]
    assert wiring.CDI_FILE in told["changes"]
    assert find_daemon().read_bytes() == daemon
    done = host.call_module("ftrace_hook", docker_host=os.environ["DOCKER_HOST"], **wish)
    assert done["changes"] == told["changes"]
    assert any("docker run --runtime crashcart-other" in line for line in done["lines"])
    assert not host.call_module("ftrace_hook", docker_host=os.environ["DOCKER_HOST"], **wish)["changed"]


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{\n\t"log-level": "info",\n\t"runtimes": {"other": {"path": "/usr/sbin/runc"}}\n}',
        '{"runtimes":{}}\n\n',
        "",
    ],
)
def test_the_daemons_configuration_is_as_before(hook, text):
    before = find_daemon().read_bytes()
    try:
        find_daemon().write_text(text)
        hook(ways=["runtime"])
        found = json.loads(find_daemon().read_text())
        assert {"crashcart", "crashcart-startup"} <= found["runtimes"].keys()
        assert ("other" in found["runtimes"]) == ("other" in text)
        assert ("log-level" in found) == ("log-level" in text)
        set_hook(state="absent")
        assert find_daemon().read_text() == text
    finally:
        find_daemon().write_bytes(before)


def test_what_others_have_changed_in_the_daemons_configuration_stays(hook):
    before = find_daemon().read_bytes()
    try:
        hook(ways=["runtime"])
        find_daemon().write_text(json.dumps({**json.loads(find_daemon().read_text()), "log-level": "info"}))
        hook(ways=["runtime"], max_containers=3)
        set_hook(profiles=[{"name": "startup"}, {"name": "more"}], ways=["runtime"])
        set_hook(state="absent")
        assert json.loads(find_daemon().read_text()) == {**json.loads(before), "log-level": "info"}
    finally:
        find_daemon().write_bytes(before)


def test_a_damaged_configuration_is_refused(hook):
    before = find_daemon().read_bytes()
    try:
        find_daemon().write_text('{"runtimes": [')
        with pytest.raises(host.ModuleFailed, match="is no configuration of Docker's daemon .* nothing was changed"):
            hook(ways=["runtime"])
        assert not Path(HOOK_PROGRAM).exists()
    finally:
        find_daemon().write_bytes(before)


def test_removal_names_who_needs_it(hook, tmp_path):
    hook(is_begun=False)
    name = "cc-hook-keeps"
    host.docker("create", "--network", "none", "--name", name, "--runtime", "crashcart", IMAGE, *FAILS)
    try:
        before = list_files()
        with pytest.raises(host.ModuleFailed, match=f"could not start any more: {name} .docker, created, crashcart."):
            set_hook(state="absent")
        assert list_files() == before
        done = set_hook(state="absent", keep_stub=True)
        assert [user["name"] for user in done["users"]] == [name]
        assert Path(HOOK_PROGRAM).read_bytes() == wiring.STUB_PROGRAM
        assert subprocess.run(["docker", "start", "-a", name], capture_output=True, check=False).returncode == 1
        assert host.list_instances() == []
        assert not set_hook(state="absent", keep_stub=True)["changed"]
        hook()  # again
        assert subprocess.run(["docker", "start", "-a", name], capture_output=True, check=False).returncode == 1
        assert fetch(tmp_path).keys() == {name}
    finally:
        host.docker("rm", "-f", name)
    assert set_hook(state="absent")["changed"]


def test_a_reload_that_failed_is_made_good(hook):
    former = find_daemon().read_bytes()
    before = b'{ "log-level" : "info" }\n\n'
    find_daemon().write_bytes(before)
    places = {"docker_host": os.environ["DOCKER_HOST"], "docker_config": str(find_daemon())}
    wrong = {**places, "docker_pidfile": "/nonesuch"}
    for call in ({"ways": ["runtime"]}, {"state": "absent"}):
        with pytest.raises(host.ModuleFailed, match="does not tell the pid of Docker's daemon"):
            host.call_module("ftrace_hook", **wrong, **call)
        assert set_hook(**call)["changed"]
        assert not set_hook(**call)["changed"]
    assert find_daemon().read_bytes() == before
    find_daemon().write_bytes(former)


@pytest.mark.parametrize("call", [{"state": "absent"}, {"ways": ["cdi"], "profiles": [{"name": "startup"}]}])
def test_a_container_that_runs_can_be_stopped_after_a_removal_by_force(hook, call):
    hook()
    name = "cc-hook-forced"
    host.docker("run", "-d", "--network", "none", "--name", name, "--runtime", "crashcart", IMAGE, "/bin/sleep", "1000")
    try:
        set_hook(force=True, **call)
        set_hook(force=True, **call)  # when nothing names the runtime any more
        assert host.docker("exec", name, "/bin/busybox", "echo", "on") == "on"
    finally:
        host.docker("rm", "-f", name)
    assert set_hook(state="absent")["changed"]  # what was left for it


def test_a_removal_finds_the_configuration_that_was_changed(hook):
    hook(is_begun=False)
    elsewhere = Path("/etc/docker/daemon.json")
    before = elsewhere.read_bytes() if elsewhere.exists() else None
    assert host.call_module("ftrace_hook", state="absent", docker_host=os.environ["DOCKER_HOST"])["changed"]
    assert wiring.RUNTIME not in find_daemon().read_text()
    assert (elsewhere.read_bytes() if elsewhere.exists() else None) == before


def test_after_the_devices_and_runtimes_that_trace_nothing_a_cleanup_takes_all_away(hook):
    hook(is_begun=False)
    set_hook(state="absent", keep_stub=True)
    assert host.call_module("crashcart_info", gather=["census"])["census"]["start_hook"]
    assert set_hook(state="absent")["changed"]
    assert host.call_module("crashcart_info", gather=["census"])["census"]["start_hook"] == []


def test_calls_at_the_same_time_leave_what_runs(hook):
    hook(is_begun=False)

    def call(name):
        return set_hook(ways=["cdi", "hooks", "runtime"], profiles=[{"name": name}], force=True)

    with ThreadPoolExecutor() as pool:
        for _round in range(3):
            list(pool.map(call, ("startup", "more")))
            assert subprocess.run([HOOK_PROGRAM, "try"], capture_output=True, check=True).stdout == b"tried\n"
            (device,) = json.loads(Path(wiring.CDI_FILE).read_text())["devices"]
            assert set(wiring.list_wrappers()) == {
                wiring.name_wrapper(name) for name in ("crashcart", f"crashcart-{device['name']}")
            }
            assert [path for path in list_files() if path.endswith(".crashcart")] == []


def test_a_program_that_the_host_does_not_run_is_refused_before_anything_leads_to_it(hook, tmp_path):
    folder = Path(HOOK_PROGRAM).parent
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec", "none", str(folder)], check=True)
    try:
        with pytest.raises(
            host.ModuleFailed, match="start-hook cannot be run on this host .*, so nothing leads to it yet"
        ):
            hook(is_begun=False)
        assert not Path(wiring.CDI_FILE).exists() and wiring.list_hooks() == [] == wiring.list_wrappers()
        set_hook(state="absent")
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def test_a_change_of_profiles_ends_what_runs_and_loses_nothing(hook, tmp_path):
    hook()
    start_trace(tmp_path)
    hook(max_containers=3, is_begun=False)
    host.wait_until(lambda: orders.list_orders() == [])
    bundle = make_bundle(tmp_path / "bundle")
    assert run_runc(bundle, "cc-hook-next").returncode == 1
    assert len(fetch_here(tmp_path / "fetched")) == 2
    set_hook(state="absent", force=True)
    host.wait_until(lambda: orders.list_orders() == [])


def test_a_hook_with_all_signals_blocked_ends(hook, tmp_path):
    """Check a hook that is started as crun starts hooks."""
    hook()
    recorder = start_trace(tmp_path)
    code = "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()); os.execv(sys.argv[1], sys.argv[1:])"
    state = json.dumps({"id": "x", "pid": os.getpid()}).encode()
    os.kill(recorder, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", code, HOOK_PROGRAM, "create", "startup"],
            input=state,
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert time.monotonic() - begun < host.seconds(8)
    finally:
        os.kill(recorder, signal.SIGCONT)


def test_a_process_without_a_group_of_its_own_is_refused(hook, tmp_path):
    hook()
    start_trace(tmp_path)
    for identity in ("f" * 64, "nonesuch"):
        state = json.dumps({"id": identity, "pid": os.getpid()}).encode()
        assert subprocess.run([HOOK_PROGRAM, "create", "startup"], input=state, check=False).returncode == 0
        assert "in no control group that has the container's id" in read_troubles()[-1]


def test_nonsense_costs_no_recording(hook, tmp_path):
    hook()
    recorder = start_trace(tmp_path)
    for text in (b"[" * 60_000, b'{"id": "x", "pid": 1e999}', b'{"id": "x", "pid": {}}', b"\x00"):
        assert subprocess.run([HOOK_PROGRAM, "create", "startup"], input=text, check=False).returncode == 0
    assert orders.find_recorder() == recorder
    check_runs(make_bundle(tmp_path / "bundle"))


def test_what_cannot_be_is_refused(hook):
    for profile, message in (
        ({"name": "Bad name"}, "a profile has a name of small letters"),
        ({"name": "good", "syscalls": ["nonesuch"]}, "profile good: .*nonesuch"),
        ({"name": "good", "max_containers": 0}, "profile good: max_containers: 0 is too small"),
        ({"name": "good", "idle": "soon"}, "profile good: .*idle"),
        ({"name": "good", "max_size": "1KiB"}, "profile good: .*max_size"),
    ):
        with pytest.raises(host.ModuleFailed, match=message):
            set_hook(profiles=[profile])
    with pytest.raises(host.ModuleFailed, match="profile a is there twice"):
        set_hook(profiles=[{"name": "a"}, {"name": "a"}])
    assert not Path(HOOK_PROGRAM).exists()
