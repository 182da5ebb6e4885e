# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Users of the host who lie about containers, or do not answer: root's commands go where root's engines say, and go on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import host, runtimes, strangers
from support.host import ModuleFailed

# 15 s for what users are asked, and as much as a module takes on a machine that is busy.
ENOUGH_S = 15 + 20
NAME = "cc-shop"
MARK = "cc-label"
WHERE = ["bash", "-c", "echo $(readlink /proc/self/ns/uts)"]  # of mount namespaces a command has a copy


@pytest.fixture
def user():
    with strangers.make_user("cc-mallory") as made:
        yield made


@pytest.fixture
def service():
    """A service of the host's, with a mount namespace of its own and the host's files."""
    with host.start("unshare", "--mount", "--uts", "--propagation", "private", "sleep", "100000") as process:
        host.wait_until(lambda: Path(f"/proc/{process.pid}/cmdline").read_text().startswith("sleep"))
        yield process.pid


@pytest.fixture
def shop(container):
    """A container of root's engine."""
    return container("busybox", options=("--network", "none", "--label", f"{MARK}=db"), name=NAME)


def execute(**selection):
    """Run crashcart_exec for SELECTION, and return the namespaces that its commands were in, and its warnings."""
    result = host.call_module("crashcart_exec", argv=WHERE, rights="container", **selection)
    return [one["stdout"].strip() for one in result["results"]], list_warnings(result)


def list_warnings(result):
    """The texts of RESULT's warnings, which a module gives as texts or, with newer Ansibles, as objects."""
    given = result.get("warnings", [])
    return [one if isinstance(one, str) else one["event"]["msg"] for one in given]


def look():
    """Return the result of crashcart_info, with the texts of its warnings."""
    result = host.call_module("crashcart_info", gather=["all"])
    return {**result, "warnings": list_warnings(result)}


def namespace(pid):
    return os.readlink(f"/proc/{pid}/ns/uts")


def assert_refused(user, **selection):
    """Nothing is done by SELECTION, and the warning names USER."""
    for module, options in (("crashcart_exec", {"argv": WHERE}), ("crashcart_attach", {}), ("ftrace_instance", {})):
        with pytest.raises(ModuleFailed) as caught:
            host.call_module(module, **selection, **options)
        assert any(user.label in one for one in list_warnings(caught.value.result)), caught.value.result


@pytest.mark.parametrize("kind", ["plain", "own user namespace", "process of root's container"])
def test_state_of_a_user_about_processes_of_others_is_not_believed(user, service, shop, kind):
    with ExitStack() as stack:
        pid = service if kind != "process of root's container" else host.find_pid(shop)
        if kind == "own user namespace":
            # As a user's own service is: in a mount namespace of the host's, and then in a user namespace of the user's.
            command = user.command("unshare", "--user", "--map-root-user", "sleep", "100000")
            inside = stack.enter_context(host.start("nsenter", f"--target={service}", "--mount", "--", *command))
            host.wait_until(lambda: Path(f"/proc/{inside.pid}/cmdline").read_text().startswith("sleep"))
            pid = inside.pid
        user.write_state("cc-bait", pid, **{MARK: "bait"})
        for selection in (
            {"containers": ["cc-bait"]},
            {"containers": ["cc-bai*"]},
            {"containers": [f"runc:{user.uid}/cc-bait"]},
            {"containers": [f"{user.uid}/*"]},
            {"labels": {MARK: "bait"}},
        ):
            assert_refused(user, **selection)
        info = look()
        assert {one["pid"] for one in info["containers"]} == {host.find_pid(shop)}
        assert any(user.label in one for one in info["warnings"])
        assert execute(containers=[NAME])[0] == [namespace(host.find_pid(shop))]


def test_a_users_container_takes_no_name_glob_label_query_or_id_of_roots(user, shop):
    pid = host.find_pid(shop)
    identity = host.docker("inspect", "-f", "{{.Id}}", shop)
    with user.unshare("--mount", "--uts") as own:
        user.write_state(NAME, own, **{MARK: "db"})
        user.write_state("cc-other", own, **{MARK: "db"})
        user.write_state(identity, own, **{MARK: "db"})
        user.write_state(identity[:12] + "f" * 52, own)
        query = f"Config.Labels.\"{MARK}\" == 'db'"
        for selection in (
            {"containers": [NAME]},
            {"containers": ["cc-sh*"]},
            {"containers": [identity[:12]]},
            {"containers": [identity]},
            {"containers": ["*"]},
            {"labels": {MARK: "db"}},
            {"labels": {MARK: None}},
            {"query": query},
        ):
            assert execute(**selection)[0] == [namespace(pid)], selection
        (instance,) = host.call_module("ftrace_instance", containers=["cc-*"])["instances"]
        try:
            assert (instance["container"], instance["id"]) == (NAME, identity)
        finally:
            host.call_module("ftrace_instance", state="absent", everything=True)
        info = look()
        users = {one["id"]: one["user"] for one in info["containers"]}
        assert users == {identity: None, NAME: user.uid, "cc-other": user.uid}
        (said,) = [one for one in info["warnings"] if "cc-other" not in one and identity[:12] in one and "ffff" in one]
        assert user.label in said
        with pytest.raises(ModuleFailed, match=f"a user of the host has one: give runc:{user.uid}/cc-other"):
            execute(containers=["cc-other"])


def test_a_trace_of_roots_that_has_outlived_its_container_is_not_taken_over(user, container):
    name = container("busybox", options=("--network", "none"), name="cc-passed")
    identity = host.docker("inspect", "-f", "{{.Id}}", name)
    host.call_module("ftrace_instance", containers=[name])
    try:
        host.docker("rm", "-f", name)
        with user.unshare("--mount", "--uts") as own:
            user.write_state(name, own)
            user.write_state(identity, own)
            (one,) = host.call_module("ftrace_info", gather=["instances"], containers=[name])["instances"]
            assert (one["container"], one["id"]) == (name, identity)
            assert (
                host.call_module("ftrace_info", gather=["instances"], containers=[f"{user.uid}/*"])["instances"] == []
            )
    finally:
        host.call_module("ftrace_instance", state="absent", everything=True)


def test_true_containers_of_a_user(user):
    """Of runc and of Podman: listed with their user, selected where the user is named, entered, attached to."""
    with ExitStack() as stack:
        stack.enter_context(strangers.run_rootless_runc(user, "cc-own-runc", **{MARK: "own"}))
        stack.enter_context(strangers.run_rootless_podman(user, "cc-own-podman", "--label", f"{MARK}=own"))
        info = look()
        pids = {one["name"]: one["pid"] for one in info["containers"] if one["user"] == user.uid}
        assert set(pids) == {"cc-own-runc", "cc-own-podman"}
        assert not [one for one in info["warnings"] if user.label in one]
        spaces = {namespace(pid) for pid in pids.values()}
        for selection in (
            {"containers": [f"runc:{user.uid}/cc-own-runc", f"podman:{user.uid}/cc-own-podman"]},
            {"containers": [f"{user.uid}/cc-own-*"]},
            {"containers": [f"{user.uid}/*"], "labels": {MARK: "own"}},
            {"containers": [f"{user.uid}/*"], "query": f"Config.Labels.\"{MARK}\" == 'own'"},
        ):
            assert set(execute(**selection)[0]) == spaces, selection
        chosen = [f"{user.uid}/cc-own-*"]
        attached = host.call_module("crashcart_attach", containers=chosen)["attachments"]
        try:
            assert len(attached) == 2
            for one in attached:
                script = ["script", "-qec", one["shell"], "/dev/null"]
                done = host.run(*script, input="echo $((6 * 7)) $BASH; exit\n", timeout=host.seconds(60), check=False)
                assert "42 /dev/crashcart/bin/bash" in done.stdout, done
        finally:
            assert host.call_module("crashcart_attach", containers=chosen, state="detached")["changed"]


SHAPES = {
    "list": "[{}]",
    "number": "5",
    "text": '"x"',
    "null": "null",
    "empty": "",
    "object": "{}",
    "no JSON": "{",
    "deep": "[" * 200_000,
    "huge number": '{"config": {"labels": []}, "init_process_pid": 1e999, "init_process_start": 1}',
    "long number": '{"config": {"labels": []}, "init_process_pid": ' + "9" * 4000 + ', "init_process_start": 1}',
    "pid is true": '{"config": {"labels": []}, "init_process_pid": true, "init_process_start": 1}',
    "config is text": '{"config": "x", "init_process_pid": 5, "init_process_start": 1}',
    "labels are numbers": '{"config": {"labels": [1, 2]}, "init_process_pid": 5, "init_process_start": 1}',
    "no bytes of any text": '{"config": "\\ud800"}',
}


def test_documents_of_wrong_forms_cost_a_warning(user, shop):
    """Each alone costs the other containers of the user nothing."""
    with user.unshare("--mount", "--uts") as own:
        user.write_state("cc-good", own)
        for kind, text in SHAPES.items():
            path = user.write_text("runc/cc-bad", "state.json", text)
            info = look()
            assert {one["name"] for one in info["containers"]} == {NAME, "cc-good"}, kind
            (said,) = [one for one in info["warnings"] if user.label in one]
            assert "cc-bad" in said or "container is left out" in said, (kind, said)
            path.unlink()
        user.write_text("crun/cc-bad", "status", json.dumps({"pid": own, "process-start-time": [], "bundle": 5}))
        (said,) = [one for one in look()["warnings"] if user.label in one]
        assert "crun/cc-bad" in said


def test_names_with_control_characters_are_left_out(user, shop):
    with user.unshare("--mount", "--uts") as own:
        user.write_state("cc-\x1b[31mred\nline", own)
        user.write_state("cc-pod", own, **{"io.kubernetes.pod.name": "a\x07b"})
        info = look()
    assert {one["name"] for one in info["containers"]} == {NAME}
    (said,) = [one for one in info["warnings"] if user.label in one]
    assert said.isprintable()


def make_fifo(user, folder, name):
    path = user.make_folder(folder) / name
    os.mkfifo(path)
    user.give(path)


def make_link(user, folder, name, target):
    path = user.make_folder(folder) / name
    path.symlink_to(target)
    user.give(path)


def make_endless(user, folder, name):
    path = user.write_text(folder, name, "[")
    os.truncate(path, 1 << 36)


def test_what_is_no_small_regular_file_is_not_read(user, shop, service, tmp_path):
    state = tmp_path / "state.json"
    state.write_text(json.dumps(strangers.make_state("cc-linked", service, {})))
    make_fifo(user, "runc/cc-1", "state.json")
    make_link(user, "runc/cc-2", "state.json", "/dev/zero")
    make_link(user, "runc/cc-3", "state.json", str(state))
    make_endless(user, "runc/cc-4", "state.json")
    make_fifo(user, "crun/cc-5", "status")
    make_fifo(user, "crun/cc-6", "config.json")
    with user.unshare("--mount", "--uts") as own:
        ticks = strangers.read_start_ticks(own)
        user.write_text("crun/cc-6", "status", json.dumps({"pid": own, "process-start-time": ticks, "bundle": "/"}))
        user.write_state("cc-good", own)
        start = time.monotonic()
        info = look()
    assert time.monotonic() - start < host.seconds(ENOUGH_S)
    assert {one["name"] for one in info["containers"]} == {NAME, "cc-good"}
    (said,) = [one for one in info["warnings"] if user.label in one]
    assert "and 3 more" in said
    assert "no regular file" in said


def test_a_folder_of_state_that_is_a_link_is_not_followed(user, shop, tmp_path):
    (tmp_path / "b").mkdir()
    with runtimes.run_runc(tmp_path / "b", "cc-roots", str(tmp_path / "r")):
        make_link(user, ".", "runc", str(tmp_path / "r"))
        info = look()
    assert {one["name"] for one in info["containers"]} == {NAME}
    (said,) = [one for one in info["warnings"] if user.label in one]
    assert f"{user.folder}/runc: " in said


def test_users_whose_podman_hangs_cost_15_s_in_all(shop):
    with ExitStack() as stack:
        users = [stack.enter_context(strangers.make_user(f"cc-slow{number}")) for number in range(4)]
        for user in users:
            user.make_folder("libpod")
            configuration = user.home / ".config" / "containers"
            configuration.mkdir(parents=True)
            os.mkfifo(configuration / "storage.conf")
            os.chmod(configuration / "storage.conf", 0o666)
        own = stack.enter_context(users[0].unshare("--mount", "--uts"))
        users[0].write_state("cc-beside", own)
        # Who means none of theirs does not ask them.
        assert execute(containers=[NAME]) == ([namespace(host.find_pid(shop))], [])
        start = time.monotonic()
        info = look()
        assert time.monotonic() - start < host.seconds(ENOUGH_S)
        assert {one["name"] for one in info["containers"]} == {NAME, "cc-beside"}
        start = time.monotonic()
        found, warnings = execute(containers=[NAME, "4242/*"])
        assert time.monotonic() - start < host.seconds(ENOUGH_S)
        assert found == [namespace(host.find_pid(shop))]
        for user in users:
            for said in (info["warnings"], warnings):
                assert len([one for one in said if user.label in one]) == 1
            host.wait_until(lambda user=user: set(user.list_processes()) <= {own})


ENGINE = """\
import os, socket, sys, time
way, path, entry = sys.argv[1:]
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen()
def answer(peer, text):
    head = b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\n"
    peer.sendall(head + b"Content-Length: %d\\r\\n\\r\\n" % len(text) + text)
while True:
    peer, _address = server.accept()
    if os.fork():
        peer.close()
        continue
    data = b""
    while True:
        while b"\\r\\n\\r\\n" not in data:
            part = peer.recv(65536)
            if not part:
                os._exit(0)
            data += part
        path, _blank, data = data.partition(b"\\r\\n\\r\\n")
        path = path.split()[1]
        if way == "drip":
            peer.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: 100000\\r\\n\\r\\n[")
            while True:
                time.sleep(5)
                peer.sendall(b" ")
        if path.endswith(b"/version"):
            answer(peer, b'{"ApiVersion": "1.41", "Version": "20.10"}')
        elif way == "endless":
            peer.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n")
            while True:
                peer.sendall(b"100000\\r\\n" + b"[" * (1 << 20) + b"\\r\\n")
        elif b"/containers/json" in path:
            answer(peer, b'[{"Id": "%s", "Names": ["/cc-bait"], "State": "running", "Image": "", "Labels": {}}]' % (b"ab" * 32))
        else:
            answer(peer, entry.encode())
"""


@pytest.fixture
def engine(user, tmp_path):
    """Starts an engine of USER's that speaks Docker's API: engine(WAY, PID) → its URL."""
    with ExitStack() as stack:

        def start(way, pid=0):
            entry = {"Id": "ab" * 32, "Name": "/cc-bait", "State": {"Status": "running", "Pid": pid}}
            path = str(user.make_folder(way) / "docker.sock")
            words = (way, path, json.dumps({**entry, "Config": {"Image": "", "Labels": {}}}))
            process = stack.enter_context(
                host.start(*user.command("/usr/bin/python3", "-c", ENGINE, *words), cwd="/", start_new_session=True)
            )
            stack.callback(os.killpg, process.pid, 9)
            host.wait_until(lambda: answers(path))
            return f"unix://{path}"

        yield start


def answers(path):
    with socket.socket(socket.AF_UNIX) as peer:
        return peer.connect_ex(path) == 0


@pytest.mark.parametrize("way", ["drip", "endless"])
def test_a_users_engine_that_does_not_end_its_answer(user, engine, way):
    url = engine(way)
    start = time.monotonic()
    with pytest.raises(ModuleFailed, match="the engine of user cc-mallory"):
        execute(docker_host=url, containers=["cc-bait"])
    assert time.monotonic() - start < host.seconds(ENOUGH_S)


def test_a_users_engine_is_believed_of_that_users_processes(user, engine, service, monkeypatch):
    false = engine("false", service)
    for selection in ({"docker_host": false}, {}):
        monkeypatch.setenv("DOCKER_HOST", false)
        assert_no_results = {**selection, "containers": ["cc-bai*"]}
        with pytest.raises(ModuleFailed, match="user cc-mallory|matches no container") as caught:
            execute(**assert_no_results)
        assert user.label in json.dumps(caught.value.result)
    with user.unshare("--mount", "--uts") as own:
        true = engine("true", own)
        # Who names the engine means all that it has.
        assert execute(docker_host=true, containers=["cc-bai*"])[0] == [namespace(own)]
        monkeypatch.setenv("DOCKER_HOST", true)
        with pytest.raises(ModuleFailed, match="matches no container"):
            execute(containers=["cc-bai*"])


# A tmpfs that is called as the folder of an exposed trace is, and one over it.
COVERED = "mkdir {0}; mount -t tmpfs crashcart-{1} {0}; mount -t tmpfs other {0}; exec sleep 100000"


def test_what_a_user_mounts_is_in_the_way_of_no_trace_of_roots(user, container):
    name = container()
    traced = host.call_module("ftrace_instance", state="started", containers=[name], buffer_size="64KiB")
    instance = traced["instances"][0]["name"]
    script = COVERED.format(user.home / "covered", "0" * 12)
    with host.start(*user.command("unshare", "-Urm", "sh", "-c", script), cwd="/") as process:
        host.wait_until(lambda: Path(f"/proc/{process.pid}/cmdline").read_text().startswith("sleep"))
        user.write_state("covered", process.pid)
        result = host.call_module("ftrace_instance", state="absent", everything=True)
    assert result["changed"]
    assert instance not in host.list_instances()
    (warning,) = list_warnings(result)
    assert user.label in warning and "not ours" in warning


def test_one_container_of_roots_is_in_the_way_of_no_trace_but_its_own(container):
    """It fails at the end: what it shows of a trace, as it says, could not be taken away."""
    good, bad = container(), container()
    traced = host.call_module("ftrace_instance", state="started", containers=[good], buffer_size="64KiB")
    pid = str(host.find_pid(bad))
    for source in ("crashcart-" + "0" * 12, "other"):
        host.run("nsenter", "-m", "-t", pid, "--root", "/bin/busybox", "mount", "-t", "tmpfs", source, "/tmp")
    with pytest.raises(ModuleFailed, match=f"container {bad} at /tmp.*not ours"):
        host.call_module("ftrace_instance", state="absent", everything=True)
    assert traced["instances"][0]["name"] not in host.list_instances()


MANY = 4000  # containers that are one process, which has this many mounts
MOUNTS = """
import ctypes, os
libc = ctypes.CDLL(None)
os.mkdir("{0}")
libc.mount(b"t", b"{0}", b"tmpfs", 0, None)
for index in range(13):
    os.mkdir("{0}/%d" % index)
    libc.mount(b"{0}", b"{0}/%d" % index, None, 4096 | 16384, None)
os.execvp("sleep", ["sleep", "100000"])
"""


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("crashcart_info", {"gather": ["all"]}),
        ("crashcart_attach", {"state": "detached", "everything": True}),
        ("ftrace_instance", {"state": "absent", "everything": True}),
    ],
)
def test_however_much_a_user_mounts_costs_15_s(user, shop, module, arguments):
    command = user.command("unshare", "-Urm", "/usr/bin/python3", "-c", MOUNTS.format(user.home / "many"))
    with host.start(*command, cwd="/") as process:
        host.wait_until(lambda: Path(f"/proc/{process.pid}/cmdline").read_text().startswith("sleep"), 60)
        assert len(Path(f"/proc/{process.pid}/mountinfo").read_text().splitlines()) > 1 << 13
        state = json.dumps(strangers.make_state("x", process.pid, {}))
        for index in range(MANY):
            user.write_text(f"runc/many-{index}", "state.json", state)
        start = time.monotonic()
        result = host.call_module(module, **arguments)
        assert time.monotonic() - start < host.seconds(ENOUGH_S)
    (warning,) = list_warnings(result)
    assert user.label in warning
    if module == "crashcart_info":
        assert NAME in [one["name"] for one in result["containers"]]


@pytest.mark.parametrize("mode", [0o775, 0o777, 0o1777])
def test_roots_state_in_a_folder_that_others_can_change_is_not_believed(shop, tmp_path, mode):
    (tmp_path / "bundle").mkdir()
    with runtimes.run_runc(tmp_path / "bundle", "cc-loose"):
        assert len(execute(containers=["cc-loose"])[0]) == 1
        before = os.stat("/run/runc").st_mode
        os.chmod("/run/runc", mode)
        try:
            with pytest.raises(ModuleFailed, match="no container is called 'cc-loose'") as caught:
                execute(containers=["cc-loose"])
            assert any("/run/runc is not believed" in one for one in list_warnings(caught.value.result))
            assert len(execute(containers=[NAME])[0]) == 1
        finally:
            os.chmod("/run/runc", before & 0o7777)


def test_a_bundle_of_a_user_gives_a_container_of_roots_no_name(user, tmp_path):
    """crun leaves annotations to the bundle, which may be a user's."""
    module = "ansible_collections.crashcart.fleet.plugins.module_utils.containers.oci"
    bundle = user.make_folder("bundle")
    user.write_text("bundle", "config.json", json.dumps({"annotations": {"io.kubernetes.pod.name": "taken"}}))
    code = (
        f"import sys, {module} as oci\n"
        "state = {'id': 'cc-plain', 'status': 'running', 'pid': 1, 'bundle': sys.argv[1]}\n"
        "print(oci.Root('/run/crun', 'crun', 'crun')._parse(state).name)"
    )
    assert host.run(sys.executable, "-c", code, str(bundle)).stdout == "cc-plain\n"
    (tmp_path / "config.json").write_text(json.dumps({"annotations": {"io.kubernetes.pod.name": "mine"}}))
    assert host.run(sys.executable, "-c", code, str(tmp_path)).stdout == "default/mine/\n"
    (bundle / "config.json").unlink()
    os.mkfifo(bundle / "config.json")
    assert (
        subprocess.run([sys.executable, "-c", code, str(bundle)], timeout=host.seconds(60), check=True).returncode == 0
    )


def test_the_inventory_has_users_containers_on_demand_and_under_names_of_their_own(user, shop, container, tmp_path):
    container("busybox", options=("--network", "none"), name=f"cc-x.user{user.uid}")
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    (tmp_path / "1-hosts.yml").write_text(json.dumps({"all": {"hosts": {"here": here}}}))
    (tmp_path / "2-containers.yml").write_text("plugin: crashcart.fleet.containers\nhosts: [here]\n")
    (tmp_path / "3-containers.yml").write_text("plugin: crashcart.fleet.containers\nhosts: [here]\nusers: true\n")

    def list_hosts(number):
        files = [f"-i{tmp_path}/1-hosts.yml", f"-i{tmp_path}/{number}-containers.yml"]
        found = json.loads(host.run("ansible-inventory", *files, "--list").stdout)["_meta"]["hostvars"]
        del found["here"]
        return {name: str(one["ansible_cart_container"]) for name, one in found.items()}

    with user.unshare("--mount", "--uts") as own:
        user.write_state(NAME, own, **{MARK: "db"})
        user.write_state("cc-x", own)
        plain = list_hosts(2)
        assert set(plain) == {f"{NAME}@here", f"cc-x.user{user.uid}@here"}
        found = list_hosts(3)
    # One that would take the name of root's has another one.
    assert {name: one for name, one in found.items() if name in plain} == plain
    assert set(found) - set(plain) == {f"{NAME}.user{user.uid}@here", f"cc-x.user{user.uid}.runc@here"}
    assert f"runc:{user.uid}/cc-x" in found[f"cc-x.user{user.uid}.runc@here"]
    assert f"runc:{user.uid}/{NAME}" in found[f"{NAME}.user{user.uid}@here"]
