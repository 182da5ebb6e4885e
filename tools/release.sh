#!/usr/bin/env bash
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# Makes a release of the last commit: release.sh BUILD VERSION. In a work tree of its own it sets the version, makes the changelog of the fragments,
# runs the checks that need no engine, and builds the archive. Then it moves the branch on to the release's commit and tags that. It publishes
# nothing. If it fails, or is interrupted, the checkout and its branch are as before.
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
head=$(git rev-parse HEAD)
old=$(sed -n 's/^version: //p' galaxy.yml)
[ "$(printf '%s\n' "$old" "$version" | sort -V | tail -n 1)" = "$version" ] || fail "$version comes before $old, the version of galaxy.yml"
compgen -G 'changelogs/fragments/*.yml' >/dev/null || fail "changelogs/fragments is empty: there is nothing to release"
folder=$(mktemp -d)
trap 'git worktree remove --force "$folder/fleet" 2>/dev/null; rm -rf "$folder"' EXIT
trap 'exit 130' INT TERM
git worktree add -q --detach "$folder/fleet" "$head"
(
    cd "$folder/fleet"
    sed -i "s/^version: .*/version: $version/" galaxy.yml
    sed -i "s/^crashcart\.fleet:$old was installed/crashcart.fleet:$version was installed/" README.md
    antsibull-changelog release --version "$version"
    git add -A
    git commit -q -m "release: $version"
    make --no-print-directory BUILD="$folder/build" lint sanity unit builds package
)
commit=$(git -C "$folder/fleet" rev-parse HEAD)
git tag -a -m "crashcart.fleet $version" "v$version" "$commit"
if [ "$(git rev-parse HEAD)" != "$head" ] || ! git merge -q --ff-only "$commit"; then
    git tag -d "v$version" >/dev/null
    fail "the checkout has changed meanwhile, so nothing was released: commit, and try again"
fi
mkdir -p "$build"
cp "$folder"/build/package/crashcart-fleet-*.tar.gz "$build/"
echo "released $version: the commit $(git rev-parse --short HEAD), the tag v$version, the archive $build/crashcart-fleet-$version.tar.gz"
echo "next: git push --follow-tags; ansible-galaxy collection publish ARCHIVE"
