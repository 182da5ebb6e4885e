# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The processes of one command, on their way from the host into a container.

The first process stays in the host's pid namespace. It enters all else of the container and takes on the command's rights. Then it forks
the reaper, which is in the container's pid namespace, and the command is the reaper's child. So the container's processes never meet one of
ours with more rights than the command. Whatever the command starts and leaves comes back to the reaper (it is a subreaper), wherever that
has moved. Nobody in here holds anything of the host but the pipes; the supervisor outside ends what is left.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
from typing import Any, NoReturn, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute import rights as rights_
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute import seccomp_filters as filters_
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

# Names of descriptors, beside those of namespaces (as in /proc/PID/ns), `root` (the container's), `image` (a mount), `order` (a memory
# file with the order itself), `stdin`, `stdout`, `stderr` and, where the order has one, `scratch` (a mount).
FILTERS = "filters"  # the folder of kept seccomp filters
CHANNEL = "channel"  # the supervisor's, to the module
FIRST_PROCESS = "first_process"  # the supervisor's, a pidfd of the container's
JOIN = "join "  # before the name of a control group's hierarchy: the file to write 0 to
REPORT = "report"  # to the supervisor

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
    """Carry out the order of the descriptors GIVEN; the exit code is the command's, 128 + n after signal n.

    What goes through the descriptor `report`: lines of JSON with `ready`, `ended` (the command has, and others may be left) or `error`.
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
            raise OSError(errno.ESRCH, "the container has just ended")  # and its number may have been somebody else's
        _enter(given, order, rights)
        rights_.take(rights, filters, given.get("user"))
        syscalls.set_undumpable()  # where fs.suid_dumpable is 1 a change of user has undone it
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
    return [seccomp.let_trace(one, os.uname().machine) for one in found] if rights.may_trace else found


def tell(fd: int, message: dict[str, Any]) -> None:
    """Write MESSAGE to FD; nothing happens when nobody listens any more."""
    try:
        os.write(fd, json.dumps(message).encode("ascii") + b"\n")
    except OSError:
        return


def _end_with_parent(report: int) -> None:
    """Die when the parent does; a change of user undoes it. The supervisor may be dead already, and with it all who read REPORT."""
    syscalls.set_parent_death_signal(signal.SIGKILL)
    poll = select.poll()
    poll.register(report, 0)  # errors are told without being asked for
    if poll.poll(0):
        os._exit(RC_FAILED)


def _explain(error: BaseException) -> str:
    return str(error.strerror) if isinstance(error, OSError) and error.strerror else str(error)


def _enter(given: dict[str, int], order: dict[str, Any], rights: rights_.Rights) -> None:
    """Step into the container: its control groups, its namespaces but for user, and the private view of its files."""
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
    """Go on in a child, and end as that does."""
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
    """Start the command, and reap until no child is left; the exit code is the command's."""
    syscalls.set_child_subreaper()
    command = os.fork()
    if command == 0:
        _become_command(report, order, rights, filters)
    for fd in (0, 1, 2):
        os.close(fd)
    capabilities.take(capabilities.NONE)  # to wait takes none
    rights_.seal(rights, filters)
    rc = RC_FAILED
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            os._exit(rc)
        if pid == command:
            rc = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            if _has_children():  # most commands leave none, and to look for them takes a while
                tell(report, {"ended": True})


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return True
    except ChildProcessError:
        return False


def _become_command(report: int, order: dict[str, Any], rights: rights_.Rights, filters: Sequence[bytes]) -> NoReturn:
    try:
        os.setsid()  # so that its `kill 0` is its own affair
        # With the rights that the command has: it must not stand where it could not go.
        try:
            os.chdir(order["chdir"])
        except OSError as error:
            raise OSError(error.errno, f"it cannot stand in {order['chdir']!r} (chdir): {error.strerror}") from error
        # Should somebody kill the reaper, the command goes with it.
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
