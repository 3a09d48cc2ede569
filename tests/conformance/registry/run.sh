#!/usr/bin/env bash
# Do tools that are not ours agree with the registry? See README.md.
#
#   tests/conformance/registry/run.sh
#
# The last line is `N passed, M failed`; the exit code is 0 only when nothing failed. ASCRIBE names a built command, CARGO
# another cargo.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work" || true' EXIT

broken() {
  echo "FAILED $1"
  echo "0 passed, 1 failed"
  exit 1
}

cp "$here/package.json" "$here/check.mjs" "$work"
(cd "$work" && npm install --no-audit --no-fund --no-package-lock --ignore-scripts --loglevel=error >&2) ||
  broken "npm could not install ethers and viem"
python3 -m venv "$work/venv" && "$work/venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt" >&2 ||
  broken "pip could not install mlcroissant and eth-account"

if [ -z "${ASCRIBE:-}" ]; then
  (cd "$root" && "${CARGO:-cargo}" build --release --quiet --workspace --bin ascribe) || broken "the command did not build"
  ASCRIBE=${CARGO_TARGET_DIR:-$root/target}/release/ascribe
fi
export ASCRIBE

status=0
(cd "$work" && node check.mjs "$root") > "$work/node.log" 2>&1 || status=1
cat "$work/node.log"
"$work/venv/bin/python" "$here/check.py" "$root" "$work" > "$work/python.log" 2>&1 || status=1
cat "$work/python.log"
mkdir "$work/contract"
"$work/venv/bin/python" "$here/contract.py" "$work/contract" > "$work/contract.log" 2>&1 || status=1
cat "$work/contract.log"
read -r passed failed < <(cat "$work/node.log" "$work/python.log" "$work/contract.log" | awk '/^ok /{p++} /^FAILED /{f++} END{print p+0, f+0}')
# A part that died without saying so still failed.
if [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then failed=1; fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
