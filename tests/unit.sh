#!/usr/bin/env bash
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs the unit tests of the staged collection. ansible-test runs all of them with this Python, the controller's. pytest alone, which is
# many times faster, runs the tests of the targets' code with the other VERSIONS: all of module_utils but what only controllers use. The
# oldest version has to come first: pip installs pure Python packages for it, which serve all versions.
# Usage: unit.sh BUILD VERSION…
set -euo pipefail
build=$1
shift
versions=()
for version in "$@"; do
    if command -v "python$version" >/dev/null; then
        versions+=("$version")
    else
        echo "== Python $version is not on this machine: the tests of targets' code leave it out"
    fi
done
own=$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
cd "$build/ansible_collections/crashcart/fleet"
ansible-test units --local --python "$own" --color no
[ ${#versions[@]} -gt 0 ] || exit 0
shared=$build/pytest
rm -rf "$shared"
PIP_ROOT_USER_ACTION=ignore "python${versions[0]}" -m pip install --quiet --disable-pip-version-check --only-binary :all: \
    --target "$shared" -r tests/unit/requirements.txt pytest
# Ansible's own library is sent to targets, so the tests need it. The rest of this environment stays out.
ln -sfn "$(python -c 'import ansible; print(ansible.__path__[0])')" "$shared/ansible"
for version in "${versions[@]}"; do
    [ "$version" != "$own" ] || continue
    echo "== Python $version"
    PYTHONPATH=$build:$shared "python$version" -m pytest -q -p no:cacheprovider tests/unit/plugins/module_utils \
        --ignore tests/unit/plugins/module_utils/analysis --ignore tests/unit/plugins/module_utils/image
done
