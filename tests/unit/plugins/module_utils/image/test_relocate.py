# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packages folded into a tree for another prefix."""

from __future__ import annotations

import os
import random
import stat
import struct
import sys

import pytest

if sys.version_info < (3, 11):
    pytest.skip("the controller runs Python 3.11 or newer", allow_module_level=True)
pytest.importorskip("elftools")

from ansible_collections.crashcart.fleet.plugins.module_utils.image import relocate


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
    assert relocate.fold(path) == place


@pytest.fixture(name="source")
def make_source(tmp_path):
    source = tmp_path / "packages"
    for folder in ("bin", "usr/bin", "usr/lib", "usr/sbin", "etc"):
        (source / folder).mkdir(parents=True)
    return source


@pytest.fixture(name="tree")
def make_tree(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    return tree


def fold(source, tree):
    relocate.fold_tree(str(source), str(tree))


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
    [(0o4755, 0o755), (0o2755, 0o755), (0o6777, 0o755), (0o1777, 0o755), (0o4111, 0o711), (0o666, 0o644), (0, 0o600)],
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
        "lib/systemd/y",
    ):
        put(source / name)
    put(source / "usr" / "lib" / "systemd-tools" / "x")
    (source / "usr" / "share" / "info").symlink_to("doc")
    fold(source, tree)
    assert list_paths(tree) == ["lib/systemd-tools/x", "share/docker/x"]


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
    try:
        fold(source, tree)
    except OSError:
        pass  # two packages that contradict each other may stop a build
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


PREFIX = "/dev/crashcart"


def patch(tmp_path, content, mode=0o755):
    path = tmp_path / "script"
    path.write_bytes(content)
    path.chmod(mode)
    relocate._patch_script(str(path), PREFIX)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    return path.read_bytes()


@pytest.mark.parametrize(
    ("line", "patched"),
    [
        (b"#!/bin/sh", b"#!/dev/crashcart/bin/sh"),
        (b"#!/bin/sh -e", b"#!/dev/crashcart/bin/sh -e"),
        (b"#! /usr/bin/python3", b"#!/dev/crashcart/bin/python3"),
        (b"#!\t/usr/bin/perl  -w ", b"#!/dev/crashcart/bin/perl -w"),
        (b"#!/usr/local/bin/python3.11 -Es", b"#!/dev/crashcart/bin/python3.11 -Es"),
        # env would look in the PATH of the container.
        (b"#!/usr/bin/env python3", b"#!/dev/crashcart/bin/python3"),
        (b"#!/usr/bin/env bash -x", b"#!/dev/crashcart/bin/bash -x"),
        (b"#!/usr/bin/env -S python3 -u", b"#!/dev/crashcart/bin/env -S python3 -u"),
        (b"#!/usr/bin/env", b"#!/dev/crashcart/bin/env"),
        (b"#!/dev/crashcart/bin/sh", b"#!/dev/crashcart/bin/sh"),
    ],
)
@pytest.mark.parametrize("rest", [b"", b"\n", b"\necho \xff\n#!/bin/sh\n"])
def test_shebangs(tmp_path, line, patched, rest):
    assert patch(tmp_path, line + rest) == patched + rest


@pytest.mark.parametrize(
    "content", [b"#!", b"#!\n", b"#!  \nx", b"#!sh\n", b"#!./run\nx", b"#![feature(x)]\n", b"#!:/bin/sh\n"]
)
def test_what_is_no_shebang_of_an_absolute_path_stays(tmp_path, content):
    assert patch(tmp_path, content) == content


def test_the_mode_of_a_script_stays(tmp_path):
    assert patch(tmp_path, b"#!/bin/sh\n", 0o644) == b"#!/dev/crashcart/bin/sh\n"


@pytest.mark.parametrize(
    ("line", "patched"),
    [
        (b"#!/usr/sbin/nft -f\n", b"#!/dev/crashcart/sbin/nft -f\n"),
        (b"#!/usr/lib/klibc/bin/sh\n", b"#!/dev/crashcart/lib/klibc/bin/sh\n"),
    ],
)
def test_an_interpreter_outside_bin(tmp_path, line, patched):
    assert patch(tmp_path, line) == patched


def test_scripts_of_a_tree_are_patched_and_others_are_not(tree):
    put(tree / "bin" / "script", "#!/bin/sh\n")
    put(tree / "bin" / "text", "# !/bin/sh\n")
    put(tree / "bin" / "short", "#")
    (tree / "bin" / "link").symlink_to("/bin/sh")
    assert relocate.relocate_programs(str(tree), PREFIX) == 0
    assert (tree / "bin" / "script").read_text() == "#!/dev/crashcart/bin/sh\n"
    assert (tree / "bin" / "text").read_text() == "# !/bin/sh\n"
    assert (tree / "bin" / "short").read_text() == "#"


def test_alternatives_are_linked_where_their_program_is(tree):
    for name in ("mawk", "vim.tiny", "bash"):
        put(tree / "bin" / name)
    put(tree / "bin" / "vi", "own")
    (tree / "bin" / "sh").symlink_to("dash")  # dangling
    relocate.add_alternatives(str(tree))
    assert os.readlink(str(tree / "bin" / "awk")) == "mawk"
    assert os.readlink(str(tree / "bin" / "sh")) == "bash"
    assert (tree / "bin" / "vi").read_text() == "own"
    assert not (tree / "bin" / "pager").is_symlink()


def test_certificates_are_gathered_in_the_order_of_their_names(tree):
    relocate.add_certificates(str(tree))
    assert not (tree / "etc").exists()
    put(tree / "share/ca-certificates/mozilla/b.crt", "B\n")
    put(tree / "share/ca-certificates/a.crt", "A\n")
    put(tree / "share/ca-certificates/mozilla/c.crt", "C\n")
    relocate.add_certificates(str(tree))
    assert (tree / "etc/ssl/certs/ca-certificates.crt").read_text() == "A\nB\nC\n"


def test_environment_names_what_is_there(tree):
    assert relocate.list_environment(str(tree), PREFIX) == {"PYTHONDONTWRITEBYTECODE": "1"}
    put(tree / "lib/terminfo/x/xterm")
    put(tree / "lib/x86_64-linux-gnu/gconv/gconv-modules")
    variables = relocate.list_environment(str(tree), PREFIX)
    assert variables["TERMINFO"] == "/dev/crashcart/lib/terminfo"
    assert variables["GCONV_PATH"] == "/dev/crashcart/lib/x86_64-linux-gnu/gconv"
    assert "MAGIC" not in variables


def test_a_program_that_gives_up_root_gets_a_user_to_give_it_up_for(tree):
    put(tree / "bin" / "tcpdump", "program")
    relocate.wrap_privilege_droppers(str(tree), PREFIX)  # without the library it stays as it is
    assert (tree / "bin" / "tcpdump").read_text() == "program"
    put(tree / "lib/x86_64-linux-gnu/libnss_wrapper.so.0")
    relocate.wrap_privilege_droppers(str(tree), PREFIX)
    assert (tree / "libexec/crashcart/tcpdump").read_text() == "program"
    lines = (tree / "bin" / "tcpdump").read_text().splitlines()
    assert lines[0] == "#!/dev/crashcart/bin/sh"
    assert "LD_PRELOAD=/dev/crashcart/lib/x86_64-linux-gnu/libnss_wrapper.so.0 " in lines[1]
    assert lines[2] == 'exec /dev/crashcart/libexec/crashcart/tcpdump "$@"'
    assert stat.S_IMODE((tree / "bin" / "tcpdump").stat().st_mode) == 0o755
    assert "tcpdump:x:0:0:" in (tree / "etc/crashcart.passwd").read_text()
    assert "tcpdump:x:0:" in (tree / "etc/crashcart.group").read_text()


def test_no_program_is_wrapped_that_is_not_there(tree):
    put(tree / "lib/libnss_wrapper.so.0")
    relocate.wrap_privilege_droppers(str(tree), PREFIX)
    assert list_paths(tree) == ["lib/libnss_wrapper.so.0"]


def test_tools(tree):
    assert relocate.list_tools(str(tree)) == []
    for name in ("bin/b", "bin/both", "sbin/both", "sbin/a", "lib/c"):
        put(tree / name)
    assert relocate.list_tools(str(tree)) == ["a", "b", "both"]


def test_a_dynamic_program_is_read(tmp_path):
    with open("/proc/self/exe", "rb") as file:
        content = file.read()
    path = tmp_path / "python"
    path.write_bytes(content)
    elf = relocate._read_elf(str(path))
    if elf is None or not elf.interpreter:
        pytest.skip("this Python is a static program")
    assert elf.path == str(path)
    assert elf.interpreter.startswith("/")
    assert elf.interpreter.encode() + b"\0" in content


def make_elf():
    """The smallest ELF file of this machine's size with a header and one segment that names an interpreter."""
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 3, 4, 120, 0, 0, 9, 9, 1) + b"/lib/ld\0\0"


def test_a_small_elf_file_is_read_and_one_of_another_kind_is_not(tmp_path):
    path = tmp_path / "elf"
    path.write_bytes(make_elf())
    assert relocate._read_elf(str(path)).interpreter == "/lib/ld"
    changed = bytearray(make_elf())
    changed[16] = 1  # an object file
    path.write_bytes(bytes(changed))
    assert relocate._read_elf(str(path)) is None


@pytest.mark.parametrize("length", [4, 5, 6, 15, 16, 20, 40, 63])
def test_an_elf_file_cut_short_in_its_header_is_passed_over(tmp_path, length):
    path = tmp_path / "elf"
    path.write_bytes(make_elf()[:length])
    assert relocate._read_elf(str(path)) is None


def test_broken_elf_files_are_passed_over(tmp_path):
    path = tmp_path / "elf"
    source = random.Random(21)
    for _round in range(300):
        path.write_bytes(b"\x7fELF" + bytes(source.randrange(256) for _index in range(source.randrange(300))))
        assert relocate._read_elf(str(path)) is None
