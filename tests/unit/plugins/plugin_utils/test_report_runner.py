# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A report is made by a process of its own, whose compiled code is kept where only this user can write."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from ansible_collections.crashcart.fleet.plugins.modules import ftrace_report
from ansible_collections.crashcart.fleet.plugins.plugin_utils import (
    compiled_cache,
    controller_needs,
    report_runner,
)
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages

OPENAT = 1501
MANIFEST = {
    "version": 3,
    "inventory_hostname": "web1",
    "container": {"id": "c" * 64, "name": "api"},
    "clock_offset_ns": 1795302898 * 10**9,
    "complete": True,
    "lost": 0,
    "syscalls": {"0": "read", "257": "openat"},
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Return the cache's folder, which is of this test alone. Nothing is compiled, since that takes longer than a small report."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    return tmp_path / "cache/crashcart.fleet"


def write_capture(folder, host="web1", error=-13):
    """Write a capture of two calls: an openat of /etc/missing that fails, and a read."""
    records = [
        pages.make_enter(4711, 257),
        pages.make_paths(OPENAT, 4711, b"/etc/missing"),
        pages.make_exit(4711, 257, error),
        pages.make_enter(4711, 0),
        pages.make_exit(4711, 0, 5),
    ]
    made = [pages.pack_page(2 * 10**9 + n * 10**6, [pages.pack_event(record)]) for n, record in enumerate(records)]
    formats = {"crashcart_0123456789ab_5d41402a": [pages.make_path_format("path_openat", OPENAT, "path")]}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{host}.dat"
    path.write_bytes(pages.pack_trace([made], cmdlines=b"4711 worker\n", more_formats=formats))
    path.with_suffix(".json").write_text(json.dumps({**MANIFEST, "inventory_hostname": host, "entries": len(records)}))
    return path


def run(folder, **request):
    return report_runner.run({"src": "traces", "dest": "report", "formats": ["json", "text"], **request}, str(folder))


def test_a_report_of_a_real_process(tmp_path, cache):
    write_capture(tmp_path / "traces")
    result = run(tmp_path)
    assert result.get("failed") is None and result["changed"] and result["warnings"] == []
    assert result["lines"][:3] == [
        "1 finding in 1 capture, in 1 container on 1 host:",
        "1. worker could not open /etc/missing: permission denied (EACCES), once",
        "     worker · api on web1 · once · since 2026-11-21T23:15:00Z · next: ansible-playbook crashcart.fleet.exec"
        """ -l web1 -e crashcart_containers=api -e "crashcart_command='namei -l /etc/missing'\"""",
    ]
    assert result["lines"][-1] == "In report: findings.json, summary.json, summary.txt"
    assert [finding["rule"] for finding in result["findings"]] == ["failures"]
    written = {path.name: path.read_text() for path in (tmp_path / "report").iterdir()}
    assert sorted(written) == ["findings.json", "summary.json", "summary.txt"]
    assert json.loads(written["findings.json"])["findings"] == result["findings"]
    assert run(tmp_path)["changed"] is False
    (folder,) = cache.iterdir()
    assert folder.name == f"numba-{compiled_cache.name_version()}" and folder.stat().st_mode & 0o777 == 0o700


def test_check_mode_writes_no_report(tmp_path, cache):
    write_capture(tmp_path / "traces")
    result = run(tmp_path, check_mode=True)
    assert result["changed"] and result["findings"] and not (tmp_path / "report").exists()


def test_what_fails_is_told_in_one_sentence(tmp_path, cache):
    result = run(tmp_path)
    assert result["failed"] and result["msg"] == "there is no capture traces"
    result = run(tmp_path, min_latency="soon")
    assert result["failed"] and result["msg"].startswith("min_latency: 'soon' is not a time")
    write_capture(tmp_path / "traces").write_bytes(b"\xff")
    result = run(tmp_path)
    (warning,) = result["warnings"]
    assert warning.startswith("skipped web1.dat: ") and result["lines"][-1].startswith("In report: ")


@pytest.mark.parametrize(
    ("words", "fails"),
    [(["any"], True), (["failures"], True), (["differs"], False), (["critical"], False), ([], False)],
)
def test_findings_fail_the_task_where_that_is_asked_for(tmp_path, cache, words, fails):
    write_capture(tmp_path / "traces")
    result = run(tmp_path, fail_on=words)
    assert result.get("failed", False) == fails and result["lines"] and (tmp_path / "report/findings.json").exists()
    if fails:
        assert result["msg"].startswith(
            "1 finding that fail_on names, the worst one: worker could not open /etc/missing"
        )


def test_a_rule_that_nobody_knows_is_an_error_with_the_nearest_one(tmp_path, cache):
    result = run(tmp_path, fail_on=["failure"])
    assert result["msg"] == "fail_on: no rule is called 'failure': failures may be meant"
    assert "there are any, critical" in run(tmp_path, fail_on=["xyz"])["msg"]


def run_at_once(count, folder):
    """Return the results of COUNT reports of one folder at once."""
    results = []
    threads = [threading.Thread(target=lambda: results.append(run(folder))) for _report in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.get("msg") for result in results] == [None] * count
    assert len({json.dumps(result["findings"]) for result in results}) == 1
    names = sorted(path.name for path in (folder / "report").iterdir())
    assert names == ["findings.json", "summary.json", "summary.txt"]
    return results


def test_reports_at_once_of_one_folder(tmp_path, cache):
    for number in range(3):
        write_capture(tmp_path / "traces", f"web{number}")
    run_at_once(3, tmp_path)


@pytest.mark.sweep
def test_reports_at_once_fill_one_cache_and_the_next_one_uses_it(tmp_path, cache, monkeypatch):
    monkeypatch.delenv("NUMBA_DISABLE_JIT")
    monkeypatch.setattr(report_runner, "_SMALL", -1)
    write_capture(tmp_path / "traces")
    run_at_once(2, tmp_path)
    files = {path.relative_to(cache): path.stat().st_mtime_ns for path in cache.rglob("*.nb?")}
    assert {path.suffix for path in files} == {".nbi", ".nbc"}
    assert run(tmp_path)["findings"]
    assert files == {path.relative_to(cache): path.stat().st_mtime_ns for path in cache.rglob("*.nb?")}


def test_bytecode_is_kept_beside_compiled_code(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    write_capture(tmp_path / "traces")
    assert run(tmp_path)["findings"]
    names = {path.name.split(".")[0] for path in cache.rglob("*.pyc")}
    assert {"report_process", "capture_summary", "search"} <= names and "dispatcher" not in names  # numba has its own


def test_the_process_is_told_where_the_cache_is(tmp_path, cache, monkeypatch):
    program = "import json, os; print(json.dumps({'cache': os.environ['NUMBA_CACHE_DIR']}))"
    monkeypatch.setattr(report_runner, "PROGRAM", program)
    assert run(tmp_path) == {"cache": str(cache / f"numba-{compiled_cache.name_version()}")}


def test_a_process_that_is_killed_is_told_apart_from_one_that_fails(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(report_runner, "PROGRAM", "import os; os.kill(os.getpid(), 9)")
    assert "was killed, most likely because memory ran out" in run(tmp_path)["msg"]
    monkeypatch.setattr(report_runner, "PROGRAM", "import os; os.kill(os.getpid(), 11)")
    assert "was ended by SIGSEGV before the report was done: it said nothing" in run(tmp_path)["msg"]
    monkeypatch.setattr(report_runner, "PROGRAM", "import nonesuch_\x1b")
    result = run(tmp_path)
    assert "ended with exit code 1" in result["msg"] and result["msg"].isprintable() and "\x1b" not in result["stderr"]
    monkeypatch.setattr(report_runner, "PROGRAM", "print('no JSON')")
    assert run(tmp_path)["failed"]


def test_only_the_result_goes_to_standard_output(tmp_path, cache, monkeypatch):
    write_capture(tmp_path / "traces")
    monkeypatch.setattr(
        report_runner,
        "PROGRAM",
        report_runner.PROGRAM.replace("import contextlib", "import sys; print(1, file=sys.stderr)\nimport contextlib"),
    )
    assert run(tmp_path)["findings"]


def test_the_process_ends_with_its_parent(tmp_path, cache):
    """It waits for its request, so nothing else ends it."""
    program = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-P', '-c', *sys.argv[1:]], stdin=subprocess.PIPE)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            program,
            report_runner.PROGRAM,
            str(compiled_cache.COLLECTION),
            str(cache),
            "report_process",
        ],
        stdout=subprocess.PIPE,
    )
    child = int(parent.stdout.readline())
    writer = os.open(f"/proc/{parent.pid}/fd", os.O_RDONLY)  # keeps nothing alive, and is there until the parent ends
    wait_until(
        lambda: "SigCgt" in read_status(child) and int(read_status(child)["SigCgt"], 16) >> signal.SIGTERM - 1 & 1
    )
    time.sleep(0.2)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    os.close(writer)
    wait_until(lambda: read_status(child).get("State", "Z")[0] in "ZX")


def read_status(pid):
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, cache, monkeypatch):
    write_capture(tmp_path / "traces")
    (tmp_path / "file").write_text("")
    for place in ("/proc/self", "/sys/kernel", str(tmp_path / "file")):
        monkeypatch.setenv("XDG_CACHE_HOME", place)
        with compiled_cache.open_cache() as folder:
            assert (
                os.path.basename(folder).startswith("crashcart-compiled-") and os.stat(folder).st_mode & 0o777 == 0o700
            )
        assert not os.path.exists(folder)
    assert run(tmp_path)["findings"]


def test_without_the_variable_or_with_a_relative_one_the_cache_is_in_the_home(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        with compiled_cache.open_cache() as folder:
            assert folder.startswith(f"{tmp_path}/.cache/crashcart.fleet/numba-")


def make_way(tmp_path, kind):
    """Make a cache home that somebody else could exchange, and return its path."""
    place = tmp_path / "way"
    if kind == "a folder of another user":
        place.mkdir()
        os.chown(place, 4242, 4242)
    elif kind == "a folder that everybody may write":
        place.mkdir()
        place.chmod(0o777)
    elif kind == "a folder that a group may write":
        place.mkdir()
        place.chmod(0o775)
        os.chown(place, -1, 4242)
    elif kind == "a link of another user":
        (tmp_path / "real").mkdir()
        place.symlink_to(tmp_path / "real")
        os.lchown(place, 4242, 4242)
    elif kind == "our folder is a link":
        (tmp_path / "real").mkdir()
        place.mkdir()
        (place / "crashcart.fleet").symlink_to(tmp_path / "real")
    else:
        (place / "crashcart.fleet").mkdir(parents=True)
        os.chown(place / "crashcart.fleet", 4242, 4242)
    return place


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of other users")
@pytest.mark.parametrize(
    "kind",
    [
        "a folder of another user",
        "a folder that everybody may write",
        "a folder that a group may write",
        "a link of another user",
        "our folder is a link",
        "our folder is another user's",
    ],
)
def test_nobody_elses_folder_or_link_is_trusted(tmp_path, cache, monkeypatch, kind):
    place = make_way(tmp_path, kind)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    with compiled_cache.open_cache() as folder:
        assert os.path.basename(folder).startswith("crashcart-compiled-")
    assert not (tmp_path / "real").exists() or list((tmp_path / "real").iterdir()) == []


def test_a_link_of_our_own_is_followed_and_wrong_modes_are_mended(tmp_path, cache, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "own").symlink_to(tmp_path / "real")
    (tmp_path / "real/crashcart.fleet").mkdir(mode=0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    with compiled_cache.open_cache() as folder:
        assert folder.startswith(str(tmp_path / "own"))
    assert (tmp_path / "real/crashcart.fleet").stat().st_mode & 0o777 == 0o700


def test_caches_of_earlier_versions_are_removed_after_a_while(tmp_path, cache):
    for name, age_s in (("numba-0.0.1-old", 40 * 86400), ("numba-0.0.2-new", 86400), ("other", 40 * 86400)):
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (time.time() - age_s,) * 2)
    with compiled_cache.open_cache():
        assert sorted(path.name for path in cache.iterdir()) == sorted(
            ["numba-0.0.2-new", f"numba-{compiled_cache.name_version()}", "other"]
        )


def test_the_collection_is_found_wherever_its_folder_is(tmp_path, cache, monkeypatch):
    """By its real path, although Python's path has another folder of the same name that comes first."""
    write_capture(tmp_path / "traces")
    other = tmp_path / "other/ansible_collections"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise SystemExit('the wrong folder')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "other"))
    (tmp_path / "elsewhere").symlink_to(compiled_cache.COLLECTION)
    monkeypatch.setattr(report_runner, "COLLECTION", tmp_path / "elsewhere")
    assert run(tmp_path)["findings"]


def test_no_module_of_the_current_folder_is_imported(tmp_path, cache):
    write_capture(tmp_path / "traces")
    (tmp_path / "numpy.py").write_text("raise SystemExit('the wrong numpy')\n")
    assert run(tmp_path)["findings"]


def test_the_arguments_of_the_action_are_those_that_are_documented():
    options = yaml.safe_load(ftrace_report.DOCUMENTATION)["options"]
    keys = ("type", "elements", "choices", "required", "default")
    documented = {name: {key: option[key] for key in keys if key in option} for name, option in options.items()}
    assert documented == report_runner.ARGUMENTS


def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(controller_needs, "_MODULES", {"report": {"nonesuch": "nonesuch", "json": "json"}})
    (sentence,) = controller_needs.find_missing_packages(["report"])
    assert sentence == f"the controller's Python lacks nonesuch: {sys.executable} -m pip install nonesuch"
    assert {"numba", "numpy"} <= {
        line.partition(">")[0] for line in (compiled_cache.COLLECTION / "requirements.txt").read_text().splitlines()
    }


def test_small_captures_are_not_worth_compiling_for(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NUMBA_DISABLE_JIT", raising=False)
    path = write_capture(tmp_path / "traces")
    assert run(tmp_path)["findings"]
    assert not list((tmp_path / "cache").rglob("*.nbi"))
    request = {"src": None, "captures": ["traces/web1.dat"]}
    assert report_runner.are_small(request, str(tmp_path)) and report_runner.are_small({"src": "none"}, str(tmp_path))
    with path.open("r+b") as file:
        file.truncate(300 << 10)
    assert not report_runner.are_small(request, str(tmp_path))
    assert not report_runner.are_small({"src": "traces"}, str(tmp_path))


def test_compiled_code_is_used_where_it_is(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    assert not compiled_cache.has_code(str(tmp_path))
    (tmp_path / "a/b/x.nbi").touch()
    assert compiled_cache.has_code(str(tmp_path))
