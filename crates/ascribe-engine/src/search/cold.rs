//! How fast a store is searched whose files no longer lie in memory, beside reading them as `dd` does.
//!
//! The page cache is told to let go of every shard (`posix_fadvise`, which keeps what a process has mapped: so the store is opened
//! anew, or its pages are let go first). Then the files are read one after the other in pieces of 16 MiB by one thread, and the same
//! again is scanned for one query. How much came from the disk is the kernel's own count (`/proc/self/io`), so that a cache which let go
//! of nothing shows.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ascribe_core::RowType;
use ascribe_index::{CertifiedIndex, Filter};
use ascribe_store::FeatureStore;
use ascribe_store::mmap::Advice;
use ndarray::ArrayView2;
use serde::Serialize;

use super::bench::K;
use crate::error::EngineError;

/// What one read asks for, as `dd bs=16M`.
const PIECE_BYTES: usize = 16 << 20;
/// Times that a figure is taken; the best counts.
const REPEATS: usize = 3;

/// Reading from the disk. GB are 10⁹ bytes.
#[derive(Clone, Debug, Serialize)]
pub struct ColdFigure {
    /// Bytes of the int8 rows' shard files.
    pub bytes: u64,
    /// Those files read one after the other.
    pub read_gb_s: f64,
    /// A certified search of them for one query, rows scored again included; every byte had been checked before.
    pub scan_gb_s: f64,
    /// The first search after the store was opened, which checks every byte against its hash.
    pub first_scan_gb_s: f64,
    /// Least part of the bytes that came from the disk in those runs, by the kernel's count; none where it does not tell.
    pub from_disk: Option<f64>,
}

/// Measures. The store at `dir` has an int8 companion.
pub(super) fn measure(dir: &Path, query: ArrayView2<'_, f32>) -> Result<ColdFigure, EngineError> {
    let fine = dir.join(RowType::Int8.name());
    let (rows, all) = (shards(&fine)?, [shards(dir)?, shards(&fine)?].concat());
    let bytes =
        rows.iter().map(|path| Ok(path.metadata().map_err(failed(path))?.len())).sum::<Result<u64, EngineError>>()?;
    let mut least = [f64::INFINITY; 3];
    let mut from_disk: Option<f64> = None;
    let mut timed = |which: usize, work: &mut dyn FnMut() -> Result<(), EngineError>| {
        let (before, begun) = (disk_bytes(), Instant::now());
        work()?;
        least[which] = least[which].min(begun.elapsed().as_secs_f64());
        if let (Some(before), Some(after)) = (before, disk_bytes()) {
            let part = (after - before) as f64 / bytes as f64;
            from_disk = Some(from_disk.map_or(part, |least| least.min(part)));
        }
        Ok::<(), EngineError>(())
    };
    for _ in 0..REPEATS {
        forget(&all)?;
        timed(0, &mut || {
            let mut piece = vec![0u8; PIECE_BYTES];
            for path in &rows {
                let mut file = File::open(path).map_err(failed(path))?;
                while file.read(&mut piece).map_err(failed(path))? > 0 {}
            }
            Ok(())
        })?;
        let store = FeatureStore::open(dir, None)?;
        let companion = store.companion(RowType::Int8)?;
        let index = CertifiedIndex::new(&store, Some(&companion))?;
        let mut search = || Ok(index.search_certified(query, K, &Filter::default()).map(drop)?);
        forget(&all)?;
        timed(1, &mut search)?;
        for store in [&store, &companion] {
            (0..store.n_shards()).for_each(|shard| store.advise(shard, Advice::DontNeed));
        }
        forget(&all)?;
        timed(2, &mut search)?;
    }
    let [read_gb_s, first_scan_gb_s, scan_gb_s] = least.map(|seconds| bytes as f64 / 1e9 / seconds);
    Ok(ColdFigure { bytes, read_gb_s, scan_gb_s, first_scan_gb_s, from_disk })
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> EngineError + '_ {
    move |source| EngineError::Io { path: path.to_path_buf(), source }
}

/// Shard files of a store's folder.
fn shards(dir: &Path) -> Result<Vec<PathBuf>, EngineError> {
    let folder = dir.join("shards");
    let files = std::fs::read_dir(&folder).map_err(failed(&folder))?.map(|entry| entry.map(|entry| entry.path()));
    let mut files = files.collect::<Result<Vec<_>, _>>().map_err(failed(&folder))?;
    files.retain(|path| path.extension().is_some_and(|ending| ending == "safetensors"));
    files.sort();
    Ok(files)
}

/// Asks the page cache to let go of files, which lie on the disk.
fn forget(files: &[PathBuf]) -> Result<(), EngineError> {
    for path in files {
        let file = File::open(path).map_err(failed(path))?;
        file.sync_all().map_err(failed(path))?;
        // A system that has no such advice keeps them, which the count shows.
        #[cfg(target_os = "linux")]
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    }
    Ok(())
}

/// Bytes that this process has had fetched from disks so far.
fn disk_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/io").ok()?;
    text.lines().find_map(|line| line.strip_prefix("read_bytes: ")).and_then(|bytes| bytes.trim().parse().ok())
}
