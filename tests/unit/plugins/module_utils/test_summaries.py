# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page that crashcart_info and ftrace_info print."""

from __future__ import annotations

import json

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils import feature, summaries

HOST = {
    "kernel": "6.1.0-17-amd64",
    "arch": "amd64",
    "cgroups": "v2",
    "tracefs": None,
    "engine": "20.10.24",
    "engine_error": "",
}
IMAGE = {"name": "default", "digest": "9f86d081884c7d65", "size": 60_000_000, "format": "squashfs", "arch": "amd64"}
IDLE = {
    "summary": "begun 2026-09-21 13:13:20 UTC by root, records without a ttl",
    "state": "started",
    "expires": None,
    "stopped": None,
    "mode": "ring",
    "recordings": [],
    "rule": None,
    "cpus": [{"entries": 3, "overrun": 0, "dropped": 0}, {"entries": 4, "overrun": 0, "dropped": 0}],
}


def make_container(number, **fields):
    own = {"id": f"{number:064x}", "name": f"c{number}", "state": "running", "image": "shop/api:7"}
    return {**own, "runtime": "docker", "user": None, **fields}


def test_a_host_of_thirty_containers_is_a_page():
    containers = [make_container(number) for number in range(30)]
    attached = [{"id": one["id"], "image": "default", "path": "/x", "expires": 1.0} for one in containers]
    traces = [{**IDLE, "id": one["id"], "container": one["name"]} for one in containers]
    missing = [vars(feature.make_missing(name, "why")) for name in feature._CONSEQUENCES]
    page = [
        summaries.summarize_host(HOST),
        *summaries.summarize_features(missing),
        *summaries.summarize_images([IMAGE] * 3),
        *summaries.summarize_containers(containers, attached, traces),
    ]
    assert len(missing) > 10
    assert len(json.dumps({"changed": False, "summary": page}, indent=4).splitlines()) <= 60


def test_a_container_has_one_line_with_all_that_is_ours_in_it():
    busy = make_container(1)
    attached = [{"id": busy["id"], "image": "default", "path": "/dev/crashcart", "expires": 1790000000.25}]
    cpus = [{"entries": 7, "overrun": 5, "dropped": 1}]
    traces = [
        {**IDLE, "id": busy["id"], "container": "c1", "summary": "begun …, stopped: its ttl is over", "cpus": cpus},
        {**IDLE, "id": "gone", "container": "worker"},
    ]
    others = [make_container(2, user=1000, runtime="podman", state="exited")]
    lines = summaries.summarize_containers([busy, *others], attached, traces)
    assert lines == [
        "container c1: docker, shop/api:7, 000000000000; has default at /dev/crashcart until 2026-09-21T14:13:20Z;"
        " traced: begun …, stopped: its ttl is over, 7 events in its buffers, 6 events lost",
        "container c2: exited, podman of user 1000, shop/api:7, 000000000000",
        "trace of worker: begun 2026-09-21 13:13:20 UTC by root, records without a ttl, 7 events in its buffers",
    ]


def test_what_is_recorded_and_what_waits_is_told_by_its_size():
    recorded = {**IDLE, "container": "c", "mode": "record", "recordings": [{"size": 1 << 20}, {"size": 1 << 19}]}
    (line,) = summaries.summarize_traces([recorded])
    assert "1.5 MiB recorded to files" in line
    captures = [{"state": "new", "size": 2048}, {"state": "part", "size": 1024}, {"state": "kept", "size": 5}]
    assert summaries.summarize_captures(captures) == [
        "captures: 2 (3.0 KiB) wait for ftrace_fetch",
        "captures: 1 (5 B) are fetched and kept for others",
    ]
    assert summaries.summarize_captures([]) == []


def test_a_rule_says_what_it_awaits_and_what_has_started():
    rule = {
        "name": "shop",
        "patterns": ["shop-*", "web"],
        "labels": {"tier": "front", "x": None},
        "max_containers": 2,
        "max_time_s": None,
        "traced": 3,
        "running": 2,
        "unmeant": 4,
        "refused": 1,
        "missed": 5,
        "troubles": ["too many watches"],
    }
    (line,) = summaries.summarize_traces([{**IDLE, "container": "shop", "rule": rule}])
    assert line == (
        "rule shop: awaits shop-*, web with label tier=front with label x, 3 containers have started, 2 traced now, 4 others have"
        " started, 1 were not traced, as max_containers (2) were traced already, 5 were over before they"
        " were seen, too many watches, begun 2026-09-21 13:13:20 UTC by"
        " root, records without a ttl, 7 events in its buffers"
    )
    quiet = {**rule, "patterns": None, "labels": {"a": "b"}, "unmeant": 0, "refused": 0, "missed": 0, "troubles": []}
    (line,) = summaries.summarize_traces([{**IDLE, "container": "shop", "rule": quiet}])
    assert line.startswith("rule shop: awaits label a=b, 3 containers have started, 2 traced now, begun")


def test_of_features_those_are_told_that_are_missing_and_needed():
    found = [
        feature.Feature("loop", True, ""),
        feature.make_missing("syscall_events", "no events"),
        feature.make_missing("snapshot", "no snapshots"),
    ]
    assert summaries.summarize_features([vars(one) for one in found]) == [
        "missing syscall_events: no events; system calls cannot be traced: trace events or functions"
    ]


def test_nothing_is_told_as_nothing():
    assert summaries.summarize_containers([], [], []) == ["container: none runs"]
    assert "push one" in summaries.summarize_images([])[0]
    silent = summaries.summarize_host({**HOST, "engine": None, "engine_error": "start it"})
    assert silent.endswith("no Docker engine (start it)")


@pytest.mark.parametrize("text", ["a\nb", "a\x1b[2Jb", "a\u202eb"])
def test_whatever_strangers_write_stays_in_its_line(text):
    (line,) = summaries.summarize_containers([make_container(1, image=text)], [], [])
    assert line.isprintable()
    (line,) = summaries.summarize_images([{"name": "bad", "error": text}])
    assert line.isprintable()


@pytest.mark.parametrize(("expires", "end"), [(None, ""), (1790000000.25, ", until 2026-09-21T14:13:20Z")])
def test_an_attachment_is_told_by_the_line_that_gives_a_shell(expires, end):
    one = {"container": "api", "expires": expires, "shell": "docker exec -it 3f4e /dev/crashcart/bin/bash"}
    assert summaries.summarize_attachment(one) == f"api{end}: docker exec -it 3f4e /dev/crashcart/bin/bash"
