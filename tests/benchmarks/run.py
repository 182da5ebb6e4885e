# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure the collection and its rivals in one run, since machines differ and are noisy; `make bench` runs this program.

Usage: run.py [NAME…], of: images, containers, rights, scale, calls, trace, connection, push, fetch, drain, slowdown, record, report,
rules, hooks, hosts, huge_report. Without a name it runs all but the last two, which take long.
Prints tables in Markdown.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "integration"))
import starts
import workloads
from support import host, images, serving, sshd
from support.stops import count_stops
from tables import make_ratios, print_table

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import store
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.command_options import (
    CommandOptions,
    parse_command,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.jobs import RIGHTS
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.server import Server
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.image_mounts import open_loop_device
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.docker_engine import DockerEngine
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import outbox
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request import profiles

PREFIX = "crashcart-test"
ROUNDS = 5


def measure(function: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """Return the median time of FUNCTION() in seconds."""
    times = []
    for _round in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@contextmanager
def containers(count: int, *command: str, image: str = "busybox") -> Iterator[list[str]]:
    """Run COUNT containers until the context ends, and give their names."""
    names = [f"cc-bench-{number}" for number in range(count)]
    for name in names:
        host.docker("run", "-d", "--name", name, "--network", "none", f"{PREFIX}/{image}", *command)
    try:
        yield names
    finally:
        host.docker("rm", "-f", *names)


def bench_containers(_inventory: Path) -> None:
    """Measure attach, exec and detach per container, as the difference between a call for 50 and a call for one."""
    count = 50

    def timed(call: Callable[[list[str]], Any], undo: Callable[[list[str]], Any], names: list[str]) -> float:
        start = time.perf_counter()
        call(names)
        taken = time.perf_counter() - start
        undo(names)
        return taken

    def per_container(call: Callable[[list[str]], Any], undo: Callable[[list[str]], Any]) -> float:
        # The calls alternate, so that a slow moment of the machine affects both.
        differences = [timed(call, undo, names) - timed(call, undo, names[:1]) for _round in range(3 * ROUNDS)]
        return statistics.median(differences) / (count - 1) * 1000

    def attach(some: list[str]) -> None:
        host.call_module("crashcart_attach", containers=some)

    def detach(some: list[str]) -> None:
        host.call_module("crashcart_attach", containers=some, state="detached")

    def execute(some: list[str]) -> None:
        host.call_module("crashcart_exec", containers=some, argv=["true"])

    def nothing(_some: list[str]) -> None:
        pass

    def look(some: list[str]) -> None:
        host.call_module("crashcart_attach", containers=some, state="detached", check_mode=True)

    with containers(count) as names:
        pids = [str(host.find_pid(name)) for name in names]
        looked = per_container(look, nothing)
        rows = [
            ["select and inspect, which both have in common", looked],
            ["crashcart_attach, beside that", per_container(attach, detach) - looked],
            ["crashcart_exec true, beside that", per_container(execute, nothing) - looked],
            ["crashcart_attach state=detached, beside that", per_container(detach, attach) - looked],
            [
                "nsenter -a … true",
                measure(lambda: [host.run("nsenter", "-t", pid, "-a", "/bin/true") for pid in pids], 3) / count * 1000,
            ],
            [
                "docker exec … true",
                measure(lambda: [host.docker("exec", name, "/bin/true") for name in names], 1) / count * 1000,
            ],
        ]
    print_table(f"Per container, in one call for {count} (marginal)", ["what", "ms per container"], rows)


def bench_rights(inventory: Path) -> None:
    """Measure a command with each value of `rights`: per container in a call for 50, by the connection, and the stops of the first process."""
    count, commands = 50, 100
    ways = RIGHTS

    def execute(some: list[str], rights: str) -> float:
        start = time.perf_counter()
        host.call_module("crashcart_exec", containers=some, argv=["true"], rights=rights)
        return time.perf_counter() - start

    def look(some: list[str]) -> float:
        start = time.perf_counter()
        host.call_module("crashcart_attach", containers=some, state="detached", check_mode=True)
        return time.perf_counter() - start

    with containers(count) as names:
        for rights in ways:
            execute(names, rights)  # warm
        taken: dict[str, list[float]] = {}
        for _round in range(2 * ROUNDS):  # in turn, so that a slow moment of the machine affects all of them
            selected = look(names) - look(names[:1])
            for rights in ways:
                more = execute(names, rights) - execute(names[:1], rights) - selected
                taken.setdefault(rights, []).append(more / (count - 1) * 1000)
        stops = {}
        for rights in ways:
            host.docker("restart", "-t", "0", names[0])
            with count_stops(host.find_pid(names[0])) as counted:
                for _command in range(commands):
                    host.call_module("crashcart_exec", containers=names[:1], argv=["true"], rights=rights)
            stops[rights] = counted.count
        task = ("ansible.builtin.command", {"argv": ["true"]})
        inside = {
            "ansible_connection": "crashcart.fleet.cart",
            "ansible_cart_container": names[0],
            "ansible_cart_docker_host": os.environ["DOCKER_HOST"],
            "ansible_python_interpreter": "/dev/crashcart/bin/python3",
        }
        calls = [(), *(("-e", json.dumps({**inside, "ansible_cart_rights": rights})) for rights in ways)]
        for options in calls:  # warm
            ansible(inventory, "as_root", *task, *options)
        rounds = [
            [measure(lambda o=options: ansible(inventory, "as_root", *task, *o), 1) for options in calls]
            for _round in range(2 * ROUNDS)
        ]
        plain, *tasks = (statistics.median(column) for column in zip(*rounds))
    rows = [
        [rights, statistics.median(taken[rights]), stops[rights], inside_s, inside_s / plain]
        for rights, inside_s in zip(ways, tasks)
    ]
    heads = ["rights", f"exec, ms per container of {count}", f"stops of the first process by {commands} commands"]
    heads += ["command by the connection, s", "times the same on the host"]
    print_table("Commands under each right", heads, rows)


def bench_scale(_inventory: Path) -> None:
    """Measure attach, exec and detach for more and more containers, without the start of Python and the search for containers."""
    counts = (1, 10, 100, 300)
    command = parse_command(CommandOptions(argv=["true"]))

    def attach(some: list[Container]) -> None:
        serving.attach(some)

    def detach(some: list[Container]) -> None:
        serving.detach(some)

    with containers(max(counts)), Server() as server:
        engine = DockerEngine(None)
        records = [engine.refresh(container) for container in engine.list_containers()]

        def execute(some: list[Container]) -> None:
            serving.execute(some, command, server)

        # Each first attach would make the loop device and each last detach remove it, so one device is kept for all calls.
        image = store.get_image("default")
        times: dict[tuple[str, int], list[float]] = {}
        with open_loop_device(image):
            for _round in range(2 * ROUNDS):
                for count in counts:  # in turn, so that a slow moment of the machine affects all of them
                    for name, call in (("attach", attach), ("exec", execute), ("detach", detach)):
                        start = time.perf_counter()
                        call(records[:count])
                        taken = (time.perf_counter() - start) / count * 1000
                        times.setdefault((name, count), []).append(taken)
    rows = [
        [name, *(statistics.median(times[name, count]) for count in counts)] for name in ("attach", "exec", "detach")
    ]
    rows.append(["all three", *(sum(row[column] for row in rows) for column in range(1, len(counts) + 1))])
    print_table("Milliseconds per container, in one call", ["what", *(f"for {count}" for count in counts)], rows)


def ansible(inventory: Path, target: str, module: str, arguments: dict[str, Any], *options: str) -> None:
    """Run an ad-hoc call. Raises AssertionError when it fails."""
    host.run(
        "ansible",
        target,
        "-i",
        str(inventory),
        "-m",
        module,
        *(["-a", json.dumps(arguments)] if arguments else []),
        *options,
    )


def bench_calls(inventory: Path) -> None:
    """Measure ad-hoc calls of modules over ssh, compared with ping."""
    engine = {"docker_host": os.environ["DOCKER_HOST"]}
    with containers(1) as (name,):
        chosen = {**engine, "containers": [name]}
        calls: list[tuple[str, str, dict[str, Any]]] = [
            ("ansible.builtin.ping", "ansible.builtin.ping", {}),
            ("crashcart_info", "crashcart.fleet.crashcart_info", engine),
            ("crashcart_attach (nothing to do)", "crashcart.fleet.crashcart_attach", chosen),
            ("crashcart_exec true", "crashcart.fleet.crashcart_exec", {**chosen, "argv": ["true"]}),
            ("ftrace_info", "crashcart.fleet.ftrace_info", engine),
        ]
        for _label, module, arguments in calls:
            ansible(
                inventory, "as_root", module, arguments
            )  # warms up the connection and caches, and attaches the image
        # In turn, so that a slow moment of the machine affects all of them.
        rounds = [
            [
                measure(lambda m=module, a=arguments: ansible(inventory, "as_root", m, a), 1)
                for _l, module, arguments in calls
            ]
            for _round in range(2 * ROUNDS)
        ]
        times = [statistics.median(column) for column in zip(*rounds)]
    rows = [[label, taken, taken / times[0]] for (label, _module, _arguments), taken in zip(calls, times)]
    print_table("An ad-hoc call over ssh", ["module", "s", "times ping"], rows)


def bench_trace(inventory: Path) -> None:
    """Measure the playbook trace of one container for a second, less that second, and ftrace_capture, compared with a playbook of one ping."""
    seconds = 1
    loop = "while /bin/true; do /bin/cat /nonesuch; /bin/sleep 0.05; done"
    with containers(1, "/bin/sh", "-c", loop) as (name,), tempfile.TemporaryDirectory() as folder:
        play = Path(folder, "ping.yml")
        task = {"name": "Ping", "ansible.builtin.ping": {}}
        play.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "become": True, "tasks": [task]}]))
        chosen = {"containers": name, "seconds": seconds, "dest": folder}
        variables = json.dumps({f"crashcart_{key}": value for key, value in chosen.items()})
        arguments = json.dumps({**chosen, "docker_host": os.environ["DOCKER_HOST"]})
        where = ("-i", str(inventory), "-l", "as_root")
        capture = ("-b", "-m", "crashcart.fleet.ftrace_capture", "-a", arguments)
        ways: dict[str, tuple[tuple[str, ...], int]] = {
            "a playbook of one ping": (("ansible-playbook", *where, str(play)), 0),
            "trace": (("ansible-playbook", *where, "crashcart.fleet.trace", "-e", variables), seconds),
            "ping, ad hoc": (("ansible", *where, "all", "-b", "-m", "ansible.builtin.ping"), 0),
            "ftrace_capture, ad hoc": (("ansible", *where, "all", *capture), seconds),
        }
        for command, _seconds in ways.values():  # warm
            host.run(*command)
        # In turn, so that a slow moment of the machine affects all of them.
        rounds = [
            {way: measure(lambda c=command: host.run(*c), 1) - waited for way, (command, waited) in ways.items()}
            for _round in range(2 * ROUNDS)
        ]
    times = {way: statistics.median(figures[way] for figures in rounds) for way in ways}
    first = next(iter(times.values()))
    rows = [[way, taken, taken / first] for way, taken in times.items()]
    print_table("A trace of a second over ssh, less that second", ["", "s", "times a playbook of one ping"], rows)


def bench_connection(inventory: Path) -> None:
    """Measure tasks in a container by the connection cart, with an attached image and without, and the same tasks by ssh on the host."""
    tasks: list[tuple[str, dict[str, Any]]] = [
        ("ansible.builtin.ping", {}),
        ("ansible.builtin.command", {"argv": ["true"]}),
        ("ansible.builtin.setup", {"gather_subset": "!all,min"}),
    ]
    rows = []
    with containers(2, image="static") as names:
        host.call_module("crashcart_attach", containers=names[:1])  # its image stays in the page cache
        inside = {
            "ansible_connection": "crashcart.fleet.cart",
            "ansible_cart_docker_host": os.environ["DOCKER_HOST"],
            "ansible_python_interpreter": "/dev/crashcart/bin/python3",
        }
        ways = [(), *(("-e", json.dumps({**inside, "ansible_cart_container": name})) for name in names)]
        for module, arguments in tasks:
            for options in ways:  # warm
                ansible(inventory, "as_root", module, arguments, *options)
            # In turn, so that a slow moment of the machine affects all.
            rounds = [
                [
                    measure(lambda m=module, a=arguments, o=options: ansible(inventory, "as_root", m, a, *o), 1)
                    for options in ways
                ]
                for _round in range(2 * ROUNDS)
            ]
            plain, attached, unattached = (statistics.median(column) for column in zip(*rounds))
            rows.append([module, plain, attached, attached / plain, unattached, unattached / plain])
    heads = ["module", "on the host, s", "where it is attached, s", "times", "where it is not, s", "times"]
    print_table("A task over ssh, and in a container", heads, rows)


def bench_push(inventory: Path) -> None:
    """Measure the push of a 50 MB image, for the first time and again, compared with scp and ansible.builtin.copy."""
    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(f"{folder}/tree")
        with open(f"{folder}/tree/random", "wb") as file:
            file.write(os.urandom(50_000_000))
        image = f"{folder}/bench.squashfs"
        host.run("mksquashfs", f"{folder}/tree", image, "-quiet", "-no-progress", "-comp", "zstd")
        digest = host.run("sha256sum", image).stdout.split()[0]
        info = host.call_module("crashcart_info", gather=["host"])["host"]
        manifest = {"digest": digest, "size": os.stat(image).st_size, "arch": info["arch"], "format": "squashfs"}
        Path(f"{image}.json").write_text(json.dumps({**manifest, "prefix": "/dev/crashcart", "tools": []}))
        variables = json.loads(host.run("ansible-inventory", "-i", str(inventory), "--host", "as_root").stdout)
        ssh = ["-i", variables["ansible_ssh_private_key_file"], *variables["ansible_ssh_common_args"].split()]
        port = str(variables["ansible_port"])

        def ping() -> None:
            ansible(inventory, "as_root", "ansible.builtin.ping", {})

        def push() -> None:
            ansible(inventory, "as_root", "crashcart.fleet.crashcart_image", {"src": image, "name": "bench"})

        def forget() -> None:
            host.call_module("crashcart_image", name="bench", state="absent")

        def copy() -> None:
            ansible(inventory, "as_root", "ansible.builtin.copy", {"src": image, "dest": f"{folder}/copied"})

        def forget_copy() -> None:
            Path(f"{folder}/copied").unlink(missing_ok=True)

        def scp() -> None:
            host.run("scp", "-q", *ssh, "-P", port, image, f"root@127.0.0.1:{folder}/scp")

        ping()
        rounds = []
        for _round in range(2 * ROUNDS):  # in turn, so that a slow moment of the machine affects all of them
            forget()
            forget_copy()
            rounds.append([measure(what, 1) for what in (ping, scp, push, push, copy, copy)])
        base, by_scp, first, again, copied, copied_again = (statistics.median(column) for column in zip(*rounds))
        forget()
    rows = [
        ["scp", by_scp, "", 1.0],
        ["ansible.builtin.ping", base, 0.0, ""],
        ["crashcart_image, first", first, first - base, (first - base) / by_scp],
        ["crashcart_image, again", again, again - base, (again - base) / by_scp],
        ["ansible.builtin.copy, first", copied, copied - base, (copied - base) / by_scp],
        ["ansible.builtin.copy, again", copied_again, copied_again - base, (copied_again - base) / by_scp],
    ]
    print_table("A 50 MB image over ssh", ["what", "s", "s over a ping", "over a ping, times scp"], rows)


def read_peak_mib(pid: int) -> float:
    """Return the highest resident size of process PID so far in MiB, or 0 for a zombie."""
    match = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(match.group(1)) / 1024 if match else 0.0


class PeakMemory:
    """A watch on all processes whose command line matches a pattern, with a look every PERIOD_S seconds.

    PEAK_MIB is the highest resident size of one of them, and FORK_MIB that of one whose parent is another of them.
    """

    def __init__(self, pattern: str, period_s: float = 0.02) -> None:
        self.peak_mib = self.fork_mib = 0.0
        self._pattern = re.compile(pattern)
        self._period_s = period_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self._period_s):
            found = {}
            for pid in os.listdir("/proc"):
                try:
                    if not pid.isdigit() or not self._pattern.search(
                        Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
                    ):
                        continue
                    parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
                    found[pid] = (parent, read_peak_mib(int(pid)))
                except OSError:
                    continue
            self.peak_mib = max([self.peak_mib, *(size for _parent, size in found.values())])
            self.fork_mib = max([self.fork_mib, *(size for parent, size in found.values() if parent in found)])


def bench_fetch(inventory: Path) -> None:
    """Measure a fetch of 200 MB of ring buffer with become, compared with ansible.builtin.fetch of the same bytes."""
    engine = os.environ["DOCKER_HOST"]
    rows = []
    with containers(1) as (name,), tempfile.TemporaryDirectory() as folder:
        host.call_module("ftrace_instance", containers=[name], buffer_size="128MiB", syscalls=["read", "write"])
        script = (
            "for cpu in 0 1; do taskset -c $cpu dd if=/dev/zero of=/dev/null bs=1 count=560000 2>/dev/null & done; wait"
        )
        # The trace does not follow processes of crashcart_exec, so `docker exec` starts the workload.
        host.call_module("crashcart_attach", containers=[name])
        environment = "PATH=/dev/crashcart/bin"
        host.docker("exec", "-e", environment, name, "/dev/crashcart/bin/bash", "-c", script)
        host.call_module("ftrace_instance", containers=[name], state="stopped")
        arguments = {"containers": [name], "docker_host": engine, "dest": f"{folder}/ours"}
        with PeakMemory(r"ansible .*ftrace_fetch") as controller, PeakMemory(
            r"AnsiballZ|python3.*/tmp/ansible|^/usr/bin/python3 *$"
        ) as target:
            start = time.perf_counter()
            capture = host.ad_hoc("as_user", "ftrace_fetch", arguments, "-b", "-i", str(inventory))["captures"][0]
            ours = time.perf_counter() - start
        size = os.stat(capture["path"]).st_size / 1e6
        rows.append(["ftrace_fetch", size, ours, controller.peak_mib, target.peak_mib, 1.0])
        source = f"{folder}/secret"
        host.run("cp", capture["path"], source)
        os.chmod(folder, 0o755)
        os.chmod(source, 0o600)
        with PeakMemory(r"ansible .*builtin.fetch") as controller, PeakMemory(
            r"AnsiballZ|python3.*/tmp/ansible|^/usr/bin/python3 *$"
        ) as target:
            start = time.perf_counter()
            ansible(inventory, "as_user", "ansible.builtin.fetch", {"src": source, "dest": f"{folder}/theirs"}, "-b")
            theirs = time.perf_counter() - start
        rows.append(["ansible.builtin.fetch", size, theirs, controller.peak_mib, target.peak_mib, theirs / ours])
    headings = ["what", "MB", "s", "controller, peak MiB", "target, peak MiB", "times ftrace_fetch"]
    print_table("Fetch with become over ssh", headings, rows)


def bench_drain(_inventory: Path) -> None:
    """Measure the processor time of a fetch on the host: that of the module's process, and the part that grows with the events."""
    rows: list[list[Any]] = []
    with containers(1) as (name,), tempfile.TemporaryDirectory() as folder:
        host.call_module("crashcart_attach", containers=[name])

        def fetch(events: int, methods: list[str]) -> tuple[float, float, int, int, float]:
            """Return CPU and wall time in seconds, events and bytes of the segment, and the module's peak memory in MiB."""
            host.call_module(
                "ftrace_instance", containers=[name], buffer_size="128MiB", syscalls=["read", "write"], state="started"
            )
            dd = f"/dev/crashcart/bin/dd if=/dev/zero of=/dev/null bs=1 count={events // 8} 2>/dev/null"
            script = f"for cpu in 0 1; do /dev/crashcart/bin/taskset -c $cpu {dd} & done; wait"
            host.docker("exec", name, "/dev/crashcart/bin/bash", "-c", script)
            host.call_module("ftrace_instance", containers=[name], state="stopped")
            before, start = os.times(), time.perf_counter()
            process = host.start_module("ftrace_fetch", containers=[name], dest=folder, _methods=methods)
            with PeakMemory(r"modules\.ftrace_fetch") as memory:
                transfer = host.parse_result(*process.communicate())["transfer"]
            wall, after = time.perf_counter() - start, os.times()
            cpu = after.children_user + after.children_system - before.children_user - before.children_system
            host.call_module("ftrace_instance", containers=[name], state="absent")
            for file in Path(outbox.FOLDER).iterdir():
                file.unlink()
            return cpu, wall, events, transfer["size"], memory.peak_mib

        for methods in (["zstd"], ["zlib"]):
            few, many = (fetch(count, methods) for count in (80_000, 4_000_000))
            per_million = (many[0] - few[0]) / (many[2] - few[2]) * 1e6
            rows.append([methods[0], many[2] / 1e6, many[3] / 1e6, many[1], many[0], few[0], per_million, many[4]])
    headings = [
        "compression",
        "million events",
        "MB",
        "s",
        "CPU, s",
        "CPU of a small one, s",
        "CPU per million events, s",
        "peak MiB",
    ]
    print_table("Fetch, on the host", headings, rows)


def bench_slowdown(_inventory: Path) -> None:
    """Measure workloads that only make system calls, the worst case for every tracer, under each tracer and each profile."""
    code = Path(workloads.__file__).read_text(encoding="utf-8")
    script = ["/usr/bin/python3", "-S", "-c", code]
    install = Path(__file__).parents[2] / "tools" / "install_packages.sh"
    host.run(str(install), "linux-perf", "strace")

    def in_container(name: str) -> dict[str, float]:
        return dict(json.loads(host.docker("exec", name, *script, "1")))

    def on_host(*tracer: str, part: str = "1") -> dict[str, float]:
        return dict(json.loads(host.run(*tracer, *script, part).stdout))

    def traced(name: str, looked_at: str, **options: Any) -> dict[str, float]:
        host.call_module("ftrace_instance", containers=[name], **options)
        try:
            return in_container(looked_at)
        finally:
            host.call_module("ftrace_instance", containers=[name], state="absent")

    # A profile with bounds would stop these workloads at once.
    unbounded: dict[str, dict[str, Any]] = {
        name: {"max_rate": 10**9, "max_size": "8GiB"} if profile.defaults else {}
        for name, profile in profiles.PROFILES.items()
    }
    with containers(2, image="python") as (name, other):
        ways: dict[str, Callable[[], dict[str, float]]] = {
            "nothing": lambda: in_container(name),
            **{
                f"profile {profile}": lambda profile=profile: traced(name, name, profile=profile, **unbounded[profile])
                for profile in profiles.PROFILES
            },
            "profile syscalls, mode record": lambda: traced(name, name, profile="syscalls", mode="record"),
            "its neighbour has profile syscalls": lambda: traced(other, name, profile="syscalls"),
            "its neighbour has profile sched": lambda: traced(other, name, profile="sched"),
            "nothing, on the host": on_host,
            "perf trace": lambda: on_host("perf", "trace", "-o", "/dev/null", part="0.2"),
            "strace -f": lambda: on_host("strace", "-f", "-o", "/dev/null", part="0.02"),
        }
        # In turn, so that a slow moment of the machine affects all of them.
        rounds = [{way: look() for way, look in ways.items()} for _round in range(ROUNDS)]
    rows = make_ratios({way: [figures[way] for figures in rounds] for way in ways})
    print_table("Times untraced, by who looks", ["", *workloads.WORKLOADS], rows)


def read_process_seconds(pid: int) -> float:
    """Return the processor time of process PID so far in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def bench_record(_inventory: Path) -> None:
    """Measure the recorder's processor time and memory at rising rates of events, with 2 MiB of buffer for each CPU."""
    storm = Path(images.__file__).with_name("workload_storm.py").read_text(encoding="utf-8")
    seconds = 10
    rows = []
    for rate in (10_000, 100_000, 250_000, 1_000_000):
        with containers(1, "/usr/bin/python3", "-S", "-c", storm, str(seconds), str(rate), image="python") as (name,):
            host.call_module("ftrace_instance", containers=[name], mode="record", max_size="8GiB", min_free="1GiB")
            pid = host.call_module("crashcart_info", gather=["recorder"])["recorder"]["pid"]
            before = read_process_seconds(pid)
            host.docker("kill", "--signal", "USR1", name)
            host.wait_until(lambda name=name: "calls" in host.docker("logs", name), 6 * seconds)
            taken_s = float(host.docker("logs", name).split("calls ")[1].split()[1])
            recorder_s = read_process_seconds(pid) - before
            peak_mib = read_peak_mib(pid)
            host.call_module("ftrace_instance", containers=[name], state="stopped")
            with tempfile.TemporaryDirectory() as folder:
                fetched = host.ad_hoc("localhost", "ftrace_fetch", {"dest": folder, "containers": [name]})
            manifest = fetched["captures"][0]["manifest"]
            host.call_module("ftrace_instance", containers=[name], state="absent")
        events = manifest["entries"]
        rows.append([events / taken_s, events / 1e6, manifest["lost"], recorder_s / events * 1e6, peak_mib])
    headings = ["events per second", "million events", "lost", "recorder's CPU per million, s", "recorder's peak, MiB"]
    print_table("mode: record", headings, rows)


_REPORT = """\
import json, sys
from ansible_collections.crashcart.fleet.plugins.plugin_utils import report_runner
result = report_runner.run({"captures": [sys.argv[1]], "dest": sys.argv[2], "formats": ["json", "text"]}, sys.argv[2])
sys.exit(result.get("msg"))
"""


def bench_report(_inventory: Path) -> None:
    """Measure reports of a small and of a large capture, compared with `trace-cmd report` of the same one, which pairs no calls."""
    _compare_reports((5_000, 3_000_000))


def bench_huge_report(_inventory: Path) -> None:
    """Measure the report of 100 million events: some ten minutes, and 6 GiB on the disk."""
    _compare_reports((50_000_000,), rounds=1)


def _compare_reports(counts: Sequence[int], rounds: int = ROUNDS) -> None:
    """Print the processor time and memory of reports on captures of COUNTS calls; all processes are whole, with imports."""
    storm = Path(images.__file__).with_name("workload_storm.py").read_text(encoding="utf-8")
    rows = []
    for count in counts:
        seconds = max(count / 1_000_000, 1)
        command = ("/usr/bin/python3", "-S", "-c", storm, str(seconds), str(int(count / seconds)))
        with containers(1, *command, image="python") as (name,), tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
            host.call_module("ftrace_instance", containers=[name], mode="record", max_size="8GiB", min_free="1GiB")
            host.docker("kill", "--signal", "USR1", name)
            host.wait_until(lambda name=name: "calls" in host.docker("logs", name), 6 * seconds + 60)
            host.call_module("ftrace_instance", containers=[name], state="stopped")
            capture = host.ad_hoc("localhost", "ftrace_fetch", {"dest": folder, "containers": [name]})["captures"][0]
            host.call_module("ftrace_instance", containers=[name], state="absent")
            ways = {
                "ours": [sys.executable, "-c", _REPORT, capture["path"], folder],
                "theirs": ["trace-cmd", "report", capture["path"]],
            }
            _measure_process(ways["ours"])  # this compiles
            # In turn, so that a slow moment of the machine affects both.
            figures = [{way: _measure_process(argv) for way, argv in ways.items()} for _round in range(rounds)]
        ours_s, taken_s, peak_mib = (statistics.median(row["ours"][n] for row in figures) for n in range(3))
        theirs_s = statistics.median(row["theirs"][0] for row in figures)
        rows.append([capture["manifest"]["entries"] / 1e6, ours_s, theirs_s, theirs_s / ours_s, taken_s, peak_mib])
    headings = [
        "million events",
        "report, CPU s",
        "trace-cmd report, CPU s",
        "times ours",
        "report, s",
        "its peak, MiB",
    ]
    print_table("A report", headings, rows)


def _measure_process(argv: Sequence[str]) -> tuple[float, float, float]:
    """Run ARGV to its end, and return its processor time, its time, both in seconds with its children, and their peak of memory in MiB."""
    begun = time.perf_counter()
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as process:
        _pid, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, argv
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - begun, usage.ru_maxrss / 1024


def bench_hosts(inventory: Path) -> None:
    """Measure calls on up to 200 hosts with equal forks, compared with a ping, and the controller's memory.

    The hosts are names of this machine, each with an ssh session of its own, so this machine does all the hosts' work, too. As many
    containers as a host may have are theirs in turn: with one for each name, each call would look at hundreds.
    """
    counts, forks = {1: 3, 10: 2, 50: 1, 200: 1}, 10
    loop = "while /bin/true; do /bin/sleep 3; done"
    with containers(20, "/bin/sh", "-c", loop) as names, tempfile.TemporaryDirectory() as work:
        sessions = [f"{work}/{number}" for number in range(max(counts))]
        hosts = {
            f"h{number}": {
                "ansible_user": "root",
                "crashcart_containers": names[number % len(names)],
                "ansible_control_path": session,
            }
            for number, session in enumerate(sessions)
        }
        Path(work, "many.json").write_text(json.dumps({"all": {"children": {"many": {"hosts": hosts}}}}))
        Path(work, "ping.yml").write_text(
            json.dumps(
                [{"hosts": "all", "gather_facts": False, "become": True, "tasks": [{"ansible.builtin.ping": {}}]}]
            )
        )
        os.environ["ANSIBLE_SSH_ARGS"] = "-C -o ControlMaster=auto -o ControlPersist=1h"
        for count, rounds in counts.items():
            some = names[:count]
            options = ("-i", str(inventory), "-i", f"{work}/many.json", "-f", str(forks))
            ways = _list_ways(work, options, f"many[0:{count - 1}]")
            host.run(*ways[PING])  # opens the sessions
            figures: dict[str, list[tuple[float, float, float]]] = {way: [] for way in ways}
            for number in range(rounds):
                for way, command in ways.items():
                    if way == COLLECTION:
                        _record(some)
                    figures[way].append(_watch(*command, "-e", f"crashcart_dest={work}/{count}-{number}"))
                host.call_module("ftrace_instance", containers=some, state="absent")
            medians = {way: [statistics.median(column) for column in zip(*found)] for way, found in figures.items()}
            rows: list[list[Any]] = [
                [way, taken, taken / count, taken / medians[PING][0], main, fork]
                for way, (taken, main, fork) in medians.items()
            ]
            headings = ["", "s", "s per host", "times ping", "controller, peak MiB", "a fork of it, peak MiB"]
            print_table(f"{count} hosts over ssh with {forks} forks, this machine being all of them", headings, rows)
        del os.environ["ANSIBLE_SSH_ARGS"]
        for session in sessions:
            host.run("ssh", "-O", "exit", "-o", f"ControlPath={session}", "none", check=False)


PING, COLLECTION = "a playbook of one ping", "collect"


def _list_ways(work: str, options: Sequence[str], chosen: str) -> dict[str, tuple[str, ...]]:
    """Return the commands that are compared on the hosts CHOSEN, with OPTIONS. WORK has the playbook of a ping.

    The capture is not the playbook's, which traces everywhere at once: here each call of any process would pay for all traces.
    """
    play = ("ansible-playbook", *options, "-l", chosen)
    words: dict[str, Any] = {"containers": "{{ crashcart_containers }}", "seconds": 1, "dest": "{{ crashcart_dest }}"}
    words["docker_host"] = os.environ["DOCKER_HOST"]
    capture = ("-m", "crashcart.fleet.ftrace_capture", "-a", json.dumps(words))
    all_three = (f"crashcart.fleet.{name}" for name in ("attach", "exec", "detach"))
    return {
        "attach, exec and detach": (*play, "-e", json.dumps({"crashcart_command": "true"}), *all_three),
        "ftrace_capture of a second, ad hoc": ("ansible", *options, chosen, "-b", *capture),
        PING: (*play, f"{work}/ping.yml"),
        COLLECTION: (*play, "-e", "crashcart_consume=false", "crashcart.fleet.collect"),
    }


def _record(names: Sequence[str]) -> None:
    """Make a stopped trace of each container of NAMES that a collection finds. Its event is a rare one: a thread pays for all traces."""
    chosen: dict[str, Any] = {"containers": names}
    host.call_module("ftrace_instance", **chosen, events=["sched:sched_process_exec"], buffer_size="64KiB")
    time.sleep(4)
    host.call_module("ftrace_instance", **chosen, state="stopped")


def _watch(*command: str) -> tuple[float, float, float]:
    """Run COMMAND of Ansible, and return the seconds that it took, and the peak sizes in MiB of the controller and of one of its forks."""
    with PeakMemory(r"bin/ansible", 0.5) as memory:
        start = time.perf_counter()
        host.run(*command)
        taken = time.perf_counter() - start
    return taken, memory.peak_mib, memory.fork_mib


def bench_rules(inventory: Path) -> None:
    """Measure what a standing rule costs a start."""
    starts.measure_rules(inventory.parent)


def bench_hooks(inventory: Path) -> None:
    """Measure what the start hook costs a container's start and end together."""
    starts.measure_hooks(inventory.parent)


def bench_images(_inventory: Path) -> None:
    """Measure builds without and with a cache, sizes, and the first start of a program from an image that is not in the page cache."""
    rows: list[list[Any]] = []
    starts: list[list[Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        cache = f"{folder}/cache"

        def build(name: str, kind: str) -> tuple[float, int]:
            path = f"{folder}/{name}.{kind}"
            Path(path).unlink(missing_ok=True)
            start = time.perf_counter()
            image = host.call_module("crashcart_build", dest=path, sets=[name], format=kind, cache=cache)["image"]
            return time.perf_counter() - start, image["size"]

        for name in ("minimal", "default", "network", "debug", "python"):
            cold = build(name, "squashfs")[0]
            for kind in ("squashfs", "erofs", "ext4"):
                warm, size = build(name, kind)
                rows.append([name, kind, cold if kind == "squashfs" else "", warm, size / 1e6])
        for kind in ("squashfs", "erofs", "ext4"):
            taken = [_time_first_start(f"{folder}/default.{kind}") for _round in range(ROUNDS)]
            starts.append([kind, *(statistics.median(column) * 1e3 for column in zip(*taken))])
    print_table("Images", ["set", "format", "build with an empty cache, s", "build, s", "size, MB"], rows)
    print_table("From a cold image, default set", ["format", "mount, ms", "first bash, ms", "second bash, ms"], starts)


def _time_first_start(path: str) -> tuple[float, ...]:
    """Return the seconds of a mount of the image PATH, of the first start of its bash, and of the second."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    script = (
        "import os, subprocess, sys, time\n"
        "os.makedirs('/dev/crashcart', exist_ok=True)\n"
        "stamps = [time.perf_counter()]\n"
        "for command in (['mount', '-o', 'loop,ro', sys.argv[1], '/dev/crashcart'], *[['/dev/crashcart/bin/bash', '-c', ':']] * 2):\n"
        "    subprocess.run(command, check=True)\n"
        "    stamps.append(time.perf_counter())\n"
        "print(*(after - before for before, after in zip(stamps, stamps[1:])))\n"
    )
    try:
        return tuple(map(float, host.run("unshare", "-m", sys.executable, "-c", script, path).stdout.split()))
    finally:
        os.rmdir("/dev/crashcart")


BENCHMARKS = {
    "images": bench_images,
    "containers": bench_containers,
    "rights": bench_rights,
    "scale": bench_scale,
    "calls": bench_calls,
    "trace": bench_trace,
    "connection": bench_connection,
    "push": bench_push,
    "fetch": bench_fetch,
    "drain": bench_drain,
    "slowdown": bench_slowdown,
    "record": bench_record,
    "report": bench_report,
    "rules": bench_rules,
    "hooks": bench_hooks,
    "hosts": bench_hosts,
    "huge_report": bench_huge_report,
}
LONG = ("hosts", "huge_report")


def main() -> None:
    """Run the benchmarks on the command line, or all of them but the longest."""
    wanted = sys.argv[1:] or [name for name in BENCHMARKS if name not in LONG]
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder, "hosts")
        local.write_text(
            'localhost ansible_connection=local ansible_python_interpreter="{{ ansible_playbook_python }}"\n'
        )
        os.environ.update(ANSIBLE_INVENTORY=str(local), ANSIBLE_PIPELINING="1", ANSIBLE_NOCOLOR="1")
        images.make(PREFIX, "busybox", "static", "python", "redis", "nginx")
        host.playbook("install")
        try:
            with sshd.serve(Path(folder, "ssh")) as inventory:
                for name in wanted:
                    BENCHMARKS[name](inventory)
        finally:
            host.playbook("cleanup")


if __name__ == "__main__":
    main()
