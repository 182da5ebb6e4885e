#!/usr/bin/env bash
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# `make test`: runs all parts and prints their times. The first failure ends the run. The parts that need this machine's engine and kernel
# run one after the other. The parts that need neither (the fleet's guests have their own) run beside them, so that two cores are busy.
set -euo pipefail
cd "$(dirname "$0")/.."
times=build/times
log=build/beside.log
mkdir -p build
: >"$times"

note() { # PART START: note the time of PART, which has passed and began at START
    printf '%-12s %4d s\n' "$1" $((SECONDS - $2)) >>"$times"
}

run() { # TARGET: run the target of make
    local start=$SECONDS
    echo "== $1"
    make --no-print-directory "$1" &
    part=$!
    wait "$part"
    part=
    note "$1" "$start"
}

run_beside() { # TARGET…: run several targets of make with a build folder of their own; SIGTERM ends them, too
    trap 'kill "$part"; wait "$part"; exit 1' TERM
    for target in "$@"; do
        local start=$SECONDS
        echo "== $target"
        make --no-print-directory BUILD="$PWD/build/beside" "$target" &
        part=$!
        wait "$part"
        note "$target" "$start"
    done
}

part=
run setup
python3 tests/fleet/fleet.py packages
run_beside lint sanity unit package builds fleet >"$log" 2>&1 &
beside=$!
# The parts with this machine's engine take longer and mostly wait. So they get the processors first, and the others the idle time.
chrt --idle --pid 0 "$beside"
# Nothing may go on after a failure or an interrupt. A process that has ended cannot be killed, and one that is killed fails: both are
# no errors here.
finish() {
    for row in $part "$beside"; do
        if kill "$row" 2>/dev/null; then
            wait "$row" || true
        fi
    done
    python3 tests/fleet/fleet.py down
}
trap finish EXIT
trap 'exit 130' INT TERM
for target in readme demo integration; do
    kill -0 "$beside" 2>/dev/null || wait "$beside" || break # the parts beside have failed, so the run has failed
    run "$target"
done
wait "$beside" || {
    cat "$log"
    exit 1
}
tail -n 20 "$log"
echo "== all parts passed, in two rows"
cat "$times"
printf '%-12s %4d s\n' total $SECONDS
