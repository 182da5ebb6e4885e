# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""In which order a call serves containers of which others keep some."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import targets
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.locks import lock


@pytest.fixture(autouse=True)
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "LOCKS", f"{tmp_path}/locks")
    monkeypatch.setattr(targets, "TIMEOUT_S", 0.3)


def make(name):
    return targets.Target(Container(name * 64, name, "running", 2, "", {}), None)


A, B, C = map(make, "abc")


def find_path(target):
    return f"{targets.LOCKS}/container-{target.container.short_id}"


def serve_held(found, serve):
    refused = []
    targets.serve_held(found, serve, lambda one, error: refused.append((one.name, str(error))), targets.Patience())
    return refused


def test_all_that_are_free_are_served_at_once():
    served = []
    assert serve_held([C, A], served.append) == []
    assert served == [[C, A]]
    assert serve_held([], served.append) == []
    assert served == [[C, A]]


def test_who_is_kept_is_served_when_he_is_free_and_the_others_before():
    served = []
    with ExitStack() as keeping:
        keeping.enter_context(lock(find_path(B), 1))

        def serve(held):
            served.append([one.name for one in held])
            # Nobody else may have what is being served, and nothing that was served before is held any more.
            for one in held:
                with pytest.raises(targets.LockTimeout), lock(find_path(one), 0):
                    pass
            if len(served) == 2:
                with lock(find_path(A), 0):
                    pass
            keeping.close()

        assert serve_held([A, B, C], serve) == []
    assert served == [["a", "c"], ["b"]]


def test_all_that_stay_kept_are_refused_after_one_time_for_all():
    served = []
    with lock(find_path(A), 1), lock(find_path(C), 1):
        patience = targets.Patience()
        refused = []
        for _call in range(2):
            targets.serve_held([A, B, C], served.append, lambda one, error: refused.append(one.name), patience)
            assert not patience.wait()
    assert refused == ["a", "c"] * 2
    assert served == [[B], [B]]


def test_an_error_in_the_service_lets_all_go():
    def serve(_held):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        serve_held([A, B], serve)
    with lock(find_path(A), 0), lock(find_path(B), 0):
        pass


def test_turns():
    served, refused = [], []
    with ExitStack() as keeping:
        keeping.enter_context(lock(find_path(A), 1))
        keeping.enter_context(lock(find_path(B), 1))

        def serve(one):
            with targets.try_lock(f"container-{one.container.short_id}"):
                served.append(one.name)

        targets.serve_in_turns([A, B, C], serve, lambda one, error: refused.append(one.name), targets.Patience())
    assert (served, refused) == (["c"], ["a", "b"])
    targets.serve_in_turns([A, B, C], serve, lambda one, error: refused.append(one.name), targets.Patience())
    assert served == ["c", "a", "b", "c"]


def test_a_turn_comes_again():
    served, keeping = [], ExitStack()
    keeping.enter_context(lock(find_path(A), 1))

    def serve(one):
        with targets.try_lock(f"container-{one.container.short_id}"):
            served.append(one.name)
        if one is C:
            keeping.close()

    targets.serve_in_turns([A, B, C], serve, pytest.fail, targets.Patience())
    assert served == ["b", "c", "a"]
