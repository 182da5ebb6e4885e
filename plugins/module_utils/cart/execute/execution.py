# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a command of a tool image in running containers, and change nothing there.

Each command runs in the container's control groups and namespaces and in a private view of its files (private_view.py), with the
rights that were asked for (confinement.py), and a supervisor (supervisor.py) ends whatever it leaves.
Commands in one container cannot disturb each other, nor can a detach disturb them.
"""

from __future__ import annotations

import base64
import errno
import functools
import os
import shlex
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
    TOOLS,
    Command,
    ExecutionError,
    Job,
    Output,
    Result,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.programs import (
    find_program,
    is_in_image,
    read_environment,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.server import Server
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.sessions import run_jobs
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.sinks import STREAMS, Sink, open_sinks
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
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome, Who
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
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import capabilities, cgroups, id_maps, processes
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.mounts import Mount, read_mounts
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import Process, ProcessGone
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape

_MAX_QUOTED = 200


def parse_command(
    *,
    argv: list[str] | None,
    cmd: str | None,
    env: dict[str, Any],
    stdin: str | None,
    chdir: str,
    timeout_s: float | None,
    namespaces: Sequence[str] | None = None,
    rights: str = TOOLS,
    chosen: Sequence[str] | None = None,
    trust_container: bool = False,
) -> Command:
    """Return the Command that a module's options mean; CHOSEN are names of capabilities."""
    try:
        words = argv if argv is not None else shlex.split(cmd or "")
    except ValueError as error:
        raise ExecutionError(f"cmd {cmd!r} cannot be split into words: {error}") from error
    variables = {str(name): _spell(str(name), value) for name, value in env.items()}
    texts = [*words, *variables, *variables.values(), chdir]
    if not words or not words[0]:
        raise ExecutionError("the command is empty: give a program's name first")
    if any("\0" in text for text in texts) or any("=" in name or not name for name in variables):
        raise ExecutionError(
            "a command, a folder or a variable holds a NUL character, or a variable's name is empty or holds '='"
        )
    if namespaces is not None and not namespaces:
        raise ExecutionError(f"namespaces: name at least one of {', '.join(NAMESPACES)}, or leave the option out")
    if rights == CONTAINER and (namespaces is not None or chosen is not None):
        raise ExecutionError(
            "rights=container: such a command has all of the container's namespaces and the capabilities of its first process; leave"
            " out `namespaces` and `capabilities`, or choose other rights"
        )
    if rights == TOOLS and namespaces is not None and not {"mnt", "pid"} <= set(namespaces):
        raise ExecutionError(
            "namespaces: without mnt or pid a command sees the host's files or processes, which takes rights=host"
        )
    if namespaces is None:
        namespaces = HOST_NAMESPACES if rights == HOST else NAMESPACES
    elif rights == TOOLS:
        # Outside of it the container's capabilities would be the host's.
        namespaces = [*namespaces, *({"user"} - set(namespaces))]
    return Command(
        argv=tuple(words),
        env=variables,
        stdin=None if stdin is None else stdin.encode("utf-8", "surrogateescape"),
        chdir=chdir,
        timeout_s=timeout_s,
        namespaces=tuple(namespaces),
        rights=rights,
        capabilities=None if chosen is None else _parse_capabilities(chosen),
        trust_container=trust_container,
    )


def _spell(name: str, value: Any) -> str:
    """VALUE of the variable NAME as YAML spells it."""
    if isinstance(value, (str, bool, int, float)):
        return str(value).lower() if isinstance(value, bool) else str(value)
    if value is None:
        raise ExecutionError(f"env: {name} has no value; leave it out, or give it an empty text")
    raise ExecutionError(f"env: {name} is a {type(value).__name__}; a variable is a text, such as the value in quotes")


def _parse_capabilities(names: Sequence[str]) -> int:
    try:
        return capabilities.parse_names(names)
    except ValueError as error:
        raise ExecutionError(
            f"capabilities: Linux has none called {str(error)!r}; it has {', '.join(capabilities.NAMES)}"
        ) from error


def execute(
    containers: Sequence[Container],
    outcome: Outcome,
    command: Command,
    user: str | None,
    image_name: str | None,
    server: Server,
    output: Output,
    *,
    check_mode: bool,
) -> list[dict[str, Any]]:
    """Run COMMAND by SERVER in each of CONTAINERS and return what modules return of it; in check mode nothing is run.

    OUTCOME gets those that refuse it, in which it is killed, or whose output cannot be kept.
    """
    for container in containers:
        with outcome.serve(container):
            check_running(container)
    reports: dict[str, dict[str, Any]] = {}
    with open_targets(outcome.list_left(containers), refuse=outcome.fail) as targets:
        places = choose_places(targets, outcome, command, user, image_name)
        if check_mode:
            return []
        with open_jobs(places, outcome, command) as jobs:
            sinks = open_sinks([job.target.container for job in jobs], output)
            reports = {report["id"]: report for report in _report(run_jobs(jobs, sinks, server), sinks, output)}
    for failure in outcome.as_result():
        refused = Result(failure["container"], failure["id"], rights=command.rights)
        reports[failure["id"]] = _describe(refused, [failure["msg"]])
    ordered = [reports[container.id] for container in containers]
    _note_failures(ordered, outcome, command)
    return ordered


@dataclass(frozen=True)
class Place:
    """Where COMMAND is to run, as whom (None: nobody was named), and with which image: one that is attached, or one of the store.

    HOME is the folder of whom it is run as, in the container's terms.
    SHARED says which of the container's namespaces others are in, and who (sharing.find_shared).
    """

    target: Target
    user: User | None
    home: str
    source: store.StoredImage | Attachment
    shared: Mapping[str, str]


def choose_places(
    targets: Sequence[Target], outcome: Outcome, command: Command, user: str | None, image_name: str | None
) -> list[Place]:
    """Return for TARGETS who USER is there, and the image: the attached one, or the one of the store called IMAGE_NAME.

    Those in which that cannot be found are left out, and OUTCOME gets what is wrong.
    """
    users: dict[str, User | None] = {}
    for target, user_here in zip(targets, _find_users_in(targets, user, command)):
        if isinstance(user_here, ContainerError):
            outcome.fail(target, user_here)
        else:
            users[target.id] = user_here
    sources = {}
    finder = ImageFinder()
    find_stored = functools.lru_cache(maxsize=None)(_find_stored)
    for target in outcome.list_left(targets):
        with outcome.serve(target):
            sources[target.id] = find_tools(target, finder, image_name) or find_stored(image_name or "default")
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
    """COMMAND for each of PLACES, each with a mount of its image. Where it cannot be run OUTCOME gets the reason."""
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
    """Return the job that COMMAND is at PLACE; STACK lets go of what it holds."""
    source = place.source
    mount_fd = stack.enter_context(_create_mount(source))
    prefix = source.prefix if isinstance(source, store.StoredImage) else source.path
    variables = read_environment(mount_fd, prefix)
    program = find_program(command.argv[0], mount_fd, prefix, variables["PATH"])
    if "mnt" in command.namespaces:
        command = _adapt(command, program, mount_fd, prefix, is_sealed=_is_sealed(source))
    rights = choose_rights(place.target, place.user, command, place.shared)
    groups = stack.enter_context(_open_groups(place.target, own_groups, host_mounts))
    environment = {"HOME": place.home, **variables, **command.env}
    return Job(place.target, command, rights, mount_fd, prefix, program, environment, groups)


def _is_sealed(source: store.StoredImage | Attachment) -> bool:
    """Return True if who built the image of SOURCE says that its programs load no code of the container."""
    image = source if isinstance(source, store.StoredImage) else store.find_image(source.image)
    return image is not None and image.digest == source.digest and image.manifest.get("sealed") is True


def _adapt(command: Command, program: str, mount_fd: int, prefix: str, *, is_sealed: bool) -> Command:
    """Return COMMAND with the rights that it may have for PROGRAM and the image at PREFIX, behind MOUNT_FD."""
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
                    f"its control group {membership.path} of {hierarchy} cannot be joined: {error.strerror}"
                ) from error
            stack.callback(os.close, groups[hierarchy])
        yield groups


def _find_users_in(
    targets: Sequence[Target], spec: str | None, command: Command
) -> Sequence[User | ContainerError | None]:
    """Return who SPEC is in each of TARGETS, in the host's numbers, or why that is not known; None where nobody is named.

    Without the container's files it is a user of the host.
    """
    if spec is None and (command.rights != HOST or "user" not in command.namespaces):
        return [None for _target in targets]
    inside = "mnt" in command.namespaces
    with _open_roots(targets, inside=inside) as roots:
        users = find_users("0:0" if spec is None else spec, list(roots.values()))
    if spec is None:  # the host's root, who is in no group for it
        users = [replace(one, groups=()) if isinstance(one, User) else one for one in users]
    found = dict(zip(roots, users))
    gone = ContainerGoneError("it has just ended")
    settled = [_settle_user(target, found.get(target.id, gone), command) for target in targets]
    if spec is None or not inside or command.rights != HOST:
        return settled
    return [_refuse_hidden_root(spec, one) for one in settled]


def _find_homes(targets: Sequence[Target], command: Command) -> dict[str, str]:
    """Return the homes of whom COMMAND is run as in TARGETS where nobody is named, by the container's id."""
    uids: dict[str, int | None] = {}
    with _open_roots(targets, inside="mnt" in command.namespaces) as roots:
        for target in targets:
            with suppress(ProcessGone):
                uids[target.id] = 0 if command.rights == HOST else _read_uid(target.process)
        known = [one for one in roots if uids.get(one) is not None]
        homes = find_homes([uids[one] or 0 for one in known], [roots[one] for one in known])
    return {**dict.fromkeys((target.id for target in targets), NO_HOME), **dict(zip(known, homes))}


def _read_uid(process: Process) -> int | None:
    """Return whom PROCESS is run as, in its user namespace's numbers; None where that has none for it."""
    outside = int(processes.parse_status(process.read("status"))["Uid"].split()[1])
    return id_maps.find_inside(outside, id_maps.parse_id_map(process.read("uid_map")))


@contextmanager
def _open_roots(targets: Sequence[Target], *, inside: bool) -> Iterator[dict[str, int]]:
    """Give the roots of TARGETS as descriptors by the container's id, or, unless INSIDE, that of the host; without what has ended."""
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
    """Return USER, unless a container's files have made the host's root of the name SPEC: whoever gave that asked for somebody else."""
    name = spec.partition(":")[0]
    if not isinstance(user, User) or user.uid != 0 or name == "root" or is_id(name):
        return user
    return UserError(
        f"its /etc/passwd says that user {name!r} is number 0, and with rights=host that is the host's root: give the number of the user"
        " that is meant, or root"
    )


def _find_outside(user: User, process: Process) -> User:
    """USER of PROCESS's user namespace in the host's numbers."""
    uids, gids = (id_maps.parse_id_map(process.read(name)) for name in ("uid_map", "gid_map"))
    uid, gid = id_maps.find_outside(user.uid, uids), id_maps.find_outside(user.gid, gids)
    if uid is None or gid is None:
        raise UserError(f"its user namespace has no user {user.uid} with group {user.gid}")
    groups = (id_maps.find_outside(group, gids) for group in user.groups)
    return replace(user, uid=uid, gid=gid, groups=tuple(group for group in groups if group is not None))


def _find_stored(name: str) -> store.StoredImage:
    """Return the image of the store called NAME, which fits this host."""
    image = store.get_image(name)
    store.check_manifest(image.manifest)
    return image


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
            f"its image {source.image!r} was replaced in the store or detached just now: detach it, or say with image which one to use"
        )
    held_fd = os.open(device.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if source.device not in {one.device for one in ImageFinder().loop_devices}:
            raise ExecutionError("the image was just detached; try again")
        fd = create_mount(device.path, source.format)
    finally:
        os.close(held_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def _report(results: Sequence[Result], sinks: Sequence[Mapping[str, Sink]], output: Output) -> list[dict[str, Any]]:
    reports = []
    for result, streams in zip(results, sinks):
        errors = [result.error]
        texts: dict[str, Any] = {}
        for name in STREAMS:
            texts.update(_report_stream(name, streams[name], output))
            try:
                streams[name].close()
            except OSError as error:  # a file system over a network tells of its failures late
                errors.append(f"its {name} cannot be kept: {error.strerror}")
        reports.append({**_describe(result, errors), **texts})
    return reports


def _describe(result: Result, errors: Sequence[str]) -> dict[str, Any]:
    """Return what modules return of RESULT but for its output, with those of ERRORS that are not empty."""
    report = {name: value for name, value in vars(result).items() if name != "error"}
    if any(errors):
        report["msg"] = escape("; ".join(filter(None, errors)))
    return report


def _note_failures(reports: Sequence[Mapping[str, Any]], outcome: Outcome, command: Command) -> None:
    """Note in OUTCOME whose of REPORTS tell of an error, of the end of COMMAND's time, or of an exit code that is not 0."""
    for report in reports:
        who = Who(report["container"], report["id"])
        if "msg" in report:
            outcome.fail(who, ExecutionError(report["msg"]))
        if report["timed_out"]:
            outcome.fail(who, ExecutionError(f"killed after {command.timeout_s:g} s"))
        elif report["rc"] and "msg" not in report:
            outcome.blame(who, f"the command ended with exit code {report['rc']}{_quote_end(report)}")


def _quote_end(report: Mapping[str, Any]) -> str:
    """The last line that the command of REPORT wrote to its standard error, or where that is."""
    lines = [line.strip() for line in report.get("stderr_lines", ()) if line.strip()]
    if lines:
        return f": {lines[-1][:_MAX_QUOTED]}"
    return f"; {report['stderr_path']} has what it said" if report["stderr_size"] and "stderr_path" in report else ""


def _report_stream(name: str, sink: Sink, output: Output) -> dict[str, Any]:
    if output.dest is not None:
        return {f"{name}_path": sink.path}
    data = sink.read()
    if output.encoding == "base64":
        return {name: base64.b64encode(data).decode("ascii")}
    text = data.decode("utf-8", "replace")
    return {name: text, f"{name}_lines": text.splitlines()}
