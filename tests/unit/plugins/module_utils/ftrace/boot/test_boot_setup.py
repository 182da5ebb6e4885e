# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files that the role standing_rules leaves on a host, in a folder that stands for the host; systemd and traces are another matter."""

from __future__ import annotations

import json
import os

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import rule as rules
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.boot import begin, setup
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.installed import files
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.installed.steps import take


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Give the folder that stands for the host, and what was done beside files."""
    done = []
    for module in (setup, rules, files):
        for name, value in list(vars(module).items()):
            if isinstance(value, str) and value.startswith(("/etc/", "/usr/libexec", "/run/systemd")):
                monkeypatch.setattr(module, name, str(tmp_path) + value)
    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    monkeypatch.setattr(setup, "_reload", lambda: done.append("reload"))
    monkeypatch.setattr(begin, "end", lambda names: done.append(f"end {', '.join(sorted(names))}"))

    def begin_one(options, _root, check_mode=False):
        if not check_mode:
            done.append(f"begin {options['rule']}")
        return True

    monkeypatch.setattr(begin, "begin", begin_one)
    return tmp_path, done


def have(*names, check_mode=False):
    wanted = setup.complete_rules([{"name": name, "containers": [f"{name}-*"], "labels": None} for name in names])
    return take(setup.plan_presence(wanted, "/tracefs"), check_mode=check_mode)


def list_files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())


def test_what_is_installed_is_taken_away_again(host):
    folder, done = host
    before = list_files(folder)
    changes = have("shop")
    assert [os.path.relpath(path, folder) for path in changes[:-1]] == [
        "usr/libexec/crashcart/begin-rules",
        "etc/crashcart/rules.json",
        "etc/systemd/system/crashcart-rules.service",
        "etc/systemd/system/multi-user.target.wants/crashcart-rules.service",
    ]
    assert changes[-1] == "rule shop"
    assert done == ["reload", "begin shop"]
    link = folder / "etc/systemd/system/multi-user.target.wants/crashcart-rules.service"
    assert link.resolve() == folder / "etc/systemd/system/crashcart-rules.service"
    assert f"ExecStart={setup.BOOT_PROGRAM.replace(str(folder), '')}\n" in link.read_text()
    assert rules.read_at_boot()["shop"]["containers"] == ["shop-*"]
    take(setup.plan_absence(), check_mode=False)
    assert done[2:] == ["reload", "end shop"]
    assert list_files(folder) == before
    assert not (folder / "etc/crashcart").exists() and not (folder / "usr").exists()
    assert not [step for step in setup.plan_absence() if step.is_needed]


def test_again_nothing_is_written_and_a_rule_that_is_left_out_ends(host):
    _folder, done = host
    have("shop", "mail")
    del done[:]
    assert have("shop", "mail") == ["rule shop", "rule mail"]  # what stands for begin() says that they do not run
    assert "reload" not in done
    del done[:]
    assert [os.path.basename(what) for what in have("mail")] == ["rules.json", "rule mail"]
    assert done == ["end shop", "begin mail"]


def test_check_mode_names_what_would_be_and_does_nothing(host):
    folder, done = host
    before = list_files(folder)
    assert len(have("shop", check_mode=True)) == 5
    assert (list_files(folder), done) == (before, [])


def test_what_another_role_has_installed_stays(host):
    folder, _done = host
    have("shop")
    (folder / "etc/crashcart/start-hook.json").write_text("{}")
    take(setup.plan_absence(), check_mode=False)
    assert list_files(folder / "etc/crashcart") == ["before.json", "start-hook.json"]


def test_a_damaged_list_is_told_and_replaced(host):
    folder, _done = host
    have("shop")
    (folder / "etc/crashcart/rules.json").write_text('{"rules": [')
    with pytest.raises(FleetError, match=r"rules.json is damaged: run the role standing_rules again"):
        rules.read_at_boot()
    have("shop")
    assert list(rules.read_at_boot()) == ["shop"]


def test_a_host_without_systemd_is_told_what_to_use(host):
    folder, _done = host
    (folder / "run/systemd/system").rmdir()
    with pytest.raises(FleetError, match="no systemd runs here.*state=awaiting"):
        have("shop")


def test_a_rule_that_cannot_be_is_named_and_nothing_is_written(host, monkeypatch):
    folder, _done = host
    before = list_files(folder)

    def refuse(*_arguments, **_more):
        raise FleetError("max_containers: 0 is too small")

    monkeypatch.setattr(begin, "begin", refuse)
    with pytest.raises(FleetError, match="rule shop: max_containers: 0 is too small"):
        have("shop")
    assert list_files(folder) == before


@pytest.mark.parametrize(
    "names, why", [(("shop", "shop"), "shop is there twice"), ((" ",), "empty name"), ((), "rules is empty")]
)
def test_names_that_cannot_be(names, why):
    with pytest.raises(FleetError, match=why):
        setup.complete_rules([{"name": name} for name in names])


def test_the_list_is_json_that_root_alone_reads(host):
    folder, _done = host
    have("shop")
    path = folder / "etc/crashcart/rules.json"
    assert json.loads(path.read_text())["rules"].keys() == {"shop"}
    assert path.stat().st_mode & 0o777 == 0o600
