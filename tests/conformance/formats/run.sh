#!/usr/bin/env bash
# Do llama.cpp's package and PEFT mean the same by their files as Ascribe does? See README.md.
#
#   tests/conformance/formats/run.sh
#
# Needs what the suite `transformers` needs, and its environment (made by that suite if it is not there yet).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
torch_venv=${ASCRIBE_VENV:-$HOME/.cache/ascribe-transformers}
venv=${ASCRIBE_FORMATS_VENV:-$HOME/.cache/ascribe-formats}

broken() {
  echo "FAILED $1"
  echo "0 passed, 1 failed"
  exit 1
}

if ! "$torch_venv/bin/python" -c 'import torch, transformers' 2> /dev/null; then
  "$here/../transformers/run.sh" >&2 || true # its own verdict is not asked for here
fi
mark=$(sha256sum "$here/requirements.txt" | cut -c1-16)
if [ ! -e "$venv/$mark" ]; then
  rm -rf "$venv"
  if python3 -m venv "$venv" >&2; then
    pip=("$venv/bin/python" -m pip)
  else # Debian without python3-venv, but with a pip outside
    python3 -m venv --clear --without-pip "$venv" >&2 || broken "python3 -m venv"
    pip=(python3 -m pip --python "$venv/bin/python")
  fi
  "${pip[@]}" install --quiet --disable-pip-version-check --no-deps -r "$here/requirements.txt" >&2 ||
    broken "pip could not install requirements.txt"
  site='import sysconfig; print(sysconfig.get_path("purelib"))'
  "$torch_venv/bin/python" -c "$site" > "$("$venv/bin/python" -c "$site")/transformers.pth"
  "$venv/bin/python" -c 'import gguf, peft, torch, transformers' >&2 || broken "the packages cannot be imported"
  touch "$venv/$mark"
fi

cd "$root"
# With the whole workspace selected, features are those of the tests: nothing is compiled a second time.
"${CARGO:-cargo}" build --release --quiet --workspace --example formats || broken "the example does not build"
export HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1
"$venv/bin/python" -W ignore "$here/check.py" --formats "${CARGO_TARGET_DIR:-$root/target}/release/examples/formats" \
  --fixtures "$root/crates/ascribe-models/tests/fixtures"
