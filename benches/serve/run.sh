#!/usr/bin/env bash
# Speeds of the server on loopback, load and server on the same cores.
#
#   benches/serve/run.sh [demo folder] [rows of the look-up] [parts]
#
# Needs python3, and wrk from Debian (apt-get install wrk). A folder of a finished demo run, else out/demo. The look-up is
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
latency() { grep -E 'Requests/sec|50.000%|50%|90%|99%|Non-2xx' "$1" | tr -s ' \t' ' ' | tr '\n' ';'; echo; }

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
# BBR paces loopback, too: large answers after a pause then wait some 15 to 60 ms, one in a hundred.
echo "== dataset shares from a given row, 1,000 datasets x 8,192 ($(sysctl -n net.ipv4.tcp_congestion_control 2> /dev/null || echo unknown congestion control))"
store=$work/store-shares
[ -d "$store" ] || "$EXAMPLES/make_store" "$store" 2000 8192 1000
start --store "$store" --state "$work/state-shares"
vector 8192 > "$work/v8192"
cat > "$work/shares.lua" << 'LUA'
-- One row of 8,192 numbers, about ten milliseconds between an answer and the next question.
local file = io.open(os.getenv("ROW"), "rb")
wrk.body = file:read("*a")
file:close()
wrk.method = "POST"
wrk.headers["content-type"] = "application/octet-stream"
wrk.headers["x-shape"] = "8192"
if os.getenv("PAUSE") then function delay() return math.random(0, 18) end end
LUA
export ROW=$work/v8192
path="/v1/attributions?k=0&kind=features"
wrk -t 1 -c 1 -d 2s -s "$work/shares.lua" "$url$path" > /dev/null
PAUSE=1 wrk -t 1 -c 1 -d 15s --latency -s "$work/shares.lua" "$url$path" > "$work/shares"
echo "one after another, with pauses: $(latency "$work/shares")"
wrk -t 1 -c 1 -d 5s --latency -s "$work/shares.lua" "$url$path" > "$work/shares"
echo "one after another: $(latency "$work/shares")"
wrk -t 1 -c 4 -d 5s --latency -s "$work/shares.lua" "$url$path" > "$work/shares"
echo "four at once: $(latency "$work/shares")"
stop
fi

if wanted gradient; then

echo "== gradient mode, a 128-token response of the demo"
start --run "$run" --state "$work/state-run"
memory
python3 - "$url" "$work/gradient" << 'PYTHON'
# One connection, kept: what is timed is the question and its answer, not a handshake.
import http.client, json, sys, time
from urllib.parse import urlsplit
connection = http.client.HTTPConnection(urlsplit(sys.argv[1]).netloc)
def ask(body):
    body = json.dumps(body).encode()
    began = time.perf_counter()
    connection.request("POST", "/v1/attributions", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    seconds = time.perf_counter() - began
    assert answer.status == 200, text
    return 1e3 * seconds
def measure(name, n, body):
    times = sorted(ask(body | {"example": i % 100}) for i in range(n))
    print(f"{name}: least {times[0]:.2f} ms, median {times[n // 2]:.2f} ms, p99 {times[n * 99 // 100]:.2f} ms")
    medians[name] = times[n // 2]
medians = {}
measure("the default, k = 0 (dataset shares alone)", 400, {"k": 0})
measure("the default, certified top-10", 400, {"k": 10})
measure("the default, certified top-10 and a receipt", 120, {"k": 10, "receipt": True})
for method, k in [("block_fisher", 0), ("block_fisher", 10)]:
    measure(f"{method}, k = {k}", 120, {"k": k, "method": method})
json.dump(medians, open(sys.argv[2], "w"))
for k in [0, 10]:
    measure(f"embedding, k = {k}", 120, {"k": k, "method": "embedding"})
PYTHON
stop
fi

if wanted bare; then
echo "== bare forward and backward of the same model, one thread"
"$ASCRIBE" speed --model wren --threads 1 --format json > "$work/speed"
python3 - "$work/speed" "$work/gradient" << 'PYTHON'
import json, pathlib, sys
bare = 128e3 / json.load(open(sys.argv[1]))["forward_backward"]["tokens_per_cpu_second"]
print(f"128 tokens: {bare:.2f} ms of CPU")
medians = pathlib.Path(sys.argv[2])
for name, median in json.loads(medians.read_text() if medians.exists() else "{}").items():
    print(f"{name}: {median / bare:.2f} x the bare pass (median)")
PYTHON
fi

if wanted receipts; then
echo "== durable receipts"
(cd "$work" && "$EXAMPLES/receipt_speed" 30000 1000 10)
fi
