#!/usr/bin/env bash
# Does the explorer page do what it says, in a real browser, for hands, keys and screen readers?
#
#   tests/conformance/explorer/run.sh [DEMO_FOLDER]
#
# Needs cargo, node (20 or newer), npm, and apt-get where chromium or a Chinese font is missing. DEMO_FOLDER is a finished
# `ascribe demo` (made here when it is not given). ASCRIBE names a built command, else it is built; CARGO another cargo;
# CHROMIUM another browser of the family. The last line is `N passed, M failed`.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
work=$(mktemp -d)
server=
# The server drains before it ends, and writes while it drains: its folder is removed when it is gone.
finish() {
  [ -z "$server" ] || kill "$server" 2> /dev/null || true
  wait 2> /dev/null || true
  rm -rf "$work" || true
}
trap finish EXIT

broken() {
  echo "FAILED $1"
  echo "0 passed, 1 failed"
  exit 1
}

install() {
  apt-get install -y -qq --no-install-recommends "$@" > "$work/apt.log" 2>&1 ||
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@"; } > "$work/apt.log" 2>&1
}
CHROMIUM=${CHROMIUM:-$(command -v chromium || true)}
if [ -z "$CHROMIUM" ]; then
  install chromium fonts-noto-cjk fonts-liberation || broken "apt-get could not install chromium: $(tail -n 1 "$work/apt.log")"
  CHROMIUM=$(command -v chromium)
fi

if [ -z "${ASCRIBE:-}" ]; then
  (cd "$root" && "${CARGO:-cargo}" build --release --quiet -p ascribe-cli) || broken "the command did not build"
  ASCRIBE=${CARGO_TARGET_DIR:-$root/target}/release/ascribe
fi
demo=${1:-}
if [ -z "$demo" ]; then
  demo=$work/demo
  (cd "$root" && "$ASCRIBE" demo --out "$demo" --format json) > "$work/demo.json" || broken "the demo did not run"
else
  # Serving writes receipts beside the run: a folder of somebody else's stays as it is.
  cp -r "$(realpath -- "$demo")" "$work/demo"
  demo=$work/demo
fi

mkdir "$work/node"
cp "$here"/package.json "$here"/*.mjs "$work/node"
(cd "$work/node" && npm install --no-audit --no-fund --no-package-lock --ignore-scripts --loglevel=error >&2) ||
  broken "npm could not install the browser's driver"

cd "$root"
"$ASCRIBE" reputation --out "$demo" --quiet --format json > "$work/reputation.json" || broken "the reputation was not measured"
"$ASCRIBE" serve --run "$demo" --listen 127.0.0.1:0 > "$work/serve.out" 2> "$work/serve.err" &
server=$!
for _ in $(seq 600); do
  [ ! -s "$work/serve.out" ] || break
  kill -0 "$server" 2> /dev/null || broken "the server ended: $(tail -n 1 "$work/serve.err")"
  sleep 0.1
done
base=$(python3 -c 'import json; print(json.loads(input())["url"])' < "$work/serve.out") ||
  broken "the first line of the server names no address"

cd "$work/node"
status=0
CHROMIUM=$CHROMIUM node check.mjs "$base" "$work/reputation.json" || status=$?
[ "$status" -le 1 ] || broken "the checks ended with $status"
exit "$status"
