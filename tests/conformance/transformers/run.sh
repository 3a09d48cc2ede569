#!/usr/bin/env bash
# Does PyTorch's `transformers` see the same model that Ascribe sees?
#
#   tests/conformance/transformers/run.sh [model folder ...]
#
# Without arguments: every folder of models/ with weights, and random models of every family.
#
# Needs cargo, python3 with pip, readelf, nm and a C compiler; x86-64 Linux. Keeps a virtual environment of about 1.6 GB
# under ~/.cache (ASCRIBE_VENV names another place). CARGO names another cargo.
# The last line is `N passed, M failed`; the exit code is 0 only when nothing failed and something passed.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
venv=${ASCRIBE_VENV:-$HOME/.cache/ascribe-transformers}
torch='torch==2.15.0'
cuda_runtime='nvidia-cuda-runtime==13.2.86' # the one NVIDIA library that PyTorch calls while it loads; small

broken() {
  echo "FAILED $1"
  echo "0 passed, 1 failed"
  exit 1
}

models=()
families=()
for model in "$@"; do
  models+=("$(realpath -- "$model")")
done
if [ ${#models[@]} -eq 0 ]; then
  for weights in "$root"/models/*/model.safetensors; do
    [ -e "$weights" ] && models+=("$(dirname "$weights")")
  done
  [ ${#models[@]} -gt 0 ] && families=(--families "${models[0]}")
fi
[ ${#models[@]} -gt 0 ] || broken "no folder of models/ has weights"

# The mark names what was installed, so that a change of versions makes a new environment.
mark=$(cat "$here/requirements.txt" "$here/stub_cuda.py" <(echo "$torch $cuda_runtime") | sha256sum | cut -c1-16)
if [ ! -e "$venv/$mark" ]; then
  rm -rf "$venv"
  if python3 -m venv "$venv" >&2; then
    pip=("$venv/bin/python" -m pip)
  else # Debian without python3-venv, but with a pip outside
    python3 -m venv --clear --without-pip "$venv" >&2 || broken "python3 -m venv"
    pip=(python3 -m pip --python "$venv/bin/python")
  fi
  pip+=(install --quiet --disable-pip-version-check)
  "${pip[@]}" -r "$here/requirements.txt" >&2 || broken "pip could not install requirements.txt"
  "${pip[@]}" --no-deps "$torch" "$cuda_runtime" >&2 || broken "pip could not install $torch"
  if ! "$venv/bin/python" -c 'import torch' 2> /dev/null; then
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    "$venv/bin/python" "$here/stub_cuda.py" "$site" >&2 || broken "the stubs for NVIDIA's libraries"
  fi
  "$venv/bin/python" -c 'import torch, transformers' >&2 || broken "PyTorch cannot be imported"
  touch "$venv/$mark"
fi

# With ASCRIBE_PREPARE_ONLY the environment is made and nothing is judged.
if [ -n "${ASCRIBE_PREPARE_ONLY:-}" ]; then exit 0; fi

cd "$root"
# With the whole workspace selected, features are those of the tests: nothing is compiled a second time.
"${CARGO:-cargo}" build --release --quiet --workspace --bin ascribe --example logits ||
  broken "the command does not build"
built=${CARGO_TARGET_DIR:-$root/target}/release
export HF_HUB_OFFLINE=1
"$venv/bin/python" "$here/check.py" --ascribe "$built/ascribe" --logits "$built/examples/logits" \
  --datasets "$root/datasets" ${ASCRIBE_ANY_SIZE:+--any-size} ${families[@]+"${families[@]}"} "${models[@]}"
