#!/usr/bin/env bash
# Training in Ascribe beside training in PyTorch: the same model folder, the same sequences, f32, one thread, AdamW with
# clipping. Prints tokens per CPU-second of both, in turn, and the ratio.
#
#   benches/peers/train_compare.sh MODEL DATA.jsonl [--steps N] [--batch N] [--rounds N]
#
# Needs cargo and the Python environment of tests/conformance/transformers (made on first use by running that check;
# ASCRIBE_VENV names another place).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=${ASCRIBE_VENV:-$HOME/.cache/ascribe-transformers}

if ! "$venv/bin/python" -c 'import torch, transformers' 2> /dev/null; then
  "$root/tests/conformance/transformers/run.sh" >&2
fi
"${CARGO:-cargo}" build --release --quiet --manifest-path "$root/Cargo.toml" -p ascribe-cli
built=${CARGO_TARGET_DIR:-$root/target}/release
export HF_HUB_OFFLINE=1
exec "$venv/bin/python" "$here/train_compare.py" --ascribe "$built/ascribe" "$@"
