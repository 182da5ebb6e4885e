#!/usr/bin/env bash
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# Makes a release of the committed state: release.sh BUILD VERSION. It sets the version, makes the changelog of the fragments, checks style, types
# and unit tests, builds the archive and tries it installed, and then commits and tags. It publishes nothing. A release that fails leaves the
# checkout as it was.
set -euo pipefail
build=$1 version=$2
cd "$(dirname "$0")/.."
fail() {
    echo "release: $*" >&2
    exit 1
}
[[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] || fail "'$version' is no version: give one as in make release VERSION=1.2.3"
[ -z "$(git status --porcelain)" ] || fail "the checkout has changes that are not committed: commit or stash them first"
! git rev-parse -q --verify "refs/tags/v$version" >/dev/null || fail "there is a tag v$version already: choose a later version"
old=$(sed -n 's/^version: //p' galaxy.yml)
[ "$(printf '%s\n' "$old" "$version" | sort -V | tail -n 1)" = "$version" ] || fail "$version comes before $old, the version of galaxy.yml"
compgen -G 'changelogs/fragments/*.yml' >/dev/null || fail "changelogs/fragments is empty: there is nothing to release"
undo() {
    trap - EXIT INT TERM
    git reset -q --hard
    git clean -qfd changelogs CHANGELOG.rst
    fail "nothing was released; the checkout is as it was"
}
trap undo EXIT
trap 'exit 130' INT TERM
sed -i "s/^version: .*/version: $version/" galaxy.yml
sed -i "s/^crashcart\.fleet:$old was installed/crashcart.fleet:$version was installed/" README.md
antsibull-changelog release --version "$version"
git add -A
make --no-print-directory lint unit package
git commit -q -m "release: $version"
git tag "v$version"
trap - EXIT INT TERM
echo "released $version as the commit $(git rev-parse --short HEAD) and the tag v$version; the archive is $(echo "$build"/package/crashcart-fleet-*.tar.gz)"
echo "next: git push --follow-tags; ansible-galaxy collection publish ARCHIVE"
