# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Healthy servers, idle and under load, give no finding: its operator would call it wrong."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from conftest import IMAGES
from support import answers, healthy

SECONDS = 8
ALLOWED: tuple[str, ...] = ()  # statements that are true, and that an operator wants to read


@pytest.fixture(scope="module")
def servers(tool_image):
    healthy.make_images(IMAGES)
    with healthy.run_servers(IMAGES) as names:
        yield names


@pytest.mark.parametrize("way", ["uprobe", "none"])
@pytest.mark.parametrize("is_asked", [False, True], ids=["idle", "load"])
def test_healthy_servers_give_no_finding(servers, way, is_asked, tmp_path):
    paths = answers.choose_paths(way, next(iter(servers.values())))
    with healthy.load(IMAGES, servers) if is_asked else nullcontext():
        answer = answers.trace(list(servers.values()), tmp_path / "traces", SECONDS, **paths)
    found = [finding for finding in answer.findings if finding["statement"] not in ALLOWED]
    assert found == [], "\n".join(answer.lines)
    assert answer.count_events() > (1000 if is_asked else 0)
