# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring the start hook to a host, or take it away, without harm to containers that were created with it.

At each moment, whatever an engine may find leads to a program that is there: the program comes first and goes last.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.docker_engine import DockerEngine
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.host import Host
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.calls import arguments
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.hook import (
    archive,
    dockerd,
    files,
    policy,
    profiles,
    users,
    wiring,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.hook.files import DaemonFile
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.hook.wiring import File
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.limits import check_buffers
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance
from ansible_collections.crashcart.fleet.plugins.module_utils.names import HOOK_POLICY, HOOK_PROGRAM

_FIXED = {"mode": "record", "query": None, "docker_host": None}


@dataclass(frozen=True)
class Docker:
    """The Docker daemon that gets runtimes: its ENGINE, its configuration file CONFIG, and the file PID_FILE with its pid."""

    engine: DockerEngine
    config: str
    pid_file: str


@dataclass(frozen=True)
class Step:
    """A step of a change: it is done by calling DO if it IS_NEEDED. WHAT says in words what it changes."""

    what: str
    is_needed: bool
    do: Callable[[], Any]


def complete_profiles(entries: Sequence[Mapping[str, Any]], root: str) -> dict[str, dict[str, Any]]:
    """Return name → complete options of the profiles ENTRIES; raises FleetError for one that cannot be traced on this host.

    ROOT is the tracefs.
    """
    found: dict[str, dict[str, Any]] = {}
    defaults = {name: about.get("default") for name, about in arguments.ARGUMENTS.items()}
    for entry in entries:
        name = entry["name"]
        policy.check_name(name)
        if name in found:
            raise FleetError(f"profile {name} is there twice: give each profile a name of its own")
        options = {**defaults, **{key: value for key, value in entry.items() if key != "name"}, **_FIXED}
        try:
            profiles.make_rule(name, options)
            request = profiles.make_request(options, root)
            cpus = len(Instance(root, "..").list_cpus())
            check_buffers(request.limits, int(request.settings.files["buffer_size_kb"]) * 1024 * cpus)
        except FleetError as error:
            raise FleetError(f"profile {name}: {error}") from error
        found[name] = options
    if not found:
        raise FleetError("profiles is empty: give at least one profile, or state=absent")
    return found


def choose_ways() -> list[str]:
    """Return the ways by which the engines of this host can run the hook."""
    ways = [wiring.CDI]
    if shutil.which("podman") or shutil.which("crio"):
        ways.append(wiring.HOOKS)
    path = shutil.which("dockerd")
    if path:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=30)
        words = done.stdout.split()
        version = words[words.index("version") + 1] if "version" in words[:-1] else ""
        if not dockerd.Daemon(version, {}, "").has_cdi:
            ways.append(wiring.RUNTIMES)
    return ways


def plan_presence(wanted: Mapping[str, Mapping[str, Any]], ways: Sequence[str], docker: Docker | None) -> list[Step]:
    """Return the steps that bring the hook with the profiles WANTED to the host by WAYS. DOCKER is needed for runtimes."""
    names = list(wanted)
    steps = [
        _write(File(HOOK_PROGRAM, archive.make(), 0o755)),
        _write(File(HOOK_POLICY, policy.make_text(wanted).encode("utf-8"))),
    ]
    if wiring.CDI in ways:
        steps.append(_write(wiring.make_cdi(names, is_stub=False)))
    hooks = wiring.make_hooks(names) if wiring.HOOKS in ways else []
    steps += map(_write, hooks)
    steps += [_remove(path) for path in wiring.list_hooks() if path not in {file.path for file in hooks}]
    if docker is not None:
        steps += _plan_runtimes(docker, names, is_stub=False)
    return steps


def plan_stub(docker: Docker | None) -> list[Step]:
    """Return the steps that leave the devices and runtimes that the host has, and no hook."""
    steps = []
    devices = list_devices()
    if devices:
        steps.append(_write(wiring.make_cdi(devices, is_stub=True)))
    steps += map(_remove, wiring.list_hooks())
    names = list_profiles_of_runtimes(docker)
    if docker is not None and names:
        steps += _plan_runtimes(docker, names, is_stub=True)
    return [*steps, _remove(HOOK_POLICY), _remove(HOOK_PROGRAM)]


def plan_absence(docker: Docker | None) -> list[Step]:
    """Return the steps that take away everything of the hook, in the order in which nothing leads to what is gone."""
    steps = [_remove(wiring.CDI_FILE), *map(_remove, wiring.list_hooks())]
    if docker is not None:
        daemon = DaemonFile(docker.config)
        if wiring.is_ours(daemon.default_runtime):
            raise FleetError(
                f"{docker.config} makes {daemon.default_runtime} Docker's default runtime: make another one the default first"
            )
        left = {name: about for name, about in daemon.runtimes.items() if not wiring.is_ours(name)}

        reload = partial(dockerd.reload, docker.engine, docker.pid_file, [])
        steps.append(Step(docker.config, left != daemon.runtimes, partial(daemon.take_back, left, reload)))
        steps += [_remove(path) for path in wiring.list_wrappers()]
    steps += [_remove(HOOK_POLICY), _remove(HOOK_PROGRAM)]
    is_needed = any(step.is_needed for step in steps)
    return [*steps, Step("folders", is_needed, files.remove_folders)]


def _plan_runtimes(docker: Docker, names: Sequence[str], *, is_stub: bool) -> list[Step]:
    daemon = DaemonFile(docker.config)
    wrappers = wiring.make_wrappers(names, dockerd.ask(docker.engine).find_real(), is_stub=is_stub)
    others = {name: about for name, about in daemon.runtimes.items() if not wiring.is_ours(name)}
    wanted = {**others, **{name: {"path": file.path} for name, file in wrappers.items()}}

    def change() -> None:
        daemon.write(wanted)
        dockerd.reload(docker.engine, docker.pid_file, list(wrappers))

    steps = [*map(_write, wrappers.values()), Step(docker.config, wanted != daemon.runtimes, change)]
    kept = {file.path for file in wrappers.values()}
    return [*steps, *(_remove(path) for path in wiring.list_wrappers() if path not in kept)]


def _write(file: File) -> Step:
    return Step(file.path, not files.is_there(file), partial(files.write, file))


def _remove(path: str) -> Step:
    return Step(path, files.read(path) is not None, partial(files.remove, path))


def list_devices() -> list[str]:
    """Return the names of the devices in our CDI file; raises FleetError where somebody has damaged it."""
    text = files.read(wiring.CDI_FILE)
    try:
        return [] if text is None else [str(device["name"]) for device in json.loads(text)["devices"]]
    except (ValueError, KeyError, TypeError) as error:
        raise FleetError(f"{wiring.CDI_FILE} is damaged: remove it, and run the role start_hook again") from error


def list_profiles_of_runtimes(docker: Docker | None) -> list[str]:
    """Return the profiles for which DOCKER's configuration has runtimes."""
    if docker is None:
        return []
    prefix = wiring.RUNTIME + "-"
    return [name[len(prefix) :] for name in DaemonFile(docker.config).runtimes if name.startswith(prefix)]


def check_users(host: Host, kept: Sequence[str]) -> None:
    """Raise FleetError where a container needs a device or runtime that is none of KEPT, and so could not start any more."""
    if not host.is_complete:
        raise FleetError(
            f"which containers need the hook is not known: {host.describe_silence()}; start that engine, or use force=true"
        )
    needing = [user for user in users.list_users(host) if user.by not in kept]
    if needing:
        named = ", ".join(f"{user.name} ({user.engine}, {user.state}, {user.by})" for user in needing)
        raise FleetError(
            f"these containers were created with what is to be removed, and could not start any more: {named}; create them anew without"
            " it, or use keep_stub=true, which leaves devices and runtimes that trace nothing, or force=true"
        )
