#!/usr/bin/env bash
# How long does scoring a store take on 1, 2 and 4 executors, and how far is `ascribe plan` off?
#
#   benches/cluster/run.sh [WORK]
#
# WORK keeps the store (1.1 GB, made once; default: a temporary folder). Executors are processes of one task at a time, bound to
# the cores of this machine in turn (taskset): on two cores, 4 executors have half a core each, and that is what is planned. The page
# cache is warm and every executor has opened the store and checked its shards before the clock starts; the clock is the
# client's, from its start to its end. Every result is compared with the shard jobs of one process, byte by byte.
# ROWS, DIM, QUERIES change the work. Needs cargo and python3; nothing else should run on the machine.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
rows=${ROWS:-262144} dim=${DIM:-1024} queries=${QUERIES:-128} datasets=16
temporary=
work=${1:-}
if [ -z "$work" ]; then
  work=$(mktemp -d)
  temporary=$work
fi
mkdir -p "$work"
work=$(realpath -- "$work")
pids=()
finish() {
  for pid in "${pids[@]}"; do kill -9 "$pid" 2> /dev/null || true; done
  [ -z "$temporary" ] || rm -rf "$temporary"
}
trap finish EXIT

target=${CARGO_TARGET_DIR:-$root/target}
engine_target=${ASCRIBE_CLUSTER_TARGET_DIR:-$HOME/.cache/ascribe-cluster-target}
if [ -z "${ASCRIBE_BUILT:-}" ]; then
  CARGO_TARGET_DIR=$engine_target "${CARGO:-cargo}" build --release --locked --quiet --manifest-path "$root/crates/ascribe-cluster/Cargo.toml"
  (cd "$root" && "${CARGO:-cargo}" build --release --quiet && "${CARGO:-cargo}" build --release --quiet -p ascribe-server --example make_store)
fi
cluster=$engine_target/release/ascribe-cluster
ascribe=$target/release/ascribe
export RUST_LOG=error

store=$work/store-$rows-$dim
[ -f "$store/CURRENT" ] || "$target/release/examples/make_store" "$store" "$rows" "$dim" "$datasets" > /dev/null
cat "$store"/shards/* > /dev/null
python3 - "$work" "$queries" "$dim" <<'EOF_PY'
import random, struct, sys
work, n, dim = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for name, rows in (("one", 1), ("queries", n)):
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}"
    head = (head + " " * (-(10 + len(head) + 1) % 64) + "\n").encode()
    draw = random.Random(7)
    data = struct.pack(f"<{rows * dim}f", *(draw.gauss(0, 1) for _ in range(rows * dim)))
    with open(f"{work}/{name}.npy", "wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data)
EOF_PY

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
wait_for_port() {
  for _ in $(seq 300); do
    if python3 -c 'import socket, sys; socket.create_connection(("127.0.0.1", int(sys.argv[1])), 1)' "$1" 2> /dev/null; then return; fi
    sleep 0.1
  done
  echo "nobody listens on port $1" >&2
  exit 1
}
score() { # queries, out, more arguments
  "$cluster" score --store "$store" --queries "$work/$1.npy" --k 10 --out "$work/$2.json" "${@:3}" 2> "$work/score.log" ||
    { cat "$work/score.log" >&2; exit 1; }
}

score queries plain --plain
cores=$(nproc)
seconds=()
for n in 1 2 4; do
  port=$(free_port)
  "$cluster" scheduler --port "$port" > "$work/scheduler.log" 2>&1 &
  own=($!)
  wait_for_port "$port"
  for i in $(seq "$n"); do
    flight=$(free_port)
    taskset -c $(((i - 1) % cores)) "$cluster" executor --scheduler "127.0.0.1:$port" --port "$flight" --grpc-port "$(free_port)" \
      --vcores 1 --work-dir "$work/work-$n-$i" > "$work/executor-$i.log" 2>&1 &
    own+=($!)
    wait_for_port "$flight"
  done
  pids+=("${own[@]}")
  sleep 1
  score one warm --cluster "df://127.0.0.1:$port"
  start=$(date +%s.%N)
  score queries "cluster-$n" --cluster "df://127.0.0.1:$port"
  seconds+=("$(echo "$(date +%s.%N) - $start" | bc)")
  cmp "$work/plain.json" "$work/cluster-$n.json"
  kill -9 "${own[@]}"
  wait "${own[@]}" 2> /dev/null || true
  rm -rf "$work"/work-*
  share=$(python3 -c "print(min(1, $cores / $n))")
  "$ascribe" --format json plan --rows "$rows" --dim "$dim" --stored f32 --queries "$queries" --best 10 --datasets "$datasets" \
    --executors "$n" --cores "$share" --disk-gb-s 100 --network-gb-s 1 > "$work/plan-$n.json"
done

python3 - "$work" "${seconds[@]}" <<'EOF_PY'
import json, sys
work, measured = sys.argv[1], [float(x) for x in sys.argv[2:]]
print("executors  measured  planned  measured / planned  (computing, last shard; multiply-adds a second and core)")
for n, seconds in zip((1, 2, 4), measured):
    plan = json.load(open(f"{work}/plan-{n}.json"))
    score = plan["score"]
    last = score["seconds"] - score["compute_seconds"] - score["network_seconds"]
    parts = f"({score['compute_seconds']:.1f} s, {last:.1f} s; {plan['rates']['mul_adds_per_cpu_second']:.2e})"
    print(f"{n:9}  {seconds:6.1f} s  {score['seconds']:5.1f} s  {seconds / score['seconds']:18.2f}  {parts}")
print(f"two executors {measured[0] / measured[1]:.2f} times one, the same bytes each time")
EOF_PY
