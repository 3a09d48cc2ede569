#!/usr/bin/env bash
# Ascribe and bergson build the same gradient index, in turn, on this machine.
#
#   benches/peers/run.sh [--model DIR --ids FILE.npy] [--n 1024] [--rounds 3]
#
# Without --model it measures a GPT-2 shape with random weights (4 layers, width 256, context 128, 4,096 words) on random
# tokens: speed does not depend on what the numbers say. Prints a table and ratios; the last line is JSON.
# Needs cargo, python3 with pip, readelf, nm and a C compiler; x86-64 Linux. Keeps a virtual environment of about 2 GB under
# ~/.cache (ASCRIBE_PEERS_VENV names another place). CARGO names another cargo. Measure on an idle machine.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=${ASCRIBE_PEERS_VENV:-$HOME/.cache/ascribe-peers}
alone=(torch==2.15.0 nvidia-cuda-runtime==13.2.86 torchvision==0.29.2 torchopt==0.7.3 bergson==2.5.1 peft==0.21.2
  bitsandbytes==0.50.2 accelerate==1.15.0)

mark=$(cat "$here/requirements.txt" <(echo "${alone[@]}") | sha256sum | cut -c1-16)
if [ ! -e "$venv/$mark" ]; then
  rm -rf "$venv"
  if python3 -m venv "$venv" >&2; then
    pip=("$venv/bin/python" -m pip)
  else # Debian without python3-venv, but with a pip outside
    python3 -m venv --clear --without-pip "$venv" >&2
    pip=(python3 -m pip --python "$venv/bin/python")
  fi
  pip+=(install --quiet --disable-pip-version-check)
  "${pip[@]}" --no-deps "${alone[@]}" >&2
  "${pip[@]}" -r "$here/requirements.txt" >&2
  if ! "$venv/bin/python" -c 'import torch' 2> /dev/null; then
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    "$venv/bin/python" "$root/tests/conformance/transformers/stub_cuda.py" "$site" >&2
  fi
  "$venv/bin/python" -c 'import bergson' >&2
  touch "$venv/$mark"
fi

cd "$root"
"${CARGO:-cargo}" build --release --quiet -p ascribe-cli
exec "$venv/bin/python" "$here/compare.py" --ascribe "${CARGO_TARGET_DIR:-$root/target}/release/ascribe" "$@"
