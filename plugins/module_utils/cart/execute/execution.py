# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands of a tool image in running containers, which leave the containers unchanged.

Each command runs in the container's control groups and namespaces, in a private view of its files (private_view.py), and with the
requested rights (confinement.py). A supervisor (supervisor.py) ends the processes that the command leaves.
Neither other commands in the same container nor a detach disturb it.
"""

from __future__ import annotations

import errno
import functools
import os
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Iterator, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import store
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach.attachments import Attachment, find_tools
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.confinement import (
    choose_rights,
    list_namespaces,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.jobs import (
    CONTAINER,
    HOST,
    HOST_NAMESPACES,
    NAMESPACES,
    Command,
    ExecutionError,
    Job,
    Output,
    Result,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.memory import MemoryWatch
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.programs import (
    find_program,
    is_in_image,
    read_environment,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.reports import (
    describe_result,
    note_failures,
    report_results,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.server import Server
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.sessions import run_jobs
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.sinks import open_sinks
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.image_mounts import (
    ImageFinder,
    create_mount,
    create_mounts,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    Container,
    ContainerError,
    ContainerGoneError,
    check_running,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.sharing import find_shared
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import Target, open_targets
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.users import (
    NO_HOME,
    User,
    UserError,
    find_homes,
    find_users,
    is_id,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups, id_maps, processes
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.mounts import Mount, read_mounts
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import Process, ProcessGone


def execute(
    containers: Sequence[Container],
    outcome: Outcome,
    command: Command,
    server: Server,
    output: Output,
    *,
    check_mode: bool,
) -> list[dict[str, Any]]:
    """Run COMMAND by SERVER in each of CONTAINERS, and return a report for each container; in check mode nothing is run.

    OUTCOME gets the containers that refuse the command, in which it is killed or fails, or whose output cannot be kept.
    """
    for container in containers:
        with outcome.serve(container):
            check_running(container)
    reports: dict[str, dict[str, Any]] = {}
    with open_targets(outcome.list_left(containers), refuse=outcome.fail) as targets:
        places = choose_places(targets, outcome, command)
        if check_mode:
            return []
        with open_jobs(places, outcome, command) as jobs:
            sinks = open_sinks([job.target.container for job in jobs], output)
            results = run_jobs(jobs, sinks, server)
            for job, result in zip(jobs, results):
                _explain_kill(job, result)
            reports = {report["id"]: report for report in report_results(results, sinks, output)}
    for failure in outcome.as_result():
        refused = Result(failure["container"], failure["id"], rights=command.rights)
        reports[failure["id"]] = describe_result(refused, [failure["msg"]])
    ordered = [reports[container.id] for container in containers]
    note_failures(ordered, outcome, command)
    return ordered


def _explain_kill(job: Job, result: Result) -> None:
    """Note in RESULT, the end of JOB, that the kernel has killed the command for want of memory."""
    if not result.error:
        result.error = job.explain_kill(result.rc)
        result.oom_killed = bool(result.error)


@dataclass(frozen=True)
class Place:
    """A container in which a command is to run.

    USER: the user to run as; None where nobody was named. HOME: that user's folder in the container's terms.
    SOURCE: an attached image, or one of the store. SHARED: the namespaces that others are in, too, and who (sharing.find_shared).
    """

    target: Target
    user: User | None
    home: str
    source: store.StoredImage | Attachment
    shared: Mapping[str, str]


def choose_places(targets: Sequence[Target], outcome: Outcome, command: Command) -> list[Place]:
    """Return for each of TARGETS the user there that COMMAND names, and the image: the attached one, or the one of that name in the store.

    Targets in which these cannot be found are left out; OUTCOME gets the reasons.
    """
    users: dict[str, User | None] = {}
    for target, user_here in zip(targets, _find_users_in(targets, command.user, command)):
        if isinstance(user_here, ContainerError):
            outcome.fail(target, user_here)
        else:
            users[target.id] = user_here
    sources = {}
    finder = ImageFinder()
    find_stored = functools.lru_cache(maxsize=None)(_find_stored)
    for target in outcome.list_left(targets):
        with outcome.serve(target):
            sources[target.id] = find_tools(target, finder, command.image) or find_stored(command.image or "default")
    left = outcome.list_left(targets)
    kinds = list_namespaces(command)
    shared = find_shared(left, kinds) if kinds else [{}] * len(left)
    homes = _find_homes([target for target in left if users[target.id] is None], command)
    places = []
    for target, others in zip(left, shared):
        user_here = users[target.id]
        home = homes[target.id] if user_here is None else user_here.home
        places.append(Place(target, user_here, home, sources[target.id], others))
    return places


@contextmanager
def open_jobs(places: Sequence[Place], outcome: Outcome, command: Command) -> Iterator[list[Job]]:
    """Yield COMMAND as a job for each of PLACES, with a mount of its image; OUTCOME gets the places in which it cannot be run."""
    with ExitStack() as stack:
        jobs = []
        host_mounts = read_mounts("self", " - cgroup")
        with open("/proc/self/cgroup", "rb") as file:
            own_groups = cgroups.parse_cgroup(file.read())
        for place in places:
            with outcome.serve(place.target), ExitStack() as mine:
                try:
                    jobs.append(_open_job(place, command, mine, own_groups, host_mounts))
                except (OSError, ProcessGone) as error:
                    raise ExecutionError(f"it cannot be entered, it may have just ended: {error}") from error
                stack.push(mine.pop_all())
        yield jobs


def _open_job(
    place: Place,
    command: Command,
    stack: ExitStack,
    own_groups: list[cgroups.Membership],
    host_mounts: list[Mount],
) -> Job:
    """Return the job for COMMAND at PLACE; STACK closes what the job holds."""
    source = place.source
    mount_fd = stack.enter_context(_create_mount(source))
    prefix = source.prefix if isinstance(source, store.StoredImage) else source.path
    variables = read_environment(mount_fd, prefix)
    program = find_program(command.argv[0], mount_fd, prefix, variables["PATH"])
    if "mnt" in command.namespaces:
        command = _adapt(command, program, mount_fd, prefix, is_sealed=_is_sealed(source))
    rights = choose_rights(place.target, place.user, command, place.shared)
    wanted_groups = cgroups.parse_cgroup(place.target.process.read("cgroup"))
    groups = stack.enter_context(_open_groups(wanted_groups, own_groups, host_mounts))
    memory = MemoryWatch(wanted_groups, host_mounts, place.target.id)
    environment = {"HOME": place.target.container.home or place.home, **variables, **command.env}
    return Job(place.target, command, rights, mount_fd, prefix, program, environment, groups, memory)


def _is_sealed(source: store.StoredImage | Attachment) -> bool:
    """Return True if the builder of SOURCE's image says that its programs load no code of the container."""
    image = source if isinstance(source, store.StoredImage) else store.find_image(source.image)
    return image is not None and image.digest == source.digest and image.manifest.get("sealed") is True


def _adapt(command: Command, program: str, mount_fd: int, prefix: str, *, is_sealed: bool) -> Command:
    """Return COMMAND with the rights that PROGRAM may have, depending on the image of MOUNT_FD at PREFIX."""
    if not is_in_image(program, mount_fd, prefix):
        usual = HOST_NAMESPACES if command.rights == HOST else NAMESPACES
        if command.capabilities is not None or command.namespaces != usual:
            raise ExecutionError(
                f"{program} is not of the image, so it is run with rights=container: leave out `namespaces` and `capabilities`, or"
                " name a program of the image"
            )
        return replace(command, rights=CONTAINER, namespaces=NAMESPACES)
    if command.rights == HOST and not command.trust_container and not is_sealed:
        raise ExecutionError(
            "rights=host: the image's programs may load code of the container (`unsealed` in its manifest says why), which would have"
            " the rights of the host's root: use rights=tools, an image of Debian packages, or trust_container=true"
        )
    return command


@contextmanager
def _open_groups(
    wanted: list[cgroups.Membership], own: list[cgroups.Membership], host_mounts: list[Mount]
) -> Iterator[dict[str, int]]:
    """Yield descriptors to join the WANTED control groups, by hierarchy, without the OWN ones of this process."""
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
                    f"its control group {membership.path} of {hierarchy} cannot be joined: {error.strerror}"
                ) from error
            stack.callback(os.close, groups[hierarchy])
        yield groups


def _find_users_in(
    targets: Sequence[Target], spec: str | None, command: Command
) -> Sequence[User | ContainerError | None]:
    """Return the user that SPEC means in each of TARGETS, in the host's numbers, or the error; None where nobody is named.

    A command without the container's files gets a user of the host.
    """
    if spec is None and (command.rights != HOST or "user" not in command.namespaces):
        return [None for _target in targets]
    inside = "mnt" in command.namespaces
    with _open_roots(targets, inside=inside) as roots:
        users = find_users("0:0" if spec is None else spec, list(roots.values()))
    if spec is None:  # the host's root gets no groups
        users = [replace(user, groups=()) if isinstance(user, User) else user for user in users]
    found = dict(zip(roots, users))
    gone = ContainerGoneError("it has just ended")
    settled = [_settle_user(target, found.get(target.id, gone), command) for target in targets]
    if spec is None or not inside or command.rights != HOST:
        return settled
    return [_refuse_hidden_root(spec, user) for user in settled]


def _find_homes(targets: Sequence[Target], command: Command) -> dict[str, str]:
    """Return the homes of the users that COMMAND runs as in TARGETS, by the container's id, where nobody is named."""
    uids: dict[str, int | None] = {}
    with _open_roots(targets, inside="mnt" in command.namespaces) as roots:
        for target in targets:
            with suppress(ProcessGone):
                uids[target.id] = 0 if command.rights == HOST else _read_uid(target.process)
        known = [key for key in roots if uids.get(key) is not None]
        homes = find_homes([uids[key] or 0 for key in known], [roots[key] for key in known])
    return {**dict.fromkeys((target.id for target in targets), NO_HOME), **dict(zip(known, homes))}


def _read_uid(process: Process) -> int | None:
    """Return the user of PROCESS in the numbers of its user namespace; None where the namespace has no number for the user."""
    outside = int(processes.parse_status(process.read("status"))["Uid"].split()[1])
    return id_maps.find_inside(outside, id_maps.parse_id_map(process.read("uid_map")))


@contextmanager
def _open_roots(targets: Sequence[Target], *, inside: bool) -> Iterator[dict[str, int]]:
    """Yield descriptors of the roots of TARGETS (unless INSIDE, of the host) by the container's id, without containers that have ended."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    with ExitStack() as stack:
        roots = {}
        for target in targets:
            with suppress(ProcessGone):
                roots[target.id] = target.process.open("root", flags) if inside else os.open("/", flags)
                stack.callback(os.close, roots[target.id])
        yield roots


def _settle_user(target: Target, user: User | ContainerError, command: Command) -> User | ContainerError:
    if not isinstance(user, User) or not {"mnt", "user"} & set(command.namespaces):
        return user
    try:
        return _find_outside(user, target.process)
    except UserError as error:
        return error
    except ProcessGone:
        return ContainerGoneError("it has just ended")


def _refuse_hidden_root(spec: str, user: User | ContainerError) -> User | ContainerError:
    """Return USER, unless the container's files map the name SPEC to the host's root: the caller meant somebody else then."""
    name = spec.partition(":")[0]
    if not isinstance(user, User) or user.uid != 0 or name == "root" or is_id(name):
        return user
    return UserError(
        f"its /etc/passwd says that user {name!r} is number 0, and with rights=host that is the host's root: give the number of the user"
        " that is meant, or root"
    )


def _find_outside(user: User, process: Process) -> User:
    """Return USER, given in the numbers of PROCESS's user namespace, in the host's numbers."""
    uids, gids = (id_maps.parse_id_map(process.read(name)) for name in ("uid_map", "gid_map"))
    uid, gid = id_maps.find_outside(user.uid, uids), id_maps.find_outside(user.gid, gids)
    if uid is None or gid is None:
        raise UserError(f"its user namespace has no user {user.uid} with group {user.gid}")
    groups = (id_maps.find_outside(group, gids) for group in user.groups)
    return replace(user, uid=uid, gid=gid, groups=tuple(group for group in groups if group is not None))


def _find_stored(name: str) -> store.StoredImage:
    """Return the image of the store called NAME; raises ImageError unless it fits this host."""
    image = store.get_image(name)
    store.check_manifest(image.manifest)
    return image


@contextmanager
def _create_mount(source: store.StoredImage | Attachment) -> Iterator[int]:
    """Yield a detached mount of SOURCE as a descriptor."""
    stored = source
    if not isinstance(stored, store.StoredImage):
        stored = store.StoredImage(stored.image, stored.digest, {"format": stored.format})
    if isinstance(source, store.StoredImage) or os.path.exists(stored.path):
        with create_mounts(stored, 1) as (fd,):
            yield fd
        return
    # The store has replaced the image since it was attached, but its loop device exists for as long as it is attached.
    device = next((found for found in ImageFinder().loop_devices if found.device == source.device), None)
    if device is None:
        raise ExecutionError(
            f"its image {source.image!r} was replaced in the store or detached just now: detach it, or say with image which one to use"
        )
    held_fd = os.open(device.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if source.device not in {found.device for found in ImageFinder().loop_devices}:
            raise ExecutionError("the image was just detached; try again")
        fd = create_mount(device.path, source.format)
    finally:
        os.close(held_fd)
    try:
        yield fd
    finally:
        os.close(fd)
