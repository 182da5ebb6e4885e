# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The check of `make lint` that nothing is too large finds what is."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.tools.check_shape import gen_file_problems, gen_problems

BODY = "    pass\n"
CATCH = "def f():\n    try:\n        pass\n    except {}:\n        raise\n"
OUTSIDE = "try:\n    pass\nexcept {}:\n    raise\n"
CHILD = CATCH.format("BaseException") + "    {}\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("def f():\n" + 60 * BODY, "f in line 1: 61 lines"),
        ("async def f():\n" + 60 * BODY, "f in line 1: 61 lines"),
        ("def f():\n" + 59 * BODY, None),
        ("def main():\n" + 70 * BODY, "main in line 1: 71 lines"),
        ("def f(a, b, c, d, *, e, f, g, h):\n" + BODY, "8 parameters"),
        ("def f(a, b, c, d, e, f, g, *h):\n" + BODY, "8 parameters"),
        ("def f(a, b, c, d, e, f, *g, **h):\n" + BODY, "8 parameters"),
        ("async def f(a, b, c, d, *, e, f, g, h):\n" + BODY, "8 parameters"),
        ("class A:\n    def f(self, a, b, c, d, e, f, g):\n        pass\n", None),
        (451 * "x = 1\n", "451 lines, where 450"),
        ('DOCUMENTATION = """' + 451 * "x\n" + '"""\n', None),
        # What is caught, and where.
        (CATCH.format("BaseException"), "f in line 1: except BaseException in line 4"),
        ("async " + CATCH.format("BaseException"), "f in line 1: except BaseException in line 4"),
        (CATCH.replace(" {}", "").format(), "except BaseException in line 4"),
        (CATCH.format("(OSError, BaseException)"), "except BaseException in line 4"),
        ("import builtins\n" + CATCH.format("builtins.BaseException"), "except BaseException in line 5"),
        ("import builtins as b\n" + CATCH.format("b.BaseException"), "except BaseException in line 5"),
        ("from builtins import BaseException as B\n" + CATCH.format("B"), "except BaseException in line 5"),
        ("All = BaseException\n" + CATCH.format("All"), "except BaseException in line 5"),
        ("All = BaseException\nMore: object = All\n" + CATCH.format("More"), "except BaseException in line 6"),
        ("ALL = (OSError, BaseException)\n" + CATCH.format("ALL"), "except BaseException in line 5"),
        ("ALL = (BaseException,)\n" + CATCH.format("(OSError, *ALL)"), "except BaseException in line 5"),
        ("ALL = (OSError,) + (BaseException,)\n" + CATCH.format("ALL"), "except BaseException in line 5"),
        (OUTSIDE.format("BaseException"), "except BaseException in line 3"),
        ("class A:\n    try:\n        pass\n    except BaseException:\n        raise\n", "BaseException in line 4"),
        (CATCH.format("OSError"), None),
        ("Ours = ValueError\n" + CATCH.format("(OSError, Ours)"), None),
        # What is suppressed.
        (
            "import contextlib\nwith contextlib.suppress(BaseException):\n    pass\n",
            "suppress(BaseException) in line 2",
        ),
        ("from contextlib import suppress as s\nwith s(OSError, BaseException):\n    pass\n", "in line 2"),
        ("from contextlib import suppress\nhush = suppress\nwith hush(BaseException):\n    pass\n", "in line 3"),
        ("from contextlib import suppress\nwith suppress(OSError):\n    pass\n", None),
        # Who may: a forked child, which ends by its own os._exit.
        ("import os\n" + CHILD.format("os._exit(1)"), None),
        ("from os import _exit as end\n" + CHILD.format("end(1)"), None),
        ("import os\n" + CHILD.format("def g():\n        os._exit(1)"), "except BaseException in line 5"),
        ("import os\n" + CHILD.format("lambda: os._exit(1)"), "except BaseException in line 5"),
        (CHILD.format("other._exit(1)"), "except BaseException in line 4"),
        ("import os\n" + OUTSIDE.format("BaseException") + "os._exit(1)\n", "except BaseException in line 4"),
        (
            "import os\ndef g():\n    def f():\n        try:\n            pass\n        except BaseException:\n"
            "            raise\n    os._exit(1)\n",
            "f in line 3: except BaseException in line 6",
        ),
        (
            "import os\nfrom contextlib import suppress\ndef f():\n    with suppress(BaseException):\n        pass\n"
            "    os._exit(0)\n",
            None,
        ),
    ],
)
def test_each_rule_finds_what_breaks_it_and_nothing_else(text, problem):
    found = list(gen_file_problems(text))
    assert len(found) == (problem is not None), found
    assert problem is None or problem in found[0]


def test_only_the_main_of_a_module_may_be_long(tmp_path):
    long = 70 * BODY
    for place in ("plugins/modules", "plugins/module_utils", "plugins/modules/deep", "tools"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "x.py").write_text("def main():\n" + long)
    (tmp_path / "plugins/modules/y.py").write_text("class A:\n    def main(self):\n" + 70 * "        pass\n")
    assert [line.split(": main")[0] for line in gen_problems(tmp_path)] == [
        f"{tmp_path}/plugins/module_utils/x.py",
        f"{tmp_path}/plugins/modules/deep/x.py",
        f"{tmp_path}/plugins/modules/y.py",
        f"{tmp_path}/tools/x.py",
    ]


def test_a_folder_with_too_many_files(tmp_path):
    for number in range(19):
        (tmp_path / f"{number}.py").write_text("")
    assert list(gen_problems(tmp_path)) == [f"{tmp_path}: 19 files, where 18 are the most"]


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("nonesuch", "file"):
        with pytest.raises(NotADirectoryError, match=f"{name} is no folder"):
            list(gen_problems(tmp_path / name))
