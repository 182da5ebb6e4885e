# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turn the recording of a rule into recordings of the containers that it has traced, from which everything else goes on as usual.

Whatever ends this process, each event comes into exactly one recording: the new ones are made beside the rule's, a note says that they are
complete, and only then they get to their places and the rule's segments are removed. The next fetch carries out what the note says.
"""

from __future__ import annotations

import os
import shutil
import struct
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Callable, Iterator, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import podman
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container, ContainerError
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.endings import tell_end
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome, Who
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import drain, metadata
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import rule as rules
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.follow.following import Following
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import trace_dat_reader
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import client, recordings
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.recordings import Recording, Segment
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rule import is_rule
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rules import split, starts_log
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rules.starts_log import Started
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_folder, open_private
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance
from ansible_collections.crashcart.fleet.plugins.module_utils.names import INSTANCE_PREFIX
from ansible_collections.crashcart.fleet.plugins.module_utils.units import format_bytes

_MADE, _NOTE, _OWNERS = "made", "made.json", "owners.json"
_MAX_OWNERS = 65536
# A container of which the recorder did not find out whether the rule means it is kept.
_KEPT = (starts_log.TRACED, starts_log.OVER, starts_log.UNDECIDED)
_BEFORE_S = 60.0
_STARTED = "started"
_LATE = "no execve of its first program was seen: its first instructions are missing, as its start was seen too late, or nothing was executed"
_NO_COUNTERS = dict.fromkeys(("entries", "overrun", "commit_overrun", "bytes", "dropped", "read"), 0)


def is_of_rule(recording: Recording) -> bool:
    """Return True if RECORDING is a rule's, with the events of several containers."""
    return is_rule(recording.about.get("container"))


def distribute_all(root: str, outcome: Outcome, means: Callable[[Container], bool] = lambda _container: True) -> None:
    """Distribute the recordings of all rules that have traced a container for which MEANS is true. ROOT is the tracefs.

    OUTCOME gets the rules that fail. What nobody fetches stays with its rule, whose bounds hold it.
    """
    for name in recordings.list_names():
        found = [one for one in recordings.list_recordings(name) if is_of_rule(one)]
        # A fetch that was killed has left these.
        is_begun = any(os.path.exists(os.path.join(one.path, name)) for one in found for name in (_MADE, _NOTE))
        if is_begun or any(means(container) for recording in found for container in _list_started(recording)):
            about = found[-1].about["container"]
            with outcome.serve(Who(about["name"], about["id"])):
                distribute(Instance(root, name))


def _list_started(recording: Recording) -> list[Container]:
    """Return the containers of which the finished and unfinished segments of a rule's RECORDING tell."""
    started = starts_log.read(segment.path for segment in recording.list_segments()).values()
    return [_read_container(one.about["container"]) for one in started if one.about.get("container")]


def distribute(instance: Instance) -> list[Container]:
    """Distribute the recordings of INSTANCE, if it is a rule's, and return the containers that have recordings of their own by now."""
    names = set()
    for recording in recordings.list_recordings(instance.name):
        if is_of_rule(recording):
            _distribute(instance, recording)
            names.add(find_rule(recording))
    found = {path: about["container"] for path, about in _gen_made() if about["rule"] in names}
    return list({described["id"]: _read_container(described) for described in found.values()}.values())


def remove_made(rule: str) -> None:
    """Remove the recordings of containers that were made from those of RULE."""
    for path, about in list(_gen_made()):
        if about["rule"] == rule:
            recordings.remove(path)


def _gen_made() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the folder and the description of each recording that was made from a rule's."""
    for name in recordings.list_names():
        for recording in recordings.list_recordings(name):
            if "rule" in recording.about:
                yield recording.path, recording.about


def find_rule(recording: Recording) -> str:
    """Return the name of the rule whose RECORDING it is."""
    return str(recording.about["record"]["rule"]["name"])


def _distribute(instance: Instance, recording: Recording) -> None:
    """Distribute the finished segments of RECORDING of INSTANCE, which may be gone."""
    was_answered = not recording.is_running or recordings.ask_to_finish(recording)
    with recordings.hold(recording.path):
        _carry_out(recording)  # of a fetch that was killed
        end = recording.read_end()
        segments = [part for part in recording.list_segments() if part.end is not None or end is not None]
        if segments:
            silence = [] if was_answered else [client.describe_silence()]
            _make(instance, _Part(recording, segments, end, silence))
            _carry_out(recording)
        if end is not None and not recording.list_segments():
            recordings.remove(recording.path)


def _carry_out(recording: Recording) -> None:
    """Put the recordings that were made from RECORDING to their places, and remove its segments that they are made from."""
    made = os.path.join(recording.path, _MADE)
    note = recordings.read_json(os.path.join(recording.path, _NOTE))
    if note is not None:
        for name, stamp in note["recordings"]:
            source = os.path.join(made, name, stamp)
            if os.path.isdir(source):
                make_folder(os.path.join(recordings.FOLDER, name))
                os.rename(source, os.path.join(recordings.FOLDER, name, stamp))
        segments = [part for part in recording.list_segments() if part.number <= note["through"]]
        recordings.forget_fetched(recording, segments, has_ended=False)
        recordings.write_json(os.path.join(recording.path, _OWNERS), note["owners"])
        os.unlink(os.path.join(recording.path, _NOTE))
    shutil.rmtree(made, ignore_errors=True)


@dataclass(frozen=True)
class _Part:
    """The SEGMENTS of RECORDING that are distributed now.

    END is why and when the recording ended, None if it goes on. SILENCE has reasons why the last segment may not be finished.
    """

    recording: Recording
    segments: list[Segment]
    end: dict[str, Any] | None
    silence: list[str]

    @property
    def about(self) -> dict[str, Any]:
        """Return the description of the rule's recording."""
        return self.recording.about

    @property
    def rule(self) -> str:
        """Return the name of the rule."""
        return find_rule(self.recording)

    @property
    def last_s(self) -> float:
        """Return when the last segment was finished, in seconds since the epoch; now if it was not."""
        return float((self.segments[-1].end or {}).get("time") or time.time())

    @property
    def unwritten(self) -> int:
        """Return how many events the recorder had read and could not write."""
        return sum((segment.end or {}).get("unwritten", 0) for segment in self.segments)

    def count_lost(self) -> dict[str, int]:
        """Return CPU → events lost while the segments were written."""
        sums = dict.fromkeys(map(str, self.about["cpus"]), 0)
        for segment in self.segments:
            for cpu, count in segment.count(recordings.LOST).items():
                sums[str(cpu)] += count
        return sums

    def list_reasons(self, strange: int) -> list[str]:
        """Return, in words, why events of any container may be missing; STRANGE is the number of events that belong to nobody."""
        found = [reason for segment in self.segments for reason in (segment.end or {}).get("touched", ())]
        lost = sum(self.count_lost().values()) + self.unwritten
        if lost:
            found.append(f"{lost} events of all containers of rule {self.rule} were lost; they may be this one's")
        rotated = self.recording.read_rotated()
        deleted = rotated["events"] + rotated["lost"]
        if deleted:
            found.append(f"{deleted} earlier events of all containers of rule {self.rule} were deleted to make room")
        if strange:
            found.append(f"{strange} events of rule {self.rule} are of threads whose container is not known")
        if any(segment.end is None for segment in self.segments):
            found.append("the recorder died, and tracing stopped with it")
        found += self.silence
        return list(dict.fromkeys(found))


@dataclass
class _Output:
    """The recording that is made for one container, called NAME in FOLDERs of its instance and of STAMP.

    STARTS: what is known of the container's starts. COUNTS: CPU → events. LATE: True if a start does not begin with its execve.
    """

    name: str
    stamp: str
    folder: str
    starts: list[Started]
    counts: dict[int, int] = field(default_factory=dict)
    late: bool = False

    def write(self, cpu: int, page: bytes) -> None:
        """Append PAGE of CPU."""
        path = os.path.join(self.folder, f"cpu{cpu}")
        # With hundreds of containers and processors not all files can be open.
        with open(path, "ab", buffering=0, opener=open_private) as file:
            done = 0
            while done < len(page):
                done += file.write(page[done:])

    @property
    def last(self) -> dict[str, Any]:
        """Return what is known of the container's last start."""
        return self.starts[-1].about


def _make(instance: Instance, part: _Part) -> None:
    """Make recordings of containers from PART, of INSTANCE, and the note that they are complete."""
    _check_room(part)
    made = os.path.join(part.recording.path, _MADE)
    started = starts_log.read(segment.path for segment in part.segments)
    number_of_last = part.segments[-1].number
    stamp = os.path.basename(part.recording.path)[:-1] + f"-{recordings.format_number(number_of_last)}Z"
    outputs: dict[str, _Output] = {}
    by_number: dict[int, _Output] = {}
    try:
        _ask_podman(part, started)
        for number, one in started.items():
            container = one.about.get("container")
            if container is None or one.about.get("verdict") not in _KEPT:
                continue
            name = INSTANCE_PREFIX + _read_container(container).short_id
            if name not in outputs:
                folder = os.path.join(made, name, stamp, recordings.format_number(1))
                os.makedirs(folder, 0o700)
                outputs[name] = _Output(name, stamp, folder, [])
            outputs[name].starts.append(one)
            by_number[number] = outputs[name]
        strange, owners = _split(instance, part, started, by_number)
        saved = Instance(instance.root, "..").read("saved_cmdlines") if outputs else ""
        reasons = part.list_reasons(strange)
        for output in outputs.values():
            _describe(part, output, [_tell_late(output), *reasons] if output.late else reasons, saved)
        note = {"recordings": [(name, stamp) for name in outputs], "through": number_of_last, "owners": owners}
        recordings.write_json(os.path.join(part.recording.path, _NOTE), note)
    except OSError as error:
        shutil.rmtree(made, ignore_errors=True)
        raise FleetError(
            f"the events of rule {part.rule} cannot be sorted by container ({error.strerror} in {recordings.FOLDER}): see that there is"
            " room, and fetch again"
        ) from error
    except (ValueError, struct.error) as error:
        shutil.rmtree(made, ignore_errors=True)
        raise FleetError(
            f"the recording of rule {part.rule} in {part.recording.path} is damaged ({error}): keep a copy if it matters, and remove the"
            f" rule (state=absent, rule={part.rule})"
        ) from error


def _check_room(part: _Part) -> None:
    """Raise FleetError if a second copy of PART's events, which exists for a moment, would leave less room than other recordings need."""
    size = sum(sum(segment.sizes.values()) for segment in part.segments)
    left = recordings.find_free(part.recording.path) - size
    least = int(part.about["limits"].get("min_free") or 0)
    if left < least:
        raise FleetError(
            f"sorting the {format_bytes(size)} of rule {part.rule} by container would leave {format_bytes(max(0, left))} in"
            f" {recordings.FOLDER}, less than its min_free ({format_bytes(least)}): make room there, and fetch again"
        )


def _read_container(described: Mapping[str, Any]) -> Container:
    """Return the container that the log of starts has DESCRIBED; its present state is not known."""
    return Container(**{**described, "state": _STARTED, "pid": 0})


def _ask_podman(part: _Part, started: Mapping[int, Started]) -> None:
    """Complete what is known of Podman's containers among STARTED: only Podman knows their images and labels, also of removed ones.

    Where it does not answer, a container that may be meant is kept.
    """
    asked = [one for one in started.values() if (one.about.get("container") or {}).get("runtime") == podman.Podman.name]
    if not asked:
        return
    # An event of Podman comes some time before the control group.
    since_s = min(one.about["start"]["real_time_ns"] for one in asked) / 1e9 - _BEFORE_S
    history: dict[str, tuple[str, dict[str, str]]] = {}
    with suppress(ContainerError):
        history = podman.read_history(since_s)
    matches = rules.from_json(part.about["record"]["rule"]).make_matcher()
    for one in asked:
        container = one.about["container"]
        if container["id"] in history:
            container["image"], container["labels"] = history[container["id"]]
            if one.about["verdict"] == starts_log.UNDECIDED:
                is_meant = matches(_read_container(container))
                one.about["verdict"] = starts_log.TRACED if is_meant else starts_log.UNMEANT


def _split(
    instance: Instance, part: _Part, started: dict[int, Started], outputs: dict[int, _Output]
) -> tuple[int, dict[str, int]]:
    """Write the events of PART, of INSTANCE, to OUTPUTS (number of a start → output).

    STARTED: number → what is known of each start, also of those that are not kept.
    Returns how many events belong to nobody, and thread → number for the latest threads, of which later segments have events.
    """
    page_size, recording = part.about["page_size"], part.recording
    with open(os.path.join(recording.path, recordings.HEAD), "rb") as file:
        head = trace_dat_reader.read_head(file)
    new_task = split.parse_new_task(_find_format(head.event_formats, "task", "task_newtask"))
    rest = instance if part.end == {"why": recordings.DIED} and recording.is_of(instance) else None
    pages = {cpu: _read_pages(part.segments, cpu, page_size, rest) for cpu in part.about["cpus"]}
    roots = [(time_ns, tid, number) for number, one in started.items() for time_ns, tid in one.threads]
    # The births of threads that live on are in segments that are gone.
    earlier = recordings.read_json(os.path.join(recording.path, _OWNERS)) or {}
    owners = split.find_owners(
        roots,
        (page for found in pages.values() for page in found()),
        page_size,
        new_task,
        {int(tid): number for tid, number in earlier.items()},
    )
    execve = split.parse_number(_find_format(head.event_formats, "sched", "sched_process_exec"))
    first: dict[int, tuple[int, int]] = {}
    strange = 0
    for cpu, gen_pages in pages.items():
        splitter = split.Splitter(owners, new_task, page_size, lambda owner: owner in outputs)
        for page in gen_pages():
            for owner, full in splitter.split(page):
                outputs[owner].write(cpu, full)
        for owner, last in splitter.finish():
            outputs[owner].write(cpu, last)
        for owner, count in splitter.counts.items():
            outputs[owner].counts[cpu] = outputs[owner].counts.get(cpu, 0) + count
        for owner, event in splitter.first.items():
            first[owner] = min(event, first.get(owner, event))
        strange += splitter.strange
    begin_ns = part.segments[0].begin["time"] * 1e9
    for number, output in outputs.items():
        begun = started[number].about.get("start")
        # What runs on from an earlier segment does not begin here.
        if begun is not None and begun["real_time_ns"] >= begin_ns:
            _time, kind = first.get(number, (0, None))
            output.late |= kind != execve
    return strange, {str(tid): number for tid, number in owners.list_last(_MAX_OWNERS).items()}


def _find_format(formats: dict[str, list[bytes]], system: str, event: str) -> str:
    for text in formats.get(system, ()):
        if text.startswith(f"name: {event}\n".encode()):
            return text.decode("utf-8", "replace")
    raise FleetError(f"the recording does not describe the event {event}: it is damaged")


def _read_pages(
    segments: list[Segment], cpu: int, page_size: int, instance: Instance | None
) -> Callable[[], Iterator[bytes]]:
    """Return a function that yields the pages of CPU in SEGMENTS, then those left in the buffers of INSTANCE, which it reads once."""
    rest: list[bytes] = []
    with suppress(drain.Unreadable):
        rest += drain.gen_pages(instance, cpu, page_size) if instance is not None else ()

    def gen_pages() -> Iterator[bytes]:
        for piece in recordings.gen_pages(segments, cpu):
            for start in range(0, len(piece) - page_size + 1, page_size):
                yield piece[start : start + page_size]
        yield from rest

    return gen_pages


def _tell_late(output: _Output) -> str:
    """Return why OUTPUT does not begin with the execve of its container's first program, with what the engine says of the container."""
    said = tell_end(_read_container(output.last["container"]))
    return f"{_LATE}; its engine says: {said}" if said else _LATE


def _describe(part: _Part, output: _Output, reasons: list[str], saved: str) -> None:
    """Write all files but the pages of OUTPUT, the recording of one container that is made from PART.

    REASONS say in words why events may be missing, SAVED is the kernel's saved_cmdlines.
    """
    path = os.path.dirname(output.folder)
    begun = output.starts[0].about.get("start") or part.about["record"]["start"]
    # What an earlier segment had of a container that runs on is in an earlier capture.
    first_s = part.segments[0].begin["time"]
    changed = begun if begun["real_time_ns"] >= first_s * 1e9 else _at(begun, first_s)
    record = {
        **{name: value for name, value in part.about["record"].items() if name != "rule"},
        "container": output.last["container"],
        "start": begun,
        "changed": changed,
        "tasks": [task for one in output.starts for task in one.about.get("tasks") or []],
        "followed": _describe_following(part, output.last),
        metadata.HOLDINGS: {},
    }
    more = {"container": output.last["container"], "instance": output.name, "record": record, "rule": part.rule}
    recordings.write_json(os.path.join(path, recordings.ABOUT), {**part.about, **more, "started": time.time()})
    shutil.copyfile(os.path.join(part.recording.path, recordings.HEAD), os.path.join(path, recordings.HEAD))
    lost = part.count_lost()
    begin = {"time": first_s, "cpus": dict.fromkeys(lost, _NO_COUNTERS), "exact": True}
    recordings.write_json(os.path.join(output.folder, recordings.BEGIN), begin)
    ended_s = output.last.get("ended") or part.last_s
    after = {
        cpu: {**_NO_COUNTERS, "read": output.counts.get(int(cpu), 0), "overrun": count} for cpu, count in lost.items()
    }
    segments_end: dict[str, Any] = {"time": ended_s, "cpus": after, "unwritten": 0, "touched": []}
    recordings.write_json(os.path.join(output.folder, recordings.END), segments_end)
    has_ended = "ended" in output.last or "stopped" in output.last
    end = {
        "why": output.last.get("stopped") or (None if has_ended else (part.end or {}).get("why")),
        "time": _at(begun, ended_s),
        "tasks": [],
        "saved_cmdlines": saved,
        "lost": part.unwritten,
        "touched": reasons,
        "goes_on": part.end is None and not has_ended,
    }
    recordings.write_json(os.path.join(path, recordings.END), end)
    recordings.begin(path)


def _describe_following(part: _Part, start: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the processes of the container with START were followed, as its manifest says it."""
    can_descend = bool(part.about["limits"].get("descends"))
    has_shim = bool(start.get("has_shim"))
    return Following(descends=can_descend and has_shim, watch_exec=can_descend and not has_shim).describe()


def _at(reading: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return READING, one of the clocks, as it is at SECONDS since the epoch."""
    return {**reading, "real_time_ns": int(seconds * 1e9)}
