# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make unprivileged users of this host, with real and forged containers below /run/user."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import read_start_ticks
from support import host, runtimes
from support.accounts import end_processes, list_processes, make_account


@dataclass(frozen=True)
class User:
    """A user with a folder below /run/user."""

    uid: int
    name: str
    home: Path

    @property
    def folder(self) -> Path:
        return Path(f"/run/user/{self.uid}")

    @property
    def label(self) -> str:
        return f"user {self.name} ({self.uid})"

    def command(self, *words: str) -> list[str]:
        """Return the command that runs WORDS as this user with the environment of a login."""
        variables = [
            f"HOME={self.home}",
            f"XDG_RUNTIME_DIR={self.folder}",
            f"USER={self.name}",
            f"PATH={os.environ['PATH']}",
        ]
        return [
            "setpriv",
            f"--reuid={self.uid}",
            f"--regid={self.uid}",
            "--clear-groups",
            "env",
            "-i",
            *variables,
            *words,
        ]

    def run(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run WORDS as this user and return the ended process."""
        return host.run(*self.command(*words), cwd="/", **options)

    def give(self, *paths: Path) -> None:
        """Make this user the owner of PATHS."""
        for path in paths:
            os.chown(path, self.uid, self.uid, follow_symlinks=False)

    def make_folder(self, name: str) -> Path:
        """Make the folder NAME below this user's folder in /run/user and return its path."""
        path = self.folder
        for part in Path(name).parts:
            path /= part
            if not path.exists():
                path.mkdir()
                self.give(path)
        return path

    def write_state(self, identity: str, pid: int, root: str = "runc", **annotations: str) -> Path:
        """Write a state in runc's format for a container IDENTITY that claims to be process PID, and return the file's path."""
        state = make_state(identity, pid, annotations)
        return self.write_text(f"{root}/{identity}", "state.json", json.dumps(state))

    def write_text(self, folder: str, name: str, text: str) -> Path:
        """Write TEXT to the file NAME in FOLDER below this user's folder, and return its path."""
        path = self.make_folder(folder) / name
        path.write_text(text)
        self.give(path)
        return path

    def list_processes(self) -> list[int]:
        """Return the pids of this user's processes, without zombies."""
        return list_processes(self.uid)

    @contextmanager
    def unshare(self, *options: str) -> Iterator[int]:
        """Run a process of this user in new namespaces, as a rootless container does, and give its pid. OPTIONS are unshare's."""
        command = self.command("unshare", "--user", "--map-root-user", *options, "sleep", "100000")
        with host.start(*command, cwd="/") as process:
            host.wait_until(lambda: _read(f"/proc/{process.pid}/cmdline").startswith("sleep"))
            yield process.pid


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def make_state(identity: str, pid: int, annotations: dict[str, str]) -> dict[str, Any]:
    """Return the part of runc's state.json that `runc list` needs, for a container IDENTITY with the first process PID."""
    labels = [f"{key}={value}" for key, value in annotations.items()]
    return {
        "id": identity,
        "init_process_pid": pid,
        "init_process_start": read_start_ticks(pid),
        "created": "2024-01-01T00:00:00Z",
        "config": {
            "rootfs": "/",
            "labels": ["bundle=/nonesuch", *labels],
            "cgroups": {"path": f"/{identity}", "memory": 0},
        },
        "rootless": False,
        "cgroup_paths": {},
        "namespace_paths": {},
        "external_descriptors": ["/dev/null"] * 3,
        "intel_rdt_path": "",
    }


@contextmanager
def make_user(name: str) -> Iterator[User]:
    """Make an unprivileged user NAME of this host with numbers for a user namespace, until the context ends."""
    with make_account(name, "--create-home") as uid:
        user = User(uid, name, Path(f"/home/{name}"))
        os.makedirs(user.folder, mode=0o700)
        user.give(user.folder)
        try:
            yield user
            _assert_no_processes(user)
        finally:
            end_processes(uid)
            shutil.rmtree(user.folder)


def _assert_no_processes(user: User) -> None:
    try:
        host.wait_until(lambda: not user.list_processes())
    except AssertionError as error:
        left = {pid: _read(f"/proc/{pid}/cmdline").replace("\0", " ") for pid in user.list_processes()}
        raise AssertionError(f"processes of {user.name} are left: {left}") from error


@contextmanager
def run_rootless_runc(user: User, name: str, **annotations: str) -> Iterator[None]:
    """Run a real container NAME of USER by runc until the context ends."""
    bundle = user.home / f"bundle-{name}"
    runtimes.unpack_busybox(bundle / "rootfs")
    host.run("chown", "-R", f"{user.uid}:{user.uid}", str(bundle))
    in_bundle = ["env", "-C", str(bundle)]
    user.run(*in_bundle, "runc", "spec", "--rootless")
    specification = json.loads((bundle / "config.json").read_text())
    specification["process"].update(terminal=False, args=runtimes.SLEEP)
    specification["annotations"] = annotations
    (bundle / "config.json").write_text(json.dumps(specification))
    runc = ["runc", "--root", str(user.folder / "runc")]
    with open(bundle / "log", "wb") as log:
        command = user.command(*runc, "run", "--detach", "--bundle", str(bundle), name)
        subprocess.run(command, check=True, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield
    finally:
        user.run(*runc, "delete", "--force", name)


@contextmanager
def run_rootless_podman(user: User, name: str, *options: str) -> Iterator[None]:
    """Run a real container NAME of USER by Podman until the context ends."""
    archive = runtimes.make_archive()
    podman = ["podman", "--runtime", "runc", "--cgroup-manager", "cgroupfs"]
    image = "localhost/busybox"
    subprocess.run(
        user.command("podman", "import", "-", image), input=archive, check=True, cwd="/", capture_output=True
    )
    words = ("run", "-d", "--name", name, "--network", "none", *runtimes.PODMAN_LIMITS, *options, image)
    user.run(*podman, *words, *runtimes.SLEEP)
    try:
        yield
    finally:
        user.run("podman", "rm", "-f", "-t", "0", name)
        user.run("podman", "unshare", "rm", "-rf", str(user.home / ".local"))
        # No command of Podman ends the process that holds the user's namespaces for all its commands.
        end_processes(user.uid)
