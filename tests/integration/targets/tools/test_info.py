# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Results of crashcart_info and ftrace_info: a page for people, and the rest where it is asked for."""

from __future__ import annotations

import json
import os
import re

import pytest
from support import host

UNTIL = r"until \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
RECORDS = rf"begun {TIME} by root( \(login \w+\))?, records until {TIME} by its ttl"


def find_line(page, beginning):
    """The one line of PAGE with that BEGINNING."""
    (line,) = [one for one in page if one.startswith(beginning)]
    return line


def test_a_person_gets_a_page(container):
    name, other = container(), container()
    host.call_module("crashcart_attach", containers=[name], ttl="1h")
    made = host.call_module("ftrace_instance", containers=[name], ttl="1h")
    assert re.match(rf"trace of {name}: {RECORDS}, \d+ events", made["lines"][0])
    longer = host.call_module("ftrace_instance", containers=[name], ttl="2h", diff=True)
    ends = [longer["diff"][side][name]["expires_at"] for side in ("before", "after")]
    assert ends[0] < ends[1]
    assert all(re.fullmatch(UNTIL, f"until {one}") for one in (*ends, longer["instances"][0]["expires_at"]))
    done = host.run("ansible", "localhost", "-m", "crashcart.fleet.crashcart_info")
    assert len(done.stdout.splitlines()) <= 60
    page = json.loads(done.stdout.partition("=> ")[2])["summary"]
    assert f"Linux {os.uname().release} " in find_line(page, "host: ")
    assert re.search(r" MiB, squashfs, \w+, sha256 [0-9a-f]{12}$", find_line(page, "image default: "))
    line = find_line(page, f"container {name}: docker, crashcart-test/busybox, ")
    assert re.search(rf"; has default at /dev/crashcart {UNTIL}; traced: {RECORDS}, \d+ events", line)
    assert find_line(page, f"container {other}: ").count(";") == 0
    missing = host.call_module("crashcart_info", gather=["features"])["features"]
    for one in missing:
        told = [line for line in page if line.startswith(f"missing {one['name']}: ")]
        assert told == ([f"missing {one['name']}: {one['reason']}; {one['consequence']}"] if one["consequence"] else [])
    traces = host.ad_hoc("localhost", "ftrace_info", {"gather": ["summary"]})
    assert set(traces) - {"warnings"} == {"changed", "summary"}
    assert re.search(rf": {RECORDS}, ", find_line(traces["summary"], f"trace of {name}: "))
    host.call_module("crashcart_attach", containers=[name], state="detached")
    host.wait_until(lambda: host.call_module("crashcart_info", gather=["watchdog"])["watchdog"]["pid"] is None)


def test_the_trace_of_a_container_that_has_ended_is_told_by_its_name(container):
    name = container()
    host.call_module("ftrace_instance", containers=[name])
    host.docker("kill", name)
    page = host.call_module("crashcart_info")["summary"]
    assert not [line for line in page if line.startswith(f"container {name}")]
    assert find_line(page, f"trace of {name}: ")
    chosen = host.call_module("crashcart_info", containers=[name])["summary"]
    assert "exited" in find_line(chosen, f"container {name}: ")


def test_only_what_is_asked_for_is_returned(container):
    name = container()
    found = host.call_module("crashcart_info", gather=["all"])
    assert set(found) - {"warnings", "changed", "invocation"} == {
        *(
            "summary",
            "host",
            "features",
            "containers",
            "images",
            "tools",
            "attachments",
            "watchdog",
            "recorder",
            "census",
        )
    }
    assert "ss" in found["tools"]["default"]
    assert "tools" not in found["images"][0]
    few = host.call_module("crashcart_info", gather=["containers", "host"], containers=[name])
    assert set(few) - {"warnings", "changed", "invocation"} == {"containers", "host"}
    assert [one["name"] for one in few["containers"]] == [name]
    with pytest.raises(host.ModuleFailed, match="gather"):
        host.call_module("crashcart_info", gather=["nonesuch"])


def test_an_engine_that_does_not_answer_is_no_host_without_containers():
    dead = {"docker_host": "unix:///nonesuch.sock"}
    with pytest.raises(
        host.ModuleFailed, match="no Docker engine answers at unix:///nonesuch.sock: start it"
    ) as caught:
        host.call_module("crashcart_info", **dead)
    assert "start it" in find_line(caught.value.result["summary"], "host: ")
    assert find_line(caught.value.result["summary"], "container: ") == "container: unknown, because no runtime answers"
    known = host.call_module("crashcart_info", gather=["host", "features", "images", "census"], **dead)
    assert (known["host"]["engine"], "start it" in known["host"]["engine_error"]) == (None, True)
    assert [one["name"] for one in known["images"]] == ["default"]
