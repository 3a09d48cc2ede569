#!/usr/bin/env bash
# Ascribe beside dattri, kronfluence, captum, pyDVL, traker and LogIX: the same trained model, the same images, the same formula, in turn,
# on one thread.
#
#   benches/peers/influence_compare.sh [--settings mnist-lr,mnist-mlp,mnist-lr-14] [--queries 100] [--methods NAMES] [--peers NAMES] [--no-f64]
#
# For every method that both implement: Spearman between the two score tables (per query, then the mean), with the peer in f32 and
# in f64 (where a model is sure of its answer, gradients in f32 lose the digits that order the scores); CPU seconds of the fit and
# score phases of both, and of both whole processes (ours with the training of the model, the peer's with its imports); peak memory
# of both whole processes. TRAK and LoGra run with our projection on both sides; mnist-lr-14 is logistic regression on MNIST at half its
# width and height, where pyDVL's explicit Hessian ends in time. Prints a table; the last line is JSON. Before it,
# `closed_form.py` holds the peers' EK-FAC against a case whose curvature is a Kronecker product. Needs cargo, python3 with pip, readelf, nm and a C
# compiler; x86-64 Linux. Keeps a virtual environment under ~/.cache (ASCRIBE_INFLUENCE_VENV names another place).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=${ASCRIBE_INFLUENCE_VENV:-$HOME/.cache/ascribe-influence-peers}
alone=(torch==2.15.0 nvidia-cuda-runtime==13.2.86 torchvision==0.29.2 accelerate==1.15.0 huggingface_hub==2.4.0
  dattri==0.3.0 kronfluence==1.0.1 captum==0.9.0 pyDVL==0.10.0 traker==0.3.2)
logix=logix-ai==0.1.1 # its metadata names Python below 3.11 alone; it runs on what is newer

mark=$(cat "$here/influence_requirements.txt" <(echo "${alone[@]}" "$logix") | sha256sum | cut -c1-16)
if [ ! -e "$venv/$mark" ]; then
  rm -rf "$venv"
  if python3 -m venv "$venv" >&2; then
    pip=("$venv/bin/python" -m pip)
  else # Debian without python3-venv, but with a pip outside
    python3 -m venv --clear --without-pip "$venv" >&2
    pip=(python3 -m pip --python "$venv/bin/python")
  fi
  pip+=(install --quiet --disable-pip-version-check)
  "${pip[@]}" -r "$here/influence_requirements.txt" >&2
  "${pip[@]}" --no-deps "${alone[@]}" >&2
  "${pip[@]}" --no-deps --ignore-requires-python "$logix" >&2
  if ! "$venv/bin/python" -c 'import torch' 2> /dev/null; then
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    "$venv/bin/python" "$root/tests/conformance/transformers/stub_cuda.py" "$site" >&2
  fi
  "$venv/bin/python" -c 'import dattri, kronfluence, captum.influence, pydvl.influence.torch, trak, logix' >&2
  touch "$venv/$mark"
fi

cd "$root"
"${CARGO:-cargo}" build --release --quiet -p ascribe-engine --example influence_scores
"$venv/bin/python" "$here/closed_form.py"
exec "$venv/bin/python" "$here/influence_compare.py" \
  --ascribe "${CARGO_TARGET_DIR:-$root/target}/release/examples/influence_scores" "$@"
