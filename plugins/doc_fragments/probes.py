# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of probes: long enough for a file of their own."""

from __future__ import annotations


class ModuleDocFragment:
    """What the documentation of ftrace_instance includes."""

    DOCUMENTATION = r"""
options:
  paths:
    description:
      - Record also the paths that the recorded system calls are given (V(openat), V(stat), V(execve), V(unlink) and their kin), so that
        reports name them beside the calls that fail.
      - By the best way that the kernel has, which the result names - the calls' own events (Linux 6.19), probes of these events,
        probes of the kernel's functions, or probes of the container's C library. All but the last show 64-bit programs' calls only and
        all of those; the last one what is called through the library.
      - The last one holds up each call by about 10 microseconds (measured in a virtual machine), in all containers that share
        the library's file.
      - With V(true) the task fails in containers of which paths cannot be had, as in one with a static program where the kernel has only
        the last way.
      - With V(auto) they are recorded as well as may be, and the trace starts in any case. It never takes the last way, which slows others;
        where that is the only one, or no recorded call takes a path, C(paths) in the result and in the manifest's C(specification) has
        V(null) as C(by), and says why.
      - With O(errors_only) the paths of calls that succeed are in the trace, too, as nobody knows beforehand.
    type: str
    choices: ['false', 'true', auto]
    default: 'false'
  paths_by:
    description:
      - The way to the paths, where not the best one is wanted. V(uprobe) needs O(paths=true).
    type: str
    choices: [auto, event, eprobe, kprobe, uprobe]
    default: auto
  probes:
    description:
      - Events of your own, which are recorded beside the others. Probes are defined once per host; these are in a group of the container's
        own (C(crashcart_) and the beginning of its id), are on in its instance only, and are removed with it.
      - Other definitions than before empty the buffer of the instance (the kernel's way).
      - Any process that comes by a probe is held up for a moment, those of other containers and of the host, too (a probe of a program sits in
        its file, which containers of one image share); recorded are the container's alone.
      - A probe of a program holds the container's file system until it is removed, as an open file would.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description:
          - Name of the event - letters, digits and underscores. Names that begin with C(path_) are those of O(paths).
        type: str
        required: true
      type:
        description:
          - V(kprobe) and V(kretprobe) sit on the begin and the end of a function of the kernel, V(uprobe) and V(uretprobe) of one of a
            program or library of the container, V(eprobe) on another event.
        type: str
        choices: [kprobe, kretprobe, eprobe, uprobe, uretprobe]
        required: true
      function:
        description:
          - For V(kprobe) and V(kretprobe) the function of the kernel, as C(NAME) or C(NAME+OFFSET).
        type: str
      event:
        description:
          - For V(eprobe) the event, as C(system:name).
        type: str
      binary:
        description:
          - For V(uprobe) and V(uretprobe) the absolute path of the program or library inside the container. Symbolic links lead to
            where they do in there.
        type: str
      symbol:
        description:
          - The function of O(probes[].binary), by the names that the dynamic linker knows, or those that strip has left.
        type: str
      offset:
        description:
          - Instead of O(probes[].symbol), where in the file the code is, in bytes. It must be where an instruction begins, else the
            programs that run it crash.
        type: str
      arguments:
        description:
          - What to record, name to fetch argument in the kernel's language, such as V(+0(%di\):ustring), V($retval) or, for an eprobe,
            V(+0($filename\):ustring).
        type: dict
        default: {}
      filter:
        description:
          - Record only where this is true, in the kernel's language of filters, over the names of the arguments.
        type: str
"""
