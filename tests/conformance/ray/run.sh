#!/usr/bin/env bash
# Does a build on a Ray cluster give the bytes of one machine, whatever dies?
#
#   tests/conformance/ray/run.sh
#
# See README.md. Installs Ray and moto's server into an environment of its own, and the wheel of crates/ascribe-python. ASCRIBE and
# ASCRIBE_WHEEL name a built command and a built wheel, else they are built; CARGO names another cargo. The last line is
# `N passed, M failed`.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
venv=${ASCRIBE_RAY_VENV:-$HOME/.cache/ascribe-ray}

broken() {
  echo "FAILED $1"
  echo "0 passed, 1 failed"
  exit 1
}
pip_in() {
  if "$venv/bin/python" -m pip --version > /dev/null 2>&1; then
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >&2
  else # Debian without python3-venv, but with a pip outside
    python3 -m pip --python "$venv/bin/python" install --quiet --disable-pip-version-check "$@" >&2
  fi
}

mark=$(sha256sum "$here/requirements.txt" | cut -c1-16)
if [ ! -e "$venv/$mark" ]; then
  rm -rf "$venv"
  python3 -m venv "$venv" > /dev/null 2>&1 || python3 -m venv --clear --without-pip "$venv" >&2 || broken "python3 -m venv"
  pip_in -r "$here/requirements.txt" || broken "pip could not install requirements.txt"
  touch "$venv/$mark"
fi
[ -z "${ASCRIBE_PREPARE_ONLY:-}" ] || exit 0

cd "$root"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target}
if [ -z "${ASCRIBE:-}" ]; then
  "${CARGO:-cargo}" build --release --quiet || broken "the command does not build"
  ASCRIBE=$CARGO_TARGET_DIR/release/ascribe
fi
work=$(mktemp -d)
trap 'rm -rf "$work" || true' EXIT
wheel=${ASCRIBE_WHEEL:-}
if [ -z "$wheel" ]; then
  # The wheel's crates are those that the workspace builds: one set of features, nothing compiled twice.
  export __CARGO_TEST_CHANNEL_OVERRIDE_DO_NOT_USE_THIS=nightly CARGO_UNSTABLE_FEATURE_UNIFICATION=true
  export CARGO_RESOLVER_FEATURE_UNIFICATION=workspace
  python3 -m pip wheel --quiet --no-deps --disable-pip-version-check -w "$work/dist" "$root/crates/ascribe-python" >&2 || broken "pip wheel"
  wheel=$(ls "$work"/dist/ascribe-*.whl) || broken "no wheel"
fi
pip_in --no-deps --force-reinstall "$wheel" || broken "pip install of the wheel"
PYTHONDONTWRITEBYTECODE=1 "$venv/bin/python" "$here/check.py" --ascribe "$ASCRIBE" --root "$root"
