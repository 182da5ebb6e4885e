# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page of what was seen working."""

from __future__ import annotations

import json
from pathlib import Path

from ansible_collections.crashcart.fleet.tools import write_matrix

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_the_page_is_what_the_kept_cells_give():
    cells = json.loads((DOCS / "matrix.json").read_text(encoding="utf-8"))
    assert (DOCS / "matrix.md").read_text(encoding="utf-8") == write_matrix.render(cells), "run make matrix-page"


def test_a_later_outcome_replaces_an_earlier_one_of_the_same_cell():
    kept = {"engines": {"Docker 9": {"attach": ["works", "2026-01-01"], "exec": ["works", "2026-01-01"]}}}
    seen = {
        "engines": {"Docker 9": {"attach": ["fails", "2026-02-02"]}, "Docker 10": {"exec": ["works", "2026-02-02"]}}
    }
    assert write_matrix.merge(kept, seen) == {
        "engines": {
            "Docker 9": {"attach": ["fails", "2026-02-02"], "exec": ["works", "2026-01-01"]},
            "Docker 10": {"exec": ["works", "2026-02-02"]},
        }
    }
    assert kept["engines"]["Docker 9"]["attach"][0] == "works"


def test_cells_that_were_not_tried_and_reasons():
    page = write_matrix.render(
        {
            "kernels": {
                "Linux 6.18": {"`kprobes`": ["no kprobes (CONFIG_KPROBE_EVENTS)", "2026-01-01"]},
                "Linux 6.1": {"`kprobes`": ["works", "2026-01-02"], "`hist`": ["works", "2026-01-02"]},
            }
        }
    )
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert table == [
        "| | Linux 6.1 | Linux 6.18 |",
        "|---|---|---|",
        "| `kprobes` | works, 2026-01-02 | refused (1), 2026-01-01 |",
        "| `hist` | works, 2026-01-02 | — |",
    ]
    assert "\n1. no kprobes (CONFIG_KPROBE_EVENTS)\n" in page
