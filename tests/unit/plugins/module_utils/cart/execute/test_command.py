# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reaper of a command and the command itself, as real processes; what they do to enter a container is for integration tests."""

from __future__ import annotations

import json
import os
import select
import signal

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute import command
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.rights import Rights, parse_rights

RIGHTS = Rights(os.getuid(), os.getgid(), (), None, no_new_privileges=False)
ENVIRONMENT = {"PATH": os.defpath, "LANG": "C"}


def start(function):
    """Call FUNCTION(descriptor) in a child; its pid, and the end of what it reports through that descriptor."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            signal.alarm(120)  # a hang ends the child
            function(writer)
        finally:
            os._exit(99)
    os.close(writer)
    return child, reader


def finish(child, reader):
    """The exit code of CHILD, negative for a signal, and what it has reported."""
    with os.fdopen(reader, "rb") as file:
        lines = file.read().splitlines()
    status = os.waitpid(child, 0)[1]
    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return code, [json.loads(line) for line in lines]


def reap(script, chdir="/", program="/bin/sh", argv=None):
    """The reaper with a shell that runs SCRIPT as its command."""
    order = {
        "chdir": chdir,
        "program": program,
        "argv": argv or ["sh", "-c", script],
        "environment": ENVIRONMENT,
    }
    return finish(*start(lambda report: command._reap_command(report, order, RIGHTS, ())))


@pytest.mark.parametrize("code", [0, 1, 126, 255])
def test_the_exit_code_is_the_commands(code):
    assert reap(f"exit {code}") == (code, [{"ready": True}])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGPIPE])
def test_a_signal_that_ends_the_command_is_told_by_its_number(number):
    assert reap(f"kill -{int(number)} $$") == (128 + number, [{"ready": True}])


def test_a_command_that_ends_before_what_it_has_started_is_told_and_all_of_it_is_waited_for(tmp_path):
    fifo, mark = tmp_path / "fifo", tmp_path / "mark"
    os.mkfifo(fifo)
    end = os.open(fifo, os.O_RDWR)
    child, reader = start_reaper(f"(read line < {fifo}; echo x > {mark}) & exit 3")
    try:
        assert read_lines(reader, 2) == [{"ready": True}, {"ended": True}]
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
    finally:
        os.write(end, b"go\n")
        os.close(end)
    assert finish(child, reader) == (3, [])
    assert mark.read_text() == "x\n"


def start_reaper(script):
    order = {"chdir": "/", "program": "/bin/sh", "argv": ["sh", "-c", script], "environment": ENVIRONMENT}
    return start(lambda report: command._reap_command(report, order, RIGHTS, ()))


def read_lines(reader, count):
    data = b""
    while data.count(b"\n") < count:
        assert select.select([reader], [], [], 15)[0]
        part = os.read(reader, 4096)
        assert part, data
        data += part
    return [json.loads(line) for line in data.splitlines()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"program": "/nonesuch"}, "cannot run /nonesuch: No such file or directory"),
        (
            {"chdir": "/nonesuch"},
            "cannot run /bin/sh: its folder '/nonesuch' (chdir) cannot be entered: No such file or directory",
        ),
    ],
)
def test_a_command_that_cannot_run_says_why(options, message):
    code, lines = reap("true", **options)
    assert code == command.RC_FAILED
    assert [one for one in lines if "error" in one] == [{"error": message}]
    assert ({"ready": True} in lines) is ("chdir" not in options)


def test_a_command_gets_its_environment_its_folder_its_session_and_default_signals(tmp_path):
    script = f"""cd_to=$(pwd); echo "$LANG:$HOME:$cd_to" > {tmp_path}/out; cut -d' ' -f1,6 /proc/$$/stat > {tmp_path}/session
        grep SigIgn /proc/$$/status > {tmp_path}/ignored"""
    code, _lines = reap(script, chdir=str(tmp_path))
    assert code == 0
    assert (tmp_path / "out").read_text() == f"C::{tmp_path}\n"
    pid, session = (tmp_path / "session").read_text().split()
    assert pid == session
    ignored = int((tmp_path / "ignored").read_text().split()[1], 16)
    assert not ignored >> (signal.SIGPIPE - 1) & 1 and not ignored >> (signal.SIGXFSZ - 1) & 1


def test_a_process_goes_on_in_a_child_and_ends_as_that_does():
    def end_by(how):
        def go_on(report):
            before = os.getpid()
            command._fork_and_mirror(report)
            command.tell(report, {"is_child": os.getpid() != before and os.getppid() == before})
            how()

        return finish(*start(go_on))

    assert end_by(lambda: os._exit(42)) == (42, [{"is_child": True}])
    # A signal of the child's would not do: who waits is to see that something ended all of it.
    assert end_by(lambda: os.kill(os.getpid(), signal.SIGTERM)) == (-signal.SIGKILL, [{"is_child": True}])


def test_who_has_lost_its_supervisor_ends_at_once():
    reader, writer = os.pipe()

    def go_on(report):
        os.close(reader)
        command._end_with_parent(writer)
        command.tell(report, {"goes": "on"})
        os._exit(0)

    child, told = start(go_on)
    assert finish(child, told) == (0, [{"goes": "on"}])
    os.close(reader)
    child, told = start(lambda report: (command._end_with_parent(writer), command.tell(report, {"goes": "on"})))
    assert finish(child, told) == (command.RC_FAILED, [])
    os.close(writer)


def test_to_tell_nobody_does_no_harm():
    reader, writer = os.pipe()
    command.tell(writer, {"a": 1})
    assert os.read(reader, 100) == b'{"a": 1}\n'
    os.close(reader)
    command.tell(writer, {"a": 2})
    os.close(writer)


def test_an_order_that_is_none_is_an_error_that_the_supervisor_is_told(tmp_path):
    """All of it, up to where the rights are read."""
    (tmp_path / "order").write_text("[]")

    def go_on(report):
        fd = os.open(str(tmp_path / "order"), os.O_RDONLY)
        command._TITLE = "pytest"
        command.run({command.REPORT: report, "order": fd, "stdin": 0})

    code, lines = finish(*start(go_on))
    assert code == command.RC_FAILED
    assert [list(one) for one in lines] == [["error"]]


def test_a_container_that_has_ended_is_not_entered(tmp_path):
    rights = {**vars(RIGHTS), "capability_sets": None, "filters": None}
    (tmp_path / "order").write_text(json.dumps({"rights": rights}))
    assert parse_rights(json.loads(json.dumps(rights))).uid == RIGHTS.uid
    # A pipe whose other end is gone is as readable as the descriptor of a process that has ended.
    reader, writer = os.pipe()
    os.close(writer)

    def go_on(report):
        given = {command.REPORT: report, "order": os.open(str(tmp_path / "order"), os.O_RDONLY)}
        command.run({**given, command.FIRST_PROCESS: reader, "stdin": 0, "stdout": 1, "stderr": 2})

    pair_reader, pair_writer = os.pipe()
    os.write(pair_writer, b"x")
    os.close(reader)
    reader = pair_reader
    code, lines = finish(*start(go_on))
    assert (code, lines) == (command.RC_FAILED, [{"error": "the container has just ended"}])
    for fd in (pair_reader, pair_writer):
        os.close(fd)
