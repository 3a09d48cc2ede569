#!/usr/bin/env bash
# Do other people's tools accept our run records and signed models, and refuse forged ones?
#
#   tests/conformance/runs/run.sh
#
# Needs cargo and python3 with venv and pip. ASCRIBE names a built command, else it is built; CARGO names another cargo.
# Judges: OpenSSF's model-signing 1.1.1, securesystemslib's DSSE, in-toto's attestation types. The model was trained
# elsewhere: numpy fits it here, our command records it. The last line is `N passed, M failed`.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work" || true' EXIT
cd "$work" || exit 1

n_passed=0
n_failed=0
failed() {
  n_failed=$((n_failed + 1))
  echo "FAILED $1"
}
accepts() {
  local what=$1
  shift
  if "$@" > "$work/out" 2>&1; then n_passed=$((n_passed + 1)); else failed "$what is refused: $(tail -n 2 "$work/out")"; fi
}
refuses() {
  local what=$1
  shift
  if "$@" > "$work/out" 2>&1; then failed "$what is accepted"; else n_passed=$((n_passed + 1)); fi
}
broken() {
  echo "FAILED $1"
  echo "$n_passed passed, $((n_failed + 1)) failed"
  exit 1
}

if [ -z "${ASCRIBE:-}" ]; then
  (cd "$root" && "${CARGO:-cargo}" build --release --quiet --workspace --bin ascribe) || broken "the command did not build"
  ASCRIBE=${CARGO_TARGET_DIR:-$root/target}/release/ascribe
fi
python3 -m venv venv && venv/bin/pip install --quiet model-signing==1.1.1 pyOpenSSL securesystemslib cryptography \
  in-toto-attestation || broken "pip could not install the judges"
judge=venv/bin/python

# --- a model of another program's making
mkdir -p model/checkpoints
"$judge" - << 'PYTHON' || broken "no model"
import json, struct
def save(path, rows):
    data = struct.pack(f"<{len(rows)}f", *rows)
    head = json.dumps({"w": {"dtype": "F32", "shape": [len(rows)], "data_offsets": [0, len(data)]}}).encode()
    open(path, "wb").write(struct.pack("<Q", len(head)) + head + data)
# Least squares by gradient descent: a real training, if a small one.
xs = [i / 50 for i in range(100)]
ys = [3 * x + 1 for x in xs]
w = [0.0, 0.0]
for step in range(2000):
    errors = [w[0] * x + w[1] - y for x, y in zip(xs, ys)]
    w[0] -= 0.3 * sum(e * x for e, x in zip(errors, xs)) / 100
    w[1] -= 0.3 * sum(errors) / 100
    if step == 999: save("model/checkpoints/step-1000.safetensors", w)
assert abs(w[0] - 3) < 1e-3 and abs(w[1] - 1) < 1e-3, w
save("model/model.safetensors", w)
json.dump({"model_type": "line"}, open("model/config.json", "w"))
json.dump([{"dataset": "foldoc", "records_used": 100}, {"dataset": "kjv-bible", "epochs": "0.5"}], open("used.json", "w"))
json.dump([{"dataset": "not-registered"}], open("unlicensed.json", "w"))
PYTHON

"$ASCRIBE" log keygen operator.example/runs --out run.key > run.vkey || broken "no key"
"$ASCRIBE" run keygen --out model.pem > model.pub.pem || broken "no model key"
record() { # LIST STARTED
  "$ASCRIBE" run record --model-dir model --datasets "$1" --registered "$root/datasets" --trainer 'plain python' \
    --started "$2" --finished 2026-11-01T00:00:00Z --steps 2000 --key run.key --model-key model.pem \
    --code-commit 0123456789abcdef0123456789abcdef01234567
}
accepts "a record" record used.json 2026-10-31T00:00:00Z
cp -r model signed

# --- the model's signature
accepts "model.sig by model-signing" "$judge" -m model_signing verify key signed --signature signed/model.sig \
  --public_key model.pub.pem
accepts "model.sig by ourselves" "$ASCRIBE" run verify signed --registered "$root/datasets" --key run.vkey \
  --model-key model.pub.pem
tamper() { rm -rf forged && cp -r signed forged; }
both_refuse() {
  refuses "$1 by model-signing" "$judge" -m model_signing verify key forged --signature forged/model.sig --public_key model.pub.pem
  refuses "$1 by ourselves" "$ASCRIBE" run verify forged --registered "$root/datasets" --key run.vkey --model-key model.pub.pem
}
tamper && printf x >> forged/model.safetensors && both_refuse "a changed file"
tamper && rm forged/checkpoints/step-1000.safetensors && both_refuse "a missing file"
tamper && echo > forged/extra.bin && both_refuse "an unsigned file"
"$ASCRIBE" run keygen --out other.pem > other.pub.pem
refuses "another key by model-signing" "$judge" -m model_signing verify key signed --signature signed/model.sig --public_key other.pub.pem
# Theirs, read by us.
rm -rf theirs && cp -r signed theirs && rm theirs/model.sig
accepts "their signing with our key" "$judge" -m model_signing sign key theirs --signature theirs/model.sig \
  --private_key model.pem --ignore-paths theirs/run.json --ignore-paths theirs/run.dsse.json
accepts "their signature by ourselves" "$ASCRIBE" run verify theirs --registered "$root/datasets" --model-key model.pub.pem

# --- the envelope and the statement
cat > envelope.py << 'PYTHON'
import base64, json, sys
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey
from google.protobuf import json_format
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1 import statement_pb2
folder, vkey = sys.argv[1:3]
raw = json.load(open(f"{folder}/run.dsse.json"))
public = base64.b64decode(open(vkey).read().strip().split("+", 2)[2])[1:]
keyid = raw["signatures"][0]["keyid"]
key = SSlibKey(keyid, "ed25519", "ed25519", {"public": public.hex()})
envelope = Envelope.from_dict(dict(raw, signatures=[dict(s, sig=s["sig"]) for s in raw["signatures"]]))
envelope.verify([key], 1)
assert envelope.payload == open(f"{folder}/run.json", "rb").read(), "the payload is not the record"
statement = json_format.Parse(envelope.payload, statement_pb2.Statement())
Statement.copy_from_pb(statement).validate()
assert statement.predicate_type == "https://slsa.dev/provenance/v1"
assert {s.name for s in statement.subject} >= {"model.safetensors", "checkpoints/step-1000.safetensors"}
PYTHON
accepts "the envelope by securesystemslib, the statement by in-toto" "$judge" envelope.py signed run.vkey
tamper && sed -i 's/"steps": 2000/"steps": 2001/' forged/run.json
refuses "a record beside another's envelope" "$judge" envelope.py forged run.vkey
refuses "the same, by ourselves" "$ASCRIBE" run verify forged --registered "$root/datasets"
"$ASCRIBE" log keygen operator.example/runs --out other.key > other.vkey
refuses "another operator's key by securesystemslib" "$judge" envelope.py signed other.vkey
refuses "another operator's key by ourselves" "$ASCRIBE" run verify signed --registered "$root/datasets" --key other.vkey

# --- policy
refuses "an unlicensed dataset" record unlicensed.json 2026-10-31T00:00:00Z
refuses "a run before its licences began" record used.json 2001-01-01T00:00:00Z
refuses "a run that cannot prove its start, under the strict policy" "$ASCRIBE" run verify signed \
  --registered "$root/datasets" --key run.vkey --policy strict
# With a witness that saw the licence log before the run began nothing is left to prove.
rm -rf datasets && cp -r "$root/datasets" datasets && rm -rf datasets/licences.tlog
"$ASCRIBE" log keygen registry.example/licences --out log.key > log.vkey
"$ASCRIBE" log mirror datasets --key log.key > /dev/null || failed "no tiles of the licence log"
"$ASCRIBE" log keygen witness.example/w --cosigner --out w.key > w.vkey
"$ASCRIBE" log cosign datasets/licences.tlog --key w.key --log-key log.vkey --seen seen > cosigned || failed "no cosignature"
"$ASCRIBE" log attach datasets/licences.tlog cosigned --key log.key --witness w.vkey > /dev/null || failed "not attached"
now=$(($(date +%s) + 1))
"$ASCRIBE" run record --model-dir model --datasets used.json --registered datasets --trainer 'plain python' --started $now \
  --finished $((now + 5)) --steps 2000 --key run.key --model-key model.pem > /dev/null || failed "no witnessed record"
accepts "a witnessed run under the strict policy" "$ASCRIBE" run verify model --registered datasets --key run.vkey \
  --log-key log.vkey --witness w.vkey --model-key model.pub.pem --policy strict
refuses "the same without the witness" "$ASCRIBE" run verify model --registered datasets --key run.vkey --log-key log.vkey \
  --policy strict

echo "$n_passed passed, $n_failed failed"
[ "$n_failed" -eq 0 ]
