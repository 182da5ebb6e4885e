# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attachments that end by themselves."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time

import pytest
from support import host, runtimes
from support.records import find_record

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach import expiry
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import boot

UNTIL = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


def attach(name, **options):
    return host.call_module("crashcart_attach", containers=[name], **options)


def is_attached(name):
    return "/dev/crashcart" in host.read_container_mounts(name)


def find_watchdog():
    return host.call_module("crashcart_info", gather=["watchdog"])["watchdog"]


@pytest.fixture(autouse=True)
def nobody_left():
    """After each test no watchdog is left."""
    yield
    host.call_module("crashcart_attach", state="detached", everything=True)
    host.wait_until(lambda: find_watchdog() == {"pid": None, "attachments": []})


def test_it_goes_away_in_time_and_the_watchdog_with_it(container):
    name, staying = container(), container()
    attach(staying)
    before = time.time()
    result = attach(name, ttl="3s")
    (attachment,) = result["attachments"]
    assert before + 2.9 < attachment["expires"] < time.time() + 3.1
    watchdog = find_watchdog()
    (watched,) = watchdog["attachments"]
    assert (watched["container"], watched["path"], watched["error"]) == (name, "/dev/crashcart", "")
    with open(f"/proc/{watchdog['pid']}/cmdline", encoding="ascii") as file:
        assert file.read().strip("\0") == "crashcart-watchdog"
    assert is_attached(name)
    host.wait_until(lambda: not is_attached(name))
    assert 2.9 < time.time() - before < 6
    host.wait_until(lambda: not os.path.exists(f"/proc/{watchdog['pid']}"))
    assert not os.path.exists(f"/proc/{host.find_pid(name)}/root/dev/crashcart")
    assert is_attached(staying)
    assert host.call_module("crashcart_attach", containers=[staying])["attachments"][0]["expires"] is None


def test_the_watchdog_comes_with_the_module_that_ansible_sends(container):
    """From the archive, where only is what the module imports."""
    host.ad_hoc("localhost", "crashcart_attach", {"containers": [container()], "ttl": "60s"})
    assert find_watchdog()["pid"] is not None


def test_it_belongs_to_nobody(container):
    """Neither to the session nor to the control group of the login that has started it, and it holds none of its files."""
    attach(container(), ttl="60s")
    pid = find_watchdog()["pid"]
    assert os.getsid(pid) == pid
    assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)} == {"/dev/null"}
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    with open(f"/proc/{pid}/cgroup", encoding="ascii") as file:
        assert {line.rstrip("\n").split(":", 2)[2] for line in file} == {"/"}


def test_more_time_and_an_end_for_what_had_none(container):
    name = container()
    assert attach(name)["changed"]
    assert attach(name, ttl="4s", check_mode=True)["changed"]
    assert find_watchdog()["pid"] is None
    first = attach(name, ttl="4s", diff=True)
    assert first["changed"]
    assert first["diff"]["after"] != first["diff"]["before"]
    again = attach(name, ttl="60s")
    assert not again["changed"]
    assert again["attachments"][0]["expires"] > first["attachments"][0]["expires"] + 50
    assert attach(name)["attachments"][0]["expires"] == pytest.approx(again["attachments"][0]["expires"], abs=0.1)
    kept = attach(name, diff=True)
    assert re.fullmatch(UNTIL, kept["attachments"][0]["expires_at"])
    for side in ("before", "after"):
        assert re.search(f", until {UNTIL}$", kept["diff"][side][f"{name}:/dev/crashcart"])
    host.pause(5)
    assert is_attached(name)


def test_tools_in_use_go_out_of_sight(container):
    name = container()
    attach(name, ttl="2s")
    with subprocess.Popen(["docker", "exec", name, "/dev/crashcart/bin/sleep", "1000"]) as user:
        host.wait_until(lambda: host.runs(name, "sleep 1000"))
        host.wait_until(lambda: not is_attached(name))
        assert host.runs(name, "sleep 1000")
        user.terminate()


def test_a_killed_watchdog_is_missed_by_the_next_call(container):
    name, other = container(), container()
    attach(name, ttl="5s")
    os.kill(find_watchdog()["pid"], signal.SIGKILL)
    host.wait_until(lambda: find_watchdog()["pid"] is None)
    assert [one["container"] for one in find_watchdog()["attachments"]] == [name]
    attach(other)
    assert find_watchdog()["pid"] is not None
    host.wait_until(lambda: not is_attached(name))
    assert is_attached(other)


@pytest.mark.parametrize("end", ["kill", "pause"])
def test_a_container_that_ended_or_is_paused(container, end):
    name = container()
    attach(name, ttl="30s" if end == "kill" else "2s")
    host.docker(end, name)
    # A paused one loses the tools all the same.
    host.wait_until(lambda: find_watchdog()["pid"] is None, 15)
    if end == "pause":
        assert not is_attached(name)


def test_many_operators_share_one_watchdog(container):
    names = [container() for _number in range(6)]
    running = [host.start_module("crashcart_attach", containers=[name], ttl="60s") for name in names]
    for process in running:
        assert host.parse_result(*process.communicate(timeout=host.seconds(60)))["changed"]
    assert {one["container"] for one in find_watchdog()["attachments"]} == set(names)
    # Those that came second wait a moment, and end.
    host.wait_until(lambda: host.run("pgrep", "-xc", "crashcart-watch").stdout == "1\n")


def test_a_wrong_time_is_named(container):
    with pytest.raises(host.ModuleFailed, match="ttl: 'soon' is not a time"):
        attach(container(), ttl="soon")


def test_what_is_attached_has_its_end_also_where_others_failed(container):
    good = container()
    bad = container("busybox", "/bin/sh", "-c", "/bin/touch /dev/crashcart; /bin/sleep 1000")
    host.wait_until(lambda: os.path.exists(f"/proc/{host.find_pid(bad)}/root/dev/crashcart"))
    with pytest.raises(host.ModuleFailed, match=f"{bad}.*not a directory"):
        host.call_module("crashcart_attach", containers=[good, bad], ttl="4s")
    if is_attached(good):
        assert [one["container"] for one in find_watchdog()["attachments"]] == [good]
    host.wait_until(lambda: not is_attached(good))


def test_everything_means_also_what_only_a_pid_names(container):
    name = container()
    pid = host.find_pid(name)
    assert attach(f"pid:{pid}", ttl="60s")["changed"]
    host.docker("pause", name)
    host.docker("unpause", name)
    with runtimes.run_unshared() as other:
        attach(f"pid:{other}", ttl="60s")
        assert host.call_module("crashcart_attach", state="detached", everything=True)["changed"]
        with open(f"/proc/{other}/mountinfo", encoding="utf-8") as file:
            assert "squashfs" not in file.read()
    assert not is_attached(name)


def test_a_killed_call_settles_nothing_for_the_next_attachment(container):
    """A detach forgets the end that a killed attach has settled, though nothing was mounted."""
    name = container()
    record = find_record(name)
    expiry.write([expiry.Expiry(record, "/dev/crashcart", boot.read_clock() + 600)])
    host.call_module("crashcart_attach", containers=[name], state="detached")
    assert attach(name)["attachments"][0]["expires"] is None


def test_a_volume_takes_no_time(container):
    with pytest.raises(host.ModuleFailed, match="ttl does not go with method=rslave"):
        attach(container(), method="rslave", ttl="1h")
