# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of packages, and what apt says of them."""

from __future__ import annotations

import os
import sys

import pytest

if sys.version_info < (3, 11):
    pytest.skip("the controller runs Python 3.11 or newer", allow_module_level=True)

from ansible_collections.crashcart.fleet.plugins.module_utils.image import apt
from ansible_collections.crashcart.fleet.plugins.module_utils.image.apt import BuildError, Package

URIS = """\
Reading package lists...
'http://deb.debian.org/pool/v/vim-tiny_9.0.1378-2%2bdeb12u2_amd64.deb' vim-tiny_2%3a9.0.1378-2+deb12u2_amd64.deb 720368 SHA256:0123abcd
'http://deb.debian.org/debian/pool/main/b/bash/bash_5.2.15-2%2bb7_amd64.deb' bash_5.2.15-2+b7_amd64.deb 1490904 SHA256:feed0000 \n\
'file:/srv/repo/base-files_12.4_all.deb' base-files_12.4_all.deb 70000 \n\
W: Some index files failed to download
'not a line' of apt
"""


def test_uris():
    assert apt.parse_uris(URIS, "/cache/archives") == [
        Package("base-files", "12.4", "all", "/cache/archives/base-files_12.4_all.deb", "", 70000),
        Package(
            "bash",
            "5.2.15-2+b7",
            "amd64",
            "/cache/archives/bash_5.2.15-2+b7_amd64.deb",
            "SHA256:feed0000",
            1490904,
        ),
        Package(
            "vim-tiny",
            "2:9.0.1378-2+deb12u2",
            "amd64",
            "/cache/archives/vim-tiny_2%3a9.0.1378-2+deb12u2_amd64.deb",
            "SHA256:0123abcd",
            720368,
        ),
    ]


def test_no_uris():
    assert apt.parse_uris("", "/cache") == []
    assert apt.parse_uris("bash is already the newest version (5.2.15-2+b7).\n", "/cache") == []


@pytest.mark.parametrize(
    "name", ["bash", "g++", "libstdc++6", "0ad", "python3.11", "bash=5.2.15-2+b7", "vim=2:9.0~rc1-1", "a1"]
)
def test_names_of_packages(name):
    assert apt.check_package_names(["bash", name]) is None


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-y",
        "--allow-unauthenticated",
        "-oAPT::Get::Assume-Yes=true",
        "-oDPkg::Pre-Invoke::=touch /tmp/x",
        "bash -y",
        "bash\n-y",
        "bash\n",
        "/tmp/evil.deb",
        "./evil.deb",
        "bash/stable",
        "bash:i386",
        "bash=",
        "bash=1 2",
        "bash=1=2",
        "Bash",
        "b",
        "^lib",
        "lib*",
        "lib?",
        "~n.",
        "task-x^",
        "$(id)",
        "bä",
        "bash\0",
    ],
)
def test_what_is_no_name_of_a_package_is_refused(name):
    with pytest.raises(BuildError, match="is not the name of a Debian package"):
        apt.check_package_names(["bash", name])


@pytest.mark.parametrize("name", ["bash-", "bash=5.2-"])
def test_a_name_by_which_apt_would_leave_a_package_out_is_refused(name):
    with pytest.raises(BuildError):
        apt.check_package_names([name])


def test_an_apt_root_of_our_own_is_made_once_and_kept(tmp_path):
    folder = str(tmp_path / "apt")
    apt.PrivateApt(folder)
    assert sorted(os.listdir(folder)) == ["cache", "state"]
    status = tmp_path / "apt" / "state" / "status"
    assert status.read_bytes() == b""
    stamp = tmp_path / "apt" / "state" / "updated"
    stamp.write_text("")
    before = stamp.stat().st_mtime_ns
    apt.PrivateApt(folder).update(3600.0)  # young enough: nothing is run
    assert stamp.stat().st_mtime_ns == before


def test_packages_that_are_whole_in_the_cache_are_not_fetched(tmp_path):
    path = tmp_path / "bash_1_all.deb"
    path.write_bytes(b"12345")
    package = Package("bash", "1", "all", str(path), "", 5)
    # With nothing missing no program is run: the name would make it fail.
    apt.PrivateApt(str(tmp_path / "apt")).download(["no/such/package"], [package])
    assert apt._is_whole(package)
    path.write_bytes(b"1234")
    assert not apt._is_whole(package)
    path.unlink()
    assert not apt._is_whole(package)
