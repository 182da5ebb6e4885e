# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make fuzz`: damage good captures at random, and analyse each. A report or a clear error is fine; everything else is a fault.

Each case has a seed of its own: the first one's is SEED, and the next ones follow it. So `make fuzz N=1 SEED=…` makes one case again.
With --bounds, numba checks each index of the compiled pass; that code has a folder of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback

_FOUND = 3  # exit code of a process whose cases showed faults; Python itself ends with 1 for an exception
_LIMIT_S = (
    20  # of processor time for a case, which takes some milliseconds: the machine may be busy with something else
)
_STUCK_S = 600  # for a case that waits for something, and until the first case: the pass is compiled
_MEMORY = 1 << 30  # bytes beyond what the process has after the first capture
_MAX_FAULTS = 20
_STATE = struct.Struct("qqqq")  # cases begun, reports, faults, and the current case's seed


def main():
    options = _parse()
    if options.part is not None:
        _work(options)
        return
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(5), "little")
    begin = time.monotonic()
    what = "with bounds checks, " if options.bounds else ""
    print(f"fuzz: {options.cases} cases, {what}SEED={seed}", flush=True)
    with contextlib.ExitStack() as stack:
        environment = {**os.environ, "NUMBA_CACHE_DIR": stack.enter_context(_open_cache(options.bounds))}
        # The tables of a pass are hardly used by small captures, so huge pages would only take time to be cleared.
        environment["NUMPY_MADVISE_HUGEPAGE"] = "0"
        if options.bounds:
            environment["NUMBA_BOUNDSCHECK"] = "1"
        scratch = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="crashcart-fuzz-", dir=scratch))
        faults, reports = _run_all(options, seed, folder, environment)
    taken = time.monotonic() - begin
    print(
        f"fuzz: SEED={seed}: {options.cases} cases in {taken:.0f} s ({options.cases / taken:.0f}/s), "
        f"{reports} reports, {options.cases - reports - faults} errors, {faults} faults",
        flush=True,
    )
    sys.exit(_FOUND if faults else 0)


def _parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--bounds", action="store_true")
    parser.add_argument("--keep", default="build/fuzz", help="folder for captures that show a fault")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--state", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


@contextlib.contextmanager
def _open_cache(has_bounds):
    """Yield the folder of compiled code: the reports' own, and one beside it for code that checks bounds."""
    from ansible_collections.crashcart.fleet.plugins.plugin_utils import compiled_cache

    with compiled_cache.open_cache() as folder:
        yield folder + "-bounds" if has_bounds else folder


def _run_all(options, seed, folder, environment):
    """Run all cases in a process for each processor; return the numbers of faults and of reports."""
    workers = min(len(os.sched_getaffinity(0)), max(1, options.cases // 100))
    shares = [options.cases // workers + (place < options.cases % workers) for place in range(workers)]
    if options.cases > 1:
        _Worker(options, seed, 0, os.path.join(folder, "first"), environment).finish()  # compiles
    crew, first = [], seed
    for place, share in enumerate(shares):
        crew.append(_Worker(options, first, share, os.path.join(folder, str(place)), environment))
        first += share
    live = crew
    while live:
        time.sleep(0.1)
        live = [worker for worker in live if worker.poll()]
    return sum(worker.faults for worker in crew), sum(worker.reports for worker in crew)


class _Worker:
    """A process that runs COUNT cases from seed FIRST on, and another one in its place when a case ends it."""

    def __init__(self, options, first, count, folder, environment):
        os.mkdir(folder)
        self._options, self._folder, self._environment = options, folder, environment
        self._next, self._end = first, first + count
        self.faults = self.reports = 0
        self._start()

    def _start(self):
        path = os.path.join(self._folder, "state")
        with open(path, "wb") as file:
            file.write(bytes(_STATE.size))
        with open(path, "r+b") as file:
            self._state = mmap.mmap(file.fileno(), _STATE.size)
        words = [sys.executable, os.path.abspath(__file__), str(self._end - self._next), f"--seed={self._next}"]
        words += [f"--keep={self._options.keep}", "--part=1", f"--state={path}", f"--folder={self._folder}"]
        self._process = subprocess.Popen(
            [*words, *(["--bounds"] if self._options.bounds else [])], env=self._environment
        )
        self._seen, self._since, self._used_s = -1, time.monotonic(), 0.0

    def _read_used(self):
        """Return the seconds of processor time that the process has used (proc(5))."""
        with open(f"/proc/{self._process.pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def poll(self):
        """Return True while there is something to do."""
        if self._process is None:
            return False
        begun, reports, faults, seed = _STATE.unpack(self._state[:])
        code = self._process.poll()
        if code is None:
            if begun != self._seen:
                self._seen, self._since, self._used_s = begun, time.monotonic(), self._read_used()
            is_slow = begun and self._read_used() - self._used_s > _LIMIT_S
            if is_slow or time.monotonic() - self._since > _STUCK_S:
                self._process.kill()
                self._process.wait()
                code = "it takes too long" if begun else "the first capture takes too long"
            else:
                return True
        self.reports += reports
        self.faults += faults
        self._process = None
        if code in (0, _FOUND):
            return False
        if not begun:
            print(f"fuzz: no case could be run: {code}", flush=True)
            self.faults += 1
            return False
        name = signal.Signals(-code).name if isinstance(code, int) and code < 0 else code
        _keep(self._options, seed, *make_case(seed), f"the process ended: {name}")
        self.faults += 1
        self._next = seed + 1
        if self._next >= self._end or self.faults >= _MAX_FAULTS:
            return False
        self._start()
        return True

    def finish(self):
        """Wait for the process, which has no case."""
        if self._process.wait():
            sys.exit("fuzz: the good captures cannot be analysed")


def make_case(seed):
    """Return file and manifest of the case with SEED."""
    from ansible_collections.crashcart.fleet.tests.fuzz import mutate
    from ansible_collections.crashcart.fleet.tests.fuzz.samples import make_all

    source = random.Random(seed)
    return mutate.damage(source.choice(make_all()), source)


def _keep(options, seed, data, manifest, why):
    """Keep the capture that shows a fault, and say what happened."""
    os.makedirs(options.keep, exist_ok=True)
    path = os.path.join(options.keep, f"{seed}.dat")
    for name, content in ((path, data), (path[:-4] + ".json", manifest)):
        if content is not None:
            with open(name, "wb") as file:
                file.write(content)
    bounds = " BOUNDS=1" if options.bounds else ""
    print(f"fuzz: FAULT: {why.rstrip()}\n  again: make fuzz N=1 SEED={seed}{bounds}; the capture is {path}", flush=True)


def _work(options):
    """Run the cases in this process."""
    from ansible_collections.crashcart.fleet.tests.fuzz.check import Fault, check
    from ansible_collections.crashcart.fleet.tests.fuzz.samples import make_all

    with open(options.state, "r+b") as file:
        state = mmap.mmap(file.fileno(), _STATE.size)
    place = os.path.join(options.folder, "case")
    os.makedirs(place, exist_ok=True)
    for sample in make_all():
        for way in range(4):
            if not check(place, sample.pack(), _to_json(sample.manifest), way):
                sys.exit("a good capture gives no report")
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _MEMORY, size + _MEMORY))
    reports = faults = 0
    for index in range(options.cases):
        seed = options.seed + index
        _STATE.pack_into(state, 0, index + 1, reports, faults, seed)
        data, manifest = make_case(seed)
        try:
            reports += check(place, data, manifest, seed)
        except Fault as fault:
            faults += 1
            _keep(options, seed, data, manifest, str(fault))
        except Exception:
            faults += 1
            _keep(options, seed, data, manifest, traceback.format_exc(limit=-6))
        if faults >= _MAX_FAULTS:
            break
    _STATE.pack_into(state, 0, options.cases, reports, faults, 0)
    shutil.rmtree(place, ignore_errors=True)
    sys.exit(_FOUND if faults else 0)


def _to_json(manifest):
    import json

    return json.dumps(manifest).encode()


if __name__ == "__main__":
    main()
