# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tree of an image, filled from what nobody needs to trust."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.image import tree as trees
from ansible_collections.crashcart.fleet.plugins.module_utils.image.errors import BuildError

READS_ALL = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: others cannot read such a file")


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/usr/bin/ls", "bin/ls"),
        ("/bin/ls", "bin/ls"),
        ("/usr", ""),
        ("/", ""),
        ("/usr/", ""),
        ("/etc/ssl", "etc/ssl"),
        ("/usrlocal/x", "usrlocal/x"),
        ("/usr/usr/x", "usr/x"),
        ("//usr//bin/../sbin/./ip", "sbin/ip"),
        ("/../../usr/bin/x", "bin/x"),
        ("/usr/../../etc/passwd", "etc/passwd"),
        ("/usr/..", ""),
    ],
)
def test_place_in_the_tree(path, place):
    assert trees.fold(path) == place


@pytest.fixture(name="source")
def make_source(tmp_path):
    source = tmp_path / "packages"
    for folder in ("bin", "usr/bin", "usr/lib", "usr/sbin", "etc"):
        (source / folder).mkdir(parents=True)
    return source


@pytest.fixture(name="tree")
def make_tree(tmp_path):
    return tmp_path / "tree"


def fold(source, tree):
    made = trees.Tree(str(tree))
    made.add_folder(str(source), "source")
    made.finish()
    return made


def list_paths(tree):
    return sorted(
        os.path.relpath(os.path.join(folder, name), str(tree))
        for folder, folders, files in os.walk(str(tree))
        for name in files + [one for one in folders if os.path.islink(os.path.join(folder, one))]
    )


def put(path, text="x", mode=0o755):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def test_usr_is_folded_into_the_root(source, tree):
    put(source / "bin" / "sh")
    put(source / "usr" / "bin" / "env")
    put(source / "etc" / "file.conf", mode=0o644)
    fold(source, tree)
    assert list_paths(tree) == ["bin/env", "bin/sh", "etc/file.conf"]
    assert stat.S_IMODE((tree / "bin" / "env").stat().st_mode) == 0o755
    assert stat.S_IMODE((tree / "etc" / "file.conf").stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (0o4755, 0o755),
        (0o2755, 0o755),
        (0o6777, 0o755),
        (0o1777, 0o755),
        pytest.param(0o4111, 0o711, marks=READS_ALL),
        (0o4511, 0o711),
        (0o666, 0o644),
        pytest.param(0, 0o600, marks=READS_ALL),
    ],
)
def test_no_file_keeps_a_privilege_or_may_be_written_by_others(source, tree, before, after):
    put(source / "usr" / "bin" / "tool", mode=before)
    fold(source, tree)
    assert stat.S_IMODE((tree / "bin" / "tool").stat().st_mode) == after


def test_devices_and_pipes_are_left_out(source, tree):
    os.mkfifo(str(source / "usr" / "bin" / "pipe"))
    try:
        os.mknod(str(source / "etc" / "mem"), 0o600 | stat.S_IFCHR, os.makedev(1, 1))
    except PermissionError:
        pass  # only root may make one
    put(source / "usr" / "bin" / "tool")
    fold(source, tree)
    assert list_paths(tree) == ["bin/tool"]


def test_documents_are_left_out_and_what_only_begins_alike_is_not(source, tree):
    for name in (
        "usr/share/doc/x/copyright",
        "usr/share/man/man1/x.1",
        "var/lib/x",
        "usr/share/docker/x",
        "lib/systemd/system/y",
        "usr/lib/x86_64-linux-gnu/gconv/EUC-JP.so",
    ):
        put(source / name)
    put(source / "usr" / "lib" / "systemd-tools" / "x")
    put(source / "usr/lib/x86_64-linux-gnu/gconv/UTF-32.so")
    (source / "usr" / "share" / "info").symlink_to("doc")
    fold(source, tree)
    assert list_paths(tree) == ["lib/systemd-tools/x", "lib/x86_64-linux-gnu/gconv/UTF-32.so", "share/docker/x"]


def link(source, place, aim):
    path = source / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(aim)


@pytest.mark.parametrize(
    ("place", "aim", "folded", "relative"),
    [
        ("usr/bin/a", "b", "bin/a", "b"),
        ("usr/bin/a", "/usr/lib/b", "bin/a", "../lib/b"),
        ("usr/bin/a", "../lib/b", "bin/a", "../lib/b"),
        ("usr/bin/a", "../../etc/b", "bin/a", "../etc/b"),
        ("usr/lib/x/a", "../../../lib/y/b", "lib/x/a", "../y/b"),
        ("etc/a", "/usr/bin/b", "etc/a", "../bin/b"),
        # Wherever it leads outside, inside it leads nowhere else.
        ("usr/bin/a", "/etc/shadow", "bin/a", "../etc/shadow"),
        ("usr/bin/a", "../../../../../../etc/shadow", "bin/a", "../etc/shadow"),
        ("usr/bin/a", "/../../etc/shadow", "bin/a", "../etc/shadow"),
        ("usr/bin/a", "/proc/self/root/etc", "bin/a", "../proc/self/root/etc"),
        ("usr/bin/a", "/", "bin/a", ".."),
        ("a", "/usr", "a", "."),
    ],
)
def test_links_become_relative_and_stay_in_the_tree(source, tree, place, aim, folded, relative):
    link(source, place, aim)
    fold(source, tree)
    assert list_paths(tree) == [folded]
    assert os.readlink(str(tree / folded)) == relative
    landing = os.path.normpath(os.path.join(str(tree), os.path.dirname(folded), relative))
    assert landing == str(tree) or landing.startswith(str(tree) + "/")


def test_links_that_folding_makes_needless_are_left_out(source, tree):
    link(source, "lib64", "usr/lib64")
    link(source, "bin/tool", "/usr/bin/tool")
    put(source / "usr" / "bin" / "tool", "real")
    put(source / "usr" / "lib64" / "ld.so")
    fold(source, tree)
    assert list_paths(tree) == ["bin/tool", "lib64/ld.so"]
    assert not (tree / "bin" / "tool").is_symlink()


def test_a_file_goes_before_a_link_of_the_same_place(source, tree):
    put(source / "bin" / "tool", "real")
    link(source, "usr/bin/tool", "other")
    fold(source, tree)
    assert (tree / "bin" / "tool").read_text() == "real"
    assert not (tree / "bin" / "tool").is_symlink()


def test_no_file_is_written_through_a_link_out_of_the_tree(source, tree, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    link(source, "data", str(outside))
    put(source / "usr" / "data" / "file", "secret")
    fold(source, tree)
    assert (tree / "data" / "file").read_text() == "secret"
    assert list(outside.iterdir()) == []


def test_links_to_folders_are_kept_and_not_walked_through(source, tree, tmp_path):
    outside = tmp_path / "outside"
    put(outside / "secret")
    link(source, "usr/lib/out", str(outside))
    put(source / "usr" / "lib" / "real" / "x")
    link(source, "usr/lib/alias", "real")
    fold(source, tree)
    assert list_paths(tree) == ["lib/alias", "lib/out", "lib/real/x"]
    assert (tree / "lib" / "alias" / "x").read_text() == "x"
    assert (outside / "secret").exists()


def test_an_image_does_not_depend_on_the_umask(source, tree):
    put(source / "usr" / "bin" / "tool")
    before = os.umask(0o077)
    try:
        fold(source, tree)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tree / "bin").stat().st_mode) == 0o755


def make_archive(*members):
    """A tar archive of (name, type, content or target, mode)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, kind, content, mode in members:
            member = tarfile.TarInfo(name)
            member.type, member.mode = kind, mode
            if kind == tarfile.REGTYPE:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                member.linkname = content
                archive.addfile(member)
    stream.seek(0)
    return stream


def unpack(tree, *archives):
    made = trees.Tree(str(tree))
    for number, archive in enumerate(archives):
        made.add_archive(archive, f"source{number}")
    made.finish()
    return made


REG, SYM, LNK, DIR, CHR, FIFO = (
    tarfile.REGTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.DIRTYPE,
    tarfile.CHRTYPE,
    tarfile.FIFOTYPE,
)


def test_an_archive(tree):
    made = unpack(
        tree,
        make_archive(
            ("./", DIR, "", 0o755),
            ("./usr/bin/tool", REG, b"tool", 0o4755),
            ("./usr/bin/alias", SYM, "tool", 0o777),
            ("./usr/bin/hard", LNK, "./usr/bin/tool", 0o755),
            ("./dev/null", CHR, "", 0o666),
            ("./etc/pipe", FIFO, "", 0o666),
        ),
    )
    assert list_paths(tree) == ["bin/alias", "bin/hard", "bin/tool"]
    assert os.path.samefile(tree / "bin/hard", tree / "bin/tool")
    assert stat.S_IMODE((tree / "bin/tool").stat().st_mode) == 0o755
    assert made.origins == {"bin/alias": "source0", "bin/hard": "source0", "bin/tool": "source0"}
    assert made.dropped == ["etc/pipe: a device or a pipe"]


@pytest.mark.parametrize("name", ["../x", "usr/../../x", "./bin/../../../x", "/../x", ".."])
@pytest.mark.parametrize("kind", [REG, SYM, LNK, DIR])
def test_a_path_that_leads_out_stops_the_build(tree, tmp_path, name, kind):
    content = b"x" if kind == REG else "x"
    with pytest.raises(BuildError, match="source0 holds a path that leads out of it"):
        unpack(tree, make_archive((name, kind, content, 0o755)))
    assert sorted(os.listdir(tmp_path)) == ["tree"]


@pytest.mark.parametrize("aim", ["/etc", "../../../etc", "/proc/self/root/etc"])
@pytest.mark.parametrize("order", [0, 1])
def test_nothing_is_written_through_a_link_of_an_archive(tree, tmp_path, aim, order):
    members = [("data", SYM, aim, 0o777), ("data/file", REG, b"x", 0o644)]
    unpack(tree, make_archive(*(members[::-1] if order else members)))
    assert list_paths(tree) == ["data/file"]
    assert not (tree / "data").is_symlink()


@pytest.mark.parametrize("aim", ["/etc/passwd", "../outside", "nothing", "link"])
def test_a_hard_link_leads_nowhere_but_to_what_was_unpacked(tree, tmp_path, aim):
    (tmp_path / "outside").write_text("secret")
    link = ("link", SYM, "/etc/passwd", 0o777)
    try:
        unpack(tree, make_archive(link, ("hard", LNK, aim, 0o644)))
    except BuildError as error:
        assert "source0 holds" in str(error)
    found = tree / "hard"
    assert not found.exists() or found.is_symlink()
    if found.is_symlink():
        assert os.readlink(found) == "etc/passwd"


def test_a_later_source_replaces_what_an_earlier_one_brought(tree):
    made = unpack(
        tree,
        make_archive(("bin/a", REG, b"old", 0o755), ("bin/b", SYM, "a", 0o777), ("bin/c", REG, b"old", 0o755)),
        make_archive(("bin/a", REG, b"new", 0o755), ("bin/b", REG, b"new", 0o755), ("bin/c", SYM, "a", 0o777)),
    )
    assert (tree / "bin/a").read_text() == (tree / "bin/b").read_text() == (tree / "bin/c").read_text() == "new"
    assert (tree / "bin/c").is_symlink() and not (tree / "bin/b").is_symlink()
    assert set(made.origins.values()) == {"source1"}


@pytest.mark.parametrize("order", [0, 1])
def test_a_file_where_another_source_has_a_folder_is_named(tree, order):
    archives = [make_archive(("x", REG, b"", 0o644)), make_archive(("x/y", REG, b"", 0o644))]
    with pytest.raises(BuildError, match="x is a (file|folder) in source1 and a (file|folder) in another source"):
        unpack(tree, *(archives[::-1] if order else archives))


def test_a_folder_goes_before_a_link(tree):
    unpack(tree, make_archive(("x", SYM, "y", 0o777), ("x/z", REG, b"1", 0o644), ("x", SYM, "y", 0o777)))
    assert list_paths(tree) == ["x/z"]


@pytest.mark.parametrize("length", [0, 100, 512, 700, 1300])
def test_an_archive_cut_short_is_named(tree, length):
    content = make_archive(("bin/a", REG, b"x" * 2000, 0o755)).getvalue()[:length]
    with pytest.raises(BuildError, match="source0 is damaged or no archive"):
        unpack(tree, io.BytesIO(content))


def test_strange_names_are_kept(tree):
    name = "bin/a\nb \udcff$(id)"
    unpack(tree, make_archive((name, REG, b"x", 0o755)))
    assert os.listdir(os.fsencode(tree / "bin")) == [os.fsencode(name[4:])]


TWO = (("bin/a", REG, b"a" * 600, 0o755), ("bin/b", REG, b"b", 0o755))


@pytest.mark.parametrize("length", [600, 1500, 1536, 1600, 2047, 2048, 2100, 2560])
def test_an_archive_that_is_cut_after_its_first_member_is_named(tree, length):
    archive = io.BytesIO(make_archive(*TWO).getvalue()[:length])
    with pytest.raises(BuildError, match="source0 is damaged or no archive"):
        unpack(tree, archive)


def test_a_damaged_header_is_not_taken_for_the_end(tree):
    content = bytearray(make_archive(*TWO).getvalue())
    content[1536 + 150] ^= 1  # in the checksum of the second header
    with pytest.raises(BuildError, match="source0 is damaged or no archive"):
        unpack(tree, io.BytesIO(content))


@pytest.mark.parametrize("length", [12, 40, 60])
def test_a_compressed_archive_cut_short_is_named(tree, tmp_path, length):
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(make_archive(*TWO).getvalue())[:length])
    assert not trees.is_archive(str(path))
    with open(path, "rb") as file, pytest.raises(BuildError, match="source0 is damaged"):
        unpack(tree, file)


def make_member(name, size=0, **facts):
    """An archive of one member with the given FACTS, and no content."""
    member = tarfile.TarInfo(name)
    member.size = size
    for fact, value in facts.items():
        setattr(member, fact, value)
    return io.BytesIO(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))


def test_a_header_of_impossible_size_takes_no_memory(tree):
    archive = make_member("x", 150 << 20, type=tarfile.XHDTYPE)
    with pytest.raises(BuildError, match="a header of 157286400 bytes"):
        unpack(tree, archive)


def test_a_file_of_impossible_size_takes_no_space(tree):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("bin/x")
        member.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.realsize": str(1 << 50),
            "GNU.sparse.name": "bin/x",
        }
        member.size = 512
        tar.addfile(member, io.BytesIO(b"0\n".ljust(512, b"\0")))
    archive.seek(0)
    with pytest.raises(BuildError, match="source0 is too large: an image may have 16 GiB"):
        unpack(tree, archive)


@pytest.mark.parametrize("mode", [1 << 40, -1])
def test_an_odd_mode_is_cut_to_what_a_file_may_have(tree, mode):
    unpack(tree, make_member("bin/x", mode=mode))
    assert (tree / "bin/x").stat().st_mode & 0o7022 == 0


def test_a_deep_path_is_refused_or_made(tree):
    unpack(tree, make_member("d/" * 190 + "x"))
    for number, name in enumerate(("d/" * 210 + "x", f"{'d' * 200}/" * 16)):
        with pytest.raises(BuildError, match="a path of more than 3000 bytes or 200 folders"):
            unpack(tree.parent / str(number), make_member(name))


def test_two_sources_with_one_name_are_two_sources(tree):
    made = trees.Tree(str(tree))
    made.add_archive(make_archive(("bin/x", REG, b"old", 0o755)), "root")
    made.add_archive(make_archive(("bin/x", SYM, "y", 0o777), ("bin/y", REG, b"new", 0o755)), "root")
    made.finish()
    assert (tree / "bin/x").read_text() == "new"


def test_a_folder_that_cannot_be_read_is_named():
    with pytest.raises(BuildError, match="/x cannot be read: Permission denied"):
        trees.refuse_folder(PermissionError(13, "Permission denied", "/x"))


def make_cpio(*members):
    """An archive of cpio of (name, mode, content, inode, number of links)."""
    parts = []
    for name, mode, content, inode, links in (*members, ("TRAILER!!!", 0, b"", 0, 1)):
        numbers = (inode, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08x" % number for number in numbers) + name.encode() + b"\0"
        parts += [head.ljust(len(head) + -len(head) % 4, b"\0"), content.ljust(len(content) + -len(content) % 4, b"\0")]
    return io.BytesIO(b"".join(parts))


CPIO = (
    ("./usr/bin/one", 0o100755, b"", 7, 3),
    ("./usr/bin/two", 0o100755, b"", 7, 3),
    ("./usr/bin/three", 0o100755, b"content", 7, 3),
    ("./usr/bin/four", 0o104755, b"other", 8, 1),
    ("./usr/bin/five", 0o120777, b"four", 9, 1),
    ("./dev-x", 0o020600, b"", 10, 1),
    ("./usr/share/empty", 0o100644, b"", 11, 1),
)


def test_names_of_one_file_in_cpio_have_its_content(tree):
    made = trees.Tree(str(tree))
    made.add_cpio(make_cpio(*CPIO), "rpm")
    made.finish()
    assert {(tree / "bin" / name).read_text() for name in ("one", "two", "three")} == {"content"}
    assert len({(tree / "bin" / name).stat().st_ino for name in ("one", "two", "three")}) == 1
    assert (tree / "bin/four").stat().st_mode & 0o7777 == 0o755
    assert os.readlink(tree / "bin/five") == "four"
    assert made.dropped == ["dev-x: a device or a pipe"]


@pytest.mark.parametrize("length", [0, 3, 50, 109, 120, 500])
def test_cpio_that_is_cut_is_named(tree, length):
    with pytest.raises(BuildError, match="rpm is damaged"):
        trees.Tree(str(tree)).add_cpio(io.BytesIO(make_cpio(*CPIO).getvalue()[:length]), "rpm")


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/../x"])
def test_cpio_cannot_lead_out_either(tree, name):
    with pytest.raises(BuildError, match="leads out"):
        trees.Tree(str(tree)).add_cpio(make_cpio((name, 0o100644, b"x", 1, 1)), "rpm")
