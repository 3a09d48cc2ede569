#!/usr/bin/env bash
# Does the index on a real PostgreSQL with pgvector keep the contract of every index, and does the command find with it?
#
#   tests/conformance/pgvector/run.sh
#
# Starts a server (tests/servers/postgres.sh), then runs the tests of ascribe-pgvector that need one, then the command. Without a
# server this fails: nothing here is skipped. The last line is `N passed, M failed`; the exit code is 0 only when nothing failed.
# CARGO names another cargo, ASCRIBE a built command.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
cd "$root"
work=$(mktemp -d)
trap 'tests/servers/postgres.sh stop "$work/server" || true; rm -rf "$work" || true' EXIT

n_passed=0
n_failed=0
broken() {
  echo "FAILED $1"
  echo "$n_passed passed, $((n_failed + 1)) failed"
  exit 1
}

ASCRIBE_TEST_POSTGRES=$(tests/servers/postgres.sh start "$work/server") || broken "the server did not start"
export ASCRIBE_TEST_POSTGRES

# The workspace's build of the tests, so that nothing is compiled a second time with other features.
tests=$("${CARGO:-cargo}" test --release --workspace --test it --no-run --message-format=json 2> "$work/build.log" | python3 -c '
import json, sys
for message in map(json.loads, sys.stdin):
    if message.get("executable") and "ascribe-pgvector" in message.get("package_id", ""):
        print(message["executable"])') || broken "the tests do not build: $(tail -n 3 "$work/build.log")"
(cd crates/ascribe-pgvector && "$tests" --ignored postgres) 2>&1 | tee "$work/log" || true
read -r passed failed < <(sed -nE 's/^test result: .* ([0-9]+) passed; ([0-9]+) failed;.*/\1 \2/p' "$work/log" | tail -n 1) ||
  { passed=0; failed=1; }
if [ "$passed" -eq 0 ] && [ "$failed" -eq 0 ]; then failed=1; fi
n_passed=$passed
n_failed=$failed

if [ -z "${ASCRIBE:-}" ]; then
  "${CARGO:-cargo}" build --release --quiet || broken "the command does not build"
  ASCRIBE=${CARGO_TARGET_DIR:-$root/target}/release/ascribe
fi
# The server's environment has Python; numpy writes the rows and judges the hits.
python=$work/server/venv/bin/python
"$python" -m pip install --quiet --disable-pip-version-check numpy==2.4.6 blake3==1.0.11 pyarrow==26.0.1 safetensors==0.8.0 >&2 ||
  broken "pip could not install numpy"
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$root/tests/conformance/store "$python" "$here/check.py" --ascribe "$ASCRIBE" \
  --backend "$ASCRIBE_TEST_POSTGRES" 2>&1 | tee "$work/log" || true
read -r passed failed < <(sed -nE 's/^([0-9]+) passed, ([0-9]+) failed$/\1 \2/p' "$work/log" | tail -n 1) ||
  { passed=0; failed=1; }
echo "$((n_passed + passed)) passed, $((n_failed + failed)) failed"
[ $((n_failed + failed)) -eq 0 ]
