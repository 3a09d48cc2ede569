#!/usr/bin/env bash
# Builds a verbatim index over real text of this machine and searches it with responses of 500 tokens.
#
#   benches/verbatim/run.sh OUT [BYTES] [FOLDER ...]
#
# OUT      working folder: corpus.jsonl, index/, responses/, build.json; what is there already is used again
# BYTES    text to collect, 360,000,000 if not given (about 10^8 tokens of the shipped tokenizer)
# FOLDER   where text is taken from; Cargo's package sources and the toolchain's documentation if none is given
#
# Prints the build's report and one line per response: tokens, spans, milliseconds. Each search is a new process over a warm
# page cache, so the time holds mapping the pages and checking their sums. Needs `cargo build --release` before.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
out=${1:?usage: run.sh OUT [BYTES] [FOLDER ...]}
bytes=${2:-360000000}
shift; [ $# -eq 0 ] || shift
folders=("$@")
if [ ${#folders[@]} -eq 0 ]; then
  folders=("${CARGO_HOME:-$HOME/.cargo}/registry/src" "$(rustc --print sysroot)/share/doc")
fi
ascribe=${CARGO_TARGET_DIR:-$repository/target}/release/ascribe
mkdir -p "$out/responses"

[ -f "$out/corpus.jsonl" ] || {
  python3 "$repository/benches/verbatim/collect.py" "$out/corpus.jsonl.part" --bytes "$bytes" "${folders[@]}"
  mv "$out/corpus.jsonl.part" "$out/corpus.jsonl"
}
if [ ! -f "$out/build.json" ]; then
  "$ascribe" verbatim build --home "$repository" --data "$out/corpus.jsonl" --out "$out/index" --format json \
    > "$out/build.json.part"
  mv "$out/build.json.part" "$out/build.json"
fi
cat "$out/build.json"

# Responses: texts of this repository that the corpus does not hold, pieces of records of the corpus as they are, and such
# pieces with every 40th word changed.
python3 - "$out" "$repository" <<'PY'
import json, pathlib, sys
out, repository = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
CHARS = 1700  # 500 tokens of the shipped tokenizer and more
def keep(name, text):
    (out / "responses" / f"{name}.txt").write_text(text[:CHARS], encoding="utf-8")
for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md"):
    keep(f"unseen-{name}", (repository / name).read_text(encoding="utf-8"))
with open(out / "corpus.jsonl", encoding="utf-8") as lines:
    records = [json.loads(line)["text"] for i, line in enumerate(lines) if i % 997 == 100]
records = [text for text in records if len(text) > 2 * CHARS]
for i in range(0, len(records), max(1, len(records) // 6)):
    piece = records[i][len(records[i]) // 2:]
    keep(f"copied-{i:03}", piece)
    words = piece.split(" ")
    words[::40] = ["xyzzy"] * len(words[::40])
    keep(f"changed-{i:03}", " ".join(words))
PY

printf '%-28s %7s %7s %6s %9s\n' response tokens covered spans ms
for response in "$out"/responses/*.txt; do
  "$ascribe" verbatim find --index "$out/index" --text "$response" --format json \
    | python3 -c '
import json, sys
r = json.load(sys.stdin)
print("%-28s %7d %7d %6d %9.2f" % (sys.argv[1], r["tokens"], r["covered"], r["n_spans"], r["search_ms"]))' \
    "$(basename "$response")"
done
