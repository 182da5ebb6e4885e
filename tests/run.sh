#!/usr/bin/env bash
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# `make test`: each part in turn, with its time; the first that fails ends it.
set -euo pipefail
cd "$(dirname "$0")/.."
parts=(setup lint sanity unit integration package readme demo)
times=()
for part in "${parts[@]}"; do
    echo "== $part"
    start=$SECONDS
    make --no-print-directory "$part"
    times+=("$(printf '%-12s %4d s' "$part" $((SECONDS - start)))")
done
echo "== all parts passed"
printf '%s\n' "${times[@]}" "$(printf '%-12s %4d s' total $SECONDS)"
