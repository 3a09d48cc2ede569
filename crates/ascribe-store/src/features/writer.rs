//! Writing: rows in, shards committed one by one, resumable after a kill at any point.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use ascribe_core::{ExampleId, FeatureSink, FeatureSpec, RowType};
use ndarray::ArrayView2;

use super::FEATURES_FORMAT_VERSION;
use super::layout::{Paths, Seal, StoreHeader};
use super::manifest::{Manifest, ManifestLog, ShardEntry};
use super::reader::FeatureStore;
use super::shard::{Shard, ShardBuffer};
use super::sums::DatasetSums;
use crate::atomic::{AtomicFile, TMP_SUFFIX, create_dirs, sync_dir};
use crate::error::StoreError;
use crate::limits::DATASETS_MAX;
use crate::tensors;

/// Smallest magnitude that rounds to infinity in f16: half way from 65504, the largest number, to 65536.
const F16_LIMIT: f32 = 65520.0;
/// Smallest magnitude that rounds to infinity in bf16: half way from its largest number to 2¹²⁸.
const BF16_LIMIT: f32 = f32::from_bits(0x7F7F_8000);

/// Takes rows and commits them shard by shard. One per store at a time.
#[derive(Debug)]
pub struct FeatureWriter {
    paths: Paths,
    header: StoreHeader,
    log: ManifestLog,
    entries: Vec<ShardEntry>,
    buffer: ShardBuffer,
    seen: HashSet<u64>,
    n_committed: u64,
    _lock: Lock,
}

impl FeatureWriter {
    /// Begins the store at `dir`, or goes on with it.
    ///
    /// `expected_rows` is how many rows the finished store has; [`FeatureSink::n_committed`] says how many of them are
    /// there already, and the caller pushes the others in the same order. A leftover of a kill (unnamed files, a torn
    /// manifest line, shards without a line) is removed here. On a finished store this succeeds with all rows committed.
    ///
    /// # Errors
    /// [`StoreError::Locked`] beside another writer; [`StoreError::SpecMismatch`] or [`StoreError::SettingMismatch`] if
    /// the store was begun differently; [`StoreError::Malformed`], [`StoreError::Missing`], [`StoreError::WrongLength`],
    /// [`StoreError::WrongChecksum`] if a committed shard is damaged; those of the file system.
    pub fn create_or_resume(
        dir: &Path,
        spec: &FeatureSpec,
        row_type: RowType,
        rows_per_shard: u32,
        expected_rows: u64,
    ) -> Result<Self, StoreError> {
        let header = StoreHeader::new(spec, row_type, rows_per_shard, expected_rows);
        header.check()?;
        let paths = Paths::new(dir);
        create_dirs(&paths.shards())?;
        create_dirs(&paths.sides())?;
        let lock = Lock::take(paths.lock())?;
        remove_tmp(&paths.root)?;
        if paths.header().exists() {
            check_header(&paths, &header)?;
        } else {
            header.write(&paths)?;
        }
        let log_path = paths.manifest();
        let manifest = if log_path.exists() { Some(Manifest::read(&log_path, &header)?) } else { None };
        let len_bytes = manifest.as_ref().map_or(0, |m| m.len_bytes);
        let log = ManifestLog::open(&log_path, len_bytes)?;
        sync_dir(&paths.root)?;
        let entries = manifest.map_or_else(Vec::new, |m| m.entries);
        remove_uncommitted(&paths, entries.len())?;
        let seen = committed_ids(&paths, &header, &entries)?;
        let n_committed = entries.last().map_or(0, |e| e.first_row + u64::from(e.rows));
        Ok(Self { paths, header, log, entries, buffer: ShardBuffer::default(), seen, n_committed, _lock: lock })
    }

    /// Seals the store: exact sums per dataset and the closing manifest. Returns the store, open for reading.
    ///
    /// On a store that is sealed already this only opens it.
    ///
    /// # Errors
    /// [`StoreError::Unfinished`] if rows are missing; those of reading back and of the file system.
    pub fn finish(self) -> Result<FeatureStore, StoreError> {
        if self.n_committed != self.header.expected_rows {
            return Err(StoreError::Unfinished {
                path: self.paths.root,
                expected_rows: self.header.expected_rows,
                found_rows: self.n_committed + self.buffer.n_rows() as u64,
            });
        }
        if !self.paths.seal().exists() {
            let log_path = self.paths.manifest();
            let shards = open_shards(&self.paths, &self.header, &self.entries)?;
            let sums = DatasetSums::of_shards(&shards, &self.header)?;
            let dataset_sums_blake3 = sums.write(&self.paths.sums(), &self.header)?;
            Seal {
                format_version: FEATURES_FORMAT_VERSION,
                uuid: self.header.uuid.clone(),
                spec_sha256: self.header.spec_sha256,
                n_rows: self.n_committed,
                n_shards: self.entries.len() as u32,
                n_datasets: sums.counts.len() as u32,
                manifest_log_blake3: Manifest::read(&log_path, &self.header)?.blake3,
                dataset_sums_blake3,
            }
            .write(&self.paths)?;
        }
        FeatureStore::open(&self.paths.root, Some(&self.header.spec))
    }

    /// Rows taken so far, committed or waiting for their shard to fill.
    pub fn n_taken(&self) -> u64 {
        self.n_committed + self.buffer.n_rows() as u64
    }

    /// Refuses a block as a whole, before any of its rows is taken.
    fn check_block(&self, ids: &[ExampleId], rows: ArrayView2<'_, f32>) -> Result<(), StoreError> {
        let expected = format!("[{}, {}]", ids.len(), self.header.spec.dim);
        if rows.dim() != (ids.len(), self.header.spec.dim) {
            let found = format!("{:?}", rows.shape());
            return Err(StoreError::Shape { what: "block of rows", expected, found });
        }
        let n_rows = self.n_taken() + ids.len() as u64;
        if n_rows > self.header.expected_rows {
            let limit = self.header.expected_rows;
            return Err(StoreError::TooLarge { what: "rows of the store", limit, found: n_rows });
        }
        let mut in_block = HashSet::with_capacity(ids.len());
        for (i, (&id, row)) in ids.iter().zip(rows.rows()).enumerate() {
            let row_idx = self.n_taken() + i as u64;
            if id.dataset >= DATASETS_MAX {
                let (limit, found) = (u64::from(DATASETS_MAX) - 1, u64::from(id.dataset));
                return Err(StoreError::TooLarge { what: "ordinal of a dataset", limit, found });
            }
            if self.seen.contains(&id.to_u64()) || !in_block.insert(id.to_u64()) {
                return Err(StoreError::DuplicateExample { id, row: row_idx });
            }
            if let Some((column, &value)) = row.iter().enumerate().find(|(_, x)| !fits(**x, self.header.row_type)) {
                return Err(self.refuse_value(row_idx, id, column, value));
            }
        }
        Ok(())
    }

    fn refuse_value(&self, row: u64, id: ExampleId, column: usize, value: f32) -> StoreError {
        if value.is_finite() {
            let row_type = if self.header.row_type == RowType::F16 { "f16" } else { "bf16" };
            return StoreError::OutOfRange { row, id, column, value, row_type };
        }
        let columns = &self.header.spec.columns;
        let group = columns.iter().find(|c| (c.start..c.start + c.len).contains(&column));
        let module = group.map_or("no module", |c| c.name.as_str());
        let place = format!("row {row} (example {id}), column {column} (module `{module}`)");
        StoreError::NotFinite { place, found: value.to_string() }
    }

    fn commit_shard(&mut self) -> Result<(), StoreError> {
        let shard_idx = self.entries.len() as u32;
        let (path, side_path) = (self.paths.shard(shard_idx), self.paths.side(shard_idx));
        let metadata = self.buffer.metadata(&self.header, shard_idx);
        let (bytes, blake3) = write_hashed(&path, |out| {
            tensors::write(out, &path, &self.buffer.tensors(&self.header), &metadata).map(drop)
        })?;
        let side = self.buffer.side(&side_path, self.header.spec_sha256, shard_idx)?;
        let (side_bytes, side_blake3) = write_hashed(&side_path, |out| {
            out.write_all(&side).map_err(|source| StoreError::io("write", &side_path, source))
        })?;
        let rows = self.buffer.n_rows() as u32;
        let (first_id, last_id) = match self.buffer.ids.as_slice() {
            [first, .., last] => (*first, *last),
            [only] => (*only, *only),
            [] => unreachable!("an empty shard is never committed"),
        };
        let first_row = self.n_committed;
        let entry =
            ShardEntry { shard: shard_idx, rows, first_row, first_id, last_id, bytes, blake3, side_bytes, side_blake3 };
        self.log.append(&entry)?;
        self.entries.push(entry);
        self.n_committed += u64::from(rows);
        self.buffer.clear();
        Ok(())
    }
}

impl FeatureSink for FeatureWriter {
    type Error = StoreError;

    fn spec(&self) -> &FeatureSpec {
        &self.header.spec
    }

    fn n_committed(&self) -> u64 {
        self.n_committed
    }

    /// Takes rows; every time a shard is full it is committed before the next row is looked at.
    ///
    /// # Errors
    /// A block with a bad row ([`StoreError::NotFinite`], [`StoreError::OutOfRange`], [`StoreError::DuplicateExample`],
    /// [`StoreError::Shape`], [`StoreError::TooLarge`]) is refused as a whole. After [`StoreError::DiskFull`] or
    /// [`StoreError::Io`] drop the writer: shards committed before stay, and a new writer goes on from there.
    fn push(&mut self, ids: &[ExampleId], rows: ArrayView2<'_, f32>) -> Result<(), StoreError> {
        if self.buffer.n_rows() == self.header.rows_per_shard as usize {
            // An earlier commit failed and the caller tries again all the same.
            self.commit_shard()?;
        }
        self.check_block(ids, rows)?;
        let standard = rows.as_standard_layout();
        let numbers = standard.as_slice().expect("standard layout is contiguous");
        for (&id, row) in ids.iter().zip(numbers.chunks_exact(self.header.spec.dim)) {
            self.buffer.push(id, row, self.header.row_type);
            self.seen.insert(id.to_u64());
            let is_full = self.buffer.n_rows() == self.header.rows_per_shard as usize;
            if is_full || self.n_taken() == self.header.expected_rows {
                self.commit_shard()?;
            }
        }
        Ok(())
    }
}

/// True if `x` stays finite in the row type.
fn fits(x: f32, row_type: RowType) -> bool {
    match row_type {
        RowType::F32 => x.is_finite(),
        RowType::Bf16 => x.abs() < BF16_LIMIT,
        RowType::F16 => x.abs() < F16_LIMIT,
    }
}

/// Writes a file whole or not at all; returns its length and BLAKE3.
fn write_hashed(
    path: &Path,
    fill: impl FnOnce(&mut Hashing<'_>) -> Result<(), StoreError>,
) -> Result<(u64, String), StoreError> {
    let mut file = AtomicFile::create(path)?;
    let mut out = Hashing { out: BufWriter::with_capacity(1 << 20, &mut file), hasher: blake3::Hasher::new(), len: 0 };
    fill(&mut out)?;
    out.flush().map_err(|source| StoreError::io("write", path, source))?;
    let (len, blake3) = (out.len, out.hasher.finalize().to_hex().to_string());
    drop(out);
    file.commit()?;
    Ok((len, blake3))
}

/// Hashes what passes through.
struct Hashing<'a> {
    out: BufWriter<&'a mut AtomicFile>,
    hasher: blake3::Hasher,
    len: u64,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.len += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The right to write, held until drop; the system takes it back when the process ends, however it ends.
#[derive(Debug)]
struct Lock(File);

impl Lock {
    fn take(path: PathBuf) -> Result<Self, StoreError> {
        let open = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = open.map_err(|source| StoreError::io("lock", &path, source))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(StoreError::Locked { path }),
            Err(TryLockError::Error(source)) => Err(StoreError::io("lock", &path, source)),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file is not enough: a process that is being started just now holds a copy of the handle until it
        // runs its own program, and would hold the lock with it.
        let _ = self.0.unlock();
    }
}

/// The store on disk must be the one that the caller means.
fn check_header(paths: &Paths, expected: &StoreHeader) -> Result<(), StoreError> {
    let found = StoreHeader::read(paths)?;
    let path = paths.header();
    found.expect_spec(&path, &expected.spec)?;
    let settings = [
        ("row type", format!("{:?}", expected.row_type), format!("{:?}", found.row_type)),
        ("rows per shard", expected.rows_per_shard.to_string(), found.rows_per_shard.to_string()),
        ("expected rows", expected.expected_rows.to_string(), found.expected_rows.to_string()),
    ];
    match settings.into_iter().find(|(_, a, b)| a != b) {
        Some((setting, expected, found)) => Err(StoreError::SettingMismatch { path, setting, expected, found }),
        None => Ok(()),
    }
}

fn remove_tmp(dir: &Path) -> Result<(), StoreError> {
    for path in files_of(dir)? {
        if path.extension().is_some_and(|e| e == TMP_SUFFIX) {
            fs::remove_file(&path).map_err(|source| StoreError::io("remove", &path, source))?;
        }
    }
    Ok(())
}

/// Removes what a kill left: unfinished files, and finished ones whose manifest line was never written.
fn remove_uncommitted(paths: &Paths, n_shards: usize) -> Result<(), StoreError> {
    for dir in [paths.shards(), paths.sides()] {
        remove_tmp(&dir)?;
        for path in files_of(&dir)? {
            let stem = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.strip_prefix("s-"));
            // Files that are not ours stay.
            if stem.and_then(|s| s.parse::<usize>().ok()).is_some_and(|idx| idx >= n_shards) {
                fs::remove_file(&path).map_err(|source| StoreError::io("remove", &path, source))?;
            }
        }
    }
    Ok(())
}

fn files_of(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let failed = |source| StoreError::io("list", dir, source);
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_file() {
            files.push(entry.path());
        }
    }
    Ok(files)
}

pub(super) fn open_shards(
    paths: &Paths,
    header: &StoreHeader,
    entries: &[ShardEntry],
) -> Result<Vec<Shard>, StoreError> {
    entries.iter().map(|entry| Shard::open(&paths.shard(entry.shard), header, entry)).collect()
}

/// Ids of the committed rows; a resumed writer must know them to refuse an example that comes again.
fn committed_ids(paths: &Paths, header: &StoreHeader, entries: &[ShardEntry]) -> Result<HashSet<u64>, StoreError> {
    let mut seen = HashSet::new();
    for entry in entries {
        let shard = Shard::open(&paths.shard(entry.shard), header, entry)?;
        shard.check_bytes()?;
        super::shard::check_len(&paths.side(entry.shard), entry.side_bytes)?;
        seen.extend(shard.ids.iter().map(|id| id.to_u64()));
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    #[test]
    fn what_fits_is_what_stays_finite() {
        for limit in [F16_LIMIT, BF16_LIMIT, f32::MAX, 1.0] {
            for bits in limit.to_bits() - 3..limit.to_bits() + 3 {
                for x in [f32::from_bits(bits), -f32::from_bits(bits)] {
                    assert_eq!(fits(x, RowType::F32), x.is_finite(), "{x}");
                    assert_eq!(fits(x, RowType::Bf16), bf16::from_f32(x).is_finite(), "{x}");
                    assert_eq!(fits(x, RowType::F16), f16::from_f32(x).is_finite(), "{x}");
                }
            }
        }
        assert!(!fits(f32::NAN, RowType::F16) && !fits(f32::NAN, RowType::Bf16) && !fits(f32::NAN, RowType::F32));
    }
}
