#!/usr/bin/env bash
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# `make test`: each part in turn, with its time; the first that fails ends it. The fleet's guests have kernels of their own and
# compute beside all other parts, since neither needs both cores all the time.
set -euo pipefail
cd "$(dirname "$0")/.."
times=()

run() { # A target of make, and variables for it
    local start=$SECONDS
    echo "== $*"
    make --no-print-directory "$@"
    times+=("$(printf '%-12s %4d s' "$1" $((SECONDS - start)))")
}

run setup
python3 tests/fleet/fleet.py packages
log=build/fleet.log
mkdir -p build
fleet_start=$SECONDS
make --no-print-directory fleet >"$log" 2>&1 &
fleet=$!
# Also when a part fails or the run is interrupted no guest may go on; by then the fleet's own run may have ended, which is no error.
trap 'kill "$fleet" 2>/dev/null && wait "$fleet" || true; python3 tests/fleet/fleet.py down' EXIT
for part in lint sanity unit package readme demo integration; do
    run "$part"
done
echo "== fleet"
wait "$fleet" || {
    cat "$log"
    exit 1
}
tail -n 20 "$log"
times+=("$(printf '%-12s %4d s, beside the parts above' fleet $((SECONDS - fleet_start)))")
echo "== all parts passed"
printf '%s\n' "${times[@]}" "$(printf '%-12s %4d s' total $SECONDS)"
