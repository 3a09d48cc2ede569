#!/usr/bin/env bash
# Speeds of the server on loopback, load and server on the same cores.
#
#   benches/serve/run.sh [demo folder] [rows of the look-up] [parts]
#
# Needs python3, and hey and wrk from Debian (apt-get install hey wrk). A folder of a finished demo run, else out/demo. The look-up is
# over hidden states of the shipped model (`make_states`), queries are held-out ones, 256 in turn; 1,000,000 rows take their time to
# index, once: WORK names a folder that is kept. Parts: any of `embedding shares gradient bare receipts`, all without. ASCRIBE and EXAMPLES
# name built binaries, else they are built.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
run=${1:-out/demo}
rows=${2:-1000000}
parts=${3:-embedding shares gradient bare receipts}
work=${WORK:-$(mktemp -d)}
mkdir -p "$work"
server=
trap '[ -z "$server" ] || kill "$server" 2> /dev/null' EXIT
target=${CARGO_TARGET_DIR:-$root/target}/release
ASCRIBE=${ASCRIBE:-$target/ascribe}
EXAMPLES=${EXAMPLES:-$target/examples}
[ -x "$ASCRIBE" ] || cargo build --release --workspace --bin ascribe
[ -x "$EXAMPLES/make_store" ] || cargo build --release -p ascribe-server --examples
[ -x "$EXAMPLES/make_states" ] || cargo build --release -p ascribe-engine --example make_states
wanted() { case " $parts " in *" $1 "*) true ;; *) false ;; esac; }

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
# Numbers of a normal distribution, as bytes.
vector() { python3 -c 'import random,struct,sys; random.seed(int(sys.argv[2])); sys.stdout.buffer.write(struct.pack(f"<{sys.argv[1]}f", *(random.gauss(0, 1) for _ in range(int(sys.argv[1])))))' "$1" 7; }
percentiles() { grep -E 'Requests/sec|50%|99%|\[[0-9]+\]' "$1" | tr -s ' \t' ' ' | tr '\n' ';'; echo; }

if wanted embedding; then
echo "== embedding mode, $rows x 384"
store=$work/states-$rows
[ -d "$store/hnsw" ] || "$EXAMPLES/make_states" "$store" "$rows"
export QUERIES=$store.queries.f32
cat > "$work/look-up.lua" << 'LUA'
-- Another query each time. PAUSE: mean milliseconds between an answer and the next question of a connection.
local file = io.open(os.getenv("QUERIES"), "rb")
local all = file:read("*a")
file:close()
local width, at = 4 * 384, 0
local pause = tonumber(os.getenv("PAUSE") or "0")
wrk.method = "POST"
wrk.headers["content-type"] = "application/octet-stream"
wrk.headers["x-shape"] = "384"
function init() math.randomseed(7) at = math.random(0, 255) * width end
function request()
  at = (at + width) % #all
  return wrk.format(nil, nil, nil, all:sub(at + 1, at + width))
end
if pause > 0 then function delay() return math.random(0, 2 * pause) end end
LUA
latency() { grep -E 'Requests/sec|50.000%|50%|90%|99%|Non-2xx' "$1" | tr -s ' \t' ' ' | tr '\n' ';'; echo; }
start --store "$store" --state "$work/state-$rows"
memory
wrk -t 1 -c 4 -d 3s -s "$work/look-up.lua" "$url/v1/attributions?k=10" > /dev/null
PAUSE=19 wrk -t 1 -c 4 -d 15s --latency -s "$work/look-up.lua" "$url/v1/attributions?k=10" > "$work/steady"
echo "at about 200 requests/s: $(latency "$work/steady")"
wrk -t 1 -c 16 -d 8s --latency -s "$work/look-up.lua" "$url/v1/attributions?k=10" > "$work/peak"
echo "peak: $(latency "$work/peak")"
memory
python3 - "$url" "$QUERIES" << 'PYTHON'
# Recall as the server itself answers: the look-up against its certified scan.
import json, sys, urllib.request
bodies = open(sys.argv[2], "rb").read()
bodies = [bodies[i : i + 1536] for i in range(0, len(bodies), 1536)][::8]
def ask(body, method):
    headers = {"content-type": "application/octet-stream", "x-shape": "384"}
    request = urllib.request.Request(f"{sys.argv[1]}/v1/attributions?k=10&method={method}", body, headers)
    answer = json.load(urllib.request.urlopen(request))
    return {hit["example_id"] for hit in answer["hits"]}, answer["approx"]
found = [len(ask(b, "dot")[0] & ask(b, "dot_certified")[0]) / 10 for b in bodies]
print(f"recall@10 of {len(found)} held-out queries: mean {sum(found) / len(found):.4f}, least {min(found)}; stated: {ask(bodies[0], 'dot')[1]}")
PYTHON
stop
fi

if wanted shares; then
echo "== dataset shares from a given row, 1,000 datasets x 8,192"
store=$work/store-shares
[ -d "$store" ] || "$EXAMPLES/make_store" "$store" 2000 8192 1000
start --store "$store" --state "$work/state-shares"
vector 8192 > "$work/v8192"
send=(-m POST -T application/octet-stream -H 'x-shape: 8192' -D "$work/v8192")
hey -z 10s -c 1 -q 100 "${send[@]}" "$url/v1/attributions?k=0&kind=features" > "$work/shares"
echo "at 100 requests/s: $(percentiles "$work/shares")"
stop
fi

if wanted gradient; then

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
    for k in [0, 10]:
        times = sorted(ask({"example": i % 100, "k": k, "method": method}) for i in range(120))
        print(f"{method}, k = {k}: least {times[0]:.1f} ms, median {times[60]:.1f} ms, p99 {times[118]:.1f} ms")
times = sorted(ask({"example": i % 100, "k": 10, "receipt": True}) for i in range(120))
print(f"calibrated, k = 10, a receipt: least {times[0]:.1f} ms, median {times[60]:.1f} ms, p99 {times[118]:.1f} ms")
PYTHON
stop
fi

if wanted bare; then
echo "bare forward and backward of the same model (ms for 128 tokens: 128,000 / tokens a second):"
"$ASCRIBE" speed --model wren --threads 1 || true
fi

if wanted receipts; then
echo "== durable receipts"
(cd "$work" && "$EXAMPLES/receipt_speed" 30000 1000 10)
fi
