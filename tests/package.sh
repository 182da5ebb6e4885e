#!/usr/bin/env bash
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# Builds the collection, installs the archive elsewhere, uses it there, and checks it by Galaxy's importer. Usage: package.sh BUILD
set -euo pipefail
build=$1
root=$(cd "$(dirname "$0")/.." && pwd)
"$root/tools/stage_collection.sh" "$build"
rm -rf "$build/package"
mkdir -p "$build/package"
cd "$build/ansible_collections/crashcart/fleet"
ansible-galaxy collection build --output-path "$build/package"
archive=$(echo "$build"/package/crashcart-fleet-*.tar.gz)
# Modules and playbooks that are called by their full names have to work from the archive alone.
export ANSIBLE_COLLECTIONS_PATH=$build/package/installed
ansible-galaxy collection install --offline "$archive" -p "$build/package/installed"
cd "$build/package"
ansible localhost -m crashcart.fleet.crashcart_info -a gather=features -e ansible_python_interpreter="$(command -v python)" >info.txt
grep -q '"features"' info.txt
ansible-playbook --syntax-check -i localhost, crashcart.fleet.{install,attach,exec,shell,detach,trace,start,stop,collect,report,cleanup} >/dev/null
mapfile -t modules < <(find installed -path '*/plugins/modules/*.py' -printf 'crashcart.fleet.%f\n' | sed 's/\.py$//')
ansible-doc "${modules[@]}" >/dev/null
# ansible-builder reads from the installed collection what an execution environment needs, and accepts the definitions of the examples.
builder=$root/.venvs/builder/bin
[ -x "$builder/ansible-builder" ] || {
    python -m venv "$root/.venvs/builder"
    "$builder/python" -m pip install --quiet --disable-pip-version-check 'ansible-builder~=3.2'
}
"$builder/ansible-builder" introspect --write-pip python.txt --write-bindep system.txt installed >introspect.txt
diff <(sort "$root/meta/ee-requirements.txt") <(sed 's/ *#.*//' python.txt | sort)
diff <(sort "$root/meta/ee-bindep.txt") <(sed 's/ *#.*//' system.txt | sort)
mkdir -p images/capture
touch images/capture/any.dat
cp "$root"/docs/examples/execution-environment*.yml images/
for definition in images/*.yml; do
    "$builder/ansible-builder" create -f "$definition" -c "${definition%.yml}" >"${definition%.yml}.txt"
done
# The importer needs other versions of our packages, so it has an environment of its own.
[ -x "$root/.venvs/importer/bin/python" ] || {
    python -m venv "$root/.venvs/importer"
    "$root/.venvs/importer/bin/python" -m pip install --quiet --disable-pip-version-check 'galaxy-importer>=0.4.31' 'ansible-core~=2.19.0'
}
cp "$archive" "$build/package/import.tar.gz"
# `make lint` runs ansible-lint on the same files.
export GALAXY_IMPORTER_RUN_ANSIBLE_LINT=false
PATH="$root/.venvs/importer/bin:$PATH" "$root/.venvs/importer/bin/python" -m galaxy_importer.main "$archive" 2>&1 | tee importer.txt | tail -n 5
! grep -E '^ERROR|Traceback|[Ii]mporter failed' importer.txt
