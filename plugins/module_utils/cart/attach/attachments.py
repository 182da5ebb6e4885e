# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attach a tool image to running containers, and take it away again: what is there, what has to change.

What is attached is read from the kernel: a mount in a container that is of an image of the store.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Iterator, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import store
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach import (
    expiry,
    methods,
    placement,
    tool_users,
    volumes,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach.expiry import Expiry
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.image_mounts import ImageFinder
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    Container,
    ContainerError,
    check_running,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import (
    MountsTooMany,
    Patience,
    Target,
    hold_container,
    open_targets,
    serve_held,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.mounts import parse_device
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import ProcessGone
from ansible_collections.crashcart.fleet.plugins.module_utils.units import format_time


@dataclass(frozen=True)
class Attachment:
    """An image mounted in a container: DEVICE is the mount's major:minor, FORMAT its file system.

    HAS_END says whether it ends by itself, as expiry.py tells, and DEADLINE when, in seconds of CLOCK_BOOTTIME.
    """

    container: Container
    path: str
    image: str
    digest: str
    device: str
    format: str
    method: str
    has_end: bool = False
    deadline: float | None = field(default=None, compare=False)

    @property
    def place(self) -> tuple[str, str]:
        """Where it is: the container's id and the path in it."""
        return self.container.id, self.path

    @property
    def expires(self) -> float | None:
        """When it ends by itself, in seconds since the epoch by the host's clock."""
        return None if self.deadline is None else expiry.find_time(self.deadline)

    def ending(self, ends: Mapping[tuple[str, str], float]) -> Attachment:
        """The same with the deadline that ENDS have for its place."""
        return replace(self, has_end=self.place in ends, deadline=ends.get(self.place))

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
            "expires": self.expires,
            "expires_at": None if self.expires is None else format_time(self.expires),
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


def find_tools(target: Target, finder: ImageFinder, image_name: str | None) -> Attachment | None:
    """What was attached last in TARGET, of the image called IMAGE_NAME if that is one; None for nothing.

    The container may have bound it elsewhere, where its programs do not work, and what else is mounted over it is no matter to a command.
    """
    found = find_attachments(target, finder)
    first: dict[str, Attachment] = {}
    for one in found:
        first.setdefault(one.digest, one)
    usable = [one for one in found if image_name in (None, one.image) and one.path == _find_prefix(first[one.digest])]
    return usable[-1] if usable else None


def _find_prefix(first: Attachment) -> str:
    """Where the image works that is attached as FIRST, and maybe bound elsewhere since."""
    stored = store.find_image(first.image)
    return stored.prefix if stored is not None and stored.digest == first.digest else first.path


def _list_missing(targets: Sequence[Target], outcome: Outcome, image: store.StoredImage, path: str) -> list[Target]:
    """The targets that lack IMAGE at PATH. Those where something else is mounted there have failed."""
    finder = ImageFinder()
    missing = []
    for target in targets:
        with outcome.serve(target):
            if _is_missing(target, finder, image, path):
                missing.append(target)
    return missing


def _is_missing(target: Target, finder: ImageFinder, image: store.StoredImage, path: str) -> bool:
    here = [mount for mount in target.read_mounts(f" {path} ") if mount.mount_point == path]
    if not here or (here[-1].master and not finder.identify(here[-1])):
        # Nothing, or an rslave volume, which is there to be mounted over.
        return True
    found = finder.identify(here[-1])
    if found is None:
        raise ContainerError(
            f"container {target.name}: {path} already holds a mount of {here[-1].source}"
            f" ({here[-1].filesystem}) that is not ours; unmount it first"
        )
    if found[1] != image.digest:
        raise ContainerError(
            f"container {target.name}: another image ({found[0]}, {found[1][:12]}) is attached at {path};"
            " detach it first"
        )
    return False


def _detach(targets: Sequence[Target], outcome: Outcome, found: Sequence[Attachment], busy: Busy) -> None:
    """Unmount FOUND (all of one path, one for each mount) from the locked TARGETS, and remove the empty folder."""
    path = found[0].path
    is_lazy = busy.choice == "lazy"
    from_volumes = {one.container.id for one in found if one.method == "rslave"}
    for target in targets:
        with outcome.serve(target, ended_ok=True):
            if busy.choice in ("wait", "kill"):
                tool_users.end_users(target, path, busy.timeout_s, kill=busy.choice == "kill")
            if target.id in from_volumes:
                volumes.detach([target], path, lazy=is_lazy)
    own = [one for one in found if one.method != "rslave"]
    others = [target for target in outcome.list_left(targets) if any(one.container.id == target.id for one in own)]
    counts = [sum(one.container.id == target.id for one in own) for target in others]
    devices = {parse_device(one.device) for one in own}
    removable = placement.find_removable(others, path)

    def detach_here(index: int, parent_fd: int, name: str) -> None:
        placement.detach(counts[index], devices, lazy=is_lazy, parent_fd=parent_fd, name=name)
        if removable[index]:
            placement.remove_our_folder(parent_fd, name)

    outcome.fail_each(others, placement.try_in_targets(others, path, detach_here, "detach from"), ended_ok=True)


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
    outcome: Outcome,
    image_name: str,
    path: str | None,
    method: str = "fsmount",
    ttl_s: float | None = None,
    *,
    check_mode: bool,
) -> Change:
    """See to it that the image called IMAGE_NAME is mounted in each of CONTAINERS at PATH (None: its prefix); OUTCOME gets whose it is not.

    METHOD counts where it is not yet. With TTL_S all of these attachments end after that time; without it nothing changes
    about their end.
    """
    image = store.get_image(image_name)
    store.check_manifest(image.manifest)
    path = os.path.normpath(path or image.prefix)
    if path != image.prefix:
        raise ContainerError(f"the programs of image {image.name!r} work at {image.prefix} only, not at {path}")
    for container in containers:
        with outcome.serve(container):
            check_running(container)
    with open_targets(outcome.list_left(containers), refuse=outcome.fail) as targets:
        before = _find_all(targets, outcome, path=path)
        missing = _list_missing(outcome.list_left(targets), outcome, image, path)
        if check_mode:
            outcome.fail_each(missing, methods.foresee(method, missing, path))
        elif missing or ttl_s is not None:

            def attach(held: list[Target]) -> None:
                with _expire(held, outcome, path, ttl_s):
                    still_missing = _list_missing(held, outcome, image, path)
                    outcome.fail_each(still_missing, methods.attach(method, still_missing, image, path))

            concerned = outcome.list_left(targets) if ttl_s is not None else missing
            serve_held(concerned, attach, outcome.fail, Patience())
        known = {attachment.container.id for attachment in before}
        after = {attachment.container.id: attachment for attachment in before}
        for target in outcome.list_left(targets):
            if target.id not in known:
                after[target.id] = Attachment(
                    target.container, path, image.name, image.digest, "", image.format, method
                )
        ends = _list_ends()
        if check_mode and ttl_s is not None:
            ends.update((one.place, expiry.read_clock() + ttl_s) for one in after.values())
        return Change(before, [after[one.id].ending(ends) for one in containers if one.id in after])


@contextmanager
def _expire(targets: Sequence[Target], outcome: Outcome, path: str, ttl_s: float | None) -> Iterator[None]:
    """Have what is attached within the context end after TTL_S (None: not). It is settled before; where nothing came of it, it is undone."""
    before = {one.name: one for one in expiry.list_expiries()}
    settled = [] if ttl_s is None else [Expiry(one.container, path, expiry.read_clock() + ttl_s) for one in targets]
    with ExitStack() as stack:
        stack.callback(_settle_back, targets, outcome, settled, before)
        if settled:
            expiry.write(settled)
        expiry.ensure_watchdog()
        yield


def _settle_back(
    targets: Sequence[Target], outcome: Outcome, settled: Sequence[Expiry], before: Mapping[str, Expiry]
) -> None:
    """Take those that were SETTLED back, to what was BEFORE, whose one of TARGETS has failed, or has nothing there."""
    finder = ImageFinder()
    for target, one in zip(targets, settled):
        with suppress(FleetError, OSError, ProcessGone):  # else the watchdog drops what is of no use
            if not outcome.has_failed(target) and one.path in {
                found.path for found in find_attachments(target, finder)
            }:
                continue
            if one.name in before:
                expiry.write([before[one.name]])
            else:
                expiry.drop([one])


def ensure_detached(
    containers: Sequence[Container],
    outcome: Outcome,
    image_name: str | None,
    path: str | None,
    busy: Busy,
    *,
    everywhere: bool = False,
    refused_ok: bool = False,
    check_mode: bool,
) -> Change:
    """See to it that no image (of that name, at PATH) is mounted in CONTAINERS; OUTCOME gets in which one still is, and why.

    EVERYWHERE means the host's folders of volumes, too. With it, and with REFUSED_OK, containers whose process is not what their runtime
    says are passed over.
    """
    path = os.path.normpath(path) if path else None
    alive = [container for container in containers if container.pid > 1]
    patience = Patience()

    def detach(held: list[Target]) -> None:
        present = _find_all(held, outcome, path=path, image=image_name, ended_ok=True)
        for place in sorted({attachment.path for attachment in present}):
            here = [attachment for attachment in present if attachment.path == place]
            theirs = {attachment.container.id for attachment in here}
            _detach([one for one in outcome.list_left(held) if one.id in theirs], outcome, here, busy)

    # Nothing is left to detach from those that have ended, and nothing can be where we refuse to enter.
    with open_targets(alive, ended_ok=True, refused_ok=everywhere or refused_ok, refuse=outcome.fail) as targets:
        before = _find_all(targets, outcome, path=path, image=image_name, ended_ok=True)
        ids = {attachment.container.id for attachment in before}
        if not check_mode and before:
            concerned = outcome.list_left([target for target in targets if target.id in ids])
            serve_held(concerned, detach, outcome.fail, patience)
        after = [] if check_mode else _find_all(targets, outcome, path=path, image=image_name, ended_ok=True)
        others = [target for target in targets if target.id not in ids]
        prefixes = [path] if path else _list_prefixes()
        leftovers = _remove_folders(outcome.list_left(others), outcome, prefixes, patience, check_mode=check_mode)
        if not check_mode:
            _forget(outcome.list_left(targets), outcome, path, patience)
    if everywhere:
        leftovers += [f"an image in the host's folder {folder}" for folder in volumes.list_folders()]
        if not check_mode:
            with outcome.complaining():
                volumes.detach_all(lazy=busy.choice == "lazy")
            # Of what no runtime lists: processes named by pid, containers that have ended.
            for one in expiry.list_expiries():
                if not outcome.has_failed(one.container):
                    with outcome.serve(one.container, ended_ok=True):
                        end_attachment(one)
    return Change(before, after, leftovers)


def _list_prefixes() -> list[str]:
    """Where images of this host are attached."""
    found = {"/dev/crashcart"}
    for name in store.list_names():
        with suppress(store.ImageError):
            found.add(store.get_image(name).prefix)
    return sorted(found)


def _remove_folders(
    targets: Sequence[Target], outcome: Outcome, paths: Sequence[str], patience: Patience, *, check_mode: bool
) -> list[str]:
    """Remove the empty folders at PATHS that attaches which were killed have left in TARGETS; phrases for them."""
    found = []
    for path in paths:
        theirs = placement.find_folders(targets, path)
        removable = placement.find_removable(theirs, path)
        theirs = [target for target, ok in zip(theirs, removable) if ok]
        found += [f"an empty folder {path} in container {target.name}" for target in theirs]
        if not check_mode:
            serve_held(theirs, partial(_remove_empty, outcome, path), outcome.fail, patience)
    return found


def _remove_empty(outcome: Outcome, path: str, held: list[Target]) -> None:
    outcome.fail_each(held, placement.remove_folders(held, path), ended_ok=True)


def _forget(targets: Sequence[Target], outcome: Outcome, path: str | None, patience: Patience) -> None:
    """Where nothing is attached in TARGETS (at PATH) nothing has an end any more, also where a killed attach has settled one."""
    ids = {target.id for target in targets}
    settled = [one for one in expiry.list_expiries() if one.container.id in ids and path in (None, one.path)]

    def forget(held: list[Target]) -> None:
        mounted = {attachment.place for attachment in _find_all(held, outcome, ended_ok=True)}
        left = {target.id for target in outcome.list_left(held)}
        expiry.drop([one for one in settled if one.container.id in left and one.place not in mounted])

    ids = {one.container.id for one in settled}
    # Who holds one may be about to mount.
    serve_held([target for target in targets if target.id in ids], forget, outcome.fail, patience)


def end_attachment(ended: Expiry, *, due_only: bool = False) -> None:
    """Take what is attached away, out of sight of those who still use it, and have it settled; with DUE_ONLY if its time has come."""
    with open_targets([ended.container], ended_ok=True) as targets, hold_container(ended.container):
        # Meanwhile somebody may have given it more time, or detached it.
        if due_only and ended not in expiry.list_expiries():
            return
        outcome = Outcome()
        found = _find_all(targets, outcome, path=ended.path, ended_ok=True)
        if found:
            _detach(targets, outcome, found, Busy("lazy"))
        outcome.check()
        expiry.drop([ended])


def _find_all(
    targets: Sequence[Target],
    outcome: Outcome,
    *,
    path: str | None = None,
    image: str | None = None,
    ended_ok: bool = False,
) -> list[Attachment]:
    """What is attached in TARGETS (at PATH, of IMAGE), but for those in which that cannot be read, which have failed."""
    finder = ImageFinder()
    ends = _list_ends()
    found = []
    for target in targets:
        with outcome.serve(target, ended_ok=ended_ok):
            found += [
                attachment.ending(ends)
                for attachment in find_attachments(target, finder)
                if path in (None, attachment.path) and image in (None, attachment.image)
            ]
    return found


def _list_ends() -> dict[tuple[str, str], float]:
    """Place of an attachment that ends by itself → its deadline."""
    return {one.place: one.deadline for one in expiry.list_expiries()}


def describe(found: Sequence[Attachment], leftovers: Sequence[str] = ()) -> dict[str, str]:
    """Attachments for a diff: container and path → image, the beginning of its digest, and its end; LEFTOVERS have a key of their own."""
    described = {
        f"{one.container.name}:{one.path}": f"{one.image} {one.digest[:12]}{_describe_end(one)}" for one in found
    }
    return {**described, "left over": ", ".join(leftovers)} if leftovers else described


def _describe_end(attachment: Attachment) -> str:
    return "" if attachment.expires is None else f", until {format_time(attachment.expires)}"


def list_attachments(containers: Sequence[Container]) -> tuple[list[Attachment], list[str]]:
    """What is attached in CONTAINERS, and a phrase for each one that has too many mounts to tell.

    Those that are gone, or whose mounts the caller may not read, have nothing to show.
    """
    found: list[Attachment] = []
    unknown = []
    for container in containers:
        outcome = Outcome()
        try:
            with open_targets([container], ended_ok=True) as targets:
                found += _find_all(targets, outcome)
                outcome.raise_first()
        except MountsTooMany as error:
            unknown.append(str(error))
        except (ContainerError, OSError):
            continue
    return found, unknown
