#!/usr/bin/env bash
# A time-stamping authority of OpenSSL's in a folder: one CA, signers with an RSA, a P-256 and a P-384 key, and a stranger's CA.
#
#   tests/conformance/tlog/authority.sh DIR
set -euo pipefail
mkdir -p "$1"
cd "$1"

ca() { # NAME
  openssl req -x509 -newkey rsa:2048 -nodes -keyout "$1.key" -out "$1.pem" -days 30 -subj "/O=Conformance/CN=$1" \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign
}
ca ca
ca other

signer() { # NAME USAGE NEWKEY...
  local name=$1 usage=$2
  shift 2
  openssl req -newkey "$@" -nodes -keyout "$name.key" -out "$name.csr" -subj "/O=Conformance/CN=Authority $name"
  printf 'extendedKeyUsage=%s\nkeyUsage=critical,digitalSignature\nbasicConstraints=critical,CA:FALSE\n' "$usage" > "$name.ext"
  openssl x509 -req -in "$name.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 20 -extfile "$name.ext" -out "$name.pem"
  echo 01 > "$name.serial"
  cat > "$name.cnf" << END
[tsa]
default_tsa = authority
[authority]
serial = $name.serial
signer_cert = $name.pem
signer_key = $name.key
certs = ca.pem
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha384, sha512
accuracy = secs:1
ordering = yes
tsa_name = yes
ess_cert_id_alg = sha256
END
}
signer rsa critical,timeStamping rsa:2048
signer p256 critical,timeStamping ec -pkeyopt ec_paramgen_curve:P-256
signer p384 critical,timeStamping ec -pkeyopt ec_paramgen_curve:P-384
sed -i 's/signer_digest = sha256/signer_digest = sha384/' p384.cnf
# Not for time stamps; OpenSSL refuses to sign with it, so this reply may not come to be.
signer web critical,serverAuth rsa:2048
