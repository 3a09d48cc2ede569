#!/usr/bin/env bash
# Search beside faiss, hnswlib, usearch and numpy: same rows, same queries, one table.
#
#   benches/peers/search_compare.sh [FOLDER] [100000x128 20000x768 1000000x1024:flat ...]
#
# A shape with `:flat` leaves the graphs out. Rows, queries, stores and the table stay in FOLDER (default out/peers/search).
# Peers come from PyPI into a virtual environment of their own. Graphs are asked on one thread, scans on all cores.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
out=${1:-$root/out/peers/search}
shift || true
mkdir -p "$out"
if [ ! -x "$out/venv/bin/python" ]; then
  python3 -m venv "$out/venv"
  "$out/venv/bin/pip" install -q -r "$here/search_requirements.txt"
fi
cargo build -q --release -p ascribe-cli --manifest-path "$root/Cargo.toml"
target=${CARGO_TARGET_DIR:-$root/target}
exec "$out/venv/bin/python" "$here/search_compare.py" "$target/release/ascribe" "$out" "${@:-100000x128 20000x768 1000000x1024:flat}"
