#!/usr/bin/env bash
# Builds the wheel of crates/ascribe-python, installs it in fresh environments, and runs its example, tests, doctests and lints.
#
#   tests/conformance/python/run.sh [pytest arguments]
#
# PyTorch comes from the environment of tests/conformance/transformers (ASCRIBE_VENV, ~/.cache/ascribe-transformers), which is made
# first if it is not there. Keeps an environment for the tests beside it; the one for the example is made anew each time.
# ASCRIBE and ASCRIBE_WHEEL name a built command and a built wheel, else they are built. ASCRIBE_DEMO names a finished demo's folder,
# whose files are then read and computed again.
# The last line is `N passed, M failed`; the exit code is 0 only when nothing failed and something passed.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
package=$root/crates/ascribe-python
base=${ASCRIBE_VENV:-$HOME/.cache/ascribe-transformers}
venv=${ASCRIBE_PYTHON_VENV:-$HOME/.cache/ascribe-python-tests}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target} HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1
# The wheel's crates are those that the workspace builds: one set of features, nothing compiled twice.
export __CARGO_TEST_CHANNEL_OVERRIDE_DO_NOT_USE_THIS=nightly CARGO_UNSTABLE_FEATURE_UNIFICATION=true
export CARGO_RESOLVER_FEATURE_UNIFICATION=workspace
work=$(mktemp -d)
trap 'rm -rf "$work" || true' EXIT
passed=0
failed=0

broken() {
  echo "FAILED $1"
  echo "$passed passed, $((failed + 1)) failed"
  exit 1
}

# One check: its name, its command.
check() {
  local name=$1
  shift
  if "$@" > "$work/check.log" 2>&1; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    echo "FAILED $name"
    tail -n 60 "$work/check.log"
  fi
}

if ! "$base/bin/python" -c 'import torch, transformers' 2> /dev/null; then
  "$here/../transformers/run.sh" >&2 || true # its own verdict is its own
fi
"$base/bin/python" -c 'import torch, transformers' || broken "no PyTorch at $base"
torch_site=$("$base/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

# An environment without pip of its own is reached by the pip outside (Debian without python3-venv).
make_venv() {
  python3 -m venv "$1" > /dev/null 2>&1 || python3 -m venv --clear --without-pip "$1"
  local site
  site=$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo "$torch_site" > "$site/torch-of-another-environment.pth"
}
pip_in() {
  local python=$1/bin/python
  shift
  if "$python" -m pip --version > /dev/null 2>&1; then
    "$python" -m pip install --quiet --disable-pip-version-check "$@"
  else
    python3 -m pip --python "$python" install --quiet --disable-pip-version-check "$@"
  fi
}

# 1. One abi3 wheel.
wheel=${ASCRIBE_WHEEL:-}
if [ -z "$wheel" ]; then
  python3 -m pip wheel --quiet --no-deps --disable-pip-version-check -w "$work/dist" "$package" >&2 || broken "pip wheel"
  wheel=$(ls "$work"/dist/ascribe-*-cp310-abi3-*.whl) || broken "not one abi3 wheel: $(ls "$work/dist")"
fi
check "the wheel holds types and no tests" "$base/bin/python" -c "
import sys, zipfile
names = zipfile.ZipFile(sys.argv[1]).namelist()
assert 'ascribe/py.typed' in names and 'ascribe/_ascribe.pyi' in names, names
assert not any('test' in name for name in names), names
print(*names)" "$wheel"

# The same wheel serves every CPython from 3.10: those that are at hand import it (with a numpy of theirs) and search a store.
for version in 3.10 3.12 3.13 3.14; do
  python=$("python$version" -c 'import sys; print(sys.executable)' 2> /dev/null) ||
    python=$(find "$HOME/.pyenv/versions" -path "*/bin/python$version" 2> /dev/null | head -n 1)
  [ -n "$python" ] || continue
  "$python" -m venv "$work/cp$version" > /dev/null 2>&1 || continue
  "$work/cp$version/bin/python" -m pip install --quiet --disable-pip-version-check "$wheel" || continue
  check "the wheel under CPython $version" env -C "$work" "$work/cp$version/bin/python" -c "
import doctest, sys, ascribe, ascribe.index, ascribe.store
failed = [doctest.testmod(m).failed for m in (ascribe, ascribe.index, ascribe.store, ascribe.metrics)]
assert sum(failed) == 0 and sys.version.startswith('$version'), (failed, sys.version)"
done

# 2. The example, with the wheel, torch and transformers alone.
make_venv "$work/fresh"
pip_in "$work/fresh" --no-deps "$wheel" || broken "pip install of the wheel"
check "README's lines stand in the example" "$base/bin/python" -c "
import sys
text = open(sys.argv[1]).read()
block = text[text.index('from ascribe.torch import collect'):].split('\`\`\`')[0]
lines = ['import ascribe', *(line.split('   #')[0].rstrip() for line in block.splitlines() if line)]
example = open(sys.argv[2]).read().splitlines()
assert len(lines) == 5 and all(line in example for line in lines), lines" "$root/README.md" "$package/examples/quickstart.py"
check "quickstart in a fresh environment" env -C "$work" "$work/fresh/bin/python" "$package/examples/quickstart.py" "$work/quickstart"

# 3. The tests.
mark=$(cat "$here/requirements.txt" "$here/no_deps.txt" <(echo "$torch_site") | sha256sum | cut -c1-16)
if [ ! -e "$venv/$mark" ]; then
  rm -rf "$venv"
  make_venv "$venv"
  pip_in "$venv" -r "$here/requirements.txt" || broken "pip could not install requirements.txt"
  pip_in "$venv" --no-deps -r "$here/no_deps.txt" || broken "pip could not install no_deps.txt"
  touch "$venv/$mark"
fi
pip_in "$venv" --no-deps --force-reinstall "$wheel" || broken "pip install of the wheel"
cd "$root"
if [ -z "${ASCRIBE:-}" ]; then
  "${CARGO:-cargo}" build --release --quiet -p ascribe-cli || broken "the command does not build"
fi
export ASCRIBE=${ASCRIBE:-$CARGO_TARGET_DIR/release/ascribe} ASCRIBE_ROOT=$root
cp -r "$package/tests" "$work/tests"
set +e
(cd "$work" && "$venv/bin/python" -m pytest -q --tb=short -p no:cacheprovider "$work/tests" "$@") | tee "$work/pytest.log"
closing=$(tail -n 1 "$work/pytest.log")
set -e
count() { grep -oE "[0-9]+ $1" <<< "$closing" | cut -d' ' -f1 || true; }
n=$(count passed) && passed=$((passed + ${n:-0}))
for word in failed error; do n=$(count $word) && failed=$((failed + ${n:-0})); done
[ -n "$(count passed)" ] || failed=$((failed + 1))

# 4. Doctests, types, style.
site=$("$venv/bin/python" -c 'import ascribe, pathlib; print(pathlib.Path(ascribe.__file__).parent)')
check "doctests" env -C "$work" "$venv/bin/python" -m pytest -q -p no:cacheprovider --doctest-modules "$site/store.py" \
  "$site/spec.py" "$site/index.py" "$site/attribution.py" "$site/metrics.py" "$site/pure.py" "$site/__init__.py"
for guide in python migrating; do
  check "the examples of docs/$guide.md" env -C "$root" "$venv/bin/python" -m doctest -o ELLIPSIS "docs/$guide.md"
done
check "stubs say what the compiled module has" env -C "$work" "$venv/bin/python" -m mypy.stubtest ascribe._ascribe
check "mypy --strict" env -C "$package" "$venv/bin/python" -m mypy --cache-dir "$work/mypy"
check "ruff check" env -C "$package" "$venv/bin/ruff" check --no-cache -q python tests examples
check "ruff format" env -C "$package" "$venv/bin/ruff" format --no-cache --check -q python tests examples

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
