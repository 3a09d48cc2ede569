//! Compaction: from the first shard on that has dead rows or is not full, rows are written again into full shards.

use std::path::Path;

use super::appender::Appender;
use super::delete::refuse_pending;
use super::generation::{Generation, remove_old};
use super::layout::Paths;
use super::reader::FeatureStore;
use super::writer::open_to_change;
use crate::error::StoreError;

/// Compacts the store at `dir`; returns the new generation, or the old one if there is nothing to do.
///
/// Rows, their order, ids and sums stay; deleted rows' bytes are gone afterwards. Readers keep the generation that they have
/// open. Killed at any point, the store is as before and the next writer removes what was left. Needs room for the rows that
/// are written again; companions become stale and must be made again.
///
/// # Errors
/// [`StoreError::Pending`] beside an unfinished append; [`StoreError::Locked`]; damage; those of the file system.
pub fn compact(dir: &Path) -> Result<Generation, StoreError> {
    let paths = Paths::new(dir);
    let (header, base, lock) = open_to_change(&paths)?;
    refuse_pending(&paths, &base)?;
    let store = FeatureStore::open(dir, None)?;
    let n_shards = store.n_shards();
    let is_full = |i: usize| store.dead[i].is_empty() && store.entries[i].rows == header.rows_per_shard;
    let keep = (0..n_shards).take_while(|&i| is_full(i)).count();
    // A last shard that is merely not full is as it should be.
    if keep == n_shards || (keep + 1 == n_shards && store.dead[keep].is_empty()) {
        return Ok(base);
    }
    let mut appender = Appender::open(paths.clone(), header, &base, false, lock)?;
    for i in keep..n_shards {
        let view = store.shard_view(i)?;
        for row in (0..view.n_rows).filter(|&row| view.is_live(row)) {
            appender.buffer.push_stored(&view, row, &appender.header);
            if appender.is_full() {
                appender.commit_shard()?;
            }
        }
    }
    appender.commit_shard()?;
    let mut next = base.next("compact");
    (next.log_bytes, next.log_blake3) = appender.log_digest()?;
    let kept = store.entries[..keep].iter().map(|e| e.shard);
    next.set_shards(kept.chain(appender.added.iter().map(|e| e.shard)));
    (next.n_dead, next.tombstones) = (0, None);
    next.commit(&paths)?;
    remove_old(&paths, &appender.header, &next)?;
    Generation::read(&paths, &appender.header, next.generation)
}
