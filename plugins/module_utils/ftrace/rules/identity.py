# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find out which container starts in a control group, from files that its engine has written before the start.

No engine is asked: it answers about a container only when the start is over, and has forgotten a container with --rm soon after its end.
Docker's shim runs in the folder of the container's bundle, whose mounts lead to Docker's own file about the container. conmon, the monitor
of Podman and CRI-O, has names on its command line. runc and crun keep their state below /run.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import oci
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.asking import WRONG_FORM, parse_json
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container, make_container
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.trust import (
    MAX_BYTES,
    Unreadable,
    read_regular,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rules.new_groups import find_engine_id
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import processes

_SHIM, _MONITOR = "containerd-shim", "conmon"
_DOCKERS_FILE = "config.v2.json"
_DOCKERS_MOUNTS = ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf")
_PID_FILE = "init.pid"  # of a shim
_STATE_FOLDERS = ("/run/runc", "/run/crun")
_MAX_ANCESTORS = 4
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_Errors = (OSError, Unreadable, *WRONG_FORM)


@dataclass(frozen=True)
class Identity:
    """The container that starts, as far as it is known.

    HAS_LABELS is False where its engine keeps labels that cannot be read here.
    """

    container: Container
    has_labels: bool = True


@dataclass(frozen=True)
class Source:
    """The texts that its engine has written about a container that starts, or the runtime's folder with its state.

    The texts are read as soon as the container is seen, and understood later: one that lives for some milliseconds may be gone by then.
    SHIM: the pid of its shim; None if it has none.
    BUNDLE, SPEC: the bundle's folder and configuration. DOCKERS: Docker's file about the container; None if it is not Docker's.
    WORDS: the command line of its monitor; empty if it has none.
    FOLDER: the runtime's folder. PID_FILE: the file with the pid of the first process, which is there until the container is removed.
    """

    shim: int | None = None
    bundle: str = ""
    spec: bytes = b""
    dockers: bytes | None = None
    words: tuple[str, ...] = ()
    folder: str = ""
    pid_file: str = ""

    def read_first(self) -> int | None:
        """Return the pid of the container's first process, which may have ended already; None if nothing tells it (yet)."""
        with suppress(*_Errors):
            if self.folder:
                return int(parse_json(_read(self.folder, "state.json"))["init_process_pid"])
            if self.pid_file:
                return int(_read(*os.path.split(self.pid_file)))
        return None

    def without_texts(self) -> Source:
        """Return the source without the texts, which are long."""
        return replace(self, spec=b"", dockers=None, words=())


class Sources:
    """Finds what knows a container that starts, and remembers where Docker keeps its files."""

    def __init__(self) -> None:
        self._dockers_folder = ""

    def find(self, group: str, pid: int) -> Source | None:
        """Return what knows the container whose first process PID has come into the control group GROUP; None if nothing does (yet)."""
        above = pid
        for _step in range(_MAX_ANCESTORS):
            above = processes.read_parent(above)
            comm = processes.read_comm(above) if above > 1 else ""
            with suppress(*_Errors):
                if comm.startswith(_SHIM):
                    return self._find_shim(above, group) if _is_roots(above) else None
                if comm == _MONITOR:
                    return _find_monitor(above) if _is_roots(above) else None
        for folder in _STATE_FOLDERS:
            path = os.path.join(folder, os.path.basename(group))
            if os.path.isdir(path):
                return Source(folder=path)
        return None

    def _find_shim(self, shim: int, group: str) -> Source:
        """Return what is in the folder in which SHIM runs, the container's bundle, and in Docker's file; raises one of _Errors."""
        bundle, here = os.readlink(f"/proc/{shim}/cwd"), f"/proc/{shim}/cwd"
        identity = find_engine_id(group)
        if identity is None:
            return Source(shim, bundle, _read(here, "config.json"), pid_file=f"{here}/{_PID_FILE}")
        if os.path.basename(bundle) != identity:
            # The containers of a pod have one shim, which runs in the bundle of the first.
            here = f"{here}/../{identity}"
        found = Source(shim, bundle, _read(here, "config.json"), pid_file=f"{here}/{_PID_FILE}")
        folders = [self._dockers_folder] if self._dockers_folder else _list_dockers_folders(parse_json(found.spec))
        for folder in folders:
            with suppress(*_Errors):
                dockers = _read(f"/proc/{shim}/root{folder}/{identity}", _DOCKERS_FILE)
                if self._dockers_folder or parse_json(dockers)["ID"] == identity:
                    self._dockers_folder = folder
                    return replace(found, dockers=dockers)
        return found


def _list_dockers_folders(spec: Mapping[str, Any]) -> list[str]:
    """Return where Docker may keep its containers' files, by the configuration SPEC of a container.

    Docker makes these files of a container beside its own about it, or about the one whose network the container uses. A user may have
    put others in their place.
    """
    sources = [str(mount["source"]) for mount in spec["mounts"] if mount["destination"] in _DOCKERS_MOUNTS]
    return list(dict.fromkeys(os.path.dirname(os.path.dirname(source)) for source in sources))


def _find_monitor(monitor: int) -> Source:
    """Return what process MONITOR, a conmon, has on its command line, and the bundle's configuration; raises one of _Errors."""
    with open(f"/proc/{monitor}/cmdline", "rb") as file:
        words = tuple(file.read(1 << 16).decode("utf-8", "replace").split("\0"))
    values = dict(zip(words, words[1:]))
    bundle = values["-b"]
    spec = _read(f"/proc/{monitor}/root{bundle}", "config.json")
    # The monitor ends with its container, so its own view of files does not last.
    return Source(words=words, bundle=bundle, spec=spec, pid_file=values.get("-p", ""))


def identify(group: str, source: Source) -> Identity | None:
    """Return the container that starts in the control group GROUP, by SOURCE; None if that does not tell."""
    try:
        if source.folder:
            return _ask_runtime(source.folder)
        annotations = {
            str(name): str(value) for name, value in (parse_json(source.spec).get("annotations") or {}).items()
        }
        if source.words:
            return _ask_monitor(source.words, annotations)
        identity = find_engine_id(group) or os.path.basename(source.bundle)
        if source.dockers is not None:
            return Identity(_ask_docker(parse_json(source.dockers), identity))
        return Identity(_make(identity, annotations, "containerd"))
    except _Errors:
        return None


def make_unknown(group: str) -> Container:
    """Return a container of which only the control group GROUP is known."""
    name = os.path.basename(group)
    return Container(find_engine_id(group) or name, name, "running", 0, "", {}, runtime="unknown")


def may_be_roots(pid: int) -> bool:
    """Return True if process PID is in a user namespace of root's: users of the host choose names of their containers."""
    try:
        with processes.Process(pid) as process:
            return process.read_owner() == 0
    except processes.ProcessGone:
        return True  # it has ended already, and has events


def _is_roots(pid: int) -> bool:
    """Return True if process PID is root's, and in the host's user namespace."""
    with suppress(processes.ProcessGone, OSError), processes.Process(pid) as process:
        return process.read_owner() == 0 and os.stat(f"/proc/{pid}").st_uid == 0
    return False


def _read(folder: str, name: str) -> bytes:
    """Return the bytes of the file NAME of FOLDER; raises one of _Errors."""
    fd = os.open(folder, _FOLDER)
    try:
        return read_regular(fd, name, MAX_BYTES)
    finally:
        os.close(fd)


def _ask_docker(found: Mapping[str, Any], identity: str) -> Container:
    """Return the container IDENTITY that Docker's own file about it, FOUND, describes; raises one of _Errors."""
    return make_container(
        id=identity,
        name=str(found["Name"]).lstrip("/"),
        state="running",
        pid=0,
        image=found["Config"].get("Image"),
        labels=found["Config"].get("Labels"),
        runtime="docker",
    )


def _make(identity: str, annotations: dict[str, str], runtime: str, name: str = "") -> Container:
    return make_container(
        id=identity,
        name=oci.make_name(annotations) or annotations.get("nerdctl/name") or name or identity,
        state="running",
        pid=0,
        image=oci.find_image(annotations),
        labels=annotations,
        runtime=runtime,
    )


def _ask_monitor(words: tuple[str, ...], annotations: dict[str, str]) -> Identity:
    """Return the container of a conmon with WORDS as its command line, and with ANNOTATIONS in its bundle; raises one of _Errors."""
    values = dict(zip(words, words[1:]))
    if annotations.get("io.container.manager") == "libpod":  # its labels are in its database only
        return Identity(_make(values["-c"], {}, "podman", values.get("-n", "")), has_labels=False)
    return Identity(_make(values["-c"], annotations, "cri-o", values.get("-n", "")))


def _ask_runtime(folder: str) -> Identity:
    """Return the container with its state in FOLDER, which runc or crun has started for no engine; its name may be all that is known."""
    name, runtime = os.path.basename(folder), os.path.basename(os.path.dirname(folder))
    try:
        texts = (text.partition("=") for text in parse_json(_read(folder, "state.json"))["config"].get("labels") or [])
        return Identity(
            _make(name, {key: value for key, equals, value in texts if equals and key != "bundle"}, runtime)
        )
    except _Errors:
        return Identity(_make(name, {}, runtime), has_labels=False)
