# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the files by which container engines run the start hook: a CDI file, hooks for Podman and CRI-O, and runtimes for Docker.

CDI (Container Device Interface): Docker from 28.2 on, Podman, containerd and CRI-O read descriptions of devices, and a device may have
hooks. An older Docker has runtimes of a user's choice; each of ours is a wrapper of the one that Docker uses anyway.
"""

from __future__ import annotations

import glob
import json
import os
import shlex
from typing import Any, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.installed.files import File
from ansible_collections.crashcart.fleet.plugins.module_utils.names import HOOK_PROGRAM, HOOK_RUNTIME

CDI_FILE = "/etc/cdi/crashcart.fleet-trace.json"
KIND = "crashcart.fleet/trace"
HOOKS_FOLDER = "/usr/share/containers/oci/hooks.d"
_HOOKS_PREFIX = "crashcart-"
ANNOTATION = "crashcart.trace"
RUNTIME = "crashcart"  # of Docker, for the first profile; those of the others are called RUNTIME-PROFILE
CDI, HOOKS, RUNTIMES = "cdi", "hooks", "runtime"
WAYS = (CDI, HOOKS, RUNTIMES)
_CDI_VERSION = "0.3.0"  # the first with all that is used here; an engine refuses one that it does not know
# A device without any edit is not valid, so one that shall do nothing sets a variable.
_STUBS_EDITS = {"env": ["CRASHCART_TRACE=off"]}
_COMMANDS = (
    "checkpoint create delete events exec features kill list pause ps restore resume run spec start state update"
)
_WRAPPER = """\
#!/bin/sh
# Made by the role crashcart.fleet.start_hook, which also removes it. A runtime for Docker: it runs the one that Docker uses anyway, and has a
# container traced after it is created, and before its program begins. Whatever happens to the trace, the container starts.
command= id= file= before=
for word; do
    case $before in --pid-file) file=$word ;; esac
    case $word in --pid-file=*) file=${word#*=} ;; esac
    case " %(commands)s " in *" $word "*) command=${command:-$word} ;; esac
    before=$word id=$word
done
[ "$command" = create ] || exec %(real)s "$@"
%(real)s "$@" || exit
%(program)s created %(profile)s "$id" "$file" </dev/null >/dev/null 2>&1
exit 0
"""
# In the program's place where containers may still be started with a specification that names it.
STUB_PROGRAM = b"#!/bin/sh\n# Made by the role crashcart.fleet.start_hook: it traces nothing.\nexit 0\n"
_STUB = """\
#!/bin/sh
# Made by the role crashcart.fleet.start_hook: the runtime that Docker uses anyway, for containers that were created with another one of ours.
exec %(real)s "$@"
"""


def make_cdi(profiles: Sequence[str], *, is_stub: bool) -> File:
    """Return the CDI file with a device for each of PROFILES; with IS_STUB these devices run no hook."""
    devices = [
        {
            "name": profile,
            "containerEdits": _STUBS_EDITS
            if is_stub
            else {"hooks": [{"hookName": "createRuntime", **_make_call(profile)}]},
        }
        for profile in profiles
    ]
    return _make_json(CDI_FILE, {"cdiVersion": _CDI_VERSION, "kind": KIND, "devices": devices})


def make_hooks(profiles: Sequence[str]) -> list[File]:
    """Return a file for each of PROFILES by which Podman and CRI-O run the hook for containers with the annotation.

    Source: oci-hooks(5).
    """
    return [
        _make_json(
            f"{HOOKS_FOLDER}/{_HOOKS_PREFIX}{profile}.json",
            {
                "version": "1.0.0",
                "hook": _make_call(profile),
                "when": {"annotations": {f"^{ANNOTATION.replace('.', '[.]')}$": f"^{profile}$"}},
                "stages": ["createRuntime"],
            },
        )
        for profile in profiles
    ]


def _make_call(profile: str) -> dict[str, Any]:
    return {"path": HOOK_PROGRAM, "args": [os.path.basename(HOOK_PROGRAM), "create", profile]}


def _make_json(path: str, content: dict[str, Any]) -> File:
    return File(path, json.dumps(content, indent=2).encode("ascii") + b"\n")


def list_hooks() -> list[str]:
    """Return the paths of all files that make_hooks has made on this host."""
    try:
        names = sorted(os.listdir(HOOKS_FOLDER))
    except OSError:
        return []
    return [
        os.path.join(HOOKS_FOLDER, name) for name in names if name.startswith(_HOOKS_PREFIX) and name.endswith(".json")
    ]


def name_runtimes(profiles: Sequence[str]) -> dict[str, str]:
    """Return name → profile of the runtimes of Docker for PROFILES."""
    return {RUNTIME: profiles[0], **{f"{RUNTIME}-{profile}": profile for profile in profiles}}


def make_wrappers(profiles: Sequence[str], real: Sequence[str], *, is_stub: bool) -> dict[str, File]:
    """Return name → program of the runtimes of Docker for PROFILES, around REAL, the runtime's command; with IS_STUB they trace nothing."""
    found = {}
    for name, profile in name_runtimes(profiles).items():
        words = {"commands": _COMMANDS, "real": shlex.join(real), "program": HOOK_PROGRAM, "profile": profile}
        text = (_STUB if is_stub else _WRAPPER) % words
        found[name] = File(name_wrapper(name), text.encode("utf-8"), 0o755)
    return found


def name_wrapper(runtime: str) -> str:
    """Return the path of the program of our runtime called RUNTIME."""
    return HOOK_RUNTIME + runtime[len(RUNTIME) :]


def list_wrappers() -> list[str]:
    """Return the paths of all programs that make_wrappers has made on this host."""
    return sorted(glob.glob(f"{HOOK_RUNTIME}*"))


def name_devices(profiles: Sequence[str]) -> list[str]:
    """Return the names of the devices for PROFILES."""
    return [f"{KIND}={profile}" for profile in profiles]


def is_ours(runtime: str) -> bool:
    """Return True if the runtime of Docker called RUNTIME is one of ours."""
    return runtime == RUNTIME or runtime.startswith(RUNTIME + "-")
