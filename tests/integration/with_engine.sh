#!/usr/bin/env bash
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs a command with a private Docker engine and a mounted tracefs: with_engine.sh DIR COMMAND… With KEEP in the environment the
# engine keeps running afterwards, and the next call uses it. ansible-test runs in the staged collection beside DIR. All others stay where they
# are, since the next `make lint` stages the collection anew.
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
    # The signal goes to the whole process group: ansible-test alone would leave pytest running, and pytest removes its objects when it is
    # interrupted. A command that has failed is gone already. The exit code of an interrupted command does not matter.
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
    "$root/tools/engine.sh" stop "$dir" # a killed engine has left files and processes
    DOCKER_HOST=$("$root/tools/engine.sh" start "$dir")
fi
export DOCKER_HOST CRASHCART_CHECKOUT=$root
if [ "$1" = ansible-test ]; then
    cd "$(dirname "$dir")/ansible_collections/crashcart/fleet"
    mkdir -p tests/output
    # Variables that ansible-test does not hand down.
    for name in DOCKER_HOST CRASHCART_CHECKOUT CRASHCART_TESTS CRASHCART_TEST_PATIENCE; do
        printf '%s=%q\n' "$name" "${!name:-}"
    done >tests/output/environment
fi
set -m # gives the command a process group of its own
"$@" &
command=$!
wait "$command"
command=
