# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Test a schedule by systemd, from its first run to its end. The machine of these tests may have no systemd, so a guest is the control node.

The guest gets the packages of this Python that a controller needs, and collects from itself.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
import tarfile
import time
from importlib import metadata

import fleet
import machine
import pytest
from conftest import NOISY, call
from machine import seconds
from packaging.requirements import Requirement
from support import parts

NAME = "own"
UNIT = f"crashcart-schedule-{NAME}"
FOLDER = f"/var/lib/crashcart-schedules/{NAME}"
STORE = "/var/lib/crashcart-traces"
CONTROLLER = "/opt/controller"
COLLECTIONS = "/opt/collections"
COLLECTION = f"{COLLECTIONS}/ansible_collections/crashcart/fleet"
INVENTORY = f"{CONTROLLER}/hosts.json"
# numpy's packages are built for processors of the level x86-64-v2. The guests' usual one is older, so this one is for this test alone.
PROCESSOR = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt"
IMPORTED = (
    "ansible.cli.playbook, cronsim, cryptography.x509, docker, jmespath, llvmlite.binding, numba, numpy, yaml._yaml"
)
SCRIPT = """\
#!{controller}/bin/python3
import sys
from {module} import {function}
sys.exit({function}())
"""
SOON = f"/run/systemd/system/{UNIT}.timer.d"
"""The folder in which a test has the timer begin runs more often than the schedule says."""
LEFT = (
    f"systemctl list-units --all --plain --no-legend 'crashcart-*'; systemctl list-timers --all --no-legend 'crashcart-*'; "
    f"ls -d {FOLDER.rpartition('/')[0]} /etc/systemd/system/crashcart-* /etc/systemd/system/*.wants/crashcart-* "
    "/var/lib/systemd/timers/stamp-crashcart-* /root/crashcart_schedule_* 2>/dev/null; true"
)
"""The command that prints what a schedule leaves, but for its captures."""
AWAY = {"ansible_host": "127.0.0.1", "ansible_port": 9, "ansible_connection": "ssh"}  # nothing listens there
SILENT = {"ansible_ssh_common_args": "-o 'ProxyCommand=sleep 86399'", "ansible_timeout": 3600}
SLEEPERS = "pgrep -f '[s]leep 86399' || true"  # pgrep fails where there is none, and no output says that


@pytest.fixture
def controller(hosts, monkeypatch):
    """Make the first host a control node with the collection. It is a host like the others again at the end."""
    host = hosts[0]
    version = "{}.{}".format(*sys.version_info)
    theirs = host.run("python3 -c 'import sys; print(\"{}.{}\".format(*sys.version_info))'").strip()
    if theirs != version:
        pytest.skip(f"the guests have Python {theirs}, and compiled packages of Python {version} do not fit")
    with monkeypatch.context() as patch:
        arguments = [PROCESSOR if word == "qemu64" else word for word in machine.ARGUMENTS]
        assert arguments != machine.ARGUMENTS
        patch.setattr(machine, "ARGUMENTS", arguments)
        restart(host)
    try:
        host.run(f"python3 -m venv --without-pip {CONTROLLER} && tar -xz -C /", pack())
        host.run(f"{CONTROLLER}/bin/python3 -c 'import {IMPORTED}'")
        yield host
    finally:
        host.run(
            f"rm -rf {CONTROLLER} {COLLECTIONS} {STORE} {FOLDER.rpartition('/')[0]} /root/.ansible /root/.cache/crashcart.fleet "
            "/root/crashcart_schedule_* /var/lib/systemd/timers/stamp-crashcart-* "
            "/etc/systemd/system/crashcart-* /etc/systemd/system/timers.target.wants/crashcart-*"
        )
        restart(host)  # this also sets the clock right


def restart(host):
    """Cut the power of HOST, boot it on the processor that machine.ARGUMENTS name, and start its containers."""
    host.run("sync")
    host.machine.cut_power()
    host.boot()
    host.wait_until_up()
    fleet.start_containers(host)


def pack():
    """Return an archive of the collection and of all that a controller needs, for the root folder of a guest with the venv CONTROLLER."""
    packages = f"{CONTROLLER}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as archive:
            for path in list_files():
                archive.add(path.locate(), f"{packages}/{path}")
            for point in metadata.distribution("ansible-core").entry_points:
                if point.name in ("ansible", "ansible-playbook"):
                    text = SCRIPT.format(controller=CONTROLLER, module=point.module, function=point.attr).encode()
                    entry = tarfile.TarInfo(f"{CONTROLLER[1:]}/bin/{point.name}")
                    entry.size, entry.mode = len(text), 0o755
                    archive.addfile(entry, io.BytesIO(text))
            for name in ("galaxy.yml", "meta", "playbooks", "plugins", "roles"):
                archive.add(fleet.ROOT / name, f"{COLLECTION}/{name}", filter=leave_bytecode_out)
        return file.getvalue()


def list_files():
    """Return the files, with their bytecode, of the packages in requirements.txt and of those that they need; not the packages' own tests."""
    found = {}
    lines = (fleet.ROOT / "requirements.txt").read_text().splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    while wanted:
        one = Requirement(wanted.pop())
        if one.name not in found and (one.marker is None or one.marker.evaluate({"extra": ""})):
            found[one.name] = metadata.distribution(one.name)
            wanted += found[one.name].requires or []
    files = [path for distribution in found.values() for path in distribution.files]
    return [path for path in files if not {"..", "tests", "ansible_test"} & {*path.parts} and path.locate().is_file()]


def leave_bytecode_out(entry):
    return None if entry.name.endswith("__pycache__") else entry


def write_inventory(host, **hosts):
    """Let the schedule's inventory have the control node HOST itself, and HOSTS with these variables."""
    own = {"ansible_connection": "local", "ansible_python_interpreter": f"{CONTROLLER}/bin/python3"}
    host.run(f"cat >{INVENTORY}", json.dumps({"all": {"hosts": {"localhost": own, **hosts}}}).encode())


def play(host, *options, **variables):
    """Run the playbook `schedule` on HOST and return what it prints. VARIABLES are given without their prefix crashcart_."""
    given = {"name": NAME, "containers": NOISY, "profile": "errors", "textfile": "/root", "offset": "1s", **variables}
    extra = {f"crashcart_{key}": value for key, value in {"keep_free": "32MiB", "min_free": "32MiB", **given}.items()}
    extra["schedule_environment"] = {"DOCKER_TIMEOUT": "600"}  # emulated engines are slow
    words = [f"{CONTROLLER}/bin/ansible-playbook", "crashcart.fleet.schedule", "-i", INVENTORY, *options]
    words += ["-e", json.dumps(extra)]
    return host.run(
        f"cd / && ANSIBLE_COLLECTIONS_PATH={COLLECTIONS} ANSIBLE_NOCOLOR=1 {shlex.join(words)}", limit_s=600
    )


def read_record(host):
    """Return the record of the last run on HOST; {} where none has ended."""
    # Before the first run there is no file, and then the text is empty.
    text = host.run(f"cat {FOLDER}/last-run.json 2>/dev/null || true")
    return json.loads(text) if text else {}


def wait_for_run(host, before=None):
    """Return the record of a run on HOST that began after the one with the record BEFORE, once it has ended."""
    wait(host, lambda: read_record(host).get("began", 0) > (before or {}).get("began", 0))
    return read_record(host)


def wait(host, condition, limit_s=600):
    """Wait until CONDITION() is true. Raises AssertionError, with the unit's journal, where it is not within LIMIT_S of a usual machine."""
    deadline = time.monotonic() + seconds(limit_s)
    while not condition():
        assert time.monotonic() < deadline, host.run(f"journalctl -u '{UNIT}*' | tail -n 100")
        time.sleep(2)  # each look takes the emulated processor's time


def show(host, *names, kind="service"):
    """Return the properties called NAMES of the schedule's unit of this KIND on HOST."""
    lines = host.run(f"systemctl show {UNIT}.{kind} {' '.join(f'-p {name}' for name in names)}").splitlines()
    return dict(line.split("=", 1) for line in lines)


@pytest.mark.skipif(
    not parts.IS_ALL, reason="a guest that runs Ansible takes twenty minutes: make test-all waits for them"
)
def test_a_schedule_by_systemd_from_its_first_run_to_its_end(controller):
    host = controller
    write_inventory(host)
    set_up(host)
    collect(host)
    catch_up(host)
    end_without_success(host)
    take_away(host)
    call(host.name, "ftrace_instance", {"state": "absent", "everything": True})
    assert host.run("ls /sys/kernel/tracing/instances") == ""


def set_up(host):
    """Check that the schedule is shown, and then set up as it was shown, with units that systemd knows."""
    calendar = "*-01-01 03:00"  # an emulated guest is too slow for a run beside this
    shown = play(host, "--check", "--diff", on_calendar=calendar)
    assert f"+OnCalendar={calendar}\n" in shown and f"+ExecStart={CONTROLLER}/bin/python3 -P {COLLECTION}/" in shown, (
        shown
    )
    assert f'+    "calendar": "{calendar}"' in shown, shown
    assert host.run(LEFT) == ""
    play(host, on_calendar=calendar)
    units = " ".join(f"/etc/systemd/system/{UNIT}.{kind}" for kind in ("service", "boot.service", "timer"))
    assert host.run(f"systemd-analyze verify {units} 2>&1") == ""
    assert f"{UNIT}.timer" in host.run("systemctl list-timers --no-legend")
    assert host.run(f"systemctl is-enabled {UNIT}.timer {UNIT}.boot.service") == "enabled\nenabled\n"
    again = play(host, on_calendar=calendar)
    assert "changed=0" in again, again


def collect(host):
    """Check that the timer begins runs that bring captures home, and end with their outcome in the journal."""
    text = "[Timer]\nOnCalendar=\nOnCalendar=*:*:0/30\n"
    host.run(
        f"mkdir -p {SOON} && cat >{SOON}/soon.conf && systemctl daemon-reload && systemctl restart {UNIT}.timer",
        text.encode(),
    )
    first = wait_for_run(host)
    assert (first["outcome"], first["hosts"]) == ("success", {"localhost": {"state": "ok", "message": ""}}), first
    printed = host.run(f"journalctl -u {UNIT}.service -o cat _TRANSPORT=stdout").splitlines()
    assert any(re.match(rf"schedule {NAME}: success after \d+ s: 1 hosts$", line) for line in printed), printed
    second = wait_for_run(host, first)
    assert second["outcome"] == "success", second
    (manifest, *_others) = list_manifests(host)
    assert manifest["container"]["name"] == NOISY and manifest["complete"], manifest
    assert f'crashcart_schedule_last_run_hosts{{schedule="{NAME}",state="ok"}} 1\n' in host.run("cat /root/*.prom")


def list_manifests(host):
    """Return the manifests of the captures in the store of HOST, with paths like STORE/localhost/CONTAINER/CAPTURE.json."""
    paths = host.run(f"find {STORE} -name '*.dat'").split()
    return [json.loads(host.run(f"cat {path[: -len('.dat')]}.json")) for path in paths]


def catch_up(host):
    """Check that a boot begins one run for those that were missed, and that a host that is away is no failure of the unit."""
    host.run(f"systemctl stop {UNIT}.timer; rm -r {SOON}")  # a run that goes on may end
    write_inventory(host, away=AWAY)
    play(host, on_calendar="hourly")
    host.run(f"systemctl stop {UNIT}.timer")
    wait(host, lambda: show(host, "ActiveState") == {"ActiveState": "inactive"})
    last = read_record(host)
    host.run(f"touch -d @0 {FOLDER}/plan.json")  # what was due before the schedule was changed is not missed
    hour = int(last["began"]) // 3600
    now = (hour + 4) * 3600 + 12 * 60
    host.run(f"date -u -s @{now} && systemctl start {UNIT}.boot.service")
    found = wait_for_run(host, last)
    assert now <= found["began"] < now + seconds(60)
    assert (found["missed"], found["missed_count"]) == ([one * 3600.0 for one in range(hour + 1, hour + 5)], 4), found
    assert found["missed_total"] == last["missed_total"] + 4
    assert (found["outcome"], {name: about["state"] for name, about in found["hosts"].items()}) == (
        "hosts_missing",
        {"localhost": "ok", "away": "unreachable"},
    ), found
    wait(host, lambda: show(host, "ActiveState", kind="boot.service") == {"ActiveState": "inactive"})
    assert show(host, "ActiveState", "Result", "ExecMainStatus", kind="boot.service") == {
        "ActiveState": "inactive",
        "Result": "success",
        "ExecMainStatus": str(found["status"]),
    }


def end_without_success(host):
    """Check that a run that does not begin beside another one is no failure of the unit, and that a program that is gone is one."""
    states = ("ActiveState", "ExecMainStatus")
    host.run(f"flock {FOLDER}/.crashcart-run systemctl start {UNIT}.service")
    assert show(host, *states) == {"ActiveState": "inactive", "ExecMainStatus": "75"}
    program = f"{COLLECTION}/plugins/plugin_utils/schedule/run.py"
    host.run(f"mv {program} {program}.away; ! systemctl start {UNIT}.service && mv {program}.away {program}")
    assert show(host, "ActiveState") == {"ActiveState": "failed"}


def take_away(host):
    """Check that the schedule's end is that of a run that goes on, too, and that only captures are left."""
    captures = len(list_manifests(host))
    write_inventory(host, silent=SILENT)
    host.run(f"systemctl start --no-block {UNIT}.service")
    wait(host, lambda: host.run(SLEEPERS))
    said = play(host, state="absent")
    assert f"The captures stay in {STORE}." in said, said
    assert host.run(SLEEPERS) == ""
    assert host.run(LEFT) == ""
    assert len(list_manifests(host)) >= captures > 0
