#!/usr/bin/env bash
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# Unit tests of the staged collection: all of them by ansible-test with this Python, the controller's; and those of what targets
# import with the other VERSIONS, by pytest alone, which takes a fraction of the time. The oldest comes first: what pip installs
# for it is plain Python, and serves all.
# Usage: unit.sh BUILD VERSION…
set -euo pipefail
build=$1
shift
own=$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
cd "$build/ansible_collections/crashcart/fleet"
ansible-test units --local --python "$own" --color no
shared=$build/pytest
rm -rf "$shared"
PIP_ROOT_USER_ACTION=ignore "python$1" -m pip install --quiet --disable-pip-version-check --only-binary :all: \
    --target "$shared" -r tests/unit/requirements.txt pytest
# The library that Ansible brings along to targets, without the rest of this environment.
ln -sfn "$(python -c 'import ansible; print(ansible.__path__[0])')" "$shared/ansible"
for version in "$@"; do
    [ "$version" != "$own" ] || continue
    echo "== Python $version"
    PYTHONPATH=$build:$shared "python$version" -m pytest -q -p no:cacheprovider tests/unit/plugins/module_utils
done
