# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Failures of a call's containers: their messages, and the work that is undone."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import ContainerGoneError
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome, Who, undoing
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import ProcessGone

API, DB, WEB = (Who(name, name[0] * 64) for name in ("api", "db", "web"))


def told(outcome, *containers):
    """Return the message that OUTCOME raises for CONTAINERS."""
    with pytest.raises(FleetError) as caught:
        outcome.check(containers, "served", changed=True)
    assert caught.value.result == {"failed_containers": outcome.as_result(), "changed": True}
    return str(caught.value)


def test_no_failure_is_none():
    outcome = Outcome()
    with outcome.serve(API):
        pass
    outcome.check([API], "served")
    assert outcome.list_left([API, DB]) == [API, DB]


def test_one_that_fails_costs_no_other():
    outcome = Outcome()
    served = []
    for one in (API, DB, WEB):
        with outcome.serve(one):
            if one is DB:
                raise FleetError("it is full: make room")
            served.append(one)
    assert served == outcome.list_left([API, DB, WEB]) == [API, WEB]
    assert outcome.has_failed(DB)
    assert told(outcome, API, DB, WEB) == (
        "1 of 3 containers failed: container db: it is full: make room; served all the same: api, web"
    )
    assert outcome.as_result() == [{"container": "db", "id": "d" * 64, "msg": "it is full: make room"}]


def test_one_that_is_blamed_was_served_and_fails_the_call():
    outcome = Outcome()
    outcome.fail(API, FleetError("it is full: make room"))
    outcome.blame(DB, "exit code 1: no db\x1b here")
    outcome.blame(WEB, "exit code 1: no db\x1b here")
    assert told(outcome, API, DB, WEB, Who("www", "1" * 64)) == (
        "3 of 4 containers failed: container api: it is full: make room; container db, web: exit code 1: no db\\x1b here;"
        " served all the same: www"
    )
    assert [one["container"] for one in outcome.as_result()] == ["api"]
    assert outcome.list_left([API, DB]) == [DB]


def test_one_alone_is_told_as_it_is():
    outcome = Outcome()
    outcome.fail(DB, FleetError("container db (dddddddddddd) is exited: start it first"))
    assert told(outcome, DB) == told(outcome) == "container db (dddddddddddd) is exited: start it first"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("cannot attach to container db at /x: no", "cannot attach to container db at /x: no"),
        ("another's name, db2, is none", "container db: another's name, db2, is none"),
        ("a-db and db.x are none", "container db: a-db and db.x are none"),
        ("it is of db.", "it is of db."),
    ],
)
def test_each_is_named_once(text, wanted):
    outcome = Outcome()
    outcome.fail(DB, FleetError(text))
    assert told(outcome, DB) == wanted


def test_the_same_reason_is_given_once():
    outcome = Outcome()
    for one in (API, DB):
        outcome.fail(one, FleetError("the kernel refuses it"))
    assert told(outcome, API, DB) == "2 of 2 containers failed: container api, db: the kernel refuses it"


def test_several_reasons_of_one():
    outcome = Outcome()
    for text in ("first", "second", "first"):
        outcome.fail(DB, FleetError(text))
    assert told(outcome, DB) == "container db: first; second"


def test_what_may_go_wrong():
    outcome = Outcome()
    with outcome.serve(API):
        raise ProcessGone(7)
    with outcome.serve(DB):
        raise OSError(28, "No space left on device", "/x")
    assert [one["msg"] for one in outcome.as_result()] == [
        "container api has just ended",
        "the host refused: No space left on device (/x)",
    ]
    with pytest.raises(KeyboardInterrupt), outcome.serve(WEB):
        raise KeyboardInterrupt
    with pytest.raises(ZeroDivisionError), outcome.serve(WEB):
        raise ZeroDivisionError
    assert not outcome.has_failed(WEB)


def test_an_end_that_is_no_failure():
    outcome = Outcome()
    for error in (ProcessGone(7), ContainerGoneError("it is gone")):
        with outcome.serve(API, ended_ok=True):
            raise error
    outcome.fail_each([API, DB], [ContainerGoneError("it is gone"), None], ended_ok=True)
    outcome.check([API, DB], "served")


def test_a_complaint_is_of_no_container():
    outcome = Outcome()
    with outcome.complaining():
        raise FleetError("the host is full")
    assert told(outcome, API) == "the host is full; served all the same: api"
    assert outcome.as_result() == []


def test_what_a_container_has_failed_by_is_said_once():
    outcome = Outcome()
    outcome.fail(API, FleetError("the recorder does not start"))
    with outcome.complaining():
        raise FleetError("the recorder does not start")
    with outcome.complaining():
        raise FleetError("no room")
    assert told(outcome) == "container api: the recorder does not start; no room"


def test_names_do_not_reach_a_terminal_raw():
    outcome = Outcome()
    outcome.fail(Who("\x1b[31m", "x"), FleetError("no"))
    assert "\x1b" not in told(outcome)


def test_what_was_begun_is_undone_where_it_fails():
    undone = []
    with pytest.raises(FleetError, match="^no$"), undoing() as undo:
        undo.callback(undone.append, 1)
        undo.callback(undone.append, 2)
        raise FleetError("no")
    assert undone == [2, 1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, FleetError])
def test_what_was_begun_is_the_callers_where_it_goes_well(error):
    undone = []
    with pytest.raises(error), undoing() as whole:
        with undoing() as undo:
            undo.callback(undone.append, 1)
            whole.callback(undo.pop_all().close)
        assert undone == []
        raise error("later")
    assert undone == [1]


def test_an_undo_that_fails_is_told_and_keeps_no_other_from_its_turn():
    undone = []

    def refuse():
        raise OSError(16, "Device or resource busy")

    with pytest.raises(
        FleetError, match="^no; not all that was begun could be undone: the host refused: .*busy$"
    ), undoing() as undo:
        undo.callback(undone.append, 1)
        undo.callback(refuse)
        raise FleetError("no")
    assert undone == [1]
