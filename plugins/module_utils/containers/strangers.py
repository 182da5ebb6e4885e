# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers of the host's users: of rootless Podman, of OCI runtimes with state files, and of engines at a user's socket.

Nothing of it is trusted. The user is asked as that user and within bounds (see asking.py), and believed only of processes in the user's own
user and mount namespaces. The OCI runtime is not run: two small files of each container hold everything.
Sources: libcontainer's state.json, crun's status, the OCI runtime specification.
"""

from __future__ import annotations

import json
import os
import re
import stat
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import oci, podman
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.asking import (
    RUNTIME_FOLDERS,
    WRONG_FORM,
    Account,
    Question,
    Unanswered,
    ask_users,
    clean_text,
    find_account,
    limit_memory,
    parse_json,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    Container,
    ContainerError,
    ContainerGoneError,
    make_container,
    open_process,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.control_groups import Place
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.docker_engine import (
    ENGINE_OPTIONS,
    DockerEngine,
    parse_inspected,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.trust import (
    MAX_BYTES,
    Unreadable,
    Untrusted,
    find_owner,
    read_regular,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import bounded
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import ProcessGone, read_start_ticks

TOTAL_S = 14.0  # for all questions to all users for one Host
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NAME = re.compile(r"[A-Za-z0-9_.+@:/-]{1,512}\Z")
_MAX_CONTAINERS = 4096
_MAX_TROUBLES = 3
_READING_S = 1.0  # that remain for a user's files where the user's Podman hangs


class Budget:
    """The seconds that remain for questions to users."""

    def __init__(self, seconds: float) -> None:
        self.left_s = seconds

    @contextmanager
    def spend(self) -> Iterator[None]:
        """Subtract the time that the context takes from the time that is left."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.left_s = max(0.0, self.left_s - (time.monotonic() - start))

    def ask(self, questions: Sequence[Question]) -> list[Any]:
        """Return the answers to QUESTIONS in the time that is left; an Unanswered stands for an answer that is missing."""
        with self.spend():
            return ask_users(questions, self.left_s)

    def run(self, function: Callable[[], Any], share: int) -> Any:
        """Return FUNCTION's result, which JSON has to hold, from a child with 1/SHARE of the time that is left; raises ContainerError."""

        def call(_index: int) -> Any:
            try:
                return {"value": function()}
            except (FleetError, ProcessGone) as error:
                return {"error": str(error)}

        with self.spend():
            if not self.left_s:
                raise ContainerError("no time is left for them")
            (outcome,) = bounded.run(1, call, (), self.left_s / share)
        if isinstance(outcome, OSError):
            raise ContainerError(outcome.strerror or str(outcome))
        if "error" in outcome:
            raise ContainerError(outcome["error"])
        return outcome["value"]


@dataclass
class _Told:
    """A user's answer: containers, the places of their bundles by the containers' keys, and problems."""

    containers: list[Container] = field(default_factory=list)
    places: dict[tuple[int | None, str, str], dict[str, Any]] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)


class Stranger:
    """The containers that a user of the host has listed; the user is asked again only for the description that `podman inspect` gives."""

    name = "user"

    def __init__(self, account: Account, told: _Told, budget: Budget, socket: str = "") -> None:
        self._account = account
        self._told = told
        self._budget = budget
        self._socket = socket
        self._inspected: dict[str, Any] | None = None
        self.label = account.label

    def list_containers(self) -> list[Container]:
        """Return the containers whose processes are the user's, and those that do not run."""
        return self._told.containers

    def describe_troubles(self) -> str:
        """Return the problems with the user's answer as a text for one warning; '' for none."""
        found = self._told.troubles
        more = f"; and {len(found) - _MAX_TROUBLES} more" if len(found) > _MAX_TROUBLES else ""
        return "; ".join(clean_text(trouble) for trouble in found[:_MAX_TROUBLES]) + more

    def inspect(self, container: Container) -> dict[str, Any]:
        """Return a description of CONTAINER in the form of `docker inspect`, by Podman or Docker itself where it answers."""
        place = self._told.places[container.key]
        if "inspected" in place:
            return _sound(dict(place["inspected"]))
        found: dict[str, Any] = {
            "Id": container.id,
            "Name": container.name,
            "State": {"Status": container.state, "Pid": container.pid},
            "Config": {"Image": container.image, "Labels": container.labels},
            "Annotations": container.labels,
            "Bundle": place.get("bundle"),
        }
        if not place.get("program"):
            found.update(self._inspect_podman().get(container.id) or {})
        return _sound(found)

    def _inspect_podman(self) -> dict[str, Any]:
        """Return the descriptions by the user's Podman, which is asked once for all its containers; empty where it does not answer."""
        if self._inspected is None:
            told = self._told
            ids = [other.id for other in told.containers if not told.places[other.key].get("program")]
            account = self._account
            (answer,) = self._budget.ask([Question(account, lambda until: podman.inspect_as(account, ids, until))])
            self._inspected = answer if isinstance(answer, dict) else {}
        return self._inspected

    def refresh(self, container: Container) -> Container:
        """Return a copy of CONTAINER; raises ContainerGoneError where it has ended since the user was asked."""
        if container.pid and read_start_ticks(container.pid) != container.start_ticks:
            raise ContainerGoneError(f"container {container.name} ({container.short_id}) has just ended")
        return replace(container)

    def predict_place(self, _container: Container) -> Place | None:
        """Return None: users choose the control groups of their containers."""
        return None

    def list_shell_words(self, container: Container, variables: list[str], argv: list[str]) -> list[str]:
        """Return the host's command that runs ARGV in CONTAINER on a terminal, with VARIABLES (NAME=VALUE) set."""
        place = self._told.places[container.key]
        if place.get("program"):
            options = [word for variable in variables for word in ("--env", variable)]
            command = [place["program"], "--root", place["root"], "exec", "--tty", *options, container.id, *argv]
        else:
            options = [word for variable in variables for word in ("-e", variable)]
            # A user chooses the runtime's name, so it must not become a command.
            name = "podman" if container.runtime == "podman" or not self._socket else "docker"
            engine = [name, ENGINE_OPTIONS[name], self._socket] if self._socket else [name]
            command = [*engine, "exec", "-it", *options, container.id, *argv]
        return self._account.make_command(command)


def _sound(inspected: dict[str, Any]) -> dict[str, Any]:
    """Return INSPECTED without networks that are no map of names, which all readers expect."""
    settings = inspected.get("NetworkSettings")
    if not isinstance(settings, dict) or not isinstance(settings.get("Networks") or {}, dict):
        return {**inspected, "NetworkSettings": {}}
    return inspected


def find_strangers(budget: Budget) -> list[Stranger]:
    """Return all users with a folder below /run/user, but for root, who have containers or a problem with them."""
    if not os.path.isdir(RUNTIME_FOLDERS):
        return []
    uids = sorted(
        int(name) for name in os.listdir(RUNTIME_FOLDERS) if name.isascii() and name.isdigit() and len(name) < 11
    )
    accounts = [find_account(uid) for uid in uids if 0 < uid < 2**32 - 1]
    questions = [Question(account, _make_gatherer(account)) for account in accounts]
    found = [_make(account, answer, budget) for account, answer in zip(accounts, budget.ask(questions))]
    return [stranger for stranger in found if stranger.list_containers() or stranger.describe_troubles()]


def ask_engine(url: str, uid: int, budget: Budget) -> Stranger:
    """Return the containers of the user UID's engine, which speaks Docker's API at URL."""
    account = find_account(uid)
    (answer,) = budget.ask([Question(account, lambda _until: _gather_engine(url))])
    return _make(account, answer, budget, url)


def find_socket_owner(url: str) -> int:
    """Return the user who may have put an engine at URL, 0 for root or no socket of this host; raises ContainerError if several users may."""
    if not url.startswith("unix://"):
        return 0
    path = os.path.abspath("/" + url[len("unix://") :].lstrip("/"))
    try:
        return find_owner(path)
    except OSError:
        return 0  # no socket is there, which connecting to it will report
    except Untrusted as error:
        raise ContainerError(f"the engine at {url} is not asked: {error}; remove that permission") from error


def _make_gatherer(account: Account) -> Callable[[float], dict[str, Any]]:
    return lambda until: _gather(account, until)


def _make(account: Account, answer: Any, budget: Budget, socket: str = "") -> Stranger:
    told = _Told()
    if isinstance(answer, Unanswered):
        told.troubles.append(str(answer))
    else:
        try:
            told.troubles += [str(trouble) for trouble in answer["troubles"]]
            for entry in answer["containers"]:
                _believe(account, entry, told)
        except WRONG_FORM as error:
            told.troubles.append(f"the answer has the wrong form ({type(error).__name__})")
    return Stranger(account, told, budget, socket)


def _believe(account: Account, entry: dict[str, Any], told: _Told) -> None:
    """Add the container of ENTRY to TOLD, unless ENTRY has the wrong form or names a process that is not ACCOUNT's."""
    place = entry.pop("place")
    claimed = entry.pop("claimed_ticks", None)
    try:
        for word in (entry["id"], entry["name"], entry["state"]):
            if not isinstance(word, str) or not _NAME.match(word):
                raise ValueError(f"{word!r} is no id, name or state of a container")
        if not str(entry.get("image") or "").isprintable():
            raise ValueError("an image's name has control characters")
        json.dumps(entry.get("labels"), ensure_ascii=False).encode("utf-8")  # no manifest can hold lone surrogates
        pid = entry.get("pid") or 0
        entry["start_ticks"] = read_start_ticks(pid) if isinstance(pid, int) and 1 < pid < 1 << 22 else None
        container = make_container(**entry, owner_uid=account.uid, may_mount=True)
    except WRONG_FORM as error:
        told.troubles.append(f"a container is left out: {error}")
        return
    if place.get("program"):
        container = _judge(container, claimed)
    if container.key in told.places:
        told.troubles.append(f"container {container.name} is left out: its id is there twice")
        return
    if container.state not in ("running", "paused"):
        container = replace(container, pid=0, start_ticks=None)
    else:
        try:
            with open_process(container):
                pass
        except ContainerGoneError:
            return
        except (ContainerError, OSError) as error:
            told.troubles.append(f"container {container.name} is left out: {error}")
            return
    told.places[container.key] = place
    told.containers.append(container)


def _judge(container: Container, claimed_ticks: Any) -> Container:
    """Return CONTAINER of an OCI runtime with the state that its process tells: without that process it has ended."""
    if container.state == "created":
        return container
    if container.start_ticks is None or container.start_ticks != claimed_ticks:
        return replace(container, state="exited")
    return replace(container, state="paused" if oci.is_frozen(container.pid) else "running")


# The functions below run as the user.


def _gather_engine(url: str) -> dict[str, Any]:
    limit_memory()
    engine = DockerEngine(url)
    found, troubles = [], []
    for listed in engine.list_containers()[:_MAX_CONTAINERS]:
        try:
            inspected = engine.inspect(listed)
            container = parse_inspected(inspected, engine.name)
        except ContainerError as error:
            troubles.append(str(error))
            continue
        entry = {key: getattr(container, key) for key in ("id", "name", "state", "pid", "image", "labels", "runtime")}
        found.append({**entry, "place": {"inspected": inspected}})
    return {"containers": found, "troubles": troubles}


def _gather(account: Account, until: float) -> dict[str, Any]:
    """Return the containers that ACCOUNT has below its own /run/user/UID."""
    found: list[dict[str, Any]] = []
    troubles: list[str] = []
    top = f"{RUNTIME_FOLDERS}/{account.uid}"
    if _is_folder(f"{top}/libpod"):
        try:
            found += podman.list_as(account, until - _READING_S)
        except ContainerError as error:
            troubles.append(str(error))
    reader = _Reader(MAX_BYTES)
    limit_memory()
    for program in ("runc", "crun"):
        known = {entry["id"] for entry in found if isinstance(entry["id"], str)}
        found += [
            entry for entry in _gather_states(f"{top}/{program}", program, reader, troubles) if entry["id"] not in known
        ]
    return {"containers": found[:_MAX_CONTAINERS], "troubles": troubles[:_MAX_CONTAINERS]}


def _is_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path, follow_symlinks=False).st_mode)
    except OSError:
        return False


class _Reader:
    """Reads files, with a bound of MAX_BYTES for all of them together."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes

    def read_json(self, fd: int, name: str) -> Any:
        """Return the document in the file NAME of the folder FD. Raises OSError, Unreadable, and the exceptions in WRONG_FORM."""
        text = read_regular(fd, name, self._left)
        self._left -= len(text)
        return parse_json(text)


def _gather_states(path: str, default_runtime: str, reader: _Reader, troubles: list[str]) -> list[dict[str, Any]]:
    """Return the containers with state in the folder PATH, which is not followed if it is a link."""
    if not os.path.lexists(path):
        return []
    found: list[dict[str, Any]] = []
    try:
        fd = os.open(path, _FOLDER)
    except OSError as error:
        troubles.append(f"{path}: {error.strerror}")
        return found
    try:
        names = _list_names(fd)
        if len(names) == _MAX_CONTAINERS:
            troubles.append(f"{path}: of more than {_MAX_CONTAINERS} containers the rest is left out")
        for name in names:
            try:
                folder = os.open(name, _FOLDER, dir_fd=fd)
            except OSError:
                continue  # a file, or gone
            try:
                entry = _read_state(folder, name, reader)
                if entry:
                    entry["place"]["root"] = path
                    found.append({"runtime": default_runtime, **entry})
            except FileNotFoundError:
                continue
            except (OSError, Unreadable, *WRONG_FORM) as error:
                troubles.append(f"{path}/{name}: {type(error).__name__} {error}")
            finally:
                os.close(folder)
    finally:
        os.close(fd)
    return found


def _list_names(fd: int) -> list[str]:
    names = []
    with os.scandir(fd) as entries:
        for entry in entries:
            names.append(entry.name)
            if len(names) >= _MAX_CONTAINERS:
                break
    return sorted(names)


def _read_state(fd: int, name: str, reader: _Reader) -> dict[str, Any] | None:
    """Return the fields in the state of the container NAME in the folder FD; None where it has no state."""
    state_name = "created" if _has(fd, "exec.fifo") else "running"
    if _has(fd, "state.json"):
        state = reader.read_json(fd, "state.json")
        labels = dict(text.partition("=")[::2] for text in state["config"].get("labels") or [] if "=" in text)
        bundle = labels.pop("bundle", None)
        fields = {"pid": state["init_process_pid"], "claimed_ticks": state["init_process_start"]}
        place = {"program": "runc", "bundle": bundle}
    elif _has(fd, "status"):
        state = reader.read_json(fd, "status")
        bundle = state["bundle"]
        fields = {"pid": state["pid"], "claimed_ticks": state["process-start-time"]}
        labels = _read_annotations(fd, bundle, reader)
        place = {"program": "crun", "bundle": bundle}
    else:
        return None
    if not all(isinstance(text, str) for pair in labels.items() for text in pair):
        raise ValueError("an annotation is no text")
    manager = {"runtime": "podman"} if labels.get("io.container.manager") == "libpod" else {}
    return {
        **fields,
        **manager,
        "id": name,
        "name": oci.make_name(labels) or name,
        "state": state_name,
        "image": oci.find_image(labels),
        "labels": labels,
        "place": place,
    }


def _has(fd: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
        return True
    except FileNotFoundError:
        return False


def _read_annotations(fd: int, bundle: str, reader: _Reader) -> dict[str, str]:
    """Return the annotations from crun's copy of the container's configuration, or from the bundle."""
    if not _has(fd, "config.json"):
        try:
            fd = os.open(bundle, _FOLDER)
        except FileNotFoundError:
            return {}
        try:
            return dict(reader.read_json(fd, "config.json").get("annotations") or {})
        finally:
            os.close(fd)
    return dict(reader.read_json(fd, "config.json").get("annotations") or {})
