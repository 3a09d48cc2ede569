//! Datasets in: records of any format become a new dataset, or a new version of one.

use std::fs;
use std::path::Path;

use ascribe_core::{Digest, NoProgress, Progress};
use ascribe_sql::{Transaction, Value};

use super::accept::keep_current;
use super::copy::CopyOut;
use super::{Registrar, int, now_unix_s};
use crate::content::{ContentSummary, RECORDS_FILE, with_ingest_in};
use crate::error::RegistryError;
use crate::export::croissant;
use crate::files;
use crate::ingest::Ingest;
use crate::manifest::{MANIFEST_FILE, Manifest};
use crate::prepare::{NewDataset, manifest_of};
use crate::reference::{Reference, SOURCES_FILE};
use crate::registry::TERMS_FILE;
use crate::source::{Fields, SourceSet};

/// Where the records of a new dataset are.
#[derive(Clone, Debug)]
pub struct NewContent {
    /// The files.
    pub set: SourceSet,
    /// The columns.
    pub fields: Fields,
    /// Register the files where they lie, without a copy.
    pub in_place: bool,
}

/// What was registered.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Added {
    /// Name.
    pub name: String,
    /// `urn:uuid:…`.
    pub uuid: String,
    /// Version, from 1.
    pub version: u64,
    /// False when this very version was there already.
    pub new: bool,
    /// Records.
    pub record_count: u64,
    /// Bytes of the canonical lines.
    pub len_bytes: u64,
    /// RFC 6962 root over the record hashes.
    pub content_root: Digest,
}

impl Registrar {
    /// Registers a dataset, or a new version of it under the same name and contributor.
    ///
    /// The same input twice changes nothing. Nothing is left behind when anything is refused.
    ///
    /// # Errors
    /// What is wrong with a record or the description; [`RegistryError::Refused`] for content that another dataset
    /// already claims, or a name that belongs to another contributor.
    pub fn add(
        &mut self,
        new: &NewDataset,
        content: &NewContent,
        progress: &dyn Progress,
    ) -> Result<Added, RegistryError> {
        // What can be refused without reading the records is refused first.
        let probe = ContentSummary { record_count: 1, len_bytes: 1, root: Digest([0; 32]) };
        manifest_of(&self.dir, new, &probe)?;
        let staging = self.dir.join(format!(".adding-{}", new.name));
        if staging.exists() {
            fs::remove_dir_all(&staging).map_err(RegistryError::io(&staging, "clearing"))?;
        }
        fs::create_dir_all(&staging).map_err(RegistryError::io(&staging, "creating"))?;
        let added = self.add_staged(new, content, &staging, progress);
        // After success nothing is in it any more; after a refusal it holds what must not stay.
        let _ = fs::remove_dir_all(&staging);
        added
    }

    fn add_staged(
        &mut self,
        new: &NewDataset,
        content: &NewContent,
        staging: &Path,
        progress: &dyn Progress,
    ) -> Result<Added, RegistryError> {
        let ingest = Ingest { set: &content.set, fields: &content.fields, strict: false };
        let summary = if content.in_place {
            let path = staging.join(SOURCES_FILE);
            files::write_atomic(&path, &files::to_json(&Reference::new(&content.set, &content.fields)?))?;
            ingest.run(None, progress)?
        } else {
            let path = staging.join(RECORDS_FILE);
            let mut out = CopyOut::create(&path).map_err(RegistryError::io(&path, "creating"))?;
            let summary = ingest.run(Some(&mut out), progress)?;
            out.finish().map_err(RegistryError::io(&path, "writing"))?;
            summary
        };
        let manifest = manifest_of(&self.dir, new, &summary)?;
        files::write_atomic(&staging.join(TERMS_FILE), new.terms.as_bytes())?;
        files::write_atomic(&staging.join(MANIFEST_FILE), &files::to_json(&manifest))?;
        let (version, is_new) = self.db.transaction(|tx| insert(tx, &manifest, &new.terms))?;
        if is_new {
            self.publish(staging, &manifest)?;
        }
        let Manifest { name, uuid, .. } = manifest;
        let ContentSummary { record_count, len_bytes, root } = summary;
        Ok(Added { name, uuid, version, new: is_new, record_count, len_bytes, content_root: root })
    }

    /// Moves the staged files to their names. The rows are committed: a crash here is mended by `recover`, which finds the
    /// staging folder.
    fn publish(&self, staging: &Path, manifest: &Manifest) -> Result<(), RegistryError> {
        publish_staged(&self.dir.join(&manifest.name), staging)
    }

    /// The Croissant description of a dataset that nobody has licensed yet: its content is checked first.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] for an unknown dataset; what is wrong with its files.
    pub fn describe_unlicensed(&mut self, name: &str, out_dir: &Path) -> Result<serde_json::Value, RegistryError> {
        let row = self.dataset_row("name, uuid, version", name)?;
        let (name, key) = (row.text(0)?.to_owned(), [Value::from(row.text(1)?), row.int(2)?.into()]);
        let manifest = self.check_unlicensed(&name)?;
        let sql = "SELECT added_unix_s FROM dataset_versions WHERE uuid = ?1 AND version = ?2";
        let added_unix_s = self.db.query(sql, &key)?.first().map_or(Ok(0), |row| row.uint(0))?;
        croissant::export_unlicensed(&self.dir.join(&name), &manifest, added_unix_s, out_dir)
    }

    /// Checks the files of a dataset that has no licence yet; returns its manifest.
    pub(super) fn check_unlicensed(&mut self, name: &str) -> Result<Manifest, RegistryError> {
        let dir = self.dir.join(name);
        let path = dir.join(MANIFEST_FILE);
        let manifest: Manifest = files::parse_json(&path, &files::read_small(&path, "manifest")?)?;
        manifest.validate(&path)?;
        let row = self.dataset_row("uuid, version", name)?;
        let values = [Value::from(row.text(0)?), row.int(1)?.into()];
        let sql = "SELECT manifest FROM dataset_versions WHERE uuid = ?1 AND version = ?2";
        let known = self.db.query(sql, &values)?;
        let known = known.first().map(|row| row.bytes(0).map(Digest::of)).transpose()?;
        let found = Digest::of(&files::to_json(&manifest));
        if known != Some(found) {
            let expected = known.map_or_else(|| "a known version".to_owned(), |digest| digest.to_string());
            return Err(RegistryError::field(&path, "SHA-256 of the manifest that was registered", expected, found));
        }
        let summary = with_ingest_in(&dir, |ingest| ingest.run(None, &NoProgress))?;
        crate::content::check_manifest(&dir.join(RECORDS_FILE), &manifest, &summary)?;
        Ok(manifest)
    }
}

/// Moves what was staged into the folder of a dataset.
pub(super) fn publish_staged(dir: &Path, staging: &Path) -> Result<(), RegistryError> {
    fs::create_dir_all(dir).map_err(RegistryError::io(dir, "creating"))?;
    // The licence there is one of the version before.
    keep_current(dir, None)?;
    let in_place = staging.join(SOURCES_FILE).exists();
    // Where the records of the version before lay is no longer true.
    let stale = dir.join(if in_place { RECORDS_FILE } else { SOURCES_FILE });
    if staging.join(if in_place { SOURCES_FILE } else { RECORDS_FILE }).exists() && stale.exists() {
        fs::remove_file(&stale).map_err(RegistryError::io(&stale, "removing"))?;
    }
    for file in [RECORDS_FILE, SOURCES_FILE, TERMS_FILE, MANIFEST_FILE] {
        let (from, to) = (staging.join(file), dir.join(file));
        if from.exists() {
            fs::rename(&from, &to).map_err(RegistryError::io(&to, "writing"))?;
        }
    }
    Ok(())
}

/// The rows of a version; returns its number and whether it is new.
fn insert(tx: &mut Transaction<'_>, manifest: &Manifest, terms: &str) -> Result<(u64, bool), RegistryError> {
    let (uuid, name) = (Value::from(manifest.uuid.as_str()), Value::from(manifest.name.as_str()));
    let now = int("time", now_unix_s())?;
    let root = Value::from(manifest.content_root.0);
    let claimed = "SELECT d.name, d.contributor FROM dataset_versions v JOIN datasets d ON d.uuid = v.uuid \
                   WHERE v.content_root = ?1 AND v.uuid <> ?2 ORDER BY v.added_unix_s, d.name";
    if let Some(row) = tx.query(claimed, &[root.clone(), uuid.clone()])?.first() {
        let found = format!(
            "the content of {:?}, which {:?} registered before (hint: if it is not theirs, ascribe registry dispute)",
            row.text(0)?,
            row.text(1)?
        );
        return Err(RegistryError::refused(format!("dataset {:?}", manifest.name), "content of its own", found));
    }
    let owner = Value::from(manifest.owner.as_str());
    let known = tx.query("SELECT contributor, version FROM datasets WHERE uuid = ?1", std::slice::from_ref(&uuid))?;
    let manifest_bytes = files::to_json(manifest);
    let version = match known.first() {
        Some(row) if row.text(0)? != manifest.owner => {
            let what = format!("owner of dataset {:?}", manifest.name);
            return Err(RegistryError::refused(what, format!("{:?}", row.text(0)?), format!("{:?}", manifest.owner)));
        }
        Some(row) => {
            let version = row.uint(1)?;
            let sql = "SELECT manifest, terms FROM dataset_versions WHERE uuid = ?1 AND version = ?2";
            let rows = tx.query(sql, &[uuid.clone(), int("version", version)?])?;
            if rows[0].bytes(0)? == manifest_bytes && rows[0].bytes(1)? == terms.as_bytes() {
                return Ok((version, false));
            }
            tx.execute(
                "UPDATE datasets SET version = ?2 WHERE uuid = ?1",
                &[uuid.clone(), int("version", version + 1)?],
            )?;
            version + 1
        }
        None => {
            let sql = "INSERT INTO contributors (name, added_unix_s) VALUES (?1, ?2) ON CONFLICT (name) DO NOTHING";
            tx.execute(sql, &[owner.clone(), now.clone()])?;
            let sql = "INSERT INTO datasets (uuid, name, contributor, version) VALUES (?1, ?2, ?3, 1)";
            tx.execute(sql, &[uuid.clone(), name, owner])?;
            1
        }
    };
    let version_value = int("version", version)?;
    let sql = "INSERT INTO dataset_versions (uuid, version, content_root, record_count, len_bytes, manifest, terms, \
               added_unix_s) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    let values = [
        uuid.clone(),
        version_value.clone(),
        root,
        int("record_count", manifest.record_count)?,
        int("len_bytes", manifest.len_bytes)?,
        manifest_bytes.into(),
        terms.as_bytes().into(),
        now,
    ];
    tx.execute(sql, &values)?;
    for payee in &manifest.payees {
        let sql = "INSERT INTO payees (uuid, version, account, share_ppm) VALUES (?1, ?2, ?3, ?4)";
        let values = [uuid.clone(), version_value.clone(), payee.account.as_str().into(), payee.share_ppm.into()];
        tx.execute(sql, &values)?;
    }
    Ok((version, true))
}
