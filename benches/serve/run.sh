#!/usr/bin/env bash
# Speeds of the server on loopback, load and server on the same cores.
#
#   benches/serve/run.sh [demo folder] [rows of the look-up]
#
# Needs python3, and hey and wrk from Debian (apt-get install hey wrk). A folder of a finished demo run, else out/demo. One million
# rows take a while to index; the second argument asks for fewer. ASCRIBE and EXAMPLES name built binaries, else they are built.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
run=${1:-out/demo}
rows=${2:-1000000}
work=${WORK:-$(mktemp -d)}
mkdir -p "$work"
server=
trap '[ -z "$server" ] || kill "$server" 2> /dev/null' EXIT
target=${CARGO_TARGET_DIR:-$root/target}/release
ASCRIBE=${ASCRIBE:-$target/ascribe}
EXAMPLES=${EXAMPLES:-$target/examples}
[ -x "$ASCRIBE" ] || cargo build --release --workspace --bin ascribe
[ -x "$EXAMPLES/make_store" ] || cargo build --release -p ascribe-server --examples

start() {
  : > "$work/first"
  "$ASCRIBE" serve --listen 127.0.0.1:0 --set log=error "$@" > "$work/first" 2> "$work/server.log" &
  server=$!
  while [ ! -s "$work/first" ]; do
    kill -0 "$server" || { cat "$work/server.log"; exit 1; }
    sleep 0.2
  done
  url=$(head -n 1 "$work/first" | python3 -c 'import json,sys; print(json.load(sys.stdin)["url"])')
}
stop() {
  kill -TERM "$server"
  wait "$server" || true
  server=
}
memory() { awk '/RssAnon|RssFile/ { printf "%s %.0f MiB  ", $1, $2 / 1024 } END { print "" }' "/proc/$server/status"; }
vector() { python3 -c 'import random,struct,sys; random.seed(int(sys.argv[2])); sys.stdout.buffer.write(struct.pack(f"<{sys.argv[1]}f", *(random.gauss(0, 1) for _ in range(int(sys.argv[1])))))' "$1" 7; }
percentiles() { grep -E 'Requests/sec|50%|99%|\[[0-9]+\]' "$1" | tr -s ' \t' ' ' | tr '\n' ';'; echo; }

echo "== embedding mode, $rows x 384"
store=$work/store-$rows
[ -d "$store" ] || "$EXAMPLES/make_store" "$store" "$rows" 384 100
start --store "$store" --state "$work/state-$rows"
memory
vector 384 > "$work/v384"
send=(-m POST -T application/octet-stream -H 'x-shape: 384' -D "$work/v384")
hey -z 3s -c 2 "${send[@]}" "$url/v1/attributions?k=10" > /dev/null
hey -z 15s -c 4 -q 50 "${send[@]}" "$url/v1/attributions?k=10" > "$work/steady"
echo "at 200 requests/s: $(percentiles "$work/steady")"
hey -z 10s -c 16 "${send[@]}" "$url/v1/attributions?k=10" > "$work/peak"
echo "peak: $(percentiles "$work/peak")"
curl -s -X POST -H 'content-type: application/octet-stream' -H 'x-shape: 384' --data-binary @"$work/v384" "$url/v1/attributions?k=10" \
  | python3 -c 'import json,sys; print("recall as measured when the index was built:", json.load(sys.stdin)["approx"])'
memory
stop

echo "== dataset shares from a given row, 1,000 datasets x 8,192"
store=$work/store-shares
[ -d "$store" ] || "$EXAMPLES/make_store" "$store" 2000 8192 1000
start --store "$store" --state "$work/state-shares"
vector 8192 > "$work/v8192"
send=(-m POST -T application/octet-stream -H 'x-shape: 8192' -D "$work/v8192")
hey -z 10s -c 1 -q 100 "${send[@]}" "$url/v1/attributions?k=0&kind=features" > "$work/shares"
echo "at 100 requests/s: $(percentiles "$work/shares")"
stop

echo "== gradient mode, a 128-token response of the demo"
start --run "$run" --state "$work/state-run"
memory
python3 - "$url" << 'PYTHON'
import json, sys, time, urllib.request
def ask(body):
    request = urllib.request.Request(sys.argv[1] + "/v1/attributions", json.dumps(body).encode(), {"content-type": "application/json"})
    began = time.perf_counter()
    json.load(urllib.request.urlopen(request))
    return 1e3 * (time.perf_counter() - began)
for method in ["block_fisher", "calibrated", "embedding"]:
    for receipt in [False, True]:
        times = sorted(ask({"example": i % 100, "k": 10, "method": method, "receipt": receipt}) for i in range(120))
        print(f"{method}, receipt {receipt}: least {times[0]:.1f} ms, median {times[60]:.1f} ms, p99 {times[118]:.1f} ms")
PYTHON
stop
echo "bare forward and backward of the same model (ms for 128 tokens: 128,000 / tokens a second):"
"$ASCRIBE" speed --model wren --threads 1 || true

echo "== durable receipts"
(cd "$work" && "$EXAMPLES/receipt_speed" 30000 1000 10)
