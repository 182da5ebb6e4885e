# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run containers of runtimes other than Docker, each with the runtime's own commands."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from ansible_collections.crashcart.fleet.tools.busybox_archive import make_archive
from support import host

# Root cannot raise its limits any higher on the machines of these tests.
PODMAN_LIMITS = ("--ulimit", "nofile=1024:4096", "--ulimit", "nproc=1024:4096")
SLEEP = ["/bin/sleep", "100000"]
CTR_IMAGE = "docker.io/crashcart-test/busybox:latest"


def unpack_busybox(folder: Path) -> None:
    """Unpack a small system with a shell into FOLDER."""
    with tarfile.open(fileobj=BytesIO(make_archive())) as archive:
        archive.extractall(folder, filter="fully_trusted")


def make_bundle(folder: Path, *command: str, **annotations: str) -> Path:
    """Make the bundle of a container that runs COMMAND in FOLDER, and return that. In names of ANNOTATIONS "__" stands for "."."""
    (folder / "rootfs").mkdir(parents=True, exist_ok=True)
    unpack_busybox(folder / "rootfs")
    os.chmod(folder / "rootfs", 0o755)  # for other users than root
    subprocess.run(["runc", "spec"], cwd=folder, check=True)
    path = folder / "config.json"
    specification: dict[str, Any] = json.loads(path.read_text())
    specification["process"].update(terminal=False, args=command)
    specification["annotations"] = {key.replace("__", "."): value for key, value in annotations.items()}
    path.write_text(json.dumps(specification))
    return folder


@contextmanager
def run_runc(folder: Path, name: str, root: str = "/run/runc", **annotations: str) -> Iterator[None]:
    """Run a container NAME of plain runc with its bundle in FOLDER until the context ends.

    ROOT is runc's folder of states. In names of ANNOTATIONS "__" stands for ".".
    """
    make_bundle(folder, *SLEEP, **annotations)
    command = ["runc", "--root", root]
    with open(folder / "log", "wb") as log:
        subprocess.run([*command, "run", "--detach", "--bundle", str(folder), name], check=True, stdout=log, stderr=log)
    try:
        yield
    finally:
        subprocess.run([*command, "delete", "--force", name], check=True)


@contextmanager
def run_ctr(name: str, namespace: str) -> Iterator[None]:
    """Run a container NAME of the containerd of the tests' engine in NAMESPACE until the context ends."""
    socket = os.path.dirname(os.environ["DOCKER_HOST"][len("unix://") :]) + "/exec/containerd/containerd.sock"
    ctr = ["ctr", "--address", socket, "--namespace", namespace]
    archive = subprocess.run(["docker", "save", "crashcart-test/busybox"], capture_output=True, check=True).stdout
    subprocess.run([*ctr, "images", "import", "-"], input=archive, check=True, stdout=subprocess.DEVNULL)
    try:
        host.run(*ctr, "run", "--detach", CTR_IMAGE, name, *SLEEP)
        yield
    finally:
        host.run(*ctr, "tasks", "kill", "--signal", "KILL", name, check=False)
        host.wait_until(
            lambda: (
                name not in host.run(*ctr, "tasks", "list").stdout
                or "STOPPED" in host.run(*ctr, "tasks", "list").stdout
            )
        )
        host.run(*ctr, "tasks", "delete", name, check=False)
        host.run(*ctr, "containers", "delete", name, check=False)
        host.run(*ctr, "images", "remove", "--sync", CTR_IMAGE, check=False)


def podman(*words: str, check: bool = True) -> str:
    """Run `podman WORDS` and return its output."""
    return host.run("podman", *words, check=check).stdout.strip()


@contextmanager
def run_podman(name: str, *options: str) -> Iterator[None]:
    """Run a container NAME of Podman with the busybox image until the context ends."""
    if "crashcart-test/busybox" not in podman("images"):
        subprocess.run(
            ["podman", "import", "--change", "CMD=/bin/sleep,100000", "-", "crashcart-test/busybox"],
            input=make_archive(),
            capture_output=True,
            check=True,
        )
    limits = PODMAN_LIMITS
    engine = ("podman", "--runtime", "runc", "--cgroup-manager", "cgroupfs")
    try:
        host.run(
            *engine,
            "run",
            "-d",
            "--name",
            name,
            "--network",
            "none",
            *limits,
            *options,
            "crashcart-test/busybox",
            *SLEEP,
        )
        yield
    finally:
        podman("rm", "-f", "-t", "0", name, check=False)


@contextmanager
def run_unshared() -> Iterator[int]:
    """Run a process in mount, pid and network namespaces of its own, without a runtime, and give its pid."""
    words = ["unshare", "--mount-proc", "--pid", "--net", "--fork", "--kill-child"]
    hold = ["sh", "-c", "ip link set lo up; exec sleep 100000"]
    with subprocess.Popen([*words, *hold]) as parent:
        try:
            children = f"/proc/{parent.pid}/task/{parent.pid}/children"
            yield int(host.wait_until(lambda: Path(children).read_text()))
        finally:
            parent.kill()
