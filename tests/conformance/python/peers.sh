#!/usr/bin/env bash
# bergson, LogIX, TRAK, kronfluence and dattri write their files, and `ascribe.migrate` reads them.
#
#   tests/conformance/python/peers.sh [--keep]
#
# PyTorch comes from the environment of tests/conformance/transformers, pytest and the wheel from that of run.sh beside this file,
# which are made first if they are not there. Keeps an environment with the five tools (ASCRIBE_IMPORTERS_VENV,
# ~/.cache/ascribe-importers; about 400 MB). With --keep their files take the place of those that the package's tests read.
# The last line is `N passed, M failed`.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
base=${ASCRIBE_VENV:-$HOME/.cache/ascribe-transformers}
tests=${ASCRIBE_PYTHON_VENV:-$HOME/.cache/ascribe-python-tests}
venv=${ASCRIBE_IMPORTERS_VENV:-$HOME/.cache/ascribe-importers}
# Without their dependencies, which are PyTorch's NVIDIA libraries; logix-ai would refuse the Python that it runs under.
alone=(torchvision==0.29.2 torchopt==0.7.3 bergson==2.5.1 peft==0.21.2 bitsandbytes==0.50.2 accelerate==1.15.0 kronfluence==1.0.1
  dattri==0.3.0 traker==0.3.2 logix-ai==0.1.1)
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1 TOKENIZERS_PARALLELISM=false
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if ! "$tests/bin/python" -c 'import ascribe, pytest, torch' 2> /dev/null; then
  "$here/run.sh" -k test_migrate >&2 || true # its own verdict is its own
fi
torch_site=$("$base/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
needed=$(grep -hvE '^(#|transformers|tokenizers|safetensors)' "$root"/benches/peers/{requirements,influence_requirements}.txt | sort -u)
mark=$(echo "$needed ${alone[*]} $torch_site" | sha256sum | cut -c1-16)
if [ ! -e "$venv/$mark" ]; then
  rm -rf "$venv"
  python3 -m venv "$venv" > /dev/null 2>&1 || python3 -m venv --clear --without-pip "$venv"
  site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo "$torch_site" > "$site/torch-of-another-environment.pth"
  pip=(python3 -m pip --python "$venv/bin/python" install --quiet --disable-pip-version-check)
  "${pip[@]}" --no-deps --ignore-requires-python "${alone[@]}" >&2
  # shellcheck disable=SC2086
  "${pip[@]}" $needed >&2
  touch "$venv/$mark"
fi

failed=0
for tool in bergson logix trak kronfluence dattri; do
  if ! "$venv/bin/python" "$here/peers.py" $tool "$work/files/$tool" > "$work/$tool.log" 2>&1; then
    failed=$((failed + 1))
    echo "FAILED $tool wrote nothing"
    tail -n 20 "$work/$tool.log"
  fi
done
set +e
ASCRIBE_PEER_FILES=$work/files "$tests/bin/python" -m pytest -q --tb=short -p no:cacheprovider -k itself \
  "$root/crates/ascribe-python/tests/test_migrate.py" | tee "$work/pytest.log"
set -e
closing=$(tail -n 1 "$work/pytest.log")
count() { grep -oE "[0-9]+ $1" <<< "$closing" | cut -d' ' -f1 || true; }
passed=$(count passed)
for word in failed error; do n=$(count $word) && failed=$((failed + ${n:-0})); done
if [ "${1:-}" = --keep ] && [ "$failed" -eq 0 ]; then
  rm -rf "$root/crates/ascribe-python/tests/peers"
  cp -r "$work/files" "$root/crates/ascribe-python/tests/peers"
fi
echo "${passed:-0} passed, $failed failed"
[ "$failed" -eq 0 ] && [ "${passed:-0}" -gt 0 ]
