# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands side by side, as the module sees them: pipes, time limits, last words. Functions of a child play supervisor and command."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import termios
import traceback

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute import sessions
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.jobs import Command, Job
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.memory import MemoryWatch
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.rights import Rights
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.sinks import Sink
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import Target
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.bounded import close_all_but
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import Process

F_SETPIPE_SZ = 1031  # fcntl(2); Python has it since 3.10
HANG_S = 120  # which nothing here takes
RIGHTS = Rights(os.getuid(), os.getgid(), (), None, no_new_privileges=False)


class Player:
    """A player of the supervisor: for each command it runs the next of PLAYS, functions of an End, in a child."""

    def __init__(self, *plays):
        self._plays = list(plays)
        self.children = []

    def send(self, far):
        play = self._plays.pop(0)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                signal.alarm(HANG_S)
                close_all_but({0, 1, 2, *far.values()})
                play(End(far))
                status = 0
            except BaseException:
                traceback.print_exc(file=sys.__stderr__)
            finally:
                os._exit(status)
        self.children.append(child)

    def finish(self, hangs):
        """Wait for the children, and fail where a play has failed or hung. Those that HANGS says so of are killed."""
        statuses = []
        for child in self.children:
            if hangs:
                os.kill(child, signal.SIGKILL)
            statuses.append(os.waitpid(child, 0)[1])
        # A play may kill itself, as if it were a supervisor that is killed.
        assert set(statuses) <= {0, signal.SIGKILL}, f"a play has failed or hung, see stderr: {statuses}"


class End:
    """The supervisor's end of a command, and the command's of its pipes."""

    def __init__(self, far):
        self._fds = far
        self._channel = socket.socket(fileno=far["channel"])

    def tell(self, **message):
        self._channel.sendall(json.dumps(message).encode() + b"\n")

    def write(self, stream, data):
        while data:
            data = data[os.write(self._fds[stream], data) :]

    def read(self):
        parts = []
        while True:
            part = os.read(self._fds["stdin"], 65536)
            if not part:
                return b"".join(parts)
            parts.append(part)

    def wait_for_end(self):
        """Wait until the module wants the command ended."""
        assert self._channel.recv(1) == b""

    def order(self):
        with open(self._fds["order"], encoding="ascii", closefd=False) as file:
            return json.load(file)


@pytest.fixture
def run():
    """Yield a function that runs PLAYS as commands with OPTIONS, and returns the results and their output. HANGS: no play ends by itself."""

    def call(*plays, bound=1 << 20, sinks=None, player=Player, hangs=False, **options):
        with Process(os.getpid()) as process, open(os.devnull, encoding="ascii") as null:
            jobs = []
            for number, _play in enumerate(plays):
                container = Container(f"{number:064}", f"c{number}", "running", process.pid, "image", {})
                command = Command(("prog", "-x"), **options)
                jobs.append(
                    Job(
                        Target(container, process),
                        command,
                        RIGHTS,
                        null.fileno(),
                        "/dev/crashcart",
                        "/bin/prog",
                        {},
                        {},
                        MemoryWatch([], [], container.id),
                    )
                )
            playing = player(*plays)
            kept = sinks or [{"stdout": Sink(bound), "stderr": Sink(bound)} for _job in jobs]
            before = os.listdir("/proc/self/fd")
            results = sessions.run_jobs(jobs, kept, playing)
            assert os.listdir("/proc/self/fd") == before
            playing.finish(hangs)
        return results, [] if sinks else [(one["stdout"].read(), one["stderr"].read()) for one in kept]

    signal.alarm(2 * HANG_S)  # a hang ends the test run
    try:
        yield call
    finally:
        signal.alarm(0)


def end_with(code):
    def play(end):
        end.tell(ready=True)
        end.tell(rc=code)

    return play


def test_a_play_that_fails_fails_its_test(run):
    def play(end):
        end.tell(rc=0)
        assert end is None

    with pytest.raises(AssertionError, match="a play has failed or hung"):
        run(end_with(0), play)


def test_exit_codes_come_in_the_order_of_the_commands(run):
    results, _outputs = run(end_with(3), end_with(0), end_with(137))
    assert [(one.container, one.rc, one.error, one.timed_out) for one in results] == [
        ("c0", 3, "", False),
        ("c1", 0, "", False),
        ("c2", 137, "", False),
    ]
    assert all(0 < one.start <= one.end for one in results)


def test_more_commands_than_may_run_at_a_time_are_run_in_turn(run, monkeypatch):
    running = []

    def play(end):
        end.read()  # which comes when all are started that may be
        end.write("stdout", b"x")
        end.tell(rc=0)

    class Counting(Player):
        def send(self, far):
            super().send(far)
            running.append(len(self.children))

    check = sessions._Session.check

    def count(session):
        over = check(session)
        running.extend([-1] * over)
        return over

    monkeypatch.setattr(sessions, "_MAX_RUNNING", 2)
    monkeypatch.setattr(sessions._Session, "check", count)
    results, outputs = run(*[play] * 5, stdin=b"go", player=Counting)
    assert [one.rc for one in results] == [0] * 5 and outputs == [(b"x", b"")] * 5
    at_once = 0
    for one in running:
        at_once += -1 if one < 0 else 1
        assert at_once <= 2


def test_what_is_written_comes_whole_and_apart(run):
    large = os.urandom(300_000)

    def play(end):
        end.tell(ready=True)
        end.write("stdout", large)
        end.write("stderr", b"warning\n")
        end.write("stdout", b"last")
        end.tell(rc=0)

    (result,), (output,) = run(play)
    assert output == (large + b"last", b"warning\n")
    assert (result.stdout_size, result.stderr_size, result.stdout_truncated) == (300_004, 8, False)


def test_what_a_pipe_holds_when_the_command_has_ended_is_taken(run):
    size = 256 << 10

    def play(end):
        fcntl.fcntl(end._fds["stdout"], F_SETPIPE_SZ, size)
        end.write("stdout", b"z" * size)
        end.tell(rc=0)

    class Slow(Player):
        def send(self, far):
            super().send(far)
            os.waitid(os.P_PID, self.children[-1], os.WEXITED | os.WNOWAIT)  # all is said before anything is read

    (result,), ((output, _errors),) = run(play, player=Slow)
    assert (result.rc, len(output)) == (0, size)


def test_of_too_much_the_beginning_is_kept_and_all_is_counted(run):
    def play(end):
        end.write("stdout", b"x" * 200_000)
        end.tell(rc=0)

    (result,), ((kept, _errors),) = run(play, bound=10)
    assert (kept, result.stdout_size, result.stdout_truncated, result.stderr_truncated) == (
        b"x" * 10,
        200_000,
        True,
        False,
    )


def test_input_is_given_whole_and_ends(run):
    data = os.urandom(300_000)

    def echo(end):
        end.write("stdout", str(len(end.read())).encode())
        end.tell(rc=0)

    _results, outputs = run(echo, echo, stdin=data)
    assert outputs == [(b"300000", b"")] * 2
    _results, outputs = run(echo)
    assert outputs == [(b"0", b"")]


def test_output_is_taken_also_while_nobody_reads_the_input(run):
    def play(end):
        end.write("stdout", b"y" * 300_000)
        end.write("stderr", str(len(end.read())).encode())
        end.tell(rc=0)

    _results, ((output, told),) = run(play, stdin=b"x" * 300_000)
    assert (len(output), told) == (300_000, b"300000")


def test_who_does_not_read_its_input_ends_all_the_same(run):
    def play(end):
        os.close(end._fds["stdin"])
        end.tell(rc=4)

    (result,), _outputs = run(play, stdin=b"x" * 300_000)
    assert (result.rc, result.error) == (4, "")


def test_an_error_of_the_supervisor_is_the_results(run):
    (result,), _outputs = run(lambda end: end.tell(error="cannot run /bin/prog: No such file or directory"))
    assert (result.rc, result.error) == (-1, "cannot run /bin/prog: No such file or directory")


def test_a_supervisor_that_was_killed_costs_no_other_command(run):
    def die(end):
        end.write("stdout", b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    results, outputs = run(die, end_with(0))
    assert [(one.rc, one.error) for one in results] == [(-1, "the supervisor of the command was killed"), (0, "")]
    assert outputs[0] == (b"half", b"")


def test_words_in_pieces_are_put_together(run):
    def play(end):
        end._channel.sendall(b'{"ready": true}\n{"r')
        while fcntl.ioctl(end._channel, termios.TIOCOUTQ, bytes(4)) != bytes(4):
            pass  # until that was read
        end._channel.sendall(b'c": 9}\n')

    (result,), _outputs = run(play)
    assert (result.rc, result.error) == (9, "")


def test_the_first_last_word_counts(run):
    def play(end):
        end.tell(rc=1)
        end.tell(rc=2, error="late")

    (result,), _outputs = run(play)
    assert (result.rc, result.error) == (1, "")


def test_a_command_whose_time_is_over_is_ended_and_says_so(run):
    def play(end):
        end.tell(ready=True)
        end.write("stdout", b"so far")
        end.wait_for_end()
        end.tell(rc=137)

    (result,), ((kept, _errors),) = run(play, timeout_s=0.05)
    assert (result.rc, result.timed_out, result.error, kept) == (137, True, "", b"so far")


def test_time_begins_when_the_command_does(run, monkeypatch):
    def play(end):
        end.wait_for_end()
        with contextlib.suppress(BrokenPipeError):
            end.tell(ready=True)  # too late: nobody gives it more time for that
        while True:
            signal.pause()

    monkeypatch.setattr(sessions, "TIMEOUT_S", 0.05)  # for its way into the container
    monkeypatch.setattr(sessions, "_LAST_REPORT_S", 0.05)
    (result,), _outputs = run(play, timeout_s=3600.0, hangs=True)
    assert (result.timed_out, result.error) == (False, "entering the container took more than 0.05 s")
    assert result.end - result.start < HANG_S / 2  # and not when the child is ended by its alarm


def test_a_command_that_cannot_be_killed_is_left(run, monkeypatch):
    def play(end):
        end.tell(ready=True)
        end.wait_for_end()
        while True:
            signal.pause()

    ask = sessions._Session._ask_to_end

    def ask_with_little_patience(session):
        ask(session)
        monkeypatch.setattr(
            sessions, "TIMEOUT_S", 0.05
        )  # only now: its way into the container may take long on a busy machine

    monkeypatch.setattr(sessions._Session, "_ask_to_end", ask_with_little_patience)
    monkeypatch.setattr(sessions, "_LAST_REPORT_S", 0.05)
    (result,), _outputs = run(play, timeout_s=0.05, hangs=True)
    assert (result.timed_out, result.error) == (
        True,
        "it cannot be killed: it waits in the kernel, or its control group is frozen",
    )


def test_output_that_cannot_be_kept_ends_that_command_only(run):
    class Full(Sink):
        def write(self, data):
            raise OSError(28, "No space left on device")

    def play(end):
        end.tell(ready=True)
        end.write("stdout", b"x")
        end.wait_for_end()
        end.tell(rc=0)

    sinks = [
        {"stdout": Full(None), "stderr": Sink(None)},
        {"stdout": Sink(None), "stderr": Sink(None)},
    ]
    results, _outputs = run(play, end_with(0), sinks=sinks)
    assert [one.error for one in results] == ["its stdout cannot be kept: No space left on device", ""]


def test_the_order_says_what_to_run(run):
    def play(end):
        order = end.order()
        end.write("stdout", json.dumps([order[name] for name in ("program", "argv", "chdir", "prefix")]).encode())
        end.tell(rc=0)

    _results, ((told, _errors),) = run(play, chdir="/srv")
    assert json.loads(told) == ["/bin/prog", ["prog", "-x"], "/srv", "/dev/crashcart"]
