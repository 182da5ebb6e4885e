#!/bin/sh
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# Copies the checkout's files, without ignored ones, to ROOT/ansible_collections/crashcart/fleet and makes that a git tree of its own,
# since ansible-test works only in such a place. Usage: stage_collection.sh ROOT
set -eu
mkdir -p "$1"
place="$(cd "$1" && pwd)/ansible_collections/crashcart/fleet"
rm -rf "$place"
mkdir -p "$place"
cd "$(dirname "$0")/.."
git ls-files --cached --others --exclude-standard -z | tar --null --ignore-failed-read -T - -cf - | tar -xf - -C "$place"
cd "$place"
git init -q
git add -A
