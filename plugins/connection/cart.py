# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection that runs any Ansible task inside a container, by a program that it starts over another connection to the host."""

from __future__ import annotations

DOCUMENTATION = r"""
name: cart
short_description: Run any Ansible task inside a container that has no shell and no Python
version_added: 0.1.0
author:
  - crashcart.fleet contributors (@crashcart-fleet)
description:
  - Reaches the container's host by ssh, or directly where the controller is the host. Tasks run inside the container with the Python
    and the shell of a tool image, which M(crashcart.fleet.crashcart_image) has put on the host.
  - Tasks see the container's own files and processes unchanged. Nothing is put into the container's file system. Temporary files are in
    a separate file system in the host's memory that only these tasks see.
  - Commands run in the container's control groups and namespaces, as M(crashcart.fleet.crashcart_exec) runs them. Without become they
    run as the user of the container's first process. O(rights) says what else they may do.
  - C(become) and C(become_user), whether of a play, a task, the command line or C(ansible_become) and C(ansible_become_user), change the
    user inside the container. This is one system call, and needs neither a method nor a password nor a program of the container. Groups and
    C(HOME) are the same as with C(docker exec --user), see O(crashcart.fleet.crashcart_exec#module:user).
  - Before that the connection becomes the host's root, unless the login is root's. The become method and the password are for this step,
    whether they come from the command line (C(--become-method), C(-K)), the configuration or variables (C(ansible_become_method),
    C(ansible_become_password), C(ansible_become_flags)). The keyword C(become_method) of plays and tasks has no effect.
notes:
  - Values of C(ansible_become) and C(ansible_become_user) in the group C(all) hold inside containers, too, and beat the keywords. Set them
    for groups of hosts only.
  - Set C(ansible_python_interpreter) to C(/dev/crashcart/bin/python3), or let Ansible discover it anew in every play.
  - Variables of the connection to the host, such as C(ansible_port) or C(ansible_ssh_common_args), keep their meaning.
  - The arguments of processes, which every user of the host can read, do not hold a task's command line and its C(environment) until a
    program is started with them.
  - Tasks with C(async) are refused, since all processes end with their call.
  - C(TMPDIR) is a folder that is removed with the task, so M(ansible.builtin.tempfile) needs its O(ansible.builtin.tempfile#module:path).
options:
  container:
    description:
      - The container's name or id on its host, in the form of the modules' O(crashcart.fleet.crashcart_exec#module:containers).
      - It has to be set, and to mean one container. Use a glob for a name that changes, such as a pod's. A glob that several running
        containers match is an error.
    type: str
    vars:
      - name: ansible_cart_container
  image:
    description: The tool image to use where none is attached. By default C(default).
    type: str
    vars:
      - name: ansible_cart_image
  rights:
    description:
      - The rights of tasks, as in O(crashcart.fleet.crashcart_exec#module:rights). With V(host) tasks are the host's root without become.
      - The container's own programs that a task runs have these rights, too, such as the command of M(ansible.builtin.command), or the local
        facts and programs by which M(ansible.builtin.setup) gathers facts. Only the program that is started first is checked, which is
        the image's shell. So use V(host) for containers that you trust, or with C(gather_facts=false) for programs of the image.
    type: str
    choices: [container, tools, host]
    default: tools
    vars:
      - name: ansible_cart_rights
  trust_container:
    description: Whether O(rights=host) is allowed with an unsealed image, see O(crashcart.fleet.crashcart_exec#module:trust_container).
    type: bool
    default: false
    vars:
      - name: ansible_cart_trust_container
  confined:
    description: The old name for O(rights=container).
    type: bool
    default: false
    deprecated:
      why: The option rights has three choices.
      version: 0.2.0
      collection_name: crashcart.fleet
      alternatives: ansible_cart_rights=container
    vars:
      - name: ansible_cart_confined
  docker_host:
    description:
      - URL of the only Docker engine to ask. By default every runtime of the host is asked. For hosts of the plugin
        P(crashcart.fleet.containers#inventory) the playbooks' variable C(crashcart_docker_host) counts, too.
      - E(DOCKER_HOST), E(DOCKER_CONTEXT), E(DOCKER_TLS_VERIFY) and E(DOCKER_CERT_PATH) come from root's environment on the host, as C(sudo)
        leaves it. A task's C(environment) is for the inside.
    type: str
    vars:
      - name: ansible_cart_docker_host
  link:
    description: The connection to the host. By default V(local) where the host's name or address is C(localhost), V(ssh) elsewhere.
    type: str
    choices: [ssh, local]
    vars:
      - name: ansible_cart_link
  host:
    description: The container's host.
    type: str
    default: inventory_hostname
    vars:
      - name: inventory_hostname
      - name: ansible_host
  remote_user:
    description: The user to log in as on the host.
    type: str
    vars:
      - name: ansible_user
      - name: ansible_ssh_user
    keyword:
      - name: remote_user
  become_user:
    description: The user of a task with become inside the container, in the form of O(crashcart.fleet.crashcart_exec#module:user).
    type: str
    default: root
    vars:
      - name: ansible_become_user
    keyword:
      - name: become_user
  host_become:
    description: Whether to become root on the host. By default true unless the login is root's.
    type: bool
    vars:
      - name: ansible_cart_become
  host_become_method:
    description: The become plugin for the host. Its own variables, such as C(ansible_become_flags) or C(ansible_sudo_exe), keep their meaning.
    type: str
    default: sudo
    vars:
      - name: ansible_become_method
      - name: ansible_cart_become_method
    cli:
      - name: become_method
    env:
      - name: ANSIBLE_BECOME_METHOD
    ini:
      - section: privilege_escalation
        key: become_method
  host_become_password:
    description: The password for O(host_become_method). By default the password of C(-K) or C(--become-password-file).
    type: str
    vars:
      - name: ansible_become_pass
      - name: ansible_become_password
      - name: ansible_cart_become_password
  scratch_size:
    description:
      - Maximum size of the temporary files of one connection, with the modules and files that it transfers.
      - The files are in the host's memory (a tmpfs), and count for the container's control group.
    type: str
    default: 512MiB
    vars:
      - name: ansible_cart_scratch_size
  python:
    description: Python on the host. It needs the Docker SDK for containers of Docker.
    type: str
    default: python3
    vars:
      - name: ansible_cart_python
  pipelining:
    description: Whether modules are sent through standard input, without a file.
    type: bool
    default: true
    vars:
      - name: ansible_pipelining
      - name: ansible_cart_pipelining
"""

EXAMPLES = r"""
# In an inventory: two containers of web1 as hosts of their own
all:
  children:
    containers:
      vars:
        ansible_connection: crashcart.fleet.cart
        ansible_python_interpreter: /dev/crashcart/bin/python3
      hosts:
        api@web1:
          ansible_host: web1
          ansible_cart_container: api
        db@web1:
          ansible_host: web1
          ansible_cart_container: db
"""

import copy
import functools
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import stat
import tempfile
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from ansible import constants
from ansible.errors import AnsibleConnectionFailure, AnsibleError, AnsibleFileNotFound
from ansible.plugins.connection import ConnectionBase
from ansible.plugins.loader import become_loader, connection_loader
from ansible.utils.display import Display

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute import connection_entry
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape, escape_lines
from ansible_collections.crashcart.fleet.plugins.module_utils.units import parse_bytes

display = Display()

_LIBRARY = "/run/crashcart/lib"
_LOCAL_HOST = "localhost"  # an address such as 127.0.0.1 may be the controller's end of a tunnel
_IN_ONE_PIECE = 1 << 20  # bytes; larger files go through a file on the host, as a stream
_MODULE_UTILS = f"{connection_entry.__file__.rpartition('/module_utils/')[0]}/module_utils"
# A command with its secrets travels in a variable, which only its own user can read. Every user of the host can read arguments.
_COMMAND = "CRASHCART_COMMAND"
_EVALUATE = f'eval "unset {_COMMAND}; ${_COMMAND}"'
# Connection plugins use one of these words in an error where become fails.
_BECOME_FAILED = re.compile(r"privilege escalation|become (success|password)|(Incorrect|Missing) \S+ password")
_MISSING = "crashcart: the program is not there"
# The host's Python runs this to unpack the archive from its stdin. A folder of files, since Python keeps no compiled files of an archive.
# The owner of the folder could replace the code that root runs. So the folder has to be root's own.
_UNPACK = (
    "import io, os, shutil, stat, sys, zipfile; place = sys.argv[1]; part = f'{place}.{os.getpid()}'; os.umask(0o77)\n"
    "library = os.path.dirname(place); os.makedirs(library, exist_ok=True)\n"
    "for folder in (os.path.dirname(library), library, *([place] if os.path.lexists(place) else [])):\n"
    "    found = os.lstat(folder)\n"
    "    if found.st_uid != os.geteuid() or not stat.S_ISDIR(found.st_mode):\n"
    "        raise SystemExit(f'{folder} is no folder of user {os.geteuid()}: look at it, and remove it')\n"
    "    os.chmod(folder, 0o700)\n"
    "zipfile.ZipFile(io.BytesIO(sys.stdin.buffer.read())).extractall(part)\n"
    "try: os.rename(part, place)\n"
    "except OSError: shutil.rmtree(part)"  # another connection was faster
)


class Connection(ConnectionBase):
    """A connection that runs tasks inside a container, over another connection to the container's host."""

    transport = "crashcart.fleet.cart"
    has_pipelining = True
    has_tty = False

    def __init__(self, play_context: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(play_context, *args, **kwargs)
        self._connected = False
        self._is_become_inside = False
        self._host_become: Any = None
        self._link: Any = None
        self._token = f"crashcart-{uuid.uuid4().hex}:"
        self._scratch = uuid.uuid4().hex
        self._is_scratch_kept = False
        self._link_context = copy.copy(play_context)
        # Modules that need a shell also get the image's, so that a container needs none.
        play_context.executable = f"{connection_entry.PREFIX}/bin/sh"
        # Ansible asks the shell plugin for the folder of temporary files. Here no user may choose it: it must not be in the container.
        plain_option = self._shell.get_option
        self._shell.get_option = lambda name, *rest: (
            connection_entry.SCRATCH_PATH if name == "remote_tmp" else plain_option(name, *rest)
        )

    def set_become_plugin(self, plugin: Any) -> None:
        """Remember whether the task has become. Inside the container that is one system call, and PLUGIN does not wrap the command."""
        self._is_become_inside = plugin is not None

    def _resolve_option_variables(self, variables: dict[str, Any], templar: Any) -> dict[str, Any]:
        """Return the variables of the options, and those of the host's connection and become plugin, which set_options hands on."""
        found: dict[str, Any] = super()._resolve_option_variables(variables, templar)
        super().set_options(var_options=found)
        for name in self.list_host_variables():
            if name in variables:
                found[name] = templar.template(variables[name])
        return found

    def list_host_variables(self) -> list[str]:
        """Return the names of the variables of the connection to the host and of its become plugin.

        Raises AnsibleError where `host_become_method` names no become plugin.
        """
        connection_loader.get("ssh", class_only=True)  # Ansible learns the variables when it loads the plugin
        method = self.get_option("host_become_method")
        if become_loader.get(method, class_only=True) is None:
            raise AnsibleError(f"there is no become plugin {method!r}; `ansible-doc -t become -l` lists them")
        names = constants.config.get_plugin_vars("become", method)
        # Variables that name a user are for the inside: on the host the user is always root.
        become = ["ansible_become_method", *(name for name in names if not name.endswith("_user"))]
        return [*constants.config.get_plugin_vars("connection", "ssh"), *become]

    def set_options(self, task_keys: Any = None, var_options: Any = None, direct: Any = None) -> None:
        """Set the options, and make the connection to the host with its own options."""
        super().set_options(task_keys=task_keys, var_options=var_options, direct=direct)
        name = self.get_option("link") or ("local" if self.get_option("host") == _LOCAL_HOST else "ssh")
        self._link = connection_loader.get(name, self._link_context)
        self._link.set_options(task_keys=task_keys, var_options=var_options)
        if name == "ssh":
            self._link.set_option("use_tty", False)  # a terminal would change bytes, and mix stdout with stderr
        else:
            # Without pipelining the stdin of sudo or su would be a terminal, which cannot carry the data.
            self._link.set_option("pipelining", True)
        self._host_become = None
        if self.must_become_on_host():
            password = self.get_option("host_become_password") or self._play_context.become_pass
            options = {"become_user": "root", **({"become_pass": password} if password else {})}
            self._host_become = become_loader.get(self.get_option("host_become_method"))
            self._host_become.set_options(var_options=var_options, direct=options)
            self._link.set_become_plugin(self._host_become)

    def must_become_on_host(self) -> bool:
        """Return True if the connection has to become root on the host."""
        wanted = self.get_option("host_become")
        if wanted is None:
            is_root = os.geteuid() == 0 if self._link.transport == "local" else self.get_option("remote_user") == "root"
            return not is_root
        return bool(wanted)

    def _connect(self) -> Connection:
        if not self._connected:
            self._link._connect()
            self._connected = True
        return self

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        """Run the shell command CMD in the container and return its exit code, stdout and stderr.

        Raises AnsibleError for a task with async, and where the container cannot be entered.
        """
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        if "ANSIBLE_ASYNC_DIR=" in cmd:
            raise AnsibleError(
                "a task with async does not work in a container, where everything ends with its call: run it without, or give its"
                " program to crashcart_exec on the host, with async there"
            )
        return self._enter(["sh", "-c", _EVALUATE], in_data, env={_COMMAND: self._unwrap(cmd)})

    def _unwrap(self, command: str) -> str:
        """Return COMMAND without the shell that Ansible puts before it, since _enter starts a shell already."""
        try:
            words = shlex.split(command)
        except ValueError:
            return command
        if len(words) == 3 and words[:2] == [self._play_context.executable, "-c"]:
            return words[2]
        return command

    def put_file(self, in_path: str, out_path: str) -> None:
        """Copy the controller's file IN_PATH to OUT_PATH in the container."""
        super().put_file(in_path, out_path)
        try:
            size = os.path.getsize(in_path)
        except OSError as error:
            raise AnsibleFileNotFound(f"file {in_path} cannot be read: {error}") from error
        write = ["sh", "-c", 'cat > "$0"', out_path]
        if self._link.transport == "local":
            # The host's program does not follow links, since on other hosts another user may have replaced the file. So links end here.
            self._check(self._enter(write, source=os.path.realpath(in_path)), out_path)
        elif 0 < size <= _IN_ONE_PIECE:
            with open(in_path, "rb") as file:
                self._check(self._enter(write, file.read()), out_path)
        else:
            stage = self._make_stage()
            try:
                self._link.put_file(in_path, stage)
                self._check(self._enter(write, source=stage), out_path)
            finally:
                self._remove_stage(stage)

    def fetch_file(self, in_path: str, out_path: str) -> None:
        """Copy the container's file IN_PATH to OUT_PATH on the controller."""
        super().fetch_file(in_path, out_path)
        read = ["cat", in_path]
        with _replacing(out_path) as part:
            if self._link.transport == "local":
                self._check(self._enter(read, sink=part), in_path)
                return
            stage = self._make_stage()
            try:
                self._check(self._enter(read, sink=stage), in_path)
                self._link.fetch_file(stage, part)
            finally:
                self._remove_stage(stage)

    def _check(self, outcome: tuple[int, bytes, bytes], path: str) -> None:
        rc, _stdout, stderr = outcome
        if rc != 0:
            container = self.get_option("container")
            raise AnsibleError(f"{path} in container {container}: {_read_words(stderr) or f'exit code {rc}'}")

    def _make_stage(self) -> str:
        """Make a new empty file of the login user on the host and return its path."""
        rc, stdout, stderr = self._link.exec_command("umask 77 && mktemp", sudoable=False)
        path = str(stdout.decode("utf-8", "replace").strip())
        if rc != 0 or not path.startswith("/"):
            raise AnsibleError(f"the host has no place for a temporary file: {_read_words(stderr)}")
        return path

    def _remove_stage(self, path: str) -> None:
        self._link.exec_command(f"rm -f {shlex.quote(path)}", sudoable=False)

    def _enter(
        self,
        argv: list[str],
        in_data: bytes | None = None,
        source: str = "",
        sink: str = "",
        env: dict[str, str] | None = None,
    ) -> tuple[int, bytes, bytes]:
        """Run ARGV with ENV in the container and return exit code, stdout and stderr; SOURCE and SINK are files of the host."""
        if not self.get_option("container"):
            raise AnsibleError("say which container: set ansible_cart_container to its name or id")
        env = env or {}
        keep = any(connection_entry.SCRATCH_PATH in word for word in [*argv, *env.values()])
        self._is_scratch_kept = self._is_scratch_kept or keep
        order = connection_entry.Order(
            token=self._token,
            container=str(self.get_option("container")),
            argv=argv,
            env=env,
            image=self.get_option("image"),
            docker_host=self.get_option("docker_host"),
            user=self.get_option("become_user") if self._is_become_inside else None,
            scratch=self._scratch,
            scratch_bytes=parse_bytes(self.get_option("scratch_size"), "ansible_cart_scratch_size"),
            keep=bool(argv) and self._is_scratch_kept,
            source=source,
            sink=sink,
            rights="container" if self.get_option("confined") else self.get_option("rights"),
            trust_container=self.get_option("trust_container"),
        )
        return self._read_outcome(self._order(order, in_data))

    def list_containers(self) -> tuple[list[dict[str, Any]], str]:
        """Return the running containers of the host, and a sentence about runtimes that do not answer, or '' where all do.

        Each container has id, name, state, pid, image, runtime, user, labels and networks. Raises AnsibleConnectionFailure where the
        host's program fails.
        """
        order = connection_entry.Order(
            token=self._token, container="", argv=[], docker_host=self.get_option("docker_host")
        )
        rc, stdout, stderr = self._read_outcome(self._order(order, None))
        if rc != 0:
            raise AnsibleConnectionFailure(_read_words(stderr) or f"exit code {rc}")
        answer = json.loads(stdout)
        return answer["containers"], escape(answer["silence"])

    def _order(self, order: connection_entry.Order, in_data: bytes | None) -> tuple[int, bytes, bytes]:
        """Let the host's program carry out ORDER and return exit code, stdout and stderr. Send the program first where it is missing."""
        self._connect()
        digest, files = _read_program()
        path = f"{_LIBRARY}/{digest}"
        python = shlex.quote(self.get_option("python"))
        run = f"exec {python} -X utf8 {path}"  # the locale of the login must not matter
        missing = f"{{ echo {shlex.quote(_MISSING)} >&2; exit {connection_entry.RC_OTHER}; }}"
        # The mask is for the compiled files that Python writes beside the program.
        command = f"umask 77; test -O {_LIBRARY} && test -O {path} || {missing}; {run}"
        data = order.pack() + (in_data or b"")
        outcome = self._run_on_host(command, data)
        if outcome[0] == connection_entry.RC_OTHER and _MISSING.encode() in outcome[2]:
            install = f"exec {python} -X utf8 -c {shlex.quote(_UNPACK)} {path}"
            rc, _stdout, stderr = self._run_on_host(install, _pack(files))
            if rc != 0:
                raise AnsibleConnectionFailure(f"the host has no place for a program: {_read_words(stderr)}")
            outcome = self._run_on_host(command, data)
        return outcome

    def _run_on_host(self, command: str, in_data: bytes | None) -> tuple[int, bytes, bytes]:
        if self._host_become is None:
            return self._link.exec_command(command, in_data=in_data, sudoable=False)  # type: ignore[no-any-return]
        command = self._host_become.build_become_command(command, self._link._shell)
        try:
            return self._link.exec_command(command, in_data=in_data, sudoable=True)  # type: ignore[no-any-return]
        except AnsibleError as error:
            if not _BECOME_FAILED.search(str(error)):
                raise
            raise AnsibleError(
                f"{self._host_become.name} does not lead to root on {self.get_option('host')}: {escape(str(error))}; give the password with"
                " -K or ansible_become_password, choose a method with ansible_become_method, or log in as root"
            ) from None

    def _read_outcome(self, outcome: tuple[int, bytes, bytes]) -> tuple[int, bytes, bytes]:
        """Return OUTCOME, or the exit code and output that the last line of the host's program tells; raise the error in that line."""
        rc, stdout, stderr = outcome
        if rc != connection_entry.RC_OTHER:
            return outcome
        stderr, token, line = stderr.rpartition(b"\n" + self._token.encode("ascii"))
        if not token:
            return rc, stdout, line
        message = json.loads(line)
        if "error" in message:
            container = self.get_option("container")
            whose = f"container {container} on {self.get_option('host')}: " if container else ""
            text = escape(f"{whose}{message['error']}")
            raise AnsibleError(text) if message["is_wish"] else AnsibleConnectionFailure(text)
        return message["rc"], stdout, stderr

    def close(self) -> None:
        """Remove the temporary files of this connection on the host, and close the connection to the host."""
        if self._is_scratch_kept:
            self._enter([])
            self._is_scratch_kept = False
        if self._link is not None:
            self._link.close()
        self._connected = False

    def reset(self) -> None:
        """Close this connection, and reset the connection to the host."""
        self.close()
        if self._link is not None:
            self._link.reset()


@contextmanager
def _replacing(path: str) -> Iterator[str]:
    """Give the path of a new file that replaces PATH, or the target of a link PATH, at the context's end, unless the context fails."""
    target = os.path.realpath(path)
    with ExitStack() as stack:
        try:
            known = os.stat(target) if os.path.lexists(target) else None
            is_plain = known is None or stat.S_ISREG(known.st_mode)
            folder = os.path.dirname(target)
            is_beside = is_plain and os.access(folder, os.W_OK)
            if not is_beside:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="crashcart-"))
            part = os.path.join(folder, f".crashcart-{uuid.uuid4().hex}")
            os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
            stack.callback(_remove, part)
            yield part
            if not is_beside:
                shutil.copyfile(part, target)
                return
            if known is not None:
                os.chmod(part, stat.S_IMODE(known.st_mode))
                with suppress(PermissionError):
                    os.chown(part, known.st_uid, known.st_gid)
            os.replace(part, target)
        except OSError as error:
            raise AnsibleError(f"{path} cannot be written: {error.strerror or error}") from error


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _read_words(stderr: bytes) -> str:
    """Return STDERR as text for a message."""
    return escape_lines(stderr.decode("utf-8", "replace").strip())


@functools.lru_cache(maxsize=None)
def _read_program() -> tuple[str, dict[str, bytes]]:
    """Return the hash of the host's program, and its files by their places in the archive, with all modules that it may import."""
    start = f"from {connection_entry.__name__} import main\n\nraise SystemExit(main())\n"
    files = {"__main__.py": start.encode("ascii")}
    top = [*connection_entry.__name__.partition(".module_utils.")[0].split("."), "module_utils"]
    for path in _list_sources():
        with open(os.path.join(_MODULE_UTILS, path), "rb") as file:
            files["/".join([*top, path])] = file.read()
    for name in list(files):
        while name := os.path.dirname(name):
            files.setdefault(f"{name}/__init__.py", b"")
    return hashlib.sha256(repr(sorted(files.items())).encode("ascii")).hexdigest(), files


def _list_sources() -> list[str]:
    """Return the paths below module_utils of the modules that the host's program may import."""
    paths = [name for name in os.listdir(_MODULE_UTILS) if name.endswith(".py")]
    for top in ("cart", "containers", "linux"):
        for folder, _folders, names in os.walk(os.path.join(_MODULE_UTILS, top)):
            place = os.path.relpath(folder, _MODULE_UTILS)
            paths += [os.path.join(place, name) for name in names if name.endswith(".py")]
    return sorted(paths)


def _pack(files: dict[str, bytes]) -> bytes:
    """Return a zip archive of FILES."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()
