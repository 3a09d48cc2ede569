// ethers, viem and Node's Ed25519 against the registry. Argument: the repository. Leaves a registry in ./registry.
import { execFileSync } from "node:child_process";
import { createHash, createPublicKey, verify as verifySignature } from "node:crypto";
import { readFileSync, writeFileSync, mkdirSync } from "node:fs";
import bs58 from "bs58";
import canonicalize from "canonicalize";
import { Wallet, TypedDataEncoder, encryptKeystoreJson, verifyTypedData } from "ethers";
import { recoverTypedDataAddress } from "viem";

const [root] = process.argv.slice(2);
const ascribe = (...args) =>
  JSON.parse(execFileSync(process.env.ASCRIBE, [...args, "--format", "json", "--quiet"], { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] }));
const refuses = (...args) => {
  try {
    ascribe(...args);
    return false;
  } catch (error) {
    return error.status === 1;
  }
};

let failed = 0;
const check = (name, holds) => {
  console.log(`${holds ? "ok" : "FAILED"} ${name}`);
  if (!holds) failed += 1;
};

const read = (path) => JSON.parse(readFileSync(path, "utf8"));
const write = (path, value) => writeFileSync(path, typeof value === "string" ? value : JSON.stringify(value));

// The types as the registry's documentation states them, not as the command prints them.
const Payee = [{ name: "account", type: "string" }, { name: "sharePpm", type: "uint32" }];
const LICENCE = {
  Payee,
  DatasetLicence: [
    ["licensor", "address"], ["dataset", "string"], ["contentRoot", "bytes32"], ["recordCount", "uint64"],
    ["metadataSha256", "bytes32"], ["licence", "string"], ["termsSha256", "bytes32"], ["permits", "string[]"],
    ["prohibits", "string[]"], ["payees", "Payee[]"], ["validFrom", "uint64"], ["validUntil", "uint64"],
    ["nonce", "uint256"], ["supersedes", "bytes32"],
  ].map(([name, type]) => ({ name, type })),
};
const REVOCATION = {
  LicenceRevocation: [["licence", "bytes32"], ["effectiveFrom", "uint64"], ["reason", "string"], ["nonce", "uint256"]].map(
    ([name, type]) => ({ name, type }),
  ),
};

async function checkSigned(name, file, types, primaryType, licensor) {
  const { domain, message, signature, digest } = file;
  check(`${name}: ethers computes the same digest`, TypedDataEncoder.hash(domain, types, message) === digest);
  check(`${name}: ethers recovers the licensor`, verifyTypedData(domain, types, message, signature) === licensor);
  const recovered = await recoverTypedDataAddress({ domain, types, primaryType, message, signature });
  check(`${name}: viem recovers the licensor`, recovered === licensor);
  const changed = { ...message, nonce: "99" };
  const other = verifyTypedData(domain, types, changed, signature);
  check(`${name}: a changed message recovers somebody else`, other !== licensor);
  const elsewhere = verifyTypedData({ ...domain, chainId: 5 }, types, message, signature);
  check(`${name}: another chain recovers somebody else`, elsewhere !== licensor);
}

const account = "eip155:1:0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed";
ascribe("registry", "init", "registry", "--name", "conformance");
const at = ["--dir", "registry"];
const add = (folder, name, ...more) =>
  ascribe("registry", "add", folder, "--licence", "CC-BY-4.0", "--payee", account, "--name", name, ...more, ...at);

// A keystore that ethers wrote.
write("phrase.txt", "correct horse\n");
const wallet = Wallet.createRandom();
const { address, privateKey } = wallet;
write("ethers.json", await encryptKeystoreJson({ address, privateKey }, "correct horse", { scrypt: { N: 16384, r: 8, p: 1 } }));
add(`${root}/datasets/kjv-bible/records.jsonl`, "kjv");
const signed = ascribe("licence", "sign", "kjv", "--keystore", "ethers.json", "--passphrase-file", "phrase.txt", ...at);
check("a keystore of ethers signs here", signed.licensor === wallet.address);
await checkSigned("licence", read("registry/kjv/licence.json"), LICENCE, "DatasetLicence", wallet.address);
write("wrong.txt", "wrong horse\n");
check(
  "a wrong passphrase is refused",
  refuses("licence", "revoke", "kjv", "--keystore", "ethers.json", "--passphrase-file", "wrong.txt", ...at),
);

// A keystore that we wrote.
const ours = ascribe("licence", "new-key", "--out", "ours.json", "--passphrase-file", "phrase.txt");
const opened = await Wallet.fromEncryptedJson(readFileSync("ours.json", "utf8"), "correct horse");
check("ethers opens our keystore", opened.address === ours.licensor);

// Any wallet, offline.
mkdirSync("texts", { recursive: true });
for (const [name, text] of [["one", "The first text."], ["two", "The second,\nin two lines."]]) write(`texts/${name}.txt`, text);
add("texts", "texts");
const offline = Wallet.createRandom();
ascribe("licence", "prepare", "texts", "--licensor", offline.address, "--out", "typed.json", ...at);
const typed = read("typed.json");
const { EIP712Domain, ...types } = typed.types;
check("the printed types are the documented ones", canonicalize(types) === canonicalize(LICENCE));
const signature = await offline.signTypedData(typed.domain, types, typed.message);
const submit = (file, value) => ["licence", "submit", "--typed-data", file, "--signature", value, ...at];
check("a signature of another wallet is refused", refuses(...submit("typed.json", await wallet.signTypedData(typed.domain, types, typed.message))));
const highS = () => {
  const n = 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141n;
  const s = n - BigInt(`0x${signature.slice(66, 130)}`);
  return `${signature.slice(0, 66)}${s.toString(16).padStart(64, "0")}${signature.slice(130) === "1b" ? "1c" : "1b"}`;
};
check("the high-s twin is refused", refuses(...submit("typed.json", highS())));
check("v = 0 or 1 is refused", refuses(...submit("typed.json", `${signature.slice(0, 130)}0${signature.slice(130) === "1b" ? 0 : 1}`)));
check("what ethers signed is accepted", ascribe(...submit("typed.json", signature)).licensor === offline.address);
check("the same again is refused", refuses(...submit("typed.json", signature)));

// Revocation.
ascribe("licence", "revoke", "kjv", "--keystore", "ethers.json", "--passphrase-file", "phrase.txt", "--reason", "sold", ...at);
await checkSigned("revocation", read("registry/kjv/revocation.json"), REVOCATION, "LicenceRevocation", wallet.address);
check("a revoked licence does not verify", refuses("licence", "verify", "kjv", ...at));
check("the other still does", ascribe("licence", "verify", "texts", ...at).licensor === offline.address);

// Ed25519: W3C Data Integrity EdDSA Cryptosuites, eddsa-jcs-2022, from its text.
const sha256 = (text) => createHash("sha256").update(text, "utf8").digest();
const checkCredential = (credential) => {
  const { proof, ...document } = credential;
  const { proofValue, ...options } = proof;
  if (proof.cryptosuite !== "eddsa-jcs-2022" || proof.type !== "DataIntegrityProof") return false;
  if (canonicalize(options["@context"]) !== canonicalize(document["@context"])) return false;
  const did = proof.verificationMethod.split("#")[0];
  if (did !== document.issuer || proof.proofPurpose !== "assertionMethod") return false;
  const multikey = Buffer.from(bs58.decode(did.slice("did:key:z".length)));
  if (multikey[0] !== 0xed || multikey[1] !== 0x01 || multikey.length !== 34) return false;
  const key = createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x: multikey.subarray(2).toString("base64url") }, format: "jwk" });
  const hashData = Buffer.concat([sha256(canonicalize(options)), sha256(canonicalize(document))]);
  return verifySignature(null, hashData, key, Buffer.from(bs58.decode(proofValue.slice(1))));
};
add(`${root}/datasets/jargon-file/records.jsonl`, "jargon", "--in-place");
const did = ascribe("licence", "new-key", "--out", "did.json", "--kind", "ed25519", "--passphrase-file", "phrase.txt");
ascribe("licence", "sign", "jargon", "--keystore", "did.json", "--passphrase-file", "phrase.txt", ...at);
const credential = read("registry/jargon/licence.json");
check("the did:key licence is signed by its did", credential.issuer === did.licensor);
check("eddsa-jcs-2022: the proof holds", checkCredential(credential));
const forged = structuredClone(credential);
forged.credentialSubject.message.payees[0].account = account.toLowerCase();
check("eddsa-jcs-2022: a changed payee breaks it", !checkCredential(forged));
write("forged.json", forged);
check("and is refused here", refuses("licence", "verify", "forged.json", ...at));

const verified = ascribe("registry", "verify", "registry");
check("the registry verifies", verified.signatures === 4 && verified.unlicensed.length === 0);
for (const format of ["croissant", "rsl", "ai-act"]) {
  for (const name of ["kjv", "jargon"]) {
    execFileSync(process.env.ASCRIBE, ["registry", "export", "--format", format, name, "--out", `${name}.${format}`, ...at]);
  }
}
process.exit(failed === 0 ? 0 : 1);
