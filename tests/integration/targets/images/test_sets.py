# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tool sets, in containers that have nothing, busybox, Debian, or musl."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from support import host, images

IMAGES = "crashcart-test"
KINDS = ("static", "busybox", "debian", "musl")
# What a container's own settings may be, and what the tools must not mind.
NONSENSE = dict.fromkeys(("LD_LIBRARY_PATH", "LD_PRELOAD", "PATH", "PYTHONHOME", "PYTHONPATH", "PERL5LIB"), "/nonesuch")
# Tool → how it is asked for its version, where that is not --version.
ASK = {
    **dict.fromkeys(["bridge", "ip", "ss", "tc", "traceroute", "socat", "dig", "ngrep", "tracepath", "ping"], "-V"),
    **dict.fromkeys(["lsof", "nc", "arp", "netstat"], "-h"),
    "dig": "-v",
    "ngrep": "-V",
    "openssl": "version",
    "sar": "-V",
    "iostat": "-V",
    "killall": "-V",
    "pstree": "-V",
    "unzip": "-v",
    "which": "sh",
}
SETS = {
    "default": "bash bzip2 curl dig file find gdb getent grep gunzip gzip hostname ip less ls lsof lsblk nsenter ping ps python3 sed socat ss"
    " strace tar tcpdump top unzip vim which xz",
    "network": "arp bash conntrack curl dig ethtool iperf3 ip iptables less ls mtr nc netstat nft ngrep openssl ping ps sed socat ss"
    " tc tcpdump tracepath traceroute",
    "debug": "addr2line bash bpftrace eu-stack file gdb iostat killall ls lsof ltrace nm objdump ps pstree python3 readelf sar strace"
    " strings vim",
}
# Each tool is started.
START = r"""
for pair in $TOOLS; do
    output=$(timeout 20 ${pair%%:*} ${pair##*:} </dev/null 2>&1)
    rc=$?
    [ $rc -le 2 ] && [[ $output != *"error while loading"* && $output != *"not found"* && -n $output ]] || echo "$pair: $rc $output"
done
"""
# Each program's libraries are looked up by the image's own loader, which runs nothing of it.
RESOLVE = r"""
cd /dev/crashcart
loader=$(echo /dev/crashcart/lib*/ld-linux-*)
count=0
for program in bin/* sbin/* libexec/crashcart/*; do
    read -rn4 head <$program 2>/dev/null
    [[ $head == $'\x7fELF' ]] || continue
    $loader --verify $program
    [[ $? != 1 ]] || continue # static, as launchers are; asked for its libraries the loader dies
    libraries=$($loader --list $program 2>&1) || [[ $libraries == *"statically linked"* ]] || echo "$program: $libraries"
    while read -r name arrow path rest; do
        [[ $arrow != '=>' || $path == /dev/crashcart/* ]] || echo "$program: $name is $path"
    done <<<"$libraries"
    count=$((count + 1))
done
echo $count programs
"""


def execute(name, *argv, **options):
    return host.execute(containers=[name], argv=list(argv), **options)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the sets' images are built."""
    return tmp_path_factory.mktemp("sets")


@pytest.fixture(scope="module", params=list(SETS))
def tools(request, folder):
    """The name of a set, whose image is in the host's store by that name."""
    name = request.param
    if name == "default":  # the tests' own
        yield name
        return
    path = folder / f"{name}.ext4"
    images.build(path, sets=[name])
    images.install(path, name)
    yield name
    host.call_module("crashcart_image", name=name, state="absent")


@pytest.mark.parametrize("kind", KINDS)
def test_every_tool_of_every_set_starts_everywhere(tools, container, kind):
    images.make(IMAGES, kind)
    name = container(
        kind,
        options=("--network", "none", *(f"-e{name}={value}" for name, value in NONSENSE.items() if kind != "musl")),
    )
    pairs = " ".join(f"{tool}:{ASK.get(tool, '--version')}" for tool in SETS[tools].split())
    result = execute(name, "bash", "-c", START, image=tools, env={"TOOLS": pairs}, timeout="240s")
    assert result["stdout"] == ""
    # As `docker exec` does it: with the container's own variables.
    line = host.call_module("crashcart_attach", containers=[name], image=tools)["attachments"][0]["shell"]
    words = (
        f"for pair in {pairs}; do ${{pair%%:*}} ${{pair##*:}} >/dev/null 2>&1 </dev/null; echo $pair $?; done\nexit\n"
    )
    done = subprocess.run(
        line.replace(" -it ", " -i "),
        shell=True,
        input=words,
        capture_output=True,
        text=True,
        check=False,
        timeout=host.seconds(240),
    )
    answers = dict(line.split() for line in done.stdout.splitlines())
    assert {pair: int(rc) <= 2 for pair, rc in answers.items()} == dict.fromkeys(pairs.split(), True), done


def test_what_a_tool_says_of_itself_is_its_manual(container):
    line = host.call_module("crashcart_attach", containers=[container("static")])["attachments"][0]["shell"]
    done = subprocess.run(
        line.replace(" -it ", " -i "),
        shell=True,
        input="man 1 find\nman\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=host.seconds(60),
    )
    assert "Usage: find " in done.stdout
    assert "man PROGRAM shows" in done.stderr


def test_tar_starts_its_filters_where_there_is_no_shell(container):
    name = container("static")
    pack = "tar -C /proc/self -czf - status | tar -tzf -; tar -C /proc/self -cf - --use-compress-program='xz -1' status | tar -tJf -"
    assert execute(name, "bash", "-c", pack)["stdout"] == "status\nstatus\n"


def test_every_program_finds_its_libraries_in_the_image(tools, container):
    name = container("static", options=("--network", "none", "-eLD_LIBRARY_PATH=/nonesuch"))
    result = execute(name, "bash", "-c", RESOLVE, image=tools, timeout="240s")
    *problems, count = result["stdout"].splitlines()
    assert problems == []
    assert int(count.split()[0]) > 100


def test_python_imports_its_library_and_trusts_authorities_whatever_the_containers_settings(container):
    name = container(
        "static",
        options=(
            "--network",
            "none",
            *(f"-e{name}={value}" for name, value in NONSENSE.items() if name != "LD_PRELOAD"),
        ),
    )
    host.call_module("crashcart_attach", containers=[name])
    program = "import json, ssl, sqlite3; print(len(ssl.create_default_context().get_ca_certs()) > 100)"
    assert execute(name, "python3", "-c", program)["stdout"] == "True\n"


TLS = """
set -e
cd /tmp
openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=localhost \\
    -addext subjectAltName=DNS:localhost 2>/dev/null
openssl s_server -accept 4433 -key key.pem -cert cert.pem -www >/dev/null 2>&1 &
sleep 1
curl -sS --cacert cert.pem --resolve localhost:4433:127.0.0.1 https://localhost:4433/ | grep -c 'Cipher'
curl -sS --resolve localhost:4433:127.0.0.1 https://localhost:4433/ 2>&1 && exit 9
kill %1
"""


def test_curl_speaks_tls(container):
    name = container("busybox")
    result = execute(name, "bash", "-c", TLS, timeout="60s")
    assert result["rc"] == 0, result
    count, _newline, refusal = result["stdout"].partition("\n")
    assert int(count) > 0
    assert "certificate" in refusal and "(60)" in refusal


def test_manifests():
    path = host.DEFAULT_IMAGE
    image = host.call_module("crashcart_build", dest=path)["image"]
    assert image["size"] < 60_000_000
    assert image["tools"]["gdb"].startswith("gdb ")
    manifest = json.loads(Path(f"{path}.json").read_text())
    inside = json.loads(host.run("unsquashfs", "-cat", path, "etc/crashcart.json").stdout)
    assert {**inside, "digest": image["digest"], "size": image["size"]} == manifest
    bash = next(one for one in manifest["components"] if one["name"] == "bash")
    assert (bash["kind"], bash["arch"], bash["hash"][:7], len(bash["hash"])) == ("deb", manifest["arch"], "sha256:", 71)
    # The only files that do not work are scripts in languages that nobody asked for, and plug-ins.
    assert {os.path.dirname(one["path"]) for one in manifest["problems"] if "loader" in one["reason"]} == set()
    assert not [one for one in manifest["problems"] if one["path"].startswith("bin/") and "library" in one["reason"]]


def test_the_smallest_set(tmp_path, container):
    path = tmp_path / "minimal.squashfs"
    image = host.call_module("crashcart_build", dest=str(path), sets=["minimal"], cache="~/.cache/crashcart")["image"]
    assert image["size"] < 2_000_000
    images.install(path, "set-minimal")
    name = container("static")
    line = host.call_module("crashcart_attach", containers=[name], image="set-minimal")["attachments"][0]["shell"]
    assert line.endswith("/dev/crashcart/bin/sh -i")
    done = subprocess.run(
        line.replace(" -it ", " -i "),
        shell=True,
        input="ls /dev/crashcart/bin\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert "busybox" in done.stdout, done
    host.call_module("crashcart_attach", containers=[name], state="detached")
    host.call_module("crashcart_image", name="set-minimal", state="absent")
