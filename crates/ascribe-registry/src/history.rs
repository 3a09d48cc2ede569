//! What a dataset's licence was before: earlier licences with the manifest and the legal text that each was for.
//!
//! `NAME/history/DIGEST/{manifest.json, licence.json, terms.txt, revocation.json}`. Records of earlier versions are not kept:
//! an earlier licence proves what was granted and when, by its signature and its place in the log.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::RegistryError;
use crate::files;
use crate::licence::{LICENCE_FILE, LicenceDigest, RegistryDomain, check_equal};
use crate::manifest::{MANIFEST_FILE, Manifest};
use crate::registry::{Dataset, TERMS_FILE};
use crate::revocation::{REVOCATION_FILE, Revocation};
use crate::signed::SignedLicence;

/// Folder of a dataset's past.
pub(crate) const HISTORY_DIR: &str = "history";

/// An earlier licence of a dataset.
#[derive(Clone, Debug)]
pub struct Past {
    /// Its folder.
    pub dir: PathBuf,
    /// The manifest then.
    pub manifest: Manifest,
    /// The licence.
    pub licence: SignedLicence,
    /// Its revocation, if there is one.
    pub revocation: Option<Revocation>,
}

impl Past {
    /// What was signed of it.
    pub(crate) fn signed_messages(&self) -> Vec<SignedMessage> {
        messages_of(&self.dir, &self.licence, self.revocation.as_ref())
    }

    /// Checks the licence against the manifest and the text beside it.
    pub(crate) fn verify(&self, domain: &RegistryDomain) -> Result<(), RegistryError> {
        let path = self.dir.join(LICENCE_FILE);
        self.manifest.validate(&self.dir.join(MANIFEST_FILE))?;
        let terms = files::read_small(&self.dir.join(TERMS_FILE), "legal text")?;
        self.licence.verify(&path, domain, &self.manifest, &terms)?;
        match &self.revocation {
            Some(revocation) => check_revocation(&self.dir.join(REVOCATION_FILE), revocation, &self.licence, domain),
            None => Ok(()),
        }
    }
}

/// Reads the past of the dataset in `dir`, by digest.
pub(crate) fn read(dir: &Path) -> Result<Vec<Past>, RegistryError> {
    let history = dir.join(HISTORY_DIR);
    if !history.is_dir() {
        return Ok(Vec::new());
    }
    let mut past = Vec::new();
    for entry in fs::read_dir(&history).map_err(RegistryError::io(&history, "listing"))? {
        let dir = entry.map_err(RegistryError::io(&history, "listing"))?.path();
        let read = |file: &str, what| files::read_small(&dir.join(file), what);
        let manifest = files::parse_json(&dir.join(MANIFEST_FILE), &read(MANIFEST_FILE, "manifest")?)?;
        let licence: SignedLicence = files::parse_json(&dir.join(LICENCE_FILE), &read(LICENCE_FILE, "licence")?)?;
        let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        check_equal(&dir, "name of the folder", &licence.digest().to_string(), &name)?;
        let revocation = read_revocation(&dir.join(REVOCATION_FILE))?;
        past.push(Past { dir, manifest, licence, revocation });
    }
    past.sort_by_key(|past| past.licence.digest());
    Ok(past)
}

/// Reads a revocation, if there is one.
pub(crate) fn read_revocation(path: &Path) -> Result<Option<Revocation>, RegistryError> {
    if !path.exists() {
        return Ok(None);
    }
    files::parse_json(path, &files::read_small(path, "revocation")?).map(Some)
}

/// Checks that a revocation is one of this licence, by its licensor.
pub(crate) fn check_revocation(
    path: &Path,
    revocation: &Revocation,
    licence: &SignedLicence,
    domain: &RegistryDomain,
) -> Result<(), RegistryError> {
    let digests = [licence.digest(), revocation.message.licence].map(|digest| digest.to_string());
    check_equal(path, "message.licence", &digests[0], &digests[1])?;
    check_equal(path, "licensor", &licence.licensor(), &revocation.licensor)?;
    revocation.check_signed(path, domain)
}

/// A signed message that stands in the log.
pub(crate) struct SignedMessage {
    pub(crate) path: PathBuf,
    pub(crate) digest: LicenceDigest,
    pub(crate) licensor: String,
    pub(crate) nonce: u64,
}

impl Dataset {
    /// Its revocation file.
    pub fn revocation_path(&self) -> PathBuf {
        self.dir.join(REVOCATION_FILE)
    }

    /// Everything that its licensors ever signed: licences and revocations, current and past.
    pub(crate) fn signed_messages(&self) -> Vec<SignedMessage> {
        let mut messages = messages_of(&self.dir, &self.licence, self.revocation.as_ref());
        messages.extend(self.history.iter().flat_map(Past::signed_messages));
        messages
    }
}

/// A licence in a folder and its revocation.
fn messages_of(dir: &Path, licence: &SignedLicence, revocation: Option<&Revocation>) -> Vec<SignedMessage> {
    let message = licence.message();
    let mut messages = vec![SignedMessage {
        path: dir.join(LICENCE_FILE),
        digest: licence.digest(),
        licensor: message.licensor,
        nonce: message.nonce,
    }];
    messages.extend(revocation.map(|revocation| SignedMessage {
        path: dir.join(REVOCATION_FILE),
        digest: revocation.digest,
        licensor: revocation.licensor.clone(),
        nonce: revocation.message.nonce,
    }));
    messages
}
