# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scripts, settings and names of a tree for another prefix."""

from __future__ import annotations

import os
import stat
import struct

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.image import relocate


@pytest.fixture(name="tree")
def make_tree(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    return tree


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


PREFIX = "/dev/crashcart"


def patch(tmp_path, content, mode=0o755):
    path = tmp_path / "script"
    path.write_bytes(content)
    path.chmod(mode)
    relocate._patch_script(str(tmp_path), "script", PREFIX)
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
        (b"#!/usr/bin/env -S python3 -u", b"#!/dev/crashcart/bin/python3 -u"),
        (b"#!/usr/bin/env -i sh", b"#!/dev/crashcart/bin/env -i sh"),
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
    put(tree / "bin" / "sh")
    assert relocate.relocate_programs(str(tree), PREFIX).problems == []
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
    assert relocate.list_environment(str(tree), PREFIX) == {
        "LC_MESSAGES": "C",
        "PATH": "",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
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
    assert relocate.list_tools(str(tree), {}) == {}
    for name in ("bin/b", "bin/both", "sbin/both", "local/bin/b", "lib/c", "lib/real"):
        put(tree / name)
    (tree / "bin" / "link").symlink_to("../lib/real")
    (tree / "bin" / "dangling").symlink_to("nothing")
    (tree / "bin" / "folder").mkdir()
    origins = {"bin/b": "b 1", "local/bin/b": "b 2", "lib/real": "real 3", "bin/link": "link 4"}
    assert relocate.list_tools(str(tree), origins) == {"b": "b 2", "both": "", "link": "real 3"}


def test_scripts_without_their_interpreter_are_named(tree):
    put(tree / "bin" / "script", "#!/usr/bin/perl\n")
    put(tree / "lib" / "module", "#!/usr/bin/perl\n", mode=0o644)
    problems = relocate.relocate_programs(str(tree), PREFIX).problems
    assert problems == [{"path": "bin/script", "reason": "its interpreter bin/perl is not in the image"}]


def test_an_interpreter_is_looked_for_where_programs_are(tree):
    put(tree / "local/bin/python3")
    put(tree / "bin" / "a", "#!/usr/bin/env python3\n")
    put(tree / "bin" / "b", "#!/usr/local/bin/python3\n")
    assert relocate.relocate_programs(str(tree), PREFIX).problems == []
    for name in "ab":
        assert (tree / "bin" / name).read_text() == "#!/dev/crashcart/local/bin/python3\n"


def test_programs_of_a_nix_closure_get_names(tree):
    put(tree / "nix/store/abc-hello-2/bin/hello")
    put(tree / "nix/store/def-other-1/bin/hello")
    relocate.link_store_programs(str(tree))
    assert os.readlink(str(tree / "bin/hello")) == "../nix/store/abc-hello-2/bin/hello"


def test_the_architectures_of_programs_are_counted(tree):
    for place, machine in (("bin/a", 62), ("sbin/b", 183), ("lib/firmware", 40)):
        path = tree / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\x7fELF\x02\x01" + bytes(12) + struct.pack("<H", machine))
    assert relocate.relocate_programs(str(tree), PREFIX).architectures == {"amd64": 1, "arm64": 1}


def test_a_script_without_an_end_of_its_first_line_is_no_script(tmp_path):
    content = b"#!/bin/" + b"x" * 100_000
    assert patch(tmp_path, content) == content


def test_a_bundle_of_certificates_that_is_there_stays(tmp_path):
    for place, content in (
        ("etc/ssl/certs/ca-certificates.crt", b"COMPANY\n"),
        ("share/ca-certificates/a.crt", b"A"),
    ):
        path = tmp_path / place
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    relocate.add_certificates(str(tmp_path))
    assert (tmp_path / "etc/ssl/certs/ca-certificates.crt").read_bytes() == b"COMPANY\n"


def test_certificates_are_gathered_each_on_lines_of_its_own(tmp_path):
    folder = tmp_path / "share/ca-certificates/x"
    folder.mkdir(parents=True)
    (folder / "b.crt").write_bytes(b"B\n")
    (folder / "a.crt").write_bytes(b"A")
    (folder / "README").write_bytes(b"no certificate")
    (folder / "gone.crt").symlink_to("nowhere")
    (tmp_path / "etc/ssl/certs").mkdir(parents=True)
    (tmp_path / "etc/ssl/certs/ca-certificates.crt").symlink_to("/nowhere")
    relocate.add_certificates(str(tmp_path))
    assert (tmp_path / "etc/ssl/certs/ca-certificates.crt").read_bytes() == b"A\nB\n"


def test_what_leads_nowhere_or_has_an_odd_name_is_no_data(tmp_path):
    (tmp_path / "etc/ssl/certs").mkdir(parents=True)
    (tmp_path / "etc/ssl/certs/ca-certificates.crt").symlink_to("nowhere")
    (tmp_path / "lib/$(evil)/gconv").mkdir(parents=True)
    os.makedirs(os.fsencode(tmp_path) + b"/lib/\xff/gconv")
    variables = relocate.list_environment(str(tmp_path), PREFIX)
    assert set(variables) == {"LC_MESSAGES", "PATH", "PYTHONDONTWRITEBYTECODE"}


def test_the_library_of_apt_finds_its_tables(tmp_path):
    relocate.configure_apt(str(tmp_path), PREFIX)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "share/dpkg").mkdir(parents=True)
    (tmp_path / "share/dpkg/cputable").write_text("x")
    relocate.configure_apt(str(tmp_path), PREFIX)
    assert (
        tmp_path / "etc/crashcart.apt.conf"
    ).read_text() == 'Dir::dpkg::cputable "/dev/crashcart/share/dpkg/cputable";\n'
    assert relocate.list_environment(str(tmp_path), PREFIX)["APT_CONFIG"] == "/dev/crashcart/etc/crashcart.apt.conf"
