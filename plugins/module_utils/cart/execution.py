# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a command of a tool image in running containers, and change nothing there.

Each command runs in the container's control groups and namespaces and in a private view of its files (private_view.py), with the
rights of the container's first process or with some of the host's (rights.py), and a supervisor (supervisor.py) ends whatever it leaves.
Commands in one container cannot disturb each other, nor can a detach disturb them.
"""

from __future__ import annotations

import base64
import errno
import os
import shlex
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Iterator, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import store
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attachments import Attachment, find_attachments
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.confinement import choose_rights, read_rights
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.image_mounts import (
    ImageFinder,
    create_mount,
    create_mounts,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.jobs import (
    DEFAULT_NAMESPACES,
    NAMESPACES,
    Command,
    ExecutionError,
    Job,
    Output,
    Result,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.programs import find_program, read_environment
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.server import Server
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.sessions import run_jobs
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.sinks import STREAMS, Sink, open_sinks
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    Container,
    check_running,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import Target, open_targets
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.users import (
    User,
    UserError,
    UserFileError,
    find_users,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import capabilities, cgroups, id_maps
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.mounts import Mount, read_mounts
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import Process
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape


def parse_command(
    *,
    argv: list[str] | None,
    cmd: str | None,
    env: dict[str, Any],
    stdin: str | None,
    chdir: str,
    timeout_s: float | None,
    namespaces: Sequence[str] | None = None,
    confined: bool = False,
    chosen: Sequence[str] | None = None,
) -> Command:
    """A Command from a module's options; CHOSEN are names of capabilities."""
    try:
        words = argv if argv is not None else shlex.split(cmd or "")
    except ValueError as error:
        raise ExecutionError(f"cmd {cmd!r} cannot be split into words: {error}") from error
    texts = [*words, *map(str, env), *map(str, env.values()), chdir]
    if not words or not words[0]:
        raise ExecutionError("the command is empty: give a program's name first")
    valueless = [name for name, value in env.items() if value is None]
    if valueless:
        raise ExecutionError(
            f"env: {', '.join(map(str, valueless))} has no value; leave it out, or give it an empty text"
        )
    if any("\0" in text for text in texts) or any("=" in name or not name for name in env):
        raise ExecutionError(
            "a command, a folder or a variable holds a NUL character, or a variable's name is empty or holds '='"
        )
    if confined and (namespaces is not None or chosen is not None):
        raise ExecutionError(
            "confined: such a command has all of the container's namespaces and the capabilities of its first process; leave out"
            " `namespaces` and `capabilities`, or `confined`"
        )
    if namespaces is not None and not namespaces:
        raise ExecutionError(f"namespaces: name at least one of {', '.join(NAMESPACES)}, or leave the option out")
    return Command(
        argv=tuple(words),
        env={name: str(value) for name, value in env.items()},
        stdin=None if stdin is None else stdin.encode("utf-8", "surrogateescape"),
        chdir=chdir,
        timeout_s=timeout_s,
        namespaces=NAMESPACES if confined else DEFAULT_NAMESPACES if namespaces is None else tuple(namespaces),
        confined=confined,
        capabilities=None if chosen is None else _parse_capabilities(chosen),
    )


def _parse_capabilities(names: Sequence[str]) -> int:
    try:
        return capabilities.parse_names(names)
    except ValueError as error:
        raise ExecutionError(
            f"capabilities: Linux has none called {str(error)!r}; it has {', '.join(capabilities.NAMES)}"
        ) from error


def execute(
    containers: Sequence[Container],
    command: Command,
    user: str | None,
    image_name: str | None,
    server: Server,
    output: Output,
    *,
    check_mode: bool,
) -> list[dict[str, Any]]:
    """Run COMMAND by SERVER in each of CONTAINERS; what modules return of it. In check mode nothing is run."""
    for container in containers:
        check_running(container)
    with open_targets(containers) as targets:
        places = choose_places(targets, command, user, image_name)
        good = [place for place in places if not place.failure]
        if check_mode:
            _refuse_failed(places)
            return []
        with open_jobs(good, command) as jobs:
            sinks = open_sinks(list(containers), output)
            good_sinks = [one for place, one in zip(places, sinks) if not place.failure]
            done = iter(run_jobs(jobs, good_sinks, server))
        results = [_fail(place) if place.failure else next(done) for place in places]
    return _report(results, sinks, command, output)


@dataclass(frozen=True)
class Place:
    """Where a command is to run, as whom (None: nobody was named), and with which image: one that is attached, or one of the store.

    FAILURE is why it cannot run there; the container's own fault must not cost the others.
    """

    target: Target
    user: User | None
    source: store.StoredImage | Attachment
    failure: str = ""


def choose_places(targets: Sequence[Target], command: Command, user: str | None, image_name: str | None) -> list[Place]:
    """For each of TARGETS who USER is there, and its image: the attached one, or the one of the store called IMAGE_NAME."""
    users = _find_users_in(targets, user, command)
    return [
        Place(target, None, source, str(found)) if isinstance(found, UserFileError) else Place(target, found, source)
        for target, found, source in zip(targets, users, _find_sources(targets, image_name))
    ]


def _refuse_failed(places: Sequence[Place]) -> None:
    failures = [f"container {place.target.container.name}: {place.failure}" for place in places if place.failure]
    if failures:
        raise ExecutionError("; ".join(failures))


def _fail(place: Place) -> Result:
    container = place.target.container
    now = time.time()
    return Result(container.name, container.id, start=now, end=now, error=place.failure)


@contextmanager
def open_jobs(places: Sequence[Place], command: Command) -> Iterator[list[Job]]:
    """COMMAND for each of PLACES, each with a mount of its image. Raises ExecutionError for one where it cannot run."""
    _refuse_failed(places)
    with ExitStack() as stack:
        jobs = []
        host_mounts = read_mounts("self", " - cgroup")
        with open("/proc/self/cgroup", "rb") as file:
            own_groups = cgroups.parse_cgroup(file.read())
        for place in places:
            source = place.source
            mount_fd = stack.enter_context(_create_mount(source))
            prefix = source.prefix if isinstance(source, store.StoredImage) else source.path
            variables = read_environment(mount_fd, prefix)
            try:
                program = find_program(command.argv[0], mount_fd, prefix, variables["PATH"])
            except ExecutionError as error:
                raise ExecutionError(f"container {place.target.container.name}: {error}") from error
            environment = {**variables, **command.env}
            rights = (
                read_rights(place.target, place.user)
                if command.confined
                else choose_rights(place.user or User(), command.capabilities)
            )
            groups = stack.enter_context(_open_groups(place.target, own_groups, host_mounts))
            jobs.append(Job(place.target, command, rights, mount_fd, prefix, program, environment, groups))
        yield jobs


@contextmanager
def _open_groups(target: Target, own: list[cgroups.Membership], host_mounts: list[Mount]) -> Iterator[dict[str, int]]:
    """The control groups of TARGET's first process that are not the OWN ones, open to be joined: hierarchy → descriptor."""
    wanted = cgroups.parse_cgroup(target.process.read("cgroup"))
    with ExitStack() as stack:
        groups = {}
        for membership, path in cgroups.gen_joins(wanted, own, host_mounts):
            hierarchy = ",".join(membership.controllers) or "cgroup2"
            try:
                if not path:
                    raise OSError(errno.ENOENT, "the hierarchy is not mounted on the host")
                groups[hierarchy] = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            except OSError as error:
                raise ExecutionError(
                    f"container {target.container.name}: its control group {membership.path} of {hierarchy} cannot be joined:"
                    f" {error.strerror}"
                ) from error
            stack.callback(os.close, groups[hierarchy])
        yield groups


def _find_users_in(
    targets: Sequence[Target], spec: str | None, command: Command
) -> Sequence[User | UserFileError | None]:
    """Who SPEC is in each of TARGETS, in the host's numbers; without the container's files it is a user of the host.

    Raises UserError where one has no such user.
    """
    if spec is None and ("user" not in command.namespaces or command.confined):
        return [None for _target in targets]
    inside = "mnt" in command.namespaces
    with ExitStack() as stack:
        root_fds = []
        for target in targets:
            flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            root_fds.append(target.process.open("root", flags) if inside else os.open("/", flags))
            stack.callback(os.close, root_fds[-1])
        found = find_users("0:0" if spec is None else spec, root_fds)
    return [_settle_user(target, user, command) for target, user in zip(targets, found)]


def _settle_user(target: Target, user: User | UserError | UserFileError, command: Command) -> User | UserFileError:
    if isinstance(user, UserFileError):
        return user
    try:
        if isinstance(user, UserError):
            raise user
        is_inside = "mnt" in command.namespaces or "user" in command.namespaces
        return _find_outside(user, target.process) if is_inside else user
    except UserError as error:
        raise UserError(f"container {target.container.name}: {error}") from error


def _find_outside(user: User, process: Process) -> User:
    """USER of PROCESS's user namespace in the host's numbers."""
    uids, gids = (id_maps.parse_id_map(process.read(name)) for name in ("uid_map", "gid_map"))
    uid, gid = id_maps.find_outside(user.uid, uids), id_maps.find_outside(user.gid, gids)
    if uid is None or gid is None:
        raise UserError(f"its user namespace has no user {user.uid} with group {user.gid}")
    groups = (id_maps.find_outside(group, gids) for group in user.groups)
    return User(uid, gid, tuple(group for group in groups if group is not None))


def _find_sources(targets: Sequence[Target], image_name: str | None) -> list[store.StoredImage | Attachment]:
    """For each target the image to mount: the attached one, or the one of the store called IMAGE_NAME."""
    sources: list[store.StoredImage | Attachment] = []
    finder = ImageFinder()
    image: store.StoredImage | None = None
    for target in targets:
        attached = [one for one in find_attachments(target, finder) if image_name in (None, one.image)]
        if attached:
            sources.append(attached[-1])
            continue
        if image is None:
            image = store.get_image(image_name or "default")
            store.check_manifest(image.manifest)
        sources.append(image)
    return sources


@contextmanager
def _create_mount(source: store.StoredImage | Attachment) -> Iterator[int]:
    """A detached mount of SOURCE, as a descriptor that lasts as long as the context."""
    stored = source
    if not isinstance(stored, store.StoredImage):
        stored = store.StoredImage(stored.image, stored.digest, {"format": stored.format})
    if isinstance(source, store.StoredImage) or os.path.exists(stored.path):
        with create_mounts(stored, 1) as (fd,):
            yield fd
        return
    # Replaced in the store since; its loop device is there for as long as it is attached.
    device = next((one for one in ImageFinder().loop_devices if one.device == source.device), None)
    if device is None:
        raise ExecutionError(
            f"container {source.container.name}: its image {source.image!r} was replaced in the store or detached just now:"
            " detach it, or say with image which one to use"
        )
    held_fd = os.open(device.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if source.device not in {one.device for one in ImageFinder().loop_devices}:
            raise ExecutionError(f"container {source.container.name}: the image was just detached; try again")
        fd = create_mount(device.path, source.format)
    finally:
        os.close(held_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def _report(
    results: Sequence[Result], sinks: Sequence[Mapping[str, Sink]], command: Command, output: Output
) -> list[dict[str, Any]]:
    reports = []
    lost: list[str] = []
    for result, streams in zip(results, sinks):
        report = {name: value for name, value in vars(result).items() if name != "error"}
        for name in STREAMS:
            report.update(_report_stream(name, streams[name], output))
            try:
                streams[name].close()
            except OSError as error:  # a file system over a network tells of its failures late
                lost.append(f"container {result.container}: its {name} cannot be kept: {error.strerror}")
        if result.error:
            report["msg"] = escape(result.error)
        reports.append(report)
    failures = [f"container {result.container}: {result.error}" for result in results if result.error] + lost
    late = [result.container for result in results if result.timed_out]
    if late:
        failures.append(f"killed after {command.timeout_s:g} s in: {', '.join(late)}")
    if failures:
        raise ExecutionError("; ".join(failures), results=reports)
    return reports


def _report_stream(name: str, sink: Sink, output: Output) -> dict[str, Any]:
    if output.dest is not None:
        return {f"{name}_path": sink.path}
    data = sink.read()
    if output.encoding == "base64":
        return {name: base64.b64encode(data).decode("ascii")}
    text = data.decode("utf-8", "replace")
    return {name: text, f"{name}_lines": text.splitlines()}
