# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Types what the console blocks of the README and of docs/playbooks.md type, and compares what comes out with what they show.

It is done twice, against this machine as the host web1 with a container called api:

- in the checkout, with its ansible.cfg, locally;
- with the collection installed from the checkout into an environment of its own, over ssh as a user whose sudo asks for a password.

A block follows a line `<!-- console: WHERE -->`, where WHERE is `checkout`, `installed` or `both`. Lines that begin with `$ ` are
typed, all of a way in one shell. The others are the output, in which a line `...` stands for any lines. Ids, times, sizes and other
numbers are masked on both sides, as is what differs between hosts; the recap of a playbook is compared as it is.
"""

from __future__ import annotations

import difflib
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/integration"))

from support import alone, sshd

from ansible_collections.crashcart.fleet.tools.make_container_image import make_image

PAGES = ("README.md", "docs/playbooks.md")  # in the order in which they are typed
STATE = (Path("/var/lib/crashcart"), Path("/run/crashcart"))
# What the container of the README does: it looks for a file that is not there, and says so.
LOOP = "while true; do busybox cat /etc/api/database.conf; busybox sleep 0.2; done"
MASKS = (
    # What differs from host to host.
    (r"Linux \S+ \(\w+\), cgroups \w+, Docker [\w.+~-]+", "Linux"),
    (r" --host unix://\S+", ""),
    (r"ssh -t [^']*'sudo (.*)'", r"\1"),
    (r" by root( \(login [\w-]+\))?", " by root"),
    # What differs from run to run.
    (r"\b[0-9a-f]{12,64}\b", "ID"),
    (r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(\+\d\d:\d\d|Z)", "TIME"),
    (r"\b\d{8}T\d{6}(\.\d+)?Z", "TIME"),
    (r"\b\d+(\.\d+)?\b", "N"),
    # The columns of a table are as wide as its numbers, and so is a line of asterisks.
    (r" {2,}", " "),
    (r"\*{3,}", "***"),
)


@dataclass
class Step:
    """A command of the README, with the lines that it shows."""

    command: str
    shown: list[str] = field(default_factory=list)


def parse_steps(text: str, where: str) -> list[Step]:
    """The steps of the README's TEXT for one of the two ways, `checkout` or `installed`."""
    steps: list[Step] = []
    blocks = re.findall(r"^<!-- console: (\w+) -->\n```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == text.count("```console"), "a console block does not say where it is typed"
    for found, block in blocks:
        if found not in (where, "both"):
            continue
        for line in block.splitlines():
            if line.startswith("$ "):
                steps.append(Step(line[2:]))
            else:
                steps[-1].shown.append(line)
    return steps


def mask(line: str) -> str:
    """LINE without what differs from run to run."""
    if re.match(r"\w+ +: ok=\d+ ", line):
        return re.sub(" {2,}", " ", line.rstrip())
    for pattern, replacement in MASKS:
        line = re.sub(pattern, replacement, line)
    return line.rstrip()


def matches(shown: list[str], said: list[str]) -> bool:
    """Return True if the lines SAID are the lines SHOWN, all of them masked; `...` is any number of lines."""
    if not shown:
        return not said
    if shown[0] == "...":
        return any(matches(shown[1:], said[index:]) for index in range(len(said) + 1))
    return bool(said) and shown[0] == said[0] and matches(shown[1:], said[1:])


def run_steps(steps: list[Step], environment: dict[str, str], folder: Path) -> list[tuple[int, list[str]]]:
    """The exit code and the lines of each of STEPS, which are typed in one shell in FOLDER."""
    mark = f"== {secrets.token_hex(8)}"
    script = "".join(f"{step.command}\ncode=$?; echo; echo '{mark}' $code\n" for step in steps)
    done = subprocess.run(
        ["bash"],
        input=script,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env=environment,
        check=False,
    )
    said = re.findall(rf"(.*?)\n{mark} (\d+)\n", done.stdout, re.DOTALL)
    if len(said) != len(steps):
        raise SystemExit(f"the shell ended after {len(said)} of {len(steps)} commands:\n{done.stdout}")
    return [(int(code), output.rstrip("\n").lstrip("\n").splitlines()) for output, code in said]


def check_way(name: str, environment: dict[str, str], folder: Path) -> int:
    """Type all of the README for the way NAME in FOLDER, and tell what differs: how many commands that are."""
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    steps = parse_steps(text.replace("CHECKOUT", str(ROOT)), name)
    assert len(steps) >= 10, f"there are {len(steps)} commands only for `{name}`"
    wrong = 0
    for step, (code, lines) in zip(steps, run_steps(steps, environment, folder), strict=True):
        shown = [mask(line.replace("/home/you", str(folder))) for line in step.shown]
        said = [mask(line) for line in lines]
        if code == 0 and matches(shown, said):
            print(f"{name}: ok: {step.command}", flush=True)
            continue
        wrong += 1
        print(f"{name}: exit code {code}, the README's lines are marked with -: {step.command}", flush=True)
        print("\n".join(difflib.ndiff(shown, said)), "\n---- as it was said:", *lines, sep="\n", flush=True)
    return wrong


@contextmanager
def has_container() -> Iterator[None]:
    """A container called api, as long as the context lasts."""
    busybox = "/bin/busybox"
    make_image("readme/api", files={busybox: busybox, "/bin/sh": busybox}, cmd=["/bin/sh", "-c", LOOP])
    subprocess.run(
        ["docker", "run", "-d", "--name", "api", "--network", "none", "readme/api"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        subprocess.run(["docker", "rm", "-f", "api"], check=True, stdout=subprocess.DEVNULL)


def make_environment(inventory: Path, **more: str) -> dict[str, str]:
    """Return the environment of a user's shell: without the variables of the tests, with INVENTORY and MORE."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "MAKE", "PYTHON"))}
    return {**kept, "ANSIBLE_INVENTORY": str(inventory), "ANSIBLE_NOCOLOR": "1", "COLUMNS": "80", **more}


def check_checkout(folder: Path) -> int:
    """The way of the checkout, locally."""
    inventory = folder / "hosts"
    inventory.write_text('web1 ansible_connection=local ansible_python_interpreter="{{ ansible_playbook_python }}"\n')
    return check_way("checkout", make_environment(inventory), ROOT)


def check_installed(folder: Path) -> int:
    """The way of who has installed it, over ssh as a user with a password for sudo."""
    home = folder / "home"
    home.mkdir()
    for name in (".cache", ".config"):  # images and packages that are there, and where pip finds more
        (home / name).symlink_to(Path.home() / name)
    password = folder / "password"
    password.write_text(secrets.token_hex(12))
    password.chmod(0o600)
    # The Python that runs this is fit for it, but not the environment that it is of.
    folders = [os.path.dirname(os.path.realpath(sys.executable)), *os.environ["PATH"].split(os.pathsep)]
    path = os.pathsep.join(one for one in folders if not one.startswith(str(ROOT)))
    with sshd.serve(folder / "sshd", password.read_text(), {"DOCKER_HOST": os.environ["DOCKER_HOST"]}) as written:
        inventory = folder / "hosts.yml"
        inventory.write_text(
            re.sub(
                r"^  hosts:\n.*",
                f"  hosts:\n    web1:\n      ansible_user: {sshd.USER}\n",
                written.read_text(),
                flags=re.MULTILINE | re.DOTALL,
            )
        )
        # pip warns of what it finds in the machine's configuration.
        more = {"HOME": str(home), "PATH": path, "PIP_QUIET": "2", "ANSIBLE_BECOME_PASSWORD_FILE": str(password)}
        return check_way("installed", make_environment(inventory, **more), home)


def main() -> None:
    """Both ways; exit with 1 where anything differs."""
    for path in STATE:
        if path.exists():
            raise SystemExit(f"this host is in use: {path} is there, and the README ends with a cleanup")
    if any(path.is_file() for path in (ROOT / "traces").rglob("*")):
        raise SystemExit("there are traces in ./traces: move them away first")
    wrong = 0
    # Not below the build folder: sshd reads keys as its user.
    folder = Path(tempfile.mkdtemp(prefix="crashcart-readme-"))
    try:
        for check in (check_checkout, check_installed):
            start = time.monotonic()
            with alone.hold_kernel(), has_container():
                wrong += check(folder)
            print(f"{check.__name__}: {time.monotonic() - start:.0f} s", flush=True)
    finally:
        shutil.rmtree(folder)
        shutil.rmtree(ROOT / "traces", ignore_errors=True)
        if any(path.exists() for path in STATE):
            subprocess.run(
                ["ansible-playbook", "-i", str(ROOT / "inventory"), "crashcart.fleet.cleanup"], check=True, cwd=ROOT
            )
    if wrong:
        raise SystemExit(f"{wrong} of the README's commands do not say what it shows")


if __name__ == "__main__":
    main()
