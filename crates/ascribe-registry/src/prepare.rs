//! Makes registry folders: records and metadata become a dataset, a signature makes it licensed, the log registers it.
//!
//! Everything is checked before anything is written, each file is written whole or not at all, and the same input gives
//! the same bytes, so that preparing twice changes nothing.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

use ascribe_core::{Digest, Progress};
use serde::de::DeserializeOwned;

use crate::content::{ContentSummary, RECORDS_FILE, RecordReader, record_line};
use crate::error::RegistryError;
use crate::files;
use crate::key::LicenceKey;
use crate::licence::{DEMO_CHAIN_ID, LICENCE_FILE, LicenceDigest, LicenceMessage, RegistryDomain, sign_licence};
use crate::log;
use crate::manifest::{MANIFEST_FILE, MANIFEST_FORMAT_VERSION, Manifest, Payee, Source, check_name, dataset_uuid};
use crate::registry::TERMS_FILE;
use crate::select::{
    DatasetRule, Pair, SELECTION_FORMAT_VERSION, Selection, SourceRecord, choose_pairs, eligible, select,
};
use crate::spdx_terms;
use crate::tiles;

/// What a person says about a new dataset; the rest of the manifest follows from the records.
#[derive(Clone, Debug)]
pub struct NewDataset {
    /// Name and folder.
    pub name: String,
    /// Title for people.
    pub title: String,
    /// Owner.
    pub owner: String,
    /// Language tag.
    pub language: String,
    /// SPDX expression.
    pub licence: String,
    /// Permitted uses, RSL tokens.
    pub permits: Vec<String>,
    /// Prohibited uses, RSL tokens.
    pub prohibits: Vec<String>,
    /// Who is paid.
    pub payees: Vec<Payee>,
    /// Origin.
    pub source: Source,
    /// What a reader should know.
    pub notes: String,
    /// Legal text.
    pub terms: String,
}

/// The part of a licence that does not follow from the dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// First moment of validity, Unix seconds.
    pub valid_from: u64,
    /// First moment after validity; 0 is open.
    pub valid_until: u64,
    /// More than every earlier nonce of the licensor in this registry.
    pub nonce: u64,
    /// Digest of the licence that this one replaces; zeros for none.
    pub supersedes: LicenceDigest,
}

/// The demo account of a party: the address of its demo key on the demo chain.
pub fn demo_account(party: &str) -> String {
    format!("eip155:{DEMO_CHAIN_ID}:{}", LicenceKey::demo(party).address().to_checksum(None))
}

/// The manifest of a dataset: what a person said about it and what its records add up to.
///
/// # Errors
/// As [`Manifest::validate`]; [`RegistryError::Field`] without a legal text.
pub(crate) fn manifest_of(
    datasets_dir: &Path,
    new: &NewDataset,
    summary: &ContentSummary,
) -> Result<Manifest, RegistryError> {
    check_name(datasets_dir, &new.name)?;
    let dir = datasets_dir.join(&new.name);
    let manifest = Manifest {
        format_version: MANIFEST_FORMAT_VERSION,
        uuid: dataset_uuid(&new.name),
        name: new.name.clone(),
        title: new.title.clone(),
        owner: new.owner.clone(),
        language: new.language.clone(),
        licence: spdx_terms::normalise(&dir.join(MANIFEST_FILE), &new.licence)?,
        permits: new.permits.clone(),
        prohibits: new.prohibits.clone(),
        payees: new.payees.clone(),
        source: new.source.clone(),
        record_count: summary.record_count,
        len_bytes: summary.len_bytes,
        content_root: summary.root,
        notes: new.notes.clone(),
    };
    manifest.validate(&dir.join(MANIFEST_FILE))?;
    if new.terms.trim().is_empty() {
        return Err(RegistryError::field(&dir.join(TERMS_FILE), "legal text", "some text", "none"));
    }
    Ok(manifest)
}

/// Writes `records.jsonl`, `terms.txt` and `manifest.json` of a dataset into `datasets_dir/NAME`.
///
/// # Errors
/// Whatever [`RecordReader`] or [`Manifest::validate`] refuses, before anything is written; [`RegistryError::Io`].
pub fn write_dataset<'a>(
    datasets_dir: &Path,
    new: &NewDataset,
    records: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<Manifest, RegistryError> {
    check_name(datasets_dir, &new.name)?;
    let dir = datasets_dir.join(&new.name);
    let mut content = Vec::new();
    for (id, text) in records {
        content.extend_from_slice(record_line(id, text).as_bytes());
        content.push(b'\n');
    }
    let records_path = dir.join(RECORDS_FILE);
    let mut reader = RecordReader::new(content.as_slice(), &records_path);
    for record in &mut reader {
        record?;
    }
    let summary = reader.summary();
    let manifest = manifest_of(datasets_dir, new, &summary)?;
    let manifest_path = dir.join(MANIFEST_FILE);
    fs::create_dir_all(&dir).map_err(RegistryError::io(&dir, "creating"))?;
    files::write_atomic(&records_path, &content)?;
    files::write_atomic(&dir.join(TERMS_FILE), new.terms.as_bytes())?;
    files::write_atomic(&manifest_path, &files::to_json(&manifest))?;
    Ok(manifest)
}

/// Signs the licence of a dataset, writes `licence.json` and appends its digest to the log. Returns digest and index.
///
/// # Errors
/// A missing or broken manifest or legal text, what [`LicenceMessage::validate`] refuses, [`RegistryError::Io`].
pub fn license_dataset(
    datasets_dir: &Path,
    name: &str,
    key: &LicenceKey,
    grant: Grant,
) -> Result<(LicenceDigest, u64), RegistryError> {
    let digest = write_licence(datasets_dir, name, key, grant)?;
    let indices = register(datasets_dir, &[digest])?;
    Ok((digest, indices[0]))
}

/// Appends licences that [`write_licence`] wrote to the log, all in one go: the log is read and written once. Returns their indices.
///
/// # Errors
/// What is wrong with the log; [`RegistryError::Io`].
pub fn register(datasets_dir: &Path, digests: &[LicenceDigest]) -> Result<Vec<u64>, RegistryError> {
    let indices = log::append(datasets_dir, digests)?;
    tiles::follow_demo(datasets_dir)?;
    Ok(indices)
}

/// Signs the licence of a dataset and writes `licence.json`. It counts from when [`register`] has put its digest into the log.
///
/// # Errors
/// As [`license_dataset`], but for the log.
pub fn write_licence(
    datasets_dir: &Path,
    name: &str,
    key: &LicenceKey,
    grant: Grant,
) -> Result<LicenceDigest, RegistryError> {
    check_name(datasets_dir, name)?;
    let dir = datasets_dir.join(name);
    let manifest_path = dir.join(MANIFEST_FILE);
    let manifest: Manifest = files::parse_json(&manifest_path, &files::read_small(&manifest_path, "manifest")?)?;
    manifest.validate(&manifest_path)?;
    let terms = files::read_small(&dir.join(TERMS_FILE), "legal text")?;
    let message = LicenceMessage::of(key.address(), &manifest, &terms, grant);
    let path = dir.join(LICENCE_FILE);
    let licence = sign_licence(&path, RegistryDomain::demo(), message, &manifest.owner, key)?;
    files::write_atomic(&path, &files::to_json(&licence))?;
    Ok(licence.digest)
}

/// Builds the demo registry: selects records from `source_dir/corpora/NAME.jsonl` by the table, writes every dataset,
/// and licenses each with the demo key of its owner. The legal texts are `datasets_dir/NAME/terms.txt`, already there.
///
/// # Errors
/// A source that is not the one that the table names ([`RegistryError::Field`]), and whatever the steps refuse.
pub fn build_demo(
    selection: &Selection,
    source_dir: &Path,
    datasets_dir: &Path,
    progress: &dyn Progress,
) -> Result<Vec<Manifest>, RegistryError> {
    if selection.format_version != SELECTION_FORMAT_VERSION {
        let (expected, found) = (SELECTION_FORMAT_VERSION, selection.format_version);
        return Err(RegistryError::field(datasets_dir, "format_version of the selection", expected, found));
    }
    let mut sources: HashMap<String, Vec<SourceRecord>> = HashMap::new();
    for rule in &selection.datasets {
        sources.insert(rule.name.clone(), eligible(rule, read_source(rule, source_dir)?));
    }
    let forced = match &selection.pairs {
        None => HashSet::new(),
        Some(pairs) => {
            let side = |name: &str| sources.get(name).map(Vec::as_slice).unwrap_or_default();
            let path = source_dir.join(&pairs.file);
            let lines: Vec<Pair> = read_lines(&path, &fs::read(&path).map_err(RegistryError::io(&path, "reading"))?)?;
            choose_pairs(pairs, &lines, side(&pairs.original), side(&pairs.derived))
        }
    };
    progress.start("build registry", selection.datasets.len() as u64, "datasets");
    let (mut manifests, mut n_licences) = (Vec::new(), HashMap::<&str, u64>::new());
    for rule in &selection.datasets {
        let records = select(rule, sources.remove(&rule.name).unwrap_or_default(), &forced);
        let new = new_dataset(selection, rule, datasets_dir)?;
        let pairs = records.iter().map(|record| (record.id.as_str(), record.text.as_str()));
        manifests.push(write_dataset(datasets_dir, &new, pairs)?);
        let nonce = n_licences.entry(&rule.owner).or_default();
        *nonce += 1;
        let grant = Grant {
            valid_from: selection.valid_from_unix_s,
            valid_until: 0,
            nonce: *nonce,
            supersedes: LicenceDigest::default(),
        };
        license_dataset(datasets_dir, &rule.name, &LicenceKey::demo(&rule.owner), grant)?;
        progress.advance(1);
    }
    tiles::mirror_demo(datasets_dir)?;
    progress.finish(&format!("{} datasets written and licensed", manifests.len()));
    Ok(manifests)
}

fn new_dataset(selection: &Selection, rule: &DatasetRule, datasets_dir: &Path) -> Result<NewDataset, RegistryError> {
    let terms_path = datasets_dir.join(&rule.name).join(TERMS_FILE);
    let terms = String::from_utf8(files::read_small(&terms_path, "legal text")?)
        .map_err(|_| RegistryError::field(&terms_path, "legal text", "UTF-8", "other bytes"))?;
    let payee =
        |share: &crate::select::PartyShare| Payee { account: demo_account(&share.party), share_ppm: share.share_ppm };
    Ok(NewDataset {
        name: rule.name.clone(),
        title: rule.title.clone(),
        owner: rule.owner.clone(),
        language: rule.language.clone(),
        licence: rule.licence.clone(),
        permits: selection.permits.clone(),
        prohibits: selection.prohibits.clone(),
        payees: rule.payees.iter().map(payee).collect(),
        source: rule.source.clone(),
        notes: rule.notes.clone(),
        terms,
    })
}

/// Reads a source and checks that it is the one that the table was written for.
fn read_source(rule: &DatasetRule, source_dir: &Path) -> Result<Vec<SourceRecord>, RegistryError> {
    let path = source_dir.join("corpora").join(format!("{}.jsonl", rule.name));
    let bytes = fs::read(&path).map_err(RegistryError::io(&path, "reading"))?;
    let found = Digest::of(&bytes);
    if found != rule.source_sha256 {
        return Err(RegistryError::field(&path, "SHA-256 of the source", rule.source_sha256, found));
    }
    read_lines(&path, &bytes)
}

fn read_lines<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<Vec<T>, RegistryError> {
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| files::parse_json(path, line)).collect()
}
