#!/usr/bin/env bash
# Do the tools that will read our payout files accept them, and does a real chain pay by them?
#
#   tests/conformance/payouts/run.sh [RUN_FOLDER ...]
#
# Needs cargo, node (18 or newer) with npm, python3, and hledger. Installs its libraries into a temporary folder. The last line is
# `N passed, M failed`; the exit code is 0 only when nothing failed. CARGO names another cargo.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
folders=()
for folder in "$@"; do
  folders+=("$(realpath -- "$folder")")
done

work=$(mktemp -d)
trap 'rm -rf "$work" || true' EXIT

broken() {
  echo "FAILED $1"
  echo "0 passed, 1 failed"
  exit 1
}

command -v hledger > /dev/null || apt-get install -y hledger > /dev/null 2>&1 || true
command -v hledger > /dev/null || broken "hledger is not installed and could not be"
cp "$here"/{package.json,check.mjs,Distributor.sol} "$work"
(cd "$work" && npm install --no-audit --no-fund --no-package-lock --ignore-scripts --loglevel=error >&2) ||
  broken "npm could not install the libraries"
python3 -m venv "$work/venv" && "$work/venv/bin/pip" install -q -r "$here/requirements.txt" >&2 ||
  broken "pip could not install the libraries"

cd "$root"
# With the whole workspace selected, features are those of the tests: nothing is compiled a second time.
"${CARGO:-cargo}" build --release --quiet --workspace --bin ascribe --example payouts || broken "the command does not build"
built=${CARGO_TARGET_DIR:-$root/target}/release
"$built/examples/payouts" "$work/made" 1 2 3 7 60 257 ||
  broken "the maker of payout files did not run"
pay() {
  "$built/ascribe" pay run --registry datasets --quiet "$@" > /dev/null
}
{
  echo "query_id,dataset_id,score"
  awk -F'\t' 'BEGIN { split("austen-novels cc-cedict cn-statutes foldoc jargon-file kjv-bible python-docs wordnet-glosses zh-classics nobody", n, " ");
    for (q = 0; q < 200; q++) for (k = 1; k <= 10; k++) printf "r%d,%s,%.6f\n", q, n[k], sin(q * 7.1 + k * k) + 0.4 }'
} > "$work/scores.csv"
token=0x2222222222222222222222222222222222222222
pay --scores "$work/scores.csv" --pool "1234.56 USD" --period 2026-10-01/2026-10-31 --coverage 0.85 --token $token \
  --token-decimals 6 --out "$work/made/walk-1" || broken "the first period"
pay --scores "$work/scores.csv" --pool "9876.54 USD" --period 2026-11-01/2026-11-30 --coverage 0.85 --token $token \
  --token-decimals 6 --previous "$work/made/walk-1" --out "$work/made/walk-2" || broken "the second period"

all=("$work"/made/* "${folders[@]}")
status=0
(cd "$work" && node check.mjs "${all[@]}") | tee "$work/node.log" || status=1
"$work/venv/bin/python" "$here/check.py" "${all[@]}" | tee "$work/python.log" || status=1
total() { awk -v field="$1" '/^[0-9]+ passed, [0-9]+ failed$/ { sum += $field } END { print sum + 0 }' "$work"/{node,python}.log; }
echo "$(total 1) passed, $(total 3) failed"
exit "$status"
