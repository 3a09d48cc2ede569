#!/usr/bin/env bash
# 100 million score rows to the files of a million payees, beside DuckDB doing the group-by alone.
#
#   benches/payouts/run.sh [RESPONSES [DATASETS [PAYEES_EACH]]]     default 25000 4000 250: 100 M rows, 1 M payees
#
# Needs cargo and python3; 8 GB of disk in $SCRATCH (default: a temporary folder). Prints one JSON line. With PREPARE=1 and a SCRATCH
# only the inputs are made, so that a later call measures at once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
responses=${1:-25000} datasets=${2:-4000} payees=${3:-250}
work=${SCRATCH:-$(mktemp -d)}
mkdir -p "$work"
[ -n "${SCRATCH:-}" ] || trap 'rm -rf "$work"' EXIT
[ -x "$work/venv/bin/python" ] || python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q duckdb==1.5.0 >&2 || "$work/venv/bin/pip" install -q duckdb >&2
cargo build --release --quiet -p ascribe-cli
cargo build --release --quiet -p ascribe-registry --example pay_registry
target=${CARGO_TARGET_DIR:-target}
[ -e "$work/registry/licences.log" ] || "$target/release/examples/pay_registry" "$work/registry" "$datasets" "$payees"
rm -rf "$work/out"
"$work/venv/bin/python" - "$work" "$responses" "$datasets" "$target/release/ascribe" <<'PYTHON'
import json, os, subprocess, sys, time
import duckdb

work, responses, datasets, ascribe = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
scores = f"{work}/scores.parquet"
if not os.path.exists(scores):
    made = duckdb.connect()
    made.execute("SET memory_limit='2GB'; SET threads=2; SET preserve_insertion_order=false")
    # Uneven scores of both signs, from a hash, so that no order helps anybody.
    made.execute(f"""COPY (SELECT q::INTEGER AS query_id, d::INTEGER AS dataset_id,
        (hash(q * {datasets} + d) % 2000003)::DOUBLE / 1000001.5 - 0.8 AS score
        FROM range({responses}) t(q), range({datasets}) u(d)) TO '{scores}' (FORMAT parquet, ROW_GROUP_SIZE 1000000)""")
    made.close()

if os.environ.get("PREPARE"):
    sys.exit()

def peak(command, **kwargs):
    found = subprocess.Popen(command, stdout=subprocess.PIPE, **kwargs)
    text = found.stdout.read()
    _, status, usage = os.wait4(found.pid, 0)
    assert status == 0, command
    return text, round(usage.ru_maxrss / 1024), round(usage.ru_utime + usage.ru_stime, 1)

start = time.time()
text, mib, cpu = peak([ascribe, "pay", "run", "--scores", scores, "--registry", f"{work}/registry", "--pool", "1000000000.00 USD",
                       "--period", "2026-11-01/2026-11-30", "--out", f"{work}/out", "--threads", "2", "--format", "json", "--quiet"])
ours = {"wall_s": round(time.time() - start, 1), "cpu_s": cpu, "peak_mib": mib}
record = json.loads(text)
query = (f"import duckdb; c = duckdb.connect(); c.execute(\"SET threads=2\"); "
         f"print(c.execute(\"SELECT count(*) FROM (SELECT query_id, dataset_id, sum(score) FROM '{scores}' GROUP BY ALL)\").fetchall())")
start = time.time()
_, mib, cpu = peak([sys.executable, "-c", query])
duck = {"wall_s": round(time.time() - start, 1), "cpu_s": cpu, "peak_mib": mib}
print(json.dumps({"rows": record["rows"], "payees": record["payees"], "paid": record["paid_payees"],
                  "conserved": record["totals"]["conserved"], "ascribe": ours, "duckdb_group_by": duck}))
PYTHON
