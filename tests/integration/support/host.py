# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run modules, ansible and docker on the host, and read the kernel's state without code of the collection."""

from __future__ import annotations

import gc
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from ansible.module_utils import basic
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from support.speed import pause, seconds

__all__ = ["pause", "seconds"]  # tests call them as host.pause and host.seconds
COLLECTION = "ansible_collections.crashcart.fleet"
TRACEFS = "/sys/kernel/tracing"
DEFAULT_IMAGE = os.path.expanduser("~/.cache/crashcart/default.squashfs")


class ModuleFailed(Exception):
    """A module that has ended with failed=true. RESULT is its whole result."""

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__(result.get("msg", result))
        self.result = result


def run(*command: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run COMMAND and return the ended process with its output as text. Raises AssertionError when CHECK is set and COMMAND fails."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, **options)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: rc {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


@contextmanager
def start(*command: str, **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Start COMMAND and kill it at the context's end."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def docker(*arguments: str, check: bool = True, **options: Any) -> str:
    """Run `docker ARGUMENTS` and return its output."""
    return run("docker", *arguments, check=check, **options).stdout.strip()


def call_module(module: str, /, *, check_mode: bool = False, diff: bool = False, **arguments: Any) -> dict[str, Any]:
    """Run MODULE on this host in a process of its own without Ansible, and return its result. Raises ModuleFailed when it fails.

    The process is forked from this one, which has imported everything already. That saves most of a module's time. ftrace_report is an action,
    which has a process of its own.
    """
    if module == "ftrace_report":
        return _report(arguments, check_mode)
    program = importlib.import_module(f"{COLLECTION}.plugins.modules.{module}")
    text = _make_arguments(check_mode, diff, arguments)
    with tempfile.TemporaryFile("w+", errors="replace") as stdout, tempfile.TemporaryFile(
        "w+", errors="replace"
    ) as stderr:
        pid = os.fork()
        if pid == 0:
            _become_module(program, text, stdout.fileno(), stderr.fileno())
        deadline = time.monotonic() + seconds(120)
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)
        return parse_result(*(_read(file) for file in (stdout, stderr)))


def _report(arguments: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Return the result of the action ftrace_report."""
    # The action itself is not imported: with actions, Ansible treats warnings of modules otherwise.
    runner = importlib.import_module(f"{COLLECTION}.plugins.plugin_utils.report_runner")
    checked = ArgumentSpecValidator(runner.ARGUMENTS, required_one_of=runner.REQUIRED_ONE_OF).validate(arguments)
    if checked.error_messages:
        raise ModuleFailed({"failed": True, "msg": "; ".join(checked.error_messages)})
    result: dict[str, Any] = runner.run({**checked.validated_parameters, "check_mode": check_mode}, os.getcwd())
    if result.get("failed"):
        raise ModuleFailed(result)
    return result


def execute(**arguments: Any) -> list[dict[str, Any]]:
    """Return the results of crashcart_exec, whatever the exit codes are. Raises ModuleFailed where the command could not be run."""
    try:
        return list(call_module("crashcart_exec", **arguments)["results"])
    except ModuleFailed as failed:
        if failed.result.get("failed_containers") != [] or not any(ran["rc"] for ran in failed.result["results"]):
            raise
        return list(failed.result["results"])


def _read(file: Any) -> str:
    file.seek(0)
    return str(file.read())


def _become_module(program: Any, text: str, stdout: int, stderr: int) -> NoReturn:
    status = 1
    # To collect the tests' garbage would close descriptors by numbers that belong to this process's own files now.
    gc.freeze()
    try:
        for wanted, fd in ((1, stdout), (2, stderr)):
            os.dup2(fd, wanted)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.closerange(3, 4096)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(fd, mode) for fd, mode in ((0, "r"), (1, "w"), (2, "w")))
        basic._ANSIBLE_ARGS = text.encode("utf-8", "surrogateescape")
        basic._ANSIBLE_PROFILE = "legacy"
        program.main()
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _make_arguments(check_mode: bool, diff: bool, arguments: dict[str, Any]) -> str:
    parameters = {**arguments, "_ansible_check_mode": check_mode, "_ansible_diff": diff, "_ansible_version": "2.19"}
    return json.dumps({"ANSIBLE_MODULE_ARGS": parameters})


def start_module(
    module: str, /, *, check_mode: bool = False, diff: bool = False, new_session: bool = False, **arguments: Any
) -> subprocess.Popen[str]:
    """Start MODULE on this host as a program, as Ansible does, and return the process without waiting for its end."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"{COLLECTION}.plugins.modules.{module}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=new_session,
    )
    assert process.stdin is not None
    process.stdin.write(_make_arguments(check_mode, diff, arguments))
    process.stdin.close()
    process.stdin = None
    return process


def parse_result(stdout: str, stderr: str) -> dict[str, Any]:
    """Return a module's result from its output. Raises ModuleFailed when the module has failed, AssertionError without a result."""
    try:
        result: dict[str, Any] = json.loads(stdout)
    except ValueError as error:
        raise AssertionError(f"no result: {stdout}\n{stderr}") from error
    if result.get("failed"):
        raise ModuleFailed(result)
    return result


def ad_hoc(host: str, module: str, arguments: dict[str, Any] | None = None, *options: str) -> dict[str, Any]:
    """Return the result of `ansible HOST -m crashcart.fleet.MODULE`, with its action plugin. Raises ModuleFailed when it fails."""
    name = module if "." in module else f"crashcart.fleet.{module}"
    environment = {**os.environ, "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}
    done = run("ansible", host, "-m", name, "-a", json.dumps(arguments or {}), *options, check=False, env=environment)
    _before, arrow, text = done.stdout.partition("=> ")
    if not arrow:
        raise AssertionError(f"ansible said: {done.stdout}\n{done.stderr}")
    result: dict[str, Any] = json.loads(text)
    if done.returncode != 0:
        raise ModuleFailed(result)
    return result


def run_task(
    pattern: str, module: str, arguments: dict[str, Any] | None, *options: str, before: tuple[str, ...] = (), **how: Any
) -> dict[str, Any]:
    """Return the result of a task of any MODULE on PATTERN, which means one host. Raises ModuleFailed when it fails.

    BEFORE are words that go before `ansible` in the command; HOW are options of `run`.
    """
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        words = ["-a", json.dumps(arguments)] if arguments else []
        done = run(*before, "ansible", pattern, "-m", module, *words, "-t", folder, *options, check=False, **how)
        names = os.listdir(folder)
        if len(names) != 1:
            raise AssertionError(f"ansible said: {done.stdout}\n{done.stderr}")
        with open(os.path.join(folder, names[0]), encoding="utf-8", errors="replace") as file:
            result: dict[str, Any] = json.load(file)
    if done.returncode != 0:
        raise ModuleFailed(result)
    return result


def playbook(name: str, /, *options: str, check: bool = True, **variables: Any) -> subprocess.CompletedProcess[str]:
    """Run the collection's playbook NAME by its full name. VARIABLES are given without their prefix crashcart_."""
    extra = ["-e", json.dumps({f"crashcart_{key}": value for key, value in variables.items()})] if variables else []
    environment = {**os.environ, "ANSIBLE_CALLBACK_RESULT_FORMAT": "yaml"}
    return run("ansible-playbook", f"crashcart.fleet.{name}", *extra, *options, check=check, env=environment)


def clean_up() -> None:
    """Remove everything of the collection from this host by its modules, as the slower cleanup role does."""
    call_module("crashcart_attach", state="detached", everything=True, busy="lazy")
    call_module("ftrace_instance", state="absent", everything=True)
    info = call_module("crashcart_info", gather=["images"])
    for image in info["images"]:
        call_module("crashcart_image", name=image["name"], state="absent", force=True)
    for folder in ("/var/lib/crashcart", "/run/crashcart"):
        shutil.rmtree(folder, ignore_errors=True)
    wait_until(lambda: not any(call_module("crashcart_info", gather=["census"])["census"].values()))
    wait_until_empty(list_processes)


def wait_until(condition: Any, timeout_s: float = 20.0) -> Any:
    """Wait until CONDITION() is true and return its value. Raises AssertionError after TIMEOUT_S seconds of a usual machine."""
    deadline = time.monotonic() + seconds(timeout_s)
    while True:
        value = condition()
        if value or time.monotonic() > deadline:
            assert value, "it did not come true in time"
            return value
        time.sleep(0.02)


def wait_until_empty(look: Callable[[], list[Any]], timeout_s: float = 20.0) -> None:
    """Wait until LOOK() returns an empty list. Raises AssertionError, which shows what is left, after TIMEOUT_S seconds of a usual machine."""
    deadline = time.monotonic() + seconds(timeout_s)
    while (left := look()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == []


def list_processes() -> list[str]:
    """Return pid and name of each process of the collection on this host: its recorder, watchdog, guards and supervisors."""
    return run("pgrep", "-l", "^crashcart-", check=False).stdout.splitlines()


def read_host_state() -> dict[str, Any]:
    """Return the state that check mode must not change: mounts, loop devices, trace instances, and files of the collection."""
    files = {}
    for top in ("/var/lib/crashcart", "/run/crashcart"):
        for folder, _folders, names in os.walk(top):
            for name in names:
                path = os.path.join(folder, name)
                status = os.lstat(path)
                files[path] = (status.st_ino, status.st_size, status.st_mtime_ns)
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        # The engine adds and removes these mounts with its containers.
        mounts = [line for line in file if " - overlay " not in line and " - nsfs " not in line]
    return {
        "files": files,
        "mounts": mounts,
        "loops": list_loop_devices(),
        "instances": {name: _read_instance(name) for name in list_instances()},
    }


def list_loop_devices() -> list[str]:
    """Return losetup's lines about loop devices of tool images."""
    return [line for line in run("losetup", "-a").stdout.splitlines() if "crashcart" in line]


def list_instances() -> list[str]:
    """Return the names of the collection's trace instances."""
    return [name for name in os.listdir(f"{TRACEFS}/instances") if name.startswith("crashcart")]


def _read_instance(name: str) -> dict[str, str]:
    texts = {}
    for file in ("tracing_on", "set_event", "buffer_size_kb", "trace_clock", "set_event_pid"):
        with open(f"{TRACEFS}/instances/{name}/{file}", encoding="utf-8") as opened:
            texts[file] = opened.read()
    return texts


def read_container_mounts(name: str) -> str:
    """Return the mount table of container NAME."""
    with open(f"/proc/{find_pid(name)}/mountinfo", encoding="utf-8") as file:
        return file.read()


def list_commands(name: str) -> list[str]:
    """Return the command lines of all processes in the pid namespace of container NAME, also of those that the collection has started.

    `docker top` goes by the cgroup instead.
    """
    namespace = os.readlink(f"/proc/{find_pid(name)}/ns/pid")
    commands = []
    for pid in os.listdir("/proc"):
        try:
            if pid.isdigit() and os.readlink(f"/proc/{pid}/ns/pid") == namespace:
                with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
                    commands.append(file.read().replace("\0", " ").strip())
        except OSError:
            continue
    return commands


def runs(name: str, text: str) -> bool:
    """Return True if the command line of a process in container NAME ends with TEXT."""
    return any(command.endswith(text) for command in list_commands(name))


def read_state(pid: int) -> str:
    """Return the state of process PID by proc(5)'s letter: S for asleep, t for stopped by a tracer."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(") ")[2][0]


def find_pid(name: str) -> int:
    """Return the pid, on the host, of the first process of container NAME."""
    return int(docker("inspect", "-f", "{{.State.Pid}}", name))
