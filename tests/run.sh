#!/usr/bin/env bash
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# `make test`: each part in turn, with its time; the first that fails ends it. The fleet's guests compute beside the other
# parts, since neither needs both cores; but the integration tests look at this kernel's state and at time limits, so they are alone.
set -euo pipefail
cd "$(dirname "$0")/.."
times=()

run() {
    local part start=$SECONDS
    for part in "$@"; do
        echo "== $part"
        start=$SECONDS
        make --no-print-directory "$part"
        times+=("$(printf '%-12s %4d s' "$part" $((SECONDS - start)))")
    done
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
run lint sanity unit package readme demo
echo "== fleet"
wait "$fleet" || {
    cat "$log"
    exit 1
}
tail -n 20 "$log"
times+=("$(printf '%-12s %4d s, beside the parts above' fleet $((SECONDS - fleet_start)))")
run integration
echo "== all parts passed"
printf '%s\n' "${times[@]}" "$(printf '%-12s %4d s' total $SECONDS)"
