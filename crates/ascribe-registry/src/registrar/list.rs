//! What is registered, for people and programs.

use ascribe_core::{Digest, Progress};
use rayon::prelude::*;
use serde::Serialize;

use super::Registrar;
use crate::error::RegistryError;
use crate::files;
use crate::licence::LicenceDigest;
use crate::manifest::{MANIFEST_FILE, Manifest};
use crate::revocation::Revocation;
use crate::signed::SignedLicence;

/// Documents that are checked at once.
const GROUP_DOCUMENTS: usize = 4096;

/// A dataset as it is registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DatasetState {
    /// Name.
    pub name: String,
    /// `urn:uuid:…`.
    pub uuid: String,
    /// Its contributor.
    pub contributor: String,
    /// Current version.
    pub version: u64,
    /// SPDX expression.
    pub licence_spdx: String,
    /// Records.
    pub record_count: u64,
    /// Bytes of the canonical lines.
    pub len_bytes: u64,
    /// RFC 6962 root over the record hashes.
    pub content_root: Digest,
    /// When this version was registered, Unix seconds.
    pub added_unix_s: u64,
    /// The licence of this version, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub licence: Option<LicenceState>,
}

/// A licence as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LicenceState {
    /// Its digest.
    pub digest: LicenceDigest,
    /// Who signed.
    pub licensor: String,
    /// First moment of validity, Unix seconds.
    pub valid_from: u64,
    /// First moment after validity; 0 is open.
    pub valid_until: u64,
    /// Place in the log.
    pub log_index: u64,
    /// From when on it no longer counts, if it was revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_from: Option<u64>,
}

impl Registrar {
    /// All datasets, by name.
    ///
    /// # Errors
    /// [`RegistryError::Sql`], and a manifest in the database that cannot be read.
    pub fn datasets(&mut self) -> Result<Vec<DatasetState>, RegistryError> {
        let sql = "SELECT d.name, d.uuid, d.contributor, d.version, v.manifest, v.added_unix_s, s.digest, s.licensor, \
                   s.valid_from, s.valid_until, s.log_index, r.valid_from FROM datasets d \
                   JOIN dataset_versions v ON v.uuid = d.uuid AND v.version = d.version \
                   LEFT JOIN signatures s ON s.uuid = d.uuid AND s.version = d.version AND s.kind = 'licence' AND \
                   s.nonce = (SELECT max(n.nonce) FROM signatures n WHERE n.uuid = d.uuid AND n.kind = 'licence') \
                   LEFT JOIN signatures r ON r.subject = s.digest ORDER BY d.name";
        let mut states = Vec::new();
        for row in self.db.query(sql, &[])? {
            let name = row.text(0)?.to_owned();
            let path = self.dir.join(&name).join(MANIFEST_FILE);
            let manifest: Manifest = files::parse_json(&path, row.bytes(4)?)?;
            let licence = if row.is_null(6) {
                None
            } else {
                Some(LicenceState {
                    digest: LicenceDigest(row.array(6)?),
                    licensor: row.text(7)?.to_owned(),
                    valid_from: row.uint(8)?,
                    valid_until: row.uint(9)?,
                    log_index: row.uint(10)?,
                    revoked_from: if row.is_null(11) { None } else { Some(row.uint(11)?) },
                })
            };
            states.push(DatasetState {
                name,
                uuid: row.text(1)?.to_owned(),
                contributor: row.text(2)?.to_owned(),
                version: row.uint(3)?,
                licence_spdx: manifest.licence,
                record_count: manifest.record_count,
                len_bytes: manifest.len_bytes,
                content_root: manifest.content_root,
                added_unix_s: row.uint(5)?,
                licence,
            });
        }
        // Bytes, not a collation of the server, decide.
        states.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(states)
    }

    /// Checks the signature of every licence and revocation that was ever accepted; returns how many there are.
    ///
    /// On all threads, in bounded memory.
    ///
    /// # Errors
    /// The first that does not hold, in the order of the log.
    pub fn verify_signatures(&mut self, progress: &dyn Progress) -> Result<u64, RegistryError> {
        let total = self.db.query("SELECT count(*) FROM signatures", &[])?[0].uint(0)?;
        progress.start("verify signatures", total, "signatures");
        let domain = self.domain().clone();
        let path = self.dir.join("signatures");
        let mut checked = 0;
        while checked < total {
            if progress.stop_requested() {
                return Err(RegistryError::Stopped);
            }
            let end = checked + GROUP_DOCUMENTS as u64;
            let sql = "SELECT kind, document, digest FROM signatures WHERE log_index >= ?1 AND log_index < ?2 \
                       ORDER BY log_index";
            let rows = self.db.query(sql, &[super::int("index", checked)?, super::int("index", end)?])?;
            if rows.is_empty() {
                return Err(RegistryError::refused("database", format!("a message at log index {checked}"), "none"));
            }
            rows.par_iter().try_for_each(|row| {
                let digest = if row.text(0)? == "licence" {
                    let licence: SignedLicence = files::parse_json(&path, row.bytes(1)?)?;
                    licence.check_signed(&path, &domain)?;
                    licence.digest()
                } else {
                    let revocation: Revocation = files::parse_json(&path, row.bytes(1)?)?;
                    revocation.check_signed(&path, &domain)?;
                    revocation.digest
                };
                crate::licence::check_equal(
                    &path,
                    "digest of a document",
                    &LicenceDigest(row.array(2)?).to_string(),
                    &digest.to_string(),
                )
            })?;
            checked += rows.len() as u64;
            progress.advance(rows.len() as u64);
        }
        progress.finish(&format!("{checked} signatures hold"));
        Ok(checked)
    }
}
