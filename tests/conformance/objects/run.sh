#!/usr/bin/env bash
# Does a store go onto real servers of S3 and Azure's blobs and come back, and do writers who race leave one winner and lose nothing?
#
#   tests/conformance/objects/run.sh
#
# See README.md (GOOGLE_TESTBENCH: Google's own server, too). Needs node and npm. Installs moto's server and Azurite into an environment of its own. ASCRIBE names a built command, else it is built; CARGO
# names another cargo. The last line is `N passed, M failed`.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
venv=${ASCRIBE_OBJECTS_VENV:-$HOME/.cache/ascribe-objects}

broken() {
  echo "FAILED $1"
  echo "0 passed, 1 failed"
  exit 1
}

mark=$(cat "$here/requirements.txt" "$here/package.json" | sha256sum | cut -c1-16)
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
  cp "$here/package.json" "$venv/"
  (cd "$venv" && npm install --no-audit --no-fund --no-package-lock --ignore-scripts --loglevel=error >&2) ||
    broken "npm could not install Azurite"
  touch "$venv/$mark"
fi
[ -z "${ASCRIBE_PREPARE_ONLY:-}" ] || exit 0

cd "$root"
if [ -z "${ASCRIBE:-}" ]; then
  "${CARGO:-cargo}" build --release --quiet || broken "the command does not build"
  ASCRIBE=${CARGO_TARGET_DIR:-$root/target}/release/ascribe
fi
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$root/tests/conformance/store "$venv/bin/python" "$here/check.py" --ascribe "$ASCRIBE" \
  --modules "$venv/node_modules"
