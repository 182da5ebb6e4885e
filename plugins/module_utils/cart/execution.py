# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a command of a tool image in running containers, and change nothing there.

Each command runs in the container's pid, network, ipc and uts namespaces and in a private view of its files (private_view.py),
below a supervisor (supervisor.py) that ends whatever it leaves. Commands in one container cannot disturb each other, nor can
a detach disturb them.
"""

from __future__ import annotations

import os
import shlex
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import store
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attachments import Attachment, find_attachments
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.image_mounts import (
    ImageFinder,
    create_mount,
    create_mounts,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.jobs import Command, ExecutionError, Job, Result
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.programs import find_program, read_environment
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.sessions import Server, run_jobs
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    Container,
    ContainerError,
    check_running,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import Target, open_targets
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.users import User, find_user


def parse_command(
    *,
    argv: list[str] | None,
    cmd: str | None,
    env: dict[str, Any],
    stdin: str | None,
    chdir: str,
    timeout_s: float | None,
) -> Command:
    """A Command from a module's options."""
    try:
        words = argv if argv is not None else shlex.split(cmd or "")
    except ValueError as error:
        raise ExecutionError(f"cmd {cmd!r} cannot be split into words: {error}") from error
    texts = [*words, *map(str, env), *map(str, env.values()), chdir]
    if not words or not words[0]:
        raise ExecutionError("the command is empty: give a program's name first")
    if any("\0" in text for text in texts) or any("=" in name or not name for name in env):
        raise ExecutionError(
            "a command, a folder or a variable holds a NUL character, or a variable's name is empty or holds '='"
        )
    return Command(
        argv=tuple(words),
        env={name: str(value) for name, value in env.items()},
        stdin=None if stdin is None else stdin.encode("utf-8", "surrogateescape"),
        chdir=chdir,
        timeout_s=timeout_s,
    )


def execute(
    containers: Sequence[Container],
    command: Command,
    user: str | None,
    image_name: str | None,
    server: Server,
    *,
    check_mode: bool,
) -> list[dict[str, Any]]:
    """Run COMMAND by SERVER in each of CONTAINERS; what modules return of it. In check mode nothing is run."""
    for container in containers:
        check_running(container)
    with open_targets(containers) as targets:
        places = choose_places(targets, user, image_name)
        if check_mode:
            return []
        with open_jobs(places, command) as jobs:
            results = run_jobs(jobs, server)
    return _report(results, command)


@dataclass(frozen=True)
class Place:
    """Where a command is to run, as whom, and with which image: one that is attached, or one of the store."""

    target: Target
    user: User
    source: store.StoredImage | Attachment


def choose_places(targets: Sequence[Target], user: str | None, image_name: str | None) -> list[Place]:
    """For each of TARGETS who USER is there, and its image: the attached one, or the one of the store called IMAGE_NAME."""
    users = [_find_user_in(target, user) for target in targets]
    return [Place(*one) for one in zip(targets, users, _find_sources(targets, image_name))]


@contextmanager
def open_jobs(places: Sequence[Place], command: Command) -> Iterator[list[Job]]:
    """COMMAND for each of PLACES, each with a mount of its image."""
    with ExitStack() as stack:
        jobs = []
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
            jobs.append(Job(place.target, command, place.user, mount_fd, prefix, program, environment))
        yield jobs


def _find_user_in(target: Target, user: str | None) -> User:
    if user is None:
        return User()
    root_fd = target.process.open("root", os.O_PATH | os.O_DIRECTORY)
    try:
        return find_user(user, root_fd)
    except ContainerError as error:
        raise ContainerError(f"container {target.container.name}: {error}") from error
    finally:
        os.close(root_fd)


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
    if isinstance(source, store.StoredImage):
        with create_mounts(source, 1) as (fd,):
            yield fd
        return
    stored = store.find_image(source.image)
    if stored is not None and stored.digest == source.digest:
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


def _report(results: Sequence[Result], command: Command) -> list[dict[str, Any]]:
    reports = []
    for result in results:
        report = {name: value for name, value in vars(result).items() if name != "error"}
        for name in ("stdout", "stderr"):
            report[name] = report[name].decode("utf-8", "replace")
            report[name + "_lines"] = report[name].splitlines()
        if result.error:
            report["msg"] = result.error
        reports.append(report)
    failures = [f"container {result.container}: {result.error}" for result in results if result.error]
    late = [result.container for result in results if result.timed_out]
    if late:
        failures.append(f"killed after {command.timeout_s:g} s in: {', '.join(late)}")
    if failures:
        raise ExecutionError("; ".join(failures), results=reports)
    return reports
