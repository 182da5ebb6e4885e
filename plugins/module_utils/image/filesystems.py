# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pack a tree into a file system image that a host can mount. This needs neither root nor a mount.

All files get the same owner and time, and identifiers are fixed, so that the bytes of the image depend on the content alone.
"""

from __future__ import annotations

import math
import os
import subprocess

from ansible_collections.crashcart.fleet.plugins.module_utils.image.errors import BuildError

# The first day of 1980, in seconds since the epoch. Zero means to some programs that a file has no time.
FILE_TIME = 315532800
_UUID = "63726173-6863-4172-8074-000000000000"
_EXT4_BLOCK = 4096
_EXT4_INODE = 256
_EXT4_FEATURES = "^has_journal,^resize_inode,^metadata_csum,^dir_index,^orphan_file"

# Format → the program that makes it and its Debian package.
PROGRAMS = {
    "squashfs": ("mksquashfs", "squashfs-tools"),
    "erofs": ("mkfs.erofs", "erofs-utils"),
    "ext4": ("mke2fs", "e2fsprogs"),
}


def make(tree: str, image: str, kind: str) -> None:
    """Write TREE to the file IMAGE as a file system of KIND: squashfs, erofs or ext4. Raises BuildError when that fails."""
    _set_times(tree)
    {"squashfs": _make_squashfs, "erofs": _make_erofs, "ext4": _make_ext4}[kind](tree, image)


def _set_times(tree: str) -> None:
    for folder, folders, files in os.walk(tree, topdown=False):
        # os.walk lists symlinks to folders among the folders and does not enter them.
        for path in [*(os.path.join(folder, name) for name in (*files, *folders)), folder]:
            os.utime(path, (FILE_TIME, FILE_TIME), follow_symlinks=False)


def _make_squashfs(tree: str, image: str) -> None:
    times = ["-all-time", str(FILE_TIME), "-mkfs-time", str(FILE_TIME)]
    options = ["-noappend", "-all-root", "-no-xattrs", *times, "-no-progress", "-quiet"]
    _run("mksquashfs", tree, image, "-comp", "zstd", "-Xcompression-level", "14", "-b", "256K", *options)


def _make_erofs(tree: str, image: str) -> None:
    # -x-1: no extended attributes; -C65536: clusters of 64 KiB.
    options = ["-zlz4hc,12", "-C65536", "-x-1", "--all-root", f"-T{FILE_TIME}", f"-U{_UUID}", "--quiet"]
    _run("mkfs.erofs", *options, image, tree)


def _make_ext4(tree: str, image: str) -> None:
    inodes = blocks = 0
    for folder, folders, files in os.walk(tree):
        inodes += 1 + len(files) + sum(os.path.islink(os.path.join(folder, name)) for name in folders)
        names = len(files) + len(folders)
        blocks += 1 + names * 300 // _EXT4_BLOCK
        for name in files:
            blocks += math.ceil(os.lstat(os.path.join(folder, name)).st_size / _EXT4_BLOCK)
    last = 11 + inodes  # 11 is lost+found, the first inode that is not reserved
    inodes += 64
    # The margin holds the tables of inodes and groups. Unused blocks are holes in the file.
    size = blocks + math.ceil(inodes * _EXT4_INODE / _EXT4_BLOCK) + blocks // 50 + 1024
    _run(
        *("mke2fs", "-q", "-t", "ext4", "-d", tree, "-O", _EXT4_FEATURES, "-m", "0", "-b", str(_EXT4_BLOCK)),
        *("-I", str(_EXT4_INODE), "-N", str(inodes), "-U", _UUID, "-L", "crashcart"),
        *(
            "-E",
            f"hash_seed={_UUID},lazy_itable_init=0,root_owner=0:0,nodiscard",
            image,
            f"{size * _EXT4_BLOCK // 1024}k",
        ),
        E2FSPROGS_FAKE_TIME=str(FILE_TIME),
    )
    # mke2fs copies values that this build cannot set in the tree: ctime, a folder's atime, and, without root, the owner.
    values = {"atime": f"@{FILE_TIME}", "ctime": f"@{FILE_TIME}", "uid": "0", "gid": "0"}
    commands = "".join(
        f"set_inode_field <{number}> {field} {value}\n"
        for number in (2, *range(11, last + 1))
        for field, value in values.items()
    )
    _run("debugfs", "-w", "-f", "-", image, stdin=commands, E2FSPROGS_FAKE_TIME=str(FILE_TIME))


def _run(*command: str, stdin: str = "", **variables: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={**environment, **variables},
    )
    if done.returncode != 0:
        raise BuildError(f"{command[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
