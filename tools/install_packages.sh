#!/bin/sh
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# Installs the packages of Debian or Ubuntu that are named and missing: install_packages.sh NAME…
set -eu
missing=
for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
[ -z "$missing" ] && exit
if [ "$(id -u)" != 0 ]; then
    echo "these packages are missing, and only root can install them:$missing" >&2
    exit 1
fi
echo "installing$missing" >&2
export DEBIAN_FRONTEND=noninteractive
# Several of us may be at work, and `apt-get update` waits for nobody.
exec 9>/run/lock/crashcart-packages
flock 9
apt-get update -qq
# shellcheck disable=SC2086 # the list is words
# Another apt may be at work on the machine.
apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends $missing >/dev/null
