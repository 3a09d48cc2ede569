#!/usr/bin/env bash
# Do the published x402 clients pay our paywall, on a real chain, and is each response's revenue its contributors'?
#
#   tests/conformance/x402/run.sh
#
# Needs cargo, node (18 or newer) with npm, python3. Installs its libraries into a temporary folder. The last line is
# `N passed, M failed`; the exit code is 0 only when nothing failed. CARGO names another cargo.
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

cp "$here"/{package.json,check.mjs,Token.sol} "$work"
(cd "$work" && npm install --no-audit --no-fund --no-package-lock --ignore-scripts --loglevel=error >&2) ||
  broken "npm could not install the libraries"
python3 -m venv "$work/venv" && "$work/venv/bin/pip" install -q -r "$here/requirements.txt" >&2 ||
  broken "pip could not install the libraries"

cd "$root"
"${CARGO:-cargo}" build --release --quiet --workspace --example paywall --example look ||
  broken "the paywall could not be built"
target=${CARGO_TARGET_DIR:-$root/target}/release/examples
cd "$work"
TMPDIR=$work node check.mjs "$target/paywall" "$target/look" "$work/venv/bin/python" "$here/check.py"
