#!/usr/bin/env bash
# Does OpenZeppelin's own library read our payout trees?
#
#   tests/conformance/merkle/run.sh [payout/merkle.json ...]
#
# Needs cargo, node (18 or newer) and npm. Installs the library into a temporary folder, checks trees of 1 to 40 leaves
# and then every given file. The last line is `N passed, M failed`; the exit code is 0 only when nothing failed.
# CARGO names another cargo.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
files=()
for file in "$@"; do
  files+=("$(realpath -- "$file")")
done

work=$(mktemp -d)
trap 'rm -rf "$work" || true' EXIT

broken() {
  echo "FAILED $1"
  echo "0 passed, 1 failed"
  exit 1
}

cp "$here/package.json" "$here/check.mjs" "$work"
(cd "$work" && npm install --no-audit --no-fund --no-package-lock --ignore-scripts --loglevel=error >&2) ||
  broken "npm could not install the library"

cd "$root"
# With the whole workspace selected, features are those of the tests: nothing is compiled a second time.
"${CARGO:-cargo}" build --release --quiet --workspace --example merkle_dump || broken "the generator of trees does not build"
dump() {
  "${CARGO_TARGET_DIR:-$root/target}/release/examples/merkle_dump" "$@"
}
dump 40 > "$work/trees.jsonl" || broken "the generator of trees did not run"
for file in "${files[@]}"; do
  dump < "$file" >> "$work/trees.jsonl" || broken "our own reader refuses $file"
done

cd "$work"
node check.mjs < trees.jsonl
