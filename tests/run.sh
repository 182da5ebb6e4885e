#!/usr/bin/env bash
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# `make test`: runs targets of the Makefile and prints their times. The first failure ends the run. The targets that need this machine's engine
# and kernel run one after the other. The targets that need neither run beside them, so that two cores are busy.
set -euo pipefail
cd "$(dirname "$0")/.."
# One of so many parts of the integration tests, another one with each commit; the beginning and the end of the output say which.
CRASHCART_TESTS=${CRASHCART_TESTS:-$(tests/part.sh "${PARTS:-6}")}
export CRASHCART_TESTS
times=build/times
log=build/beside.log
mkdir -p build
: >"$times"

note() { # TARGET START: note the time of TARGET, which has passed and began at START
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
echo "== integration tests: $CRASHCART_TESTS"
run setup
run_beside lint sanity unit fuzz package builds >"$log" 2>&1 &
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
echo "== all has passed, in two rows; of the integration tests: $CRASHCART_TESTS"
cat "$times"
printf '%-12s %4d s\n' total $SECONDS
