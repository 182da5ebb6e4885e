#!/usr/bin/env bash
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# `make test`: each target with its time; the first that fails ends it. The targets that need this machine's engine and kernel are one row,
# the targets that need neither are another row beside it: together they keep two cores busy.
set -euo pipefail
cd "$(dirname "$0")/.."
# One of so many parts of the integration tests, another one with each commit; the beginning and the end of the output say which.
parts=${PARTS:-6}
export CRASHCART_TESTS=${CRASHCART_TESTS:-$(($(git rev-list --count HEAD 2>/dev/null || echo 0) % parts + 1))/$parts}
times=build/times
log=build/beside.log
mkdir -p build
: >"$times"

note() { # A target that has passed, and when it began
    printf '%-12s %4d s\n' "$1" $((SECONDS - $2)) >>"$times"
}

run() { # A target of make
    local start=$SECONDS
    echo "== $1"
    make --no-print-directory "$1" &
    part=$!
    wait "$part"
    part=
    note "$1" "$start"
}

run_beside() { # The same for several targets, with a build folder of their own; told to end it ends them
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
run_beside lint sanity unit package builds >"$log" 2>&1 &
beside=$!
# The row with this machine's engine is the longer one and mostly waits: whenever it can go on, the other one stands back.
chrt --idle --pid 0 "$beside"
# Also when a part fails or the run is interrupted nothing may go on. A row that has ended cannot be killed any more, and one that is killed
# fails: by then neither is an error.
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
    kill -0 "$beside" 2>/dev/null || wait "$beside" || break # no use to go on
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
