# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attach a tool image to running containers, and take it away again: what is there, what has to change.

What is attached is read from the kernel: a mount in a container that is of an image of the store.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import (
    expiry,
    methods,
    placement,
    store,
    tool_users,
    volumes,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.expiry import Expiry
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.image_mounts import ImageFinder
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    Container,
    ContainerError,
    check_running,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import (
    Target,
    hold_locks,
    open_targets,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.mounts import parse_device
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import ProcessGone


@dataclass(frozen=True)
class Attachment:
    """An image mounted in a container: DEVICE is the mount's major:minor, FORMAT its file system.

    HAS_END says whether it ends by itself, as expiry.py tells.
    """

    container: Container
    path: str
    image: str
    digest: str
    device: str
    format: str
    method: str
    has_end: bool = False

    @property
    def place(self) -> tuple[str, str]:
        """Where it is: the container's id and the path in it."""
        return self.container.id, self.path

    def as_result(self) -> dict[str, Any]:
        """What modules return of an attachment."""
        return {
            "container": self.container.name,
            "id": self.container.id,
            "pid": self.container.pid,
            "path": self.path,
            "image": self.image,
            "digest": self.digest,
            "method": self.method,
        }


@dataclass(frozen=True)
class Busy:
    """What a detach does where processes use the tools: CHOICE is fail, wait, kill or lazy; the middle two last TIMEOUT_S at most."""

    choice: str = "fail"
    timeout_s: float = 30.0


def find_attachments(target: Target, finder: ImageFinder) -> list[Attachment]:
    """What of ours is mounted in TARGET, the lowest mount first."""
    return [
        Attachment(
            target.container,
            one.mount.mount_point,
            one.name,
            one.digest,
            one.mount.device,
            one.mount.filesystem,
            methods.find_method(one.mount),
        )
        for one in finder.find(target.read_mounts(*finder.needles))
        # Elsewhere it is seen by the way: where a container has the host's folders, and one of them is another's volume.
        if os.path.basename(one.mount.mount_point).startswith("crashcart")
    ]


def list_missing(targets: Sequence[Target], image: store.StoredImage, path: str) -> list[Target]:
    """The targets that lack IMAGE at PATH. Raises ContainerError where something else is mounted there."""
    finder = ImageFinder()
    missing = []
    for target in targets:
        here = [mount for mount in target.read_mounts(f" {path} ") if mount.mount_point == path]
        if not here or (here[-1].master and not finder.identify(here[-1])):
            # Nothing, or an rslave volume, which is there to be mounted over.
            missing.append(target)
            continue
        found = finder.identify(here[-1])
        if found is None:
            raise ContainerError(
                f"container {target.container.name}: {path} already holds a mount of {here[-1].source}"
                f" ({here[-1].filesystem}) that is not ours; unmount it first"
            )
        if found[1] != image.digest:
            raise ContainerError(
                f"container {target.container.name}: another image ({found[0]}, {found[1][:12]}) is attached at {path};"
                " detach it first"
            )
    return missing


def detach(targets: Sequence[Target], found: Sequence[Attachment], busy: Busy) -> None:
    """Unmount FOUND (all of one path, one for each mount) from the locked TARGETS, and remove the empty folder."""
    path = found[0].path
    if busy.choice in ("wait", "kill"):
        for target in targets:
            tool_users.end_users(target, path, busy.timeout_s, kill=busy.choice == "kill")
    is_lazy = busy.choice == "lazy"
    from_volumes = {one.container.id for one in found if one.method == "rslave"}
    if from_volumes:
        volumes.detach([one for one in targets if one.container.id in from_volumes], path, lazy=is_lazy)
    own = [one for one in found if one.method != "rslave"]
    others = [target for target in targets if any(one.container.id == target.container.id for one in own)]
    counts = [sum(one.container.id == target.container.id for one in own) for target in others]
    devices = {parse_device(one.device) for one in own}
    removable = placement.find_removable(others, path)

    def detach_here(index: int, parent_fd: int, name: str) -> None:
        placement.detach(counts[index], devices, lazy=is_lazy, parent_fd=parent_fd, name=name)
        if removable[index]:
            placement.remove_our_folder(parent_fd, name)

    placement.run_in_targets(others, path, detach_here, "detach from")


@dataclass(frozen=True)
class Change:
    """What was attached before a call, and what is after it (or would be, in check mode).

    LEFTOVERS are phrases for what an attach that was killed has left, or a container that has ended, and what is there no longer.
    """

    before: list[Attachment]
    after: list[Attachment]
    leftovers: list[str] = field(default_factory=list)

    @property
    def is_change(self) -> bool:
        """Whether anything is other than before."""
        return self.before != self.after or bool(self.leftovers)


def parse_change(fields: dict[str, Any]) -> Change:
    """The Change that asdict has made FIELDS of."""
    before, after = (
        [Attachment(**{**one, "container": Container(**one["container"])}) for one in fields[name]]
        for name in ("before", "after")
    )
    return Change(before, after, fields["leftovers"])


def add_changes(changes: Sequence[Change]) -> Change:
    """All of CHANGES, which are of different containers, as one."""
    return Change(
        [one for change in changes for one in change.before],
        [one for change in changes for one in change.after],
        [one for change in changes for one in change.leftovers],
    )


def ensure_attached(
    containers: Sequence[Container],
    image_name: str,
    path: str | None,
    method: str = "fsmount",
    ttl_s: float | None = None,
    *,
    check_mode: bool,
) -> Change:
    """See to it that the image called IMAGE_NAME is mounted in each of CONTAINERS at PATH (None: its prefix).

    METHOD counts where it is not yet. With TTL_S all of these attachments end after that time; without it nothing changes
    about their end.
    """
    image = store.get_image(image_name)
    store.check_manifest(image.manifest)
    path = os.path.normpath(path or image.prefix)
    if path != image.prefix:
        raise ContainerError(f"the programs of image {image.name!r} work at {image.prefix} only, not at {path}")
    for container in containers:
        check_running(container)
    with open_targets(containers) as targets:
        before = _find_all(targets, path=path)
        missing = list_missing(targets, image, path)
        known = {attachment.container.id for attachment in before}
        after = [
            *before,
            *(
                Attachment(target.container, path, image.name, image.digest, "", image.format, method)
                for target in targets
                if target.container.id not in known
            ),
        ]
        if ttl_s is not None:
            after = [replace(attachment, has_end=True) for attachment in after]
        if check_mode:
            methods.foresee(method, missing, path)
        elif missing or ttl_s is not None:
            concerned = targets if ttl_s is not None else missing
            with hold_locks([target.container for target in concerned]), _expire(concerned, path, ttl_s):
                still_missing = list_missing(concerned, image, path)
                if still_missing:
                    with _telling_change(targets, before, path=path):
                        methods.attach(method, still_missing, image, path)
        return Change(before, _in_order(containers, after))


@contextmanager
def _telling_change(targets: Sequence[Target], before: Sequence[Attachment], **chosen: str | None) -> Iterator[None]:
    """Have a ContainerError tell what of the CHOSEN is attached then, and that it is other than BEFORE, when some of TARGETS had their way."""
    try:
        yield
    except ContainerError as error:
        after = _find_all(targets, **chosen)
        places = [attachment.place for attachment in after]
        is_change = places != [attachment.place for attachment in before]
        error.result.update(changed=is_change, attachments=[attachment.as_result() for attachment in after])
        raise


@contextmanager
def _expire(targets: Sequence[Target], path: str, ttl_s: float | None) -> Iterator[None]:
    """Have what is attached within the context end after TTL_S (None: not). It is settled before; where nothing came of it, it is undone."""
    before = {one.name for one in expiry.list_expiries()}
    settled = [] if ttl_s is None else [Expiry(one.container, path, expiry.read_clock() + ttl_s) for one in targets]
    if settled:
        expiry.write(settled)
    try:
        expiry.ensure_watchdog()
        yield
    except BaseException:
        with suppress(ContainerError, ProcessGone):  # else the watchdog drops what is of no use
            mounted = {attachment.place for attachment in _find_all(targets, path=path)}
            expiry.drop([one for one in settled if one.name not in before and one.place not in mounted])
        raise


def _in_order(containers: Sequence[Container], found: Sequence[Attachment]) -> list[Attachment]:
    by_id = {attachment.container.id: attachment for attachment in found}
    return [by_id[container.id] for container in containers]


def ensure_detached(
    containers: Sequence[Container],
    image_name: str | None,
    path: str | None,
    busy: Busy,
    *,
    everywhere: bool = False,
    refused_ok: bool = False,
    check_mode: bool,
) -> Change:
    """See to it that no image (of that name, at PATH) is mounted in CONTAINERS; EVERYWHERE means the host's folders of volumes, too.

    With EVERYWHERE, and with REFUSED_OK, containers whose process is not what their runtime says are passed over.
    """
    path = os.path.normpath(path) if path else None
    alive = [container for container in containers if container.pid > 1]
    # Nothing is left to detach from those that have ended, and nothing can be where we refuse to enter.
    with open_targets(alive, ended_ok=True, refused_ok=everywhere or refused_ok) as targets:
        before = _find_all(targets, path=path, image=image_name)
        if not check_mode and before:
            with hold_locks([attachment.container for attachment in before]):
                present = _find_all(targets, path=path, image=image_name)
                with _telling_change(targets, present, path=path, image=image_name):
                    for place in sorted({attachment.path for attachment in present}):
                        here = [attachment for attachment in present if attachment.path == place]
                        ids = {attachment.container.id for attachment in here}
                        detach([target for target in targets if target.container.id in ids], here, busy)
        after = [] if check_mode else _find_all(targets, path=path, image=image_name)
        ids = {attachment.container.id for attachment in before}
        others = [target for target in targets if target.container.id not in ids]
        leftovers = _remove_folders(others, [path] if path else _list_prefixes(), check_mode=check_mode)
        if not check_mode:
            _forget(targets, path)
    if everywhere:
        leftovers += [f"an image in the host's folder {folder}" for folder in volumes.list_folders()]
        if not check_mode:
            volumes.detach_all(lazy=busy.choice == "lazy")
            # Of what no runtime lists: processes named by pid, containers that have ended.
            for one in expiry.list_expiries():
                end_attachment(one)
    return Change(before, after, leftovers)


def _list_prefixes() -> list[str]:
    """Where images of this host are attached."""
    found = {"/dev/crashcart"}
    for name in store.list_names():
        with suppress(store.ImageError):
            found.add(store.get_image(name).prefix)
    return sorted(found)


def _remove_folders(targets: Sequence[Target], paths: Sequence[str], *, check_mode: bool) -> list[str]:
    """Remove the empty folders at PATHS that attaches which were killed have left in TARGETS; phrases for them."""
    found = []
    for path in paths:
        theirs = placement.find_folders(targets, path)
        removable = placement.find_removable(theirs, path)
        theirs = [target for target, ok in zip(theirs, removable) if ok]
        found += [f"an empty folder {path} in container {target.container.name}" for target in theirs]
        if theirs and not check_mode:
            with hold_locks([target.container for target in theirs]):
                placement.remove_folders(theirs, path)
    return found


def _forget(targets: Sequence[Target], path: str | None) -> None:
    """Where nothing is attached in TARGETS (at PATH) nothing has an end any more, also where a killed attach has settled one."""
    ids = {target.container.id for target in targets}
    settled = [one for one in expiry.list_expiries() if one.container.id in ids and path in (None, one.path)]
    if not settled:
        return
    with hold_locks([one.container for one in settled]):  # who holds one may be about to mount
        mounted = {attachment.place for attachment in _find_all(targets)}
        expiry.drop([one for one in settled if one.place not in mounted])


def end_attachment(ended: Expiry, *, due_only: bool = False) -> None:
    """Take what is attached away, out of sight of those who still use it, and have it settled; with DUE_ONLY if its time has come."""
    with open_targets([ended.container], ended_ok=True) as targets, hold_locks([ended.container]):
        # Meanwhile somebody may have given it more time, or detached it.
        if due_only and ended not in expiry.list_expiries():
            return
        found = _find_all(targets, path=ended.path)
        if found:
            detach(targets, found, Busy("lazy"))
        expiry.drop([ended])


def _find_all(targets: Sequence[Target], *, path: str | None = None, image: str | None = None) -> list[Attachment]:
    finder = ImageFinder()
    ends = {one.place for one in expiry.list_expiries()}
    return [
        replace(attachment, has_end=attachment.place in ends)
        for target in targets
        for attachment in find_attachments(target, finder)
        if path in (None, attachment.path) and image in (None, attachment.image)
    ]


def describe(found: Sequence[Attachment], leftovers: Sequence[str] = ()) -> dict[str, str]:
    """Attachments for a diff: container and path → image and the beginning of its digest; LEFTOVERS have a key of their own."""
    described = {
        f"{one.container.name}:{one.path}": f"{one.image} {one.digest[:12]}{', ends by itself' if one.has_end else ''}"
        for one in found
    }
    return {**described, "left over": ", ".join(leftovers)} if leftovers else described


def list_attachments(containers: Sequence[Container]) -> list[Attachment]:
    """What is attached in CONTAINERS; those that are gone, or whose mounts the caller may not read, have nothing to show."""
    found = []
    for container in containers:
        try:
            with open_targets([container]) as targets:
                found += _find_all(targets)
        except (ContainerError, PermissionError):
            continue
    return found
