#!/usr/bin/env bash
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# Integration tests of the checkout as it stands, without ansible-test: some.sh BUILD TARGET EXPRESSION. Without TARGET those of all targets,
# without EXPRESSION (as pytest's -k) all. With KEEP=1 in the environment the engine goes on, and the next call takes it.
set -euo pipefail
build=$1 target=$2 expression=$3
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root/tests/integration"
export PYTHONPATH=$root/.collections
command=(python -m pytest -c pytest.ini --rootdir . ${target:+"targets/$target"} ${expression:+-k "$expression"})
if [ -z "${KEEP:-}" ]; then
    exec "$root/tests/integration/with_engine.sh" "$build/test-engine" env -C "$PWD" "${command[@]}"
fi
"$root/tools/install_packages.sh" docker.io openssh-server podman python3-docker python3-jmespath sudo bsdutils procps
mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing
engine=$build/kept-engine
DOCKER_HOST=unix://$engine/docker.sock
docker -H "$DOCKER_HOST" version >/dev/null 2>&1 || {
    "$root/tools/engine.sh" stop "$engine"
    "$root/tools/engine.sh" start "$engine" >/dev/null
}
export DOCKER_HOST
echo "the engine goes on: tools/engine.sh stop $engine ends it"
exec "${command[@]}"
