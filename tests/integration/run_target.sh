#!/usr/bin/env bash
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs pytest in the folder of a target, as its runme.sh does: run_target.sh FOLDER
set -eu
folder=$1
here=$(cd "$(dirname "$0")" && pwd)
# ansible-test hands down few variables; with_engine.sh has left these here.
set -a
# shellcheck source=/dev/null
. "$here/../output/environment"
set +a
export PYTHONPATH="${ANSIBLE_COLLECTIONS_PATH%%:*}"
exec python -m pytest -c "$here/pytest.ini" --rootdir "$here" "$folder"
