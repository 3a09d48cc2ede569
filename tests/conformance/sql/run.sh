#!/usr/bin/env bash
# Do the tables mean the same on a real PostgreSQL as on SQLite?
#
#   tests/conformance/sql/run.sh [CRATE ...]
#
# Starts a server (tests/servers/postgres.sh), then runs the tests of every crate that keeps tables which need one; with
# CRATEs, of these alone. Without a server this fails: nothing here is skipped. The last line is `N passed, M failed`; the exit
# code is 0 only when nothing failed. CARGO names another cargo.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
cd "$root"
# All of the workspace by default: what `cargo test --workspace` has built is built with these very features.
packages=(--workspace)
[ $# -eq 0 ] || packages=("${@/#/--package=}")
# Crates with a suite over both engines, and so the least number of binaries that must have run a test.
n_suites=2
[ $# -eq 0 ] || n_suites=$#

work=$(mktemp -d)
trap 'tests/servers/postgres.sh stop "$work/server" || true; rm -rf "$work" || true' EXIT

if ! ASCRIBE_TEST_POSTGRES=$(tests/servers/postgres.sh start "$work/server"); then
  echo "FAILED the server did not start"
  echo "0 passed, 1 failed"
  exit 1
fi
export ASCRIBE_TEST_POSTGRES

# The tests that need the server are those in a module `postgres`, marked as ignored for everybody else.
"${CARGO:-cargo}" test --release --quiet --no-fail-fast "${packages[@]}" --test it -- --ignored postgres 2>&1 | tee "$work/log" ||
  echo "FAILED a test, or its build"
read -r suites n_passed n_failed < <(
  sed -nE 's/^test result: .* ([0-9]+) passed; ([0-9]+) failed;.*/\1 \2/p' "$work/log" |
    awk '$1 + $2 > 0 { suites++ } { passed += $1; failed += $2 } END { print suites + 0, passed + 0, failed + 0 }'
)
if [ "$suites" -lt "$n_suites" ]; then
  echo "FAILED expected $n_suites crates with tests of a server, found $suites"
  n_failed=$((n_failed + 1))
fi
echo "$n_passed passed, $n_failed failed"
[ "$n_failed" -eq 0 ]
