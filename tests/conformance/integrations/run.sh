#!/usr/bin/env bash
# Do the LiteLLM callback and the OpenAI proxy work inside the real packages?
#
#   tests/conformance/integrations/run.sh [DEMO_FOLDER]
#
# Needs cargo and python3 with venv and pip. DEMO_FOLDER is a finished `ascribe demo` (made here when it is not given). ASCRIBE
# names a built command, else it is built; CARGO another cargo. VLLM=1 also puts the proxy in front of vLLM's own HTTP layer (a wheel of
# 340 MB from PyPI, kept with what it imports in an environment of 1 GB under ~/.cache; ASCRIBE_VLLM_VENV names another place).
# The last line is `N passed, M failed`.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
work=$(mktemp -d)
server=
# The server drains before it ends, and writes while it drains: its folder is removed when it is gone.
finish() {
  [ -z "$server" ] || kill "$server" 2> /dev/null || true
  wait 2> /dev/null || true
  rm -rf "$work" || true
}
trap finish EXIT

broken() {
  echo "FAILED $1"
  echo "0 passed, 1 failed"
  exit 1
}

if [ -z "${ASCRIBE:-}" ]; then
  (cd "$root" && "${CARGO:-cargo}" build --release --quiet -p ascribe-cli) || broken "the command did not build"
  ASCRIBE=${CARGO_TARGET_DIR:-$root/target}/release/ascribe
fi
if [ $# -gt 0 ]; then
  # Serving writes receipts beside the run: a folder of somebody else's stays as it is.
  cp -r "$(realpath -- "$1")" "$work/demo"
else
  (cd "$root" && "$ASCRIBE" demo --out "$work/demo" --format json) > "$work/demo.json" || broken "the demo did not run"
fi
python3 -m venv "$work/venv" && "$work/venv/bin/pip" install --quiet -r "$here/requirements.txt" >&2 ||
  broken "pip could not install the packages"

# --- vLLM without an engine: its wheel, and PyTorch from the environment of another suite
vllm=
if [ -n "${VLLM:-}" ]; then
  venv=${ASCRIBE_VLLM_VENV:-$HOME/.cache/ascribe-vllm}
  torch=${ASCRIBE_VENV:-$HOME/.cache/ascribe-transformers}
  mark=$(sha256sum "$here/vllm_requirements.txt" | cut -c1-16)
  if [ ! -e "$venv/$mark" ]; then
    ASCRIBE_PREPARE_ONLY=1 "$here/../transformers/run.sh" >&2 || broken "PyTorch's environment"
    rm -rf "$venv"
    python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --no-deps -r "$here/vllm_requirements.txt" >&2 ||
      broken "pip could not install vLLM"
    site() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
    site "$torch" > "$(site "$venv")/torch-of-another-environment.pth"
    touch "$venv/$mark"
  fi
  vllm=$venv/bin/python
fi

cd "$root"
"$ASCRIBE" serve --run "$work/demo" --listen 127.0.0.1:0 > "$work/serve.out" 2> "$work/serve.err" &
server=$!
for _ in $(seq 600); do
  [ ! -s "$work/serve.out" ] || break
  kill -0 "$server" 2> /dev/null || broken "the server ended: $(tail -n 1 "$work/serve.err")"
  sleep 0.1
done
base=$(python3 -c 'import json; print(json.loads(input())["url"])' < "$work/serve.out") ||
  broken "the first line of the server names no address"

status=0
mkdir "$work/checks"
(cd "$here" && PYTHONDONTWRITEBYTECODE=1 "$work/venv/bin/python" check.py "$base" "$root" "$work/checks" ${vllm:+"$vllm"}) || status=$?
[ "$status" -le 1 ] || broken "the checks ended with $status"
exit "$status"
