//! Shards on their way to disk: rows gather, a full shard is written, synced, named, and gets its manifest line.

use std::io::{BufWriter, Write};
use std::thread::JoinHandle;

use ascribe_core::ExampleId;

use super::buffer::ShardBuffer;
use super::files;
use super::generation::Generation;
use super::layout::{Paths, StoreHeader};
use super::leaves::{self, LEAVES_MIN_BYTES, LeafHasher};
use super::manifest::{Manifest, ManifestLog, ShardEntry};
use super::shard::Shard;
use super::view::ShardView;
use crate::atomic::{AtomicFile, sync_dir, write_atomic};
use crate::error::StoreError;
use crate::lock::Lock;
use crate::tensors;

/// Appends shards behind those that a generation stands on. While one shard is written and synced by a thread of its own, the
/// next one fills.
#[derive(Debug)]
pub(crate) struct Appender {
    pub paths: Paths,
    pub header: StoreHeader,
    pub buffer: ShardBuffer,
    /// `None` while the thread has it.
    log: Option<ManifestLog>,
    /// Lines of the generation that is built on.
    base: Vec<ShardEntry>,
    /// Lines behind them.
    pub added: Vec<ShardEntry>,
    under_way: Option<(u64, JoinHandle<Written>)>,
    /// A shard whose writing failed: it is tried again before anything else.
    failed: Option<ShardBuffer>,
    /// An empty buffer that keeps its memory.
    spare: Option<ShardBuffer>,
    _lock: Lock,
}

/// What the writing thread gives back.
struct Written {
    log: ManifestLog,
    buffer: ShardBuffer,
    result: Result<ShardEntry, StoreError>,
}

impl Appender {
    /// Goes on behind `base`. Leftovers of a kill (unnamed files, a torn line, shards without a line) are removed; whole
    /// lines behind the generation are kept if `resume`, else dropped with their shards.
    pub fn open(
        paths: Paths,
        header: StoreHeader,
        base: &Generation,
        resume: bool,
        lock: Lock,
    ) -> Result<Self, StoreError> {
        let log_path = paths.manifest();
        let (mut entries, mut len_bytes, mut n_base) = (Vec::new(), 0, 0);
        if log_path.exists() {
            let manifest = Manifest::read(&log_path, &header)?;
            n_base = manifest.n_lines_of(&log_path, base)?;
            (entries, len_bytes) = (manifest.entries, manifest.len_bytes);
        }
        if !resume {
            entries.truncate(n_base);
            len_bytes = base.log_bytes;
        }
        let log = ManifestLog::open(&log_path, len_bytes)?;
        sync_dir(&paths.root)?;
        files::remove_uncommitted(&paths, entries.len() as u32)?;
        let (added, buffer) = (entries.split_off(n_base), ShardBuffer::default());
        let (log, base) = (Some(log), entries);
        Ok(Self { paths, header, buffer, log, base, added, under_way: None, failed: None, spare: None, _lock: lock })
    }

    /// Rows of the lines that were added.
    pub fn n_added(&self) -> u64 {
        self.added.iter().map(|e| u64::from(e.rows)).sum()
    }

    /// Row number of the first row that is added, counted over all lines there ever were.
    pub fn first_row(&self) -> u64 {
        self.base.last().map_or(0, |e| e.first_row + u64::from(e.rows))
    }

    /// The shard of a line, mapped.
    pub fn shard(&self, entry: &ShardEntry) -> Result<Shard, StoreError> {
        Shard::open(&self.paths.shard(entry.shard), &self.header, entry)
    }

    /// Lines of the shards that `generation` holds, in the order of its rows.
    pub fn entries_of(&self, generation: &Generation) -> Vec<ShardEntry> {
        generation.shard_numbers().filter_map(|n| self.base.get(n as usize).cloned()).collect()
    }

    /// True if a full shard waits to be written.
    pub fn is_full(&self) -> bool {
        self.buffer.n_rows() >= self.header.rows_per_shard as usize
    }

    /// Rows on their way to disk.
    pub fn n_under_way(&self) -> u64 {
        self.under_way.as_ref().map_or(0, |(rows, _)| *rows) + self.failed.as_ref().map_or(0, |b| b.n_rows() as u64)
    }

    /// Shows what waits to `take` and begins to write it as a shard, however little it is; nothing if nothing waits. What an
    /// earlier shard failed of is told here, and its rows are kept for another try.
    pub fn commit_shard(&mut self, take: impl FnOnce(&ShardView<'_>)) -> Result<(), StoreError> {
        self.settle()?;
        if self.buffer.n_rows() == 0 {
            return Ok(());
        }
        take(&self.buffer.view(&self.header));
        let next = self.spare.take().unwrap_or_default();
        let full = std::mem::replace(&mut self.buffer, next);
        self.begin(full);
        Ok(())
    }

    /// Waits until everything that was begun is on disk with its manifest line.
    pub fn settle(&mut self) -> Result<(), StoreError> {
        self.join()?;
        if let Some(again) = self.failed.take() {
            self.begin(again);
            self.join()?;
        }
        Ok(())
    }

    fn begin(&mut self, buffer: ShardBuffer) {
        let mut log = self.log.take().expect("the log is here while nothing is under way");
        let (paths, header) = (self.paths.clone(), self.header.clone());
        let shard = (self.base.len() + self.added.len()) as u32;
        let (first_row, n_rows) = (self.first_row() + self.n_added(), buffer.n_rows() as u64);
        let work = move || {
            let result = write_shard(&paths, &header, &buffer, shard, first_row)
                .and_then(|entry| log.append(&entry).map(|()| entry));
            Written { log, buffer, result }
        };
        self.under_way = Some((n_rows, std::thread::spawn(work)));
    }

    fn join(&mut self) -> Result<(), StoreError> {
        let Some((_, thread)) = self.under_way.take() else { return Ok(()) };
        let Written { log, mut buffer, result } =
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        self.log = Some(log);
        match result {
            Ok(entry) => {
                self.added.push(entry);
                buffer.clear();
                self.spare = Some(buffer);
                Ok(())
            }
            Err(error) => {
                self.failed = Some(buffer);
                Err(error)
            }
        }
    }

    /// Length and BLAKE3 of the manifest log, once everything is in it.
    pub fn log_digest(&mut self) -> Result<(u64, String), StoreError> {
        self.settle()?;
        let manifest = Manifest::read(&self.paths.manifest(), &self.header)?;
        Ok((manifest.len_bytes, manifest.blake3(manifest.len_bytes)))
    }
}

impl Drop for Appender {
    fn drop(&mut self) {
        // The thread must not outlive the lock. What it failed of is lost with the writer, as after a kill.
        if let Some((_, thread)) = self.under_way.take() {
            let _ = thread.join();
        }
    }
}

/// Writes a shard and its side file, durable under their names; hashing goes on beside the writing.
fn write_shard(
    paths: &Paths,
    header: &StoreHeader,
    buffer: &ShardBuffer,
    shard: u32,
    first_row: u64,
) -> Result<ShardEntry, StoreError> {
    let (path, side_path) = (paths.shard(shard), paths.side(shard));
    let (metadata, parts) = (buffer.metadata(header, shard), buffer.tensors(header));
    let (bytes, (blake3, leaves)) = std::thread::scope(|scope| {
        let hashing = scope.spawn(|| {
            let mut hasher = LeafHasher::default();
            tensors::write(&mut hasher, &path, &parts, &metadata).map(|_| hasher.finish())
        });
        let mut file = AtomicFile::create(&path)?;
        let mut out = BufWriter::with_capacity(1 << 16, &mut file);
        let written = tensors::write(&mut out, &path, &parts, &metadata);
        let flushed = written.and_then(|len| out.flush().map(|()| len).map_err(|e| StoreError::io("write", &path, e)));
        drop(out);
        let len = flushed.and_then(|len| file.commit().map(|()| len));
        let hashed = hashing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok::<_, StoreError>((len?, hashed?))
    })?;
    if bytes >= LEAVES_MIN_BYTES {
        leaves::write(&path, &leaves)?;
    }
    let side = buffer.side(&side_path, header.spec_sha256, shard)?;
    let (side_bytes, side_blake3) = (side.len() as u64, blake3::hash(&side).to_hex().to_string());
    write_atomic(&side_path, &side)?;
    let id = |packed: Option<&u64>| ExampleId::from_u64(*packed.expect("an empty shard is never written"));
    let (first_id, last_id) = (id(buffer.ids.first()), id(buffer.ids.last()));
    let rows = buffer.n_rows() as u32;
    Ok(ShardEntry { shard, rows, first_row, first_id, last_id, bytes, blake3, side_bytes, side_blake3 })
}
