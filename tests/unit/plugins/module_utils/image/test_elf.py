# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""ELF files of a tree: what they need, and whether it is there."""

from __future__ import annotations

import random
import struct
from dataclasses import replace

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.image import elf
from ansible_collections.crashcart.fleet.plugins.module_utils.image.elf import Elf


def test_a_dynamic_program_is_read(tmp_path):
    with open("/proc/self/exe", "rb") as file:
        content = file.read()
    path = tmp_path / "python"
    path.write_bytes(content)
    found = elf.read_elf(str(tmp_path), "python")
    if found is None or not found.interpreter:
        pytest.skip("this Python is a static program")
    assert found.place == "python"
    assert found.interpreter.startswith("/")
    assert found.interpreter.encode() + b"\0" in content
    assert any(name.startswith("libc.") for name in found.needed)


def make_elf():
    """The smallest ELF file of this machine's size with a header and one segment that names an interpreter."""
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 3, 4, 120, 0, 0, 9, 9, 1) + b"/lib/ld\0\0"


def test_a_small_elf_file_is_read_and_one_of_another_kind_is_not(tmp_path):
    path = tmp_path / "elf"
    path.write_bytes(make_elf())
    assert elf.read_elf(str(tmp_path), "elf").interpreter == "/lib/ld"
    changed = bytearray(make_elf())
    changed[16] = 1  # an object file
    path.write_bytes(bytes(changed))
    assert elf.read_elf(str(tmp_path), "elf") is None


@pytest.mark.parametrize("length", [4, 5, 6, 15, 16, 20, 40, 63])
def test_an_elf_file_cut_short_in_its_header_is_passed_over(tmp_path, length):
    path = tmp_path / "elf"
    path.write_bytes(make_elf()[:length])
    assert elf.read_elf(str(tmp_path), "elf") is None


def test_broken_elf_files_are_passed_over(tmp_path):
    path = tmp_path / "elf"
    source = random.Random(21)
    for _round in range(300):
        path.write_bytes(b"\x7fELF" + bytes(source.randrange(256) for _index in range(source.randrange(300))))
        assert elf.read_elf(str(tmp_path), "elf") is None


def make(place, *needed, interpreter="", run_path=(), machine="EM_X86_64"):
    return Elf(place, machine, interpreter, needed, run_path)


@pytest.mark.parametrize(
    ("place", "run_path", "places"),
    [
        ("bin/a", ("/usr/lib/x",), ("lib/x",)),
        ("bin/a", ("$ORIGIN/../lib/x",), ("lib/x",)),
        ("bin/a", ("${ORIGIN}/../lib/x",), ("lib/x",)),
        ("lib/x/a.so", ("$ORIGIN",), ("lib/x",)),
        ("bin/a", ("/nix/store/abc/lib", "/usr/lib/x", "/lib/x"), ("nix/store/abc/lib", "lib/x")),
        # Nothing leads out of the image: not a way up, nor what is relative to where somebody stands.
        ("bin/a", ("$ORIGIN/../../../etc",), ("etc",)),
        ("bin/a", ("", ".", "lib", "../lib"), ()),
        ("bin/a", ("$ORIGINAL/x", "/usr/$LIB", "$PLATFORM"), ()),
    ],
)
def test_own_folders_are_places_of_the_tree(place, run_path, places):
    assert elf.place_run_path(make(place, run_path=run_path)) == places


def test_folders_that_a_loader_searches(tmp_path):
    (tmp_path / "etc/ld.so.conf.d").mkdir(parents=True)
    (tmp_path / "etc/ld.so.conf").write_text("include /etc/ld.so.conf.d/*.conf\n/opt/lib\n")
    (tmp_path / "etc/ld.so.conf.d/x.conf").write_text("# comment\n/usr/lib/x86_64-linux-gnu/private\n")
    places = [
        *(
            "lib/libc.so",
            "lib64/a.so",
            "lib/x86_64-linux-gnu/b.so.1",
            "lib/x86_64-linux-gnu/private/c.so",
            "opt/lib/d.so",
        ),
        *("lib/x86_64-linux-gnu/plugins/e.so", "lib/python3/f.so", "local/lib/g.so", "bin/program"),
    ]
    assert elf.find_library_folders(str(tmp_path), [make(place) for place in places]) == [
        "lib/x86_64-linux-gnu",
        "lib/x86_64-linux-gnu/private",
        "lib",
        "lib64",
        "local/lib",
        "opt/lib",
    ]


def test_what_is_missing_is_named(tmp_path):
    for place in ("lib/libc.so.6", "lib/ld.so", "lib/private/p.so", "lib/other.so"):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (tmp_path / "lib/libc.so").symlink_to("libc.so.6")
    elves = [
        make("lib/libc.so.6"),
        make("lib/other.so", machine="EM_AARCH64"),
        make("lib/private/p.so", "libc.so.6"),
        make("bin/good", "libc.so", interpreter="lib/ld.so"),
        make("bin/private", "p.so", interpreter="lib/ld.so", run_path=("lib/private",)),
        make("bin/lost", "p.so", "nonesuch.so", interpreter="lib/ld.so"),
        make("bin/foreign", "other.so", interpreter="lib/ld.so"),
        make("bin/loaderless", interpreter="lib/ld-musl.so"),
        make("bin/absolute", "/usr/lib/libc.so.6", interpreter="lib/ld.so"),
    ]
    assert [tuple(one.values()) for one in elf.list_problems(str(tmp_path), elves, ["lib"])] == [
        ("bin/lost", "the library p.so is not in the image"),
        ("bin/lost", "the library nonesuch.so is not in the image"),
        ("bin/foreign", "the library other.so is not in the image"),
        ("bin/loaderless", "its loader lib/ld-musl.so is not in the image"),
        ("bin/absolute", "it needs the library /usr/lib/libc.so.6 by its whole path"),
    ]


def test_musl_and_glibc_do_not_mix(tmp_path):
    """An image of both, as of Debian's packages and Alpine's: each program looks in folders of its own kind first."""
    musl = make("bin/curl", "libz.so.1", "libc.musl-x86_64.so.1", interpreter="/lib/ld-musl-x86_64.so.1")
    glibc = make("bin/ip", "libz.so.1", "libc.so.6", interpreter="/lib64/ld-linux-x86-64.so.2")
    libraries = [
        make("lib/x86_64-linux-gnu/libz.so.1", "libc.so.6"),
        make("lib/x86_64-linux-gnu/libc.so.6", "ld-linux-x86-64.so.2"),
        make("lib/libc.musl-x86_64.so.1"),
        make("lib/libssl.so.3", "libc.musl-x86_64.so.1"),
    ]
    elves = [musl, glibc, *libraries]
    assert [one.family for one in elves] == ["musl", "glibc", "glibc", "glibc", "", "musl"]
    folders = elf.find_library_folders(str(tmp_path), elves)
    assert folders == ["lib/x86_64-linux-gnu", "lib"]
    assert elf.sort_folders(folders, elves, "musl") == ["lib"]
    assert elf.sort_folders(folders, elves, "glibc") == ["lib/x86_64-linux-gnu", "lib"]
    for one in elves:
        path = tmp_path / one.place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "lib/ld-musl-x86_64.so.1").write_bytes(b"")
    (tmp_path / "lib64").mkdir()
    (tmp_path / "lib64/ld-linux-x86-64.so.2").write_bytes(b"")
    # As patching leaves them: with loaders of the tree, whatever this machine has.
    patched = [replace(one, interpreter=one.interpreter.lstrip("/")) for one in elves]
    problems = [
        (one["path"], one["reason"])
        for one in elf.list_problems(str(tmp_path), patched, folders)
        if one["path"].startswith("bin/")
    ]
    # glibc's libz is of no use to it.
    assert problems == [("bin/curl", "the library libz.so.1 is not in the image")]


def test_a_library_one_folder_too_deep_is_linked(tmp_path):
    """Debian's libblas.so.3 is such a library, of which Debian has several."""
    program = make("bin/nmap", "libblas.so.3", "libm.so.6", interpreter="/lib64/ld-linux-x86-64.so.2")
    elves = [
        program,
        make("lib/x86_64-linux-gnu/blas/libblas.so.3"),
        make("lib/x86_64-linux-gnu/libm.so.6"),
        make("lib/other/deep/libx.so"),
    ]
    for one in elves:
        path = tmp_path / one.place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(one.place)
    elf.link_alternatives(str(tmp_path), elves, ["lib/x86_64-linux-gnu"])
    assert (tmp_path / "lib/x86_64-linux-gnu/libblas.so.3").read_text() == "lib/x86_64-linux-gnu/blas/libblas.so.3"
    assert not (tmp_path / "lib/x86_64-linux-gnu/libm.so.6").is_symlink()


def test_a_program_whose_librarys_library_is_missing_is_named(tmp_path):
    elves = [
        make("bin/x", "liba.so", interpreter="lib/ld-linux.so.2"),
        make("lib/liba.so", "libb.so"),
        make("lib/libb.so", "libc.so.9", "liba.so"),
    ]
    for one in elves:
        path = tmp_path / one.place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "lib/ld-linux.so.2").write_bytes(b"")
    told = {(one["path"], one["reason"]) for one in elf.list_problems(str(tmp_path), elves, ["lib"])}
    assert told == {
        ("bin/x", "the library libc.so.9, which lib/libb.so needs, is not in the image"),
        ("lib/libb.so", "the library libc.so.9 is not in the image"),
    }
