//! Building: records in, shards out, one at a time; what is finished survives a kill.

use std::path::{Path, PathBuf};

use ascribe_core::RecordId;
use ascribe_store::atomic::create_dirs;
use ascribe_store::lock::Lock;

use crate::error::VerbatimError;
use crate::layout::{IndexSettings, MANIFEST_FILE, Manifest, Part, Source, lock_path, shard_path};
use crate::shard::write_shard;
use crate::text::Text;

/// Longest record: a shard holds at least one, and positions are signed 32-bit numbers.
const RECORD_TOKENS_MAX: usize = 1 << 30;

/// Takes records in their order and commits them shard by shard. One per folder at a time.
///
/// Memory: the tokens of one shard, and their suffixes while it is written.
#[derive(Debug)]
pub struct VerbatimWriter {
    dir: PathBuf,
    manifest: Manifest,
    next: RecordId,
    open: Text,
    record_starts: Vec<u32>,
    source_offsets: Vec<u64>,
    parts: Vec<Part>,
    _lock: Lock,
}

impl VerbatimWriter {
    /// Begins an index in the folder `dir`, or goes on with one that was begun with the same settings and sources.
    ///
    /// # Errors
    /// [`VerbatimError::Setting`]; [`StoreError::SettingMismatch`](ascribe_store::StoreError::SettingMismatch) for an index
    /// of other settings or sources, [`StoreError::Locked`](ascribe_store::StoreError::Locked) for a second writer; those
    /// of the file system.
    pub fn open(dir: &Path, settings: IndexSettings, sources: Vec<Source>) -> Result<Self, VerbatimError> {
        let fresh = Manifest::new(settings, sources)?;
        create_dirs(dir)?;
        let lock = Lock::take(lock_path(dir))?;
        let manifest = if dir.join(MANIFEST_FILE).exists() {
            let found = Manifest::read(dir)?;
            expect_same(dir, &fresh, &found)?;
            found
        } else {
            fresh.write(dir)?;
            fresh
        };
        Ok(Self {
            dir: dir.to_path_buf(),
            next: manifest.next_record(),
            open: Text::new(settings.vocab_size),
            manifest,
            record_starts: vec![],
            source_offsets: vec![],
            parts: vec![],
            _lock: lock,
        })
    }

    /// True when nothing is left to do.
    pub fn is_complete(&self) -> bool {
        self.manifest.complete
    }

    /// The record that comes next: the first that no finished shard holds, or row 0 of a later dataset.
    pub fn next_record(&self) -> RecordId {
        self.next
    }

    /// Tokens in finished shards, separators included.
    pub fn committed_tokens(&self) -> u64 {
        self.manifest.shards.iter().map(|shard| u64::from(shard.tokens)).sum()
    }

    /// Takes a record; `source_offset` is the byte at which its line begins in the source file. Writes a shard when one is full.
    ///
    /// # Errors
    /// [`VerbatimError::Record`] for one out of order, a token beyond the vocabulary, or 2³⁰ tokens and more; those of the
    /// file system. After an error the finished shards are as they were.
    pub fn push(&mut self, record: RecordId, source_offset: u64, tokens: &[u32]) -> Result<(), VerbatimError> {
        self.check(record, tokens)?;
        let limit = self.manifest.settings.shard_tokens as usize;
        // A long record after others could exceed what a shard can address.
        if self.open.len() > 0 && self.open.len() + tokens.len() >= limit.max(RECORD_TOKENS_MAX) {
            self.commit()?;
        }
        self.record_starts.push(self.open.len() as u32);
        self.source_offsets.push(source_offset);
        self.open.push(tokens);
        match self.parts.last_mut() {
            Some(part) if part.dataset == record.dataset => part.records += 1,
            _ => self.parts.push(Part { dataset: record.dataset, first_row: record.row, records: 1 }),
        }
        self.next = RecordId { dataset: record.dataset, row: record.row + 1 };
        if self.open.len() >= limit { self.commit() } else { Ok(()) }
    }

    /// Writes the last shard and closes the index.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn finish(mut self) -> Result<(), VerbatimError> {
        if self.open.len() > 0 {
            self.commit()?;
        }
        if !self.manifest.complete {
            self.manifest.complete = true;
            self.manifest.write(&self.dir)?;
        }
        Ok(())
    }

    fn check(&self, record: RecordId, tokens: &[u32]) -> Result<(), VerbatimError> {
        let refuse = |expected: String, found: String| Err(VerbatimError::Record { record, expected, found });
        let follows = record == self.next || record.dataset > self.next.dataset && record.row == 0;
        if self.manifest.complete || !follows || record.dataset as usize >= self.manifest.sources.len() {
            let RecordId { dataset, row } = self.next;
            let n = self.manifest.sources.len();
            return refuse(format!("dataset {dataset}, record {row}, of {n} datasets"), "another one".into());
        }
        if record.row == u32::MAX {
            return refuse("fewer than 2^32 - 1 records".into(), "more".into());
        }
        if tokens.len() >= RECORD_TOKENS_MAX {
            return refuse("fewer than 2^30 tokens".into(), tokens.len().to_string());
        }
        match tokens.iter().find(|&&token| token >= self.manifest.settings.vocab_size) {
            Some(token) => refuse(format!("tokens below {}", self.manifest.settings.vocab_size), token.to_string()),
            None => Ok(()),
        }
    }

    fn commit(&mut self) -> Result<(), VerbatimError> {
        let path = shard_path(&self.dir, self.manifest.shards.len());
        let vocab_size = self.manifest.settings.vocab_size;
        let mut text = std::mem::replace(&mut self.open, Text::new(vocab_size));
        let (starts, offsets) = (std::mem::take(&mut self.record_starts), std::mem::take(&mut self.source_offsets));
        let parts = std::mem::take(&mut self.parts);
        let entry = write_shard(&path, &mut text, &starts, &offsets, vocab_size, parts)?;
        self.manifest.shards.push(entry);
        self.manifest.write(&self.dir)?;
        Ok(())
    }
}

/// Refuses to mix two indexes.
fn expect_same(dir: &Path, expected: &Manifest, found: &Manifest) -> Result<(), VerbatimError> {
    let settings: [(&'static str, String, String); 4] = [
        ("tokenizer", expected.settings.tokenizer.to_string(), found.settings.tokenizer.to_string()),
        ("vocabulary size", expected.settings.vocab_size.to_string(), found.settings.vocab_size.to_string()),
        ("tokens per shard", expected.settings.shard_tokens.to_string(), found.settings.shard_tokens.to_string()),
        ("sources", names(&expected.sources), names(&found.sources)),
    ];
    for (setting, expected, found) in settings {
        if expected != found {
            let path = dir.join(MANIFEST_FILE);
            return Err(ascribe_store::StoreError::SettingMismatch { path, setting, expected, found }.into());
        }
    }
    Ok(())
}

fn names(sources: &[Source]) -> String {
    sources.iter().map(|s| format!("{} ({}, {})", s.name, s.path, s.id)).collect::<Vec<_>>().join("; ")
}
