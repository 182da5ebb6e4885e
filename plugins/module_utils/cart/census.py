# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A list of everything on a host that belongs to this collection, which a cleanup has to remove."""

from __future__ import annotations

import glob
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import exposure, store
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach import expiry, tool_users
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute import scratch
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.image_mounts import ImageFinder
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import locks, mounts, processes
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.mount_tables import TableTooLong
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import dynamic_events, tracefs
from ansible_collections.crashcart.fleet.plugins.module_utils.names import (
    BOOT_PROGRAM,
    BOOT_RULES,
    BOOT_UNIT_FILE,
    HOOK_FILES,
    RECORDER_LOCK,
    RUN,
    STATE,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape

_CONTAINER_ID = re.compile(rb"[0-9a-f]{64}")
DIRECTORIES = (STATE, RUN)


def take_census(seconds: float) -> tuple[dict[str, list[Any]], list[int]]:
    """Return everything of the collection on the host, by kind, and the users whose mount namespaces were not all looked at.

    The kinds are loop devices, mounts (in every mount namespace that can be seen), connections' folders, trace instances, probes, processes and
    directories. SECONDS limits the time for mount namespaces of the host's users.
    """
    users, omitted = list_mount_users(seconds=seconds)
    found = {
        "loop_devices": [_describe_loop_device(device) for device in ImageFinder().loop_devices],
        "mounts": describe_users(users, {}),
        "scratch": scratch.list_mounts(),
        "instances": tracefs.list_own_instances(),
        "probes": _list_probes(),
        "watchdogs": [f"pid {pid}" for pid in (expiry.find_watchdog(),) if pid is not None],
        "recorders": [f"pid {pid}" for pid in (locks.find_holder(RECORDER_LOCK),) if pid is not None],
        "start_hook": [path for pattern in HOOK_FILES for path in sorted(glob.glob(pattern))],
        "boot_rules": [path for path in (BOOT_RULES, BOOT_UNIT_FILE, BOOT_PROGRAM) if os.path.lexists(path)],
        "directories": [path for path in DIRECTORIES if os.path.lexists(path)],
    }
    return found, omitted


def _describe_loop_device(device: mounts.LoopDevice) -> str:
    """Return the device's node and file, and its users where the file is gone: after a lazy detach no mount shows them."""
    text = f"{device.path} ({device.backing_file})"
    if not device.backing_file.endswith(" (deleted)"):
        return text
    users = ", ".join(tool_users.find_device_users(device.device)) or "no process that can be seen"
    return f"{text}, in use by {users}"


@dataclass(frozen=True)
class MountUser:
    """A mount of the collection, and one process that sees it; CONTAINER_ID is '' outside containers."""

    path: str
    pid: int
    comm: str
    container_id: str


def list_mount_users(image_name: str | None = None, seconds: float = 15.0) -> tuple[list[MountUser], list[int]]:
    """Return every mount of an image (called IMAGE_NAME), with one process for each mount namespace, and the users that were left out.

    Without IMAGE_NAME folders of exposed files count, too. Users of the host can make as many mounts as they like: their namespaces
    come last and have SECONDS. A user counts as left out if one of the user's namespaces was; 0 means root, as a container may have a table
    that is too long to be read.
    """
    finder = ImageFinder()
    needles = finder.needles if image_name else (*finder.needles, *exposure.NEEDLES)
    found = []
    omitted = set()
    namespaces = sorted(_find_namespaces(), key=lambda item: item[0] != 0)
    deadline = time.monotonic() + seconds
    for owner, pid in namespaces:
        if owner == 0:
            deadline = time.monotonic() + seconds
        elif time.monotonic() > deadline:
            omitted.add(owner)
            continue
        try:
            here = mounts.read_mounts(pid, *needles)
            paths = [
                image_mount.mount.mount_point
                for image_mount in finder.find(here)
                if image_name in (None, image_mount.name)
            ]
            if image_name is None:
                # Anybody may give a tmpfs the name of ours, but only the host's root can mount a trace's files in it.
                shown = exposure.find_exposures(here)
                paths += [folder.path for folder in shown if owner == 0 or folder.files]
            if not paths:
                continue
            with open(f"/proc/{pid}/cgroup", "rb") as file:
                match = _CONTAINER_ID.search(file.read())
            with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as text:
                comm = text.read().rstrip("\n")
        except TableTooLong:
            omitted.add(owner)
            continue
        except OSError:
            continue  # it ended, or is a zombie
        container_id = match.group(0).decode("ascii") if match else ""
        found += [MountUser(path, pid, comm, container_id) for path in paths]
    return found, sorted(omitted)


def _find_namespaces() -> list[tuple[int, int]]:
    """Return for each mount namespace the user that owns it (0 for root), and a process in it."""
    found: dict[str, tuple[int, int]] = {}
    for pid in sorted(processes.read_pids()):
        with suppress(OSError, processes.ProcessGone), processes.Process(pid) as process:  # it ended, or is a zombie
            namespace = process.namespace("mnt")
            if namespace not in found:
                found[namespace] = (process.read_mount_owner(), pid)
    return list(found.values())


def describe_users(users: list[MountUser], names: dict[str, str]) -> list[str]:
    """Return a phrase for each of USERS; NAMES has the names of containers by id."""
    phrases = []
    for user in users:
        name = names.get(user.container_id, user.container_id[:12])
        owner = f"container {name}" if user.container_id else f"process {user.comm!r} (pid {user.pid})"
        phrases.append(escape(f"{owner} at {user.path}"))
    return phrases


def _list_probes() -> list[str]:
    try:
        return [probe.line for probe in dynamic_events.list_probes(tracefs.find_tracefs(), "crashcart")]
    except tracefs.TraceError:
        return []


def describe_images() -> list[dict[str, Any]]:
    """Return every image of the store as modules report it; for a damaged one its name and the error."""
    return [
        image.as_result() if isinstance(image, store.StoredImage) else {"name": name, "error": str(image)}
        for name, image in _list_images()
    ]


def list_tools() -> dict[str, list[str]]:
    """Return the tools of each image of the store, by the image's name."""
    return {
        name: image.manifest.get("tools") or []
        for name, image in _list_images()
        if isinstance(image, store.StoredImage)
    }


def _list_images() -> list[tuple[str, store.StoredImage | store.ImageError]]:
    found: list[tuple[str, store.StoredImage | store.ImageError]] = []
    for name in store.list_names():
        try:
            found.append((name, store.get_image(name)))
        except store.ImageError as error:
            found.append((name, error))
    return found
