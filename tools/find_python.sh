#!/bin/sh
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# Prints the path of a Python that ansible-core 2.19 runs on (3.11 to 3.13). With --folders it prints the folders of all Pythons of
# pyenv, joined by colons. pyenv's shims would not do: there is one for every version, and it fails where the version is missing.
set -eu
pyenv=${PYENV_ROOT:-$HOME/.pyenv}
if [ "${1:-}" = --folders ]; then
    folders=
    for folder in "$pyenv"/versions/3.8.* "$pyenv"/versions/3.9.* "$pyenv"/versions/3.1[0-3].*; do
        [ -x "$folder/bin/python3" ] && folders="$folders$folder/bin:"
    done
    echo "${folders%:}"
    exit
fi
for candidate in "$pyenv"/versions/3.11.*/bin/python3 /usr/bin/python3 /usr/bin/python3.13 /usr/bin/python3.12 /usr/bin/python3.11; do
    if [ -x "$candidate" ] && "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'; then
        echo "$candidate"
        exit
    fi
done
echo python3
