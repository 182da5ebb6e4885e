# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring the start hook to a host, or take it away, without harm to containers that were created with it.

At each moment, whatever an engine may find leads to a program that is there: the program comes first and goes last.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from dataclasses import dataclass
from functools import partial
from typing import Any, Collection, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.docker_engine import DockerEngine
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.calls import arguments
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.end import stop_rules
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.hook import (
    dockerd,
    policy,
    profiles,
    program,
    quick,
    users,
    wiring,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.hook.daemon_file import DaemonFile
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.installed import archive, files
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.installed.files import File
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.installed.steps import (
    Step,
    plan_removal,
    plan_write,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.limits import check_buffers
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance
from ansible_collections.crashcart.fleet.plugins.module_utils.names import HOOK_POLICY, HOOK_PROGRAM, HOOK_RULE_PREFIX

_TRY_S = 30.0
_START_S = 0.5  # between the reading of a device's description and the hook


@dataclass(frozen=True)
class Docker:
    """The Docker daemon that gets runtimes: its ENGINE, its configuration file CONFIG, and the file PID_FILE with its pid.

    ENGINE is None where the daemon does not answer. Then it has nothing to read again.
    """

    engine: DockerEngine | None
    config: str
    pid_file: str

    def list_ours(self) -> set[str]:
        """Return the names of our runtimes that the daemon has now."""
        return set() if self.engine is None else dockerd.list_ours(self.engine)

    def reload(self, wanted: Sequence[str]) -> None:
        """Have the daemon read its configuration again, after which it has the runtimes WANTED of ours."""
        if self.engine is not None:
            dockerd.reload(self.engine, self.pid_file, wanted)


def complete_profiles(entries: Sequence[Mapping[str, Any]], root: str | None) -> dict[str, dict[str, Any]]:
    """Return name → complete options of the profiles ENTRIES; raises FleetError for one that cannot be traced on this host.

    ROOT is the tracefs; None where it is not mounted yet, which leaves some options unchecked.
    """
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        name = entry["name"]
        policy.check_name(name)
        if name in found:
            raise FleetError(f"profile {name} is there twice: give each profile a name of its own")
        options = arguments.fill_for_rule(entry)
        try:
            profiles.make_rule(name, options)
            if root is not None:
                _check_request(options, root)
        except FleetError as error:
            raise FleetError(f"profile {name}: {error}") from error
        found[name] = options
    if not found:
        raise FleetError("profiles is empty: give at least one profile, or state=absent")
    return found


def _check_request(options: Mapping[str, Any], root: str) -> None:
    request = profiles.make_request(options, root)
    cpus = len(Instance(root, "..").list_cpus())
    check_buffers(request.limits, int(request.settings.files["buffer_size_kb"]) * 1024 * cpus)


def choose_ways(has_runtimes: bool) -> list[str]:
    """Return the ways by which the engines of this host can run the hook. HAS_RUNTIMES is True if Docker has ours already."""
    ways = [wiring.CDI]
    if shutil.which("podman") or shutil.which("crio"):
        ways.append(wiring.HOOKS)
    path = shutil.which("dockerd")
    if path and not has_runtimes:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=30)
        words = done.stdout.split()
        version = words[words.index("version") + 1] if "version" in words[:-1] else ""
        has_runtimes = not dockerd.Daemon(version, {}, "").has_cdi
    return [*ways, wiring.RUNTIMES] if has_runtimes else ways


def has_runtimes(config: str) -> bool:
    """Return True if the configuration CONFIG of Docker's daemon has runtimes of ours, or something of such runtimes is left."""
    daemon = DaemonFile(config)
    return bool(daemon.ours) or daemon.is_known or bool(wiring.list_wrappers())


def plan_presence(
    wanted: Mapping[str, Mapping[str, Any]], ways: Sequence[str], docker: Docker | None, used: Collection[str]
) -> list[Step]:
    """Return the steps that bring the hook with the profiles WANTED to the host by WAYS. DOCKER is needed for runtimes.

    USED are the names of our runtimes by which containers run: these have to be there for the containers' end.
    """
    names = list(wanted)
    content, end = archive.make(quick.__name__, [program.__name__], archive.RUN_AND_END_WITH_0)
    policy_file = File(HOOK_POLICY, policy.make_text(wanted).encode("utf-8"))
    is_other = not files.is_there(policy_file)
    write = plan_write(File(HOOK_PROGRAM, content, 0o755, end))
    steps = [write, Step("", write.is_needed, _try_program), plan_write(policy_file)]
    steps += _plan_end(is_other)
    steps.append(
        plan_write(wiring.make_cdi(names, is_stub=False)) if wiring.CDI in ways else plan_removal(wiring.CDI_FILE)
    )
    hooks = wiring.make_hooks(names) if wiring.HOOKS in ways else []
    steps += map(plan_write, hooks)
    steps += [plan_removal(path) for path in wiring.list_hooks() if path not in {file.path for file in hooks}]
    if wiring.RUNTIMES in ways and docker is not None:
        steps += _plan_runtimes(docker, names, used, is_stub=False)
    elif docker is not None:
        steps += _plan_no_runtimes(docker, used)
    return steps


def plan_stub(docker: Docker | None, used: Collection[str]) -> list[Step]:
    """Return the steps that leave the devices and runtimes that the host has, and a program that does nothing. USED are runtimes in use."""
    steps = []
    devices = list_devices()
    if devices:
        steps.append(plan_write(wiring.make_cdi(devices, is_stub=True)))
    steps += map(plan_removal, wiring.list_hooks())
    names = list_profiles_of_runtimes(docker)
    if docker is not None and names:
        steps += _plan_runtimes(docker, names, used, is_stub=True)
    steps += _plan_no_policy()
    # A container that is being started, or of an engine that keeps the hook in the container's specification, may still name it.
    return [*steps, plan_write(File(HOOK_PROGRAM, wiring.STUB_PROGRAM, 0o755))] if files.read(HOOK_PROGRAM) else steps


def plan_absence(docker: Docker | None, used: Collection[str]) -> list[Step]:
    """Return the steps that take away everything of the hook, in the order in which nothing leads to what is gone.

    USED are the names of our runtimes by which containers run: these have to be there for the containers' end.
    """
    steps = [plan_removal(wiring.CDI_FILE), *map(plan_removal, wiring.list_hooks())]
    if docker is not None:
        steps += _plan_no_runtimes(docker, used)
    steps += _plan_no_policy()
    is_needed = any(step.is_needed for step in steps)
    # A container that is being started just now may have read what leads to the program.
    steps += [
        Step("", is_needed and files.read(HOOK_PROGRAM) is not None, partial(time.sleep, _START_S)),
        plan_removal(HOOK_PROGRAM),
    ]
    is_needed = any(step.is_needed for step in steps) or files.has_memory()
    return [*steps, Step("", is_needed, files.remove_folders)]


def _plan_no_policy() -> list[Step]:
    """Return the steps after which the hook has no profiles, and none of their traces runs."""
    # Without the policy no trace begins any more.
    removal = plan_removal(HOOK_POLICY)
    return [removal, *_plan_end(removal.is_needed or files.is_left(HOOK_PROGRAM))]


def _plan_end(is_needed: bool) -> list[Step]:
    """Return the step that ends the traces of the hook, if it IS_NEEDED; what they have recorded stays for a fetch."""
    return [Step("", is_needed, partial(stop_rules, lambda name: name.startswith(HOOK_RULE_PREFIX)))]


def _try_program() -> None:
    """Run the program, which then does nothing. Raises FleetError where the host does not let it run, by which each start would fail."""
    try:
        done = subprocess.run(
            [HOOK_PROGRAM, "try"], stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_TRY_S
        )
        if done.stdout == program.TRIED:
            return
        why = (done.stdout + done.stderr).decode("utf-8", "replace").strip()[-500:]
    except (OSError, subprocess.TimeoutExpired) as error:
        why = str(error)
    raise FleetError(
        f"{HOOK_PROGRAM} cannot be run on this host ({why}), so nothing leads to it yet: see whether a policy, or a mount with noexec,"
        " forbids it"
    )


def _plan_runtimes(docker: Docker, names: Sequence[str], used: Collection[str], *, is_stub: bool) -> list[Step]:
    if docker.engine is None:
        raise FleetError(
            "Docker's daemon does not answer, so what its runtimes wrap is not known: start it"
            + ("" if is_stub else ", or leave `runtime` out of ways")
        )
    wrappers = wiring.make_wrappers(names, dockerd.ask(docker.engine).find_real(), is_stub=is_stub)
    wanted = {name: {"path": file.path} for name, file in wrappers.items()}
    is_other = wanted != DaemonFile(docker.config).ours

    def change() -> None:
        daemon = DaemonFile(docker.config)  # somebody may have changed it meanwhile
        if wanted != daemon.ours:
            daemon.write(wanted, docker.pid_file)
        docker.reload(list(wrappers))

    steps = [
        *map(plan_write, wrappers.values()),
        Step(docker.config, is_other or docker.list_ours() != set(wrappers), change),
    ]
    return [*steps, *_plan_no_wrappers({*wrappers, *used})]


def _plan_no_wrappers(kept: Collection[str]) -> list[Step]:
    """Return the steps that remove the programs of our runtimes but for those called KEPT."""
    paths = {wiring.name_wrapper(name) for name in kept}
    return [plan_removal(path) for path in wiring.list_wrappers() if path not in paths]


def _plan_no_runtimes(docker: Docker, used: Collection[str]) -> list[Step]:
    daemon = DaemonFile(docker.config)
    if wiring.is_ours(daemon.default_runtime):
        raise FleetError(
            f"{docker.config} makes {daemon.default_runtime} Docker's default runtime: make another one the default first"
        )
    is_in_file, ours = bool(daemon.ours) or daemon.is_known, docker.list_ours()
    if ours and not is_in_file:
        names = ", ".join(sorted(ours))
        raise FleetError(
            f"Docker's daemon has the runtimes {names}, which are not in {docker.config}: give the file that it reads as docker_config"
        )

    def take_back() -> None:
        DaemonFile(docker.config).take_back(partial(docker.reload, []))

    return [Step(docker.config, is_in_file, take_back), *_plan_no_wrappers(used)]


def list_used(found: Sequence[users.User]) -> set[str]:
    """Return the names of our runtimes by which those of the containers FOUND run that run."""
    return {name for user in found if user.is_running for name in user.by if wiring.is_ours(name)}


def list_devices() -> list[str]:
    """Return the names of the devices in our CDI file; raises FleetError where somebody has damaged it."""
    text = files.read(wiring.CDI_FILE)
    try:
        return [] if text is None else [str(device["name"]) for device in json.loads(text)["devices"]]
    except (ValueError, KeyError, TypeError) as error:
        raise FleetError(f"{wiring.CDI_FILE} is damaged: remove it, and run the role start_hook again") from error


def list_runtimes(docker: Docker | None) -> list[str]:
    """Return the names of our runtimes in DOCKER's configuration."""
    return [] if docker is None else list(DaemonFile(docker.config).ours)


def list_profiles_of_runtimes(docker: Docker | None) -> list[str]:
    """Return the profiles for which DOCKER's configuration has runtimes."""
    prefix = wiring.RUNTIME + "-"
    return [name[len(prefix) :] for name in list_runtimes(docker) if name.startswith(prefix)]


def check_users(found: Sequence[users.User], troubles: Sequence[str], kept: Sequence[str]) -> None:
    """Raise FleetError where one of FOUND, the containers that need the hook, could not start with KEPT alone, or where there may be others.

    KEPT are names of devices and runtimes. TROUBLES say why some containers are not known.
    """
    if troubles:
        raise FleetError(
            f"which containers need the hook is not known: {'; '.join(troubles)}; start that engine, or use force=true"
        )
    needing = [(user, [name for name in user.by if name not in kept]) for user in found]
    named = [f"{user.name} ({user.engine}, {user.state}, {', '.join(names)})" for user, names in needing if names]
    if named:
        raise FleetError(
            f"these containers were created with what is to be removed, and could not start any more: {', '.join(named)}; create them anew"
            " without it, or use keep_stub=true, which leaves devices and runtimes that trace nothing, or force=true"
        )
