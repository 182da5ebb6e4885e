# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The processes of one command, on their way from the host into a container.

The first process stays in the host's pid namespace. It enters everything else of the container and takes the command's rights on. Then it
forks the reaper, which is in the container's pid namespace, and the reaper forks the command. So the container's processes never meet a
process of ours that has more rights than the command. Processes that the command starts and leaves become children of the reaper (a
subreaper), whatever namespaces they have entered. These processes hold nothing of the host but the pipes. The supervisor outside ends the rest.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
from typing import Any, NoReturn, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute import filter_cache as filters_
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute import rights as rights_
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.private_view import enter_private_copy
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import (
    capabilities,
    labels,
    processes,
    seccomp,
    syscalls,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.bounded import close_all_but
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.namespaces import MountNamespace

# Names of descriptors. Further names are those of namespaces (as in /proc/PID/ns), `root` (the container's), `image` (a mount), `order`
# (a memory file with the order itself), `stdin`, `stdout`, `stderr` and, where the order has one, `scratch` (a mount).
FILTERS = "filters"  # the folder of kept seccomp filters
CHANNEL = "channel"  # from the supervisor to the module
FIRST_PROCESS = "first_process"  # a pidfd of the container's first process, for the supervisor
JOIN = "join "  # before the name of a control group's hierarchy: the file to which to write 0
REPORT = "report"  # from the command's processes to the supervisor

RC_FAILED = 127
_TITLE = "crashcart"
_ENTERED = {
    "net": syscalls.CLONE_NEWNET,
    "ipc": syscalls.CLONE_NEWIPC,
    "uts": syscalls.CLONE_NEWUTS,
    "cgroup": syscalls.CLONE_NEWCGROUP,
    "time": syscalls.CLONE_NEWTIME,
}
_OOM_SCORE = b"1000"  # the highest: where the container's memory ends, a tool dies before the workload


def run(given: dict[str, int]) -> NoReturn:
    """Carry out the order in the descriptors GIVEN, and exit with the command's exit code, or 128 + n after signal n.

    The descriptor `report` gets lines of JSON with `ready`, `ended` (the command has ended, and left other processes) or `error`.
    """
    report = given[REPORT]
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        close_all_but(set(given.values()))
        syscalls.set_undumpable()
        _end_with_parent(report)
        processes.set_title(_TITLE)
        with open(given["order"], encoding="ascii", closefd=False) as file:
            order = json.load(file)
        rights = rights_.parse_rights(order["rights"])
        filters = _read_filters(rights, given)
        first_process = select.poll()
        first_process.register(given[FIRST_PROCESS], select.POLLIN)
        if first_process.poll(0):
            # The filters were read by its pid, which another process may have had by then.
            raise OSError(errno.ESRCH, "the container has just ended")
        _enter(given, order, rights)
        rights_.take(rights, filters, given.get("user"))
        syscalls.set_undumpable()  # again: where fs.suid_dumpable is 1, the change of user has undone it
        for fd in set(given.values()):
            if fd > 2 and fd != report:
                os.close(fd)
        _fork_and_mirror(report)
        _reap_command(report, order, rights, filters)
    except BaseException as error:
        tell(report, {"error": _explain(error)})
    finally:
        os._exit(RC_FAILED)


def _read_filters(rights: rights_.Rights, given: dict[str, int]) -> Sequence[bytes]:
    if rights.filters is None:
        return ()
    found = filters_.read(rights.filters, given[FILTERS])
    return [seccomp.let_trace(program, os.uname().machine) for program in found] if rights.may_trace else found


def tell(fd: int, message: dict[str, Any]) -> None:
    """Write MESSAGE to FD as a line of JSON; do nothing where nobody reads FD any more."""
    try:
        os.write(fd, json.dumps(message).encode("ascii") + b"\n")
    except OSError:
        return


def _end_with_parent(report: int) -> None:
    """Let the kernel kill this process when its parent dies, until a change of user; exit at once where nobody reads REPORT any more.

    The supervisor may have died before this call, and with it all readers of REPORT.
    """
    syscalls.set_parent_death_signal(signal.SIGKILL)
    poll = select.poll()
    poll.register(report, 0)  # poll always reports errors
    if poll.poll(0):
        os._exit(RC_FAILED)


def _explain(error: BaseException) -> str:
    return str(error.strerror) if isinstance(error, OSError) and error.strerror else str(error)


def _enter(given: dict[str, int], order: dict[str, Any], rights: rights_.Rights) -> None:
    """Enter the container: its control groups, its namespaces but for user, and the private view of its files."""
    for name, fd in given.items():
        if name.startswith(JOIN):
            _write(fd, b"0", f"the container's control group {name[len(JOIN) :]} cannot be joined")
    if any(rights.label):
        labels.set_at_exec(*rights.label)
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    _write(fd, _OOM_SCORE, "oom_score_adj")
    os.close(fd)
    try:
        syscalls.join_new_session_keyring()
    except OSError as error:
        if error.errno != errno.ENOSYS:  # a kernel without keys
            raise
    for wanted, name in enumerate(("stdin", "stdout", "stderr")):
        os.dup2(given[name], wanted)
    for name, kind in _ENTERED.items():
        if name in given:
            syscalls.setns(given[name], kind)
    if "pid" in given:
        syscalls.setns(given["pid"], syscalls.CLONE_NEWPID)  # for children only
    namespace = MountNamespace(given["mnt"], given["root"]) if "mnt" in given else None
    enter_private_copy(namespace, given["image"], order["prefix"], given.get("scratch"), **order["view"])
    os.umask(0o022)


def _write(fd: int, text: bytes, what: str) -> None:
    try:
        os.write(fd, text)
    except OSError as error:
        raise OSError(error.errno, f"{what}: {error.strerror}") from error


def _fork_and_mirror(report: int) -> None:
    """Go on in a child; the parent ends as the child does."""
    _end_with_parent(report)  # the change of user has undone it
    pid = os.fork()
    if pid == 0:
        _end_with_parent(report)
        return
    for fd in (0, 1, 2, report):
        os.close(fd)
    _pid, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(os.WEXITSTATUS(status))


def _reap_command(report: int, order: dict[str, Any], rights: rights_.Rights, filters: Sequence[bytes]) -> NoReturn:
    """Start the command, reap children until none is left, and exit with the command's exit code."""
    syscalls.set_child_subreaper()
    command = os.fork()
    if command == 0:
        _become_command(report, order, rights, filters)
    for fd in (0, 1, 2):
        os.close(fd)
    capabilities.take(capabilities.NONE)  # waiting needs none
    rights_.seal(rights, filters)
    rc = RC_FAILED
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            os._exit(rc)
        if pid == command:
            rc = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            if _has_children():  # most commands leave none, and the supervisor's search for them takes a while
                tell(report, {"ended": True})


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return True
    except ChildProcessError:
        return False


def _become_command(report: int, order: dict[str, Any], rights: rights_.Rights, filters: Sequence[bytes]) -> NoReturn:
    try:
        os.setsid()  # so that `kill 0` reaches only the command's own processes
        # Only now, with the command's rights: it must not start in a folder that it could not enter.
        try:
            os.chdir(order["chdir"])
        except OSError as error:
            raise OSError(
                error.errno, f"its folder {order['chdir']!r} (chdir) cannot be entered: {error.strerror}"
            ) from error
        # If the reaper is killed, the kernel kills the command, too.
        _end_with_parent(report)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)  # Python ignores these, and a command would inherit that
        tell(report, {"ready": True})
        rights_.seal(rights, filters)
        os.execve(order["program"], order["argv"], order["environment"])
    except BaseException as error:
        tell(report, {"error": f"cannot run {order['program']}: {_explain(error)}"})
    finally:
        os._exit(RC_FAILED)
