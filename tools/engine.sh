#!/usr/bin/env bash
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs a private Docker engine for the demo and the tests. An engine that is already running stays untouched.
#
#   engine.sh start DIR [OPTION…]   starts dockerd with all its files below DIR and prints the value for DOCKER_HOST
#   engine.sh stop DIR              ends dockerd and removes DIR
#
# dockerd runs in its own network namespace, since an engine without a bridge would remove the bridge of another engine.
# So its containers need `--network none`.
set -euo pipefail

start() {
    local dir=$1 log=$1/dockerd.log
    shift
    mkdir -p "$dir"
    echo "{}" >"$dir/daemon.json" # not that of another daemon
    command -v dockerd >/dev/null || "$(dirname "$0")/install_packages.sh" docker.io
    setsid unshare --net dockerd --data-root "$dir/data" --exec-root "$dir/exec" --pidfile "$dir/docker.pid" --host "unix://$dir/docker.sock" \
        --config-file "$dir/daemon.json" --bridge none --iptables=false --ip6tables=false --containerd-namespace crashcart-test \
        --containerd-plugins-namespace crashcart-test-plugins "$@" >"$log" 2>&1 &
    echo $! >"$dir/engine.pid" # dockerd writes its own file late, and never where its start fails
    for _ in $(seq 1200); do # a slow machine takes its time
        if docker -H "unix://$dir/docker.sock" version >/dev/null 2>&1; then
            echo "unix://$dir/docker.sock"
            return
        fi
        sleep 0.1
    done
    echo "the Docker engine did not start; the end of its log:" >&2
    tail -n 20 "$log" >&2
    stop "$dir"
    exit 1
}

is_ours() { # PID DIR: succeed if PID is a process of the engine in DIR; another process may have got the number by now
    tr '\0' ' ' <"/proc/$1/cmdline" 2>/dev/null | grep -qF " $2/"
}

end() { # PIDFILE DIR: end the process of the engine in DIR that PIDFILE names
    local pid signal
    [ -f "$1" ] || return 0
    pid=$(cat "$1")
    for signal in TERM KILL; do
        is_ours "$pid" "$2" || return 0
        kill -"$signal" "$pid" 2>/dev/null || true # the process may have just ended, which is no error
        for _ in $(seq 200); do
            is_ours "$pid" "$2" || return 0
            sleep 0.1
        done
    done
}

stop() {
    local dir=$1 ids
    [ -d "$dir" ] || return 0
    # The containers of an engine that does not answer end with the engine.
    ids=$(timeout 60 docker -H "unix://$dir/docker.sock" ps -aq 2>/dev/null || true)
    # shellcheck disable=SC2086 # ids are words
    [ -z "$ids" ] || docker -H "unix://$dir/docker.sock" rm -f $ids >/dev/null
    end "$dir/engine.pid" "$dir"
    end "$dir/exec/containerd/containerd.pid" "$dir" # a killed dockerd leaves its containerd
    grep -o " ${dir}[^ ]*" /proc/mounts | sort -r | while read -r mount; do umount "$mount"; done || true
    rm -rf "$dir"
}

case "${1:-}" in
    start | stop) "$1" "$(mkdir -p "$(dirname "$2")" && cd "$(dirname "$2")" && pwd)/$(basename "$2")" "${@:3}" ;;
    *) sed -n 's/^#   //p' "$0" >&2; exit 2 ;;
esac
