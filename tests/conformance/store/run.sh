#!/usr/bin/env bash
# Does outside code open a store from docs/STORE.md alone, and Ascribe what outside code wrote from it? See README.md.
#
#   tests/conformance/store/run.sh
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
venv=${ASCRIBE_STORE_VENV:-$HOME/.cache/ascribe-store}

broken() {
  echo "FAILED $1"
  echo "0 passed, 1 failed"
  exit 1
}

mark=$(sha256sum "$here/requirements.txt" | cut -c1-16)
if [ ! -e "$venv/$mark" ]; then
  rm -rf "$venv"
  if python3 -m venv "$venv" >&2; then
    pip=("$venv/bin/python" -m pip)
  else # Debian without python3-venv, but with a pip outside
    python3 -m venv --clear --without-pip "$venv" >&2 || broken "python3 -m venv"
    pip=(python3 -m pip --python "$venv/bin/python")
  fi
  "${pip[@]}" install --quiet --disable-pip-version-check -r "$here/requirements.txt" >&2 ||
    broken "pip could not install requirements.txt"
  touch "$venv/$mark"
fi

cd "$root"
"${CARGO:-cargo}" build --release --quiet || broken "the command does not build"
PYTHONDONTWRITEBYTECODE=1 "$venv/bin/python" "$here/check.py" --ascribe "${CARGO_TARGET_DIR:-$root/target}/release/ascribe"
