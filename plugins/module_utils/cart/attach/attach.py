# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attaching and detaching of tool images in running containers; each container's change is made, and undone if it fails, on its own."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Iterator, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import store
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach import (
    expiry,
    expiry_watchdog,
    methods,
    mounting,
    volumes,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach.attachments import (
    Attachment,
    find_all,
    find_attachments,
    list_ends,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach.expiry import Expiry
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach.removal import Busy, end_attachment, take_away
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.image_mounts import ImageFinder
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    Container,
    ContainerError,
    check_running,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import (
    Patience,
    Target,
    open_targets,
    serve_held,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import boot
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import ProcessGone
from ansible_collections.crashcart.fleet.plugins.module_utils.units import format_time


@dataclass(frozen=True)
class Change:
    """The attachments before a call, and after it (or as they would be, in check mode).

    LEFTOVERS: phrases for other things that the call removes, such as remains of a killed attach or of a container that has ended.
    """

    before: list[Attachment]
    after: list[Attachment]
    leftovers: list[str] = field(default_factory=list)

    @property
    def is_change(self) -> bool:
        """Return True if anything differs from before."""
        return self.before != self.after or bool(self.leftovers)


def parse_change(fields: dict[str, Any]) -> Change:
    """Return the Change of which asdict made FIELDS."""
    before, after = (
        [Attachment(**{**given, "container": Container(**given["container"])}) for given in fields[name]]
        for name in ("before", "after")
    )
    return Change(before, after, fields["leftovers"])


def add_changes(changes: Sequence[Change]) -> Change:
    """Return CHANGES, which are of different containers, as one Change."""
    return Change(
        [attachment for change in changes for attachment in change.before],
        [attachment for change in changes for attachment in change.after],
        [phrase for change in changes for phrase in change.leftovers],
    )


def describe(found: Sequence[Attachment], leftovers: Sequence[str] = ()) -> dict[str, str]:
    """Return attachments for a diff: container and path -> image, first digits of its digest, and end; LEFTOVERS have a key of their own."""
    described = {
        f"{attachment.container.name}:{attachment.path}": f"{attachment.image} {attachment.digest[:12]}{_describe_end(attachment)}"
        for attachment in found
    }
    return {**described, "left over": ", ".join(leftovers)} if leftovers else described


def _describe_end(attachment: Attachment) -> str:
    return "" if attachment.expires is None else f", until {format_time(attachment.expires)}"


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
    """Mount the image IMAGE_NAME at PATH (None: its prefix) in those of CONTAINERS that lack it; OUTCOME gets the failures.

    METHOD counts only where the image is not mounted yet. With TTL_S the attachments in all of CONTAINERS end after that time; without it their
    ends stay as they are. Raises FleetError where the image does not fit the host or PATH.
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
        before = find_all(targets, outcome, path=path)
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
        ends = list_ends()
        if check_mode and ttl_s is not None:
            ends.update((attachment.place, boot.read_clock() + ttl_s) for attachment in after.values())
        return Change(before, [after[container.id].ending(ends) for container in containers if container.id in after])


@contextmanager
def _expire(targets: Sequence[Target], outcome: Outcome, path: str, ttl_s: float | None) -> Iterator[None]:
    """Make the attachments of the context end after TTL_S (None: no change); expiries are written before, and restored on failure."""
    before = {ending.name: ending for ending in expiry.list_expiries()}
    settled = [] if ttl_s is None else [Expiry(target.container, path, boot.read_clock() + ttl_s) for target in targets]
    with ExitStack() as stack:
        stack.callback(_settle_back, targets, outcome, settled, before)
        if settled:
            expiry.write(settled)
        expiry_watchdog.ensure_watchdog()
        yield


def _settle_back(
    targets: Sequence[Target], outcome: Outcome, settled: Sequence[Expiry], before: Mapping[str, Expiry]
) -> None:
    """Restore the expiry from BEFORE, in place of the SETTLED one, for each of TARGETS that has failed or has nothing attached."""
    finder = ImageFinder()
    for target, ending in zip(targets, settled):
        with suppress(FleetError, OSError, ProcessGone):  # the watchdog drops expiries that remain needlessly
            if not outcome.has_failed(target) and ending.path in {
                found.path for found in find_attachments(target, finder)
            }:
                continue
            if ending.name in before:
                expiry.write([before[ending.name]])
            else:
                expiry.drop([ending])


def _list_missing(targets: Sequence[Target], outcome: Outcome, image: store.StoredImage, path: str) -> list[Target]:
    """Return the TARGETS that lack IMAGE at PATH; those with another mount there fail."""
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
        # Nothing is there, or an rslave volume, which is meant to be mounted over.
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


@dataclass(frozen=True)
class Detaching:
    """The attachments that are to be detached, and how.

    IMAGE: the image's name, None for all. PATH: None for all. BUSY: the behaviour where processes use the tools.
    EVERYWHERE: also images in the host's folders of volumes. With it, or with REFUSED_OK, a container is passed over where its process is not
    the one that its runtime names.
    """

    image: str | None = None
    path: str | None = None
    busy: Busy = field(default_factory=Busy)
    everywhere: bool = False
    refused_ok: bool = False


def ensure_detached(
    containers: Sequence[Container],
    outcome: Outcome,
    what: Detaching,
    *,
    check_mode: bool,
) -> Change:
    """Unmount everything that WHAT describes from CONTAINERS; OUTCOME gets the failures.

    In check mode nothing is changed.
    """
    path = os.path.normpath(what.path) if what.path else None
    image_name, everywhere = what.image, what.everywhere
    alive = [container for container in containers if container.pid > 1]
    patience = Patience()

    def detach(held: list[Target]) -> None:
        present = find_all(held, outcome, path=path, image=image_name, ended_ok=True)
        for place in sorted({attachment.path for attachment in present}):
            here = [attachment for attachment in present if attachment.path == place]
            theirs = {attachment.container.id for attachment in here}
            take_away([target for target in outcome.list_left(held) if target.id in theirs], outcome, here, what.busy)

    # Containers that have ended have nothing attached, and those that are never entered cannot have anything attached either.
    with open_targets(alive, ended_ok=True, refused_ok=everywhere or what.refused_ok, refuse=outcome.fail) as targets:
        before = find_all(targets, outcome, path=path, image=image_name, ended_ok=True)
        ids = {attachment.container.id for attachment in before}
        if not check_mode and before:
            concerned = outcome.list_left([target for target in targets if target.id in ids])
            serve_held(concerned, detach, outcome.fail, patience)
        after = [] if check_mode else find_all(targets, outcome, path=path, image=image_name, ended_ok=True)
        others = [target for target in targets if target.id not in ids]
        prefixes = [path] if path else _list_prefixes()
        leftovers = _remove_folders(outcome.list_left(others), outcome, prefixes, patience, check_mode=check_mode)
        if not check_mode:
            _forget(outcome.list_left(targets), outcome, path, patience)
    if everywhere:
        leftovers += [f"an image in the host's folder {folder}" for folder in volumes.list_folders()]
        if not check_mode:
            with outcome.complaining():
                volumes.detach_all(lazy=what.busy.choice == "lazy")
            # Attachments in places that no runtime lists: processes named by pid, and containers that have ended.
            for ending in expiry.list_expiries():
                if not outcome.has_failed(ending.container):
                    with outcome.serve(ending.container, ended_ok=True):
                        end_attachment(ending)
    return Change(before, after, leftovers)


def _list_prefixes() -> list[str]:
    """Return the paths at which images of this host are attached."""
    found = {"/dev/crashcart"}
    for name in store.list_names():
        with suppress(store.ImageError):
            found.add(store.get_image(name).prefix)
    return sorted(found)


def _remove_folders(
    targets: Sequence[Target], outcome: Outcome, paths: Sequence[str], patience: Patience, *, check_mode: bool
) -> list[str]:
    """Remove the empty folders at PATHS that killed attaches have left in TARGETS; return phrases for them."""
    found = []
    for path in paths:
        theirs = mounting.find_folders(targets, path)
        removable = mounting.find_removable(theirs, path)
        theirs = [target for target, ok in zip(theirs, removable) if ok]
        found += [f"an empty folder {path} in container {target.name}" for target in theirs]
        if not check_mode:
            serve_held(theirs, partial(_remove_empty, outcome, path), outcome.fail, patience)
    return found


def _remove_empty(outcome: Outcome, path: str, held: list[Target]) -> None:
    outcome.fail_each(held, mounting.remove_folders(held, path), ended_ok=True)


def _forget(targets: Sequence[Target], outcome: Outcome, path: str | None, patience: Patience) -> None:
    """Drop the expiries of TARGETS (at PATH) without an attachment, which a killed attach may have left."""
    ids = {target.id for target in targets}
    settled = [
        ending for ending in expiry.list_expiries() if ending.container.id in ids and path in (None, ending.path)
    ]

    def forget(held: list[Target]) -> None:
        mounted = {attachment.place for attachment in find_all(held, outcome, ended_ok=True)}
        left = {target.id for target in outcome.list_left(held)}
        expiry.drop([ending for ending in settled if ending.container.id in left and ending.place not in mounted])

    ids = {ending.container.id for ending in settled}
    # Under the locks, as an attach that holds a lock may be about to mount.
    serve_held([target for target in targets if target.id in ids], forget, outcome.fail, patience)
