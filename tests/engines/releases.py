# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make archives of root folders of releases of Debian, with that release's engines, Python and sshd, or with other packages.

They are kept in the user's cache, in folders that are named by the hashes of their sources. Nothing is installed on this machine but the
program that makes them.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

import golden
import guest

# The oldest and the newest one have engines that differ most. Debian's unstable release changes from day to day.
RELEASES = ("bookworm", "trixie", "sid")
CACHE = golden.CACHE.parent / "engines"
_ARCHIVE = "root.tar"
HOST_PACKAGES = (
    *("docker.io", "containerd", "runc", "crun", "podman"),
    *(
        "ca-certificates",
        "iproute2",
        "openssh-server",
        "procps",
        "python3",
        "python3-docker",
        "python3-jmespath",
        "sudo",
    ),
)


def prepare(release: str, packages: Sequence[str] = HOST_PACKAGES) -> Path:
    """Return the archive of a root folder of RELEASE with PACKAGES, and make it first where the cache lacks it."""
    subprocess.run([golden.TOOLS / "install_packages.sh", "mmdebstrap"], check=True)
    sources = "\n".join(guest.list_sources(release))

    def list_words(folder: Path) -> list[str | Path]:
        return guest.make_bootstrap_command(release, packages, folder / _ARCHIVE)

    key = hashlib.sha256("\0".join([*map(str, list_words(CACHE)), sources]).encode()).hexdigest()[:16]
    kept = golden.keep(CACHE, f"{release}-{key}", lambda folder: guest.run(*list_words(folder), stdin=sources))
    return kept / _ARCHIVE
