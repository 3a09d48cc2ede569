//! A model folder signed in the form of OpenSSF Model Signing 1.0: every file's SHA-256, in an in-toto statement, in a
//! sigstore bundle, under a P-256 key. Their own tool verifies it.
//!
//! Left out of the folder's digest, as theirs does: the signature itself and Git's files. What we write about the run
//! (`run.json` and its envelope) is left out too, since it names this very digest.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ascribe_core::{Digest, DigestStream};
use p256::ecdsa::signature::{Signer as _, Verifier as _};
use p256::ecdsa::{DerSignature, SigningKey, VerifyingKey};
use p256::pkcs8::{
    DecodePrivateKey as _, DecodePublicKey as _, EncodePrivateKey as _, EncodePublicKey as _, LineEnding,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::dsse::{Envelope, IN_TOTO_PAYLOAD, pae};
use crate::error::RegistryError;
use crate::files;

/// Name of the signature within a model folder.
pub const MODEL_SIGNATURE_FILE: &str = "model.sig";

/// Files that say something about the model and so are not part of it.
const IGNORED: [&str; 7] =
    [MODEL_SIGNATURE_FILE, ".git", ".gitattributes", ".github", ".gitignore", "run.json", "run.dsse.json"];

const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";

/// No model folder has more files than this.
const FILES_CAP: usize = 100_000;

/// Every file of a model with its SHA-256, by path relative to the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelManifest {
    /// Name of the folder.
    pub name: String,
    /// Digest by path, in byte order of the paths.
    pub files: BTreeMap<String, Digest>,
}

impl ModelManifest {
    /// Hashes the folder. Symbolic links are refused: they may lead anywhere.
    ///
    /// # Errors
    /// [`RegistryError::Missing`], [`RegistryError::Io`], [`RegistryError::Field`].
    pub fn of(dir: &Path) -> Result<Self, RegistryError> {
        if !dir.is_dir() {
            return Err(RegistryError::Missing { path: dir.to_owned(), what: "model folder" });
        }
        let mut files = BTreeMap::new();
        walk(dir, dir, &mut files)?;
        if files.is_empty() {
            return Err(RegistryError::field(dir, "model folder", "at least one file", "none"));
        }
        let canonical = fs::canonicalize(dir).map_err(RegistryError::io(dir, "resolving"))?;
        let name = canonical.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned());
        Ok(Self { name, files })
    }

    /// SHA-256 over the files' digests in the order of their paths: the model as one digest.
    pub fn digest(&self) -> Digest {
        let mut stream = DigestStream::default();
        // Their order is that of path parts, so `a/b` stands before `a-b`.
        for (_, digest) in self.in_order() {
            stream.update(&digest.0);
        }
        stream.finish()
    }

    fn in_order(&self) -> Vec<(&String, &Digest)> {
        let mut files: Vec<_> = self.files.iter().collect();
        files.sort_by_key(|(name, _)| name.split('/').collect::<Vec<_>>());
        files
    }

    fn statement(&self) -> Value {
        let resource =
            |(name, digest): (&String, &Digest)| json!({ "name": name, "algorithm": "sha256", "digest": digest });
        json!({
            "_type": STATEMENT_TYPE,
            "subject": [{ "name": self.name, "digest": { "sha256": self.digest() } }],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "serialization": {
                    "method": "files",
                    "hash_type": "sha256",
                    "allow_symlinks": false,
                    "ignore_paths": IGNORED,
                },
                "resources": self.in_order().into_iter().map(resource).collect::<Vec<_>>(),
            },
        })
    }
}

fn walk(root: &Path, dir: &Path, files: &mut BTreeMap<String, Digest>) -> Result<(), RegistryError> {
    for entry in fs::read_dir(dir).map_err(RegistryError::io(dir, "listing"))? {
        let entry = entry.map_err(RegistryError::io(dir, "listing"))?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(RegistryError::io(dir, "listing"))?);
        let parts: Option<Vec<&str>> =
            path.strip_prefix(root).ok().and_then(|inner| inner.iter().map(|part| part.to_str()).collect());
        let Some(name) = parts.map(|parts| parts.join("/")) else {
            return Err(RegistryError::field(&path, "file name", "UTF-8", "other bytes"));
        };
        if IGNORED.contains(&name.as_str()) {
            continue;
        }
        if kind.is_dir() {
            walk(root, &path, files)?;
        } else if kind.is_file() {
            let file = files::open(&path, "model file")?;
            files.insert(name, files::digest_of(&path, file)?);
        } else {
            return Err(RegistryError::field(&path, "file of a model", "a plain file", "a link or device"));
        }
        if files.len() > FILES_CAP {
            return Err(RegistryError::field(root, "model folder", format!("at most {FILES_CAP} files"), "more"));
        }
    }
    Ok(())
}

/// A P-256 key that signs models.
pub struct ModelKey(SigningKey);

impl ModelKey {
    /// A new key. The seed comes from [`ascribe_tlog::Ed25519Key::generate`]'s source.
    ///
    /// # Errors
    /// [`RegistryError::Log`].
    pub fn generate() -> Result<Self, RegistryError> {
        loop {
            let bytes = ascribe_tlog::random_bytes()?;
            // All but 2^-32 of 32-byte strings are scalars.
            if let Ok(key) = SigningKey::from_slice(bytes.as_slice()) {
                return Ok(Self(key));
            }
        }
    }

    /// Reads a PKCS #8 PEM file.
    ///
    /// # Errors
    /// [`RegistryError::Missing`], [`RegistryError::Field`], which never shows the content.
    pub fn read(path: &Path) -> Result<Self, RegistryError> {
        let bytes = files::read_small(path, "model signing key")?;
        let key = std::str::from_utf8(&bytes).ok().and_then(|pem| SigningKey::from_pkcs8_pem(pem).ok());
        let bad = || RegistryError::field(path, "key", "a P-256 key as PKCS #8 PEM", "something else");
        key.map(Self).ok_or_else(bad)
    }

    /// The key as PKCS #8 PEM, for a file of mode 0600 only.
    pub fn to_pem(&self) -> impl std::ops::Deref<Target = String> {
        self.0.to_pkcs8_pem(LineEnding::LF).expect("a P-256 key encodes")
    }

    /// The public half as PEM.
    pub fn public_pem(&self) -> String {
        self.0.verifying_key().to_public_key_pem(LineEnding::LF).expect("a P-256 key encodes")
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    media_type: String,
    verification_material: Value,
    dsse_envelope: Envelope,
}

/// Signs the model in `dir` and writes `model.sig` into it. Returns the digest of the model. RFC 6979: the same folder and
/// key give the same bytes.
///
/// # Errors
/// As [`ModelManifest::of`].
pub fn sign_model(dir: &Path, key: &ModelKey) -> Result<Digest, RegistryError> {
    let manifest = ModelManifest::of(dir)?;
    let payload = serde_json::to_vec(&manifest.statement()).expect("a statement serialises");
    let signature: DerSignature = key.0.sign(&pae(IN_TOTO_PAYLOAD, &payload));
    let hint = Digest::of(key.public_pem().as_bytes());
    let bundle = Bundle {
        media_type: MEDIA_TYPE.to_owned(),
        verification_material: json!({ "publicKey": { "hint": hint }, "tlogEntries": [] }),
        dsse_envelope: Envelope::with_signature(&payload, String::new(), signature.as_bytes()),
    };
    files::write_atomic(&dir.join(MODEL_SIGNATURE_FILE), &files::to_json(&bundle))?;
    Ok(manifest.digest())
}

/// Checks `model.sig` of a folder under a public key, and every file against it. Returns the digest of the model.
///
/// # Errors
/// [`RegistryError::WrongSigner`]; [`RegistryError::Field`] naming a changed, missing or additional file.
pub fn verify_model(dir: &Path, public_pem: &str) -> Result<Digest, RegistryError> {
    let path: PathBuf = dir.join(MODEL_SIGNATURE_FILE);
    let bundle: Bundle = files::parse_json(&path, &files::read_small(&path, "model signature")?)?;
    if bundle.media_type != MEDIA_TYPE {
        return Err(RegistryError::field(&path, "mediaType", MEDIA_TYPE, &bundle.media_type));
    }
    let key = VerifyingKey::from_public_key_pem(public_pem)
        .map_err(|_| RegistryError::field(&path, "public key", "a P-256 key as PEM", "something else"))?;
    let (payload, signatures) = bundle.dsse_envelope.open(&path)?;
    let message = pae(IN_TOTO_PAYLOAD, &payload);
    let holds = signatures
        .iter()
        .any(|(_, bytes)| DerSignature::try_from(bytes.as_slice()).is_ok_and(|s| key.verify(&message, &s).is_ok()));
    if !holds {
        let expected = format!("the P-256 key {}", Digest::of(public_pem.as_bytes()));
        return Err(RegistryError::WrongSigner { path, expected, found: "another's, or none".to_owned() });
    }
    let signed: Value = files::parse_json(&path, &payload)?;
    let found = ModelManifest::of(dir)?;
    let signed_files = signed_files(&path, &signed)?;
    for (name, digest) in &signed_files {
        match found.files.get(name) {
            None => return Err(RegistryError::Missing { path: dir.join(name), what: "signed file of the model" }),
            Some(here) if here != digest => {
                return Err(RegistryError::field(&dir.join(name), "SHA-256", digest, here));
            }
            Some(_) => {}
        }
    }
    match found.files.keys().find(|name| !signed_files.contains_key(*name)) {
        Some(extra) => {
            Err(RegistryError::field(&dir.join(extra), "file of the model", "a signed one", "an unsigned one"))
        }
        None => Ok(found.digest()),
    }
}

fn signed_files(path: &Path, statement: &Value) -> Result<BTreeMap<String, Digest>, RegistryError> {
    if statement["predicateType"] != PREDICATE_TYPE {
        return Err(RegistryError::field(path, "predicateType", PREDICATE_TYPE, &statement["predicateType"]));
    }
    let resources = statement["predicate"]["resources"].as_array();
    let resources = resources.ok_or_else(|| RegistryError::field(path, "predicate.resources", "a list", "none"))?;
    let file = |resource: &Value| {
        let name = resource["name"].as_str()?.to_owned();
        let digest = resource["digest"].as_str()?.parse().ok()?;
        (resource["algorithm"] == "sha256").then_some((name, digest))
    };
    let bad = |resource: &Value| RegistryError::field(path, "predicate.resources", "name, sha256 and digest", resource);
    resources.iter().map(|resource| file(resource).ok_or_else(|| bad(resource))).collect()
}
