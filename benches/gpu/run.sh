#!/usr/bin/env bash
# Rows of a CUDA device against rows of the processor, and the device's speed. Wants an NVIDIA device, its driver, CUDA's
# libraries (cublas, curand, nvrtc) and, to build, cargo and nvcc.
#
#   benches/gpu/run.sh            on the device: builds with the feature `cuda`, compares, measures
#   benches/gpu/run.sh --cpu      the same program on the processor, tiny shape: its own test
#   DEVICE_RATES=PATH ...         takes a program that was built elsewhere
#
# One JSON line per run. The script fails if a row of the device is further from the processor's f32 row than
#   f32   1e-5 of its length for the tiny shape, 1e-4 for the large ones (sums of thousands of terms in another order)
#   bf16  1e-3 in 1 − cosine; its distance is printed, rounding of every activation to 8 bits makes it about 1e-2
# and prints the share of the measured bf16 product peak; the target is 0.6 for the shape of a billion parameters.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

features=(--features cuda)
place=cuda
if [ "${1:-}" = --cpu ]; then
  features=()
  place=cpu
fi
program=${DEVICE_RATES:-}
if [ -z "$program" ]; then
  cargo build --release -p ascribe-models --example device "${features[@]}"
  program=${CARGO_TARGET_DIR:-target}/release/examples/device
fi

failed=0
# measure SHAPE NUMBERS FIELD BOUND [SEQUENCES [LENGTH [BATCH]]]
measure() {
  local line
  line=$("$program" "$1" "$place" "$2" "${@:5}")
  echo "$line"
  python3 - "$line" "$3" "$4" <<'PY' || failed=1
import json, sys
report, field, bound = json.loads(sys.argv[1]), sys.argv[2], float(sys.argv[3])
if not report[field] <= bound:
    sys.exit(f"{report['shape']} {report['numbers']}: {field} {report[field]:.2e} is over {bound:.0e}")
PY
}

measure tiny f32 row_distance 1e-5 8 32 128
measure tiny bf16 row_one_minus_cosine 1e-3 8 32 128
if [ "$place" = cuda ]; then
  measure smollm2-135m f32 row_distance 1e-4 32 512 8192
  measure smollm2-135m bf16 row_one_minus_cosine 1e-3 256 512 16384
  measure llama-1b bf16 row_one_minus_cosine 1e-3 64 512 8192
  measure llama-1b bf16 row_one_minus_cosine 1e-3 32 1024 16384
fi
exit "$failed"
