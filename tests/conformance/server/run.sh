#!/usr/bin/env bash
# Does the server keep its contract when outsiders test it: a fuzzer that reads the contract, a load tool, schema validators?
#
#   tests/conformance/server/run.sh [demo folder]
#
# Without a folder a demo run is made first (a minute or two). Needs cargo, python3 with venv and pip, openssl-free; wrk from Debian
# (installed if apt-get may). ASCRIBE names a built command, else it is built; SECONDS_OF_LOAD the length of the overload (10);
# ONLY=overload leaves the rest out; OTEL=1 builds the server with the feature `otel` (the engine, too: one of its dependencies has
# another set of features then).
# Judges: schemathesis 4 (all its checks), wrk, kubernetes-validate, hadolint, systemd-analyze where it is. The last line is
# `N passed, M failed`.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
work=$(mktemp -d)
server=
finish() {
  [ -z "$server" ] || kill "$server" 2> /dev/null
  wait 2> /dev/null
  rm -rf "$work" || true
}
trap finish EXIT

n_passed=0
n_failed=0
passed() { n_passed=$((n_passed + 1)); }
failed() {
  n_failed=$((n_failed + 1))
  echo "FAILED $1"
}
expect() { # what, expected, found
  if [ "$2" = "$3" ]; then passed; else failed "$1: expected $2, found $3"; fi
}
broken() {
  echo "FAILED $1"
  echo "$n_passed passed, $((n_failed + 1)) failed"
  exit 1
}

if [ -z "${ASCRIBE:-}" ]; then
  (cd "$root" && CARGO_RESOLVER_FEATURE_UNIFICATION=${CARGO_RESOLVER_FEATURE_UNIFICATION:-} "${CARGO:-cargo}" build --release \
    --quiet --workspace --bin ascribe) || broken "the command did not build"
  ASCRIBE=${CARGO_TARGET_DIR:-$root/target}/release/ascribe
fi
cd "$root" || exit 1
run=${1:-}
if [ -z "$run" ]; then
  run=$work/demo
  "$ASCRIBE" demo --out "$run" --quiet --format json > "$work/demo.json" || broken "the demo did not run"
fi

wanted() { [ "${ONLY:-$1}" = "$1" ]; }

venv=${ASCRIBE_SERVER_VENV:-$HOME/.cache/ascribe-server-suite}
mark=$(sha256sum "$here/requirements.txt" | cut -c1-16)
if wanted rest && [ ! -e "$venv/$mark" ]; then
  rm -rf "$venv"
  python3 -m venv "$venv" && "$venv/bin/pip" install --quiet -r "$here/requirements.txt" && touch "$venv/$mark" ||
    broken "pip could not install the judges"
fi
command -v wrk > /dev/null || apt-get install -y -q wrk > "$work/apt.log" 2>&1 || true

start() { # settings...
  : > "$work/first"
  "$ASCRIBE" serve --run "$run" --state "$work/state" --listen 127.0.0.1:0 --set log=warn "$@" \
    > "$work/first" 2> "$work/server.log" &
  server=$!
  for _ in $(seq 600); do
    [ -s "$work/first" ] && break
    kill -0 "$server" 2> /dev/null || broken "the server did not start: $(tail -n 2 "$work/server.log")"
    sleep 0.2
  done
  url=$(head -n 1 "$work/first" | python3 -c 'import json,sys; print(json.load(sys.stdin)["url"])') || broken "no address"
}
stop() {
  kill -TERM "$server"
  wait "$server"
  local code=$?
  server=
  expect "exit code after SIGTERM" 0 "$code"
}

# --- the contract, fuzzed
if wanted rest; then
start --set request_timeout_ms=60000
"$venv/bin/python" - "$url" << 'PYTHON' && passed || failed "the answer of the contract's example"
import json, sys, urllib.request
body = {"prompt": "In the beginning", "completion": " was the Word, and the Word was with God", "k": 3, "receipt": True}
request = urllib.request.Request(sys.argv[1] + "/v1/attributions", json.dumps(body).encode(), {"content-type": "application/json"})
answer = json.load(urllib.request.urlopen(request))
assert len(answer["hits"]) == 3 and abs(sum(s["share"] for s in answer["shares"]) - 1) < 1e-9, answer
assert 0 < answer["coverage"] <= 1 and answer["receipt"]["signature"], answer
PYTHON
curl -s "$url/openapi.json" > "$work/contract.json"
"$venv/bin/openapi-spec-validator" "$work/contract.json" > "$work/out" 2>&1 && passed ||
  failed "the contract is no OpenAPI 3.1: $(tail -n 3 "$work/out")"
# One worker: `ast.parse`, which hypothesis calls, counts its depth for all threads together in Python 3.11 and stops two that meet
# with a SystemError. As whoever reads the contract alone would: nothing of ours but the address.
if (cd "$work" && exec "$venv/bin/st" run "$url/openapi.json" --checks all --max-examples "${EXAMPLES:-30}" --seed 2) \
  > "$work/plain.log" 2>&1; then
  passed
else
  failed "schemathesis without hooks finds failures"
  tail -n 80 "$work/plain.log" | cut -c 1-600
fi
grep -E 'Test cases|generated|passed' "$work/plain.log" | tail -n 3
if (cd "$work" && SCHEMATHESIS_HOOKS=$here/hooks.py exec "$venv/bin/st" run "$url/openapi.json" --checks all --max-examples "${EXAMPLES:-30}" --seed 1 \
  --exclude-path-regex '^/admin/' --header "x-suite: server") > "$work/st.log" 2>&1; then
  passed
else
  failed "schemathesis finds failures"
  tail -n 80 "$work/st.log" | cut -c 1-600
fi
grep -E 'Test cases|generated|passed' "$work/st.log" | tail -n 3
expect "panics and faults in the log while it was fuzzed" 0 "$(grep -c -i -E 'panicked|broken invariant' "$work/server.log")"
stop
fi

# --- far over its capacity: refusals, nothing else; answers again after it
start --set queue_depth=8 --set max_in_flight=64
if command -v wrk > /dev/null; then
  cat > "$work/post.lua" << 'LUA'
-- PAUSE: mean milliseconds between an answer and the next question of a connection.
wrk.method = "POST"
wrk.body = '{"example": 3, "k": 3}'
wrk.headers["content-type"] = "application/json"
counts = {}
function response(status) counts[status] = (counts[status] or 0) + 1 end
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init() counts = {} end
local pause = tonumber(os.getenv("PAUSE") or "0")
if pause > 0 then function delay() return math.random(0, 2 * pause) end end
function done(summary)
  local total = {}
  for _, thread in ipairs(threads) do
    for status, n in pairs(thread:get("counts") or {}) do total[status] = (total[status] or 0) + n end
  end
  for status, n in pairs(total) do print("status " .. status .. " " .. n) end
end
LUA
  load() { # pause, connections, seconds
    PAUSE=$1 wrk -t 1 -c "$2" -d "$3s" --timeout 20s -s "$work/post.lua" "$url/v1/attributions" > "$work/wrk.log" 2>&1
  }
  with() { awk -v s="$1" '/^status/ && $2 == s { print $3 }' "$work/wrk.log"; }
  seconds=${SECONDS_OF_LOAD:-10}
  load 0 4 5
  capacity=$(($(with 200) / 5))
  before=$(awk '/VmRSS/ { print $2 }' "/proc/$server/status")
  # Ten times what it can do, with something over for the time that refusals take; then as fast as the load tool can.
  for pause in $((128 * 1000 / (14 * capacity))) 0; do
    [ "$pause" -gt 0 ] && lasts=$seconds || lasts=10
    # Beside the load: is the process there, and does it say that it is ready, in time for a probe of one second (Kubernetes' default)?
    (sleep 1; for _ in 1 2 3 4 5; do curl -s -m 20 -o /dev/null -w '%{http_code} %{time_total}\n' "$url/readyz"; sleep 0.5; done) \
      > "$work/ready" &
    asking=$!
    load "$pause" 128 "$lasts"
    wait "$asking"
    expect "statuses of /readyz under overload" "200 200 200 200 200" "$(awk '{ print $1 }' "$work/ready" | paste -s -d ' ')"
    slowest=$(awk '$2 > most { most = $2 } END { print most + 0 }' "$work/ready")
    awk -v s="$slowest" 'BEGIN { exit !(s < 1) }' && passed || failed "readiness under overload took $slowest s"
    echo "readiness under overload: $slowest s at most"
    others=$(awk '/^status/ && $2 != 200 && $2 != 503' "$work/wrk.log" | wc -l)
    expect "statuses other than 200 and 503 under overload" 0 "$others"
    answered=$(with 200) refused=$(with 503)
    [ "${answered:-0}" -gt 0 ] && passed || failed "nothing was answered under overload: $(cat "$work/wrk.log")"
    [ "${refused:-0}" -gt 0 ] && passed || failed "nothing was refused under overload"
    after=$(awk '/VmRSS/ { print $2 }' "/proc/$server/status")
    [ "$((after - before))" -lt 131072 ] && passed || failed "memory grew by $((after - before)) KiB under overload"
    offered=$(((answered + refused) / lasts))
    echo "overload of $lasts s: $capacity answers a second alone, $offered asked, $((answered / lasts)) answered, the rest 503"
    if [ "$pause" -gt 0 ]; then
      [ "$offered" -ge $((10 * capacity)) ] && passed || failed "asked for $offered a second: less than 10 x $capacity"
      [ "$((2 * answered / lasts))" -ge "$capacity" ] && passed || failed "answers fell to $((answered / lasts)) a second, of $capacity"
    fi
  done
  highest=$(awk '/VmHWM/ { print $2 }' "/proc/$server/status")
  echo "memory: $((before / 1024)) MiB before, $((after / 1024)) after, $((highest / 1024)) at most"
else
  failed "wrk is not there and apt-get could not install it: nothing was asked over the server's capacity"
fi
# What still waits may take a moment: a client that heeds Retry-After is answered.
expect "an answer after the overload" 200 "$(curl -s --retry 5 -o "$work/out" -w '%{http_code}' "$url/v1/attributions" \
  -H 'content-type: application/json' -d '{"example": 1}')"
stop

if wanted rest; then
# --- receipts: the log that is left is verified from outside
verifier=$("$venv/bin/python" - "$work/state/operator.key" << 'PYTHON'
# The public half of the operator's secret line, by other people's Ed25519.
import base64, hashlib, sys
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
_, _, name, _, key = open(sys.argv[1]).read().strip().split("+", 4)
typed = base64.b64decode(key)
public = typed[:1] + Ed25519PrivateKey.from_private_bytes(typed[1:]).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
key_id = hashlib.sha256(name.encode() + b"\n" + public).hexdigest()[:8]
print(f"{name}+{key_id}+{base64.b64encode(public).decode()}")
PYTHON
) && echo "$verifier" > "$work/usage.vkey"
"$ASCRIBE" log usage verify "$work/state/usage" --key "$work/usage.vkey" > "$work/out" 2>&1 && passed ||
  failed "the usage log does not verify: $(tail -n 2 "$work/out")"

# --- traces: nothing of them in the default build; with OTEL=1 the build that has them, against a collector on loopback
expect "OpenTelemetry in the default build" 0 "$("${CARGO:-cargo}" tree --workspace --edges normal,build,dev --prefix none |
  grep -c '^opentelemetry')"
if [ -n "${OTEL:-}" ]; then
  (cd "$root" && "${CARGO:-cargo}" test --release --quiet --workspace --features ascribe-server/otel --test otel) > "$work/otel.log" 2>&1 &&
    passed || failed "traces: $(tail -n 40 "$work/otel.log" | cut -c 1-600)"
fi

# --- what a deployment reads
"$venv/bin/kubernetes-validate" --strict "$root/deploy/kubernetes/ascribe.yaml" > "$work/out" 2>&1 && passed ||
  failed "the Kubernetes manifests: $(cat "$work/out")"
"$venv/bin/hadolint" "$root/deploy/Dockerfile" > "$work/out" 2>&1 && passed || failed "the Dockerfile: $(cat "$work/out")"
if command -v systemd-analyze > /dev/null; then
  sed "s#/usr/bin/ascribe#$ASCRIBE#" "$root/deploy/ascribe.service" > "$work/ascribe.service"
  systemd-analyze verify "$work/ascribe.service" > "$work/out" 2>&1 && [ ! -s "$work/out" ] && passed ||
    failed "the systemd unit: $(cat "$work/out")"
fi
"$ASCRIBE" serve config show --run "$run" --format json > "$work/out" 2>&1 &&
  python3 -c 'import json,sys; assert all(s["origin"] for s in json.load(open(sys.argv[1])))' "$work/out" && passed ||
  failed "config show"
fi

echo "$n_passed passed, $n_failed failed"
[ "$n_failed" -eq 0 ]
