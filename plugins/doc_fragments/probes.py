# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of ftrace_instance that define probes, in a file of their own because they are long."""

from __future__ import annotations


class ModuleDocFragment:
    """The options of ftrace_instance that define probes."""

    DOCUMENTATION = r"""
options:
  paths:
    description:
      - Record also the paths that programs pass to the recorded system calls (V(openat), V(stat), V(execve), V(unlink) and others), so that
        reports show them beside the calls that fail.
      - The module takes the best way that the kernel offers, and returns its name - the calls' own events (V(event), Linux 6.19), probes
        of these events (V(eprobe)), probes of the kernel's functions (V(kprobe)), or probes of the container's C library (V(uprobe)). The
        first three cover every call of 64-bit programs. V(uprobe) covers only calls made through the library.
      - V(uprobe) delays each call by about 10 microseconds (measured in a virtual machine), in every container that shares the
        library's file. It also takes a page of memory in each process of the container. Where the container has none left of its limit, the
        kernel kills one of its processes for that, when the trace begins or ends. So a container that has run out of memory is refused.
      - With V(true) the task fails for a container whose paths cannot be recorded, for example a static program where the kernel offers
        V(uprobe) only.
      - With V(auto) the trace starts in any case and never uses V(uprobe), which slows other containers. Where that is the only way, or no
        recorded call takes a path, C(paths) in the result and in the manifest's C(specification) has V(null) as C(by), and the reason.
      - With O(errors_only) the paths of calls that succeed are recorded, too, because the kernel reads a path before the call ends.
      - The default is V(auto) with O(profile=diagnose) and for standing rules, and V(false) otherwise.
    type: str
    choices: ['false', 'true', auto]
  paths_by:
    description:
      - The way to record O(paths). V(auto) takes the best one. V(uprobe) requires O(paths=true).
    type: str
    choices: [auto, event, eprobe, kprobe, uprobe]
    default: auto
  probes:
    description:
      - Events of your own to record beside the others. The kernel defines probes once per host. These are in a group of the container's
        own (C(crashcart_) and the beginning of its id), are enabled in its instance only, and are removed with it.
      - Changing the definitions empties the buffer of the instance, as the kernel requires.
      - A probe delays every process that runs into it, also those of other containers and of the host, but only the container's events
        are recorded. A probe of a program sits in its file, which containers of one image share.
      - A probe of a program keeps the container's file system in use until the probe is removed, as an open file would.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description:
          - Name of the event, made of letters, digits and underscores. Names that begin with C(path_) are reserved for O(paths).
        type: str
        required: true
      type:
        description:
          - Where the probe sits. V(kprobe) and V(kretprobe) sit at the beginning and the end of a kernel function, V(uprobe) and
            V(uretprobe) at those of a function in a program or library of the container, V(eprobe) on another event.
        type: str
        choices: [kprobe, kretprobe, eprobe, uprobe, uretprobe]
        required: true
      function:
        description:
          - The kernel function for V(kprobe) and V(kretprobe), as C(NAME) or C(NAME+OFFSET).
        type: str
      event:
        description:
          - The event for V(eprobe), as C(system:name).
        type: str
      binary:
        description:
          - Absolute path of the program or library inside the container, for V(uprobe) and V(uretprobe). Symbolic links are resolved inside
            the container.
        type: str
      symbol:
        description:
          - The function in O(probes[].binary), by a name that the dynamic linker knows or that C(strip) has left.
        type: str
      offset:
        description:
          - Offset of the code in the file in bytes, instead of O(probes[].symbol). An instruction must begin there, otherwise the
            programs that run it crash.
        type: str
      arguments:
        description:
          - What to record. Each key is a name, each value a fetch argument in the kernel's language, such as V(+0(%di\):ustring), V($retval)
            or, for an eprobe, V(+0($filename\):ustring).
        type: dict
        default: {}
      filter:
        description:
          - Record the event only where this is true. It is a filter in the kernel's language over the names in O(probes[].arguments).
        type: str
"""
