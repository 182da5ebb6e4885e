#!/usr/bin/env bash
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# tests/part.sh N: prints which of N parts of the tests this commit runs, as `2/6`: another one with each commit.
set -euo pipefail
cd "$(dirname "$0")/.."
parts=$1
[[ $parts =~ ^[1-9][0-9]*$ ]] || {
    echo "PARTS=$parts is no number of parts: give one as in make test PARTS=3" >&2
    exit 1
}
if [ "$(git rev-parse --is-shallow-repository 2>/dev/null)" = false ]; then
    number=$(git rev-list --count HEAD)
else # the commits cannot be counted
    number=$((16#$(git rev-parse --short=7 HEAD 2>/dev/null || echo 0)))
fi
echo "$((number % parts + 1))/$parts"
