#!/usr/bin/env bash
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
set -eu
here=$(cd "$(dirname "$0")" && pwd)
# ansible-test hands down few variables; with_engine.sh has left this one here.
DOCKER_HOST=$(cat "$here/../../../output/docker_host")
export DOCKER_HOST
export PYTHONPATH="${ANSIBLE_COLLECTIONS_PATH%%:*}"
exec python -m pytest -c "$here/../../pytest.ini" --rootdir "$here/../.." "$here"
