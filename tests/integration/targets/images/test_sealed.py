# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tools of an image load code from the image only, in containers where everything that they might load is a trap."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support import host, images, inside, traps
from support.images import build

from ansible_collections.crashcart.fleet.tools import busybox_archive
from ansible_collections.crashcart.fleet.tools.make_container_image import make_image

IMAGES = "crashcart-test"
TOOLS = "/dev/crashcart/bin /dev/crashcart/sbin"
RIGHTS = ("container", "tools", "host")
# Every program that is one of KINDS by the bytes that it begins with. Scripts start what PATH names, which with `docker exec` are the
# container's programs.
EVERY = r"""
count=0
for program in /dev/crashcart/bin/* /dev/crashcart/sbin/*; do
    read -rn4 head <$program 2>/dev/null
    [[ ! -L $program && $head =~ ^($KINDS) ]] || continue
    /dev/crashcart/bin/timeout -k 2 20 $program --version </dev/null >/dev/null 2>&1
    count=$((count + 1))
done
echo $count programs
"""
PROGRAMS = "KINDS=$'\\x7fELF'\n" + EVERY
SCRIPTS_TOO = "KINDS=$'\\x7fELF|#!'\n" + EVERY
# What the tools say where they work, whatever the container's settings are.
ANSWERS = (
    "uid=65534(nobody)",
    "nobody:x:65534",
    "localhost",
    "/dev/crashcart/share/gdb/python",
    "plain: ASCII",
    "DiG 9",
    "libc.so.6 => ",
    "Too many audit modules requested",
    "Help on module wave",
    "1 loop, best of 1",
)


@pytest.fixture
def trapped(container):
    """The name of a container that is full of traps."""
    traps.make(f"{IMAGES}/traps")
    name = container("traps")
    host.wait_until(lambda: "preload" in traps.list_sprung(name))  # by its first process
    return name


def test_the_traps_work(trapped):
    """The container's own programs spring each of them."""
    host.docker("exec", trapped, "/bin/bash", "-c", traps.make_script("/bin /usr/bin /sbin /usr/sbin"), check=False)
    assert set(traps.list_sprung(trapped)) == traps.NAMES


def test_libraries_of_python_are_traps_where_it_looks_for_them(trapped):
    traps.lay_libraries(trapped)
    host.docker("exec", trapped, "/usr/bin/python3", "-c", "1", check=False)
    assert traps.LIBRARY in traps.list_sprung(trapped)


@pytest.mark.parametrize("rights", RIGHTS)
def test_tools_that_crashcart_exec_runs_spring_none(trapped, rights):
    traps.lay_libraries(trapped)
    script = traps.make_script(TOOLS) + SCRIPTS_TOO
    options = {"containers": [trapped], "argv": ["bash", "-c", script], "timeout": "110s", "rights": rights}
    result = host.execute(**options)[0]
    assert traps.list_sprung(trapped) == {}, result
    check_answers(result["stdout"])


def test_tools_that_docker_exec_runs_spring_none(trapped):
    traps.lay_libraries(trapped)
    host.call_module("crashcart_attach", containers=[trapped])
    done = host.run("docker", "exec", trapped, "/dev/crashcart/bin/bash", "-c", traps.make_script(TOOLS) + PROGRAMS)
    host.call_module("crashcart_attach", containers=[trapped], state="detached")
    assert traps.list_sprung(trapped) == {}, done
    check_answers(done.stdout)


def check_answers(text):
    assert [one for one in ANSWERS if one not in text] == []
    assert int(text.splitlines()[-1].split()[0]) > 200


def test_a_shell_whose_input_is_a_socket_reads_nothing(trapped):
    """By such an input, as sshd and rshd give it, bash decides to read the files of an interactive shell."""
    host.call_module("crashcart_attach", containers=[trapped])
    code = (
        "import socket, subprocess, sys; one, two = socket.socketpair();"
        "subprocess.run([sys.argv[1], '-c', 'echo $((6 * 7))'], stdin=one, env={'HOME': '/root'})"
    )
    words = ["docker", "exec", trapped, "/dev/crashcart/bin/python3", "-c", code]
    assert host.run(*words, "/dev/crashcart/bin/bash").stdout == "42\n"
    assert traps.list_sprung(trapped) == {}
    assert host.run(*words, "/bin/bash").stdout == "42\n"
    assert {"bashrc", "bash.bashrc"} <= set(traps.list_sprung(trapped))


WORK = r"""
set -e
cd /tmp
printf '\xa4' | iconv -f ISO-8859-15 -t UTF-8
gdb -batch -ex 'python import json; print("embedded", json.dumps([gdb.VERSION[:2]]))'
python3 -c 'import ctypes, sqlite3, ssl, sys; print(sys.executable, sys.prefix, len(ssl.create_default_context().get_ca_certs()) > 99)'
printf '#!/dev/crashcart/bin/python3 -Es\nimport subprocess, sys\nprint(subprocess.check_output([sys.executable, "-V"], text=True))\n' >script
chmod 755 script
./script
"""


@pytest.mark.parametrize("way", ["crashcart_exec", "docker exec"])
def test_what_is_led_into_the_image_works(container, way):
    """Where the container has nothing of it."""
    name = container("busybox")
    if way == "crashcart_exec":
        options = {"containers": [name], "argv": ["bash", "-c", WORK]}
        text = host.execute(**options)[0]["stdout"]
    else:
        host.call_module("crashcart_attach", containers=[name])
        path = "PATH=/dev/crashcart/bin"
        text = host.docker("exec", "-e", path, name, "/dev/crashcart/bin/bash", "-c", WORK)
        host.call_module("crashcart_attach", containers=[name], state="detached")
    lines = text.split("\n")
    assert lines[0].startswith('€embedded ["1')
    assert lines[1].startswith("/dev/crashcart/bin/python3")
    assert lines[1].endswith(" /dev/crashcart True")
    assert lines[2].startswith("Python 3.")


@pytest.mark.parametrize(
    "argv",
    [
        ["gdb", "-batch", "-ex", "shell echo $BASH"],
        ["bash", "-c", "echo 'echo $BASH' | chroot /"],
        ["capsh", "--", "-c", "echo $BASH"],
    ],
    ids=lambda argv: argv[0],
)
def test_programs_that_ask_for_a_shell_start_the_images(container, argv):
    result = host.execute(containers=[container()], argv=argv)[0]
    assert result["stdout"].strip() == "/dev/crashcart/bin/bash", result


def test_a_shell_that_pythons_library_starts_is_the_images(container):
    code = "import pipes; pipe = pipes.Template(); pipe.append('readlink /proc/$$/exe; :', '--'); pipe.copy('', '')"
    argv = ["python3", "-W", "ignore", "-c", code]
    result = host.call_module("crashcart_exec", containers=[container()], argv=argv)["results"][0]
    assert result["stdout"].startswith("/dev/crashcart/bin/"), result


def test_musl_looks_for_libraries_in_the_image_only(container, tmp_path):
    images.install_packages("musl-tools")
    program, library = tmp_path / "load", tmp_path / "libtrap.so"
    traps.compile_program(str(program), compiler="musl-gcc")
    traps.compile_trap("musl", str(library), "musl-gcc")
    files = {"/bin/load": str(program), "/trap/out/made": "/dev/null"}
    make_image(f"{IMAGES}/musl-plain", packages=["musl"], files=files, cmd=["/bin/load"])
    make_image(
        f"{IMAGES}/musl-traps",
        packages=["musl"],
        # Debian's musl reads such a file, too; what it would do without one is the same thing.
        files={
            **files,
            **{f"{folder}/libtrap.so": str(library) for folder in ("/lib", "/usr/lib", "/usr/local/lib")},
            "/etc/ld-musl-x86_64.path": _write(tmp_path / "path", "/lib\n"),
        },
        cmd=["/bin/load"],
    )
    image = build(tmp_path / "image", docker_image=f"{IMAGES}/musl-plain")
    assert (image["sealed"], image["unsealed"]) == (True, [])
    assert has_mark(tmp_path / "image")
    images.install(tmp_path / "image", "built")
    name = container("musl-traps")
    traps.list_sprung(name)
    assert host.docker("exec", name, "/bin/load", "libtrap.so") == "loaded"
    assert set(traps.list_sprung(name)) == {"musl"}
    tool = ["/dev/crashcart/bin/load", "libtrap.so"]
    for rights in RIGHTS:
        assert host.execute(containers=[name], image="built", argv=tool, rights=rights)[0]["stdout"] == "not found\n"
    host.call_module("crashcart_attach", containers=[name], image="built")
    assert host.docker("exec", name, *tool) == "not found"
    assert traps.list_sprung(name) == {}
    host.call_module("crashcart_attach", containers=[name], state="detached")
    host.call_module("crashcart_image", name="built", state="absent")


def _write(path, text):
    path.write_text(text)
    return str(path)


def test_the_smallest_set_springs_none(trapped, tmp_path):
    """One static program, whose shell reads start-up files, and which can load modules for character sets."""
    image = build(tmp_path / "image", sets=["minimal"])
    assert image["sealed"]
    images.install(tmp_path / "image", "built")
    busybox = "/dev/crashcart/bin/busybox"
    host.call_module("crashcart_attach", containers=[trapped], image="built")
    assert host.docker("exec", trapped, busybox, "sh", "-l", "-c", "id nobody").startswith("uid=65534(nobody)")
    assert traps.list_sprung(trapped) == {}
    host.call_module("crashcart_attach", containers=[trapped], state="detached")
    host.call_module("crashcart_image", name="built", state="absent")
    # As it comes from Debian it does read them.
    host.docker("cp", "-L", "/bin/busybox", f"{trapped}:/trap/busybox")
    host.docker("exec", trapped, "/trap/busybox", "sh", "-l", "-c", "true")
    assert set(traps.list_sprung(trapped)) == {"profile"}


def has_mark(path):
    """Return True if the ext4 image PATH holds the file that says that it is sealed."""
    return "Inode:" in host.run("debugfs", "-R", "stat /etc/crashcart.sealed", str(path)).stdout


def test_an_image_says_whether_it_is_sealed(tmp_path):
    manifest = json.loads(Path(f"{host.DEFAULT_IMAGE}.json").read_text())
    assert (manifest["sealed"], manifest["unsealed"]) == (True, [])
    mark = host.run("unsquashfs", "-cat", host.DEFAULT_IMAGE, "etc/crashcart.sealed").stdout
    assert "from the image only" in mark
    # A tree cannot say it of itself.
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/crashcart.sealed").write_text("")
    image = build(tmp_path / "image", packages=["perl-base"], paths=[str(tmp_path / "root")])
    reason = "it takes its modules from the container where it gets no PERL5LIB"
    assert not image["sealed"]
    assert {one["path"]: one["reason"] for one in image["unsealed"]}["bin/perl"] == reason
    assert not has_mark(tmp_path / "image")


def test_an_image_by_somebody_else_is_not_sealed_and_gets_the_hosts_rights_from_who_trusts_the_container(
    container, tmp_path
):
    (tmp_path / "tree/bin").mkdir(parents=True)
    (tmp_path / "tree/etc").mkdir()
    (tmp_path / "tree/etc/crashcart.sealed").write_text("by its own word")
    shutil.copy(busybox_archive.find_busybox(), tmp_path / "tree/bin/busybox")
    made = tmp_path / "made.img"
    host.run("mke2fs", "-q", "-t", "ext4", "-d", str(tmp_path / "tree"), str(made), "16M")
    image = build(tmp_path / "image", paths=[str(made)], arch="amd64")
    assert (image["sealed"], [one["reason"] for one in image["unsealed"]]) == (
        False,
        ["the image was made by somebody else"],
    )
    images.install(tmp_path / "image", "foreign")
    command = {"containers": [container()], "image": "foreign", "argv": ["busybox", "true"]}
    for rights in ("container", "tools"):
        assert host.execute(**command, rights=rights)[0]["rc"] == 0
    with pytest.raises(host.ModuleFailed, match="rights=host.*`unsealed`.*rights=tools.*trust_container=true"):
        host.call_module("crashcart_exec", **command, rights="host")
    done = host.call_module("crashcart_exec", **command, rights="host", trust_container=True)
    assert (done["results"][0]["rc"], done["results"][0]["rights"]) == (0, "host")
    host.call_module("crashcart_image", name="foreign", state="absent")


@pytest.mark.parametrize("rights", RIGHTS)
def test_tasks_over_the_connection_spring_none(trapped, tmp_path, rights):
    """Modules that the image's Python runs, and the shell that starts it."""
    traps.lay_libraries(trapped)
    tool = {"argv": ["/dev/crashcart/bin/id", "nobody"], "chdir": "/trap/cwd"}
    done = inside.run_task(tmp_path, trapped, "ansible.builtin.command", tool, ansible_cart_rights=rights)
    assert "uid=65534(nobody)" in done.stdout
    for module, arguments in (("ping", {}), ("setup", {"gather_subset": "!all,min"})):
        inside.run_task(tmp_path, trapped, f"ansible.builtin.{module}", arguments, ansible_cart_rights=rights)
    assert traps.list_sprung(trapped) == {}
