# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A schedule on this machine, by cron: what its playbook sets up, what its runs bring home, and that nothing is left of it."""

from __future__ import annotations

import json
import os
import re

import pytest
from support import host, parts
from support.schedules import Schedule

from ansible_collections.crashcart.fleet.plugins.plugin_utils.schedule.running import LOCK

ENGINE = os.environ.get("DOCKER_HOST", "")
LOOP = ("/bin/sh", "-c", "while /bin/true; do /bin/cat /nonesuch; /bin/sleep 0.2; done")
NAME = f"test-{os.getpid()}"


@pytest.fixture
def schedule(tmp_path):
    """A schedule that records failing calls of containers once it is set up; it is taken away at the end."""
    made = Schedule(
        NAME,
        limit="localhost",
        profile="errors",
        docker_host=ENGINE,
        dest=str(tmp_path / "store"),
        textfile=str(tmp_path),
    )
    yield made
    made.take_away()


def list_captures(folder):
    return sorted(folder.rglob("*.dat"))


def test_recordings_of_containers_come_home_by_a_schedule(container, schedule, tmp_path):
    name = container("busybox", *LOOP)
    wanted = {"containers": [name], "cron": "17 3 1 1 *"}  # no run is due in this test
    shown = schedule.play("--check", "--diff", **wanted)
    assert "+17 3 1 1 * root " in shown.stdout and f'"crashcart_containers": ["{name}"]' in " ".join(
        shown.stdout.replace("+", "").split()
    ).replace("[ ", "[").replace(" ]", "]")
    assert not schedule.crontab.exists() and not schedule.folder.exists()
    schedule.play(**wanted)
    assert "changed=0" in schedule.play(**wanted).stdout

    first = schedule.run()
    assert first.returncode == 0, first.stdout + first.stderr
    assert [
        instance["container"] for instance in host.call_module("ftrace_info", gather=["instances"])["instances"]
    ] == [name]
    host.pause(1)
    second = schedule.run()
    assert second.returncode == 0, second.stdout + second.stderr
    (capture,) = list_captures(tmp_path / "store")
    assert capture.parent == tmp_path / "store/localhost" / name
    assert json.loads(capture.with_suffix(".json").read_text())["complete"]
    assert re.search(r"cat .*ENOENT \d+", second.stdout), second.stdout
    record = schedule.read_record()
    assert (record["outcome"], record["hosts"], record["missed"]) == (
        "success",
        {"localhost": {"state": "ok", "message": ""}},
        [],
    )
    metrics = (tmp_path / f"crashcart_schedule_{NAME}.prom").read_text()
    assert f'crashcart_schedule_last_run_hosts{{schedule="{NAME}",state="ok"}} 1\n' in metrics

    # Anew under its name, as after an update: the old recording comes home, and the new container is traced.
    host.docker("rm", "-f", name)
    host.docker("run", "-d", "--name", name, "--network", "none", "crashcart-test/busybox", *LOOP)
    third = schedule.run()
    assert third.returncode == 0, third.stdout + third.stderr
    assert len(list_captures(tmp_path / "store")) == 2
    host.pause(1)
    assert schedule.run().returncode == 0
    found = [json.loads(path.with_suffix(".json").read_text()) for path in list_captures(tmp_path / "store")]
    assert len({manifest["container"]["id"] for manifest in found}) == 2 and len(found) >= 3

    # Nothing was missed, so there is nothing to catch up.
    assert schedule.run("--catch-up").returncode == 0
    assert len(list_captures(tmp_path / "store")) == len(found)
    said = schedule.take_away()
    assert f"The captures stay in {tmp_path}/store." in said
    assert not schedule.crontab.exists() and not schedule.folder.exists() and not list(tmp_path.glob("*.prom"))
    assert len(list_captures(tmp_path / "store")) == len(found)


def test_captures_of_a_second_come_home_by_a_schedule_and_what_a_run_could_not_finish(container, schedule, tmp_path):
    name, other = container("busybox", *LOOP), container("busybox", *LOOP)
    # As of a run that was ended while it traced, whose container is gone.
    wish = {"phase": "start", "seconds": 1, "containers": [other], "docker_host": ENGINE}
    host.call_module("ftrace_capture", **wish)
    host.docker("rm", "-f", other)
    schedule.play(what="capture", seconds=1, containers=[name])
    done = schedule.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.parent.name for path in list_captures(tmp_path / "store")} == {name, other}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"containers": ["x"], "cron": "61 * * * *"}, "are not the five fields of crontab"),
        ({"containers": ["x"], "name": "No"}, "A schedule has a name of small letters"),
        ({}, "say which containers"),
        ({"containers": ["x"], "what": "everything"}, "record, capture or collect"),
        ({"containers": ["x"], "time_limit": "soon"}, "'soon' is not a time"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_with_the_next_step(schedule, variables, words):
    done = schedule.play(check=False, **variables)
    assert done.returncode != 0
    assert words in " ".join(done.stdout.split()), done.stdout
    assert not schedule.crontab.exists() and not schedule.folder.exists()


@pytest.mark.skipif(not parts.IS_ALL, reason="cron begins its runs at full minutes: make test-all waits for them")
def test_crons_own_daemon_starts_the_runs(container, schedule, tmp_path):
    name = container("busybox", *LOOP)
    schedule.play(containers=[name])
    with schedule.cron():
        host.wait_until(lambda: list_captures(tmp_path / "store"), 200)
    assert schedule.read_record()["outcome"] == "success"


def test_the_hint_for_machines_without_systemd_can_be_pasted():
    given = json.dumps({"crashcart_name": NAME, "crashcart_containers": "x", "crashcart_on_calendar": "*:0/15"})
    environment = {**os.environ, "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}  # the default of Ansible
    done = host.run("ansible-playbook", "crashcart.fleet.schedule", "-e", given, check=False, env=environment)
    words = re.search(r"no systemd: give the fields of cron, as in (.*)\.\"", done.stdout)[1]
    told = host.run("sh", "-c", f"exec ansible localhost -m debug -a var=crashcart_cron {words}").stdout
    assert '"crashcart_cron": "0 * * * *"' in told, told


def test_what_would_fail_in_each_run_is_refused_and_a_folder_of_others_stays_as_it_is(schedule, tmp_path):
    for variables, words in (
        ({"forks": "many"}, "crashcart_forks: give a number of hosts"),
        ({"inventory": "hosts.ini"}, "crashcart_inventory: hosts.ini is no path from /"),
        ({"textfile": "/nonesuch"}, "crashcart_textfile: /nonesuch is no folder"),
        ({"keep_age": "2weeks"}, "keep_age: '2weeks' is not a time"),
    ):
        done = schedule.play(check=False, containers=["x"], **variables)
        assert done.returncode != 0 and words in " ".join(done.stdout.split()), done.stdout
    assert not schedule.crontab.exists() and not schedule.folder.exists()
    store = tmp_path / "store"
    store.mkdir()
    store.chmod(0o1777)
    schedule.play(containers=["x"])
    assert store.stat().st_mode & 0o7777 == 0o1777


def test_what_the_options_of_the_command_mean_goes_to_the_runs_and_what_they_ask_for_is_told(schedule, tmp_path):
    (tmp_path / "password").write_text("secret")
    (tmp_path / "key").touch()
    words = (
        "-u",
        "deploy",
        "--private-key",
        str(tmp_path / "key"),
        "--vault-password-file",
        str(tmp_path / "password"),
    )
    said = schedule.play(*words, "-e", "team=shop", containers=["x"]).stdout
    assert (
        "No captures are removed: runs fail once less than crashcart_keep_free is free." in said
        and "Nobody answers" not in said
    )
    plan = json.loads((schedule.folder / "plan.json").read_text())
    assert plan["variables"]["team"] == "shop" and plan["variables"]["crashcart_containers"] == ["x"]
    found = {name: plan["environment"].get(f"ANSIBLE_{name}") for name in ("REMOTE_USER", "PRIVATE_KEY_FILE")}
    assert found == {"REMOTE_USER": "deploy", "PRIVATE_KEY_FILE": str(tmp_path / "key")}
    assert plan["environment"]["ANSIBLE_VAULT_IDENTITY_LIST"] == f"default@{tmp_path}/password"
    said = schedule.play("--vault-id", f"shop@{tmp_path}/password", containers=["x"], keep_age="14d").stdout
    assert "No captures are removed" not in said
    plan = json.loads((schedule.folder / "plan.json").read_text())
    assert plan["environment"]["ANSIBLE_VAULT_IDENTITY_LIST"] == f"shop@{tmp_path}/password"


def test_what_the_runs_of_another_user_have_left_is_given_to_the_user_of_the_runs(schedule, tmp_path):
    """Check that from nobody to root: nobody may not be able to run this Python."""
    schedule.play(containers=["nonesuch-*"], allow_empty=True)
    assert schedule.run().returncode == 0
    (tmp_path / "link").touch()
    (schedule.folder / "link").symlink_to(tmp_path / "link")
    for path in (schedule.folder, *schedule.folder.iterdir(), tmp_path / "link"):
        os.chown(path, 65534, -1, follow_symlinks=False)
    done = schedule.run()
    assert done.returncode == 1 and "is run by nobody: runuser -u nobody -- " in done.stderr
    schedule.play(containers=["nonesuch-*"], allow_empty=True)
    owners = {path.name: path.lstat().st_uid for path in (schedule.folder, *schedule.folder.iterdir())}
    assert set(owners.values()) == {0} and {LOCK, "last-run.json", "last-run.log"} <= owners.keys(), owners
    assert (tmp_path / "link").stat().st_uid == 65534
    assert schedule.run().returncode == 0


def test_metrics_do_not_stay_where_they_were_before(schedule, tmp_path):
    (tmp_path / "other").mkdir()
    schedule.play(containers=["x"])
    metrics = tmp_path / f"crashcart_schedule_{NAME}.prom"
    metrics.touch()
    schedule.play(containers=["x"], textfile=str(tmp_path / "other"))
    assert not metrics.exists()


@pytest.mark.parametrize("text", ["", '{"textfile": "', '{"textfile": 7, "store": "/x"', "\udcff"])
def test_a_damaged_plan_is_written_anew_and_taken_away(schedule, text):
    schedule.play(containers=["x"])
    plan = schedule.folder / "plan.json"
    for make_good in (True, False):
        plan.write_text(text, errors="surrogateescape")
        if make_good:
            schedule.play(containers=["x"])
            assert json.loads(plan.read_text())["name"] == NAME
    schedule.take_away()
    assert not schedule.folder.exists()


def test_the_inventory_says_which_containers_and_more_than_the_schedules_defaults(schedule, tmp_path):
    inventory = tmp_path / "inventory.yml"
    here = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
    told = {"crashcart_containers": "nonesuch-*", "crashcart_ttl": "3h", "crashcart_allow_empty": True}
    inventory.write_text(json.dumps({"all": {"hosts": {"localhost": here}, "vars": told}}))
    schedule.play("-i", str(inventory))
    told["crashcart_ttl"] = "soon"
    inventory.write_text(json.dumps({"all": {"hosts": {"localhost": here}, "vars": told}}))
    done = schedule.run()
    assert done.returncode == 1 and "crashcart_ttl: 'soon' is not a time" in done.stdout
    schedule.play("-i", str(inventory), ttl="2h")
    assert schedule.run().returncode == 0
