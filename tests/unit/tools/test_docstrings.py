# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The check of `make lint` for docstrings finds those that do not stand alone, and those that are missing."""

from __future__ import annotations

import shutil

import pytest

from ansible_collections.crashcart.fleet.tools.check_docstrings import FIRST_WORDS, gen_file_problems, gen_problems

HAS = '"""Do it."""'


def find(text, *, is_documented=True):
    return list(gen_file_problems(text, is_documented=is_documented))


@pytest.mark.parametrize("word", FIRST_WORDS)
def test_a_docstring_that_does_not_stand_alone_is_found_everywhere(word):
    docstring = f'"""{word} is here."""\n'
    for text in (
        docstring,
        f"class _A:\n    {docstring}",
        f"def _f():\n    {docstring}",
        f"async def _f():\n    {docstring}",
    ):
        (problem,) = find(text, is_documented=False)
        assert problem.startswith(f"1: the docstring begins with '{word}'")
    (problem,) = find(f"class A:\n    {HAS}\n    def _f(self):\n        def g():\n            {docstring}")
    assert problem.startswith("4: ")
    assert find(f'"""{word}ever it may be."""') == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("def f(): ...\nasync def g(): ...\nclass A: ...\n", ["f", "g", "A"]),
        (f"def f():\n    {HAS}\n    def inner(): ...\ndef _g(): ...\nclass _A:\n    def f(self): ...\n", []),
        (f"class A:\n    {HAS}\n    def __init__(self): ...\n    def _f(self): ...\n    def g(self): ...\n", ["A.g"]),
        ("try:\n    def f(): ...\nexcept OSError:\n    def g(): ...\n", ["f", "g"]),
        # Overridden or not: the base is in the file, is Python's own, or is unknown.
        (f"class A:\n    {HAS}\n    def f(self):\n        {HAS}\nclass B(A):\n    {HAS}\n    def f(self): ...\n", []),
        (f"class A:\n    {HAS}\nclass B(A):\n    {HAS}\n    def f(self): ...\n", ["B.f"]),
        (f"class A(Protocol):\n    {HAS}\n    def f(self): ...\n", ["A.f"]),
        (f"class A(dict[str, int]):\n    {HAS}\n    def get(self, key): ...\n    def f(self): ...\n", ["A.f"]),
        (f"class A(other.Base):\n    {HAS}\n    def f(self): ...\n", []),
        (f"class A:\n    {HAS}\n    @property\n    def x(self): {HAS}\n    @x.setter\n    def x(self, to): ...\n", []),
    ],
)
def test_each_public_name_has_a_docstring(text, names):
    assert [problem.split()[1] for problem in find(text)] == names
    assert find(text, is_documented=False) == []


def test_where_docstrings_are_needed(tmp_path):
    for place in ("plugins/module_utils/deep", "plugins/plugin_utils", "plugins/modules", "tools"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "x.py").write_text("def f(): ...\n")
    (tmp_path / "tests/plugins/module_utils").mkdir(parents=True)
    (tmp_path / "tests/plugins/module_utils/x.py").write_text('def f(): ...\ndef g():\n    """Also g."""\n')
    (problem,) = gen_problems(tmp_path / "tests")
    assert problem.startswith(f"{tmp_path}/tests/plugins/module_utils/x.py:2: the docstring begins with 'Also'")
    shutil.rmtree(tmp_path / "tests")
    assert list(gen_problems(tmp_path)) == [
        f"{tmp_path}/plugins/module_utils/deep/x.py:1: f has no docstring",
        f"{tmp_path}/plugins/plugin_utils/x.py:1: f has no docstring",
    ]


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(NotADirectoryError, match="nonesuch is no folder"):
        list(gen_problems(tmp_path / "nonesuch"))
