# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attach, detach and exec of several containers, some of which fail: the others are served, and nothing is left of what failed."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager

import pytest
from support import failures, host
from support.failures import fail

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach import expiry, methods, mounting
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute import execution
from ansible_collections.crashcart.fleet.plugins.module_utils.containers import options, targets

BASH = "/dev/crashcart/bin/bash"
IN_THE_WAY = ("busybox", "/bin/sh", "-c", "/bin/touch /dev/crashcart; /bin/sleep 1000")


def is_attached(name):
    return "/dev/crashcart" in host.read_container_mounts(name)


def list_ends():
    return {one.container.name for one in expiry.list_expiries()}


def taken(container):
    """A container in which something stands where the image would be."""
    name = container(*IN_THE_WAY)
    host.wait_until(lambda: "crashcart" in host.docker("exec", name, "/bin/ls", "/dev"))
    return name


@contextmanager
def ending(module, function, name):
    """Have container NAME end when FUNCTION of MODULE is called, of which this process has what the next module begins with."""
    original = getattr(module, function)

    def end_first(*arguments, **more):
        setattr(module, function, original)
        failures.end(name)
        return original(*arguments, **more)

    setattr(module, function, end_first)
    try:
        yield
    finally:
        setattr(module, function, original)


@pytest.mark.parametrize("method", ["fsmount", "mknod"])
def test_attach(container, monkeypatch, method):
    good = [container(), container()]
    stopped, busy, kept, dying = failures.stop(container()), taken(container), container(), container()
    monkeypatch.setattr(targets, "TIMEOUT_S", 0.2)
    reasons = {
        stopped: "is exited: start it first",
        busy: "cannot attach to .* at /dev/crashcart: what stands there is not a directory",
        kept: "another process holds .*; see who with 'lslocks', and try again",
        dying: "has just ended",
    }
    with failures.held("container", kept), ending(methods, "attach", dying):
        result = fail("crashcart_attach", reasons, good, method=method, ttl="1h")
    assert result["changed"]
    assert {one["container"] for one in result["attachments"]} == set(good)
    assert [host.docker("exec", name, BASH, "-c", "echo 42") for name in good] == ["42", "42"]
    assert not is_attached(busy)
    assert not is_attached(kept)
    assert not os.path.lexists(f"/proc/{host.find_pid(kept)}/root/dev/crashcart")
    assert list_ends() == set(good)
    reasons = {stopped: "start it first", busy: "not a directory", dying: "start it first"}
    again = fail("crashcart_attach", reasons, [*good, kept])
    assert again["changed"]
    again = fail("crashcart_attach", reasons, [*good, kept])
    assert not again["changed"]


def test_who_is_kept_delays_nobody_else(container, monkeypatch):
    """The others are attached to, and detached from, while one is waited for: all that are kept together as long as one."""
    good, kept = [container(), container()], [container(), container()]
    monkeypatch.setattr(targets, "TIMEOUT_S", 5.0)

    def look(names):
        return {is_attached(name) for name in names}

    for state, there in (("attached", {True}), ("detached", {False})):
        with failures.held("container", kept[0]), failures.held("container", kept[1]):
            process = host.start_module("crashcart_attach", containers=[*kept, *good], state=state)
            while look(good) != there:
                assert process.poll() is None
                host.pause(0.05)
            assert process.poll() is None
        result = host.parse_result(*process.communicate(timeout=host.seconds(30)))
        assert (result["changed"], result["failed_containers"], look(kept)) == (True, [], there)
    with failures.held("container", kept[0]), failures.held("container", kept[1]):
        start = time.monotonic()
        fail("crashcart_attach", dict.fromkeys(kept, "another process holds"), good)
        assert 5 <= time.monotonic() - start < host.seconds(9)


def test_attach_in_check_mode(container):
    good, stopped, busy = container(), failures.stop(container()), taken(container)
    reasons = {stopped: "start it first", busy: "not a directory"}
    result = fail("crashcart_attach", reasons, [good], check_mode=True, diff=True)
    assert (result["changed"], list(result["diff"]["after"])) == (True, [f"{good}:/dev/crashcart"])
    assert host.list_loop_devices() == []


def test_an_end_that_was_settled_before_stays(container, monkeypatch):
    """Of a container that is refused: more time is not given, and what it had is not taken away."""
    good, kept = container(), container()
    host.call_module("crashcart_attach", containers=[kept], ttl="1h")
    (before,) = expiry.list_expiries()
    monkeypatch.setattr(targets, "TIMEOUT_S", 0.2)
    with failures.held("container", kept):
        fail("crashcart_attach", {kept: "another process holds"}, [good], ttl="2h")
    assert [one for one in expiry.list_expiries() if one.container.name == kept] == [before]
    assert list_ends() == {good, kept}


def test_a_volume_that_one_lacks(container, tmp_path):
    volume = tmp_path / "volume"
    volume.mkdir()
    host.run("mount", "-t", "tmpfs", "tmpfs", str(volume))
    host.run("mount", "--make-shared", str(volume))
    try:
        good = container("busybox", options=("--network", "none", "--volume", f"{volume}:/dev/crashcart:rslave"))
        lacking = container()
        reasons = {lacking: "has no rslave volume at /dev/crashcart: start it with"}
        fail("crashcart_attach", reasons, [good], method="rslave")
        assert host.docker("exec", good, BASH, "-c", "echo 42") == "42"
        host.call_module("crashcart_attach", state="detached", everything=True)
    finally:
        host.run("umount", "-l", str(volume))


def test_detach(container, monkeypatch):
    good = [container(), container()]
    busy, kept, dying = container(), container(), container()
    host.call_module("crashcart_attach", containers=[*good, busy, kept, dying], ttl="1h")
    host.docker("exec", "-d", "-w", "/dev/crashcart/bin", busy, "/bin/sleep", "1000")
    monkeypatch.setattr(targets, "TIMEOUT_S", 0.2)
    reasons = {busy: r"in use by 'sleep' \(pid \d+\); end them", kept: "another process holds"}
    with failures.held("container", kept), ending(mounting, "find_removable", dying):
        # One that ends meanwhile has nothing attached any more, as was asked for.
        result = fail("crashcart_attach", reasons, [*good, dying], state="detached")
    assert result["changed"]
    assert {one["container"] for one in result["attachments"]} == {busy, kept}
    assert [is_attached(name) for name in (*good, busy, kept)] == [False, False, True, True]
    assert not any(os.path.lexists(f"/proc/{host.find_pid(name)}/root/dev/crashcart") for name in good)
    assert list_ends() - {dying} == {busy, kept}
    # What is refused is not taken away by way of its end either.
    with pytest.raises(host.ModuleFailed, match="in use by 'sleep'") as failure:
        host.call_module("crashcart_attach", state="detached", everything=True)
    assert [one["container"] for one in failure.value.result["failed_containers"]] == [busy]
    assert [is_attached(name) for name in (busy, kept)] == [True, False]
    assert (
        host.call_module("crashcart_attach", state="detached", everything=True, busy="lazy")["failed_containers"] == []
    )


def test_exec(container):
    good = [container(), container()]
    stopped, dying, slow = failures.stop(container()), container(), container()
    shared = container("busybox", options=("--network", "none", "--pid", "host"))
    host.docker("exec", slow, "/bin/touch", "/slow")
    reasons = {
        stopped: "is exited: start it first",
        shared: "rights=tools .*rights=container",
        dying: "has just ended",
        slow: "killed after 3 s",
    }
    command = ["bash", "-c", "[ ! -e /slow ] || sleep 1000; echo hello"]
    with ending(execution, "find_tools", dying):
        result = fail("crashcart_exec", reasons, good, argv=command, timeout="3s")
    assert result["changed"]
    results = {one["container"]: one for one in result["results"]}
    assert set(results) == {*good, *reasons}
    assert [results[name]["stdout"] for name in good] == ["hello\n", "hello\n"]
    assert results[slow]["timed_out"]
    assert all(results[name]["rc"] == -1 for name in (stopped, shared, dying))


@pytest.mark.parametrize(
    ("module", "more"),
    [
        ("crashcart_attach", {}),
        ("crashcart_exec", {"argv": ["bash", "-c", "echo 42"]}),
        ("ftrace_instance", {"syscalls": ["getcwd"]}),
    ],
)
def test_one_that_is_removed_while_it_is_selected_costs_no_other(container, monkeypatch, module, more):
    good, gone = container(), container()
    original = options.select_containers

    def select_and_remove(*arguments, **also):
        found = original(*arguments, **also)
        host.docker("rm", "-f", gone)
        return found

    monkeypatch.setattr(options, "select_containers", select_and_remove)
    with pytest.raises(
        host.ModuleFailed, match=f"1 of 2 .*{gone} .* was just removed; .* all the same: {good}"
    ) as failure:
        host.call_module(module, containers=[gone, good], **more)
    result = failure.value.result
    assert [one["container"] for one in result["failed_containers"]] == [gone]
    assert result["changed"]


def test_a_name_that_nobody_bears_changes_nothing(container):
    """A selection that is wrong is wrong for all: who mistypes one name may have meant another container than those that were found."""
    name = container()
    for module, more in (
        ("crashcart_attach", {}),
        ("crashcart_exec", {"argv": ["touch", "/dev/touched"], "rights": "host"}),
        ("ftrace_instance", {}),
    ):
        with pytest.raises(host.ModuleFailed, match="no container is called 'nonesuch'") as failure:
            host.call_module(module, containers=[name, "nonesuch"], **more)
        assert "failed_containers" not in failure.value.result
    assert not is_attached(name)
    assert not os.path.exists(f"/proc/{host.find_pid(name)}/root/dev/touched")
    assert host.list_instances() == []


def test_the_reasons_reach_whoever_asks_by_ansible(container):
    """Through the action plugin, which adds to each attachment how the controller reaches it."""
    good, stopped = container(), failures.stop(container())
    with pytest.raises(host.ModuleFailed, match="start it first") as failed:
        host.ad_hoc("localhost", "crashcart_attach", {"containers": [good, stopped]})
    assert [one["shell"].split()[0] for one in failed.value.result["attachments"]] == ["docker"]
    host.docker("exec", "-d", "-w", "/dev/crashcart/bin", good, "/bin/sleep", "1000")
    detach = {"containers": [good], "state": "detached"}
    with pytest.raises(host.ModuleFailed, match=r"in use by 'sleep' \(pid \d+\); end them"):
        host.ad_hoc("localhost", "crashcart_attach", detach)
    assert host.ad_hoc("localhost", "crashcart_attach", {**detach, "busy": "kill"})["attachments"] == []
