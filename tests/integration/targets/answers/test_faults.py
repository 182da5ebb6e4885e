# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The first lines of a report name each fault, whatever the program's C library is, and whatever way this kernel has to record paths."""

from __future__ import annotations

import os
import re
from contextlib import ExitStack
from functools import cache

import pytest
from conftest import IMAGES
from support import answers, faults, faults_table, host, parts

IDLE = "import time; time.sleep(1e6)"
SECONDS = 12  # glibc waits 5 s for a name server
# Of the other faults; `make test-all` tries all of these.
PAIRS = (
    [(libc, way) for libc in faults.LIBCS for way in ("uprobe", "none") if (libc, way) != ("static", "uprobe")]
    if parts.IS_ALL
    else [("glibc", "uprobe"), ("static", "none")]
)
GROUP = 9  # of other faults are traced at once: a report shows at most twenty findings


@pytest.fixture(scope="module")
def healthy(tool_image):
    """A container with a C library, whose program does nothing."""
    name = f"cc-healthy-{os.getpid()}"
    host.docker("run", "-d", "--name", name, "--network", "none", f"{IMAGES}/python", "/usr/bin/python3", "-c", IDLE)
    yield name
    host.docker("rm", "-f", name)


@pytest.fixture(scope="module", params=(*faults.LIBCS, *faults.LANGUAGES))
def broken(request, tool_image):
    """The kind of programs, and what starts, once, a container for each fault and twenty of one image of which the last differs in a setting."""
    kind = request.param
    with ExitStack() as stack:

        @cache
        def start():
            faults.make_images(IMAGES, [kind])
            names = stack.enter_context(faults.run_faults(IMAGES, kind, faults.FAULTS))
            return names, stack.enter_context(faults.run_twenty(IMAGES, kind))

        yield kind, start


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def others(request, tool_image):
    """The C library, a way to record paths, and a container for each other fault."""
    libc, way = request.param
    faults.make_images(IMAGES, [libc])
    with faults.run_faults(IMAGES, libc, faults.OTHERS) as names:
        yield libc, way, names


def check(answer, wanted):
    """Check that ANSWER says what is expected of each container in WANTED, among its first lines."""
    problems = {}
    for container, expected in wanted.items():
        about = answer.list_about(container)
        named = [finding for finding in about if re.search(expected.text, finding["statement"])]
        # A line may be cut at its end.
        if not any(
            finding["statement"][:100] in line for finding in named for line in answer.lines[: faults_table.FIRST_LINES]
        ):
            problems[container] = f"{expected.text} is not among {[finding['statement'] for finding in about]}"
        elif expected.is_lacking and not any(finding["missing"] for finding in named):
            problems[container] = "no finding says that paths were not recorded"
    text = "\n".join(f"{name}: {problem}" for name, problem in problems.items())
    assert not problems, "\n".join((text, *answer.lines))


@pytest.mark.parametrize("way", faults_table.WAYS)
def test_each_fault_is_named(broken, healthy, way, tmp_path):
    kind, start = broken
    # A trace that asks for these paths is refused, so there is no answer to look at.
    if (kind, way) == ("static", "uprobe"):
        pytest.skip("a static program has no C library to put a probe on")
    paths = answers.choose_paths(way, healthy)
    names, twenty = start()
    answer = answers.trace([*names.values(), *twenty], tmp_path / "traces", SECONDS, **paths)
    wanted = {container: faults_table.expect(fault, way, kind) for fault, container in names.items()}
    if (kind, way) != ("shell", "none"):  # that script differs by a path alone
        wanted[twenty[-1]] = faults_table.expect("configured", way, kind)
    check(answer, wanted)
    assert [finding for name in twenty[:-1] for finding in answer.list_about(name)] == []


@pytest.mark.parametrize("group", range(0, len(faults.OTHERS), GROUP))
def test_others_of_their_kinds_are_named(others, group, tmp_path):
    libc, way, names = others
    # A container without memory gets no probes of programs.
    chosen = [fault for fault in list(names)[group : group + GROUP] if (way, fault) != ("uprobe", "out_of_memory")]
    paths = answers.choose_paths(way, names[chosen[0]])
    answer = answers.trace([names[fault] for fault in chosen], tmp_path / "traces", SECONDS, **paths)
    check(answer, {names[fault]: faults_table.expect(fault, way, libc) for fault in chosen})
