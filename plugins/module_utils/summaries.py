# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is on a host, in lines for people: each stands for itself, and begins with the kind of what it tells of.

Pure: it is made of what modules return.
"""

from __future__ import annotations

from typing import Any, Iterator, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape
from ansible_collections.crashcart.fleet.plugins.module_utils.units import format_bytes, format_time

ALL, SUMMARY = "all", "summary"


def find_gathered(module: Any) -> set[str]:
    """What MODULE's option `gather` asks for."""
    chosen = module.params["gather"]
    return set(module.argument_spec["gather"]["choices"] if ALL in chosen else chosen) - {ALL}


def summarize_host(host: Mapping[str, Any]) -> str:
    """One line for HOST, as crashcart_info returns it."""
    engine = f"Docker {host['engine']}" if host["engine"] else "no Docker engine"
    silence = f" ({host['engine_error']})" if host["engine_error"] else ""
    return escape(f"host: Linux {host['kernel']} ({host['arch']}), cgroups {host['cgroups']}, {engine}{silence}")


def summarize_features(features: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each of FEATURES that is missing and that anything of the collection needs, with what follows and what to do."""
    return [
        escape(f"missing {one['name']}: {one['reason']}; {one['consequence']}")
        for one in features
        if one["consequence"]
    ]


def summarize_images(images: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each of the IMAGES in the host's store."""
    if not images:
        return ["image: none; push one by crashcart_image"]
    return [escape(f"image {one['name']}: {_describe_image(one)}") for one in images]


def _describe_image(image: Mapping[str, Any]) -> str:
    if "error" in image:
        return f"damaged: {image['error']}"
    size = format_bytes(image["size"]) if image["size"] is not None else "size unknown"
    return f"{size}, {image['format']}, {image['arch']}, sha256 {image['digest'][:12]}"


def summarize_containers(
    containers: Sequence[Mapping[str, Any]],
    attachments: Sequence[Mapping[str, Any]],
    traces: Sequence[Mapping[str, Any]],
) -> list[str]:
    """One line for each of CONTAINERS, with its ATTACHMENTS and TRACES, and for each of TRACES of another one."""
    lines = []
    for one in containers:
        user = f" of user {one['user']}" if one["user"] is not None else ""
        state = "" if one["state"] == "running" else f"{one['state']}, "
        about = (
            f"container {one['name']}: {state}{one['runtime']}{user}, {one['image'] or 'no image'}, {one['id'][:12]}"
        )
        more = [
            f"has {it['image']} at {it['path']}{_describe_end(it['expires'])}"
            for it in attachments
            if it["id"] == one["id"]
        ]
        more += [f"traced: {_describe_trace(it)}" for it in traces if it["id"] == one["id"]]
        lines.append(escape("; ".join([about, *more])))
    known = {one["id"] for one in containers}
    return (lines or ["container: none runs"]) + summarize_traces([one for one in traces if one["id"] not in known])


def summarize_attachment(attachment: Mapping[str, Any]) -> str:
    """One line for ATTACHMENT, as crashcart_attach returns it, that says how to get a shell."""
    end = "" if attachment["expires"] is None else f", until {format_time(attachment['expires'])}"
    return escape(f"{attachment['container']}{end}: {attachment['shell']}")


def summarize_traces(traces: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each of TRACES, as ftrace_instance returns them."""
    return [escape(f"trace of {one['container']}: {_describe_trace(one)}") for one in traces]


def _describe_trace(trace: Mapping[str, Any]) -> str:
    return ", ".join(_gen_trace(trace))


def _gen_trace(trace: Mapping[str, Any]) -> Iterator[str]:
    yield trace["summary"]
    if trace["mode"] == "record":
        size = sum(one["size"] for one in trace["recordings"])
        yield f"{format_bytes(size)} recorded to files"
    yield f"{sum(cpu['entries'] for cpu in trace['cpus'])} events in its buffers"
    lost = sum(cpu["overrun"] + cpu["dropped"] for cpu in trace["cpus"])
    if lost:
        yield f"{lost} events lost"


def summarize_captures(captures: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for the CAPTURES that lie on the host."""
    waiting = [one for one in captures if one["state"] != "kept"]
    lines = []
    for some, what in (
        (waiting, "wait for ftrace_fetch"),
        ([one for one in captures if one["state"] == "kept"], "are at home and kept for others"),
    ):
        if some:
            lines.append(f"captures: {len(some)} ({format_bytes(sum(one['size'] for one in some))}) {what}")
    return lines


def _describe_end(expires: float | None) -> str:
    return "" if expires is None else f" until {format_time(expires)}"
