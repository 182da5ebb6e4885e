# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How files of a tree are changed so that its programs load code from it alone."""

from __future__ import annotations

import glob
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.image.sealing import elf_loader, seal, texts

PREFIX = "/dev/crashcart"
LONG = "/opt/some/where/crashcart-of-somebody"
FLAGS_1, NODEFLIB, PIE = 0x6FFFFFFB, 0x800, 0x8000000


def make_elf(*entries, interpreter="", rest=b"", wide=True, order="<"):
    """An ELF file with a dynamic section of ENTRIES, where there are any, and REST among its constants."""
    word = "Q" if wide else "I"
    segments = []
    dynamic = b"".join(struct.pack(f"{order}{word}{word}", *one) for one in entries)
    name = interpreter.encode() + b"\0" if interpreter else b""
    header, size = (64, 56) if wide else (52, 32)
    start = header + 2 * size
    for kind, at, content in ((2, start, dynamic), (3, start + len(dynamic), name)):
        fields = (kind if content else 0, at, len(content))
        if wide:
            segments.append(struct.pack(f"{order}IIQQQQQQ", fields[0], 4, at, 0, 0, fields[2], fields[2], 8))
        else:
            segments.append(struct.pack(f"{order}IIIIIIII", fields[0], at, 0, 0, fields[2], fields[2], 4, 4))
    ident = b"\x7fELF" + bytes((2 if wide else 1, 1 if order == "<" else 2, 1)) + bytes(9)
    words = (2, 62, 1, 0, header, 0, 0, header, size, 2, 0, 0, 0)
    head = struct.pack(f"{order}HHI{word}{word}{word}IHHHHHH", *words)
    return ident + head + b"".join(segments) + dynamic + name + b"\0" + rest + b"\0"


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("entries", "changed"),
    [
        # The flag joins those that are there, or takes one of the empty entries at the end.
        ([(1, 5), (FLAGS_1, 1), (0, 0)], [(1, 5), (FLAGS_1, 1 | NODEFLIB), (0, 0)]),
        ([(1, 5), (0, 0), (0, 0)], [(1, 5), (FLAGS_1, NODEFLIB), (0, 0)]),
        # The one that ends the list stays, and what stands behind that is none of it.
        ([(1, 5), (0, 0)], None),
        ([(1, 5), (0, 0), (FLAGS_1, 1)], None),
    ],
)
def test_the_flag_against_built_in_folders(wide, order, entries, changed):
    content = make_elf(*entries, wide=wide, order=order)
    flagged = elf_loader.forbid_default_folders(content, elf_loader.read_dynamic(content))
    assert flagged == (None if changed is None else make_elf(*changed, wide=wide, order=order))


def test_broken_elf_files_are_passed_over():
    source = random.Random(5)
    for length in (4, 5, 6, 16, 20, 54, 63):
        assert elf_loader.read_dynamic(make_elf((0, 0))[:length]) is None
    whole = make_elf((1, 5), (0, 0), interpreter="/lib/ld.so")
    for _round in range(500):
        broken = bytearray(whole)
        for _byte in range(3):
            broken[source.randrange(4, 176)] = source.randrange(256)
        found = elf_loader.read_dynamic(bytes(broken))
        assert found is None or isinstance(found, elf_loader.Dynamic)


def replace(content, prefix=PREFIX):
    links = {}
    changed, found = texts.replace_texts(content, prefix, texts.TEXTS, links)
    assert len(changed) == len(content)
    return changed, found, set(links)


@pytest.mark.parametrize(
    ("text", "changed", "link"),
    [
        ("/etc/nsswitch.conf", "/dev/crashcart/nss", "nss"),
        ("/usr/lib/x86_64-linux-gnu/gconv", "/dev/crashcart/gconv", "gconv"),
        ("/usr/lib64/gconv", "/proc/0", None),  # as Fedora's: no path of the image is as short
        ("/usr/lib/locale", "/dev/crashcart/", ""),
        ("/etc/krb5.conf", "/proc/0", None),
        ("/lib/aarch64-linux-gnu/security/", "/dev/crashcart/-", "-"),
    ],
)
def test_paths_lead_into_the_image_or_to_nowhere(text, changed, link):
    content = b"\0before\0" + text.encode() + b"\0after\0"
    new, found, links = replace(content)
    padding = bytes(len(text) - len(changed))
    assert new == b"\0before\0" + changed.encode() + padding + b"\0after\0"
    assert (found, links) == ({text}, set() if link is None else {link})


def test_a_long_prefix_leads_to_nowhere():
    new, _found, links = replace(b"\0/etc/nsswitch.conf\0", LONG)
    assert (new, links) == (b"\0/proc/0" + bytes(11) + b"\0", set())


def test_only_whole_strings_are_changed():
    content = b"x/etc/profile\0/etc/profile.d\0 /etc/profile\0/etc/profilE\0see /etc/profile\0"
    assert replace(content)[0] == content


def test_emptied_and_erased():
    """Of one who may use the end of a path nothing is left of that; else the end stays as it is."""
    new = replace(b"\0~/.bashrc\0/etc/profile\0/usr/sbin/dmsetup\0")[0]
    assert new == b"\0\0/.bashrc\0\0etc/profile\0" + bytes(17) + b"\0"


LOADER = "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
PATHS = b"/etc/ld.so.preload\0/etc/ld.so.cache\0Do not use /etc/ld.so.cache"
LIBRARY = "lib/x86_64-linux-gnu/libc.so.6"
LIBRARY_PATHS = b"/etc/nsswitch.conf\0/usr/lib/locale\0/usr/lib/x86_64-linux-gnu/gconv"
SPARE = ((1, 5), (0, 0), (0, 0))


def make_tree(tmp_path, **files):
    """A tree of FILES by place, in which two underscores are a slash."""
    for place, content in files.items():
        put(tmp_path, place.replace("__", "/"), content)
    return str(tmp_path)


def put(tmp_path, place, content):
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(0o755)
    return path


def list_reasons(tmp_path):
    return {one["path"]: one["reason"] for one in seal.seal(str(tmp_path), PREFIX)}


def test_glibc(tmp_path):
    loader = put(tmp_path, LOADER, make_elf(*SPARE, rest=PATHS))
    library = put(
        tmp_path, LIBRARY, make_elf(*SPARE, interpreter=f"{PREFIX}/lib64/ld-linux-x86-64.so.2", rest=LIBRARY_PATHS)
    )
    put(tmp_path, "lib/locale/C.utf8/LC_CTYPE", "x")
    put(tmp_path, "lib/x86_64-linux-gnu/gconv/gconv-modules", "x")
    assert list_reasons(tmp_path) == {}
    # A loader with any flag refuses to work.
    assert loader.read_bytes() == make_elf(*SPARE, rest=bytes(36) + PATHS[36:])
    assert elf_loader.read_dynamic(library.read_bytes()).find(FLAGS_1) == NODEFLIB
    assert "hosts: files dns" in (tmp_path / "nss").read_text()
    assert {one: os.readlink(tmp_path / one) for one in ("C.utf8", "gconv")} == {
        "C.utf8": "lib/locale/C.utf8",
        "gconv": "lib/x86_64-linux-gnu/gconv",
    }


def test_what_is_not_as_expected_is_named(tmp_path):
    put(tmp_path, LOADER, make_elf(*SPARE, rest=PATHS.replace(b"preload", b"Preload") + b"\0" + PATHS))
    put(tmp_path, "lib/ld-linux.so.2", make_elf(*SPARE, rest=PATHS + b"\0" + PATHS))
    put(tmp_path, LIBRARY, make_elf(*SPARE, rest=b"/etc/nsswitch.conf"))
    put(tmp_path, "bin/bash", make_elf(*SPARE, rest=b"/etc/profile"))
    put(tmp_path, "bin/less", make_elf(*SPARE))
    put(tmp_path, "bin/odd", make_elf(*SPARE, interpreter=f"{PREFIX}/lib/ld-uClibc.so.1"))
    put(tmp_path, "bin/theirs", make_elf(*SPARE, interpreter="/lib64/ld-linux-x86-64.so.2"))
    put(tmp_path, "bin/perl", make_elf(*SPARE))
    put(tmp_path, "bin/old-static", make_elf(rest=b"/etc/nsswitch.conf"))
    put(tmp_path, "bin/new-static", make_elf(rest=b"/etc/nsswitch.conf\0/etc/ethers"))
    put(tmp_path, "bin/odd-static", make_elf((FLAGS_1, PIE), (0, 0), rest=b"libnss_%s.so"))
    assert list_reasons(tmp_path) == {
        LOADER: "it does not hold the path /etc/ld.so.cache once as expected",
        "lib/ld-linux.so.2": "it does not hold the path /etc/ld.so.preload once as expected",
        LIBRARY: "it does not hold the path /usr/lib/locale as expected",
        "bin/bash": "it does not hold the path ~/.bashrc as expected",
        "bin/less": "it does not hold the name of the variable by which it finds settings at home",
        "bin/odd": "its loader /dev/crashcart/lib/ld-uClibc.so.1 is of a C library that nobody has looked at",
        "bin/theirs": "its loader /lib64/ld-linux-x86-64.so.2 is the container's",
        "bin/perl": "it takes its modules from the container where it gets no PERL5LIB",
        "bin/old-static": "it is static and would load the service for users' names from the container",
        "bin/odd-static": "it is static and does not hold the path /etc/nsswitch.conf as expected",
    }


def test_musl_gets_its_folders(tmp_path):
    interpreter = f"{PREFIX}/lib/ld-musl-aarch64.so.1"
    put(tmp_path, "bin/tool", make_elf(*SPARE, interpreter=interpreter))
    for place in ("lib/libz.so.1", "local/lib/libx.so", "lib/engines/e.so"):
        put(tmp_path, place, "x")
    put(tmp_path, "etc/ld-musl-aarch64.path", "/lib\n")  # as Debian's package has one
    assert list_reasons(tmp_path) == {}
    assert (tmp_path / "etc/ld-musl-aarch64.path").read_text() == f"{PREFIX}/lib\n{PREFIX}/local/lib\n"


def test_openssl_is_led_by_what_it_says_of_itself(tmp_path):
    says = b'OPENSSLDIR: "/etc/ssl"\0MODULESDIR: "/usr/lib/ossl-modules"\0'
    library = put(
        tmp_path,
        "lib/libcrypto.so.3",
        make_elf(*SPARE, rest=says + b"/etc/ssl\0/etc/ssl/cert.pem\0/usr/lib/ossl-modules"),
    )
    assert list_reasons(tmp_path) == {}
    kept = says + b"/proc/0\0\0/proc/0" + bytes(11) + b"/proc/0"
    assert kept in library.read_bytes()


def test_python_and_its_library(tmp_path):
    program = put(tmp_path, "bin/python3.11", make_elf(*SPARE, rest=b".local"))
    (tmp_path / "bin/python3").symlink_to("python3.11")
    put(tmp_path, "bin/python3.9", make_elf(*SPARE))
    site = put(tmp_path, "lib/python3.11/site.py", "# x\nENABLE_USER_SITE = None\n")
    put(tmp_path, "lib/python3.12/site.py", "ENABLE_USER_SITE = 3\n")
    put(tmp_path, "lib/python3.11/subprocess.py", "a = ('/system/bin/sh' if x else '/bin/sh')\n")
    assert list_reasons(tmp_path) == {
        "bin/python3.9": "it takes modules from the current folder: only Python 3.11 and later can be told not to",
        "lib/python3.12/site.py": "it does not hold the line that lets Python look for modules at home",
    }
    assert site.read_text() == "# x\nENABLE_USER_SITE = False\n"
    text = (tmp_path / "lib/python3.11/subprocess.py").read_text()
    assert text == "a = ('/system/bin/sh' if x else '/dev/crashcart/bin/sh')\n"
    launcher = program.read_bytes()
    assert launcher[:4] == b"\x7fELF" and len(launcher) < 1000
    for word in (b"-P", b"-s", b"/dev/crashcart/bin/python3.11", b"/dev/crashcart/libexec/crashcart/python3.11"):
        assert b"\0" + word + b"\0" in launcher.replace(b"\x0f\x05/", b"\x0f\x05\0/")
    assert b"\0\0local\0" in (tmp_path / "libexec/crashcart/python3.11").read_bytes()
    assert os.access(program, os.X_OK)


def list_pythons():
    """The libraries of all Pythons of this machine that images may have."""
    tops = (sys.base_prefix, "/usr", *glob.glob(os.path.expanduser("~/.pyenv/versions/*")))
    found = {one for top in tops for one in glob.glob(f"{top}/lib/python3.*") if os.path.isfile(f"{one}/pydoc.py")}
    return sorted(one for one in found if int(one.rpartition(".")[2]) in range(9, 14))


DOES = re.compile(r"\bsys\.path(\[0\])? ?\+?= |path\.(insert|append)\((0, )?\S*(dir|getcwd|path)|\bos\.system\(")
# What a user names, what is for programs that run what folders hold, what is not for Linux.
MAY = re.compile(
    r"(ensurepip/|distutils/|multiprocessing/|runpy|shutil|site|doctest|unittest/|_\w+_support|_bootsubprocess)"
)
MAY_LINES = ("_sys.path.insert(0, _dir)", "sys.path.insert(0, self._target)", "sys.path.insert(0, idlelib_dir)")
NO_PROGRAMS = {"test", "tests", "idle_test", "turtledemo", "site-packages", "dist-packages", "lib2to3", "__pycache__"}


@pytest.mark.sweep
@pytest.mark.parametrize("library", list_pythons())
def test_no_program_of_pythons_library_looks_where_it_was_told_not_to(tmp_path, library):
    """In the real texts of all versions that are here."""
    top = tmp_path / "lib" / os.path.basename(library)
    for source in Path(library).rglob("*.py"):
        place = source.relative_to(library)
        if not NO_PROGRAMS & set(place.parts) and DOES.search(source.read_text(errors="replace")):
            put(top, place, source.read_bytes())
    for name in ("site", "subprocess", "ctypes/util", "uuid", "pdb", "tkinter/__init__"):
        if os.path.isfile(f"{library}/{name}.py"):  # Debian has tkinter elsewhere
            put(top, f"{name}.py", Path(library, f"{name}.py").read_bytes())
    assert list_reasons(tmp_path) == {}
    left = []
    for path in sorted(top.rglob("*.py")):
        text = path.read_text()
        compile(text, str(path), "exec", dont_inherit=True)
        if not MAY.match(str(path.relative_to(top))):
            lines = (line.strip() for line in text.splitlines() if DOES.search(line))
            left += [(path.name, line) for line in lines if line not in MAY_LINES]
    assert left == []


def test_pythons_search_for_its_library_ends_in_the_image(tmp_path):
    for place in ("bin/python3.11", "local/bin/python3.12", "lib/libpython3.13.so.1.0"):
        put(tmp_path, place, make_elf(*SPARE))
    put(tmp_path, "lib/python3.11/site.py", "ENABLE_USER_SITE = None\n")
    put(tmp_path, "local/lib/python3.12/site.py", "ENABLE_USER_SITE = None\n")
    put(tmp_path, "bin/gdb", make_elf(*SPARE, rest=b"libpython3.13.so.1.0"))
    put(tmp_path, "bin/other", make_elf(*SPARE, rest=b"libpython3.13.so.1.0"))
    put(tmp_path, "lib/python3.11/lib-dynload/x.so", make_elf(*SPARE, rest=b"libpython3.13.so.1.0"))
    assert list_reasons(tmp_path) == {
        "lib/libpython3.13.so.1.0": "it looks for the rest of its library in the container's folders: the image has none",
        "bin/other": "it may look for Python's library where PATH leads, which is into the container",
    }
    for folder, archive in (
        ("lib/python3.11", "lib/python311.zip"),
        ("local/lib/python3.12", "local/lib/python312.zip"),
    ):
        assert (tmp_path / folder / "lib-dynload").is_dir()
        assert zipfile.ZipFile(tmp_path / archive).namelist() == []


def test_a_shells_scripts_look_for_programs_where_path_leads(tmp_path):
    script = put(
        tmp_path, "bin/report", "#!/dev/crashcart/bin/sh -\nPATH=/bin:/usr/local/bin:$PATH\nMYPATH=/bin:$PATH\n"
    )
    put(tmp_path, "bin/other", "#!/dev/crashcart/bin/awk\nPATH=/bin:$PATH\n")
    assert list_reasons(tmp_path) == {}
    assert script.read_text().splitlines()[1:] == ["PATH=$PATH", "MYPATH=/bin:$PATH"]


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ('PATH="/usr/bin:/bin:$PATH"; export PATH', "PATH=$PATH; export PATH"),
        ("export PATH=$PATH:/sbin:/usr/sbin", "export PATH=$PATH"),
        ('  PATH="$PATH:/sbin" \\', "  PATH=$PATH \\"),
        ("PATH=$HOME/bin:$PATH", "PATH=$HOME/bin:$PATH"),
        ('trap "/bin/rm -f $tmp" 0', 'trap "/dev/crashcart/bin/rm -f $tmp" 0'),
        ("if tail $0|/usr/bin/fsck -a", "if tail $0|/dev/crashcart/sbin/fsck -a"),
        ("/bin/nonesuch /share/bin/rm $x/bin/rm ${x}/bin/rm", "/bin/nonesuch /share/bin/rm $x/bin/rm ${x}/bin/rm"),
    ],
)
def test_a_shells_scripts_run_programs_of_the_image(tmp_path, line, changed):
    for place in ("bin/rm", "sbin/fsck"):
        put(tmp_path, place, make_elf(*SPARE))
    script = put(tmp_path, "bin/report", f"#!/dev/crashcart/bin/sh\n{line}\n")
    list_reasons(tmp_path)
    assert script.read_text() == f"#!/dev/crashcart/bin/sh\n{changed}\n"


def test_programs_in_python_have_their_modules_in_the_image(tmp_path):
    text = "#!{}\nsys.path.insert(1, '/usr/share/python3/')\nif x:\n    print('/usr/share/python3/')\n"
    script = put(tmp_path, "bin/py3clean", text.format("/dev/crashcart/bin/python3 -s"))
    other = put(tmp_path, "bin/other", text.format("/dev/crashcart/bin/sh"))
    assert list_reasons(tmp_path) == {}
    changed = text.replace("'/usr/share", "'/dev/crashcart/share", 1)
    assert script.read_text() == changed.format("/dev/crashcart/bin/python3 -s")
    assert other.read_text() == text.format("/dev/crashcart/bin/sh")


def test_a_library_by_its_whole_path_is_the_containers(tmp_path):
    reason = "it needs a library by its whole path, which is the container's"
    assert seal.seal(str(tmp_path), PREFIX, ["bin/x"]) == [{"path": "bin/x", "reason": reason}]


def test_scripts_in_place_of_programs_stay(tmp_path):
    script = put(tmp_path, "bin/gdb", "#!/bin/sh\n")
    assert list_reasons(tmp_path) == {}
    assert script.read_text() == "#!/bin/sh\n"


AUDITORS = b"Too many audit modules requested"
LDD = """\
#!/bin/bash
RTLDLIST="/lib/ld-linux.so.2 /lib64/ld-linux-x86-64.so.2"
      try_trace "$RTLD" "$file" || result=1
"""


def test_ldd_asks_the_images_loaders_and_has_no_room_for_auditors(tmp_path):
    script = put(tmp_path, "bin/ldd", LDD)
    put(tmp_path, "lib64/ld-linux-x86-64.so.2", make_elf(*SPARE, rest=PATHS + b"\0" + AUDITORS))
    assert list_reasons(tmp_path) == {}
    assert script.read_text().splitlines()[1:] == [
        'RTLDLIST="/dev/crashcart/lib64/ld-linux-x86-64.so.2"',
        f'      try_trace "$RTLD" {16 * "--audit : "}"$file" || result=1',
    ]


@pytest.mark.parametrize(
    ("text", "rest", "reason"),
    [
        (LDD, b"", "it runs code that a file names: only glibc 2.32 and later can be told not to"),
        (
            LDD.replace('"$file"', "$file"),
            AUDITORS,
            "it does not hold the line by which it starts the loader as expected",
        ),
    ],
)
def test_an_ldd_that_runs_what_a_file_names_is_named(tmp_path, text, rest, reason):
    put(tmp_path, "bin/ldd", text)
    put(tmp_path, "lib64/ld-linux-x86-64.so.2", make_elf(*SPARE, rest=PATHS + b"\0" + rest))
    assert list_reasons(tmp_path) == {"bin/ldd": reason}


def test_musls_ldd_asks_the_images_loader(tmp_path):
    script = put(tmp_path, "bin/ldd", '#!/bin/sh\nexec /lib/ld-musl-x86_64.so.1 --list -- "$@"\n')
    assert list_reasons(tmp_path) == {}
    assert script.read_text().splitlines()[1] == 'exec /dev/crashcart/lib/ld-musl-x86_64.so.1 --list -- "$@"'


@pytest.mark.parametrize("machine", ["known", "unknown"])
def test_the_link_to_the_loader_has_no_room_for_auditors(tmp_path, machine):
    elf = make_elf(*SPARE, rest=PATHS)
    put(tmp_path, "lib64/ld-linux-x86-64.so.2", elf if machine == "known" else elf[:18] + b"\x08\0" + elf[20:])
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ld.so").symlink_to("../lib64/ld-linux-x86-64.so.2")
    assert list_reasons(tmp_path) == {}
    if machine == "unknown":
        assert not os.path.lexists(tmp_path / "bin/ld.so")
        return
    launcher = (tmp_path / "bin/ld.so").read_bytes()
    assert launcher.endswith(b"/dev/crashcart/lib64/ld-linux-x86-64.so.2\0" + 16 * b"--audit\0:\0")
    assert b"auditor" not in launcher and os.access(tmp_path / "bin/ld.so", os.X_OK)


def test_capsh_gets_a_shell_of_the_image(tmp_path):
    program = put(tmp_path, "sbin/capsh", make_elf(*SPARE, rest=b"--shell="))
    put(tmp_path, "bin/capsh", make_elf(*SPARE))
    assert list_reasons(tmp_path) == {"bin/capsh": "it does not hold the text '--shell=' as expected"}
    assert b"--shell=/dev/crashcart/bin/bash\0" in program.read_bytes()


def test_libwrap_starts_no_shell(tmp_path):
    library = put(tmp_path, "lib/libwrap.so.0.7.6", with_constants(b"twist: /bin/sh: %m\0/bin/sh\0PATH\0"))
    assert list_reasons(tmp_path) == {}
    assert b"twist: /bin/sh: %m\0\0bin/sh\0PATH\0" in library.read_bytes()


def with_constants(content):
    """An ELF file whose section of constants holds CONTENT."""
    elf = bytearray(make_elf(*SPARE))
    names = b"\0.rodata\0.shstrtab\0"
    content = b"\0" + content
    start = len(elf) + len(content) + len(names)
    sections = ((0, 0, 0, 0), (1, 1, len(elf), len(content)), (9, 3, len(elf) + len(content), len(names)))
    struct.pack_into("<Q", elf, 40, start)
    struct.pack_into("<HHH", elf, 58, 64, len(sections), 2)
    headers = (struct.pack("<IIQQQQIIQQ", *one[:2], 0, 0, *one[2:], 0, 0, 1, 0) for one in sections)
    return bytes(elf) + content + names + b"".join(headers)


def test_lesspipe_starts_no_filter_of_the_users(tmp_path):
    text = '#!/bin/sh\nif [ -x ~/.lessfilter ] || [ -x "$CONFIGDIR/lessfilter" ]; then "${HOME}/.lessfilter" "$1"; fi\n'
    script = put(tmp_path, "bin/lesspipe", text)
    assert list_reasons(tmp_path) == {}
    (line,) = script.read_text().splitlines()[1:]
    assert line == 'if [ -x /proc/0/lessfilter ] || [ -x "/proc/0/lessfilter" ]; then "/proc/0/lessfilter" "$1"; fi'


def test_what_stands_where_a_link_should_is_named(tmp_path):
    put(tmp_path, LIBRARY, make_elf(*SPARE, rest=LIBRARY_PATHS))
    put(tmp_path, "lib/x86_64-linux-gnu/gconv/gconv-modules", "x")
    put(tmp_path, "gconv", "x")
    assert list_reasons(tmp_path) == {"gconv": "it stands where a link to lib/x86_64-linux-gnu/gconv should"}


def test_tar_finds_its_shell_by_path(tmp_path):
    with open(shutil.which("tar") or pytest.skip("there is no tar"), "rb") as file:
        before = file.read()
    tar, shell = tmp_path / "tar", tmp_path / "sh"
    tar.write_bytes(elf_loader.look_up_shell(before))
    shell.write_text(f'#!/bin/sh\n: >{tmp_path}/asked\nexec /bin/sh "$@"\n')
    for path in (tar, shell):
        path.chmod(0o755)
    (tmp_path / "file").write_text("text")
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run([tar, "-C", tmp_path, "-czf", tmp_path / "archive", "file"], env=environment, check=True)
    assert (tmp_path / "asked").exists()
    listed = subprocess.run(["tar", "-tzf", tmp_path / "archive"], capture_output=True, check=True)
    assert listed.stdout == b"file\n"


def test_a_program_without_such_calls_keeps_its_shell():
    content = make_elf(rest=b"\0/bin/sh\0")
    assert elf_loader.look_up_shell(content) == content
