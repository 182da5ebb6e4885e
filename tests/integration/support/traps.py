# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a container image in which every file that a program may load from a container is a trap.

A sprung trap leaves a file of its name in the container's /trap/out. The image also has programs of its own that spring the traps, so
that a test can check that all traps work.
"""

from __future__ import annotations

import os
import struct
import subprocess
import tempfile
import zipfile
from pathlib import Path

from ansible_collections.crashcart.fleet.tools.make_container_image import make_image
from support import host, images

OUT = "/trap/out"
_PACKAGES = (
    *("base-files", "bash", "bind9-dnsutils", "coreutils", "curl", "dash", "file", "gdb", "less", "libc-bin", "musl"),
    *("openssl", "procps", "python3", "socat", "vim-tiny"),
)
_LIBRARIES = "/usr/lib/x86_64-linux-gnu"
_SITE = "/root/.local/lib/python3.11/site-packages"
# Library → its path in the container.
_COMPILED = {
    "preload": "/trap/preload.so",
    "nss": f"{_LIBRARIES}/libnss_evil.so.2",
    "gconv": f"{_LIBRARIES}/gconv/EVIL.so",
    "openssl": "/trap/openssl.so",
    "library": f"{_LIBRARIES}/libevil.so.1",
    "audit": "/trap/audit.so",
    "depaudit": "/trap/depaudit.so",
}
# Program → the linker's options that name its auditors, which a loader loads before anything else.
_AUDITED = {
    "audit": ("-Wl,--audit=/trap/audit.so",),
    "depaudit": ("-Wl,--depaudit=/trap/depaudit.so",),
    "static": ("-static-pie", "-Wl,--audit=/trap/audit.so"),
}
_SHELL = "echo >{out}/{name}\n"
_PYTHON = "open('{out}/{name}', 'w').close()\n"
_GDB = "shell echo >{out}/{name}\n"
_VIM = "silent !echo >{out}/{name}\n"
# Trap → the path of its file, and the content.
_TEXTS = {
    "bash.bashrc": ("/etc/bash.bashrc", _SHELL),
    "bashrc": ("/root/.bashrc", _SHELL),
    "profile": ("/etc/profile", _SHELL),
    "bash_profile": ("/root/.bash_profile", _SHELL),
    "json": ("/trap/cwd/json.py", _PYTHON),
    "pydoc": ("/trap/cwd/wave.py", _PYTHON),
    "timeit": ("/trap/cwd/colorsys.py", _PYTHON),
    "beside": ("/trap/beside/quopri.py", _PYTHON),
    "usercustomize": (f"{_SITE}/usercustomize.py", _PYTHON),
    "pth": (f"{_SITE}/x.pth", "import os; os.close(os.open('{out}/{name}', os.O_CREAT))\n"),
    "pdbrc": ("/root/.pdbrc", "p open('{out}/{name}', 'w')\n"),
    "gdbinit": ("/root/.gdbinit", _GDB),
    "system-gdbinit": ("/etc/gdb/gdbinit", _GDB),
    "gdb-auto-load": ("/usr/share/gdb/auto-load/bin/sleep-gdb.gdb", _GDB),
    "system-vimrc": ("/etc/vim/vimrc", _VIM),
    "vimrc": ("/root/.vimrc", _VIM),
    "curlrc": ("/root/.curlrc", "trace-ascii = {out}/{name}\n"),
    "lesskey": ("/root/.lesskey", "#env\nLESSOPEN = ||-echo >{out}/{name}; echo {name} %s\n"),
    "lessfilter": ("/root/.lessfilter", "#!/bin/sh\n" + _SHELL),
    "hosts.allow": ("/etc/hosts.allow", "ALL: ALL: spawn echo >{out}/{name}\n"),
}
_SETTINGS = {
    "/etc/ld.so.preload": "/trap/preload.so\n",
    "/etc/nsswitch.conf": "passwd: evil files\ngroup: evil files\nhosts: evil files dns\n",
    f"{_LIBRARIES}/gconv/gconv-modules": "module EVIL// INTERNAL EVIL 1\nmodule INTERNAL EVIL// EVIL 1\n",
    "/etc/ssl/openssl.cnf": (
        "openssl_conf = all\n[all]\nproviders = some\n[some]\nevil = evil\ndefault = default\n"
        "[evil]\nmodule = /trap/openssl.so\nactivate = 1\n[default]\nactivate = 1\n"
    ),
    "/root/.inputrc": '"\\C-t": "evil"\n',
    "/etc/magic": "0 string evil evil-magic\n",
    "/trap/cwd/plain": "evil\n",
    "/trap/cwd/empty.py": "1\n",
    "/trap/beside/main.py": "import quopri\n",
    "/trap/out/made": "",
    "/etc/passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/bin/bash\n",
    "/etc/group": "root:x:0:\n",
}
# Programs that spring the traps. Some traps cannot leave a file, so `note` leaves one where they show in the output.
_SPRINGS = r"""
cd /trap/cwd
find() { for folder in $FOLDERS; do [ -x $folder/$1 ] && { echo $folder/$1; return; }; done; echo /nonesuch/$1; }
limit=$(find timeout)
run() { program=$(find $1); shift; $limit -k 2 20 $program "$@" </dev/null 2>&1; }
note() { while read -r line; do echo "$line"; [[ $line != *evil* ]] || echo "$line" >>/trap/out/$1; done; }
run id nobody
run getent passwd nobody
run getent hosts localhost
run ls -l /trap
run ps aux
LANG=C.UTF-8 LANGUAGE=xx run ls /nonesuch | note catalogue
run file plain | note magic
run bash -i -c true
run bash -l -c true
run bash -c 'bind -s' | note inputrc
run python3 -c 'import json'
run python3 -m json.tool /nonesuch
run python3 -c 'import subprocess; subprocess.run("true", shell=True)'
run python3 -c 'import ctypes; ctypes.CDLL("libevil.so.1")'
run python3 -c 'import ssl; ssl.create_default_context()'
run python3 -m pdb -c q /trap/cwd/empty.py
run python3 -m timeit -n 1 -r 1 'import colorsys'
run pydoc3 wave
run python3 -m pydoc wave
for module in cProfile profile 'trace --count --coverdir /tmp' 'pdb -c c -c q'; do run python3 -m $module /trap/beside/main.py; done
run ldd /bin/sleep
for options in '' '-r' '-d -u'; do run ldd $options /trap/audit /trap/depaudit /trap/static; done
for program in /bin/sleep /trap/audit /trap/depaudit /trap/static; do run ld.so --list $program; done
run openssl list -providers
run gdb -batch -p 1
run gdb -batch -ex 'python import json, sys; print(sys.path)'
run vim.tiny --not-a-term -c q
run curl -s file:///etc/passwd
run less /trap/cwd/plain
PATH=${FOLDERS// /:} run lesspipe /trap/cwd/plain
run socat TCP-LISTEN:7777,bind=127.0.0.1,tcpwrap=any STDOUT &
run socat -u OPEN:/trap/cwd/plain TCP:127.0.0.1:7777,retry=50,interval=0.1
wait
run iconv -f EVIL -t UTF-8 /trap/cwd/plain
run dig -v
"""


def make(tag: str) -> None:
    """Make the image TAG, whose first process waits, unless the engine has it."""
    if host.run("docker", "image", "inspect", tag, check=False).returncode == 0:
        return
    images.install_packages("gcc", "libc6-dev")
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for name, place in _COMPILED.items():
            files[place] = f"{folder}/{name}.so"
            compile_trap(name, files[place])
        for name, options in _AUDITED.items():
            files[f"/trap/{name}"] = f"{folder}/{name}"
            compile_program(files[f"/trap/{name}"], *options)
        texts = {place: text.format(out=OUT, name=name) for name, (place, text) in _TEXTS.items()}
        for index, (place, text) in enumerate({**texts, **_SETTINGS}.items()):
            files[place] = f"{folder}/{index}"
            Path(files[place]).write_text(text)
            os.chmod(files[place], 0o755)
        files["/usr/share/locale/xx/LC_MESSAGES/coreutils.mo"] = f"{folder}/mo"
        Path(f"{folder}/mo").write_bytes(_make_catalogue({b"cannot access %s": b"evil: %s"}))
        # The package's cache does not know the trap's module. A hostile container's root would make a new cache.
        files[f"{_LIBRARIES}/gconv/gconv-modules.cache"] = "/dev/null"
        make_image(tag, packages=list(_PACKAGES), files=files, cmd=["/bin/sleep", "100000"], shells=True)


def compile_trap(name: str, path: str, compiler: str = "gcc") -> None:
    """Make the library PATH, which leaves the file NAME when it is loaded."""
    source = os.path.join(os.path.dirname(__file__), "trap.c")
    subprocess.run([compiler, "-shared", "-fPIC", f'-DNAME="{name}"', "-o", path, source], check=True)


def compile_program(path: str, *options: str, compiler: str = "gcc") -> None:
    """Make the program PATH, which loads the library that its argument names. OPTIONS are the compiler's."""
    source = os.path.join(os.path.dirname(__file__), "load.c")
    subprocess.run([compiler, "-o", path, source, *options], check=True)


def _make_catalogue(messages: dict[bytes, bytes]) -> bytes:
    """Return a file of translations in gettext's format."""
    pairs = sorted({b"": b"Content-Type: text/plain; charset=UTF-8\n", **messages}.items())
    start = 28 + 16 * len(pairs)
    tables: list[list[bytes]] = [[], []]
    data = b""
    for side in (0, 1):
        for pair in pairs:
            tables[side].append(struct.pack("<II", len(pair[side]), start + len(data)))
            data += pair[side] + b"\0"
    head = struct.pack("<7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0)
    return head + b"".join(tables[0] + tables[1]) + data


def make_script(folders: str) -> str:
    """Return a bash script that springs the traps with the programs in FOLDERS, which are separated by blanks."""
    return f"FOLDERS='{folders}'\n{_SPRINGS}"


# Python, and programs that embed it, would search these folders above them for a library that the image lacks. The container's own Python
# searches /usr/lib, too.
_ABOVE = ("/dev/lib", "/lib", "/usr/lib")
LIBRARY = "python-library"


def lay_libraries(container: str) -> None:
    """Put Python libraries that are traps into all folders above the tools of CONTAINER: as archives, as files, as lib-dynload."""
    # The modules that Python imports first are enough. At that time open() is not defined yet.
    code = f"import posix\nposix.close(posix.open('{OUT}/{LIBRARY}', posix.O_CREAT | posix.O_WRONLY))\n"
    names = ("encodings/__init__", "codecs", "io", "os", "site", "json/__init__", "zipfile", "_json")
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(f"{folder}/python311.zip", "w") as archive:
            for name in names:
                archive.writestr(f"{name}.py", code)
        for name in names:
            for place in (f"python3.11/{name}.py", f"python3.11/lib-dynload/{name}.py"):
                path = Path(folder, place)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(code)
        pack = subprocess.run(["tar", "-C", folder, "-c", "."], capture_output=True, check=True).stdout
    top = Path(f"/proc/{host.find_pid(container)}/root")
    for above in _ABOVE:
        (top / above[1:]).mkdir(parents=True, exist_ok=True)
        subprocess.run(["tar", "-C", str(top / above[1:]), "-x"], input=pack, check=True)


NAMES = frozenset({*_COMPILED, *_TEXTS, "inputrc", "catalogue", "magic"})


def list_sprung(container: str) -> dict[str, str]:
    """Return the traps of CONTAINER that were sprung since the last call, each with its note on the program, and remove the notes."""
    folder = Path(f"/proc/{host.find_pid(container)}/root{OUT}")
    sprung = {}
    for path in sorted(folder.iterdir()):
        sprung[path.name] = path.read_text(errors="replace")
        path.unlink()
    return sprung
