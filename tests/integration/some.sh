#!/usr/bin/env bash
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs integration tests of the checkout itself, without ansible-test: some.sh BUILD TARGET EXPRESSION. An empty TARGET means all targets, and an
# empty EXPRESSION (pytest's -k) all tests. With KEEP=1 in the environment the engine keeps running, and the next call uses it.
set -euo pipefail
build=$1 target=$2 expression=$3
root=$(cd "$(dirname "$0")/../.." && pwd)
engine=$build/test-engine
if [ -n "${KEEP:-}" ]; then
    engine=$build/kept-engine
    echo "the engine keeps running: tools/engine.sh stop $engine ends it"
fi
exec "$root/tests/integration/with_engine.sh" "$engine" env -C "$root/tests/integration" PYTHONPATH="$root/.collections" \
    python -m pytest -c pytest.ini --rootdir . ${target:+"targets/$target"} ${expression:+-k "$expression"}
