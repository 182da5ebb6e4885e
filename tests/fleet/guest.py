# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the disk, the kernel and the initial ramdisk of a guest with a release of Debian from packages. This needs root, and mounts nothing here.

The packages come from the sources of this machine's apt, by a separate apt of the guest.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

import processes

USER = "crashcart-test"  # the unprivileged login, which may use sudo
RELEASE = "bookworm"  # of this machine, whose sources of packages serve for the other releases
UNSTABLE = "sid"
_PACKAGES = (
    *(
        "systemd-sysv",
        "dbus",
        "udev",
        "kmod",
        "iproute2",
        "iptables",
        "procps",
        "openssh-server",
        "sudo",
        "ca-certificates",
    ),
    *("docker.io", "podman", "crun", "python3", "python3-docker", "python3-jmespath"),
    # For rootless Podman and Docker in a session of their user; runtimes without an engine; the program that loads Docker's AppArmor profile.
    *("uidmap", "rootlesskit", "slirp4netns", "dbus-user-session", "systemd-container", "lxc", "apparmor"),
)
_DOWNLOAD = """\
cd /var/tmp
kernel=$(apt-cache depends linux-image-cloud-amd64 | grep -o "linux-image-[0-9].*")
# Later releases have parts of the kernel in packages of their own.
apt-get download $kernel $(apt-cache depends $kernel | grep -oE "linux-(base|binary|modules)-[0-9].*")
"""
# The guest needs these modules before it has its disk. Modules that these depend on are added.
_EARLY_MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "ext4")
# These units take time in an emulated guest and help no test. Units that a role or a test may need (udev, logind, tmpfiles) stay.
_MASKED = (
    *(
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
        "dpkg-db-backup.timer",
        "e2scrub_all.timer",
        "e2scrub_reap.service",
    ),
    *(
        "fstrim.timer",
        "getty.target",
        "systemd-remount-fs.service",
        "systemd-random-seed.service",
        "systemd-binfmt.service",
    ),
    *("systemd-pcrphase.service", "systemd-pcrphase-sysinit.service", "systemd-udev-settle.service"),
    *(
        "systemd-hwdb-update.service",
        "podman-restart.service",
        "podman-auto-update.timer",
        "podman-auto-update.service",
    ),
    *("modprobe@efi_pstore.service", "modprobe@drm.service", "modprobe@dm_mod.service", "modprobe@configfs.service"),
    *("lxc.service", "lxc-net.service"),  # a bridge and a name server that no test uses
    "apparmor.service",  # loads dozens of profiles; Docker loads its own profile itself
)
# Only tests start it. Otherwise each call of a module would wake it, which takes a second.
_DISABLED = ("podman.service", "podman.socket")
# Ansible sends a module's code as a zip archive, which Python compiles at each call. On an emulated processor that takes a third of a call's
# time. So the guest's Python keeps the compiled code of each source in such an archive by the source's hash. The code is the same.
_CODE = "/var/cache/python-code"
_KEEP_CODE = f"""\
import zipimport

_compile = zipimport._compile_source


def _compile_once(pathname, source):
    import hashlib, marshal, os

    path = "{_CODE}/" + hashlib.sha256(pathname.rpartition(".zip")[2].encode() + source).hexdigest()
    try:
        with open(path, "rb") as file:
            return marshal.loads(file.read())
    except (OSError, ValueError, EOFError):  # also a file that a power cut has damaged
        code = _compile(pathname, source)
    if os.geteuid() == 0:
        with open(f"{{path}}.{{os.getpid()}}", "wb") as file:
            file.write(marshal.dumps(code))
        os.rename(file.name, path)
    return code


zipimport._compile_source = _compile_once
"""
_FILES = {
    "etc/hostname": "golden\n",
    "etc/hosts": "127.0.0.1 localhost golden\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\n",  # no time-outs of a missing name server
    "etc/fstab": "",
    "etc/resolv.conf": "",
    # Lines in the journal for each command would take longer than sudo itself.
    "etc/sudoers.d/fleet": f"{USER} ALL=(ALL) NOPASSWD: ALL\nDefaults !syslog, !pam_session, env_file=/etc/environment\n",
    "etc/environment": "DOCKER_TIMEOUT=600\n",  # emulated engines are slow
    # Containers have no network, and Docker would start a process for each rule.
    "etc/docker/daemon.json": '{"bridge": "none", "iptables": false, "ip6tables": false, "storage-driver": "overlay2"}\n',
    "etc/containerd/config.toml": 'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n',
    "etc/systemd/journald.conf.d/fleet.conf": "[Journal]\nStorage=volatile\n",
    "etc/ssh/sshd_config.d/fleet.conf": "UsePAM no\nUseDNS no\nPasswordAuthentication no\nMaxStartups 100\n"
    "HostKey /etc/ssh/ssh_host_ed25519_key\n",
}
_INIT = """\
#!/bin/sh
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs devtmpfs /dev
for module in $(busybox cat /modules/order); do busybox insmod /modules/$module; done
busybox ip address add 10.0.2.15/24 dev eth0
busybox ip link set eth0 up
busybox ip route add default via 10.0.2.2
until [ -b /dev/vda ]; do busybox sleep 0.1; done
busybox mount -t ext4 -o rw /dev/vda /root
for folder in dev proc sys; do busybox mount --move /$folder /root/$folder; done
exec busybox switch_root /root /sbin/init
"""


def build(folder: Path, public_key: str, release: str = RELEASE) -> None:
    """Make disk.qcow2, vmlinuz, initrd and host_key.pub in FOLDER, for a guest of RELEASE that the owner of PUBLIC_KEY can log in to."""
    tree = folder / "tree"
    try:
        _unpack_packages(tree, release)
        kernel = _take_kernel(tree, folder)
        _configure(tree, public_key)
        shutil.copy(tree / "etc/ssh/ssh_host_ed25519_key.pub", folder / "host_key.pub")
        _make_initrd(tree, kernel, folder)
        _make_disk(tree, folder)
    finally:
        shutil.rmtree(tree, ignore_errors=True)


def run(*command: str | Path, stdin: str = "") -> str:
    """Run COMMAND, which ends with the calling thread, and return its output. Raises RuntimeError when it fails."""
    done = subprocess.run(processes.bind([*command]), capture_output=True, text=True, check=False, input=stdin)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: rc {done.returncode}\n{done.stdout}\n{done.stderr}")
    return str(done.stdout)


def list_sources(release: str = RELEASE) -> list[str]:
    """Return the lines of a sources.list for RELEASE: this machine's sources with that name. Raises RuntimeError for none."""
    fields = "$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN) $(CODENAME)"
    lines = []
    for line in run("apt-get", "indextargets", "--format", fields, "Created-By: Packages").splitlines():
        uri, suite, component, origin, codename = line.split(" ")
        has_suite = suite == RELEASE or release != UNSTABLE  # which has no updates
        if origin == "Debian" and codename.startswith(RELEASE) and "backports" not in codename and has_suite:
            lines.append(f"deb {uri} {suite.replace(RELEASE, release)} {component}")
    if not lines:
        raise RuntimeError(f"apt knows no source of Debian {RELEASE} on this machine: run apt-get update")
    return lines


def make_bootstrap_command(release: str, packages: Sequence[str], target: Path, *options: str) -> list[str | Path]:
    """Return the command that makes the root folder TARGET, or an archive of it, of RELEASE with PACKAGES; its stdin is a sources.list."""
    client = () if release == RELEASE else ("docker-cli",)  # which docker.io of this machine's release holds itself
    return [
        # The namespaces hide mmdebstrap's mounts, and end it with all its processes should this process be killed.
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *("mmdebstrap", "--mode=root", "--variant=minbase", "--quiet", f"--include={','.join((*packages, *client))}"),
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")),
        # A mirror may be some weeks behind, and the unstable release's index is valid for one.
        *(('--aptopt=Acquire::Check-Valid-Until "false"',) if release == UNSTABLE else ()),
        *(*options, release, target, "-"),
    ]


def _unpack_packages(tree: Path, release: str) -> None:
    # The kernel's package is not installed, since its maintainer scripts would build an initrd that the guest does not use.
    download = f"--customize-hook=chroot \"$1\" sh -c '{_DOWNLOAD}'"
    command = make_bootstrap_command(release, _PACKAGES, tree, "--format=directory", download)
    run(*command, stdin="\n".join(list_sources(release)) + "\n")


def _take_kernel(tree: Path, folder: Path) -> str:
    """Move the downloaded kernel's image to FOLDER and its modules into TREE, and return its release."""
    unpacked = folder / "kernel"
    for package in (tree / "var/tmp").glob("linux-*.deb"):
        run("dpkg-deb", "-x", package, unpacked)
        package.unlink()
    (modules,) = (path for top in ("lib", "usr/lib") for path in (unpacked / top / "modules").glob("*"))
    release = modules.name
    boot = unpacked / "boot"
    if boot.exists():
        shutil.copy(boot / f"vmlinuz-{release}", folder / "vmlinuz")
        shutil.copy(boot / f"config-{release}", tree / "boot")
    else:
        shutil.copy(modules / "vmlinuz", folder / "vmlinuz")
    (tree / "usr/lib/modules").mkdir(exist_ok=True)
    shutil.move(modules, tree / "usr/lib/modules")
    shutil.rmtree(unpacked)
    run("chroot", tree, "depmod", release)
    return release


def _configure(tree: Path, public_key: str) -> None:
    for name, text in _FILES.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)
    (tree / "etc/sudoers.d/fleet").chmod(0o440)
    (python,) = (tree / "etc").glob("python3.*")
    (python / "sitecustomize.py").write_text(_KEEP_CODE)
    # An empty file would mean a first boot, at which systemd applies presets.
    (tree / "etc/machine-id").write_text(uuid.uuid4().hex + "\n")
    (tree / _CODE[1:]).mkdir()
    run("chroot", tree, "systemctl", "mask", "--quiet", *_MASKED)
    run("chroot", tree, "systemctl", "disable", "--quiet", *_DISABLED)
    run("chroot", tree, "update-alternatives", "--set", "iptables", "/usr/sbin/iptables-legacy")
    run("chroot", tree, "useradd", "--create-home", "--shell", "/bin/bash", "--password", "*", USER)
    for home, owner in (("root", "root"), (f"home/{USER}", USER)):
        keys = tree / home / ".ssh/authorized_keys"
        keys.parent.mkdir(mode=0o700, exist_ok=True)
        keys.write_text(public_key)
        run("chroot", tree, "chown", "-R", f"{owner}:", f"/{home}/.ssh")


def _make_initrd(tree: Path, release: str, folder: Path) -> None:
    modules = tree / "usr/lib/modules" / release
    order = order_modules(modules, _EARLY_MODULES)
    top = folder / "initrd.tree"
    for name in ("bin", "dev", "modules", "proc", "root", "sys"):
        (top / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox, "install busybox-static"
    shutil.copy(busybox, top / "bin/busybox")
    (top / "bin/sh").symlink_to("busybox")
    # busybox's insmod reads no compressed module.
    for path in order:
        opened = lzma.open(modules / path) if path.endswith(".xz") else open(modules / path, "rb")
        with opened as source, open(top / "modules" / _name(path), "wb") as target:
            shutil.copyfileobj(source, target)
    (top / "modules/order").write_text(" ".join(map(_name, order)))
    (top / "init").write_text(_INIT)
    (top / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(top)) for path in sorted(top.rglob("*")))
    with open(folder / "initrd", "wb") as file:
        subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], cwd=top, input=names.encode(), stdout=file, check=True)
    shutil.rmtree(top)


def order_modules(modules: Path, names: Sequence[str]) -> list[str]:
    """Return the files of the modules called NAMES and of those that they depend on, in the order of loading.

    MODULES is the folder with depmod's lists.
    """
    needs: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _colon, rest = line.partition(":")
        needs[path] = rest.split()
    builtin = {_name(line) for line in (modules / "modules.builtin").read_text().split()}
    order: list[str] = []
    for name in names:
        if f"{name}.ko" in builtin:
            continue
        (path,) = (path for path in needs if _name(path) == f"{name}.ko")
        # depmod lists the module that has to be loaded first at the end.
        order += [one for one in [*reversed(needs[path]), path] if one not in order]
    return order


def _name(path: str) -> str:
    """Return the name of the module in the file PATH, in the one form of several, with the ending .ko."""
    return re.sub(r"\.xz\Z", "", os.path.basename(path)).replace("-", "_")


def _make_disk(tree: Path, folder: Path) -> None:
    raw = folder / "disk.raw"
    with open(raw, "wb") as file:
        file.truncate(4 << 30)
    run("mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-d", tree, raw)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, folder / "disk.qcow2")
    raw.unlink()
