# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a small system with a shell for `docker import` from Debian's static busybox, since no registry can be reached."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile

_APPLETS = (
    *("cat", "chmod", "echo", "false", "id", "ls", "mkdir", "mkfifo", "mount", "rm", "sh", "sleep", "touch", "true"),
    "umount",
)
_FILES = {
    "etc/passwd": "root:x:0:0::/root:/bin/sh\napp:x:1234:1235::/home/app:/bin/sh\n",
    "etc/group": "root:x:0:\napp:x:1235:\nlogs:x:1300:app\n",
}


def find_busybox() -> str:
    """Return the path of this machine's busybox. Raises AssertionError where it is not installed."""
    path = shutil.which("busybox")
    assert path, "install busybox-static"
    return path


def make_archive() -> bytes:
    """Return a tar archive of the system: busybox with links for its applets, root, and a user called app (1234:1235, 1300)."""
    with tempfile.TemporaryDirectory() as tree:
        for name in ("bin", "etc"):
            os.mkdir(f"{tree}/{name}")
        os.mkdir(f"{tree}/tmp")
        os.chmod(f"{tree}/tmp", 0o1777)
        shutil.copy(find_busybox(), f"{tree}/bin/busybox")
        for name in _APPLETS:
            os.symlink("busybox", f"{tree}/bin/{name}")
        for path, text in _FILES.items():
            with open(f"{tree}/{path}", "w", encoding="ascii") as file:
                file.write(text)
        return subprocess.run(
            ["tar", "-C", tree, "--owner=0", "--group=0", "-cf", "-", "."], capture_output=True, check=True
        ).stdout
