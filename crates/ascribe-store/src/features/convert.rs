//! The same rows in another row type: a store of its own, or a companion beside the precise one. Also how a store of an older
//! format version becomes one of this version.

use std::path::Path;

use ascribe_core::{ExampleId, FeatureSink as _, Progress, RowType};

use super::layout::StoreHeader;
use super::reader::FeatureStore;
use super::view::ShardView;
use super::writer::FeatureWriter;
use crate::error::StoreError;

/// Rows that are converted between two looks at the stop flag.
const CHUNK: usize = 256;

/// Writes the live rows of `source` to a new store at `out`, kept as `row_type`. Resumes.
///
/// To the same row type every row is copied byte for byte: lossless whatever the format version, which is the upgrade from
/// older ones. Wider types keep every number of narrower floats; codes widen to `scale · code`, rounded once. `error` adds up:
/// what the row had lost before and what it loses now.
///
/// # Errors
/// Damage in the source; [`StoreError::OutOfRange`] if a number does not fit f16 or bf16; those of writing.
/// [`StoreError::Stopped`] on request: the same call goes on.
pub fn convert(
    source: &FeatureStore,
    out: &Path,
    row_type: RowType,
    progress: &dyn Progress,
) -> Result<FeatureStore, StoreError> {
    let from = source.header();
    let n_rows = source.generation().n_rows;
    let header = StoreHeader::new(&from.spec, row_type, from.rows_per_shard, n_rows);
    let mut writer = FeatureWriter::begin(out, header)?.with_terms(source.terms().iter().cloned().collect());
    progress.start(&format!("convert to {}", row_type.name()), n_rows, "rows");
    progress.advance(writer.n_committed());
    let mut skip = writer.n_committed();
    for i in 0..source.n_shards() {
        let view = source.shard_view(i)?;
        let live: Vec<usize> = (0..view.n_rows).filter(|&row| view.is_live(row)).collect();
        let done = skip.min(live.len() as u64);
        skip -= done;
        copy_rows(&view, &live[done as usize..], &mut writer, progress, true)?;
    }
    progress.finish(&format!("{n_rows} rows"));
    writer.finish()
}

/// Makes the companion of `source` in `row_type`, in a folder of that name below it, or finds that it is there already.
/// Shards and places are those of the store, deleted rows too; `error` bounds the distance to the store's rows. A companion
/// of other rows is made anew. Resumes.
///
/// # Errors
/// As [`convert`]; [`StoreError::Shape`] for a row type that is not narrower than the store's.
pub fn make_companion(
    source: &FeatureStore,
    row_type: RowType,
    progress: &dyn Progress,
) -> Result<FeatureStore, StoreError> {
    let from = source.header();
    if row_type.bits() >= from.row_type.bits() {
        let expected = format!("narrower than {}", from.row_type.name());
        return Err(StoreError::Shape { what: "row type of a companion", expected, found: row_type.name().to_owned() });
    }
    let dir = source.paths.companion(row_type);
    let n_rows: u64 = source.entries().iter().map(|e| u64::from(e.rows)).sum();
    let header = StoreHeader::new(&from.spec, row_type, from.rows_per_shard, n_rows).companion(source.companion_of());
    remove_stale(&dir, &header)?;
    let mut writer = FeatureWriter::begin(&dir, header)?;
    let name = format!("companion in {}", row_type.name());
    progress.start(&name, n_rows, "rows");
    progress.advance(writer.n_committed());
    let mut skip = writer.n_committed();
    for i in 0..source.n_shards() {
        let view = source.shard_view(i)?;
        // Shards are committed whole, with the borders of the store's.
        if skip >= view.n_rows as u64 {
            skip -= view.n_rows as u64;
            continue;
        }
        let all: Vec<usize> = (0..view.n_rows).collect();
        copy_rows(&view, &all, &mut writer, progress, false)?;
        writer.commit_shard()?;
    }
    writer.finish()?;
    progress.finish(&format!("{n_rows} rows"));
    source.companion(row_type)
}

/// Takes away a companion that was made of other rows. Anything else in its place is left alone and refused later.
fn remove_stale(dir: &Path, wanted: &StoreHeader) -> Result<(), StoreError> {
    let paths = super::layout::Paths::new(dir);
    let away = dir.with_extension(crate::atomic::TMP_SUFFIX);
    // Also where there is no companion: its removal may have been killed half way.
    remove_folder(&away)?;
    let found = match StoreHeader::read(&paths) {
        Ok(found) => found,
        Err(StoreError::Missing { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    let is_other = found.companion_of.as_ref().is_some_and(|of| {
        wanted.companion_of.as_ref().is_none_or(|w| w.rows_blake3 != of.rows_blake3 || w.uuid != of.uuid)
    });
    if is_other {
        let lock = crate::lock::Lock::take(paths.lock())?;
        // Out of the way in one step: what a kill leaves of a folder half removed would be taken for a companion that was begun.
        std::fs::rename(dir, &away).map_err(|source| StoreError::io("rename", &away, source))?;
        drop(lock);
        remove_folder(&away)?;
    }
    Ok(())
}

fn remove_folder(dir: &Path) -> Result<(), StoreError> {
    match std::fs::remove_dir_all(dir) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(StoreError::io("remove", dir, source)),
        _ => Ok(()),
    }
}

/// Pushes rows of one shard: as they are if the row type stays, else widened and coded again.
pub(super) fn copy_rows(
    view: &ShardView<'_>,
    rows: &[usize],
    writer: &mut FeatureWriter,
    progress: &dyn Progress,
    carry_error: bool,
) -> Result<(), StoreError> {
    let is_same = writer.header().row_type == view.row_type;
    for chunk in rows.chunks(CHUNK) {
        if progress.stop_requested() {
            return Err(StoreError::Stopped);
        }
        if is_same {
            chunk.iter().try_for_each(|&row| writer.push_stored(view, row))?;
        } else {
            let ids: Vec<ExampleId> = chunk.iter().map(|&row| view.id(row)).collect();
            let mut wide = ndarray::Array2::zeros((chunk.len(), view.dim));
            for (mut out, &row) in wide.rows_mut().into_iter().zip(chunk) {
                view.widen(row, out.as_slice_mut().expect("a fresh row is contiguous"));
            }
            let lost = view.error.filter(|_| carry_error).map(|e| chunk.iter().map(|&row| e[row]).collect::<Vec<_>>());
            writer.push_converted(&ids, wide.view(), lost.as_deref())?;
        }
        progress.advance(chunk.len() as u64);
    }
    Ok(())
}
