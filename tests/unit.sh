#!/usr/bin/env bash
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# Unit tests of the staged collection: all of them by ansible-test with this Python, and by pytest alone, which takes a tenth of
# the time, with the other VERSIONS: those that only targets have get the tests of what targets import.
# Usage: unit.sh BUILD VERSION…
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
build=$1
shift
own=$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
cd "$build/ansible_collections/crashcart/fleet"
ansible-test units --venv --python "$own" --color no
# The library that Ansible brings along to targets, without the rest of this environment.
mkdir -p "$build/ansible"
ln -sfn "$(python -c 'import ansible; print(ansible.__path__[0])')" "$build/ansible/ansible"
for version in "$@"; do
    [ "$version" != "$own" ] || continue
    venv=$root/.venvs/$version
    tests=tests/unit/plugins/module_utils
    wanted=(pytest -r tests/unit/requirements.txt)
    if [ "${version#3.}" -ge 11 ]; then
        tests=tests/unit
        wanted+=("ansible-core==$(python -c 'import ansible; print(ansible.__version__)')")
    fi
    [ -e "$venv/ready" ] || {
        "python$version" -m venv --clear "$venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${wanted[@]}"
        touch "$venv/ready"
    }
    echo "== Python $version"
    PYTHONPATH=$build:$build/ansible "$venv/bin/python" -m pytest -q -p no:cacheprovider "$tests"
done
