#!/usr/bin/env bash
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# `make quick`: style and types, and beside them the unit tests without long sweeps. On each core (four at most) pytest runs a part of the
# test files, which take equally long by what they took last. The first part prints as it goes, the others when it has ended. pytest-xdist
# would take a third more processor time: each of its workers collects all files, and one more process reads all results.
# TYPES is the command that checks types. EXPRESSION says which tests are meant, as pytest's -k.
# Usage: quick.sh BUILD TYPES [EXPRESSION]
set -euo pipefail
cd "$(dirname "$0")/.."
build=$1
types=$2
expression=${3:-}
cores=$(nproc)
parts=$((cores > 4 ? 4 : cores))
logs=$build/quick
mkdir -p "$logs"
# The tests make thousands of small files, which take long on ext4. `make unit` makes them where the system has its temporary files.
scratch=${TMPDIR:-/tmp}
if [ -w /dev/shm ] && [ "$(df --output=avail --block-size=1M /dev/shm | tail -n 1)" -ge 1024 ]; then
    scratch=/dev/shm
fi

# The files of each part: the file that took longest goes to the part with the least to do. A file that was not run before counts as half a second,
# as all do before the first run.
{
    cat "$logs"/seconds.* 2>/dev/null | sed 's/^/took /' || true
    find tests/unit -name 'test_*.py' | sort
} | awk '$1 == "took" { seconds[$3] = $2; next } { print $1 in seconds ? seconds[$1] : 0.5, $1 }' | sort -rn |
    awk -v n="$parts" '{ least = 0; for (part = 1; part < n; part++) if (total[part] < total[least]) least = part
        total[least] += $1; print least, $2 }' >"$logs/files"
record=
[ -n "$expression" ] || record=$logs/seconds

run_part() { # NUMBER: run the unit tests of this part's files
    local files
    mapfile -t files < <(awk -v part="$1" '$1 == part { print $2 }' "$logs/files")
    CRASHCART_TEST_SECONDS=${record:+$record.$1} TMPDIR=$scratch PYTHONPYCACHEPREFIX=$build/pycache env -u PYTHONDONTWRITEBYTECODE \
        python -m pytest -q --no-header -p no:cacheprovider -p no:xdist -o tmp_path_retention_policy=failed -m 'not sweep' -k "$expression" "${files[@]}"
}

check() { # check all that needs no test
    python tools/check_shape.py plugins && python tools/check_docstrings.py plugins tools tests demo && bash -c "$types"
}

ruff format --check --quiet
ruff check --quiet
beside=()
trap 'kill "${beside[@]}" 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM
check >"$logs/check" 2>&1 &
beside+=($!)
for ((part = 1; part < parts; part++)); do
    run_part "$part" >"$logs/$part" 2>&1 &
    beside+=($!)
done
code=0
run_part 0 || code=$?
codes=("$code")
for ((part = 1; part < parts; part++)); do
    code=0
    wait "${beside[part]}" || code=$?
    codes+=("$code")
    cat "$logs/$part"
done
code=0
wait "${beside[0]}" || code=$?
cat "$logs/check"
[ "$code" = 0 ] || exit "$code"
# A part without a test that is meant ends with 5, which is an error only if no part has one.
found=5
for code in "${codes[@]}"; do
    case $code in
        0) found=0 ;;
        5) ;;
        *) exit "$code" ;;
    esac
done
exit "$found"
