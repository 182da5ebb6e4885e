#!/usr/bin/env bash
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# Integration tests of the checkout as it stands, without ansible-test: some.sh BUILD TARGET EXPRESSION. Without TARGET those of all targets,
# without EXPRESSION (as pytest's -k) all. With KEEP=1 in the environment the engine goes on, and the next call takes it.
set -euo pipefail
build=$1 target=$2 expression=$3
root=$(cd "$(dirname "$0")/../.." && pwd)
engine=$build/test-engine
if [ -n "${KEEP:-}" ]; then
    engine=$build/kept-engine
    echo "the engine goes on: tools/engine.sh stop $engine ends it"
fi
exec "$root/tests/integration/with_engine.sh" "$engine" env -C "$root/tests/integration" PYTHONPATH="$root/.collections" \
    python -m pytest -c pytest.ini --rootdir . ${target:+"targets/$target"} ${expression:+-k "$expression"}
