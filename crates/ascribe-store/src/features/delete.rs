//! Deleting rows: tombstones in a new generation, sums brought up to date. Compaction takes the bytes away.

use std::collections::BTreeSet;
use std::path::Path;

use ascribe_core::ExampleId;
use serde::{Deserialize, Serialize};

use super::generation::{Generation, remove_old};
use super::layout::{Paths, StoreHeader};
use super::reader::FeatureStore;
use super::sums::DatasetSums;
use super::terms::Terms;
use super::tombstones::Tombstones;
use super::writer::{Pending, open_to_change};
use crate::error::StoreError;

/// What is to be deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// Whole datasets, by ordinal.
    pub datasets: BTreeSet<u32>,
    /// Single examples.
    pub examples: BTreeSet<ExampleId>,
}

/// Deletes rows of the store at `dir`; returns the new generation.
///
/// The sums of a withdrawn dataset become exactly zero, those of a dataset that loses examples are brought down by their
/// rows (see [`DatasetSums`] for how close that is to a rebuild), and so are those of their owners. The rows' bytes stay in their shards until
/// [`super::compact`]. Cost: one read of the rows of single examples; a bit of bookkeeping for whole datasets.
///
/// # Errors
/// [`StoreError::NoSuchRow`] if a dataset or an example has no row (nothing is deleted then); [`StoreError::Pending`] beside
/// an unfinished append; [`StoreError::Locked`]; those of opening and of the file system.
pub fn delete(dir: &Path, what: &Deletion) -> Result<Generation, StoreError> {
    let paths = Paths::new(dir);
    let (header, base, _lock) = open_to_change(&paths)?;
    refuse_pending(&paths, &base)?;
    let store = FeatureStore::open(dir, None)?;
    let mut tombstones = Tombstones::of(&paths, &base, &store.entries)?;
    let mut sums = store.dataset_sums()?;
    let (mut datasets_left, mut examples_left) = (what.datasets.clone(), what.examples.clone());
    let n_before = tombstones.len();
    for i in 0..store.n_shards() {
        let view = store.shard_view(i)?;
        for row in (0..view.n_rows).filter(|&row| view.is_live(row)) {
            let id = view.id(row);
            if what.datasets.contains(&id.dataset) {
                datasets_left.remove(&id.dataset);
            } else if what.examples.contains(&id) {
                let mut numbers = ndarray::Array2::zeros((1, view.dim));
                view.widen(row, numbers.as_slice_mut().expect("a fresh row is contiguous"));
                sums.subtract(&[id], numbers.view());
            } else {
                continue;
            }
            examples_left.remove(&id);
            tombstones.insert(store.entries[i].shard, row as u32);
        }
    }
    if let Some(dataset) = datasets_left.first() {
        return Err(StoreError::NoSuchRow { path: paths.root, what: format!("a row of dataset {dataset}") });
    }
    if let Some(id) = examples_left.first() {
        return Err(StoreError::NoSuchRow { path: paths.root, what: format!("example {id}") });
    }
    what.datasets.iter().for_each(|&k| sums.clear(k));
    let mut next = base.next("delete");
    let n_deleted = tombstones.len() - n_before;
    if n_deleted == 0 {
        return Ok(base);
    }
    (next.n_dead, next.n_rows) = (tombstones.len(), base.n_rows - n_deleted);
    let committed = write_parts(&paths, &header, &mut next, &tombstones, &sums).and_then(|()| next.commit(&paths));
    if committed.is_err() && !paths.generation(next.generation).exists() {
        // Nothing names what was written; if it stays, the next writer removes it.
        let _ = remove_old(&paths, &header, &base);
    }
    committed?;
    remove_old(&paths, &header, &next)?;
    Generation::read(&paths, &header, next.generation)
}

fn write_parts(
    paths: &Paths,
    header: &StoreHeader,
    next: &mut Generation,
    tombstones: &Tombstones,
    sums: &DatasetSums,
) -> Result<(), StoreError> {
    next.tombstones = Some(tombstones.write(paths, header, next.generation)?);
    next.sums = Some(sums.write(paths, header, next.generation)?);
    Terms::of(paths, header, next)?.write(paths, header, next, sums)
}

/// Refuses to change a store under an unfinished append.
pub(crate) fn refuse_pending(paths: &Paths, base: &Generation) -> Result<(), StoreError> {
    match Pending::read(paths, base)? {
        Some(pending) => Err(StoreError::Pending { path: paths.pending(), expected_rows: pending.expected_rows }),
        None => Ok(()),
    }
}
