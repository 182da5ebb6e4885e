# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Choices of a caller of crashcart_exec: namespaces, capabilities with the host's rights, and where the output goes."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from support import host

KINDS = ("pid", "net", "ipc", "uts", "cgroup", "time", "user", "mnt")
NETWORK = ("--network", "none")


def execute(name, *argv, **options):
    """The one result of a command in container NAME."""
    options.setdefault("rights", "host")
    return host.execute(containers=[name], argv=list(argv), **options)[0]


def read_namespaces(pid):
    return {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in KINDS}


@pytest.fixture
def own_namespaces(container):
    """A container that shares no namespace with the host but for user and time."""
    return container(options=(*NETWORK, "--cgroupns", "private", "--ipc", "private"))


CHOICES = (
    ["net"],
    ["pid"],
    ["ipc"],
    ["uts"],
    ["cgroup"],
    ["mnt"],
    ["mnt", "pid"],
    ["net", "ipc", "cgroup"],
    list(KINDS),
)


def test_exactly_the_chosen_namespaces_are_entered(own_namespaces):
    name = own_namespaces
    containers, own = read_namespaces(host.find_pid(name)), read_namespaces("self")
    running = []
    for chosen in CHOICES:
        before = set(_find_sleepers())
        running.append(
            host.start_module(
                "crashcart_exec",
                containers=[name],
                argv=["sleep", "4321"],
                rights="host",
                namespaces=chosen,
                timeout="4s",
            )
        )
        (pid,) = host.wait_until(lambda before=before: set(_find_sleepers()) - before)
        found = read_namespaces(pid)
        assert found["mnt"] not in (containers["mnt"], own["mnt"])
        for kind in set(KINDS) - {"mnt"}:
            assert found[kind] == (containers if kind in chosen else own)[kind], (chosen, kind)
    for process in running:
        process.communicate()
    assert not _find_sleepers(), "they ended with their time, wherever they were"


def test_all_but_the_named_ones_by_default(own_namespaces):
    name = own_namespaces
    script = "for kind in cgroup time user; do readlink /proc/self/ns/$kind; done"
    own = read_namespaces("self")
    assert execute(name, "bash", "-c", script)["stdout"].split() == [own["cgroup"], own["time"], own["user"]]


def test_a_time_namespace_is_entered():
    with subprocess.Popen(
        [
            "unshare",
            "--time",
            "--boottime",
            "1000000",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "sleep",
            "1000",
        ]
    ) as parent:
        try:
            pid = int(host.wait_until(Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text))
            host.wait_until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
            up = "print(int(float(open('/proc/uptime').read().split()[0])))"
            name = f"pid:{pid}"
            assert int(execute(name, "python3", "-c", up, namespaces=["mnt", "pid", "time"])["stdout"]) > 1_000_000
            assert int(execute(name, "python3", "-c", up, rights="container")["stdout"]) > 1_000_000
            assert int(execute(name, "python3", "-c", up)["stdout"]) < 1_000_000
        finally:
            parent.kill()


def test_the_hosts_programs_and_the_images_in_the_containers_network(container):
    """The case of `nsenter -n`."""
    name = container()
    assert execute(name, "ip", "-brief", "address", namespaces=["net"])["stdout"].split()[0] == "lo"
    assert len(execute(name, "ip", "-brief", "address", namespaces=["net"])["stdout"].splitlines()) == 1
    result = execute(name, "/bin/cat", "/etc/os-release", namespaces=["net"])
    assert result["stdout"] == Path("/etc/os-release").read_text(encoding="utf-8")
    script = "type -p ss; ls -d /dev/crashcart /proc/1/root /dev/shm /dev/null; test -w /dev/null; head -c 3 /dev/zero | wc -c"
    result = execute(name, "bash", "-c", script, namespaces=["net"])
    assert result["stdout"].split() == [
        "/dev/crashcart/bin/ss",
        "/dev/crashcart",
        "/dev/null",
        "/dev/shm",
        "/proc/1/root",
        "3",
    ]
    assert not os.path.exists("/dev/crashcart")


def test_without_the_containers_files_a_user_is_one_of_the_host(container):
    name = container()
    assert execute(name, "id", "-un", user="daemon", namespaces=["net"])["stdout"] == "daemon\n"
    with pytest.raises(host.ModuleFailed, match="no user is called 'app'"):
        execute(name, "true", user="app", namespaces=["net"])


@pytest.mark.parametrize("chosen", [["net"], ["mnt", "pid"]])
@pytest.mark.parametrize("end", ["its end", "a timeout", "a kill"])
def test_nothing_outlives_a_command_in_any_namespaces(container, chosen, end):
    name = container()
    script = f"setsid unshare -m sleep 4321 & setsid setsid sleep 4321 & exec 1>&- 2>&-; sleep {'1' if end == 'its end' else '4321'}"
    process = host.start_module(
        "crashcart_exec",
        containers=[name],
        argv=["bash", "-c", script],
        rights="host",
        namespaces=chosen,
        timeout=f"{host.seconds(5):.0f}s" if end == "a timeout" else None,
    )
    host.wait_until(lambda: len(_find_sleepers()) >= 2)
    if end == "a kill":
        process.send_signal(signal.SIGKILL)
    process.communicate(timeout=host.seconds(30))
    host.wait_until(lambda: not _find_sleepers())


def _find_sleepers():
    return host.run("pgrep", "-f", "^sleep 4321", check=False).stdout.split()


@pytest.mark.parametrize(("chosen", "wanted"), [(["nets"], "nets"), ([], "name at least one of mnt, pid, net")])
def test_bad_namespaces_are_named(container, chosen, wanted):
    with pytest.raises(host.ModuleFailed, match=wanted):
        execute(container(), "true", namespaces=chosen)


def read_capabilities(name, **options):
    result = execute(name, "cat", "/proc/self/status", **options)
    fields = dict(line.split(":\t", 1) for line in result["stdout"].splitlines() if ":\t" in line)
    return {key: int(fields[key], 16) for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}


NET_RAW = 1 << 13
SYS_PTRACE = 1 << 19


def test_root_has_the_chosen_capabilities_only(container):
    name = container()
    both = NET_RAW | SYS_PTRACE
    sets = read_capabilities(name, capabilities=["NET_RAW", "cap_sys_ptrace"])
    assert sets == {"CapInh": 0, "CapPrm": both, "CapEff": both, "CapBnd": both, "CapAmb": 0}
    assert set(read_capabilities(name, capabilities=[]).values()) == {0}
    everything = int(Path("/proc/self/status").read_text().partition("CapBnd:\t")[2].split()[0], 16)
    assert read_capabilities(name)["CapEff"] == everything
    assert "Operation not permitted" in execute(name, "chroot", "/", "true", capabilities=["NET_RAW"])["stderr"]


def test_a_user_has_the_chosen_capabilities(container):
    name = container()
    assert set(read_capabilities(name, user="1234", capabilities=["SYS_PTRACE"]).values()) == {SYS_PTRACE}
    without = execute(name, "timeout", "1", "strace", "-p", "1", user="1234")
    assert "PTRACE_SEIZE, 1): Operation not permitted" in without["stderr"]
    having = execute(name, "timeout", "1", "strace", "-p", "1", user="1234", capabilities=["SYS_PTRACE"])
    assert "Process 1 attached" in having["stderr"]


def test_an_unknown_capability_is_named_with_those_there_are(container):
    with pytest.raises(host.ModuleFailed, match="none called 'NET_RAWW'; it has CHOWN, .*CHECKPOINT_RESTORE"):
        execute(container(), "true", capabilities=["NET_RAW", "NET_RAWW"])


def test_every_byte_comes_through_as_base64(container):
    name = container()
    script = "import os; os.write(1, bytes(range(256)) * 300); os.write(2, bytes(range(255, -1, -1)))"
    result = execute(name, "python3", "-c", script, encoding="base64")
    assert base64.b64decode(result["stdout"]) == bytes(range(256)) * 300
    assert base64.b64decode(result["stderr"]) == bytes(range(255, -1, -1))
    assert (result["stdout_size"], result["stderr_size"]) == (76800, 256)
    assert "stdout_lines" not in result


@pytest.mark.parametrize(("bound", "size"), [("1KiB", 1024), ("10B", 10), ("8MiB", 6_000_000)])
def test_output_has_the_bound_that_is_asked_for(container, bound, size):
    script = "head -c 6000000 /dev/zero | tr '\\0' x; printf '12345678901' >&2"
    result = execute(container(), "bash", "-c", script, max_output=bound)
    assert len(result["stdout"]) == size
    assert result["stdout_truncated"] == (size < 6_000_000)
    assert result["stdout_size"] == 6_000_000
    assert result["stderr_truncated"] == (bound == "10B")
    assert len(result["stderr"]) == min(11, size)


def test_output_goes_to_files(container, tmp_path):
    names = [container() for _number in range(2)]
    folder = tmp_path / "new" / "out"
    script = "cat /proc/sys/kernel/hostname; head -c 6000000 /dev/zero; printf '\\377' >&2"
    results = host.execute(containers=names, argv=["bash", "-c", script], dest=str(folder))
    for result in results:
        hostname = result["id"][:12]
        path = folder / f"{result['container']}-{hostname}.stdout"
        assert result["stdout_path"] == str(path)
        assert path.read_bytes() == hostname.encode() + b"\n" + bytes(6_000_000)
        assert Path(result["stderr_path"]).read_bytes() == b"\xff"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (result["stdout_size"], result["stdout_truncated"]) == (6_000_013, False)
        assert "stdout" not in result
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(list(folder.iterdir())) == 4
    with pytest.raises(host.ModuleFailed, match=f"dest: {folder}/.*File exists.*without"):
        host.call_module("crashcart_exec", containers=names, argv=["true"], dest=str(folder))
    assert len(list(folder.iterdir())) == 4


def test_files_have_a_bound_where_one_is_asked_for(container, tmp_path):
    result = execute(container(), "head", "-c", "100000", "/dev/zero", dest=str(tmp_path), max_output="1KiB")
    assert Path(result["stdout_path"]).stat().st_size == 1024
    assert result["stdout_truncated"]


def test_nothing_is_followed_and_nothing_of_others_is_touched(container, tmp_path):
    name = container()
    secret = tmp_path / "secret"
    secret.write_text("old")
    short = host.docker("inspect", "-f", "{{.Id}}", name)[:12]
    link = tmp_path / f"{name}-{short}.stderr"
    link.symlink_to(secret)
    with pytest.raises(host.ModuleFailed, match="dest"):
        execute(name, "true", dest=str(tmp_path))
    assert secret.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["secret", link.name])


def test_output_is_not_gathered_in_memory(container, tmp_path):
    """A module with 300 MB of output stays below 100 MB."""
    argv = ["head", "-c", "300000000", "/dev/zero"]
    process = host.start_module("crashcart_exec", containers=[container()], argv=argv, dest=str(tmp_path))
    peak_kb = 0
    # Not by its resource usage: that counts what this process had when it forked.
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        found = re.search(r"^VmHWM:\s+(\d+)", status, re.MULTILINE)
        peak_kb = max(peak_kb, int(found.group(1)) if found and "python" in status else 0)
        host.pause(0.005)
    (result,) = host.parse_result(*process.communicate())["results"]
    assert Path(result["stdout_path"]).stat().st_size == 300_000_000
    assert 10_000 < peak_kb < 100_000, f"{peak_kb} KiB"


def test_a_full_disk_is_an_error_and_not_a_hang(container, tmp_path):
    host.run("mount", "-t", "tmpfs", "-o", "size=1m", "crashcart-test", str(tmp_path))
    try:
        with pytest.raises(host.ModuleFailed, match="its stdout cannot be kept: No space left on device"):
            execute(container(), "bash", "-c", "head -c 5000000 /dev/zero; sleep 4321", dest=str(tmp_path))
        assert not _find_sleepers()
    finally:
        host.run("umount", str(tmp_path))


def test_check_mode_writes_no_file(container, tmp_path):
    dest = tmp_path / "out"
    host.call_module("crashcart_exec", containers=[container()], argv=["true"], dest=str(dest), check_mode=True)
    assert not dest.exists()


def test_what_the_caller_lacks_is_named(container):
    """Without root, and as a root that has lost a capability."""
    name = container()
    arguments = json.dumps(
        {"ANSIBLE_MODULE_ARGS": {"containers": [name], "argv": ["true"], "_ansible_version": "2.19"}}
    )
    call = [sys.executable, "-m", f"{host.COLLECTION}.plugins.modules.crashcart_exec"]
    limited = ["setpriv", "--bounding-set", "-sys_ptrace,-setuid", "--inh-caps", "-all"]
    said = json.loads(host.run(*limited, *call, input=arguments, check=False).stdout)["msg"]
    assert "lacks CAP_SETUID, CAP_SYS_PTRACE" in said
    user = ["setpriv", "--reuid", "65534", "--clear-groups"]
    said = json.loads(host.run(*user, *call, input=arguments, check=False).stdout)["msg"]
    assert "user 65534 lacks CAP_CHOWN, " in said
    assert "CAP_SYS_ADMIN" in said
    assert "become=true" in said


# A log of our own in the place of the host's, in a mount namespace of our own.
LISTEN = """\
import os, socket, subprocess, sys
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
log.bind("/dev/log")
subprocess.run([sys.executable, "-m", sys.argv[1]], input=sys.argv[2], text=True, stdout=subprocess.DEVNULL)
log.setblocking(False)
print(log.recv(65536).decode())
"""


def test_secrets_stand_in_no_log_and_no_invocation(container, tmp_path):
    """The output is whole, whatever short value a variable has."""
    secrets = {"env": {"ONE": "1", "YES": "true", "TOKEN": "hunter2-hunter2"}, "stdin": "hush-hush\n"}
    arguments = {
        "containers": [container("static")],
        "argv": ["sh", "-c", "cat; echo $TOKEN 1 true; exit 1"],
        **secrets,
    }
    (found,) = host.execute(**arguments)
    assert (found["rc"], found["stdout_lines"]) == (1, ["hush-hush", "hunter2-hunter2 1 true"])
    with pytest.raises(host.ModuleFailed) as failed:
        host.call_module("crashcart_exec", **arguments)
    given = failed.value.result["invocation"]["module_args"]
    assert set(given["env"]) == {"ONE", "YES", "TOKEN"}
    assert not any(secret in json.dumps(given) for secret in ("hunter2", "hush-hush"))
    with pytest.raises(host.ModuleFailed) as failed:
        host.call_module("crashcart_exec", **{**arguments, "user": "nonesuch"})
    assert "hunter2" not in json.dumps(failed.value.result)
    cover = 'cd "$1" && touch null urandom && mount --bind /dev/null null && mount --bind /dev/urandom urandom && mount --rbind . /dev'
    text = json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_version": "2.19"}})
    module = f"{host.COLLECTION}.plugins.modules.crashcart_exec"
    words = ["sh", "-c", f'{cover} && cd "$OLDPWD" && shift && exec "$@"', "sh", str(tmp_path)]
    done = host.run("unshare", "-m", "--propagation", "private", *words, sys.executable, "-c", LISTEN, module, text)
    assert "Invoked with" in done.stdout
    assert "argv=" in done.stdout
    assert not any(secret in done.stdout for secret in ("hunter2", "hush-hush", "true", "ONE"))
