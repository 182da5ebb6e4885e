# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Begin the trace that all containers of a profile of the start hook share, where none runs: at the first start, and after a pause."""

from __future__ import annotations

from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import try_lock
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError, tell_any
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.end import take_back
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.hook import notes, policy, profiles
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import (
    client,
    handover,
    orders,
    recordings,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.start import begin_rule
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.trace import TraceInstance, find_instance
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import tracefs
from ansible_collections.crashcart.fleet.plugins.module_utils.names import HOOK_POLICY


def begin(profile: str) -> None:
    """Begin the trace of PROFILE; where it cannot begin, note why, for the hooks that wait for it."""
    try:
        options = policy.read().get(profile)
        if options is None:
            raise FleetError(f"{HOOK_POLICY} has no profile {profile}: run the role start_hook with it")
        _begin(profile, options)
        notes.forget_refusal(profile)
    except Exception as error:  # pylint: disable=broad-exception-caught # hooks wait for the reason, whatever it is
        why = tell_any(error)
        notes.note_refusal(profile, why)
        notes.tell(profile, "", why)


def _begin(profile: str, options: dict[str, Any]) -> None:
    root = tracefs.find_tracefs()
    rule = profiles.make_rule(profile, options)
    request = profiles.make_request(options, root)
    trace = find_instance(root, rule.as_container())
    _take_away(trace)
    client.refuse_other_version()
    _make_room(profile, trace.instance.name, request.limits.max_bytes)
    begin_rule(rule, root, request)


def _take_away(trace: TraceInstance) -> None:
    """Remove the instance of TRACE if its recording has ended: what is in its buffers is of containers that a new recording does not know."""
    if not trace.instance.exists() or orders.is_taken(trace.instance.name):
        return
    # Hooks wait for this, and they are told what keeps it.
    with try_lock("trace-" + trace.short_id):
        handover.end_recording(trace.instance)
        take_back(trace, recordings.list_folders(trace.instance.name))


def _make_room(profile: str, name: str, max_bytes: int) -> None:
    """Remove the oldest ended recordings of PROFILE's instance NAME that nobody has fetched, so that MAX_BYTES are left at most."""
    for path in recordings.remove_oldest(name, max_bytes, kept=0):
        notes.tell(
            profile,
            "",
            f"the events in {path} were removed, to keep within max_size: fetch more often, or give it more",
        )
