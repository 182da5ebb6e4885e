#!/usr/bin/env bash
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs a command with a Docker engine of its own and tracefs mounted: with_engine.sh DIR COMMAND… With KEEP in the environment the
# engine goes on afterwards, and the next call takes it.
# The command is run in the staged collection beside DIR.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
dir=$1
shift
"$root/tools/install_packages.sh" docker.io openssh-server podman python3-docker python3-jmespath sudo bsdutils procps
mounted=
command=
if ! grep -q ' /sys/kernel/tracing tracefs ' /proc/mounts; then
    mount -t tracefs tracefs /sys/kernel/tracing
    mounted=1
fi
finish() {
    local status=$?
    trap - EXIT INT TERM
    # All of it: ansible-test would leave pytest, which ends what it has made when it is interrupted. There is nothing to interrupt where the
    # command has failed; and what one that is interrupted ends with is known.
    if [ -n "$command" ] && kill -INT -- "-$command" 2>/dev/null; then
        wait "$command" || true
    fi
    [ -n "${KEEP:-}" ] || "$root/tools/engine.sh" stop "$dir" || status=1
    [ -z "$mounted" ] || umount /sys/kernel/tracing || true
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM
DOCKER_HOST=unix://$dir/docker.sock
if [ -z "${KEEP:-}" ]; then
    DOCKER_HOST=$("$root/tools/engine.sh" start "$dir")
elif ! docker -H "$DOCKER_HOST" version >/dev/null 2>&1; then
    "$root/tools/engine.sh" stop "$dir" # what one that was killed has left
    DOCKER_HOST=$("$root/tools/engine.sh" start "$dir")
fi
export DOCKER_HOST CRASHCART_CHECKOUT=$root
if [ -d "$(dirname "$dir")/ansible_collections/crashcart/fleet" ]; then
    cd "$(dirname "$dir")/ansible_collections/crashcart/fleet"
    mkdir -p tests/output
    # What ansible-test does not hand down.
    for name in DOCKER_HOST CRASHCART_CHECKOUT CRASHCART_TESTS CRASHCART_TEST_PATIENCE; do
        printf '%s=%q\n' "$name" "${!name:-}"
    done >tests/output/environment
fi
set -m # a process group of its own
"$@" &
command=$!
wait "$command"
command=
