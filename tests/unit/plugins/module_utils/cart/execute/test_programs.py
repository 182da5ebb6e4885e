# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of an image that say how its programs are run."""

from __future__ import annotations

import contextlib
import os

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute import programs
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.jobs import ExecutionError


@contextlib.contextmanager
def open_folder(path):
    fd = os.open(str(path), os.O_PATH | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def test_environment_file():
    text = "# a comment\nTERM=xterm\n\nEMPTY=\nEQUALS=a=b\n SPACED = x y \nno variable\n#OFF=1\n"
    assert programs.parse_environment(text) == {"TERM": "xterm", "EMPTY": "", "EQUALS": "a=b", "SPACED": " x y "}


def test_environment_of_nothing():
    assert programs.parse_environment("") == {}


def test_environment_of_an_image_goes_on_top_of_the_base(tmp_path):
    with open_folder(tmp_path) as fd:
        base = programs.read_environment(fd, "/dev/crashcart")
        assert base["PATH"] == "/dev/crashcart/bin:/dev/crashcart/sbin"
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc" / "crashcart.env").write_text("TERM=xterm\nMAGIC=/m\n")
        assert programs.read_environment(fd, "/dev/crashcart") == {**base, "TERM": "xterm", "MAGIC": "/m"}


def test_environment_of_an_image_is_read_from_the_image_only(tmp_path):
    (tmp_path / "outside").write_text("STOLEN=1\n")
    image = tmp_path / "image"
    (image / "etc").mkdir(parents=True)
    (image / "etc" / "crashcart.env").symlink_to(str(tmp_path / "outside"))
    with open_folder(image) as fd, pytest.raises(OSError):
        programs.read_environment(fd, "/dev/crashcart")


SEARCH = "/dev/crashcart/bin:/dev/crashcart/sbin:/bin:/usr/bin:lib"


@pytest.fixture(name="image")
def make_image(tmp_path):
    for folder in ("bin", "sbin", "lib"):
        (tmp_path / folder).mkdir()
    for name in ("bin/ls", "sbin/ip", "bin/both", "sbin/both", "lib/hidden"):
        (tmp_path / name).write_text("")
    # Seen from here it leads nowhere, and inside the container it is right.
    (tmp_path / "bin" / "dangling").symlink_to("/dev/crashcart/lib/hidden")
    with open_folder(tmp_path) as fd:
        yield fd


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("ls", "/dev/crashcart/bin/ls"),
        ("ip", "/dev/crashcart/sbin/ip"),
        ("both", "/dev/crashcart/bin/both"),
        ("dangling", "/dev/crashcart/bin/dangling"),
        ("/usr/bin/ls", "/usr/bin/ls"),
        ("./ls", "./ls"),
        ("lib/hidden", "lib/hidden"),
    ],
)
def test_program(image, name, path):
    assert programs.find_program(name, image, "/dev/crashcart", SEARCH) == path


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/dev/crashcart/bin/ls", True),
        ("/dev/crashcart/bin/../bin/./ls", True),
        ("//dev/crashcart//sbin/ip", True),
        ("/dev/crashcart/bin/nonesuch", True),
        ("/dev/crashcart/bin/dangling", True),
        ("/dev/crashcart/bin/inside", True),
        ("/dev/crashcart", False),
        ("/dev/crashcart/../crashcart/bin/ls", True),
        ("/dev/crashcart/bin/../../../bin/ls", False),
        ("/dev/crashcart2/bin/ls", False),
        ("/bin/../dev/crashcart/bin/ls", False),
        ("/bin/ls", False),
        ("/dev/crashcart/bin/outside", False),
        ("/dev/crashcart/bin/above", False),
        ("/dev/crashcart/bin/round", False),
        ("/dev/crashcart/out/ls", False),
        ("dev/crashcart/bin/ls", False),
        ("bin/ls", False),
        ("./ls", False),
    ],
)
def test_what_is_in_the_image(tmp_path, image, path, wanted):
    links = {
        "bin/inside": "../sbin/ip",
        "bin/outside": "/bin/ls",
        "bin/above": "../../../bin/ls",
        "bin/round": "round",
        "out": "/bin",
    }
    for name, aim in links.items():
        (tmp_path / name).symlink_to(aim)
    assert programs.is_in_image(path, image, "/dev/crashcart") is wanted


@pytest.mark.parametrize("name", ["hidden", "sh", "python3", "LS", "ls "])
def test_a_bare_name_is_never_looked_for_elsewhere(image, name):
    with pytest.raises(ExecutionError, match="no program called"):
        programs.find_program(name, image, "/dev/crashcart", SEARCH)
