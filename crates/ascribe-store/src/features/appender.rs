//! Shards on their way to disk: rows gather, a full shard is written, synced, named, and gets its manifest line.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use ascribe_core::ExampleId;

use super::buffer::ShardBuffer;
use super::files;
use super::generation::Generation;
use super::layout::{Paths, StoreHeader};
use super::leaves::{self, LEAVES_MIN_BYTES, LeafHasher};
use super::manifest::{Manifest, ManifestLog, ShardEntry};
use super::shard::Shard;
use super::sums::DatasetSums;
use crate::atomic::{AtomicFile, sync_dir};
use crate::direct::{DIRECT_MIN_BYTES, Direct};
use crate::error::StoreError;
use crate::lock::Lock;
use crate::pieces::Pieces;
use crate::tensors::{self, Tensor};

/// Shards that are written at once, each by a thread of its own: a disk that is waited for after every file stands still while
/// the next one is hashed. Manifest lines are appended in the order of the shards all the same.
const UNDER_WAY_MIN: usize = 2;
/// So many of them if they are small: a sync takes its milliseconds however little it is for.
const UNDER_WAY_MAX: usize = 8;
/// Bytes of rows up to which more than [`UNDER_WAY_MIN`] are under way.
const UNDER_WAY_BYTES: usize = 96 << 20;

/// Appends shards behind those that a generation stands on. While shards are written and synced, the next one fills.
#[derive(Debug)]
pub(crate) struct Appender {
    pub paths: Paths,
    pub header: StoreHeader,
    pub buffer: ShardBuffer,
    /// Shards of at least so many bytes of rows are written past the page cache.
    pub direct_min_bytes: usize,
    /// Where the log is, or where it comes from once the shards before have their lines.
    turn: Turn,
    /// The same of the sums that shards add their rows to, if there are any, before they are written.
    sums: Option<mpsc::Receiver<DatasetSums>>,
    /// Lines of the generation that is built on.
    base: Vec<ShardEntry>,
    /// Lines behind them.
    pub added: Vec<ShardEntry>,
    /// Oldest first, with their rows.
    under_way: VecDeque<(u64, JoinHandle<Written>)>,
    /// Shards whose writing failed, and those behind them: they are tried again before anything else.
    failed: VecDeque<ShardBuffer>,
    /// Held by the shard whose rows are on their way to the disk.
    disk: Arc<Mutex<()>>,
    /// Empty buffers that keep their memory.
    spare: Vec<ShardBuffer>,
    _lock: Lock,
}

/// The log on its way from shard to shard; `None` from a shard without a line, so that none behind it gets one.
type Turn = mpsc::Receiver<Option<ManifestLog>>;

/// What a writing thread gives back.
struct Written {
    buffer: ShardBuffer,
    /// Nothing if a shard before it failed.
    result: Option<Result<ShardEntry, StoreError>>,
    /// The log, if there was no line to append.
    log: Option<ManifestLog>,
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
        let (turn, base, sums) = (turn_with(Some(log)), entries, None);
        let (under_way, failed, spare) = (VecDeque::new(), VecDeque::new(), Vec::new());
        let direct_min_bytes = DIRECT_MIN_BYTES;
        Ok(Self {
            paths,
            header,
            buffer,
            direct_min_bytes,
            turn,
            sums,
            base,
            added,
            under_way,
            failed,
            disk: Arc::default(),
            spare,
            _lock: lock,
        })
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
        let failed = self.failed.iter().map(|buffer| buffer.n_rows() as u64);
        self.under_way.iter().map(|(rows, _)| rows).copied().chain(failed).sum()
    }

    /// Makes room for the next shard if nothing waits yet; so many rows are still to come.
    pub fn begin_shard(&mut self, n_rows: u64) {
        if self.buffer.n_rows() == 0 {
            let n_rows = n_rows.min(u64::from(self.header.rows_per_shard)) as usize;
            self.buffer.begin(&self.header, self.next_shard(), n_rows);
        }
    }

    /// Number of the shard that fills.
    fn next_shard(&self) -> u32 {
        (self.base.len() + self.added.len() + self.under_way.len()) as u32
    }

    /// Has the rows of the shards to come added to `sums`.
    pub fn sum_up(&mut self, sums: DatasetSums) {
        self.sums = Some(turn_with(sums));
    }

    /// The sums with the rows of all shards that were begun; none if nothing is summed up.
    pub fn take_sums(&mut self) -> Option<DatasetSums> {
        let turn = self.sums.take()?;
        Some(
            turn.recv().expect("sums are passed on, but by a thread that panicked, which was told where it was joined"),
        )
    }

    /// Begins to write what waits as a shard, however little it is; nothing if nothing waits. What an earlier shard failed of is told
    /// here, and its rows are kept for another try.
    pub fn commit_shard(&mut self) -> Result<(), StoreError> {
        if !self.failed.is_empty() {
            self.settle()?;
        }
        let shard_bytes = self.buffer.n_rows().max(1) * self.header.stride().max(1);
        while self.under_way.len() >= (UNDER_WAY_BYTES / shard_bytes).clamp(UNDER_WAY_MIN, UNDER_WAY_MAX) {
            self.join()?;
        }
        if self.buffer.n_rows() == 0 {
            return Ok(());
        }
        let next = self.spare.pop().unwrap_or_default();
        let full = std::mem::replace(&mut self.buffer, next);
        let sums = self.sums.take().map(|sums| {
            let (pass_on, next) = mpsc::channel();
            self.sums = Some(next);
            (sums, pass_on)
        });
        self.begin(full, sums);
        Ok(())
    }

    /// Waits until everything that was begun is on disk with its manifest line.
    pub fn settle(&mut self) -> Result<(), StoreError> {
        while !self.under_way.is_empty() {
            self.join()?;
        }
        while let Some(again) = self.failed.pop_front() {
            // Its rows were added up the first time.
            self.begin(again, None);
            self.join()?;
        }
        Ok(())
    }

    fn begin(&mut self, buffer: ShardBuffer, sums: Option<(mpsc::Receiver<DatasetSums>, mpsc::Sender<DatasetSums>)>) {
        let (paths, header, disk) = (self.paths.clone(), self.header.clone(), Arc::clone(&self.disk));
        let (shard, is_direct) = (self.next_shard(), buffer.n_bytes() >= self.direct_min_bytes);
        let n_before: u64 = self.under_way.iter().map(|(rows, _)| rows).sum();
        let (first_row, n_rows) = (self.first_row() + self.n_added() + n_before, buffer.n_rows() as u64);
        let (pass_on, next) = mpsc::channel();
        let turn = std::mem::replace(&mut self.turn, next);
        let work = move || {
            // Shard after shard, so the bits depend on the rows alone; nothing is passed on by a thread that panicked.
            if let Some((Ok(mut sums), pass_on)) = sums.map(|(turn, pass_on)| (turn.recv(), pass_on)) {
                sums.add_stored(&buffer.view(&header));
                let _ = pass_on.send(sums);
            }
            let written = write_shard(&paths, &header, &buffer, (shard, first_row), is_direct.then_some(&*disk));
            // A thread that panicked passes nothing on; nobody listens to this one if the writer is gone.
            let log = turn.recv().ok().flatten();
            match (log, written) {
                (Some(mut log), Ok(entry)) => match log.append(&entry) {
                    Ok(()) => {
                        let _ = pass_on.send(Some(log));
                        Written { buffer, result: Some(Ok(entry)), log: None }
                    }
                    Err(error) => {
                        let _ = pass_on.send(None);
                        Written { buffer, result: Some(Err(error)), log: Some(log) }
                    }
                },
                (log, written) => {
                    remove_files(&paths, shard);
                    let _ = pass_on.send(None);
                    Written { buffer, result: log.is_some().then_some(written), log }
                }
            }
        };
        self.under_way.push_back((n_rows, std::thread::spawn(work)));
    }

    /// Waits for the oldest shard under way, and if it failed for all behind it: none of them has a line.
    fn join(&mut self) -> Result<(), StoreError> {
        let (mut outcome, mut again) = (Ok(()), Vec::new());
        while let Some((_, thread)) = self.under_way.pop_front() {
            let Written { mut buffer, result, log } =
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            match result {
                Some(Ok(entry)) => {
                    self.added.push(entry);
                    buffer.clear();
                    self.spare.push(buffer);
                    return Ok(());
                }
                Some(Err(error)) => outcome = Err(error),
                None => {}
            }
            again.push(buffer);
            if let Some(log) = log {
                self.turn = turn_with(Some(log));
            }
        }
        again.into_iter().rev().for_each(|buffer| self.failed.push_front(buffer));
        outcome
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
        // No thread must outlive the lock. What it failed of is lost with the writer, as after a kill.
        for (_, thread) in self.under_way.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A turn that has come.
fn turn_with<T>(value: T) -> mpsc::Receiver<T> {
    let (pass_on, turn) = mpsc::channel();
    // The other end is at hand.
    let _ = pass_on.send(value);
    turn
}

/// Takes away what there is of a shard that gets no line. Best effort: whoever opens the store next removes it too.
fn remove_files(paths: &Paths, shard: u32) {
    let path = paths.shard(shard);
    for path in [leaves::path_of(&path), path, paths.side(shard)] {
        let _ = std::fs::remove_file(path);
    }
}

/// Writes a shard and its side file, durable under their names. One thing after the other: what waits here, for the disk or for its
/// turn, leaves the processor to the shards behind.
fn write_shard(
    paths: &Paths,
    header: &StoreHeader,
    buffer: &ShardBuffer,
    (shard, first_row): (u32, u64),
    disk: Option<&Mutex<()>>,
) -> Result<ShardEntry, StoreError> {
    let (path, side_path) = (paths.shard(shard), paths.side(shard));
    let (metadata, parts) = (buffer.metadata(header, shard), buffer.tensors(header));
    let mut hasher = LeafHasher::default();
    tensors::write(&mut hasher, &path, &parts, &metadata)?;
    let (blake3, leaves) = hasher.finish();
    let (file, bytes) = write_file(&path, &parts, &metadata, disk)?;
    let side = buffer.side(&side_path, header.spec_sha256, shard)?;
    let mut side_file = AtomicFile::create(&side_path)?;
    side_file.write_all(&side).map_err(|source| StoreError::io("write", &side_path, source))?;
    if bytes >= LEAVES_MIN_BYTES {
        // Before the shard is synced: so the journal is waited for once.
        leaves::write(&path, &leaves)?;
    }
    side_file.put_in_place()?;
    file.put_in_place()?;
    // The names of both, which cost nothing if they came to disk with their files.
    sync_dir(&paths.shards())?;
    sync_dir(&paths.sides())?;
    let id = |packed: Option<&u64>| ExampleId::from_u64(*packed.expect("an empty shard is never written"));
    let (first_id, last_id) = (id(buffer.ids.first()), id(buffer.ids.last()));
    let (rows, side_bytes, side_blake3) = (buffer.n_rows() as u32, side.len() as u64, blake3::hash(&side));
    let side_blake3 = side_blake3.to_hex().to_string();
    Ok(ShardEntry { shard, rows, first_row, first_id, last_id, bytes, blake3, side_bytes, side_blake3 })
}

/// Writes a shard's file, which has no name yet, past the page cache if it takes turns on `disk`. Returns its length, too.
fn write_file(
    path: &Path,
    parts: &[Tensor<'_>],
    metadata: &BTreeMap<String, String>,
    disk: Option<&Mutex<()>>,
) -> Result<(AtomicFile, u64), StoreError> {
    let failed = |source| StoreError::io("write", path, source);
    let mut file = if disk.is_some() { AtomicFile::create_direct(path)? } else { AtomicFile::create(path)? };
    let len = if let Some(disk) = disk {
        let mut out = Direct::small(file.file(), tensors::len(path, parts, metadata)?).map_err(failed)?;
        let len = tensors::write(&mut out, path, parts, metadata)?;
        out.finish().map_err(failed)?;
        let _turn = disk.lock().unwrap_or_else(PoisonError::into_inner);
        tensors::write(&mut Direct::large(file.file()), path, parts, metadata)?;
        len
    } else {
        let mut out = Pieces::new(&mut file);
        let len = tensors::write(&mut out, path, parts, metadata)?;
        out.flush().map_err(failed)?;
        len
    };
    Ok((file, len))
}
