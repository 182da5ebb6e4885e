#!/usr/bin/env bash
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# A Docker engine of our own for demo and tests, beside any that is there and without touching it.
#
#   engine.sh start DIR   starts dockerd with everything below DIR and prints the value for DOCKER_HOST
#   engine.sh stop DIR    ends it and removes DIR
#
# It stands in a network namespace of its own: an engine without a bridge would remove that of the engine beside it.
# So its containers have `--network none`.
set -euo pipefail

start() {
    local dir=$1 log=$1/dockerd.log
    mkdir -p "$dir"
    command -v dockerd >/dev/null || {
        echo "installing docker.io" >&2
        apt-get install -y -qq docker.io >&2
    }
    setsid unshare --net dockerd --data-root "$dir/data" --exec-root "$dir/exec" --pidfile "$dir/docker.pid" --host "unix://$dir/docker.sock" \
        --bridge none --iptables=false --ip6tables=false --containerd-namespace crashcart-test \
        --containerd-plugins-namespace crashcart-test-plugins >"$log" 2>&1 &
    for _ in $(seq 300); do
        if docker -H "unix://$dir/docker.sock" version >/dev/null 2>&1; then
            echo "unix://$dir/docker.sock"
            return
        fi
        sleep 0.1
    done
    echo "the Docker engine did not start; the end of its log:" >&2
    tail -n 20 "$log" >&2
    exit 1
}

stop() {
    local dir=$1 pid ids
    [ -d "$dir" ] || return 0
    if [ -f "$dir/docker.pid" ]; then
        pid=$(cat "$dir/docker.pid")
        ids=$(docker -H "unix://$dir/docker.sock" ps -aq 2>/dev/null || true)
        # shellcheck disable=SC2086 # ids are words
        [ -z "$ids" ] || docker -H "unix://$dir/docker.sock" rm -f $ids >/dev/null
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 300); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
    fi
    grep -o " ${dir}[^ ]*" /proc/mounts | sort -r | while read -r mount; do umount "$mount"; done || true
    rm -rf "$dir"
}

case "${1:-}" in
    start | stop) "$1" "$(mkdir -p "$(dirname "$2")" && cd "$(dirname "$2")" && pwd)/$(basename "$2")" ;;
    *) sed -n 's/^#   //p' "$0" >&2; exit 2 ;;
esac
