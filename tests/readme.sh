#!/usr/bin/env bash
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs the README's commands as they stand there, on this machine, with a container called api.
set -euo pipefail
build=$1
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
mkdir -p "$build"
sed -n '/<!-- tested -->/,/^```$/p' README.md | grep -v -e '^```' -e '<!--' | sed 's/ -l HOST//' >"$build/readme-commands.sh"
[ "$(grep -c '^ansible' "$build/readme-commands.sh")" -ge 6 ] || {
    echo "the README has fewer commands than it should" >&2
    exit 1
}
[ ! -e /var/lib/crashcart ] || {
    echo "this host is in use: /var/lib/crashcart is there, and the README ends with a cleanup" >&2
    exit 1
}
# This machine alone, whatever hosts the checkout's inventory has by now.
printf 'localhost ansible_connection=local ansible_python_interpreter="{{ ansible_playbook_python }}"\n' >"$build/hosts"
export ANSIBLE_INVENTORY=$build/hosts
[ ! -e traces ] || {
    echo "there are traces in ./traces: move them away first" >&2
    exit 1
}
cat >"$build/readme.sh" <<SCRIPT
set -euxo pipefail
cd "$root"
PYTHONPATH=.collections python -c 'from ansible_collections.crashcart.fleet.tools.make_container_image import make_image as m; m("readme/api", files={"/sleep": "/bin/busybox"}, cmd=["/sleep", "1000"])'
docker run -d --name api --network none readme/api
trap 'docker rm -f api; rm -rf traces; ansible-playbook playbooks/cleanup.yml' EXIT
source "$build/readme-commands.sh"
SCRIPT
tests/integration/with_engine.sh "$build/readme-engine" bash "$build/readme.sh"
