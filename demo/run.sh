#!/usr/bin/env bash
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# Plays demo.yml on this machine and leaves the machine as it was. `make demo` calls this script.
set -euo pipefail
cd "$(dirname "$0")/.."
results=$PWD/build/demo
engine=$PWD/build/demo-engine
rm -rf "$results"
mkdir -p "$results"
# The checkout's inventory may have other hosts by now, so the demo has its own.
printf 'localhost ansible_connection=local ansible_python_interpreter="{{ ansible_playbook_python }}"\n' >"$results/hosts"
export ANSIBLE_INVENTORY=$results/hosts
started=
made=
installed=
had_tracefs=$(grep ' tracefs ' /proc/mounts || true)

finish() {
    local status=$?
    trap - EXIT INT TERM
    [ -z "$made" ] || docker rm -f shop >/dev/null || status=1
    [ -z "$made" ] || docker rmi -f crashcart-demo/shop >/dev/null || status=1
    [ -z "$installed" ] || ansible-playbook playbooks/cleanup.yml >"$results/cleanup.log" 2>&1 || {
        cat "$results/cleanup.log"
        status=1
    }
    # The role mounts tracefs, as a distribution does. The demo unmounts it where it was not mounted before.
    [ -n "$had_tracefs" ] || ! grep -q ' /sys/kernel/tracing tracefs ' /proc/mounts || umount /sys/kernel/tracing || status=1
    [ -z "$started" ] || tools/engine.sh stop "$engine"
    if [ "$status" = 0 ]; then
        echo
        echo "The host is clean again. Trace and report lie in ${results#"$PWD"/}."
    fi
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

if command -v docker >/dev/null && docker version >/dev/null 2>&1; then
    echo "A Docker engine answers: the demo uses it."
else
    echo "No Docker engine answers: the demo starts one of its own in ${engine#"$PWD"/}."
    started=1
    DOCKER_HOST=$(tools/engine.sh start "$engine")
    export DOCKER_HOST
fi
if [ -e /var/lib/crashcart ]; then
    echo "This host is in use: /var/lib/crashcart is there, and the demo ends with a cleanup. Run playbooks/cleanup.yml first." >&2
    exit 1
fi
installed=1
if docker container inspect shop >/dev/null 2>&1; then
    echo "A container called shop is there already, and the demo will not touch it: rename or remove it first." >&2
    exit 1
fi

PYTHONPATH=.collections python tools/make_container_image.py crashcart-demo/shop --package python3 \
    --file /app/shop.py=demo/shop.py --cmd /usr/bin/python3 /app/shop.py
made=1
docker run -d --name shop --network none --read-only --cap-drop ALL --user 1000 crashcart-demo/shop >/dev/null
ansible-playbook playbooks/install.yml >"$results/install.log" || {
    cat "$results/install.log"
    exit 1
}
ANSIBLE_DISPLAY_OK_HOSTS=true ansible-playbook demo/demo.yml -e demo_results="$results"
