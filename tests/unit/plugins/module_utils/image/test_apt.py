# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of packages, and what apt says of them."""

from __future__ import annotations

import os

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.image import apt
from ansible_collections.crashcart.fleet.plugins.module_utils.image.apt import Package, PrivateApt, Repository
from ansible_collections.crashcart.fleet.plugins.module_utils.image.errors import BuildError

URIS = """\
Reading package lists...
'http://deb.debian.org/pool/v/vim-tiny_9.0.1378-2%2bdeb12u2_amd64.deb' vim-tiny_2%3a9.0.1378-2+deb12u2_amd64.deb 720368 SHA256:0123abcd
'http://deb.debian.org/debian/pool/main/b/bash/bash_5.2.15-2%2bb7_amd64.deb' bash_5.2.15-2+b7_amd64.deb 1490904 SHA256:feed0000 \n\
'file:/srv/repo/base-files_12.4_all.deb' base-files_12.4_all.deb 70000 SHA256:aa
W: Some index files failed to download
'not a line' of apt
"""


def test_uris():
    base, bash, vim = apt.parse_uris(URIS, "/cache")
    assert (base.name, base.version, base.arch, base.hash, base.size) == (
        "base-files",
        "12.4",
        "all",
        "SHA256:aa",
        70000,
    )
    assert base.uri == "file:/srv/repo/base-files_12.4_all.deb"
    assert (bash.version, bash.path) == ("5.2.15-2+b7", "/cache/bash_5.2.15-2+b7_amd64.deb")
    assert (vim.version, vim.path) == ("2:9.0.1378-2+deb12u2", "/cache/vim-tiny_2%3a9.0.1378-2+deb12u2_amd64.deb")


def test_a_package_without_a_hash_is_not_used():
    with pytest.raises(BuildError, match="no hash of x_1_all.deb"):
        apt.parse_uris("'file:/x_1_all.deb' x_1_all.deb 5 \n", "/cache")


def test_a_package_that_was_named_by_its_path_is_none_of_the_repositorys():
    text = "'file:/here/x%20y/odd.deb' odd_1%3a1_all.deb 5 \n'file:/x_1_all.deb' x_1_all.deb 5 SHA256:aa\n"
    assert [one.name for one in apt.parse_uris(text, "/cache", ["/here/x y/odd.deb"])] == ["x"]
    with pytest.raises(BuildError, match="no hash of odd_"):
        apt.parse_uris(text, "/cache", ["/elsewhere/odd.deb"])


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


@pytest.mark.parametrize(
    ("release", "mirror", "wanted"),
    [
        ("bookworm main\ndeb http://evil", None, "not the name of a release"),
        ("Bookworm", None, "not the name of a release"),
        ("", None, "not the name of a release"),
        ("trixie", "http://x y", "not the address of a mirror"),
        ("trixie", "[trusted=yes] http://x", "not the address of a mirror"),
        ("trixie", "copy:/x", "not the address of a mirror"),
        (None, "http://deb.debian.org/debian", "a mirror needs a release"),
    ],
)
def test_bad_repositories_are_refused(tmp_path, release, mirror, wanted):
    with pytest.raises(BuildError, match=wanted):
        PrivateApt(str(tmp_path / "cache"), Repository("amd64", release, mirror))
    assert os.listdir(tmp_path) == []


def test_repositories_share_package_files_and_nothing_else(tmp_path):
    for arch in ("amd64", "arm64", "amd64"):
        PrivateApt(str(tmp_path), Repository(arch)).close()
    assert sorted(os.listdir(tmp_path)) == ["apt", "archives", "lock"]
    assert len(os.listdir(tmp_path / "apt")) == 2


def test_one_build_at_a_time_has_a_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(apt, "_LOCK_S", 0.3)
    first = PrivateApt(str(tmp_path), Repository("amd64"))
    with pytest.raises(BuildError, match="other builds have had the cache .* give this one another cache"):
        PrivateApt(str(tmp_path), Repository("arm64"))
    first.close()
    PrivateApt(str(tmp_path), Repository("arm64")).close()


DEBIAN = [("http://m/debian", "Debian"), ("http://m/debian-security", "Debian")]


@pytest.mark.parametrize(
    ("mirrors", "release", "mirror", "suites"),
    [
        (
            DEBIAN,
            "trixie",
            None,
            ["debian trixie main", "debian trixie-updates main", "debian-security trixie-security main"],
        ),
        (DEBIAN[:1], "trixie", None, ["debian trixie main", "debian trixie-updates main"]),
        (DEBIAN, "sid", None, ["debian sid main"]),
        (DEBIAN, "trixie", "http://m/other", ["other trixie main"]),
        (
            [("http://m/ubuntu", "Ubuntu")],
            "noble",
            None,
            [f"ubuntu {suite} main universe" for suite in ("noble", "noble-updates", "noble-security")],
        ),
        ([], "noble", "http://m/ubuntu", ["ubuntu noble main universe"]),
    ],
)
def test_a_release_comes_with_its_updates(monkeypatch, mirrors, release, mirror, suites):
    monkeypatch.setattr(apt, "_find_mirrors", lambda: mirrors)
    lines = apt._list_sources(Repository("amd64", release, mirror))
    assert [line.rpartition("http://m/")[2].rstrip("\n") for line in lines] == suites


def test_a_machine_without_a_mirror_is_told_to_give_one(monkeypatch):
    monkeypatch.setattr(apt, "_find_mirrors", list)
    with pytest.raises(BuildError, match="give mirror, too"):
        apt._list_sources(Repository("amd64", "trixie"))


def test_what_only_maintainer_scripts_use_counts_as_installed_unless_it_is_asked_for(tmp_path):
    private = PrivateApt(str(tmp_path), Repository("arm64"))
    private._write_status(["bash", "dpkg=1.21"])
    (status,) = tmp_path.glob("apt/*/state/status")
    names = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("Package:")]
    assert "debconf" in names and "dpkg" not in names
    assert "Architecture: arm64" in status.read_text()


def test_packages_are_verified_by_their_hash(tmp_path):
    path = tmp_path / "bash_1_all.deb"
    path.write_bytes(b"12345")
    digest = "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5"
    package = Package("bash", "1", "all", str(path), f"SHA256:{digest}", 5)
    # With nothing missing no program is run: the name would make it fail.
    private = PrivateApt(str(tmp_path / "apt"), Repository("amd64"))
    private.download(["no/such/package"], [package], offline=False)
    for damage in (b"1234", b"12346"):
        path.write_bytes(damage)
        assert not apt._is_whole(package)
        with pytest.raises(BuildError, match="not in the cache, and offline=true forbids to fetch them: bash"):
            private.download(["bash"], [package], offline=True)
    path.unlink()
    assert not apt._is_whole(package)
