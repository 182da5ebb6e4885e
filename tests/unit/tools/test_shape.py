# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The check of `make lint` that nothing is too large finds what is."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.tools.check_shape import gen_file_problems, gen_problems

BODY = "    pass\n"
CATCH = "def f():\n    try:\n        pass\n    except {}:\n        raise\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("def f():\n" + 60 * BODY, "f in line 1: 61 lines"),
        ("def f():\n" + 59 * BODY, None),
        ("def main():\n" + 70 * BODY, None),
        ("def f(a, b, c, d, *, e, f, g, h):\n" + BODY, "8 parameters"),
        ("class A:\n    def f(self, a, b, c, d, e, f, g):\n        pass\n", None),
        (451 * "x = 1\n", "451 lines, where 450"),
        ('DOCUMENTATION = """' + 451 * "x\n" + '"""\n', None),
        (CATCH.format("BaseException"), "except BaseException in line 4"),
        (CATCH.format("(OSError, BaseException)"), "except BaseException in line 4"),
        (CATCH.format("OSError"), None),
        (CATCH.format("BaseException") + "    os._exit(1)\n", None),
    ],
)
def test_what_is_too_large(text, problem):
    found = list(gen_file_problems(text))
    assert len(found) == (problem is not None)
    assert problem is None or problem in found[0]


def test_a_folder_with_too_many_files(tmp_path):
    for number in range(19):
        (tmp_path / f"{number}.py").write_text("")
    assert list(gen_problems(tmp_path)) == [f"{tmp_path}: 19 files, where 18 are the most"]
