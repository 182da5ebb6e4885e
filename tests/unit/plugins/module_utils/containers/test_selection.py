# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From names, ids, globs, labels and queries to containers."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container, ContainerError
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.selection import (
    Selector,
    describe_running,
    select_containers,
    select_one,
)


def make(name, prefix, state="running", **labels):
    return Container(prefix.ljust(64, "0"), name, state, 100 if state == "running" else 0, "image", labels)


WEB1 = make("web-1", "aa11", tier="front", env="prod")
WEB2 = make("web-2", "aa22", tier="front", env="test")
DB = make("db", "bb33", tier="back", empty="")
OLD = make("web-old", "cc44", state="exited", tier="front")
PAUSED = make("paused", "dd55", state="paused")
ALL = (WEB1, WEB2, DB, OLD, PAUSED)


def select(*patterns, labels=(), query=None, running_only=True, containers=ALL):
    selector = Selector(tuple(patterns) or None, tuple(labels), query)
    return [one.name for one in select_containers(selector, list(containers), running_only=running_only)]


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["db"], ["db"]),
        ([DB.id], ["db"]),
        ([DB.short_id], ["db"]),
        ([DB.id[:20]], ["db"]),
        (["web-*"], ["web-1", "web-2"]),
        (["web-?"], ["web-1", "web-2"]),
        (["web-[2-9]"], ["web-2"]),
        (["web-[!2]"], ["web-1"]),
        (["*"], ["web-1", "web-2", "db"]),
        (["nothing*"], []),
        (["WEB-*"], []),
        # In the engine's order, each once.
        (["db", "web-2", "web-*", DB.short_id, "db"], ["web-1", "web-2", "db"]),
    ],
)
def test_patterns(patterns, names):
    assert select(*patterns) == names


@pytest.mark.parametrize("pattern", ["web-old", OLD.short_id, OLD.id])
def test_a_name_or_an_id_finds_a_container_in_any_state(pattern):
    assert select(pattern) == ["web-old"]


def test_globs_find_what_does_not_run_only_on_demand():
    assert select("web-*", running_only=False) == ["web-1", "web-2", "web-old"]
    assert select(running_only=False) == [one.name for one in ALL]
    assert select() == ["web-1", "web-2", "db"]


@pytest.mark.parametrize(
    "pattern",
    [
        "web",
        "nothing",
        "eb-1",
        "",
        " ",
        "db ",
        "../db",
        "aa11x",
        WEB1.short_id.upper(),
        "web-1\n",
        "-db",
        WEB1.id + "0",
    ],
)
def test_a_name_that_finds_nothing_is_an_error_that_says_what_runs(pattern):
    with pytest.raises(ContainerError, match="running are: db, web-1, web-2"):
        select(pattern)


def test_one_bad_name_among_good_ones_is_an_error():
    with pytest.raises(ContainerError, match="'nothing'"):
        select("db", "nothing", "web-*")


def test_of_names_that_find_nothing_the_caller_is_told_and_the_others_are_found():
    told = []
    selector = Selector(("nothing", "db", "nor*", "pid:77", DB.id.replace("b", "c")))
    found = select_containers(selector, list(ALL), refuse=told.append)
    assert [one.name for one in found] == ["db"]
    assert [one.pattern for one in told] == ["nothing", "pid:77", DB.id.replace("b", "c")]
    assert str(told[1]) == "pid:77: the host has no such process"


def test_an_ambiguous_name_is_an_error_for_whoever_takes_unknown_ones():
    told = []
    with pytest.raises(ContainerError, match="ambiguous: it may mean"):
        select_containers(Selector(("api", "nothing")), list(RUNTIMES), refuse=told.append)
    assert told == []


@pytest.mark.parametrize("pattern", ["b", "bb", "bb33", "bb330000000"])
def test_a_word_never_means_a_container_by_the_beginning_of_its_id(pattern):
    with pytest.raises(
        ContainerError, match=rf"{pattern}'; it begins the id of db \(bb3300000000\), of which 12 digits"
    ):
        select(pattern)
    with pytest.raises(ContainerError, match=f"no container is called {pattern!r}"):
        select_one(pattern, list(ALL))
    named = make(pattern, "ee66")
    assert select(pattern, containers=[*ALL, named]) == [pattern]
    assert select_one(pattern, [*ALL, named]) is named


def test_the_beginning_of_an_id_that_is_no_engines_means_nothing():
    with pytest.raises(ContainerError, match="no container is called"):
        select_ids("cafecafecafe", containers=(make_of("runc", "cafecafecafe-1", "web"),))
    with pytest.raises(ContainerError, match=r"no container is called 'cafe'; it begins the id of web"):
        select_ids("cafe", containers=(make_of("runc", "cafe1", "web"),))


def test_an_ambiguous_beginning_of_ids_is_an_error_that_names_them():
    twin = make("other", WEB1.short_id + "1", state="created")
    with pytest.raises(ContainerError, match="ambiguous") as caught:
        select(WEB1.short_id, containers=[*ALL, twin])
    assert f"docker:{WEB1.id} (running), docker:{twin.id} (created)" in str(caught.value)
    assert DB.id not in str(caught.value)


def test_a_name_that_is_the_beginning_of_another_ones_id_is_ambiguous():
    with pytest.raises(ContainerError, match="ambiguous"):
        select(DB.short_id, containers=[*ALL, make(DB.short_id, "ee66")])


def test_of_an_option_for_one_container_a_glob_has_to_mean_one():
    assert select_one("web-1*", list(ALL)) is WEB1
    with pytest.raises(ContainerError, match="has to mean one container, and may mean") as caught:
        select_one("web-*", list(ALL))
    assert f"web-1 (docker:{WEB1.id}), web-2 (docker:{WEB2.id})" in str(caught.value)
    with pytest.raises(ContainerError, match=r"no container matches 'nothing\*'; running are: db, web-1, web-2"):
        select_one("nothing*", list(ALL))
    assert select_one("web-old", list(ALL)) is OLD
    assert select_one("web-o*", list(ALL), running_only=False) is OLD


def test_of_an_option_for_one_container_users_are_named():
    assert select_one("1000/own", list(WITH_USERS)) is OWN_OF_1000
    with pytest.raises(ContainerError, match="give podman:1000/"):
        select_one("own", list(WITH_USERS))
    assert select_one("own", [OWN_OF_1000], any_owner=True) is OWN_OF_1000


def test_a_full_id_is_not_shadowed_by_a_name():
    impostor = make(DB.id, "ee66")
    assert select(DB.id, containers=[impostor, *ALL]) == ["db"]


@pytest.mark.parametrize("name", ["[", "a[b", "*", "x?", "{}", "$(id)", "-rf", "a\nb", "\x1b[31m", "é", "%s"])
def test_a_hostile_name_is_found_by_itself_and_hurts_nobody(name):
    containers = [*ALL, make(name, "ee66")]
    assert select(name, containers=containers) == [name]
    assert select("db", containers=containers) == ["db"]
    assert name in select("*", containers=containers) or name == "*"


def test_a_container_whose_engine_is_silent_is_listed_by_a_short_id():
    nameless = Container("ab" * 32, "ab" * 32, "running", 1, "", {})
    assert describe_running([nameless]) == "running are: " + "ab" * 6


def test_without_containers_nothing_is_found_and_said():
    assert select("*", containers=[]) == []
    with pytest.raises(ContainerError, match="no container runs"):
        select("db", containers=[])
    assert describe_running([OLD]) == "no container runs"


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([("tier", "front")], ["web-1", "web-2"]),
        ([("tier", "front"), ("env", "prod")], ["web-1"]),
        ([("tier", None)], ["web-1", "web-2", "db"]),
        ([("env", None)], ["web-1", "web-2"]),
        ([("empty", "")], ["db"]),
        ([("empty", None)], ["db"]),
        ([("tier", "")], []),
        ([("tier", "fro*")], []),
        ([("Tier", "front")], []),
        ([("missing", None)], []),
    ],
)
def test_labels(labels, names):
    assert select(labels=labels) == names


def test_patterns_and_labels_and_a_query_all_have_to_fit():
    asked = []

    def query(container):
        asked.append(container.name)
        return container.name.endswith("1")

    assert select("web-*", "db", labels=[("tier", "front")], query=query) == ["web-1"]
    assert asked == ["web-1", "web-2"]


def test_an_empty_list_of_patterns_selects_nothing_and_not_everything():
    assert select_containers(Selector(patterns=()), ALL) == []
    assert select_containers(Selector(patterns=()), ALL, running_only=False) == []
    assert select_containers(Selector(patterns=(), labels=(("tier", None),)), ALL) == []


def test_an_empty_selector():
    assert Selector().is_empty
    assert not Selector(patterns=()).is_empty
    assert not Selector(patterns=("*",)).is_empty
    assert not Selector(labels=(("tier", None),)).is_empty
    assert not Selector(query=lambda _container: True).is_empty


def test_a_selector_without_some_of_its_patterns():
    selector = Selector(("a", "b"), (("tier", None),))
    assert selector.without({"a"}) == Selector(("b",), (("tier", None),))
    assert selector.without({"a", "b"}) is None
    assert selector.without(set()) == selector
    # What asks for no names keeps asking by labels, and what asks for none of them asks for none.
    by_labels = Selector(None, (("tier", None),))
    assert by_labels.without({"a"}) == by_labels
    assert Selector(patterns=()).without(set()) == Selector(patterns=())


def make_of(runtime, identity, name, state="running"):
    return Container(identity, name, state, 100, "image", {}, runtime)


API_DOCKER = make_of("docker", "11".ljust(64, "0"), "api")
API_PODMAN = make_of("podman", "22".ljust(64, "0"), "api")
API_RUNC = make_of("runc", "api", "api")
RUNTIMES = (API_DOCKER, API_PODMAN, API_RUNC, make_of("lxc", "db", "db"))


def select_ids(*patterns, containers=RUNTIMES):
    return [one.id for one in select_containers(Selector(patterns), list(containers))]


def test_a_name_that_several_runtimes_use_is_ambiguous_and_the_choices_are_named():
    with pytest.raises(ContainerError, match="ambiguous: it may mean") as caught:
        select_ids("api")
    assert f"docker:{API_DOCKER.id} (running), podman:{API_PODMAN.id} (running), runc:api" in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "ids"),
    [
        ("docker:api", [API_DOCKER.id]),
        ("podman:a*", [API_PODMAN.id]),
        (f"podman:{API_PODMAN.short_id}", [API_PODMAN.id]),
        ("runc:api", ["api"]),
        ("lxc:*", ["db"]),
        ("*", [one.id for one in RUNTIMES]),
    ],
)
def test_a_runtime_before_a_colon_chooses_among_runtimes(pattern, ids):
    assert select_ids(pattern) == ids


def test_a_name_in_another_runtime_is_not_found():
    with pytest.raises(ContainerError, match="no container is called 'db'"):
        select_ids("docker:db")


def test_a_colon_in_a_name_is_no_runtime():
    assert select_ids("a:b", containers=(make_of("runc", "a:b", "a:b"),)) == ["a:b"]


def test_a_container_is_asked_for_by_name_with_its_runtime_too():
    assert Selector(("podman:api",)).names(API_PODMAN)
    assert not Selector(("podman:api",)).names(API_DOCKER)


def make_of_user(uid, identity, name, runtime="podman", state="running", **labels):
    return Container(identity, name, state, 100, "image", labels, runtime, None, uid)


OF_1000 = make_of_user(1000, "33".ljust(64, "0"), "api", tier="front")
OWN_OF_1000 = make_of_user(1000, "44".ljust(64, "0"), "own", tier="front")
STOPPED_OF_1000 = make_of_user(1000, "45".ljust(64, "0"), "old", state="exited")
OF_1001 = make_of_user(1001, "own", "own", "runc")
SHADOW = make_of_user(1001, API_DOCKER.id, "shadow", "docker")
WITH_USERS = (API_DOCKER, API_RUNC, OF_1000, OWN_OF_1000, STOPPED_OF_1000, OF_1001, SHADOW)


def select_of(*patterns, containers=WITH_USERS, **options):
    selector = Selector(patterns or None, **options)
    return [(one.owner_uid, one.name) for one in select_containers(selector, list(containers))]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("docker:api", [(None, "api")]),
        (API_DOCKER.id, [(None, "api")]),
        (API_DOCKER.short_id, [(None, "api")]),
        ("ap*", [(None, "api"), (None, "api")]),
        ("*", [(None, "api"), (None, "api")]),
        ("podman:*", []),
        ("podman:1000/api", [(1000, "api")]),
        (f"podman:1000/{OWN_OF_1000.short_id}", [(1000, "own")]),
        ("podman:1000/old", [(1000, "old")]),
        ("1000/own", [(1000, "own")]),
        ("1001/own", [(1001, "own")]),
        ("runc:1001/own", [(1001, "own")]),
        ("1000/*", [(1000, "api"), (1000, "own")]),
        ("podman:1001/*", []),
        ("1002/*", []),
    ],
)
def test_a_users_container_is_found_where_the_user_is_named(pattern, found):
    assert select_of(pattern) == found


@pytest.mark.parametrize(
    "pattern", ["own", "podman:own", OWN_OF_1000.id, OWN_OF_1000.short_id, "shadow", "1002/own", "podman:1001/own"]
)
def test_a_users_container_is_found_by_no_other_name(pattern):
    with pytest.raises(ContainerError, match="no container is called"):
        select_of(pattern)


def test_the_way_to_name_it_is_told():
    with pytest.raises(ContainerError, match=f"give podman:1000/{OWN_OF_1000.id}, runc:1001/own if that is meant"):
        select_of("own")
    assert "podman:1000/own" in describe_running(list(WITH_USERS))


def test_labels_and_queries_find_none_of_users_by_themselves():
    assert select_of(labels=(("tier", "front"),)) == []
    assert select_of(query=lambda _one: True) == [(None, "api"), (None, "api")]
    assert select_of("1000/*", labels=(("tier", "front"),)) == [(1000, "api"), (1000, "own")]
    assert select_of("1000/*", query=lambda one: one.name == "own") == [(1000, "own")]


def test_where_nothing_is_asked_for_all_is_found():
    assert len(select_of()) == len(WITH_USERS) - 1  # but what does not run


def test_of_an_engine_that_was_named_users_are_as_good_as_root():
    assert select_of("own", containers=(OWN_OF_1000,), any_owner=True) == [(1000, "own")]
    assert select_of("o*", containers=(OWN_OF_1000,), any_owner=True) == [(1000, "own")]


def test_a_pod_in_a_namespace_of_digits_is_roots():
    pod = make_of("containerd", "55".ljust(64, "0"), "1000/api/app")
    assert select_of("1000/api/app", containers=(pod, OF_1000)) == [(None, "1000/api/app")]
    assert select_of("containerd:1000/api/*", containers=(pod, OF_1000)) == [(None, "1000/api/app")]


def test_of_two_with_one_id_the_one_that_was_asked_for():
    other = make_of("lxc", "api", "api")
    assert [one.runtime for one in select_containers(Selector(("lxc:api",)), [API_RUNC, other])] == ["lxc"]


def test_a_users_container_is_asked_for_by_name_with_the_user():
    assert Selector(("podman:1000/api",)).names(OF_1000)
    assert Selector((f"1000/{OF_1000.short_id}",)).names(OF_1000)
    assert not Selector(("1000/33",)).names(OF_1000)
    assert not Selector(("1000/*",)).names(OF_1000)


@pytest.mark.parametrize(
    ("selector", "wanted"),
    [
        (Selector(), True),
        (Selector(("1000/api",)), True),
        (Selector(("db", "podman:1000/*")), True),
        (Selector(("db",), any_owner=True), True),
        (Selector(("db", "docker:web-*", "shop/api/app")), False),
        (Selector(labels=(("tier", None),)), False),
        (Selector(()), False),
    ],
)
def test_users_are_asked_only_where_theirs_may_be_meant(selector, wanted):
    assert selector.may_mean_users is wanted
