# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pages lead where they say: links, tests named by decisions, the way from the index, and the pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils import errors

# The checkout, its staged copy and the built archive all have docs/ and tests/ beside plugins/.
TOP = Path(errors.__file__).parents[2]
_FENCE = re.compile(r"^(```+|~~~+)[^\n]*\n.*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`+).+?\1", re.DOTALL)
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(\s*<?([^()\s<>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*\s*$", re.MULTILINE)
_TEST = re.compile(r"\btests/[\w/.-]+\.py::\w+")
_DECISION = re.compile(r"\d{4}-[a-z0-9-]+\.md")


def list_pages(top: Path) -> list[Path]:
    """Return the pages below TOP whose links are looked at: the two in the root, and all of docs/."""
    return [top / "README.md", top / "CONTRIBUTING.md", *sorted((top / "docs").rglob("*.md"))]


def list_decisions(top: Path) -> list[Path]:
    """Return the pages of decisions below TOP."""
    return sorted(path for path in (top / "docs/decisions").glob("*.md") if _DECISION.fullmatch(path.name))


def read_prose(path: Path) -> str:
    """Return the text of the page PATH without its blocks of code."""
    return _FENCE.sub("", path.read_text(encoding="utf-8"))


def list_links(path: Path) -> list[str]:
    """Return the targets of the links on the page PATH that lead to files."""
    found = _LINK.findall(_CODE.sub("", read_prose(path)))
    return [one for one in found if not re.match(r"[a-z][a-z0-9+.-]*:", one)]


def list_anchors(path: Path) -> set[str]:
    """Return the anchors of the headings on the page PATH, as GitHub makes them."""
    anchors: set[str] = set()
    for heading in _HEADING.findall(read_prose(path)):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        anchor = base = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        number = 0
        while anchor in anchors:
            number += 1
            anchor = f"{base}-{number}"
        anchors.add(anchor)
    return anchors


def gen_bad_links(top: Path, page: Path) -> Iterator[str]:
    """Yield each link on PAGE, as it is written, that leads to no file below TOP, or to no heading of that file."""
    for link in list_links(page):
        place, _hash, anchor = unquote(link).partition("#")
        target = (page.parent / place).resolve() if place else page
        is_inside = target.is_relative_to(top.resolve()) or target == page
        if (
            not is_inside
            or not target.exists()
            or (anchor and (target.suffix != ".md" or anchor not in list_anchors(target)))
        ):
            yield link


def find_reached(top: Path) -> set[Path]:
    """Return the pages that links lead to from docs/index.md, and that page."""
    reached: set[Path] = set()
    waiting = [(top / "docs/index.md").resolve()]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.is_file():
            continue
        reached.add(page)
        waiting += [(page.parent / unquote(link).partition("#")[0]).resolve() for link in list_links(page)]
    return reached


def list_unreached(top: Path) -> list[str]:
    """Return the pages of docs/ that nothing leads to from docs/index.md."""
    reached = find_reached(top)
    return [
        str(page.relative_to(top)) for page in sorted((top / "docs").rglob("*.md")) if page.resolve() not in reached
    ]


def find_missing_tests(top: Path, text: str) -> list[str]:
    """Return the tests, as `tests/FILE.py::FUNCTION`, that TEXT names and that are not below TOP."""
    missing = []
    for name in _TEST.findall(text):
        file, _colons, function = name.partition("::")
        path = top / file
        is_there = path.is_file() and re.search(rf"^def {function}\(", path.read_text(encoding="utf-8"), re.MULTILINE)
        if not is_there:
            missing.append(name)
    return missing


def count_pictures(path: Path) -> int:
    """Return the number of blocks in mermaid on the page PATH."""
    return len(re.findall(r"^```mermaid\n.+?^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))


def name_case(path: Path) -> str:
    """Return PATH below the collection, as the name of a test's case."""
    return str(path.relative_to(TOP))


@pytest.mark.parametrize("page", list_pages(TOP), ids=name_case)
def test_links_lead_to_files_and_headings(page):
    assert list(gen_bad_links(TOP, page)) == []


def test_every_page_is_reached_from_the_index():
    assert list_unreached(TOP) == []


def test_there_are_decisions_with_numbers_of_their_own():
    numbers = [path.name[:4] for path in list_decisions(TOP)]
    assert numbers == [f"{number:04}" for number in range(1, len(numbers) + 1)]
    assert len(numbers) >= 20


@pytest.mark.parametrize("page", list_decisions(TOP), ids=name_case)
def test_a_decision_names_tests_that_exist(page):
    text = page.read_text(encoding="utf-8")
    assert _TEST.search(text), "it names no test as tests/FILE.py::FUNCTION"
    assert find_missing_tests(TOP, text) == []
    assert re.search(r"^- Date: 20\d\d-\d\d-\d\d$", text, re.MULTILINE)
    assert re.search(r"^- Status: \w+", text, re.MULTILINE)


@pytest.mark.parametrize("page", sorted((TOP / "docs/how").glob("*.md")), ids=name_case)
def test_a_page_on_how_it_works_has_one_picture(page):
    assert count_pictures(page) == 1


@pytest.fixture
def small(tmp_path):
    """A collection of a few pages, all in order."""

    def write(path, text):
        place = tmp_path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
        return place

    write("README.md", "[docs](docs/index.md)\n")
    write("docs/index.md", "# All `pages`\n\n[one](how/one.md#a-heading-of-its-own)\n")
    write(
        "docs/how/one.md",
        "# A heading, of its own\n\n```sh\n[no](link.md)\n```\n`[no](link.md)`\n[back](../index.md#all-pages)\n",
    )
    write("tests/unit/test_a.py", "def test_one():\n    pass\n")
    return write


def test_pages_in_order_have_nothing_wrong(small, tmp_path):
    assert [list(gen_bad_links(tmp_path, page)) for page in (tmp_path / "docs").rglob("*.md")] == [[], []]
    assert list_unreached(tmp_path) == []
    assert find_missing_tests(tmp_path, "`tests/unit/test_a.py::test_one`") == []


@pytest.mark.parametrize(
    "link",
    [
        "nonesuch.md",
        "how/one.md#nonesuch",
        "#nonesuch",
        "../../outside.md",
        "how/one.py",
        "<nonesuch.md>",
        'nonesuch.md "title"',
    ],
)
def test_a_link_that_leads_nowhere_is_found(small, tmp_path, link):
    (tmp_path.parent / "outside.md").write_text("# There\n", encoding="utf-8")
    page = small("docs/index.md", f"[good](how/one.md)\n\n| a | [`code` text]({link}) |\n")
    assert [one.partition('"')[0].strip("<> ") for one in gen_bad_links(tmp_path, page)] == [
        link.partition('"')[0].strip("<> ")
    ]


def test_a_page_that_nothing_leads_to_is_found(small, tmp_path):
    small("docs/lonely.md", "# Lonely\n")
    small("docs/friend.md", "[lonely](lonely.md)\n")
    assert list_unreached(tmp_path) == ["docs/friend.md", "docs/lonely.md"]


@pytest.mark.parametrize("test", ["tests/unit/test_a.py::test_two", "tests/unit/test_b.py::test_one"])
def test_a_test_that_is_not_there_is_found(small, tmp_path, test):
    assert find_missing_tests(tmp_path, f"held by `{test}`") == [test]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "```text\nA\n```\n"), (2, "```mermaid\nA\n```\n\n```mermaid\nB\n```\n")]
)
def test_pictures_are_counted(small, tmp_path, count, text):
    assert count_pictures(small("docs/how/two.md", text)) == count


def test_of_headings_that_are_alike_each_has_an_anchor(small):
    page = small("docs/a.md", "# One\n\n## One\n\n## [Two](b.md) & `three_3`: four-five\n")
    assert list_anchors(page) == {"one", "one-1", "two--three_3-four-five"}
