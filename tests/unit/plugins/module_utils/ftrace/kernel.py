# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A plain folder that plays tracefs, and a recorder that runs in a child: what a trace needs of a host, without its kernel.

The code under test opens, reads and writes real files. Behind its writes the folder does what the kernel would: lists grow, a filter
of "0" is none, an instance comes with its files and goes with them.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import time
import traceback
from contextlib import ExitStack, contextmanager

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import targets
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import metadata
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import outbox
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import orders, process, recordings
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import background
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.bounded import close_all_but
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import dynamic_events, tracefs

PAGE_SIZE = 4096
EVENTS = (
    "sched/sched_switch",
    "sched/sched_process_exec",
    "task/task_newtask",
    "task/task_rename",
    "syscalls/sys_exit_execve",
)
_STATS = "entries: {}\noverrun: {}\ncommit overrun: 0\nbytes: {}\noldest event ts:  0.0\ndropped events: {}\nread events: {}\n"
_CLOCKS = ("local", "global", "mono", "boot")
_NO_TRIGGERS = "# Available triggers:\n# traceon traceoff snapshot stacktrace enable_event disable_event\n"
_PID_LISTS = ("set_event_pid", "set_ftrace_pid")
_PROBE_LISTS = ("kprobe_events", "uprobe_events")
_HEADER_PAGE = (
    "\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n"
    "\tfield: local_t commit;\toffset:8;\tsize:8;\tsigned:1;\n"
    f"\tfield: char data;\toffset:16;\tsize:{PAGE_SIZE - 16};\tsigned:1;\n"
)
_FILES = {
    "tracing_on": "1\n",
    "trace_clock": "[local] global mono boot\n",
    "trace_options": "event-fork\n",
    "tracing_cpumask": "0\n",
    "current_tracer": "nop\n",
    "buffer_size_kb": "7 (expanded: 1408)\n",
    "set_event": "",
    "set_event_pid": "",
    "trace": "",
    "trace_pipe": "",
    "free_buffer": "",
    "error_log": "",
    "options/overwrite": "1\n",
    "options/event-fork": "0\n",
    "options/disable_on_free": "0\n",
    "options/pause-on-trace": "0\n",
    "events/enable": "0\n",
    "events/header_page": _HEADER_PAGE,
    "events/header_event": "# compressed entry header\n",
}
_TOP_FILES = {
    "available_events": "".join(name.replace("/", ":") + "\n" for name in EVENTS),
    "available_tracers": "function nop\n",
    "printk_formats": "",
    "saved_cmdlines": "",
    "kprobe_events": "",
    "uprobe_events": "",
    "events/ftrace/print/format": "name: print\nID: 5\n",
}


def format_stats(entries=0, overrun=0, size=0, dropped=0, read=0):
    """The text of a CPU's file stats."""
    return _STATS.format(entries, overrun, size, dropped, read)


def set_stats(instance, cpu, **numbers):
    """Have the kernel count NUMBERS for CPU of INSTANCE, which no watch sees."""
    put_unseen(instance.root, f"{instance.path}/per_cpu/cpu{cpu}/stats", format_stats(**numbers))


def give_pages(instance, cpu, data):
    """Have the ring buffer of CPU give DATA, whole pages, to whoever reads on; no watch sees that either."""
    with open(_find_buffer(instance.path, cpu), "ab") as file:
        file.write(data)


def put_unseen(root, path, text):
    """Have PATH hold TEXT without a write that a watch sees, as the kernel does: by another name of the file."""
    other = f"{root}/.{os.getpid()}"
    os.link(path, other)
    put(other, text)
    os.unlink(other)


def take_pages(instance, cpu):
    """Have the ring buffer of CPU be empty, since a file keeps what was read."""
    os.truncate(_find_buffer(instance.path, cpu), 0)


def _find_buffer(path, cpu):
    """Another name of the file that plays the ring buffer of CPU of the instance at PATH."""
    return f"{os.path.dirname(path)}-buffers/{os.path.basename(path)}.{cpu}"


def put(path, text):
    """Have file PATH, which may be missing with its folders, hold TEXT. A test puts hundreds, so this makes no object of a file."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        fd = os.open(path, flags, 0o666)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path))
        fd = os.open(path, flags, 0o666)
    try:
        if text:
            os.write(fd, text.encode())
    finally:
        os.close(fd)


def get(path):
    """Return the text of file PATH."""
    with open(path, encoding="utf-8") as file:
        return file.read()


class Kernel:
    """The folder ROOT as tracefs with CPUS, for all that the code under test asks of `os`.

    STEPS are the changes that it was asked for. REFUSED is the number of one that is refused, and all after it where that GOES_ON.
    """

    def __init__(self, root, cpus=(0, 1)):
        self.root = root
        self._cpus = cpus
        self._opened = {}
        self.steps = []
        self.refused = None
        self.goes_on = False
        self._populate(root, {**_FILES, **_TOP_FILES})
        for name in ("instances", "instances-buffers"):
            os.mkdir(os.path.join(root, name))

    def __getattr__(self, name):
        return getattr(os, name)

    def _populate(self, folder, files):
        for name, text in files.items():
            put(os.path.join(folder, name), text)
        for cpu in self._cpus:
            for name, text in (("stats", format_stats()), ("buffer_size_kb", "7\n"), ("trace_pipe_raw", "")):
                put(os.path.join(folder, "per_cpu", f"cpu{cpu}", name), text)
        for event in (*EVENTS, *self._list_probes()):
            self._add_event(folder, event)

    def _add_event(self, folder, event):
        for name, text in (
            ("enable", "0\n"),
            ("filter", "none\n"),
            ("trigger", _NO_TRIGGERS),
            ("format", f"name: {event.split('/')[1]}\nID: 7\n"),
        ):
            put(os.path.join(folder, "events", event, name), text)
        put(os.path.join(folder, "events", event.split("/")[0], "enable"), "0\n")

    def _list_probes(self):
        lines = (line for name in _PROBE_LISTS for line in get(os.path.join(self.root, name)).splitlines())
        return [line.split()[0].partition(":")[2] for line in lines]

    def _list_instances(self):
        folder = os.path.join(self.root, "instances")
        return [os.path.join(folder, name) for name in os.listdir(folder)]

    def _step(self, what):
        self.steps.append(what)
        number = len(self.steps) - 1
        if number == self.refused or (self.goes_on and self.refused is not None and number > self.refused):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def mkdir(self, path, mode=0o777):
        self._step(f"make {os.path.basename(path)}")
        os.mkdir(path, mode)
        self._populate(path, _FILES)
        for cpu in self._cpus:
            os.link(os.path.join(path, "per_cpu", f"cpu{cpu}", "trace_pipe_raw"), _find_buffer(path, cpu))

    def rmdir(self, path):
        self._step(f"remove {os.path.basename(path)}")
        shutil.rmtree(path)
        for cpu in self._cpus:
            os.unlink(_find_buffer(path, cpu))

    def open(self, path, flags, mode=0o777):
        if flags & os.O_ACCMODE == os.O_RDONLY:
            if os.path.basename(path) in _PID_LISTS:
                self._forget_ended(path)
            return os.open(path, flags, mode)
        fd = os.open(path, flags & ~os.O_TRUNC, mode)
        self._opened[fd] = path
        if flags & os.O_TRUNC and os.path.basename(path) in _PID_LISTS:
            self._set(path, "")
        return fd

    def write(self, fd, data):
        path, text = self._opened[fd], data.decode()
        self._step(f"write {text.strip()!r} to {os.path.relpath(path, self.root)}")
        self._store(path, text.strip())
        return len(data)

    def _set(self, path, text):
        put_unseen(self.root, path, text)

    def _forget_ended(self, path):
        words = get(path).split()
        alive = [word for word in words if is_alive(int(word))]
        if alive != words:
            self._set(path, "".join(f"{word}\n" for word in alive))

    def _store(self, path, text):
        folder, name = os.path.split(path)
        if name in _PID_LISTS:
            self._set(
                path, "".join(f"{tid}\n" for tid in sorted({*map(int, get(path).split()), *map(int, text.split())}))
            )
        elif name in _PROBE_LISTS:
            self._change_probes(path, text)
        elif name == "trace_clock":
            self._set(path, " ".join(f"[{one}]" if one == text else one for one in _CLOCKS) + "\n")
        elif name == "filter":
            self._set(path, ("none" if text == "0" else text) + "\n")
        elif name == "trigger":
            present = [line for line in get(path).splitlines() if not line.startswith("#")]
            left = [line for line in present if not ("!" + line).startswith(text)]
            if not text.startswith("!"):
                action, if_, condition = text.partition(" if ")
                left.append(f"{action}:unlimited{if_}{condition}")
            self._set(path, "".join(f"{line}\n" for line in left) or _NO_TRIGGERS)
        elif path.endswith("events/enable"):
            for event in (*EVENTS, *self._list_probes()):
                self._switch(os.path.dirname(folder), event, text)
        elif name == "enable":
            event = "/".join(folder.split("/")[-2:])
            self._switch(folder[: -len(f"/events/{event}")], event, text)
        elif name != "free_buffer":
            self._set(path, text + "\n")

    def _switch(self, instance, event, text):
        self._set(os.path.join(instance, "events", event, "enable"), text + "\n")
        path, line = os.path.join(instance, "set_event"), event.replace("/", ":") + "\n"
        others = [one for one in get(path).splitlines(True) if one != line]
        self._set(path, "".join([*others, line] if text == "1" else others))

    def _change_probes(self, path, text):
        word = text.split()[0]
        event = word.partition(":")[2]
        if not word.startswith("-"):
            self._set(path, get(path) + text + "\n")
            for folder in (self.root, *self._list_instances()):
                self._add_event(folder, event)
            return
        lines = get(path).splitlines(True)
        self._set(path, "".join(line for line in lines if line.split()[0].partition(":")[2] != event))
        for folder in (self.root, *self._list_instances()):
            shutil.rmtree(os.path.join(folder, "events", event.split("/")[0]))


def is_alive(pid):
    """Return True if process PID is there and has not ended."""
    try:
        return get(f"/proc/{pid}/stat").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def install(folder, monkeypatch, cpus=(0, 1)):
    """Have all that is a host's be below FOLDER; return its kernel."""
    for module in (orders, targets):
        monkeypatch.setattr(module, "LOCKS", f"{folder}/run/locks")
    for module in (orders, process):
        monkeypatch.setattr(module, "RECORDER_LOCK", f"{folder}/run/locks/recorder")
    monkeypatch.setattr(process, "RECORDER_TITLE", "units-recorder")
    monkeypatch.setattr(orders, "FOLDER", f"{folder}/run/recorder")
    monkeypatch.setattr(metadata, "_FOLDER", f"{folder}/run/traces")
    monkeypatch.setattr(recordings, "FOLDER", f"{folder}/state/traces")
    monkeypatch.setattr(outbox, "FOLDER", f"{folder}/state/captures")
    for name in ("run", "state", "tracing"):
        os.makedirs(f"{folder}/{name}")
    kernel = Kernel(f"{folder}/tracing", cpus)
    for module in (tracefs, dynamic_events):
        monkeypatch.setattr(module, "os", kernel)
    return kernel


@contextmanager
def recorder(kernel, monkeypatch):
    """Have the recorder, once somebody needs it, run in a child of this process, which knows its folders; it ends with the context."""
    children = []

    def start(function, _is_running):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                close_all_but({0, 1, 2, writer})  # a lock that this process holds, the child would hold on to
                background.leave_control_groups = lambda: None
                kernel.refused = None
                function(writer)
            except BaseException:
                traceback.print_exc(file=sys.__stderr__)
            finally:
                os._exit(0)
        children.append(child)
        os.close(writer)
        try:
            return bool(os.read(reader, 1))
        finally:
            os.close(reader)

    monkeypatch.setattr(background, "start_daemon", start)
    with ExitStack() as stack:
        stack.callback(_end, children)
        yield


def _end(children):
    for order in orders.list_orders():
        orders.drop_order(order.name)
    deadline = time.monotonic() + 10
    for child in children:
        while os.waitpid(child, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.002)


def list_files(folder):
    """Path → mode and content of all below FOLDER, but for locks and what no file keeps."""
    found = {}
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "locks"]
        for name in folders:
            found[os.path.relpath(os.path.join(place, name), folder)] = os.stat(os.path.join(place, name)).st_mode
        for name in names:
            path = os.path.join(place, name)
            if not name.startswith(".socket"):
                found[os.path.relpath(path, folder)] = (os.stat(path).st_mode, get(path))
    return found
