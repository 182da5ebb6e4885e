# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Summaries of what is on a host, as lines for people. Each line makes sense alone and begins with the kind of thing it describes.

Pure: the functions only read the results of modules.
"""

from __future__ import annotations

from typing import Any, Iterator, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.names import BOOT_UNIT
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape
from ansible_collections.crashcart.fleet.plugins.module_utils.units import format_bytes, format_time

ALL, SUMMARY = "all", "summary"


def find_gathered(module: Any) -> set[str]:
    """Return the kinds of information that MODULE's option `gather` asks for, with `all` spelled out."""
    chosen = module.params["gather"]
    return set(module.argument_spec["gather"]["choices"] if ALL in chosen else chosen) - {ALL}


def summarize_host(host: Mapping[str, Any]) -> str:
    """Return one line that describes HOST, as crashcart_info returns it."""
    engine = f"Docker {host['engine']}" if host["engine"] else "no Docker engine"
    silence = f" ({host['engine_error']})" if host["engine_error"] else ""
    return escape(f"host: Linux {host['kernel']} ({host['arch']}), cgroups {host['cgroups']}, {engine}{silence}")


def summarize_features(features: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one line for each missing one of FEATURES that the collection needs: the reason, the consequence and the next step."""
    return [
        escape(f"missing {feature['name']}: {feature['reason']}; {feature['consequence']}")
        for feature in features
        if feature["consequence"]
    ]


def summarize_images(images: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one line for each of IMAGES, the images in the host's store; one line of advice when it has none."""
    if not images:
        return ["image: none; push one by crashcart_image"]
    return [escape(f"image {image['name']}: {_describe_image(image)}") for image in images]


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
    """Return one line for each of CONTAINERS, with its ATTACHMENTS and TRACES, and one for each trace of any other container."""
    lines = []
    for container in containers:
        user = f" of user {container['user']}" if container["user"] is not None else ""
        state = "" if container["state"] == "running" else f"{container['state']}, "
        kind = f"{state}{container['runtime']}{user}"
        about = f"container {container['name']}: {kind}, {container['image'] or 'no image'}, {container['id'][:12]}"
        more = [
            f"has {attachment['image']} at {attachment['path']}{_describe_end(attachment['expires'])}"
            for attachment in attachments
            if attachment["id"] == container["id"]
        ]
        more += [f"traced: {_describe_trace(trace)}" for trace in traces if trace["id"] == container["id"]]
        lines.append(escape("; ".join([about, *more])))
    known = {container["id"] for container in containers}
    others = [trace for trace in traces if trace["id"] not in known]
    return (lines or ["container: none runs"]) + summarize_traces(others)


def summarize_attachment(attachment: Mapping[str, Any]) -> str:
    """Return one line that says how to get a shell by ATTACHMENT, as crashcart_attach returns it."""
    end = "" if attachment["expires"] is None else f", until {format_time(attachment['expires'])}"
    return escape(f"{attachment['container']}{end}: {attachment['shell']}")


def summarize_traces(traces: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one line for each of TRACES, as ftrace_instance returns them."""
    return [escape(f"{_name_trace(trace)}: {_describe_trace(trace)}") for trace in traces]


def _name_trace(trace: Mapping[str, Any]) -> str:
    return f"trace of {trace['container']}" if trace["rule"] is None else f"rule {trace['rule']['name']}"


def _gen_rule(rule: Mapping[str, Any]) -> Iterator[str]:
    """Yield phrases that say what RULE awaits, and what has started."""
    labels = [name if value is None else f"{name}={value}" for name, value in rule["labels"].items()]
    wanted = [", ".join(rule["patterns"])] if rule["patterns"] is not None else []
    wanted += [f"label {label}" for label in labels]
    yield "traces containers that ask for it" if rule.get("is_announced") else f"awaits {' with '.join(wanted)}"
    count = rule["traced"]
    yield f"{count} {'container has' if count == 1 else 'containers have'} started, {rule['running']} traced now"
    if rule["unmeant"]:
        yield f"{rule['unmeant']} others have started"
    if rule["refused"]:
        yield f"{rule['refused']} were not traced, as max_containers ({rule['max_containers']}) were traced already"
    if rule["missed"]:
        yield f"{rule['missed']} were over before they were seen"
    yield from rule["troubles"]


def _describe_trace(trace: Mapping[str, Any]) -> str:
    return ", ".join(_gen_trace(trace))


def _gen_trace(trace: Mapping[str, Any]) -> Iterator[str]:
    if trace["rule"] is not None:
        yield from _gen_rule(trace["rule"])
    yield trace["summary"]
    if trace["mode"] == "record":
        size = sum(recording["size"] for recording in trace["recordings"])
        yield f"{format_bytes(size)} recorded to files"
    yield f"{sum(cpu['entries'] for cpu in trace['cpus'])} events in its buffers"
    lost = sum(cpu["overrun"] + cpu["dropped"] for cpu in trace["cpus"])
    if lost:
        yield f"{lost} events lost"


def summarize_captures(captures: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one line for the CAPTURES on the host that wait to be fetched, and one for those that are fetched and kept."""
    waiting = [capture for capture in captures if capture["state"] != "kept"]
    kept = [capture for capture in captures if capture["state"] == "kept"]
    lines = []
    for group, state in ((waiting, "wait for ftrace_fetch"), (kept, "are fetched and kept for others")):
        if group:
            size = sum(capture["size"] for capture in group)
            lines.append(f"captures: {len(group)} ({format_bytes(size)}) {state}")
    return lines


def summarize_start_hook(hook: Mapping[str, Any] | None) -> list[str]:
    """Return one line for the start HOOK, as ftrace_info returns it, and one for what prevented traces lately; none without a hook."""
    if hook is None:
        return []
    lines = [f"start hook: {hook['error'] or 'profiles ' + ', '.join(hook['profiles'])}"]
    troubles = hook["troubles"]
    if troubles:
        last = troubles[-1]
        whose = f"container {last['container'][:12]}" if last["container"] else "all containers"
        lines.append(
            f"start hook: {len(troubles)} troubles, the last at {format_time(last['time'])} with {whose} of {last['profile']}: {last['why']}"
        )
    return list(map(escape, lines))


def summarize_boot_rules(rules: Sequence[Mapping[str, Any]], error: str) -> list[str]:
    """Return one line for each of RULES that begin with the host, as ftrace_info returns them, and one for ERROR if it is not ''."""
    lines = [
        f"rule {rule['name']}: begins when the host starts, "
        + (
            "runs"
            if rule["is_running"]
            else f"does not run now (journalctl -u {BOOT_UNIT}, or run the role standing_rules)"
        )
        for rule in rules
    ]
    return list(map(escape, [*lines, error] if error else lines))


def _describe_end(expires: float | None) -> str:
    return "" if expires is None else f" until {format_time(expires)}"
