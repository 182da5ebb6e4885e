#!/bin/sh
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# Installs those of the named packages of Debian or Ubuntu that are missing: install_packages.sh NAME…
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
# Several runs of this script may overlap, and `apt-get update` does not wait for a lock.
exec 9>/run/lock/crashcart-packages
flock 9
apt-get update -qq
# shellcheck disable=SC2086 # the list is words
# The timeout is for an apt that the machine itself runs.
apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends $missing >/dev/null
