//! A finished index, open for searching.

use std::path::{Path, PathBuf};

use ascribe_core::{Digest, Progress};
use ascribe_store::StoreError;

use crate::error::VerbatimError;
use crate::layout::{IndexSettings, MANIFEST_FILE, Manifest, Source, shard_path};
use crate::shard::Shard;
use crate::text::{SEPARATOR, symbol};

/// Shards of one index. May be used by several threads at once.
#[derive(Debug)]
pub struct VerbatimIndex {
    dir: PathBuf,
    manifest: Manifest,
    pub(crate) shards: Vec<Shard>,
}

impl VerbatimIndex {
    /// Opens the index in the folder `dir`. Reads counts and checksums (a thousandth of the files); the rest is mapped, and
    /// checked where a search looks at it.
    ///
    /// # Errors
    /// [`StoreError`] naming the file that is missing, cut, changed or of another version; an index that was never finished.
    pub fn open(dir: &Path) -> Result<Self, VerbatimError> {
        let manifest = Manifest::read(dir)?;
        if !manifest.complete {
            let expected = "a finished index (hint: build it again with the same arguments, it resumes)";
            let found = format!("{} shards of an unfinished one", manifest.shards.len());
            return Err(StoreError::malformed(&dir.join(MANIFEST_FILE), "complete", expected, found).into());
        }
        let vocab_size = manifest.settings.vocab_size;
        let open = |(number, entry)| Shard::open(shard_path(dir, number), entry, vocab_size);
        let shards = manifest.shards.iter().enumerate().map(open).collect::<Result<_, _>>()?;
        Ok(Self { dir: dir.to_path_buf(), manifest, shards })
    }

    /// Compares every file with its BLAKE3.
    ///
    /// # Errors
    /// [`StoreError::WrongChecksum`] naming the file.
    pub fn verify(&self, progress: &dyn Progress) -> Result<(), VerbatimError> {
        progress.start("verify", self.shards.len() as u64, "shards");
        for shard in &self.shards {
            shard.verify()?;
            progress.advance(1);
        }
        progress.finish(&format!("{} shards", self.shards.len()));
        Ok(())
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How it was built.
    pub fn settings(&self) -> &IndexSettings {
        &self.manifest.settings
    }

    /// The datasets, by ordinal.
    pub fn sources(&self) -> &[Source] {
        &self.manifest.sources
    }

    /// Number of shards.
    pub fn n_shards(&self) -> usize {
        self.shards.len()
    }

    /// Records.
    pub fn n_records(&self) -> u64 {
        self.shards.iter().map(|shard| shard.entry.records() as u64).sum()
    }

    /// Records of each dataset, by ordinal.
    pub fn record_counts(&self) -> Vec<u64> {
        let mut counts = vec![0; self.sources().len()];
        for part in self.shards.iter().flat_map(|shard| &shard.entry.parts) {
            counts[part.dataset as usize] += u64::from(part.records);
        }
        counts
    }

    /// Tokens, without separators.
    pub fn n_tokens(&self) -> u64 {
        self.shards.iter().map(|shard| shard.len() as u64 - shard.count(SEPARATOR)).sum()
    }

    /// Bytes of all files.
    pub fn n_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.entry.bytes).sum()
    }

    /// How often a token stands in the records.
    pub fn token_count(&self, token: u32) -> u64 {
        if token >= self.settings().vocab_size {
            return 0;
        }
        self.shards.iter().map(|shard| shard.count(symbol(token))).sum()
    }

    /// SHA-256 over what the index says of itself: settings, sources, and the hash of every shard.
    pub fn digest(&self) -> Digest {
        Digest::of_json(&self.manifest).expect("strings and integers always serialise")
    }
}
